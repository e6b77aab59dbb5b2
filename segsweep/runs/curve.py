"""Learning curves: the best score by the share of the training that was done. Pure values."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """A point of a learning curve: the share of the training that was done, and the best score until then."""

    done: float
    best: float


@dataclass(frozen=True)
class Curve:
    """The learning curve of a trial, so far or complete."""

    weights: str  # `Trial.weights`
    points: Sequence[Point]  # in rising order
    complete: bool = False  # the last point is the end
    lr: float = 0.0  # its peak learning rate

    @property
    def best(self) -> float:
        return self.points[-1].best

    def at(self, done: float) -> float:
        """The best score until this share of the training; 0 before the first point."""
        before = bisect_right(self.points, done + 1e-9, key=lambda point: point.done)
        return self.points[before - 1].best if before else 0.0
