"""The processes that train one model together, and a process's place on its machine. Standard library only."""

import ctypes
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

PR_SET_PDEATHSIG = 1  # of Linux's prctl
NEIGHBOURS = "SEGSWEEP_NEIGHBOURS"  # set where other trainings of a sweep may be on this process's GPU
MEETING = "SEGSWEEP_RANKS"  # where the processes of a sweep's trial meet, a URL; torchrun has variables of its own


class World:
    """One process, the default.

    Whoever lets several processes train together overrides the methods. Every process calls the same ones in the same
    order; what differs between processes (a clock, a free folder, a measured speed) must not decide anything before it
    has gone through one of them, or the others wait for ever.
    """

    rank: int = 0  # of this process, from 0, which alone writes files and speaks
    size: int = 1  # number of processes
    local: int | None = None  # number of this process on its machine, from 0, as torch counts GPUs; None: it is alone

    def agreed(self, value: T) -> T:
        """Return the value of rank 0, in every process: a plain value, a tensor, or a container of them."""
        return value

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set in at least one process."""
        return flag

    def summed(self, tensor: "Tensor") -> "Tensor":
        """Return the sum of all processes' tensors, which have one shape and data type."""
        return tensor

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in rank 0; an empty list in the others."""
        return [value]

    def shared(self, model: "nn.Module") -> "nn.Module":
        """Return what to call in the model's place, so that a backward pass leaves the mean gradient of all processes.

        Made anew whenever other parameters are trained.
        """
        return model

    def apart(self, shared: "nn.Module") -> AbstractContextManager[None]:
        """Leave each process its own gradient, while in this context; the next backward pass after it adds them all."""
        return nullcontext()

    def cause(self, error: BaseException) -> BaseException:
        """Return the first error of all processes, this one's unless another has told its own before."""
        return error


SINGLE = World()


def together() -> bool:
    """Tell whether this process was started as one of several that train together."""
    several = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ
    return several and ("TORCHELASTIC_RUN_ID" in os.environ or MEETING in os.environ)


def neighbours() -> bool:
    """Tell whether a sweep may have put other trainings on this process's GPU."""
    return NEIGHBOURS in os.environ


def cores() -> int:
    """Return how many cores this process may use: those that it is bound to, or fewer by its container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, quota() or bound)


def quota() -> int | None:
    """Return how many cores this process's container may use, at least 1; None where nothing limits it."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, round(int(limit) / int(period)))
    except (OSError, ValueError):
        return None


def end_with_parent() -> int:
    """Let the system send SIGTERM to this process when its parent ends for any reason; return the parent's pid."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid()
