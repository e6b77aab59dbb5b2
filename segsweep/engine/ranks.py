"""The processes of one training, as torchrun or a sweep starts them: a `World` on torch.distributed.

What is decided and gathered goes over gloo; gradients go over NCCL where the GPUs are. Each process tells the others
its error before it leaves, in the store where they met: what the others notice is only that a connection is closed.
"""

import json
import os
import platform
import select
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from segsweep.errors import (
    Asked,
    ConfigError,
    DataError,
    DiskError,
    NonFiniteError,
    OutOfMemoryError,
    Terminated,
    as_disk_error,
)
from segsweep.world import MEETING, World, end_with_parent

T = TypeVar("T")

MEET = timedelta(minutes=10)  # that processes wait for each other at the start
PATIENCE = timedelta(hours=2)  # that one may work alone, as on decoding the data, while the others wait
GRACE = 3.0  # seconds from another's error, a signal or the parent's end until waits for others are broken off
FORCED = 10.0  # seconds after that until a process that has nothing to write down is ended
LOOK = 1.0  # seconds between looks at whether the others and the parent are well
CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # by another that has ended
TOLD, OVER = "error", "over"  # keys of the store
MENDED = (ConfigError, DataError, OutOfMemoryError, NonFiniteError, DiskError)
KINDS = {kind.__name__: kind for kind in (*MENDED, Asked, Terminated, KeyboardInterrupt)}


class Vanished(ConfigError):
    """Another process ended without telling why."""

    exit_code, failure = 1, "crash"


class RankError(Exception):
    """Another process crashed; the text is its traceback."""


@dataclass(frozen=True)
class Told:
    """An error, as its process tells the others."""

    rank: int
    host: str
    kind: str  # its class
    text: str
    trace: str

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Told":
        trace = "".join(traceback.format_exception(error))
        error = as_disk_error(error)
        return cls(rank, platform.node(), type(error).__name__, str(error), trace)

    def error(self) -> BaseException:
        """Make it an exception again; of a kind that the user cannot mend, one with its traceback."""
        where, kind = f"rank {self.rank} on {self.host}", KINDS.get(self.kind)
        return RankError(f"{where}:\n{self.trace}") if kind is None else kind(f"{where}: {self.text}")


@contextmanager
def joined() -> Iterator["Ranks"]:
    """Meet the other processes of this training.

    Raises ConfigError: they do not come.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # A trial's first process outlives the sweep that began it; the others end with that one.
    parent = end_with_parent() if rank or MEETING not in os.environ else None
    url = os.environ.get(MEETING, "env://")
    # NCCL's own watchdog would end this process before it has told why.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    try:
        store, rank, size = next(rendezvous(url, rank, size, timeout=MEET))
        store.set_timeout(MEET)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend, store=PrefixStore("torch", store), rank=rank, world_size=size, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        told = f"process {rank} of {size} did not meet the others within {MEET}: {error}"
        raise ConfigError(f"{told} In a shell that torchrun left behind: unset TORCHELASTIC_RUN_ID.") from error
    # torchrun keeps its store when it starts the processes again.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    world = Ranks(rank, size, PrefixStore(f"segsweep/{attempt}", store), parent)
    try:
        yield world
    finally:
        world.close()


class Ranks(World):
    """The processes of torch's default group; this one ends with `parent`, the process that began it, if given."""

    def __init__(self, rank: int, size: int, store: Store, parent: int | None = None):
        self.rank, self.size, self.local = rank, size, int(os.environ["LOCAL_RANK"])
        self._store, self._closed = store, threading.Event()
        self.first: BaseException | None = None  # the first error of all processes, once `cause` was asked
        # Written to as soon as a signal arrives, even while Python waits in a GPU's call and cannot answer it.
        self._signals, self._signalled = os.pipe()
        os.set_blocking(self._signalled, False)
        self._before = signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, args=(parent,), name="ranks", daemon=True)
        self._watcher.start()

    def agreed(self, value: T) -> T:
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def any(self, flag: bool) -> bool:
        found = torch.tensor(int(flag))
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return bool(found)

    def summed(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        # Over the host: counts and masks lie there.
        distributed.gather_object(value, found if self.rank == 0 else None, dst=0)
        return found if self.rank == 0 else []

    def shared(self, model: nn.Module) -> nn.Module:
        device = next(model.parameters()).device
        of_gpu = [device.index] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of broadcast_buffers, which older versions of torch need
            return DistributedDataParallel(
                model,
                device_ids=of_gpu,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=True,  # some encoders have some
            )

    def apart(self, shared: nn.Module) -> AbstractContextManager[None]:
        assert isinstance(shared, DistributedDataParallel)
        return shared.no_sync()

    def cause(self, error: BaseException) -> BaseException:
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in CLOSED):
            error = Vanished(
                "another process of this training ended without a message: it was killed, perhaps because memory was "
                "full, or its machine is gone. What was trained is kept; continue with resume=DIR."
            )
        own = Told.of(error, self.rank)
        try:
            first = Told(**json.loads(self._store.compare_set(TOLD, "", json.dumps(asdict(own)))))
        except (RuntimeError, ValueError):  # who held the store is gone
            first = own
        same = first.rank == self.rank or (first.kind, first.text) == (own.kind, own.text)
        self.first = error if same else first.error()
        return self.first

    def leave(self, code: int) -> None:
        """Tell the others, who may be waiting, that this process, the first, ends with this exit code."""
        with suppress(RuntimeError):
            self._store.set(OVER, str(code))

    def left(self) -> int | None:
        """Return the exit code that the first process left with; None while it has not."""
        try:
            return int(self._store.get(OVER)) if self._store.check([OVER]) else None
        except RuntimeError:
            return 1

    def close(self) -> None:
        """Leave the group."""
        self._closed.set()
        signal.set_wakeup_fd(self._before)
        os.write(self._signalled, b"0")
        self._watcher.join(LOOK)
        if self.first:
            _abort()
        with suppress(RuntimeError, AssertionError):
            distributed.destroy_process_group()
        os.close(self._signalled)
        os.close(self._signals)

    def _watch(self, parent: int | None) -> None:
        """Free this process from a wait for others that are gone: on a GPU it would last for ever."""
        while not self._closed.is_set():
            signalled, _, _ = select.select([self._signals], [], [], LOOK)
            told = False
            with suppress(RuntimeError):  # who holds the store is gone: then so is the parent, or a signal comes
                told = self._store.check([TOLD])
            if not (signalled or told or (parent and os.getppid() != parent)):
                continue
            if not self._closed.wait(GRACE):
                _abort()
                if self.rank and not self._closed.wait(FORCED):
                    os._exit(128 + signal.SIGTERM)
            return


def _abort() -> None:
    """End the collectives that a GPU waits in."""
    if torch.cuda.is_available():
        from torch.distributed.distributed_c10d import _abort_process_group

        with suppress(Exception):
            _abort_process_group()
