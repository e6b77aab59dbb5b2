"""Where trials run: slots, and a process for each training. Standard library only.

A training is started by its command line and read through its journal: nothing else passes between the two. Children
come from a fork server that has torch and timm loaded, so one starts in a fraction of a second, and takes its memory
with it when it ends. They outlive a controller that is killed; the next one adopts them.
"""

import fcntl
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from segsweep.errors import ConfigError
from segsweep.paths import CHECKOUT
from segsweep.runs import journal

CLAIM = "process"  # of a trial's folder: which attempt it is, and, locked, which process lives on it
OUTPUT = "out.log"
PRELOADED = ["segsweep.training.run", "segsweep.commands.train"]
CORES_PER_SLOT = 4
LOOK = 0.2  # seconds between looks at the journals
LATE = 143  # exit code of a child whose folder another took over; as if terminated
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
# Variables that make a process one of several ranks. A trial is alone, whatever a shell or a scheduler left behind.
RANKS = re.compile("((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)")


@dataclass(frozen=True)
class Slot:
    """A place where one trial runs.

    Attributes:
        number: from 0.
        devices: of `CUDA_VISIBLE_DEVICES`; empty for a CPU.
        threads: that the trial may compute on.
    """

    number: int
    devices: tuple[str, ...] = ()
    threads: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """What the trial's process gets; a number of threads that the user set stays."""
        given = os.environ.get("OMP_NUM_THREADS")
        found = {"OMP_NUM_THREADS": given or str(self.threads)}
        return found | ({"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {})

    def __str__(self) -> str:
        return f"GPU {'+'.join(self.devices)}" if self.devices else f"CPU {self.number}"


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(row for row in listed.splitlines() if row.startswith("GPU "))]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slots(given: Any = "auto", on_cpu: bool = False) -> tuple[Slot, ...]:
    """The slots that `hydra.sweeper.slots` asks for.

    Args:
        given: "auto": one for each GPU, on a CPU one for every four cores; a number; or for each slot its GPU, or its
            list of GPUs, counted among the visible ones.
        on_cpu: GPUs are left alone.

    Raises:
        ConfigError: no slot, or a GPU that is not there.
    """
    there = [] if on_cpu else gpus()
    if given == "auto":
        given = len(there) or max(1, cores() // CORES_PER_SLOT)
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        rows: list[tuple[str, ...]] = [(there[i % len(there)],) if there else () for i in range(given)]
    elif isinstance(given, Sequence) and not isinstance(given, str) and given:
        rows = []
        for one in given:
            numbers = [one] if isinstance(one, int) else list(one)
            missing = [n for n in numbers if not isinstance(n, int) or not 0 <= n < len(there)]
            if missing or not numbers:
                raise ConfigError(
                    f"hydra.sweeper.slots={given}: GPU {missing[0] if missing else '?'}: there are {len(there)} GPUs. "
                    "Try hydra.sweeper.slots=auto."
                )
            rows.append(tuple(there[n] for n in numbers))
    else:
        raise ConfigError(
            f"hydra.sweeper.slots={given}: must be auto, a number from 1, or GPUs as [0,0,1] or [[0,1],[2,3]]."
        )
    return tuple(Slot(i, row, max(1, cores() // len(rows))) for i, row in enumerate(rows))


@dataclass(frozen=True)
class Report:
    """News of a trial.

    Attributes:
        name: its folder below the sweep's.
        records: of its journal that are new since the last report; all of them in the first.
        ended: its process is gone.
        exit_code: of the process; None while it lives, and of one that another controller started.
    """

    name: str
    records: list[dict[str, Any]]
    ended: bool = False
    exit_code: int | None = None


@dataclass
class _Living:
    slot: Slot
    process: BaseProcess | None  # None: adopted
    pid: int | None
    seen: int = 0
    stopping: float | None = None  # when it was asked to stop
    killed: bool = False


class LocalWorkers:
    """Runs trainings on this machine, one on each slot.

    Args:
        folder: of the sweep; a training's folder is its name below it.
        slots: where trainings may run.
        program: what is run, in place of `train.py`.
        preloaded: modules that the fork server loads once for all.
    """

    def __init__(
        self,
        folder: Path,
        slots: Sequence[Slot],
        program: Path = CHECKOUT / "train.py",
        preloaded: Sequence[str] = PRELOADED,
    ):
        self.folder, self.slots, self.program = folder, tuple(slots), program
        self._living: dict[str, _Living] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preloaded))

    def free(self) -> list[Slot]:
        """Slots without a training, first to last."""
        taken = {living.slot.number for living in self._living.values()}
        return [slot for slot in self.slots if slot.number not in taken]

    def start(self, name: str, argv: Sequence[str], slot: Slot) -> None:
        """Start `train.py argv` in the folder `name`, on that slot."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if self.adopt(name):
            return
        attempt = {"attempt": uuid.uuid4().hex, "slot": slot.number}
        (folder / CLAIM).write_text(json.dumps(attempt), encoding="utf-8")
        if self.adopt(name):  # a killed controller's child came to life in between
            return
        process = self._started(train, self.program, list(argv), folder, attempt, slot.environment)
        self._living[name] = _Living(slot, process, process.pid)

    def adopt(self, name: str) -> bool:
        """Take over the training that lives in the folder `name`; False if none does."""
        pid = journal.holder(self.folder / name / CLAIM)
        if pid is None:
            return False
        written = (self.folder / name / CLAIM).read_text(encoding="utf-8")
        number = json.loads(written)["slot"] if written else None  # a controller killed while writing leaves nothing
        free = self.free()
        slot = next((s for s in free if s.number == number), free[0] if free else Slot(-1 - len(self._living)))
        self._living[name] = _Living(slot, None, pid)
        return True

    def stop(self, name: str) -> None:
        """Ask the training to stop; `wait` reports when it has, and sees to it that it does."""
        living = self._living[name]
        if living.stopping is None:
            living.stopping = time.monotonic()
            self._signal(living, signal.SIGTERM)

    def wait(self, seconds: float) -> list[Report]:
        """News of the trainings, as soon as there are some; empty after so many seconds without."""
        until = time.monotonic() + seconds
        while True:
            reports = [report for name in list(self._living) if (report := self._look(name))]
            left = until - time.monotonic()
            if reports or left <= 0 or not self._living:
                return reports
            ends = [living.process.sentinel for living in self._living.values() if living.process]
            wait(ends, min(LOOK, left)) if ends else time.sleep(min(LOOK, left))

    def close(self) -> None:
        """Stop all trainings and wait until they have."""
        for name in self._living:
            self.stop(name)
        while self._living:
            self.wait(LOOK)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call `module:name` in a process of its own, one that has torch loaded, and return what it returns.

        Raises:
            ConfigError: raised there.
        """
        here, there = self._context.Pipe(duplex=False)
        process = self._started(answer, there, function, arguments)
        there.close()
        try:
            kind, result = here.recv()
        except EOFError:
            kind, result = "error", "it died."
        finally:
            here.close()
            process.join()
        if kind == "refused":
            raise ConfigError(result)
        if kind == "error":
            raise RuntimeError(f"{function}: {result}")
        return result

    def _started(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        """A child of the fork server that calls the function."""
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"  # else the server finds what it preloads in the working folder first
        try:
            ensure_running()
        finally:
            del os.environ["PYTHONSAFEPATH"]
            if before is not None:
                os.environ["PYTHONSAFEPATH"] = before
        process = self._context.Process(target=target, args=arguments)
        process.start()
        return process

    def _look(self, name: str) -> Report | None:
        living = self._living[name]
        ended = not (living.process.is_alive() if living.process else self._holds(name, living))
        code = living.process.exitcode if living.process and ended else None  # before the journal: it may still grow
        records, living.seen = journal.read_from(self.folder / name, living.seen)
        if living.stopping is not None and not living.killed and time.monotonic() - living.stopping > PATIENCE:
            living.killed = True
            self._signal(living, signal.SIGKILL)
        if ended:
            if living.process:
                living.process.join()
                living.process.close()
            del self._living[name]
        return Report(name, records, ended, code) if records or ended else None

    def _holds(self, name: str, living: _Living) -> bool:
        return journal.holder(self.folder / name / CLAIM) == living.pid

    def _signal(self, living: _Living, number: signal.Signals) -> None:
        assert living.pid is not None
        try:
            os.killpg(living.pid, number)
        except ProcessLookupError:  # it has no group of its own yet, or is gone
            with suppress(ProcessLookupError):
                os.kill(living.pid, number)


def train(
    program: Path, argv: list[str], folder: Path, attempt: dict[str, Any], environment: Mapping[str, str]
) -> None:
    """In the child: claim the folder and run the program as from a command line."""
    os.setsid()
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    claim = (folder / CLAIM).open("r+", encoding="utf-8")
    # Locked first and read then: a controller that takes the folder over writes first and asks who holds it then.
    try:
        fcntl.lockf(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os._exit(LATE)
    if json.load(claim)["attempt"] != attempt["attempt"]:
        os._exit(LATE)
    for name in filter(RANKS.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ.update(environment)
    sys.argv = [program.name, *argv]
    runpy.run_path(str(program), run_name="__main__")


def answer(connection: Connection, function: str, arguments: Sequence[Any]) -> None:
    """In the child: call the function and send what it returns."""
    module, _, name = function.partition(":")
    try:
        connection.send(("result", getattr(import_module(module), name)(*arguments)))
    except ConfigError as error:
        connection.send(("refused", str(error)))
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))
    connection.close()
