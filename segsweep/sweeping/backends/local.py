"""Trainings on this machine: slots, and a process for each training. Standard library only.

Children come from a fork server that has torch and timm loaded, so one starts in a fraction of a second, and takes its
memory with it when it ends. They outlive a controller that is killed; the next one adopts them.
"""

import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from platform import node
from types import ModuleType
from typing import Any

from segsweep.config.checks import read_file
from segsweep.errors import ConfigError, DiskError, OutOfMemoryError, as_disk_error, of_the_disk
from segsweep.paths import save_json, speaker
from segsweep.process import DEBUG, complain
from segsweep.runs import journal, locks, stop
from segsweep.runs.records import End
from segsweep.runs.trial import NAME
from segsweep.sweeping.backends.base import FAILURES, OUTPUT, Id, Job, JobUpdate, failure, signalled
from segsweep.sweeping.backends.slots import Slot
from segsweep.world import MEETING, NEIGHBOURS, end_with_parent

CLAIM = "process"  # of a job's folder: which attempt it is, and, locked, which process lives on it
EXIT = "exit.json"  # of a job's folder: the exit code of an attempt that ended by itself
PRELOADED = ["segsweep.training.run", "segsweep.commands.train"]
# What the end of a called process means, by the signal's number; by others it crashed.
ENDED_BY: Mapping[int, type[Exception]] = {
    -signal.SIGKILL: OutOfMemoryError,
    **dict.fromkeys((-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP), ConfigError),
}
LOOK = 0.2  # seconds between looks at the journals
LATE = 143  # exit code of a child whose folder another took over; as if terminated
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL; that ranks may take longer than the first
# Variables that make a process one of several ranks. A trial is alone, whatever a shell or a scheduler left behind.
RANKS = re.compile("((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)")


@dataclass(frozen=True)
class _Attempt:
    """Which attempt at a job a folder belongs to."""

    attempt: str
    slot: int
    host: str  # whose process it is
    code: int | None = None  # the exit code, if it has ended by itself

    @property
    def meeting(self) -> Path:
        """The folder where its ranks meet: no place for a shared file system, whose locks may not hold."""
        return Path(tempfile.gettempdir()) / f"segsweep-ranks-{self.attempt}"

    @classmethod
    def read(cls, path: Path) -> "_Attempt | None":
        """Read it; None where there is none, or where a killed controller left it torn."""
        with suppress(FileNotFoundError, ConfigError):
            return read_file(cls, path, path.name)
        return None


@dataclass
class _Living:
    slot: Slot
    shared: int  # jobs that might be on its GPU when it began
    process: BaseProcess | None  # None: adopted
    pid: int
    before: int = 0  # bytes of its journal that earlier starts have written
    seen: int = 0  # bytes of its journal
    end: End | None = None  # the last record, if it is one of its own
    stopping: float | None = None  # when it was asked to stop
    killed: bool = False


class LocalBackend:
    """A `Backend` on this machine: one job on each slot; a job's folder is its name below `folder`, the sweep's.

    The fork server loads the `preloaded` modules once for all. Jobs outlive a controller that is killed, unless another
    one is to begin them again elsewhere.
    """

    keeps = True

    def __init__(self, folder: Path, slots: Sequence[Slot], preloaded: Sequence[str] = PRELOADED, outlive: bool = True):
        self.folder, self.slots = folder, tuple(slots)
        self._slots_on = Counter(device for slot in slots for device in slot.devices)
        self._most = max(self._slots_on.values(), default=1)  # jobs on a GPU
        self._living: dict[Id, _Living] = {}  # an id is the job's name here
        self._context = multiprocessing.get_context("forkserver")
        self._preloaded = tuple(preloaded)
        self._context.set_forkserver_preload(list(preloaded))
        # Its other end is closed when this process ends, however it ends.
        self._alive: Connection | None = None
        if not outlive:
            self._alive, self._kept_open = self._context.Pipe(duplex=False)

    def on(self, slots: Sequence[Slot]) -> "LocalBackend":
        """Return a backend on other slots; this one has no jobs yet."""
        return LocalBackend(self.folder, slots, self._preloaded, self._alive is None)

    @property
    def capacity(self) -> int:
        used: Counter[str] = Counter()
        return sum(self._takes(slot, used) for slot in self.slots)

    def free(self) -> int:
        return len(self._free())

    def thin(self, number: int) -> None:
        self._most = min(self._most, number)

    def submit(self, job: Job) -> Id:
        folder = self.folder / job.name
        folder.mkdir(parents=True, exist_ok=True)
        if living := self.adopt(job.name):
            return living
        if journal.exists(folder) and not (job.resume or job.anew):
            raise ConfigError(f"{folder}: holds a run already. Give another folder with hydra.sweep.dir=DIR.")
        slot = self._free()[0]
        claim = _Attempt(uuid.uuid4().hex, slot.number, node())
        (folder / CLAIM).write_text(json.dumps(asdict(claim)), encoding="utf-8")
        if living := self.adopt(job.name):  # a killed controller's child came to life in between
            return living
        if job.anew:
            clear(folder)
        before = journal.size(folder)
        shared = self._shared(slot)
        environment = slot.environment | ({NEIGHBOURS: "1"} if shared > 1 else {})
        process = self._started(train, job, folder, claim, environment, self._alive)
        assert process.pid is not None
        self._living[Id(job.name)] = _Living(slot, shared, process, process.pid, before)
        return Id(job.name)

    def adopt(self, name: str) -> Id | None:
        pid = locks.holder(self.folder / name / CLAIM)
        if pid is None:
            return None
        claim, free = _Attempt.read(self.folder / name / CLAIM), self._idle()
        if claim and claim.host != node():  # a shared file system tells the pid of another machine
            raise ConfigError(
                f"{self.folder / name}: a process on {claim.host} runs it. Continue the sweep on that host, or stop "
                f"it there."
            )
        known = [slot for slot in free if claim and slot.number == claim.slot]
        slot = [*known, *free, Slot(-1 - len(self._living))][0]
        self._living[Id(name)] = _Living(slot, self._shared(slot), None, pid)
        return Id(name)

    def where(self, job: Id) -> str:
        return str(self._living[job].slot)

    def stop(self, job: Id) -> None:
        living = self._living[job]
        if living.stopping is None:
            living.stopping = time.monotonic()
            _signal(living.pid, signal.SIGTERM)

    def finish(self, job: Id) -> None:
        stop.ask(self.folder / job)

    def poll(self, seconds: float) -> list[JobUpdate]:
        until = time.monotonic() + seconds
        while True:
            updates = [update for job in list(self._living) if (update := self._look(job))]
            left = until - time.monotonic()
            if updates or left <= 0 or not self._living:
                return updates
            ends = [living.process.sentinel for living in self._living.values() if living.process]
            wait(ends, min(LOOK, left)) if ends else time.sleep(min(LOOK, left))

    def fetch(self, job: Id) -> bool:
        """Return True: a job's folder lies below the sweep's."""
        return True

    def call(self, function: str, *arguments: Any) -> Any:
        here, there = self._context.Pipe(duplex=False)
        process = self._started(answer, there, self.slots[0].environment, function, arguments)
        there.close()
        try:
            result = here.recv()
        except EOFError:
            process.join()
            kind = ENDED_BY.get(process.exitcode or 0, RuntimeError)
            result = kind(f"{function}: it died. {signalled(process.exitcode)}".strip())
        except BaseException:  # whoever asked is to end
            process.terminate()
            raise
        finally:
            here.close()
            process.join()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        for job in self._living:
            self.stop(job)
        while self._living:
            self.poll(LOOK)

    def _idle(self) -> list[Slot]:
        """Slots without a job, also those whose GPU may take no more."""
        taken = {living.slot.number for living in self._living.values()}
        return [slot for slot in self.slots if slot.number not in taken]

    def _free(self) -> list[Slot]:
        used = Counter(device for living in self._living.values() for device in living.slot.devices)
        return [slot for slot in self._idle() if self._takes(slot, used)]

    def _shared(self, slot: Slot) -> int:
        """How many jobs may be on a slot's GPU."""
        return min(self._most, max((self._slots_on[device] for device in slot.devices), default=1))

    def _takes(self, slot: Slot, used: "Counter[str]") -> bool:
        """Whether a slot's GPUs may take its job beside those that use them; if so, it is counted there."""
        if any(used[device] >= self._most for device in slot.devices):
            return False
        used.update(slot.devices)
        return True

    def _started(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        """Have the fork server make a child that calls the function."""
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"  # else the server finds what it preloads in the working folder first
        try:
            ensure_running()
        finally:
            del os.environ["PYTHONSAFEPATH"]
            if before is not None:
                os.environ["PYTHONSAFEPATH"] = before
        process = self._context.Process(target=target, args=arguments)
        # Else each child would run the user's script from its top.
        script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = script
        return process

    def _look(self, job: Id) -> JobUpdate | None:
        living, folder = self._living[job], self.folder / job
        # Before the journal, which grows until the end.
        ended = not (living.process.is_alive() if living.process else locks.holder(folder / CLAIM) == living.pid)
        records, living.seen = journal.read_from(folder, living.seen)
        if records:
            living.end = records[-1] if isinstance(records[-1], End) and living.seen > living.before else None
        if living.stopping is not None and not living.killed and time.monotonic() - living.stopping > PATIENCE:
            living.killed = True
            _signal(living.pid, signal.SIGKILL)
        if not ended:
            return JobUpdate(job, records) if records else None
        code = living.process.exitcode if living.process else _exit_code(folder)
        if len(living.slot.devices) > 1:  # before its number is free again: what is left of its group holds GPUs
            _end_group(living.pid)
            if claim := _Attempt.read(folder / CLAIM):
                shutil.rmtree(claim.meeting, ignore_errors=True)  # a process that was killed leaves it
        if living.process:
            living.process.join()
            living.process.close()
        del self._living[job]
        error = failure(living.end, code)
        words = _last_words(folder) if error else "" if living.stopping is not None else signalled(code)
        return JobUpdate(job, records, True, error, words, living.shared)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it has no group of its own yet, or is gone
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _end_group(pid: int) -> None:
    """Kill what is left of a job's ranks, and wait until it is gone."""
    until = time.monotonic() + PATIENCE
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            os.killpg(pid, signal.SIGKILL)
            if not _others(pid):
                return
            time.sleep(LOOK / 4)


def _others(group: int) -> bool:
    """Whether a process group has a living member beside its first, which may wait to be asked for its exit code."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                return True
    return False


def _exit_code(folder: Path) -> int | None:
    """Return what the last attempt in the folder ended with; None if it was killed."""
    claim, written = _Attempt.read(folder / CLAIM), _Attempt.read(folder / EXIT)
    return written.code if claim and written and claim.attempt == written.attempt else None


def _last_words(folder: Path) -> str:
    """Return the last line that a job printed."""
    lines: list[str] = []
    with suppress(FileNotFoundError):
        lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix(f"{speaker()}: ") if lines else "it died without a message"


def clear(folder: Path) -> None:
    """Remove what an earlier attempt left, but for what it printed and the sweep noted."""
    (folder / journal.NAME).unlink(missing_ok=True)  # first: what is left without it is no run
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (OUTPUT, NAME, CLAIM):
            path.unlink()


def train(
    job: Job, folder: Path, claim: _Attempt, environment: Mapping[str, str], controller: Connection | None = None
) -> None:
    """Run a job, in the child: claim the folder, call the module's `main`, and leave its exit code there.

    `controller`: a connection that ends with it; the job ends then, too.
    """
    os.setsid()
    try:
        output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        os._exit(DiskError.exit_code if of_the_disk(error) else 1)
    os.dup2(output, 1)
    os.dup2(output, 2)
    locked = (folder / CLAIM).open("r+", encoding="utf-8")
    # Locked first and read then: a controller that takes the folder over writes first and asks who holds it then.
    try:
        fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os._exit(LATE)
    if json.load(locked)["attempt"] != claim.attempt:
        os._exit(LATE)
    for name in filter(RANKS.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ.update(environment)
    os.environ.setdefault(DEBUG, "1")  # its output is a file, where a traceback belongs
    with _ranks(job, folder, claim.meeting):
        if controller:  # the thread after the ranks, which are forked
            threading.Thread(target=_end_with, args=(controller,), name="controller", daemon=True).start()
        code = _called(job, folder)
    with suppress(OSError):  # a full disk: only a controller that adopts this job has to know the code
        save_json(folder / EXIT, asdict(replace(claim, code=code)))
    sys.exit(code)


def _end_with(controller: Connection) -> None:
    """End this process and its ranks when the controller is gone: as if they had been asked to, and then by force."""
    with suppress(EOFError, OSError):
        controller.recv_bytes()
    _signal(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    _signal(os.getpid(), signal.SIGKILL)


@contextmanager
def _ranks(job: Job, folder: Path, meeting: Path) -> Iterator[None]:
    """Have a process for each further GPU of the slot run the job, too, beside this one; wait for them at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield
        return
    meeting.mkdir(mode=0o700)
    os.environ |= {MEETING: f"file://{meeting}/store", "RANK": "0", "LOCAL_RANK": "0"}
    fork = multiprocessing.get_context("fork")  # torch is loaded here, and has not computed yet
    others = [fork.Process(target=_rank, args=(job, folder, rank)) for rank in range(1, size)]
    for other in others:
        other.start()
    threading.Thread(target=_end_when_killed, args=(others,), name="ranks", daemon=True).start()
    yield
    for rank, other in enumerate(others, 1):
        other.join(PATIENCE)
        if other.exitcode is None:
            other.kill()
        elif killed := signalled(other.exitcode if other.exitcode < 0 else 0):
            complain(f"{speaker()}: rank {rank} of {size}: {killed}")
    shutil.rmtree(meeting, ignore_errors=True)


def _end_when_killed(others: Sequence[BaseProcess]) -> None:
    """Stop this process soon after a rank was killed: on a GPU it might wait for it for ever."""
    while True:
        wait([other.sentinel for other in others])
        time.sleep(PATIENCE)
        if any((other.exitcode or 0) < 0 for other in others):
            _signal(os.getpid(), signal.SIGTERM)
            return
        if all(other.exitcode is not None for other in others):
            return


def _rank(job: Job, folder: Path, rank: int) -> None:
    end_with_parent()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    sys.exit(_called(job, folder))


def _called(job: Job, folder: Path) -> int:
    """Call the module's `main`; return its exit code."""
    try:
        code = import_module(job.module).main(job.command(folder)) or 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def answer(connection: Connection, environment: Mapping[str, str], function: str, arguments: Sequence[Any]) -> None:
    """Call the function, in the child, and send what it returns or raises, unless who has asked is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who has asked, and ends this process
    os.environ.update(environment)
    module, _, name = function.partition(":")
    try:
        result = getattr(import_module(module), name)(*arguments)
    except ConfigError as error:
        kinds = (kind for kind in reversed(FAILURES) if isinstance(error, kind))
        result = next(kinds)(str(error))  # one that its message alone makes again
    except Exception as error:
        result = as_disk_error(error)
        if result is error:
            result = RuntimeError(f"{function}: {type(error).__name__}: {error}")
    with suppress(BrokenPipeError):
        connection.send(result)
