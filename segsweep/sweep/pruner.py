"""Which trial is not worth going on with: judged against its own backbone, whose best setting alone counts.

Backbones learn at different speeds, so a slow starter is not compared with a fast one's early score, as successive
halving would. A trial is stopped when even the largest gain that trials like it, of its backbone, have shown from this
point on would not bring it to its backbone's best; or, where that is not among the best backbones, to theirs.

High learning rates look worse than low ones until the schedule lowers them, and gain the most then. So only trials
with a rate as high tell what can still come, and the highest of a backbone is never stopped. Pure functions of the
curves.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from segsweep.runs.curve import Curve

FIRST_RUNG = 0.25  # share of the training before which nothing is judged
LEAST = 2  # epochs before which nothing is judged: the first tells of the warm-up
MARGIN = 0.005  # IoU that a trial may seem to lack and still go on: noise between seeds
OWN = 2  # completed trials of a backbone until its own gains are enough to judge by
ALIKE = 3  # completed trials, those that were closest at this point, whose gains are believed possible
TOP = 3  # backbones that matter at the end


class Verdict(NamedTuple):
    """A trial is stopped: for good, or paused, and may go on later."""

    kind: Literal["prune", "pause"]
    reason: str  # for a person
    estimate: float  # the score that it would probably have reached


def judge(curve: Curve, others: Sequence[Curve], first_rung: float = FIRST_RUNG, top: int = TOP) -> Verdict | None:
    """Judge a running trial by the complete ones among the others; None lets it go on.

    Args:
        first_rung: share of the training before which nothing is stopped.
        top: how many backbones matter at the end.
    """
    if len(curve.points) < LEAST or not first_rung - 1e-9 <= curve.points[-1].done < 1:
        return None
    done, score = curve.points[-1]
    complete = [other for other in others if other.complete and other.points]
    best: dict[str, float] = {}
    for other in complete:
        best[other.encoder] = max(best.get(other.encoder, -1.0), other.best)
    complete = [other for other in complete if other.lr >= curve.lr * (1 - 1e-9)]
    own = [other for other in complete if other.encoder == curve.encoder]
    if not own:
        return None  # the first of its backbone, or the first at so high a rate
    # One trial's gains may be unusually small: all backbones' are then believed possible.
    alike = sorted(own, key=lambda other: abs(other.at(done) - score))[:ALIKE] if len(own) >= OWN else complete
    gains = sorted(other.gain_after(done) for other in alike)
    hope = score + gains[-1] + MARGIN
    last = sorted(best.values(), reverse=True)[: max(top, 1)][-1]
    target, of = (best[curve.encoder], curve.encoder) if best[curve.encoder] >= last else (last, "the best backbones")
    if hope >= target:
        return None
    whose = "trials like it" if len(own) >= OWN else "any trial"
    reason = f"{score:.4f} after {100 * done:.0f} %: with the gains of {whose} {hope:.4f} at most, {of} {target:.4f}"
    return Verdict("prune", reason, score + gains[len(gains) // 2])
