"""Trainings that take no time: what IoU an encoder has after each epoch at a learning rate, and what that costs.

Standard library only, since the stock plugin runs it in an environment of its own.
"""

import argparse
import csv
import math
import random
from collections.abc import Sequence
from pathlib import Path


class World:
    """All answers are fixed by its seed; a trial's own noise by the trial's number."""

    encoders: Sequence[str]
    low: float
    high: float
    epochs: int

    def curve(self, encoder: str, lr: float, trial: int) -> list[float]:
        """Validation IoU after each epoch."""
        raise NotImplementedError

    def seconds(self, encoder: str) -> float:
        """Of one epoch."""
        raise NotImplementedError

    def final(self, encoder: str, lr: float) -> float:
        """The best IoU of a whole training, without noise."""
        raise NotImplementedError

    def best(self) -> float:
        """The best that there is: every encoder at 200 learning rates."""
        steps = [self.low * (self.high / self.low) ** (i / 199) for i in range(200)]
        return max(self.final(encoder, lr) for encoder in self.encoders for lr in steps)


class Synthetic(World):
    """Twelve backbones of unequal quality, cost (1:5), speed of learning and best learning rate.

    A curve rises as 1 - exp(-epoch / pace); the slowest starters are among the better ones as often as the quick ones.
    Too small a learning rate slows, too large a one spoils; some trainings at the upper end diverge to nearly nothing.
    """

    low, high, epochs = 1e-5, 1e-2, 20

    def __init__(self, seed: int):
        rng = random.Random(seed)
        self.encoders = [f"encoder{i}" for i in range(12)]
        self._top = {e: rng.uniform(0.60, 0.80) for e in self.encoders}
        self._pace = {e: rng.uniform(1.5, 8.0) for e in self.encoders}
        self._center = {e: 10 ** rng.uniform(-4.0, -2.7) for e in self.encoders}
        self._seconds = {e: rng.uniform(10, 50) for e in self.encoders}
        self._seed = seed

    def seconds(self, encoder: str) -> float:
        return self._seconds[encoder]

    def final(self, encoder: str, lr: float) -> float:
        return max(self._noiseless(encoder, lr))

    def curve(self, encoder: str, lr: float, trial: int) -> list[float]:
        rng = random.Random(f"{self._seed} {encoder} {lr:.6g} {trial}")
        level = rng.gauss(0, 0.004)
        return [max(0.0, iou + level + rng.gauss(0, 0.006)) for iou in self._noiseless(encoder, lr)]

    def _noiseless(self, encoder: str, lr: float) -> list[float]:
        decades = math.log10(lr / self._center[encoder])
        top = self._top[encoder] - (0.16 * decades**2 if decades > 0 else 0.06 * decades**2)
        if decades > 1.2:
            top = 0.1
        pace = self._pace[encoder] * (1 + max(0.0, -decades) * 0.8)
        return [max(0.0, top * (1 - math.exp(-(epoch + 1) / pace))) for epoch in range(self.epochs)]


class Recorded(World):
    """SegSweep-Bench: real curves by encoder, learning rate and seed; between two rates the logarithm decides.

    Args:
        path: of a CSV with the columns encoder, lr, seed, epoch, iou, seconds.
    """

    def __init__(self, path: Path):
        rows = list(csv.DictReader(path.open(encoding="utf-8")))
        self._curves: dict[tuple[str, float, int], list[float]] = {}
        spent: dict[str, list[float]] = {}
        for row in rows:
            key = row["encoder"], float(row["lr"]), int(row["seed"])
            self._curves.setdefault(key, []).append(float(row["iou"]))
            spent.setdefault(row["encoder"], []).append(float(row["seconds"]))
        self.encoders = list(spent)
        self._seconds = {encoder: sum(values) / len(values) for encoder, values in spent.items()}
        self._rates = {e: sorted({lr for name, lr, _ in self._curves if name == e}) for e in self.encoders}
        self._runs = sorted({seed for _, _, seed in self._curves})
        self.low = max(rates[0] for rates in self._rates.values())
        self.high = min(rates[-1] for rates in self._rates.values())
        self.epochs = max(map(len, self._curves.values()))

    def seconds(self, encoder: str) -> float:
        return self._seconds[encoder]

    def final(self, encoder: str, lr: float) -> float:
        curves = [self._between(encoder, lr, run) for run in self._runs]
        return sum(max(curve) for curve in curves) / len(curves)

    def curve(self, encoder: str, lr: float, trial: int) -> list[float]:
        return self._between(encoder, lr, self._runs[trial % len(self._runs)])

    def _between(self, encoder: str, lr: float, run: int) -> list[float]:
        rates = self._rates[encoder]
        lr = min(max(lr, rates[0]), rates[-1])
        above = next(i for i, rate in enumerate(rates) if rate >= lr * (1 - 1e-9))
        below = max(0, above - 1)
        share = (
            0.0 if rates[above] == rates[below] else math.log(lr / rates[below]) / math.log(rates[above] / rates[below])
        )
        pair = self._curves[encoder, rates[below], run], self._curves[encoder, rates[above], run]
        return [(1 - share) * a + share * b for a, b in zip(*pair, strict=True)]


def replayed(parser: argparse.ArgumentParser) -> None:
    """The options that say what is replayed; the same for all who are compared."""
    parser.add_argument("--world", default="synthetic", help="synthetic, or the CSV of a recorded one")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 200), help="first, and the one after the last")
    parser.add_argument("--trials", type=int, default=96)
    parser.add_argument("--slots", type=int, default=4)


def world(name: str, seed: int) -> World:
    """`synthetic`, or the path of a recorded one."""
    return Synthetic(seed) if name == "synthetic" else Recorded(Path(name))
