"""Faults at random moments, on sweeps and trainings that go on: what is lost, what is there twice, what grows.

    python benchmarks/soak.py                  # make soak: each kind of round once, and more until ten minutes are over
    python benchmarks/soak.py --minutes 600 --seed 7

Each round begins a sweep or a training, provokes faults while it runs, begins again whatever has died, and counts when
it is over: trials that are missing or were changed, points and epochs that are there twice, runs that differ between
MLflow and their journals, processes that are left, and what nobody should see: a traceback, an exit code of no meaning.

    alone       one controller, trainings that pretend: tests/sweeping/fake_train.py keeps real journals
    full        the same on a disk of a few megabytes that fills up; only as root, who may mount one
    shared      two controllers on PostgreSQL, likewise; needs a server's `initdb`
    tracked     `train.py -m` with real trainings and MLflow's server
    ranks       `torchrun train.py` with two processes; at the end its epochs are those of a run that nobody disturbed
    steady      one controller that is left alone, while its trials are not: its memory, threads and open files

The clock of all these processes jumps, too (`time.time`; what measures durations has another clock).
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from measure import ROOT, keep
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from segsweep.process import DEBUG
from segsweep.runs import journal, locks
from segsweep.runs.trial import load_all
from segsweep.sweeping.backends.local import CLAIM
from segsweep.sweeping.controllers import attempt_name
from segsweep.sweeping.sharing import Owner
from segsweep.sweeping.study import JOURNAL
from segsweep.tracking import client

SWEEPING = ROOT / "tests" / "sweeping"
sys.path[:0] = [str(ROOT / "tests"), str(SWEEPING)]
import servers  # noqa: E402
from conftest import TINY, write_pairs  # noqa: E402

ENDED = {0, 7, 130, 143, -2, -9, -15}  # how a controller may end here; by a signal where it had only begun
TORCHRUN = {0, 1, -9, -15}  # its own; it prints a traceback where one of its processes was killed
GROWN = 1.0  # seconds that a process has been there before it is disturbed: else it would never come further
PATIENCE = 120  # seconds that a sweep may take when nobody disturbs it any more
CLOCK = "SOAK_CLOCK"  # a variable: the file with the seconds that `time.time` is off
SKEWED = f"""
import os, time
def skewed(real=time.time):
    try:
        return real() + float(open(os.environ["{CLOCK}"]).read())
    except (KeyError, OSError, ValueError):
        return real()
time.time = skewed
"""


ROUNDS = {  # what each kind has
    "tracked": "with MLflow",
    "ranks": "with torchrun",
    "steady": "for memory growth",
    "full": "with a full disk",
    "shared": "with two controllers on PostgreSQL",
    "alone": "with one controller",
}


@dataclass
class Tally:
    """What was done, and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    epochs: int = 0
    lost: int = 0  # trials that are missing at the end, or whose value was changed
    doubles: int = 0  # points that two complete trials have, and epochs that a journal has twice
    compared: int = 0  # values, pictures and parameters in MLflow
    unequal: int = 0  # of these, what is not as the journal has it
    left: int = 0  # processes after a round
    wrong: list[str] = field(default_factory=list)  # tracebacks and exit codes
    growth: dict[str, list[float]] = field(default_factory=dict)  # of the steady controller, at a quarter and the end


class Processes:
    """Commands that are begun again until they are done; each has a log."""

    def __init__(
        self,
        tally: Tally,
        place: Path,
        commands: list[list[str]],
        environment: Mapping[str, str],
        ended: Collection[int] = ENDED,
    ):
        self.tally, self.place, self._commands, self._ended = tally, place, commands, ended
        self._environment = {name: value for name, value in os.environ.items() if name != DEBUG} | dict(environment)
        self._logs = [place / f"{i}.log" for i in range(len(commands))]
        self._since = [0.0] * len(commands)
        self._done = [False] * len(commands)
        self.living = [self._begun(i) for i in range(len(commands))]

    def _begun(self, i: int) -> "subprocess.Popen[bytes]":
        self._since[i] = time.monotonic()
        with self._logs[i].open("ab") as log:
            command = self._commands[i]
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, cwd=self.place, start_new_session=True
            )

    def tend(self, again: Callable[[], list[str]] | None = None) -> bool:
        """Begin again what has died, with the words that `again` gives, if any; tell whether all is done."""
        for i, process in enumerate(self.living):
            code = process.poll()
            if code == 0:
                self._done[i] = True
            elif code is not None and not self._done[i]:
                if code not in self._ended:
                    self.tally.wrong.append(f"exit code {code}: {self.said(i)[-4000:]}")
                self._commands[i] = again() if again else self._commands[i]
                self._done[i] = not self._commands[i]
                self.living[i] = process if self._done[i] else self._begun(i)
        return all(self._done)

    def grown(self) -> list[int]:
        """The processes that have been there for a while."""
        now = time.monotonic()
        there = [i for i, process in enumerate(self.living) if process.poll() is None]
        return [self.living[i].pid for i in there if now - self._since[i] > GROWN]

    def said(self, i: int) -> str:
        return self._logs[i].read_text(errors="replace")

    def end(self) -> None:
        """Kill what still lives, and look at what was said."""
        for process in self.living:
            if process.poll() is None:
                process.kill()
            process.wait()
        for i in range(len(self.living)) if self._ended is not TORCHRUN else ():
            for trace in self.said(i).split("Traceback")[1:]:
                if "KeyboardInterrupt" not in trace:  # a second Ctrl-C in Python's own end
                    self.tally.wrong.append(f"Traceback{trace[:1500]}")


def disturb(
    tally: Tally,
    rng: random.Random,
    processes: Processes,
    faults: Mapping[str, Callable[[], bool]],
    *,
    number: int,
    pause: tuple[float, float],
    again: Callable[[], list[str]] | None = None,
) -> None:
    """Provoke so many faults, one after each pause, while the processes are not done; then wait until they are."""
    for _ in range(number):
        time.sleep(rng.uniform(*pause))
        if processes.tend(again):
            break
        kind = rng.choice(list(faults))
        if faults[kind]():
            tally.faults[kind] += 1
    until = time.monotonic() + PATIENCE
    while not processes.tend(again):
        if time.monotonic() > until:
            said = "\n".join(processes.said(i)[-800:] for i in range(len(processes.living)))
            tally.wrong.append(f"not over after {PATIENCE} s: {said}")
            break
        time.sleep(0.2)
    processes.end()


def send(pids: list[int], *signals: int, pause: float = 0.0) -> bool:
    """Send signals to processes, with a pause between them; tell whether any was there."""
    found = False
    for i, number in enumerate(signals):
        time.sleep(pause if i else 0)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                found = True
    return found


def trials_of(folder: Path) -> list[int]:
    """The processes of the trials that live in a sweep's folder."""
    return [pid for claim in folder.glob(f"**/{CLAIM}") if (pid := locks.holder(claim))]


def below(root: int) -> list[int]:
    """A process and all that it began, by number."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            pid, _, rest = path.read_text().partition(" (")
            parents[int(pid)] = int(rest.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def running_in(place: Path) -> list[int]:
    """Processes whose output goes below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):
            found += [int(path.parts[2])] * path.readlink().is_relative_to(place)
    return found


class MlflowServer:
    """A server of our own, to be killed and stopped at will."""

    def __init__(self, command: list[str], log: Path, uri: str):
        self._command, self._log, self._uri = command, log, uri
        self._process = self._begun()

    def _begun(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def restart(self, pause: float) -> bool:
        self.stop()
        time.sleep(pause)
        self._process = self._begun()
        return True

    def hang(self, seconds: float) -> bool:
        return send(below(self._process.pid), signal.SIGSTOP, signal.SIGCONT, pause=seconds)

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            ended = self._process.poll() is not None
            with suppress(OSError), urllib.request.urlopen(f"{self._uri}/health", timeout=5):
                if not ended:
                    return  # else it is a part of the one that was stopped
            if ended:  # that one, or another's connection, had its port for a moment
                self._process = self._begun()
            time.sleep(0.5)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Soak:
    """Rounds of each kind; each has a folder of its own."""

    def __init__(self, place: Path, seed: int):
        self.tally, self.rng, self._place = Tally(), random.Random(seed), place
        (place / "clock").mkdir()
        (place / "clock" / "sitecustomize.py").write_text(SKEWED)
        self._clock = place / "clock" / "now"
        paths = (place / "clock", ROOT, ROOT / "tests", SWEEPING)
        self.environment = {CLOCK: str(self._clock), "PYTHONPATH": ":".join(map(str, paths)), "OMP_NUM_THREADS": "1"}
        self._references: dict[str, list[float | None]] = {}

    @contextmanager
    def round(self, kind: str) -> Iterator[Path]:
        number = self.tally.rounds.total()
        place = self._place / f"{number}-{kind}"
        place.mkdir()
        began = time.monotonic()
        yield place
        self.wait(place)
        self.tally.rounds[kind] += 1
        total = self.tally.faults.total()
        print(f"{kind}: {time.monotonic() - began:.0f} s; {total} faults so far", file=sys.stderr, flush=True)
        shutil.rmtree(place, ignore_errors=True)

    def wait(self, place: Path) -> None:
        """Wait until nothing runs in a place any more, for 15 s; what does then is left."""
        until = time.monotonic() + 15
        while (left := running_in(place)) and time.monotonic() < until:
            time.sleep(0.2)
        self.tally.left += len(left)

    def jump(self) -> bool:
        """Have the clock of all processes jump by up to a day."""
        writing = self._clock.with_suffix(".writing")
        writing.write_text(f"{self.rng.uniform(-86400, 86400)}")
        writing.replace(self._clock)
        return True

    def one(self, pids: list[int]) -> list[int]:
        return [self.rng.choice(pids)] if pids else []

    def on_trials(self, folder: Path) -> dict[str, Callable[[], bool]]:
        """What happens to trials, and to all."""
        kill, halt, go_on = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
        return {
            "kill -9 of a trial": lambda: send(self.one(trials_of(folder)), kill),
            "a trial stands still": lambda: send(self.one(trials_of(folder)), halt, go_on, pause=0.7),
            "the clock jumps": self.jump,
        }

    def on_controllers(self, processes: Processes, folder: Path) -> dict[str, Callable[[], bool]]:
        """What happens to controllers; all faults of a search."""
        term, ctrl_c, kill = signal.SIGTERM, signal.SIGINT, signal.SIGKILL

        def chosen() -> list[int]:
            return self.one(processes.grown())

        return {
            "kill -9 of a controller": lambda: send(chosen(), kill),
            "kill -9 of a controller and all trials": lambda: send([*chosen(), *trials_of(folder)], kill),
            "SIGTERM to a controller": lambda: send(chosen(), term),
            "Ctrl-C twice": lambda: send(chosen(), ctrl_c, ctrl_c, pause=self.rng.uniform(0, 0.3)),
            **self.on_trials(folder),
        }

    def fakes(self, place: Path, folder: Path, address: str = "", controllers: int = 1, **settings: Any) -> Processes:
        """Controllers of a search over trainings that pretend."""
        program = str(SWEEPING / "fake_controller.py")
        commands = [[sys.executable, program, address, str(folder), json.dumps(settings)]] * controllers
        refused = {2} if address else set[int]()  # one that begins while the server is down is told so
        return Processes(self.tally, place, commands, self.environment, ENDED | refused)

    def count(self, found: list[FrozenTrial], wanted: int, folder: Path) -> None:
        """Count what became of a search's trials and of their epochs."""
        complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
        failed = [str(t.user_attrs.get("failed")) for t in found if t.state == TrialState.FAIL]
        self.tally.trials += wanted
        self.tally.lost += max(0, wanted - len(complete)) + sum(t.state == TrialState.RUNNING for t in found)
        self.tally.wrong += [f"a trial failed: {why}" for why in failed if not why.startswith("died 3 times")]
        self.tally.doubles += max(0, len(complete) - wanted)
        self.tally.doubles += len(complete) - len({json.dumps(trial.params, sort_keys=True) for trial in complete})
        for trial in complete:
            owner = Owner.of(trial) if "member" in trial.user_attrs.get("owner", {}) else None
            run = journal.read(folder / attempt_name(str(trial.number), owner.attempt if owner else 1))
            epochs = [epoch.epoch for epoch in run.epochs]
            self.tally.epochs += len(epochs)
            self.tally.doubles += len(epochs) - len(set(epochs))
            whole = bool(run.end and run.end.status == "complete" and run.best and trial.value == run.best.iou)
            self.tally.lost += not (whole and sorted(set(epochs)) == list(range(1, max(epochs) + 1)))

    def alone(self) -> None:
        with self.round("alone") as place:
            self._search(place, place / "sweep", {}, number=40)

    def full(self) -> None:
        """On a disk that fills up, while trials write."""
        if os.geteuid():
            pytest.skip("only root may mount a disk")
        with self.round("full") as place:
            disk = place / "disk"
            disk.mkdir()
            mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False)
            if mounted.returncode:
                pytest.skip("no disk may be mounted")
            try:

                def fill() -> bool:
                    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                        size = 1 << 16
                        while size:
                            try:
                                filler.write(bytes(size))
                            except OSError:
                                size //= 2
                    time.sleep(self.rng.uniform(0.3, 1.5))
                    (disk / "filler").unlink()
                    return True

                self._search(place, disk / "sweep", {"the disk is full": fill}, number=20)
            finally:
                self.wait(place)  # afterwards they cannot be told by their files
                subprocess.run(["umount", "-l", str(disk)], check=True)

    def _search(self, place: Path, folder: Path, more: dict[str, Callable[[], bool]], number: int) -> None:
        wanted, known = 32, dict[int, float | None]()
        processes = self.fakes(place, folder, n_trials=wanted, finalists=0, slots=3, words=["seconds=0.15"])
        faults = more or self.on_controllers(processes, folder)

        def study() -> list[FrozenTrial]:
            with tempfile.TemporaryDirectory() as copy:
                shutil.copy(folder / JOURNAL, copy)
                journal.cut_torn_line(Path(copy) / JOURNAL)
                storage = JournalStorage(JournalFileBackend(f"{copy}/{JOURNAL}"))
                return optuna.load_study(study_name="sweep", storage=storage).get_trials()

        def note() -> bool:
            """Keep the values of what is finished: a later start may not lose or change them."""
            with suppress(OSError, KeyError):
                for trial in study():
                    if trial.state == TrialState.COMPLETE:
                        known.setdefault(trial.number, trial.value)
            return True

        watched = {kind: (lambda act=act: note() and act()) for kind, act in faults.items()}
        disturb(self.tally, self.rng, processes, watched, number=number, pause=(0.1, 0.9))
        found = study()
        now = {trial.number: trial.value for trial in found}
        self.tally.lost += sum(now.get(number) != value for number, value in known.items())
        self.count(found, wanted, folder)

    def shared(self) -> None:
        with self.round("shared") as place, servers.postgresql() as server, ExitStack() as stack:
            folder, wanted = place / "sweep", 24
            settings = {"n_trials": wanted, "finalists": 0, "words": ["seconds=0.15"]}
            processes = self.fakes(place, folder, server.address, 2, **settings)

            def restart() -> bool:
                server.stop()
                time.sleep(self.rng.uniform(0, 5))
                server.start()
                return True

            def hang() -> bool:
                lines = (Path(server.folder) / "db" / "postmaster.pid").read_text().splitlines()
                return send(below(int(lines[0])), signal.SIGSTOP, signal.SIGCONT, pause=self.rng.uniform(1, 6))

            def freeze() -> bool:
                pids = [pid for one in self.one(processes.grown()) for pid in below(one)]
                return send(pids, signal.SIGSTOP, signal.SIGCONT, pause=self.rng.uniform(1, 7))

            faults = self.on_controllers(processes, folder)
            faults |= {"PostgreSQL restarts": restart, "PostgreSQL hangs": hang}
            faults |= {"a controller's machine sleeps": freeze}
            disturb(self.tally, self.rng, processes, faults, number=24, pause=(0.2, 1.2))
            storage = RDBStorage(server.address, {"pool_pre_ping": True})
            stack.callback(storage.engine.dispose)
            self.count(optuna.load_study(study_name="sweep", storage=storage).get_trials(), wanted, folder)

    def tracked(self) -> None:
        """Real trainings, and MLflow's server, which dies and hangs."""
        with self.round("tracked") as place:
            root, folder, wanted = write_pairs(place)(8, ("train", "val", "test")), place / "sweep", 5
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            uri, database = f"http://127.0.0.1:{port}", f"sqlite:///{place / 'mlflow.db'}"
            command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
            command += ["--backend-store-uri", database, "--artifacts-destination", str(place / "artifacts")]
            serving = MlflowServer(command, place / "server.log", uri)
            serving.wait()  # killed while it makes its tables, MLflow never starts again
            environment = {**self.environment, "MLFLOW_TRACKING_URI": uri, "SEGSWEEP_OUTPUTS": str(place / "outputs")}
            typed = [*TINY, "data=folder", f"data.root={root}", "data.size=[32,32]", "train.batch_size=4"]
            typed += ["train.epochs=8", "tracking.timeout=5", "tracking.experiment=soak", "-m", "hydra/sweeper=optuna"]
            typed += ["optim.lr=interval(1e-3,1e-2)", "hydra.sweeper.pruner=none", "hydra.sweeper.slots=2"]
            typed += [f"hydra.sweeper.n_trials={wanted}", "hydra.sweeper.repeats=1", f"hydra.sweep.dir={folder}"]
            processes = Processes(self.tally, place, [[sys.executable, str(ROOT / "train.py"), *typed]], environment)
            try:
                faults = self.on_controllers(processes, folder) | {
                    "MLflow's server restarts": lambda: serving.restart(self.rng.uniform(0, 4)),
                    "MLflow's server hangs": lambda: serving.hang(self.rng.uniform(1, 8)),
                }
                disturb(self.tally, self.rng, processes, faults, number=10, pause=(1, 5))
                serving.wait()
                send_all = [sys.executable, "-m", "segsweep", "sync", str(folder), "--uri", uri]
                done = subprocess.run(send_all, env={**os.environ, **environment}, capture_output=True, text=True)
                if done.returncode:
                    self.tally.wrong.append(f"sync: {done.stderr[-800:]}")
                self._compare(folder, uri)
            finally:
                serving.stop()
            trials = [trial for trial in load_all(folder) if trial.state == "complete"]
            self.tally.trials += wanted
            self.tally.lost += max(0, wanted - len(trials))
            self.tally.doubles += max(0, len(trials) - wanted)

    def _compare(self, folder: Path, uri: str) -> None:
        """Compare what MLflow has of each run with its journal, every value of it."""
        server = client.connected(uri)
        ids = [experiment.experiment_id for experiment in server.search_experiments() if experiment.name == "soak"]
        runs = server.search_runs(ids, max_results=1000)
        by_folder = {run.data.tags.get("segsweep.folder"): run for run in runs}
        self.tally.doubles += len(runs) - len(by_folder)
        for trial in [*load_all(folder), *load_all(folder, "finalists")]:
            run = by_folder.get(str(folder / trial.name))
            if run is None:
                self.tally.unequal += 1
                continue
            for epoch in trial.run.epochs[:1]:
                for name in epoch.metrics:
                    kept = [(e.epoch, e.metrics.get(name)) for e in trial.run.epochs]
                    kept = [(step, value) for step, value in kept if value is not None]
                    history = server.get_metric_history(run.info.run_id, client.mlflow_name(name))
                    sent = sorted((metric.step, metric.value) for metric in history)
                    self.tally.compared += len(kept)
                    self.tally.unequal += sent != kept

    def ranks(self) -> None:
        """Two processes that train one model: whichever dies, the epochs are those of a run that nobody disturbed."""
        with self.round("ranks") as place:
            root = write_pairs(place)(24, ("train", "val"))
            typed = [*TINY, "data=folder", f"data.root={root}", "data.size=[32,32]", "train.batch_size=8"]
            typed += ["train.epochs=40", "decoder.norm=group", "tracking=none"]
            environment = {**self.environment, "SEGSWEEP_OUTPUTS": str(place / "outputs"), "CUDA_VISIBLE_DEVICES": ""}

            def command(*words: str) -> list[str]:
                begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
                return [*begin, str(ROOT / "train.py"), *words]

            def trained(folder: Path) -> list[float | None]:
                return [epoch.metrics["train/loss"] for epoch in journal.read(folder).epochs]

            whole, cut = place / "whole", place / "cut"
            if "ranks" not in self._references:
                quiet = Processes(self.tally, place, [command(*typed, f"hydra.run.dir={whole}")], environment, {0})
                disturb(self.tally, self.rng, quiet, {}, number=0, pause=(0, 0), again=list)  # begun once
                self._references["ranks"] = trained(whole)
            words = [*typed, f"hydra.run.dir={cut}"]
            processes = Processes(self.tally, place, [command(*words)], environment, TORCHRUN)

            def again() -> list[str]:
                if (end := journal.read(cut).end) and end.status == "complete":
                    return []
                return command(*([f"resume={cut}"] if journal.exists(cut) else words))

            def of_two() -> list[int]:
                launcher = processes.living[0].pid
                return self.one([pid for pid in below(launcher) if pid != launcher])

            faults = {
                "kill -9 of a rank": lambda: send(of_two(), signal.SIGKILL),
                "SIGTERM to torchrun": lambda: send([processes.living[0].pid], signal.SIGTERM),
                "the clock jumps": self.jump,
            }
            disturb(self.tally, self.rng, processes, faults, number=5, pause=(6, 12), again=again)
            self.tally.trials += 1
            self.tally.lost += trained(cut) != self._references["ranks"]
            self.tally.epochs += len(trained(cut))

    def steady(self) -> None:
        with self.round("steady") as place:
            folder, wanted = place / "sweep", 150
            settings = {"n_trials": wanted, "finalists": 0, "slots": 3, "words": ["seconds=0.01"]}
            processes = self.fakes(place, folder, **settings)
            controller, seen = processes.living[0], []
            faults, due = self.on_trials(folder), time.monotonic()
            until = due + 4 * PATIENCE
            while not processes.tend() and time.monotonic() < until:
                finished = len(list(folder.glob("*/exit.json")))
                with suppress(OSError, KeyError):  # it has just ended
                    seen.append((finished, *usage(controller.pid)))
                if time.monotonic() > due:
                    due = time.monotonic() + self.rng.uniform(0.5, 1.5)
                    kind = self.rng.choice(list(faults))
                    self.tally.faults[kind] += faults[kind]()
                time.sleep(0.1)
            processes.end()
            early = [row for row in seen if 0.2 * wanted <= row[0] <= 0.3 * wanted]
            late = [row for row in seen if 0.9 * wanted <= row[0] < wanted]  # before the report is made
            for i, what in enumerate(("memory, MB", "threads", "open files"), 1):
                self.tally.growth[what] = [max(row[i] for row in part) for part in (early, late) if part]
            self.tally.trials += wanted
            complete = sum(trial.state == "complete" for trial in load_all(folder))
            self.tally.lost += max(0, wanted - complete)
            self.tally.doubles += max(0, complete - wanted)


def usage(pid: int) -> tuple[float, float, float]:
    """Memory in MB, threads and open files of a process."""
    said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory = int(said["VmRSS"].split()[0]) / 1024
    return memory, int(said["Threads"]), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def table(tally: Tally) -> str:
    """Return the result as Markdown."""
    rows = [f"| {kind} | {number} |" for kind, number in sorted(tally.faults.items())]
    growth = "; ".join(f"{what}: {' to '.join(f'{v:.0f}' for v in found)}" for what, found in tally.growth.items())
    rounds = ", ".join(f"{number} {ROUNDS[kind]}" for kind, number in tally.rounds.items())
    results = {
        f"faults of {len(tally.faults)} kinds": tally.faults.total(),
        "test rounds": rounds,
        "trials, and epochs of their journals": f"{tally.trials}, {tally.epochs}",
        "trials lost or changed": tally.lost,
        "trials or epochs twice": tally.doubles,
        f"values that differ between journal and MLflow, of {tally.compared}": tally.unequal,
        "processes left behind": tally.left,
        "tracebacks, wrong exit codes": len(tally.wrong),
        "a controller after a quarter of 150 trials, and after nearly all": growth,
    }
    rows += [f"| **{name}** | {value} |" for name, value in results.items()]
    return "\n".join(["| fault | times |", "|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--only", nargs="+", help="kinds of rounds")
    parser.add_argument("--name", help="keep the table's numbers as benchmarks/raw/NAME.json")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, and by children then
    print(f"--seed {options.seed}", file=sys.stderr)
    if not os.geteuid():  # mounts of our own, that end with us
        ctypes.CDLL(None).unshare(0x00020000)  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=False)
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="soak", ignore_cleanup_errors=True) as place, ExitStack() as last:
        soak = Soak(Path(place), options.seed)
        last.callback(lambda: send(running_in(Path(place)), signal.SIGKILL))  # also where this is interrupted
        last.callback(lambda: print(table(soak.tally)))
        kinds = [soak.tracked, soak.ranks, soak.steady, soak.full, soak.shared, soak.alone]
        kinds = [kind for kind in kinds if not options.only or kind.__name__ in options.only]
        for kind in kinds[:]:
            try:
                kind()
            except pytest.skip.Exception as missing:
                print(f"{kind.__name__}: left out: {missing}", file=sys.stderr)
                kinds.remove(kind)
        while time.monotonic() < until:
            soak.rng.choice(kinds[-3:])()
    tally = soak.tally
    for words in tally.wrong:
        print(f"\n{words}", file=sys.stderr)
    if options.name:
        keep(options.name, tally.__dict__ | {"seed": options.seed})
    return int(bool(tally.lost or tally.doubles or tally.unequal or tally.left or tally.wrong))


if __name__ == "__main__":
    sys.exit(main())
