"""The trainings that chose the recipe, one after the other, on six data sets: what is missing is run.

    python benchmarks/choosing.py cells --core 0 &      # canvas x zoom
    python benchmarks/choosing.py arms --core 1         # one change of the recipe at a time
    python benchmarks/choosing.py few --groups camvid super1 ebc2 --seeds 0 1   # some 250 steps: a newcomer's first run
    python benchmarks/choosing.py cells --groups lines --names "256 x 1" "384 x 1" --seeds 1 2   # some cells
    python benchmarks/choosing.py arms --table
    python benchmarks/choosing.py final --seeds 0 1 2   # ours beside careful, one core each; nothing else runs

A training does a fixed amount of work, what one quiet core did in 300 s (of CamVid and Kvasir-SEG in 600 s), so it may
run beside other work. Several workers may run at once: a job is taken by locking its name. Each is a line of
`benchmarks/raw/choosing.jsonl` with its validation scores; no test split is looked at.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy import overrides
from measure import RAW, ROOT, Results, machine

RESULTS = Results(RAW / "choosing.jsonl", ("stage", "group", "name", "seed"))
RATE = 12 * 256**2  # pixels that one core trains on in a second: tf_efficientnet_lite0, bf16, AMD EPYC
FORWARD = 1 / 3  # what scoring a pixel costs, beside training on one
EPOCHS = range(8, 1, -1)  # that a training may have
CLOSE = 0.05  # of the work asked for: the more epochs are taken if they meet it as nearly


@dataclass(frozen=True)
class Group:
    """A data set: a choosing run's seconds, its training images, pixels of its validation images."""

    task: str  # of accuracy.py
    seconds: int
    images: int
    scored: int


GROUPS = {
    "camvid": Group("camvid", 600, 367, 17_452_800),
    "dsb2018": Group("dsb2018", 300, 530, 10_537_856),
    "isbi2012": Group("isbi2012_em", 300, 24, 1_572_864),
    "kvasir": Group("kvasir", 600, 800, 12_390_400),
    "super1": Group("super1", 300, 10, 1_048_576),
    "ebc2": Group("ebc2", 300, 4, 3_145_728),
}
LARGE = {"nuclei": Group("nuclei", 300, 24, 37_748_736), "lines": Group("lines", 300, 24, 40_000_000)}  # large.py
EVERY = GROUPS | LARGE
# What the plan would decide, and defaults that came later, are the same in all. Only on large images the plan decides
# the share of crops on objects: without such crops, thin lines are not learnt at a zoom of 1.
THEN = ("decoder.width=[96,48,24,16,8]", "loss.class_weights=null")
ANYWHERE = "data.foreground=0"
PINNED = ("augmentation.scale=0.25", "augmentation.translate=0.05", "train.batch_size=16")
CELLS = {
    f"{canvas} x {zoom:g}": (canvas, zoom)
    for canvas, zoom in ((256, 0.5), (256, 0.7), (256, 1.0), (256, 1.4), (384, 0.7), (384, 1.0))
}
ARMS = {
    "base": (),
    "batch 8": ("train.batch_size=8",),
    "large zooms": ("augmentation.scale=0.5", "augmentation.translate=0.1"),
    "wide": ("decoder.width=[128,64,32,16,16]",),
    "last 24": ("decoder.width=[96,48,24,24,24]",),
    "lr 6e-3": ("optim.lr=6e-3",),
    "symmetries": ("augmentation.vflip=0.5", "augmentation.transpose=0.5"),
    "foreground": ("data.foreground=0.333",),
}
BASE = "base"  # the arm that cells have
# Epochs and passes of some 250 steps of 16 images, at 128 px and a zoom of 0.5.
FEW = {"camvid": (3, 4), "dsb2018": (4, 2), "kvasir": (5, 1), "super1": (4, 100), "ebc2": (4, 250)}
TWO = ("dsb2018", "kvasir")  # of them, those of two classes
FEW_ARMS = {
    "base": ("loss.class_weights=null",),
    "fading": ("loss.class_weights=fading",),
    "auto": ("loss.class_weights=auto",),
    "batch 8": ("loss.class_weights=null", "train.batch_size=8"),
    "batch 8, fading": ("loss.class_weights=fading", "train.batch_size=8"),
}


@dataclass(frozen=True)
class Job:
    """One training: of a cell or an arm (`name`), on a group, with a seed."""

    stage: str
    group: str
    name: str
    seed: int
    canvas: int = 256
    zoom: float = 1.0
    words: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.stage, self.group, self.name, self.seed

    def length(self) -> tuple[int, int]:
        """Epochs, and how often each shows an image: as near to the group's seconds as whole numbers come."""
        if self.stage == "few":
            return FEW[self.group]
        group = EVERY[self.group]
        shown, scored = group.images * self.canvas**2, group.scored * self.zoom**2 * FORWARD
        total, found = group.seconds * RATE, []
        for epochs in EPOCHS:
            repeats = max(1, round((total / epochs - scored) / shown))
            found.append((abs(epochs * (repeats * shown + scored) / total - 1), epochs, repeats))
        near = [(epochs, repeats) for error, epochs, repeats in found if error <= max(CLOSE, min(found)[0])]
        return near[0]

    def run(self) -> dict[str, Any]:
        """Train; what is kept of it."""
        epochs, repeats = self.length()
        with tempfile.TemporaryDirectory() as outputs:
            typed = [
                *overrides(EVERY[self.group].task),
                f"data.size={self.canvas}",
                "data.resize=crop",
                f"data.zoom={self.zoom}",
            ]
            typed += [*PINNED, f"train.epochs={epochs}", f"data.passes={repeats}", f"train.seed={self.seed}"]
            if self.group not in LARGE:
                typed.append(ANYWHERE)
            own = [word.partition("=")[0] for word in self.words]
            typed += [word for word in THEN if self.stage != "few" and word.partition("=")[0] not in own]
            typed += ["train.test=false", "tracking=none", f"hydra.run.dir={outputs}/run", *self.words]
            done = subprocess.run([sys.executable, "train.py", *typed], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{self.key}: {done.stderr[-2000:]}")
            lines = (Path(outputs) / "run" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        scores = [record["val/iou"] for record in records if record["kind"] == "epoch"]
        return {
            "epochs": epochs,
            "repeats": repeats,
            "val": scores,
            "best": max(scores),
            "seconds": [record["perf/seconds"] for record in records if record["kind"] == "epoch"][-1],
        }


def jobs(stage: str, groups: list[str], names: list[str], seeds: list[int]) -> Iterator[Job]:
    """All trainings of a stage, group by group; `names` are cells or arms, by default all."""
    for seed in seeds:
        if stage == "cells":
            for name in names or CELLS:
                for group in groups:
                    yield Job(stage, group, name, seed, *CELLS[name], ARMS[BASE])
        elif stage == "few":
            for name in names or FEW_ARMS:
                for group in (group for group in groups if group in FEW):
                    if "fading" in name and group in TWO:
                        continue  # they fade with three classes or more
                    yield Job(stage, group, name, seed, 128, 0.5, FEW_ARMS[name])
        else:
            for name in names or ARMS:
                for group in groups:
                    yield Job(stage, group, name, seed, words=ARMS[name])


def rows(stage: str) -> list[dict[str, Any]]:
    """What has been run of a stage."""
    return [row for row in RESULTS.rows() if row["stage"] == stage]


def table(stage: str) -> str:
    """Best validation IoU of each group, mean over the seeds, and the mean over the groups that are there."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows(stage):
        found.setdefault(row["name"], {}).setdefault(row["group"], []).append(row["best"])
    there = [group for group in EVERY if any(group in by_group for by_group in found.values())]
    lines = [f"| {stage} | {' | '.join(there)} | mean |", "|---" * (len(there) + 2) + "|"]
    for name, by_group in found.items():
        means = {group: statistics.mean(scores) for group, scores in by_group.items()}
        shown = [f"{means[group]:.3f} ({len(by_group[group])})" if group in means else "" for group in there]
        lines.append(f"| {name} | {' | '.join(shown)} | {statistics.mean(means.values()):.3f} of {len(means)} |")
    return "\n".join(lines)


def final(groups: list[str], seeds: list[int]) -> None:
    """Train ours and careful at the same time, one core each, swapped by the seed; `accuracy.py` keeps both.

    A pair of this commit is not trained again; half of one is refused, since it was not side by side.
    """
    commit = machine()["commit"]
    kept = [json.loads(line) for line in (RAW / "accuracy.jsonl").read_text().splitlines()]
    for seed in seeds:
        for group in groups:
            task, budget = EVERY[group].task, 2 * EVERY[group].seconds
            about = {"task": task, "seed": seed, "budget": budget, "more": "", "commit": commit}
            there = {row["who"] for row in kept if about.items() <= row.items()} & {"ours", "careful"}
            if len(there) == 1:
                raise SystemExit(
                    f"{group}, seed {seed}: only {there.pop()} is there. Take its row out of accuracy.jsonl."
                )
            if there:
                continue
            both = []
            for core, who in enumerate(("ours", "careful") if seed % 2 == 0 else ("careful", "ours")):
                typed = ["--who", who, "--seeds", str(seed), "--budget", str(budget), "--core", str(core)]
                typed += ["--commit", commit]
                script = str(ROOT / "benchmarks" / "accuracy.py")
                both.append(subprocess.Popen([sys.executable, script, task, *typed], stdout=subprocess.DEVNULL))
            if any([one.wait() for one in both]):  # of both: none is to disturb what is measured next
                raise SystemExit(f"{group}, seed {seed}: failed")


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["cells", "arms", "few", "final"])
    parser.add_argument("--groups", nargs="+", choices=EVERY, default=list(GROUPS))
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="cells or arms; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    given = parser.parse_args()
    of_stage = {"cells": CELLS, "few": FEW_ARMS}.get(given.stage, ARMS)
    if unknown := [name for name in given.names if name not in of_stage]:
        parser.error(f"{given.stage} has no {unknown[0]!r}; it has {', '.join(of_stage)}")
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    if given.stage == "final":
        final(given.groups, given.seeds)
        return
    for job in [] if given.table else RESULTS.missing(jobs(given.stage, given.groups, given.names, given.seeds)):
        row = {"words": job.words, **job.run()}
        RESULTS.add(job, row)
        print(f"{job.key}: {row['epochs']} x {row['repeats']}, {row['best']:.4f}", file=sys.stderr, flush=True)
    print(table(given.stage))


if __name__ == "__main__":
    main()
