"""What runs a sweep's trainings: one protocol, so that a sweep does not know where its trials run.

A backend for another place (a cluster, machines over SSH) is a module beside this one with a class that keeps these
promises; `segsweep.sweeping.backends.local` is the first. A training is known by its command and by its journal:
nothing else passes between it and the sweep. Standard library only.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NewType, Protocol

from segsweep.errors import ConfigError, DataError, DiskError, Failure, NonFiniteError, OutOfMemoryError
from segsweep.paths import quoted
from segsweep.runs.records import End, Record

Id = NewType("Id", str)
"""Names a job for the backend that gave it, for as long as the backend lives; it means nothing to anybody else."""

OUTPUT = "out.log"  # of a job's folder: all that it printed
FAILURES = (ConfigError, DataError, OutOfMemoryError, NonFiniteError, DiskError)
KINDS = {kind.exit_code: kind.failure for kind in FAILURES}


@dataclass(frozen=True)
class Job:
    """A training to run.

    `argv` is its command without the folder, which the backend adds where it runs. The only paths in it are those of
    the data, as the user typed them.
    """

    name: str  # of its folder below the sweep's; one job of a name lives at a time
    module: str  # whose `main(argv)` is called; it returns an exit code of `segsweep.errors`
    argv: tuple[str, ...] = ()
    resume: bool = False  # it goes on with what lies in the folder, and `argv` holds only what is new
    anew: bool = False  # an earlier attempt at this very job lies in the folder, and is removed

    def command(self, folder: object) -> list[str]:
        """Return the whole command, given the job's folder on the host that runs it."""
        if self.resume:
            return [f"resume={quoted(folder)}", *self.argv]
        return [*self.argv, f"hydra.run.dir={quoted(folder)}", "hydra.mode=RUN"]


@dataclass(frozen=True)
class JobUpdate:
    """News of a job.

    Attributes:
        records: of its journal that are new since the last update; in the first one of a submitted or adopted job
            all of them, those of earlier jobs in the folder included.
        error: the kind of its failure, if it ended with one. None of a job that is complete, and of one that was
            stopped or killed, or whose host is gone: it may go on.
        words: the last line that a failed job printed; of one that was killed unasked, which signal did it.
        shared: how many jobs might have been on its GPU, itself among them, when it began.
    """

    job: Id
    records: Sequence[Record] = ()
    ended: bool = False  # it runs no more; no update of it follows
    error: Failure | None = None
    words: str = ""
    shared: int = 1


# What most likely sent a signal to a training that nobody asked to stop.
SENDERS = {
    "SIGBUS": "a file that was being read, such as the pixel cache, has become shorter, or its disk failed",
    "SIGKILL": "most likely the system's memory was full",
    "SIGTERM": "somebody asked it to end",
    "SIGINT": "somebody asked it to end",
}


class Backend(Protocol):
    """Runs jobs, each in a folder of its own below the sweep's.

    All calls come from one thread, and none but `poll`, `call` and `close` waits for a job. A job that fails is news
    and no error of the backend: only `JobUpdate.error` tells. What the user can mend (no such GPU, no way to the host)
    is a `ConfigError`; after any other exception the sweep calls `close` and ends. A backend retries nothing and judges
    nothing: what a failure means is the scheduler's to say.

    Jobs may outlive a controller that is killed: then the next one adopts them by name, and else `adopt` returns None.

    Attributes:
        keeps: whether a job's folder outlives its host. Where it does not, a job can only go on from what was fetched.
    """

    keeps: bool

    @property
    def capacity(self) -> int:
        """How many jobs run side by side."""

    def free(self) -> int:
        """Return how many jobs would begin at once if they were submitted now; never more than `capacity`."""

    def submit(self, job: Job) -> Id:
        """Begin a job, and return before it has done anything; call it only while `free()` is above 0.

        A job of this name that lives already is adopted instead: never do two of them share a folder. Where `anew` asks
        for it, what an earlier attempt left in the folder is removed first, but for its output and the sweep's own
        notes; nothing else is ever removed.

        Raises ConfigError: there is a journal, and the job neither resumes nor begins anew.
        """

    def thin(self, number: int) -> None:
        """Have at most so many jobs on each GPU from now on; those that run already go on."""

    def adopt(self, name: str) -> Id | None:
        """Take over the job of this name that an earlier controller began; None if none lives. It takes a slot."""

    def where(self, job: Id) -> str:
        """Return where a living job runs, for a person, as "GPU 1"."""

    def stop(self, job: Id) -> None:
        """Ask a job to end, and return at once; again is no more than once.

        It has a while to write its last checkpoint and is killed then. `poll` reports when it has ended.
        """

    def finish(self, job: Id) -> None:
        """Ask a job to end after its epoch, and return at once; `poll` reports when it has.

        One that is only beginning may not hear it: ask again.
        """

    def poll(self, seconds: float) -> list[JobUpdate]:
        """Return news as soon as there are some; an empty list after so many seconds without.

        Each record is reported once, in order, and lies in the journal below the sweep's folder when it is. Nothing is
        reported of a job after its end, and nothing of jobs that were neither submitted nor adopted here.

        Raises ConfigError: a journal is damaged.
        """

    def fetch(self, job: Id) -> bool:
        """Have all files of an ended job below the sweep's folder, each of them whole.

        Return False where they are gone with the job's host, whatever its journal says: it can only begin again.
        """

    def call(self, function: str, *arguments: Any) -> Any:
        """Call `module:function` as a job would run, on its GPUs and threads, nothing kept, and wait for the result.

        Arguments and result are what JSON can say. A ConfigError comes through; any other failure is a RuntimeError.
        """

    def close(self) -> None:
        """Stop every job, wait until all have ended, and let go of what is held; `submit` takes it up again."""


def failure(end: End | None, code: int | None) -> Failure | None:
    """Return the kind of failure that a job ended with; None if it is complete, or was stopped or killed.

    Args:
        end: that it has closed its journal with; None where it has not, whatever an earlier start has written.
        code: its exit code; None where it is not known, since the job was killed.
    """
    if end and end.status == "failed":
        return end.error or KINDS.get(code or 0, "crash")
    if code is None or code < 0 or code > 128:
        return None
    kind = KINDS.get(code, "crash")
    if end is None or (end.status == "stopped" and code):
        return kind
    return "disk" if kind == "disk" else None  # it is complete, and its result could not be written


def signalled(code: int | None) -> str:
    """Say which signal ended a process, from its exit code; empty if it was none.

    A code is negative as Python has it, or above 128 as a shell has it; None of a process that was killed by an unknown
    one.
    """
    if code is None:
        return "killed by a signal"
    if 0 <= code <= 128:
        return ""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"signal {number} ({name})" + (f": {SENDERS[name]}" if name in SENDERS else "")
