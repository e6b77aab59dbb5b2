"""The training loop. `for epoch in fit(...)`: what to do with an epoch, and when to stop, is the caller's."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from segsweep.data.batches import Batch, EvalBatches, TrainBatches
from segsweep.data.geometry import Size, strips
from segsweep.engine.execution import PLAIN, Execution
from segsweep.engine.losses import Loss
from segsweep.errors import NonFiniteError
from segsweep.metrics import ConfusionMatrix, scores
from segsweep.nn.tiles import tiled
from segsweep.nn.unet import predict
from segsweep.training import optim

CHECK_EVERY = 20  # steps between looks at the loss: each look waits for the device

FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "hflip": ((), (3,)),
    "flips": ((), (3,), (2,), (2, 3)),
}

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass
class Progress:
    """How far a training is; all of its state beside the model's and the optimizer's.

    Attributes:
        epoch: epochs done.
        seconds: of training and validation so far, over all resumptions.
        best_iou, best_epoch: of the best validation so far; -1 and 0 before the first.
        validation_seconds: of each validation so far.
    """

    epoch: int = 0
    seconds: float = 0.0
    best_iou: float = -1.0
    best_epoch: int = 0
    validation_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        metrics: scores by name without the split's prefix.
        predictions: the predicted masks that were asked for, uint8 `h w` by sample.
        matrices: the confusion matrix of each image by sample, int64 `k k`, targets in rows.
    """

    metrics: dict[str, float]
    predictions: dict[int, Tensor]
    matrices: dict[int, Tensor]


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number from 1, metrics by name, whether it is the best so far.

    `predictions` and `matrices` are those of `Evaluation`.
    """

    number: int
    metrics: dict[str, float]
    is_best: bool
    predictions: dict[int, Tensor]
    matrices: dict[int, Tensor]


def fit(
    model: nn.Module,
    train: TrainBatches,
    val: EvalBatches,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: optim.Schedule,
    *,
    names: Sequence[str],
    execution: Execution,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    epochs: int | None = None,
    time_budget: float | None = None,
    clip: float = 0.0,
    patience: int | None = None,
    seed: int = 0,
    freeze_epochs: int = 0,
    average: optim.Average | None = None,
    flips: Sequence[tuple[int, ...]] = FLIPS["none"],
    tile: Size | None = None,
    show: Sequence[int] = (),
    watch: Watch = lambda items, *_: items,
) -> Iterator[Epoch]:
    """Train, and yield each epoch after its validation.

    Args:
        schedule: multiple of the peak learning rate by the share of the training that is done. With `epochs` that is
            counted in steps, with `time_budget` in seconds, with both the larger share counts.
        names: of the classes.
        execution: how the model is run.
        progress: where to go on; kept up to date, to be saved with the model.
        epochs, time_budget: the end, whichever comes first; seconds are of training and validation.
        clip: largest norm of the gradient; 0 does not clip.
        patience: end after this many epochs without a better IoU.
        seed: of dropout, anew in each epoch.
        freeze_epochs: epochs in which the encoder stays as it is.
        average: of the weights; where there is one, it is what is scored.
        flips, tile: how to score: as for `evaluate`.
        show: samples whose predictions are kept.
        watch: wraps the iterators over steps and validation batches; also given their number and a title.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    device = next(model.parameters()).device
    total_steps = epochs * len(train) if epochs else None
    execution.prepare(model)
    scored = execution.prepare(average.model) if average else model
    compiled = execution.compiled(model)
    while not over(progress, epochs, time_budget, patience):
        started = time.perf_counter()
        number = progress.epoch + 1
        torch.manual_seed(seed * 1_000_003 + number)
        # The last validation has to fit into the budget, too.
        reserve = _validation_time(progress)
        budget = max(time_budget - reserve, 1e-3) if time_budget else None
        if freeze_epochs:
            optim.freeze(optimizer, number <= freeze_epochs)
        _train_mode(model)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        waiting = Waiting(device)
        total, steps, images = torch.zeros((), device=device), 0, 0
        first_bad = torch.full((), -1, device=device)
        lr = 0.0
        for micro_batches in watch(train.epoch(number), len(train), f"epoch {number}"):
            spent = progress.seconds + time.perf_counter() - started
            if budget and spent >= budget and steps:
                break
            done = ((number - 1) * len(train) + steps) / total_steps if total_steps else 0.0
            if budget:
                done = max(done, spent / budget)
            lr = optim.set_lr(optimizer, schedule(min(done, 1.0)))
            step_loss, seen = _step(
                model, compiled, micro_batches, train.accumulate, loss, optimizer, execution, scaler, clip, waiting
            )
            if average:
                average.update(model)
            total += step_loss
            first_bad = torch.where((first_bad < 0) & ~torch.isfinite(step_loss), steps, first_bad)
            steps += 1
            images += seen
            if steps % CHECK_EVERY == 0 or device.type == "cpu":
                _refuse_non_finite(first_bad, number, lr, execution.precision)
        _refuse_non_finite(first_bad, number, lr, execution.precision)
        mean_loss = float(total) / steps
        trained = time.perf_counter()

        evaluation = evaluate(scored, val, loss, names, execution, flips, tile, show, watch)
        finished = time.perf_counter()
        progress.validation_seconds.append(finished - trained)
        progress.seconds += finished - started
        progress.epoch = number
        iou = evaluation.metrics["iou"]
        is_best = iou > progress.best_iou
        if is_best:
            progress.best_iou, progress.best_epoch = iou, number
        yield Epoch(
            number=number,
            metrics={
                "train/loss": mean_loss,
                **{f"val/{name}": value for name, value in evaluation.metrics.items()},
                "best/val_iou": progress.best_iou if progress.best_epoch else math.nan,
                "lr": lr,
                "perf/images_per_s": images / (trained - started),
                "perf/data_share": waiting.seconds() / (trained - started),
                "perf/peak_memory_gb": _peak_memory(device) / 1e9,
                "perf/seconds": progress.seconds,
            },
            is_best=is_best,
            predictions=evaluation.predictions,
            matrices=evaluation.matrices,
        )


class Waiting:
    """How long the device has nothing to train on, or is busy with making it.

    On a GPU by events in its own stream: from the end of one step's work to the batch being ready. No step waits for
    the answer.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.host = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items; the time that each takes to come counts."""
        iterator = iter(items)
        while True:
            before, started = self._event(), time.perf_counter()
            item = next(iterator, None)
            self.host += time.perf_counter() - started
            if before is not None and (after := self._event()) is not None:
                self.events.append((before, after))
            if item is None:
                return
            yield item

    def seconds(self) -> float:
        """So far; waits for the device."""
        if not self.on_gpu:
            return self.host
        torch.cuda.synchronize()
        return sum(before.elapsed_time(after) for before, after in self.events) / 1000

    def _event(self) -> torch.cuda.Event | None:
        if not self.on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def over(progress: Progress, epochs: int | None, time_budget: float | None, patience: int | None = None) -> str:
    """Why a training that is this far is over; empty if it is not."""
    if epochs and progress.epoch >= epochs:
        return f"{epochs} epoch{'s' * (epochs != 1)}"
    if time_budget and progress.seconds + _validation_time(progress) >= time_budget and progress.epoch:
        return f"time budget of {time_budget:g} s"
    if patience and progress.epoch - max(progress.best_epoch, 1) >= patience:
        return f"no better val/iou for {patience} epochs"
    return ""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: EvalBatches,
    loss: Loss,
    names: Sequence[str],
    execution: Execution = PLAIN,
    flips: Sequence[tuple[int, ...]] = FLIPS["none"],
    tile: Size | None = None,
    show: Sequence[int] = (),
    watch: Watch = lambda items, *_: items,
) -> Evaluation:
    """Score each image on its mask's own pixel grid, whatever canvas the model saw.

    Args:
        names: of the classes.
        flips: views of each image, as the dimensions of `b c h w` that are mirrored; their logits are averaged.
        tile: height and width beyond which a canvas is run in overlapping tiles; None: always whole.
        show: samples whose predictions are kept.
        watch: wraps the iterator over the batches; also given their number and a title.
    """
    pooled = ConfusionMatrix(len(names))
    matrices: dict[int, Tensor] = {}
    predictions: dict[int, Tensor] = {}
    total: Tensor | float = 0.0
    for batch, logits in seen(model, batches, execution, flips, tile, watch):
        total += loss(logits, batch.mask).double() * len(batch.indices)
        predicted = [
            torch.cat([predict(part[None])[0] for _, part in own_grid(batch, logits, i)])
            for i in range(len(batch.indices))
        ]
        matrices |= zip(batch.indices, pooled.update_each(predicted, batch.targets), strict=True)
        for index, prediction in zip(batch.indices, predicted, strict=True):
            if index in show:
                predictions[index] = prediction.to(torch.uint8).cpu()
    metrics = scores(pooled, list(matrices.values()), names)
    return Evaluation({"loss": float(total) / max(len(matrices), 1), **metrics}, predictions, matrices)


def seen(
    model: nn.Module,
    batches: EvalBatches,
    execution: Execution = PLAIN,
    flips: Sequence[tuple[int, ...]] = FLIPS["none"],
    tile: Size | None = None,
    watch: Watch = lambda items, *_: items,
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch, and its logits `b k h w` on the canvas; the arguments are those of `evaluate`.

    Gradients are the caller's to switch off.
    """
    model.eval()
    forward = partial(execution.forward, model)
    for batch in watch(batches, len(batches), "scoring"):
        limit = tile or (batch.image.shape[2], batch.image.shape[3])
        views = [tiled(forward, batch.image.flip(view), limit).flip(view) for view in flips]
        yield batch, views[0] if len(views) == 1 else torch.stack(views).float().mean(0)


def own_grid(batch: Batch, logits: Tensor, i: int) -> Iterator[tuple[slice, Tensor]]:
    """The logits of one image of a batch on its mask's own pixel grid, from the top down: rows, and `k rows w`."""
    height, width = batch.targets[i].shape
    return strips(logits[i].float(), batch.placements[i], (height, width))


def _validation_time(progress: Progress) -> float:
    """Seconds that the next validation will take."""
    return median(progress.validation_seconds) if progress.validation_seconds else 0.0


def _train_mode(model: nn.Module) -> None:
    """Training mode, but for parts that are frozen: their BatchNorm keeps its statistics."""
    model.train()
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            child.eval()


def _step(
    model: nn.Module,
    compiled: nn.Module,
    micro_batches: Iterable[Batch],
    accumulate: int,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    execution: Execution,
    scaler: torch.amp.GradScaler,
    clip: float,
    waiting: Waiting,
) -> tuple[Tensor, int]:
    """One optimizer step. Returns the mean loss, on the device, and the number of images."""
    optimizer.zero_grad(set_to_none=True)
    total, images = torch.zeros((), device=next(model.parameters()).device), 0
    for batch in waiting.over(micro_batches):
        logits = execution.forward(compiled, batch.image)
        part = loss(logits, batch.mask) / accumulate
        scaler.scale(part).backward()
        total += part.detach()
        images += len(batch.indices)
    if clip:
        scaler.unscale_(optimizer)
        optim.gradient_norm(model, clip)
    scaler.step(optimizer)
    scaler.update()
    return total, images


def _refuse_non_finite(first_bad: Tensor, epoch: int, lr: float, precision: torch.dtype) -> None:
    step = int(first_bad)
    if step < 0:
        return
    likely = f"a learning rate that is too high. Try optim.lr={lr / 10:.1g}"
    if precision == torch.float16:
        likely += ", or train.precision=fp32: fp16 overflows beyond 65504"
    raise NonFiniteError(
        f"the loss became NaN or infinite in epoch {epoch}, step {step + 1}, at learning rate {lr:.3g}. "
        f"Most likely {likely}."
    )


def _peak_memory(device: torch.device) -> float:
    """Bytes: the device's since the epoch began, on a CPU the process's since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
