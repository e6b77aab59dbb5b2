"""The fastest way to run a model on this machine: found by a short probe, kept for all trainings of its kind."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from segsweep import console
from segsweep.config.schema import TrainConfig
from segsweep.engine import device as devices
from segsweep.engine.casting import AtOnce
from segsweep.engine.execution import Execution, unchanged
from segsweep.engine.losses import Loss
from segsweep.errors import OutOfMemoryError, first_line
from segsweep.runs.records import Precision
from segsweep.world import SINGLE, World, neighbours

PROBE_VERSION = 7  # raised when the measurement changes: older answers are then not used
WORTH = 1000  # training images; a shorter training is over before a probe has paid
PROBED = 4  # images a layout or a precision is tried with on a CPU: its speed hardly depends on more
WORTH_SECONDS = 60.0
REPEATS = 3
CLEAR = 1.05  # what is less than this much faster than the usual way may be noise
MOMENTS = 2  # of Adam: numbers for each weight that an optimizer keeps, and a probe has to leave room for
COMPILE_PAYS = 600.0  # seconds of training from which compiling pays on a GPU
COMPILED_PAYS = 120.0  # the same where inductor has kept what an earlier training of the kind compiled; untested


@dataclass(frozen=True)
class Workload:
    """What a training will do."""

    size: tuple[int, int]  # height and width of its canvas, in pixels; its images have so many `channels`
    channels: int
    images: int  # of a micro-batch
    expected_images: float  # over all epochs; infinite where time alone ends it
    seconds: float = math.inf  # that it may take; infinite without a time budget
    # Of logits `b k h w` and targets `b h w`: with many classes most of the memory is the loss's.
    loss: Loss = lambda logits, target: logits.float().square().mean()


class Answer(TypedDict):
    """What a probe found, as it is kept."""

    precision: Precision
    channels_last: bool
    doubling: bool
    graphs: bool
    micro_batch: int
    rates: dict[str, float]


@dataclass(frozen=True)
class Tuned:
    """What was chosen, and why."""

    execution: Execution
    micro_batch: int  # images
    rates: dict[str, float]  # images/s of what was tried, by name; empty where nothing was
    peak: float = 0.0  # FLOP/s of this machine's fastest convolution in that precision; 0 where nothing was tried
    kind: str = ""  # of training: the probe's place in the cache; empty where nothing was tried


def tune(
    model: nn.Module,
    key: Sequence[Any],
    workload: Workload,
    train: TrainConfig,
    device: torch.device,
    world: World = SINGLE,
) -> Tuned:
    """Choose precision, layout, compilation and, with `train.grad_accum=auto` on a GPU, the micro-batch.

    A probe runs forward and backward passes on random pixels and leaves the model as it was. Its result is kept in the
    cache, so all trainings of the kind, the trials of a sweep among them, run in the same way.

    Args:
        key: what tells the kind of model apart from others, beside what is given here.
        train: its precision and compile are what is asked for; with deterministic nothing is chosen by time.
        world: the processes that train together; rank 0's answer is taken by all.

    Raises OutOfMemoryError: not even one image fits the memory, or too few beside other trainings on the GPU.
    """
    precision = devices.PRECISIONS[world.agreed(devices.named(devices.precision(train.precision, device)))]
    usual = Execution(precision, channels_last=True, compile=train.compile == "true")
    short = workload.expected_images < WORTH or workload.seconds < WORTH_SECONDS
    if train.deterministic or (short and not _may_cut(train, device)):
        if train.compile == "graphs":
            console.note(
                f"note: train.compile=graphs is not tried: that takes {WORTH} training images or more in all, a time "
                f"budget of {WORTH_SECONDS:.0f} s or more if there is one, and no train.deterministic"
            )
        return Tuned(usual, workload.images, {})
    # What lies in a GPU's memory already, pixels and weights, decides what else fits; in whole GiB.
    taken = torch.cuda.memory_allocated(device) >> 30 if device.type == "cuda" else 0
    machine = [devices.describe(device), devices.machine(), torch.get_num_threads() if device.type == "cpu" else 0]
    wanted = [train.precision, train.compile == "graphs", train.grad_accum]
    about = [list(workload.size), workload.channels, *wanted, workload.images, taken]
    place = devices.place("tuned", [PROBE_VERSION, *key, *machine, *about])

    def measure() -> Answer:
        console.note("probe: which precision and memory layout are fastest here; a few seconds, kept for later")
        with devices.alone(device), unchanged(model):
            return _probe(model, usual, train, workload, device)

    answer = world.agreed(devices.remembered(place, measure) if world.rank == 0 else None)
    assert answer is not None
    precision, rates = devices.PRECISIONS[answer["precision"]], answer["rates"]
    execution = replace(
        usual,
        precision=precision,
        channels_last=answer["channels_last"],
        doubling=answer["doubling"],
        compile=usual.compile or answer["graphs"],
        graphs=answer["graphs"],
    )
    # With several processes nobody has tried it, and where one's compiler fails, the others wait.
    if train.compile == "auto" and device.type == "cuda" and world.size == 1:
        seconds = min(workload.expected_images / max(rates.values()), workload.seconds)
        pays = COMPILED_PAYS if devices.was_compiled(place) else COMPILE_PAYS
        execution = replace(execution, compile=seconds >= pays)
    return Tuned(execution, answer["micro_batch"], rates, devices.convolution_peak(device, execution.precision), place)


def _probe(model: nn.Module, usual: Execution, train: TrainConfig, workload: Workload, device: torch.device) -> Answer:
    """Find the micro-batch that fits, then try precisions, layouts and more, each with the best of what came before."""
    usual = replace(usual, compile=False)
    largest = replace(usual, doubling=False)  # it keeps what is joined
    kept = MOMENTS + (train.ema > 0)
    fits = _largest_micro_batch(model, largest, workload, kept) if _may_cut(train, device) else workload.images
    few = min(fits, PROBED) if device.type == "cpu" else fits
    pixels = 255 * torch.rand(few, workload.channels, *workload.size, device=device)
    rates: dict[str, float] = {}

    def faster(first: Execution, other: Execution) -> Execution:
        """The first, unless the other one is clearly faster than it has ever been."""
        for way, rate in zip((first, other), _rates(model, [first, other], pixels, workload.loss), strict=True):
            rates[_named(way)] = max(rate, rates.get(_named(way), 0.0))
        return other if rates[_named(other)] > CLEAR * rates[_named(first)] else first

    best = usual
    if train.precision == "auto" and device.type == "cpu" and usual.precision != torch.float32:
        best = faster(usual, replace(usual, precision=torch.float32))
    best = faster(best, replace(best, channels_last=False))
    if device.type == "cuda":  # on CPUs more products take more time
        best = faster(best, replace(best, doubling=False))
    if train.compile == "graphs":
        best = faster(best, replace(best, compile=True, graphs=True))
    best.prepare(model)
    return {
        "precision": devices.named(best.precision),
        "channels_last": best.channels_last,
        "doubling": best.doubling,
        "graphs": best.graphs,
        "micro_batch": fits,
        "rates": {name: round(rate, 2) for name, rate in rates.items()},
    }


def _may_cut(train: TrainConfig, device: torch.device) -> bool:
    """Whether the batch is cut into as many micro-batches as the memory asks for."""
    return device.type == "cuda" and train.grad_accum == "auto"


def _largest_micro_batch(model: nn.Module, execution: Execution, workload: Workload, kept: int) -> int:
    """Return how many images fit the memory at once: those of the batch, or of the largest equal part that fits.

    `kept`: how many numbers for each weight a training keeps beside it.

    Raises OutOfMemoryError: not even one fits, or others train on the GPU: how much they take is no reason to cut the
    batch of all trainings of the kind, and the sweep lets fewer run at once.
    """
    beside = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(kept)]
    images, device = workload.images, next(model.parameters()).device
    while True:
        try:
            pixels = [images, workload.channels, *workload.size]
            _pass(model, execution, workload.loss)(255 * torch.rand(pixels, device=device))
            break
        except torch.OutOfMemoryError as error:
            if neighbours():
                raise OutOfMemoryError("out of memory beside the other trainings on this GPU.") from error
            if images == 1:
                height, width = workload.size
                raise OutOfMemoryError(
                    f"out of memory with a single image of {height}x{width}. Try a smaller data.size."
                ) from error
            images = next(n for n in range(images // 2, 0, -1) if workload.images % n == 0)
    del beside
    return images


def _rates(model: nn.Module, ways: Sequence[Execution], image: Tensor, loss: Loss) -> list[float]:
    """Images/s of forward and backward passes, each way's best of a few; 0 where only the first fits or compiles.

    They take turns: a busy second of the machine's then slows down all of them, and the answer is kept for good. What
    does not fit beside other trainings on the GPU is therefore an error.
    """
    shortest = {way: math.inf for way in ways}
    passes: dict[Execution, Callable[[Tensor], float]] = {}
    for repeat in range(1 + REPEATS):
        for way in list(shortest):
            try:
                if way not in passes:
                    passes[way] = _pass(model, way, loss)
                seconds = passes[way](image)
            except Exception as error:
                too_large = isinstance(error, torch.OutOfMemoryError)
                if way == ways[0] or (neighbours() if too_large else not way.compile):
                    raise
                if not too_large:
                    console.note(f"note: {_named(way)} failed, so this training runs without: {first_line(error)}")
                del shortest[way]
                continue
            if repeat:  # the first one compiles, allocates and chooses kernels
                shortest[way] = min(shortest[way], seconds)
    return [len(image) / shortest[way] if way in shortest else 0.0 for way in ways]


def _pass(model: nn.Module, execution: Execution, loss: Loss) -> Callable[[Tensor], float]:
    """Return what takes a forward and a backward pass over an image `b c h w`, and gives their seconds.

    The targets are all background. Where the execution compiles, it does so in the first call alone.
    """
    execution.prepare(model).train()  # both decide what is cast
    at_once = AtOnce(None if execution.compile else model, execution.precision)

    def loss_of(image: Tensor, target: Tensor) -> Tensor:
        return loss(execution.forward(model, image), target)

    called = execution.compiled(loss_of)

    def seconds(image: Tensor) -> float:
        execution.prepare(model).train()
        target = torch.zeros(len(image), *image.shape[-2:], dtype=torch.int64, device=image.device)
        devices.synchronize(image.device)
        started = time.perf_counter()
        try:
            with at_once.applied():
                called(image, target).backward()  # type: ignore[no-untyped-call]
            devices.synchronize(image.device)
        finally:
            model.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return seconds


def _named(execution: Execution) -> str:
    layout = "channels_last" if execution.channels_last else "contiguous"
    more = ["plain upsampling"] * (not execution.doubling) + ["CUDA graphs"] * execution.graphs
    return ", ".join([f"{devices.named(execution.precision)} {layout}", *more])
