"""Which trial is not worth going on with: judged against its own backbone, whose best setting alone counts.

A backbone is one set of pretrained weights: two of one architecture are two.

Backbones learn at different speeds, so a slow starter is not compared with a fast one's early score, as successive
halving would. A trial is stopped when even the largest gain that trials like it, of its backbone, have shown from this
point on would not bring it to its backbone's best; or, where that is not among the best backbones, to theirs.

High learning rates look worse than low ones until the schedule lowers them, and gain the most then. So only trials
with a rate as high tell what can still come, and the highest of a backbone is never stopped. Pure functions of the
curves.
"""

from array import array
from typing import NamedTuple

import numpy as np

from segsweep.metrics import Floats
from segsweep.runs.curve import Curve

FIRST_RUNG = 0.25  # share of the training before which nothing is judged
LEAST = 2  # epochs before which nothing is judged: the first tells of the warm-up
MARGIN = 0.005  # IoU that a trial may seem to lack and still go on: noise between seeds
OWN = 2  # completed trials of a backbone until its own gains are enough to judge by
ALIKE = 3  # completed trials, those that were closest at this point, whose gains are believed possible
SHARES = 256  # of a training at which scores are kept ready


class Verdict(NamedTuple):
    """The decision to stop a trial."""

    reason: str  # for a person
    estimate: float | None = None  # the score that it would probably have reached, where that is known


class Complete:
    """Curves of complete trials, by backbone, so that a judgement among ten thousand takes as long as among ten."""

    def __init__(self) -> None:
        self.of: dict[str, Backbone] = {}

    def add(self, curve: Curve) -> None:
        """Add a trial's curve; an incomplete one is ignored."""
        if curve.complete and curve.points:
            self.of.setdefault(curve.weights, Backbone()).add(curve)


class Backbone:
    """Complete curves of one backbone; columns have a row for each."""

    def __init__(self) -> None:
        self.best = -1.0
        self._curves: list[Curve] = []
        self._rates, self._bests = array("d"), array("d")
        self._at: dict[float, array[float]] = {}  # the score at a share, of the first curves

    def add(self, curve: Curve) -> None:
        self._curves.append(curve)
        self._rates.append(curve.lr)
        self._bests.append(curve.best)
        self.best = max(self.best, curve.best)

    def gains(self, done: float, lr: float) -> tuple[Floats, Floats]:
        """Return how much each curve rose after a share of the training, and its score there; of rates as high."""
        if len(self._at) > SHARES:  # with a budget of seconds each share is another
            self._at.clear()
        known = self._at.setdefault(done, array("d"))
        known.extend(curve.at(done) for curve in self._curves[len(known) :])
        alike = np.array(self._rates) >= lr * (1 - 1e-9)
        at = np.array(known)[alike]
        return np.array(self._bests)[alike] - at, at


def judge(curve: Curve, others: Complete, top: int) -> Verdict | None:
    """Compare a running trial with the complete ones; None lets it continue.

    Args:
        top: how many backbones matter at the end.
    """
    if len(curve.points) < LEAST or not FIRST_RUNG - 1e-9 <= curve.points[-1].done < 1:
        return None
    done, score = curve.points[-1]
    own = others.of.get(curve.weights)
    if own is None:
        return None  # the first of its backbone
    gains, at = own.gains(done, curve.lr)
    if not gains.size:
        return None  # the first at so high a rate
    enough = gains.size >= OWN
    if enough:
        gains = gains[np.argsort(abs(at - score), kind="stable")[:ALIKE]]
    else:  # one trial's gains may be unusually small: all backbones' are then believed possible
        gains = np.concatenate([backbone.gains(done, curve.lr)[0] for backbone in others.of.values()])
    gains = np.sort(gains)
    hope = score + float(gains[-1]) + MARGIN
    last = sorted((backbone.best for backbone in others.of.values()), reverse=True)[: max(top, 1)][-1]
    target, of = (own.best, curve.weights) if own.best >= last else (last, "the best backbones")
    if hope >= target:
        return None
    whose = "similar trials" if enough else "any trial"
    reach = f"with the largest gain of {whose} it would reach {hope:.4f}"
    reason = f"{score:.4f} after {100 * done:.0f} %; {reach}, below the {target:.4f} of {of}"
    return Verdict(reason, score + float(gains[len(gains) // 2]))
