"""What a sweep's controller costs at thousands of trials, with trainings that take no time.

    python benchmarks/controller.py --trials 10000 --sampler random
    python benchmarks/controller.py --trials 2000 --sampler tpe --slots 100

Trainings only pretend, on no clock at all; the study is in memory. Printed: CPU milliseconds a trial, in the sampler
and in all else, for each tenth of the sweep. A live board (`--terminal`) is drawn twice a second of real time, so its
share is larger here, where a sweep takes a minute, than in a real one.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from optuna.storages import InMemoryStorage
from rich.console import Console

from segsweep.config.sweeper import SweeperConfig
from segsweep.runs.records import EpochRecord
from segsweep.runs.trial import Trial
from segsweep.sweeping import study as studies
from segsweep.sweeping.live import Board
from segsweep.sweeping.scheduler import Event, Search
from segsweep.sweeping.space import Space, choice, rates_by_kind

ENCODERS = ["resnet18", "resnet34", "convnext_tiny"]
EPOCHS = 10


def run(trials: int, slots: int, sampler: str, terminal: bool = False) -> list[tuple[float, float]]:
    """CPU seconds of the sampler and of the rest, of each trial in the order of their ends."""
    space = Space((choice("encoder", ENCODERS), rates_by_kind()), ENCODERS[0])
    sweeper = SweeperConfig(n_trials=trials, sampler=sampler, pruner="curves")
    spent: list[tuple[float, float]] = []
    asked = sampler_s = rest_s = 0.0  # the last two: since the last trial ended

    class Timed(studies.Study):
        def ask(self) -> Any:
            nonlocal asked
            before = time.process_time()
            found = super().ask()
            asked += time.process_time() - before
            return found

    with tempfile.TemporaryDirectory() as folder:
        study = Timed(Path(folder), space, sweeper, storage=InMemoryStorage())
        search = Search(study, lambda typed, _: typed, sweeper)
        running: list[tuple[Trial, int]] = []
        with Board(search.trials, trials, slots, Console(stderr=True, force_terminal=terminal, quiet=True)) as board:
            while True:
                before, asked = time.process_time(), 0.0
                while len(running) < slots and (trial := search.next()):
                    trial.state = "running"
                    trial.run.records.append(_start(trial))
                    board.show(Event("started", trial))
                    running.append((trial, 0))
                if not running:
                    return spent
                trial, epoch = running.pop(0)
                quality = 0.5 + 0.4 * float(trial.values["optim.lr"])
                metrics = {"val/iou": quality * (1 - 0.6 ** (epoch + 1)), "perf/seconds": 1.0, "perf/images_per_s": 1.0}
                trial.run.records.append(EpochRecord(epoch + 1, 0.0, metrics))
                verdict = search.epoch(trial)
                board.show(Event("epoch", trial))
                if verdict or epoch + 1 == EPOCHS:
                    trial.state, trial.reason = ("pruned", verdict.reason) if verdict else ("complete", "")
                    search.over(trial, verdict)
                    board.show(Event(trial.state, trial))
                else:
                    running.append((trial, epoch + 1))
                sampler_s, rest_s = sampler_s + asked, rest_s + time.process_time() - before - asked
                if trial.state != "running":  # it bears all since the one before
                    spent.append((sampler_s, rest_s))
                    sampler_s = rest_s = 0.0


def _start(trial: Trial) -> Any:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sweeping"))
    from fake_train import config, start

    return start(config(trial.encoder, epochs=EPOCHS))


def main() -> None:
    """Print a row for each tenth of the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=100)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--terminal", action="store_true", help="with the live board")
    given = parser.parse_args()
    spent = run(given.trials, given.slots, given.sampler, given.terminal)
    print("| trials | sampler, ms a trial | the rest, ms a trial |\n|---|---|---|")
    tenth = max(1, len(spent) // 10)
    for first in range(0, len(spent), tenth):
        part = spent[first : first + tenth]
        means = [1000 * statistics.mean(column) for column in zip(*part, strict=True)]
        print(f"| to {first + len(part)} | {means[0]:.2f} | {means[1]:.2f} |")


if __name__ == "__main__":
    main()
