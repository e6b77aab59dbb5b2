"""Estimate the time of a training from a few of its steps."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from segsweep.config.checks import read
from segsweep.config.schema import RunConfig
from segsweep.engine import device as devices
from segsweep.training.build import build

STEPS = 3  # that are timed, after one that allocates
SCORED = 8  # validation images that are timed


@dataclass(frozen=True)
class Estimate:
    """The expected time of a training."""

    images_per_s: float
    seconds: float


def estimates(
    asked: Mapping[str, object], encoders: Sequence[str], environment: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Estimate what a training with each encoder takes; an `Estimate` as JSON by the encoder's name.

    Args:
        asked: a `RunConfig` as JSON has it.
        environment: variables that a trial would have: which GPU, how many threads.

    Raises ConfigError, DataError: what `build` raises, or the memory is too small.
    """
    os.environ.update(environment)
    config, found = read(RunConfig, asked, "asked"), {}
    for name in encoders:
        advice = f"Leave {name} out, or try a smaller train.batch_size or data.size."
        with devices.fitting(advice), Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            found[name] = asdict(_estimate(replace(config, encoder=replace(config.encoder, name=name))))
    return found


def _estimate(config: RunConfig) -> Estimate:
    training = build(config)
    train, device = training.settings.train, training.state.device
    step, batches = training.step(), training.train_batches()
    training.tuned.execution.prepare(training.state.model).train()
    images, spent = 0, 0.0
    for number, micro_batches in zip(range(STEPS + 1), batches.epoch(1), strict=False):
        started = time.perf_counter()
        _, seen = step(training.state, micro_batches, train.grad_accum)
        devices.synchronize(device)
        if number or len(batches) == 1:
            images, spent = images + seen, spent + time.perf_counter() - started
    rate = images / spent
    val = training.data.parts["val"]
    timed = val[:SCORED]
    started = time.perf_counter()
    training.evaluate(training.state.scored, timed)
    validation = (time.perf_counter() - started) * len(val) / len(timed)
    an_epoch = len(training.data.parts["train"]) * training.settings.data.passes / rate + validation
    seconds = an_epoch * train.epochs if train.epochs else math.inf
    return Estimate(rate, min(seconds, train.time_budget or math.inf))
