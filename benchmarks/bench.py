"""SegSweep-Bench v2: learning curves of real pretrained weights by learning rates, on six data sets.

    pip install -e ".[export]" h5py
    python benchmarks/real_weights.py outputs/weights
    python benchmarks/bench.py --core 0 &
    python benchmarks/bench.py --core 1          # one worker for each core
    python benchmarks/bench.py --table

Each training has 12 epochs of at most 120 images, at most 40 validation images, and a small canvas. First each of the
`WEIGHTS` with its rates on each of the `GROUPS`, seed 0; then seeds 1 and 2 of each one's best rate, and seed 1 of its
highest, where seeds differ most. Each training is a line of `benchmarks/raw/bench.jsonl` with its validation IoU by
epoch; a line that is there is not run again. All lines are of one program: after a change of segsweep that changes what
these trainings learn, they are recorded anew. No test split is looked at.

A training does a fixed amount of work on one core, in bf16, so its IoU does not depend on what runs beside it. Its
seconds are those that the core really gave it: wall time, times the process's share of the core.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy import TASKS, overrides
from measure import RAW, ROOT, Results

from segsweep.data.sources.camvid import CLASSES

RESULTS = Results(RAW / "bench.jsonl", ("group", "encoder", "lr", "seed"))
EPOCHS, IMAGES, SCORED = 12, 120, 40
WIDE, SQUARE = ("data.resize=pad", "data.size=[96,128]"), ("data.resize=pad", "data.size=128")
CROPS = ("data.resize=crop", "data.zoom=0.5", "data.size=128")
MORE_SEEDS = (1, 2)  # of each weight's best rate


@dataclass(frozen=True)
class Group:
    """A data set of accuracy.py: how its images come to the canvas, and how often an epoch shows each."""

    task: str
    words: tuple[str, ...]
    passes: int = 1
    drawn: bool = False  # it has more images than are shown: some are drawn


@dataclass(frozen=True)
class Weights:
    """Pretrained weights and the learning rates that they are trained at."""

    encoder: str
    rates: tuple[str, ...]
    file: bool = False  # written by real_weights.py; else they come with a package


GROUPS = {
    "camvid": Group("camvid", (*WIDE, f"data.classes=[{','.join(CLASSES)}]", "data.ignore_index=11"), drawn=True),
    "dsb2018": Group("dsb2018", CROPS, drawn=True),
    "isbi2012": Group("isbi2012_em", CROPS, passes=5),
    "kvasir": Group("kvasir", SQUARE, drawn=True),
    "super1": Group("super1", CROPS, passes=12),
    "ebc2": Group("ebc2", CROPS, passes=30),
}
# Four times apart: what a sweep draws from, and past the best on both sides.
CONVOLUTIONAL, PLAIN = ("5e-4", "2e-3", "8e-3", "3.2e-2"), ("1e-4", "4e-4", "1.6e-3", "6.4e-3")
WEIGHTS = (
    *(Weights(f"tf_efficientnet_lite{n}.in1k", CONVOLUTIONAL) for n in (0, 1, 2)),
    Weights("mobilenetv2_100", CONVOLUTIONAL, file=True),
    Weights("vit_small_patch14_dinov2", PLAIN, file=True),
    Weights("vgg16", CONVOLUTIONAL[:2], file=True),
)


@dataclass(frozen=True)
class Job:
    """One training."""

    group: str
    weights: Weights
    lr: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.group, self.weights.encoder, self.lr, self.seed

    def words(self, folder: Path) -> list[str]:
        """What is typed; weights and drawn images lie in the folder."""
        group = GROUPS[self.group]
        typed = drawn(self.group, folder) if group.drawn else overrides(group.task)
        typed += [f"encoder={self.weights.encoder}", f"optim.lr={self.lr}", f"train.seed={self.seed}", *group.words]
        typed += [f"data.passes={group.passes}", f"train.epochs={EPOCHS}", "train.batch_size=8", "train.test=false"]
        typed.append("train.precision=bf16")
        if self.weights.file:
            typed.append(f"encoder.weights_file={folder / 'weights' / self.weights.encoder}.safetensors")
        return [*typed, "tracking=none"]

    def run(self, folder: Path) -> dict[str, Any]:
        """Train; return the IoU and the seconds of each epoch."""
        with tempfile.TemporaryDirectory() as place:
            run, before, started = Path(place) / "run", _cpu(), time.perf_counter()
            command = [sys.executable, "train.py", *self.words(folder), f"hydra.run.dir={run}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            wall = time.perf_counter() - started
            share = min(1.0, (_cpu() - before) / wall)
            if done.returncode:
                raise SystemExit(f"{self.key}: {done.stderr[-2000:]}")
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        epochs = [record for record in records if record["kind"] == "epoch"]
        until = [0.0, *(record["perf/seconds"] for record in epochs)]
        return {
            "source": records[0]["weights_source"],
            "iou": [round(record["val/iou"], 5) for record in epochs],
            "seconds": [round(share * (b - a), 3) for a, b in itertools.pairwise(until)],
            "startup": round(share * (wall - until[-1]), 3),
            "share": round(share, 3),
        }


def _cpu() -> float:
    """Seconds that finished children have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def drawn(name: str, folder: Path) -> list[str]:
    """Link every so-manieth image of the splits, and its mask, into a folder of their own; return what asks for it."""
    from segsweep.compose import configuration
    from segsweep.training.build import load

    root, task = folder / "bench" / name, GROUPS[name].task
    if not root.exists():
        data = load(configuration(overrides(task)).data)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            for part, number in (("train", IMAGES), ("val", SCORED)):
                every = data.parts[part][:: max(1, len(data.parts[part]) // number)][:number]
                for i, sample in enumerate(data.samples[index] for index in every):
                    for kind, path in (("images", sample.image), ("masks", sample.mask)):
                        link = Path(place) / "new" / kind / part / f"{i:03d}{path.suffix}"
                        link.parent.mkdir(parents=True, exist_ok=True)
                        link.symlink_to(path.resolve())
            root.parent.mkdir(exist_ok=True)
            with suppress(OSError):  # another worker's are there by now
                (Path(place) / "new").rename(root)
    rest = [word for word in TASKS[task].data if not word.startswith(("data=", "data.split="))]
    return ["data=folder", f"data.root={root}", *rest]


def jobs(groups: Iterable[str], encoders: Iterable[str]) -> Iterator[Job]:
    """The grid; then more seeds of the best rates, as far as these are known."""
    chosen = [weights for weights in WEIGHTS if weights.encoder.partition(".")[0] in encoders]
    for weights in chosen:
        for group in groups:
            for lr in weights.rates:
                yield Job(group, weights, lr, 0)
    for weights in chosen:
        for group in groups:
            of_grid = [
                row for row in RESULTS.rows() if RESULTS.key(row)[:2] == (group, weights.encoder) and row["seed"] == 0
            ]
            if len(of_grid) == len(weights.rates):
                best = max(of_grid, key=lambda row: max(row["iou"]))["lr"]
                for seed in MORE_SEEDS:
                    yield Job(group, weights, best, seed)
                if best != weights.rates[-1]:
                    yield Job(group, weights, weights.rates[-1], MORE_SEEDS[0])


def missing(groups: Iterable[str], encoders: Iterable[str]) -> list[Job]:
    """The jobs, as far as they are known, that have no row yet."""
    there = set(map(RESULTS.key, RESULTS.rows()))
    return [job for job in jobs(groups, encoders) if job.key not in there]


def table() -> str:
    """The best IoU of each training by rate, and the mean and spread of the seeds of the best rate."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in RESULTS.rows():
        found.setdefault((row["encoder"], row["group"]), {}).setdefault(row["lr"], {})[row["seed"]] = max(row["iou"])
    lines = ["| weights | data | by learning rate | best rate, seeds |", "|---|---|---|---|"]
    for (encoder, group), rates in found.items():
        shown = ", ".join(f"{lr}: {seeds[0]:.3f}" for lr, seeds in sorted(rates.items(), key=lambda one: float(one[0])))
        best = max(rates.values(), key=lambda seeds: seeds[0])
        spread = f" ± {statistics.stdev(best.values()):.3f}" if len(best) > 1 else ""
        lines.append(f"| {encoder} | {group} | {shown} | {statistics.mean(best.values()):.3f}{spread} ({len(best)}) |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    names = [weights.encoder.partition(".")[0] for weights in WEIGHTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--encoders", nargs="+", choices=names, default=names)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs", help="of weights/ and the drawn images")
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    while not given.table and (left := missing(given.groups, given.encoders)):
        for job in RESULTS.missing(left):
            found = job.run(given.folder.resolve())
            RESULTS.add(job, found)
            print(f"{job.key}: {max(found['iou']):.4f}, {sum(found['seconds']):.0f} s", file=sys.stderr, flush=True)
        time.sleep(10)  # what is still missing is another worker's, until it is done or gone
    print(table())


if __name__ == "__main__":
    main()
