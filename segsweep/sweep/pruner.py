"""Which trial is not worth going on with: judged against its own backbone, whose best setting alone counts.

Backbones learn at different speeds, so a slow starter is not compared with a fast one's early score, as successive
halving would. A trial is stopped when even the largest gain that its backbone has shown from this point on would not
bring it to the backbone's best. Pure functions of the curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

FIRST_RUNG = 0.3  # share of the training before which nothing is judged
MARGIN = 0.005  # IoU that a trial may seem to lack and still go on: noise between seeds
OWN = 2  # completed trials of a backbone until its own gains are enough to judge by


class Point(NamedTuple):
    """Where a trial was: the share of its training that was done, and its best score until then."""

    done: float
    best: float


@dataclass(frozen=True)
class Curve:
    """A trial's way so far, or to its end.

    Attributes:
        encoder: its backbone.
        points: in rising order.
        complete: the last point is the end.
    """

    encoder: str
    points: Sequence[Point]
    complete: bool = False

    @property
    def best(self) -> float:
        return self.points[-1].best

    def gain_after(self, done: float) -> float:
        """How much the best score rose after this share of the training; measured from the last point before it."""
        before = [point.best for point in self.points if point.done <= done + 1e-9]
        return self.best - (before[-1] if before else 0.0)


class Verdict(NamedTuple):
    """Why a trial is stopped, and the score it would probably have reached."""

    reason: str
    estimate: float


def judge(curve: Curve, others: Sequence[Curve], first_rung: float = FIRST_RUNG) -> Verdict | None:
    """Whether to stop a running trial, and why; None lets it go on.

    Args:
        curve: of the trial.
        others: the sweep's other trials, complete ones and running ones.
        first_rung: share of the training before which nothing is stopped.
    """
    if not curve.points or curve.points[-1].done < first_rung - 1e-9 or curve.points[-1].done >= 1:
        return None
    here = curve.points[-1]
    complete = [other for other in others if other.complete and other.points]
    own = [other for other in complete if other.encoder == curve.encoder]
    if not own:
        return None
    # With a history of one trial its gains may be unusually small: all backbones' are then believed possible.
    gains = sorted(other.gain_after(here.done) for other in (own if len(own) >= OWN else complete))
    target, hope = max(other.best for other in own), here.best + gains[-1]
    if hope + MARGIN >= target:
        return None
    reason = (
        f"{here.best:.4f} after {100 * here.done:.0f} %: at most {hope:.4f} by the gains of "
        f"{'its backbone' if len(own) >= OWN else 'all backbones'}, below {curve.encoder}'s best {target:.4f}"
    )
    return Verdict(reason, here.best + gains[len(gains) // 2])
