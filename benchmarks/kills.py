"""Kill a sweep a hundred times, at random moments, and count what is lost.

    python benchmarks/kills.py --kills 100

Trainings pretend (tests/sweeping/fake_train.py keeps a real journal in milliseconds); the controller, its study, its
backend and the processes are the real ones. In turn the controller, running trials, or both get a kill -9; the same
command goes on until the sweep is over. Counted: finished trials that were lost or changed, epochs that were recorded
twice, complete trials with gaps, and states at the end.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from measure import ROOT, machine

sys.path.insert(0, str(ROOT / "tests" / "sweep"))
from test_scheduler import SPACE

from segsweep.config.sweeper import SweeperConfig
from segsweep.runs import journal, locks
from segsweep.sweeping.backends.local import CLAIM
from segsweep.sweeping.study import JOURNAL, Study

CONTROLLER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_scheduler import FAKE, began, drive
from segsweep.runs.locks import FolderLock
folder = Path(sys.argv[1])
lock = FolderLock(folder, "sweep")
argv = ["seconds=0.15", "train.epochs=8"]
study, search, backend = began(folder, n_trials=int(sys.argv[3]), slots=3, argv=argv, pruner="none")
for trial in search.trials.values():
    if trial.state != "running" and (job := backend.adopt(trial.name)):
        backend.stop(job)
for event in drive(search, backend, folder, FAKE):
    pass
"""


def finished(folder: Path, target: int) -> dict[int, float]:
    """Values of the finished trials, read from a copy."""
    if not (folder / JOURNAL).exists():
        return {}
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / JOURNAL, copy)
        study = Study(Path(copy), SPACE, SweeperConfig(n_trials=target))
        return {t.number: t.value for t in study.trials() if t.state.is_finished() and t.value is not None}


def kill_trials(folder: Path) -> int:
    """Kill all living trials; how many there were."""
    killed = 0
    for claim in folder.glob(f"*/{CLAIM}"):
        if pid := locks.holder(claim):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    lost = changed = kills = trials_killed = 0
    known: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-c", CONTROLLER, name, str(ROOT / "tests" / "sweep"), str(options.trials)]
        controller = subprocess.Popen(command)
        while kills < options.kills:
            time.sleep(rng.uniform(0.2, 2.0))
            if controller.poll() is not None:
                break  # the sweep is over
            what = ("controller", "trial", "both")[kills % 3]
            if what != "controller":
                trials_killed += kill_trials(folder)
            if what != "trial":
                controller.kill()
                controller.wait()
                now = finished(folder, options.trials)
                lost += len(known.keys() - now.keys())
                changed += sum(now.get(number, value) != value for number, value in known.items())
                known = now
                controller = subprocess.Popen(command)
            kills += 1
        controller.wait()
        subprocess.run(command, check=True)
        study = Study(folder, SPACE, SweeperConfig(n_trials=options.trials))
        states = [trial.state.name for trial in study.trials()]
        twice = missing = restarts = 0
        for trial in study.trials():
            run = journal.read(folder / str(trial.number))
            epochs = [record.epoch for record in run.epochs]
            twice += len(epochs) - len(set(epochs))
            missing += trial.state.name == "COMPLETE" and sorted(set(epochs)) != list(range(1, 9))
            restarts += len(run.starts) - 1
    print(
        json.dumps(
            {
                "kills": kills,
                "trials_killed": trials_killed,
                "states": {state: states.count(state) for state in sorted(set(states))},
                "finished_trials_lost": lost,
                "finished_trials_changed": changed,
                "epochs_recorded_twice": twice,
                "complete_trials_with_gaps": missing,
                "resumptions": restarts,
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
