"""`train.py`, with a fault in one of the processes that train together: `fault=KIND` before the other words."""

import itertools
import math
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch

import train
from segsweep.engine.step import TrainStep
from segsweep.training import build, loop

THIRD = 3  # step at which the fault shows


def main(argv: Sequence[str]) -> int:
    words = list(argv)
    for word in [word for word in words if word.startswith("fault=")]:
        words.remove(word)
        if os.environ.get("RANK") == "1":
            FAULTS[word[6:]]()
    return train.main(words)


def _at_third_step(act: Callable[[Any], Any]) -> None:
    original, steps = TrainStep.__call__, itertools.count(1)

    def step(self: TrainStep, *arguments: Any) -> Any:
        found = original(self, *arguments)
        return act(found) if next(steps) == THIRD else found

    TrainStep.__call__ = step  # type: ignore[method-assign]


def _memory() -> None:
    def raised(_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory: 7 GiB wanted")

    _at_third_step(raised)


def _crash() -> None:
    def raised(_: Any) -> Any:
        raise ZeroDivisionError("what nobody thought of")

    _at_third_step(raised)


def _nan() -> None:
    _at_third_step(lambda found: (found[0] * math.nan, found[1]))


def _killed() -> None:
    _at_third_step(lambda _: os.kill(os.getpid(), signal.SIGKILL))


def _refused() -> None:
    """See other data than the first process does."""
    original = build.load

    def load(*arguments: Any) -> Any:
        found = original(*arguments)
        found.store.digest = "another"
        return found

    build.load = load  # type: ignore[assignment]


def _clock() -> None:
    """Let time go ten times as fast as in the other process."""
    original = loop.time.perf_counter

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return 10 * original()

    loop.time = Clock  # type: ignore[assignment]


FAULTS = {
    "memory": _memory,
    "nan": _nan,
    "killed": _killed,
    "clock": _clock,
    "crash": _crash,
    "refused": _refused,
}
