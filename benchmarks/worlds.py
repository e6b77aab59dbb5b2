"""Trainings that take no time: what IoU an encoder has after each epoch at a learning rate, and what that costs.

Standard library only, since the stock plugin runs it in an environment of its own.
"""

import argparse
import hashlib
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST = 100  # trials for each whole training: more than there is time for
BENCH = Path(__file__).parent / "raw" / "bench.jsonl"


class World:
    """All answers are fixed by its seed; a trial's own noise by the trial's number."""

    encoders: Sequence[str]
    low: float  # learning rates that are searched
    high: float
    epochs: int
    digest = ""  # of what it was recorded as

    def curve(self, encoder: str, lr: float, trial: int) -> list[float]:
        """Validation IoU after each epoch."""
        raise NotImplementedError

    def seconds(self, encoder: str) -> float:
        """Of one epoch."""
        raise NotImplementedError

    def startup(self, encoder: str) -> float:
        """Seconds of a training before its first epoch."""
        return 0.0

    def final(self, encoder: str, lr: float) -> float:
        """The best IoU of a whole training, without noise."""
        raise NotImplementedError

    def budget(self, trials: int, slots: int) -> float:
        """Seconds that so many whole trainings take, encoders in turn: what all who are compared have."""
        each = [self.startup(encoder) + self.epochs * self.seconds(encoder) for encoder in self.encoders]
        return trials * statistics.mean(each) / slots


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


class Bench(World):
    """One data set of SegSweep-Bench v2 (`benchmarks/bench.py`): real weights by learning rates, and how seeds differ.

    Between two rates the logarithm decides, beyond them the last one. What a rate reaches is the mean of its seeds'
    best epochs. A trial's noise is the difference of a recorded seed from the mean of its rate's seeds, epoch by epoch,
    drawn among all that this data set has. `low` and `high` are for who does not know the encoders' kinds: the ends of
    all kinds' ranges.

    Args:
        path: of bench.jsonl.
        group: the data set's name there.
        seed: of the noise.
    """

    low, high = 1e-4, 1e-2

    def __init__(self, path: Path, group: str, seed: int):
        found: dict[tuple[str, float], list[list[float]]] = {}
        spent: dict[str, list[float]] = {}
        begun: dict[str, list[float | None]] = {}
        lines = path.read_text(encoding="utf-8").splitlines()
        recorded = [(line, row) for line in lines if (row := json.loads(line))["group"] == group]
        rows = [row for _, row in recorded]
        speeds = relative_speeds(rows)
        for row in rows:
            speed, startup = speeds.get(row["cpu"], 1.0), row.get("startup")  # the first rows lack it
            begun.setdefault(row["encoder"], []).append(None if startup is None else speed * startup)
            found.setdefault((row["encoder"], float(row["lr"])), []).append(row["iou"])
            spent.setdefault(row["encoder"], []).append(speed * statistics.mean(row["seconds"]))
        self.digest = hashlib.sha256("".join(line for line, _ in recorded).encode()).hexdigest()[:12]
        self._finals = {key: statistics.mean(map(max, runs)) for key, runs in found.items()}
        known = {encoder: [value for value in values if value is not None] for encoder, values in begun.items()}
        usual = [value for values in known.values() for value in values] or [0.0]
        self._startup = {encoder: statistics.median(values or usual) for encoder, values in known.items()}
        self.unfinished = [e for e in spent if not any(len(runs) > 2 for key, runs in found.items() if key[0] == e)]
        apart = {row["cpu"] for row in rows} - set(speeds)
        self.unfinished += [f"weights that {cpu} has in common with the others" for cpu in sorted(apart)]
        self._curves = {key: [sum(at) / len(at) for at in zip(*runs, strict=True)] for key, runs in found.items()}
        self._noise = [
            # The mean holds the seed itself: without the factor differences of n seeds are too small.
            [
                (iou - mean) * math.sqrt(len(runs) / (len(runs) - 1))
                for iou, mean in zip(run, self._curves[key], strict=True)
            ]
            for key, runs in found.items()
            if len(runs) > 1
            for run in runs
        ]
        self._seconds = {encoder: statistics.median(values) for encoder, values in spent.items()}
        self._rates = {e: sorted(lr for name, lr in self._curves if name == e) for e in spent}
        self._seed = f"{group} {seed}"
        self.encoders = sorted(spent)
        random.Random(self._seed).shuffle(self.encoders)  # which one is tried first is chance
        self.epochs = max(map(len, self._curves.values()))

    def seconds(self, encoder: str) -> float:
        return self._seconds[encoder]

    def startup(self, encoder: str) -> float:
        return self._startup[encoder]

    def final(self, encoder: str, lr: float) -> float:
        below, above, share = between(self._rates[encoder], lr)
        return (1 - share) * self._finals[encoder, below] + share * self._finals[encoder, above]

    def curve(self, encoder: str, lr: float, trial: int) -> list[float]:
        rng = random.Random(f"{self._seed} {encoder} {lr:.6g} {trial}")
        below, above, share = between(self._rates[encoder], lr)
        pair = self._curves[encoder, below], self._curves[encoder, above]
        mean = [(1 - share) * a + share * b for a, b in zip(*pair, strict=True)]
        noise = rng.choice(self._noise) if self._noise else [0.0] * self.epochs
        return [min(1.0, max(0.0, iou + more)) for iou, more in zip(mean, noise, strict=True)]


def relative_speeds(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return how fast each processor is, as a multiple of the one with most rows: the median over weights of both.

    A processor that has no weights in common with that one is not there.
    """
    spent: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        spent.setdefault(row["cpu"], {}).setdefault(row["encoder"], []).append(statistics.mean(row["seconds"]))
    most = max(spent, key=lambda cpu: sum(map(len, spent[cpu].values())), default="")
    usual = {encoder: statistics.median(values) for encoder, values in spent.get(most, {}).items()}
    ratios = {
        cpu: [usual[encoder] / statistics.median(values) for encoder, values in of_cpu.items() if encoder in usual]
        for cpu, of_cpu in spent.items()
    }
    return {cpu: statistics.median(values) for cpu, values in ratios.items() if values}


def between(rates: Sequence[float], lr: float) -> tuple[float, float, float]:
    """Return the two rates that are nearest to a rate, and where it lies between them by its logarithm, 0 to 1."""
    lr = min(max(lr, rates[0]), rates[-1])
    above = next(i for i, rate in enumerate(rates) if rate >= lr * (1 - 1e-9))
    below = max(0, above - 1)
    apart = math.log(rates[above] / rates[below])
    share = math.log(lr / rates[below]) / apart if apart else 0.0
    return rates[below], rates[above], share


def replayed(parser: argparse.ArgumentParser) -> None:
    """The options that say what is replayed; the same for all who are compared."""
    parser.add_argument("--world", default="synthetic", help="synthetic, or a data set of benchmarks/raw/bench.jsonl")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 200), help="first, and the one after the last")
    parser.add_argument("--trials", type=int, default=96, help="whole trainings whose time all have")
    parser.add_argument("--slots", type=int, default=4)


def world(name: str, seed: int) -> World:
    """`synthetic`, or a data set of SegSweep-Bench, whose recording has to be finished."""
    if name == "synthetic":
        return Synthetic(seed)
    found = Bench(BENCH, name, seed)
    if found.unfinished or not found.encoders:
        raise SystemExit(f"--world {name}: not recorded yet: {', '.join(found.unfinished) or 'all'}. See bench.py.")
    return found


def told(replay: dict[str, Any], world: World, options: argparse.Namespace) -> str:
    """A line for a replay, with what it is of."""
    return json.dumps({**of(world, options), **replay})


def of(world: World, options: argparse.Namespace) -> dict[str, Any]:
    """What replays that are compared have in common."""
    return {"world": options.world, "digest": world.digest, "trials": options.trials, "slots": options.slots}
