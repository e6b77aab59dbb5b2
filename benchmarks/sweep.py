"""How soon a sweep finds the best: ours beside plain Optuna and Hydra's stock sweeper, on trainings that take no time.

    stock/bin/python benchmarks/stock.py > stock.jsonl           # in its own environment, see there
    python benchmarks/sweep.py --stock stock.jsonl               # 200 replays, the time of 96 trainings, 4 slots
    python benchmarks/sweep.py --world camvid --trials 48 --stock stock_camvid.jsonl     # on SegSweep-Bench
    python benchmarks/sweep.py --refill 30                       # how soon a free slot has its next trial

Ours is `segsweep.sweeping` as it runs real trainings: its loop, its study, its pruner; only the backend pretends. The
clock is simulated, so seconds are those that the trainings would have taken. All have the same time, and draw as many
trials as they like; what ends later does not count.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from measure import RAW, ROOT, machine
from optuna.storages import InMemoryStorage
from worlds import MOST, Bench, World, of, replayed, world

sys.path.insert(0, str(ROOT / "tests" / "sweeping"))
from fake_train import config, end, epoch, start

from segsweep.config.sweeper import SweeperConfig
from segsweep.runs.records import Record
from segsweep.sweeping.backends.base import Id, Job, JobUpdate
from segsweep.sweeping.backends.local import LocalBackend
from segsweep.sweeping.backends.slots import Slot
from segsweep.sweeping.scheduler import Search, drive
from segsweep.sweeping.space import Parameter, Space, interval, rates_by_kind
from segsweep.sweeping.study import Study

NEAR = 0.01  # IoU: one point
HEAD = (
    *(
        "",
        "sooner than the stock sweeper (95 %)",
        "of the way to the oracle",
        "never",
        "slot use",
        "epochs",
        "regret",
        "its 90 %",
    ),
    *("a better one pruned", "the very best pruned", "n"),
)
NOISE = 0.005  # IoU: two trials that are closer are equally good


@dataclass
class Living:
    encoder: str
    lr: float
    curve: Sequence[float]
    due: float  # when its next epoch, or its end, is there
    epoch: int = 0
    stopped: bool = False


class FakeBackend:
    """Trainings that report at once what they would have reported, and when."""

    keeps = True

    def __init__(self, world: World, slots: int):
        self.world, self.capacity = world, slots
        self.clock, self.busy, self.epochs = 0.0, 0.0, 0
        self.events: list[tuple[float, str, float]] = []
        self._living: dict[Id, Living] = {}

    def free(self) -> int:
        return self.capacity - len(self._living)

    def submit(self, job: Job) -> Id:
        given = dict(override.split("=", 1) for override in job.argv)
        encoder, lr = given["encoder"], float(given["optim.lr"])
        curve = self.world.curve(encoder, lr, int(job.name))
        due = self.clock + self.world.startup(encoder) + self.world.seconds(encoder)
        self._living[Id(job.name)] = Living(encoder, lr, curve, due)
        return Id(job.name)

    def adopt(self, name: str) -> Id | None:
        return None

    def where(self, job: Id) -> str:
        return "CPU"

    def stop(self, job: Id) -> None:
        self._living[job].stopped, self._living[job].due = True, self.clock

    def poll(self, seconds: float) -> list[JobUpdate]:
        job = min(self._living, key=lambda job: self._living[job].due)
        living = self._living[job]
        self.clock = living.due
        if living.stopped:
            del self._living[job]
            return [JobUpdate(job, ended=True)]
        spent = self.world.seconds(living.encoder)
        self.busy += spent + (0.0 if living.epoch else self.world.startup(living.encoder))
        self.epochs += 1
        records: list[Record] = []
        if living.epoch == 0:
            records.append(start(config(living.encoder, living.lr, epochs=self.world.epochs)))
        living.epoch += 1
        iou, over = living.curve[living.epoch - 1], living.epoch == self.world.epochs
        records.append(epoch(living.epoch, iou, **{"perf/seconds": living.epoch * spent}))
        living.due = self.clock + spent
        if over:
            records.append(end())
            self.events.append((self.clock, living.encoder, living.lr))
            del self._living[job]
        return [JobUpdate(job, records, ended=over)]

    def fetch(self, job: Id) -> bool:
        return True

    def call(self, function: str, *arguments: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def replay(self, seed: int, until: float) -> dict[str, Any]:
        """What the sweep with that seed found until then, and what it took in all."""
        return {
            "seed": seed,
            "events": [event for event in self.events if event[0] <= until],
            "makespan": self.clock,
            "busy": self.busy,
            "epochs": self.epochs,
        }


def space(world: World) -> Space:
    """Encoder by learning rate: real ones each in the range of its kind, as `optim.lr=auto` in a sweep."""
    encoder = Parameter("encoder", optuna.distributions.CategoricalDistribution(tuple(world.encoders)))
    real = isinstance(world, Bench)
    rate = rates_by_kind() if real else interval("optim.lr", world.low, world.high, log=True)
    return Space((encoder, rate), world.encoders[0])


def defaults(world: World) -> list[dict[str, Any]]:
    """Each encoder at its default rate: what a sweep tries first."""
    if isinstance(world, Bench):
        return space(world).seeds({"optim.lr": "auto"})
    return [{"encoder": e, "optim.lr": math.sqrt(world.low * world.high) * 10**0.5} for e in world.encoders]


def points(world: World) -> Iterator[tuple[str, float]]:
    """Yield the encoders, each at 200 rates of its range."""
    for encoder in world.encoders:
        for i in range(200):
            position = i / 199 if isinstance(world, Bench) else world.low * (world.high / world.low) ** (i / 199)
            yield encoder, rate_of(space(world).typed({"encoder": encoder, "optim.lr": position}))


def rate_of(typed: Sequence[str]) -> float:
    return float(dict(override.split("=", 1) for override in typed)["optim.lr"])


def ours(world: World, seed: int, trials: int, slots: int, pruner: str, seeded: bool = True) -> dict[str, Any]:
    """One sweep with our controller, in the time of so many whole trainings."""
    seeds = defaults(world) if seeded else []
    workers, until = FakeBackend(world, slots), world.budget(trials, slots)
    sweeper = SweeperConfig(n_trials=MOST * trials, timeout=until, seed=seed, pruner=pruner)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), space(world), sweeper, seeds=seeds, storage=InMemoryStorage())
        search = Search(study, lambda typed, _: typed, sweeper, clock=lambda: workers.clock)
        for _ in drive(search, workers, Path(folder)):
            pass
    pruned = [t for t in search.trials.values() if t.state == "pruned"]
    finals = {t.name: world.final(t.encoder, rate_of(t.typed)) for t in search.trials.values()}
    best = max(search.trials.values(), key=lambda trial: finals[trial.name])
    return {
        **workers.replay(seed, until),
        "best_pruned": best.state == "pruned",
        "better_pruned": max((finals[t.name] for t in pruned), default=0.0)
        > max(finals[t.name] for t in search.trials.values() if t.state == "complete") + NOISE,
    }


def plain_optuna(world: World, seed: int, trials: int, slots: int, seeded: bool = False) -> dict[str, Any]:
    """Optuna's defaults on asynchronous slots, as its users write it: ask, run, tell; `seeded`: our seeds enqueued."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for values in defaults(world) if seeded else ():
        study.enqueue_trial(values)
    asked, workers, trial_of, until = space(world), FakeBackend(world, slots), {}, world.budget(trials, slots)
    while workers.clock < until or workers.free() < slots:
        while workers.clock < until and workers.free():
            trial = study.ask(asked.distributions)
            trial_of[workers.submit(Job(str(trial.number), "", tuple(asked.typed(trial.params))))] = trial
        for report in workers.poll(1.0):
            if report.ended:
                trial = trial_of[report.job]
                lr = rate_of(asked.typed(trial.params))
                study.tell(trial, max(world.curve(trial.params["encoder"], lr, trial.number)))
    return workers.replay(seed, until)


@cache
def best_of(world: World) -> float:
    """The best that there is at the rates that are searched."""
    return max(world.final(encoder, lr) for encoder, lr in points(world))


def reached(replay: dict[str, Any], world: World) -> float:
    """Seconds until a complete trial was within a point of the best there is; infinity if none was."""
    best = best_of(world)
    return min((s for s, encoder, lr in replay["events"] if world.final(encoder, lr) >= best - NEAR), default=math.inf)


@cache
def oracle(world: World) -> tuple[float, float]:
    """Seconds of the cheapest training that comes as near, and the share of all points that do."""
    every, best = list(points(world)), best_of(world)
    near = [encoder for encoder, lr in every if world.final(encoder, lr) >= best - NEAR]
    return min(world.startup(e) + world.seconds(e) * world.epochs for e in near), len(near) / len(every)


def regret(replay: dict[str, Any], world: World) -> float:
    """IoU between the best there is and the best that was found."""
    return best_of(world) - max((world.final(encoder, lr) for _, encoder, lr in replay["events"]), default=0.0)


def summary(
    name: str, replays: list[dict[str, Any]], rival: list[dict[str, Any]], worlds: Any, trials: int, slots: int
) -> str:
    """A row of the table; ratios are medians over the seeds of the rival's time by this one's.

    Who never arrives has ratio 0; a rival that never does counts with all its time, to its favour.
    """
    ends = {r["seed"]: worlds(r["seed"]).budget(trials, slots) for r in (*replays, *rival)}
    times = {r["seed"]: reached(r, worlds(r["seed"])) for r in replays}
    theirs = {r["seed"]: min(reached(r, worlds(r["seed"])), ends[r["seed"]]) for r in rival}
    ratios = [theirs[seed] / own for seed, own in times.items() if seed in theirs]
    ratio = way = ""
    if ratios:
        rng = np.random.default_rng(0)
        draws = np.median(np.array(ratios)[rng.integers(len(ratios), size=(2000, len(ratios)))], axis=1)
        ratio = f"{np.median(ratios):.2f} ({np.percentile(draws, 2.5):.2f} to {np.percentile(draws, 97.5):.2f})"
        steps = [
            (math.log(theirs[seed] / min(own, ends[seed])), math.log(theirs[seed] / oracle(worlds(seed))[0]))
            for seed, own in times.items()
            if seed in theirs
        ]
        gone, whole = (sum(parts) for parts in zip(*steps, strict=True))
        way = f"{100 * gone / whole:.0f} %" if whole > 0 else ""  # else the rival is as soon as can be
    never = statistics.mean(map(math.isinf, times.values()))
    use = statistics.median(r["busy"] / (slots * r["makespan"]) for r in replays)
    lost = sorted(regret(r, worlds(r["seed"])) for r in replays)
    epochs = statistics.median(r["epochs"] for r in replays) if "epochs" in replays[0] else ""
    shares = [
        f"{100 * statistics.mean(replay[what] for replay in replays):.0f} %" if what in replays[0] else ""
        for what in ("better_pruned", "best_pruned")
    ]
    cells = [
        name,
        ratio,
        way,
        f"{100 * never:.0f} %",
        f"{100 * use:.0f} %",
        epochs,
        f"{100 * statistics.median(lost):.2f}",
    ]
    return f"| {' | '.join(map(str, [*cells, f'{100 * lost[int(0.9 * len(lost))]:.2f}', *shares, len(replays)]))} |"


def refill(count: int) -> None:
    """Seconds from a training's last record to the first of the next one on the same slot; real processes."""
    sweeper = SweeperConfig(n_trials=count, pruner="none")
    with tempfile.TemporaryDirectory() as folder:
        backend = LocalBackend(Path(folder), [Slot(0)])
        study = Study(Path(folder), space(world("synthetic", 0)), sweeper)
        search = Search(study, lambda typed, _: [*typed, "seconds=0.05"], sweeper)
        for _ in drive(search, backend, Path(folder), "fake_train"):
            pass
        trials = [search.trials[str(i)] for i in range(count)]
    gaps = sorted(b.run.start.time - a.run.end.time for a, b in itertools.pairwise(trials))
    about = {"median_s": statistics.median(gaps), "largest_s": gaps[-1], "n": len(gaps)}
    print(json.dumps({"refill": about, **machine()}))


def lines_of(path: Path | None, seeds: range, about: dict[str, Any]) -> list[dict[str, Any]]:
    """A rival's replays with these seeds, which have to be of the same world, time and slots."""
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["seed"] in seeds] if path else []
    if path and (any(not about.items() <= row.items() for row in rows) or {row["seed"] for row in rows} != {*seeds}):
        raise SystemExit(f"{path}: is not of seeds {seeds.start} to {seeds.stop - 1} of {about}. Write it anew.")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    replayed(parser)
    parser.add_argument("--stock", type=Path, help="lines of benchmarks/stock.py for the same world")
    parser.add_argument("--asha", type=Path, help="lines of benchmarks/asha.py for the same world")
    parser.add_argument("--refill", type=int, metavar="TRIALS")
    parser.add_argument("--out", type=Path, help="default: benchmarks/raw/sweep-WORLD.json")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.refill:
        refill(options.refill)
        return
    made: dict[int, World] = {}

    def worlds(seed: int) -> World:
        return made.setdefault(seed, world(options.world, seed))

    seeds, shape = range(*options.seeds), (options.trials, options.slots)
    stock, asha = (lines_of(path, seeds, of(worlds(seeds[0]), options)) for path in (options.stock, options.asha))
    rows = {
        "ours": [ours(worlds(s), s, *shape, "curves") for s in seeds],
        "ours, `pruner=none`": [ours(worlds(s), s, *shape, "none") for s in seeds],
        "ours, `pruner=none seed_trials=false`": [ours(worlds(s), s, *shape, "none", seeded=False) for s in seeds],
        "plain Optuna, asynchronous": [plain_optuna(worlds(s), s, *shape) for s in seeds],
        "the same, our seeds enqueued": [plain_optuna(worlds(s), s, *shape, seeded=True) for s in seeds],
        **({"Syne Tune's ASHA, our seeds first": asha} if asha else {}),
        **({"stock sweeper": stock} if stock else {}),
    }
    print("\n".join([f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]))
    for name, replays in rows.items():
        print(summary(name, replays, stock, worlds, *shape))
    found = [oracle(worlds(s)) for s in seeds]
    seconds, share = (statistics.median(values) for values in zip(*found, strict=True))
    print(f"\nwithin a point of the best: {100 * share:.0f} % of the space; its cheapest training: {seconds:.0f} s")
    kept = {
        name: [
            {k: v for k, v in r.items() if k != "events"}
            | {"reached": reached(r, worlds(r["seed"])), "regret": regret(r, worlds(r["seed"]))}
            for r in replays
        ]
        for name, replays in rows.items()
    }
    text = json.dumps({**of(worlds(seeds[0]), options), **machine(), "replays": kept})
    (options.out or RAW / f"sweep-{options.world}.json").write_text(
        text.replace("Infinity", "null") + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
