"""Estimate from a few of its steps what a training takes: time, and a share of its GPU."""

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from pathlib import Path

import torch

from segsweep.config.checks import read
from segsweep.config.schema import RunConfig
from segsweep.engine import device as devices
from segsweep.runs.records import GpuNeed
from segsweep.training.build import Training, build, load

STEPS = 3  # that are timed, after one that allocates
SCORED = 8  # validation images that are timed
NEED_VERSION = 1  # raised when the measurement changes: older answers are then not used
CONTEXT = 600 * 2**20  # bytes that a process takes of a GPU beside its tensors: a guess, to be measured on one


def estimates(asked: Mapping[str, object], encoders: Sequence[str]) -> dict[str, dict[str, float]]:
    """Estimate what a training with each encoder takes: `images_per_s` and `seconds`, by the encoder's name.

    Args:
        asked: a `RunConfig` as JSON has it.

    Raises ConfigError, DataError: what `build` raises, or the memory is too small.
    """
    return _each(asked, encoders, lambda config: _estimate(build(config)))


def needs(asked: Mapping[str, object], encoders: Sequence[str]) -> dict[str, dict[str, float]]:
    """Measure what a training with each encoder, alone on its GPU, needs of it; a `GpuNeed` as JSON by its name.

    Arguments and errors are those of `estimates`. Answers are kept on this machine: a sweep that goes on may find its
    own trials on the GPU, and has to pack them as before.
    """

    def need(config: RunConfig) -> dict[str, float]:
        device, data = devices.find(config.train.device), load(config.data, config.train.workers).store.digest
        about = [NEED_VERSION, asdict(config), data, devices.describe(device), devices.machine()]
        return devices.remembered(devices.place("needs", about), lambda: asdict(_need(build(config))))

    return _each(asked, encoders, need)


def _each(
    asked: Mapping[str, object], encoders: Sequence[str], look: Callable[[RunConfig], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Look at a training with each encoder, one after the other, so that none finds another's tensors in memory.

    Nothing is printed meanwhile.
    """
    config, found = read(RunConfig, asked, "asked"), {}
    for name in encoders:
        advice = f"Leave {name} out, or try a smaller train.batch_size or data.size."
        with devices.fitting(advice), Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            found[name] = look(replace(config, encoder=replace(config.encoder, name=name)))
    return found


def _steps(training: Training) -> Iterator[tuple[int, float]]:
    """Train for a few steps; the images and the seconds of each. The first one allocates, too."""
    train, device = training.settings.train, training.state.device
    step, batches = training.step(), training.train_batches()
    training.tuned.execution.prepare(training.state.model).train()
    for _, micro_batches in zip(range(STEPS + 1), batches.epoch(1), strict=False):
        started = time.perf_counter()
        _, seen = step(training.state, micro_batches, train.grad_accum)
        devices.synchronize(device)
        yield seen, time.perf_counter() - started


def _rate(training: Training) -> float:
    """Images a second of its steps."""
    taken = list(_steps(training))
    images, seconds = zip(*(taken[1:] or taken), strict=True)
    return float(sum(images) / sum(seconds))


def _need(training: Training) -> GpuNeed:
    device = training.state.device
    gc.collect()  # what is in cycles of the training before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)  # a probe has tried more than a training takes
    with devices.alone(device):
        busy = _busy(training, _rate(training))
        training.evaluate(training.state.scored, training.data.parts["val"][:SCORED])
    memory = torch.cuda.max_memory_reserved(device) + CONTEXT
    return GpuNeed(memory, torch.cuda.mem_get_info(device)[1], busy)


def _busy(training: Training, rate: float) -> float:
    """Share of the time in which the GPU works, at so many images a second; 1 where torch's profiler does not say."""
    try:
        # It slows down the processor, and not the GPU's work.
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            images = sum(seen for seen, _ in _steps(training))
        working = sum(row.self_device_time_total for row in profile.key_averages()) / 1e6
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of the profiler: the same steps have just been taken without it
        return 1.0
    return min(1.0, working / images * rate) or 1.0


def _estimate(training: Training) -> dict[str, float]:
    train, rate, val = training.settings.train, _rate(training), training.data.parts["val"]
    timed = val[:SCORED]
    started = time.perf_counter()
    training.evaluate(training.state.scored, timed)
    validation = (time.perf_counter() - started) * len(val) / len(timed)
    an_epoch = len(training.data.parts["train"]) * training.settings.data.passes / rate + validation
    seconds = an_epoch * train.epochs if train.epochs else math.inf
    return {"images_per_s": rate, "seconds": min(seconds, train.time_budget or math.inf)}
