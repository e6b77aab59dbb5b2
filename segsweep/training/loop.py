"""The training loop. `for epoch in fit(...)`: what to do with an epoch, and when to stop, is the caller's."""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segsweep.config.schema import OptimConfig, TrainConfig
from segsweep.data.batches import Batch, TrainBatches
from segsweep.data.store import Watch, unwatched
from segsweep.engine.device import Fetched
from segsweep.engine.scorer import Evaluation
from segsweep.engine.step import DataStallTimer, TrainStep
from segsweep.errors import NonFiniteError
from segsweep.training import optim
from segsweep.training.state import Progress, TrainState
from segsweep.world import SINGLE, World

CHECK_EVERY = 20  # steps whose losses come from a device to the host together


@dataclass(frozen=True)
class Epoch:
    """One epoch, from 1, after its validation: `is_best` so far, its metrics by name."""

    number: int
    metrics: dict[str, float]
    is_best: bool
    validation: Evaluation


def fit(
    state: TrainState,
    step: TrainStep,
    batches: TrainBatches,
    validate: Callable[[nn.Module], Evaluation],
    train: TrainConfig,
    optim_config: OptimConfig,
    *,
    watch: Watch = unwatched,
    world: World = SINGLE,
) -> Iterator[Epoch]:
    """Train, and yield each epoch after its validation.

    The learning rate, and the weights of a `FadingLoss`, follow the share of the training that is done: with
    `train.epochs` counted in steps, with `train.time_budget` in seconds of training and validation; with both, the
    larger share.

    The training ends when `stop_reason` says so. In the first `optim.freeze_epochs` epochs the encoder is frozen.
    Dropout is seeded from `train.seed` at the start of each epoch, and with several micro-batches before each of them,
    too: so a resumed training draws the same numbers, and N processes draw those of one with N micro-batches.

    Args:
        state: where to go on; kept up to date, to be saved.
        watch: wraps the iterator over steps.
        world: the processes that train together.

    Raises NonFiniteError: the loss became NaN or infinite, in training or in validation.
    """
    progress, device, peak_lr = state.progress, state.device, state.optimizer.param_groups[-1]["peak_lr"]
    schedule = optim.schedule(optim_config.schedule, optim_config.warmup)
    total_steps = train.epochs * len(batches) if train.epochs else None
    parts = world.size * train.grad_accum  # micro-batches of a step; with one, dropout goes on through the epoch
    for model in {state.model, state.scored}:
        step.execution.prepare(model)
    while not stop_reason(progress, train):
        started, number = time.perf_counter(), progress.epoch + 1
        torch.manual_seed(train.seed * 1_000_003 + number)
        # The last validation has to fit into the budget, too.
        budget = max(train.time_budget - _validation_time(progress), 1e-3) if train.time_budget else None
        if optim_config.freeze_epochs:
            optim.freeze(state.optimizer, number <= optim_config.freeze_epochs)
        _train_mode(state.model)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        stall = DataStallTimer(device)
        losses, done_steps, images = StepLosses(device), 0, 0
        lr = 0.0
        for micro_batches in watch(batches.epoch(number), len(batches), f"epoch {number}"):
            # Every process goes by one clock: with its own it would take another rate, or stop alone.
            spent = world.agreed(progress.seconds + time.perf_counter() - started) if budget else 0.0
            if budget and spent >= budget and done_steps:
                break
            done = ((number - 1) * len(batches) + done_steps) / total_steps if total_steps else 0.0
            if budget:
                done = max(done, spent / budget)
            done = min(done, 1.0)
            lr = optim.set_lr(state.optimizer, schedule(done))
            step.advance(done)
            group = [train.seed, number, done_steps, world.rank * train.grad_accum]
            drawn = stall.over(micro_batches)
            step_loss, seen = step(state, _seeded(drawn, *group) if parts > 1 else drawn, train.grad_accum)
            if state.average:
                state.average.update(state.model)
            done_steps += 1
            images += seen
            if losses.add(step_loss):
                _refuse_non_finite(losses.first_bad, number, peak_lr, step.execution.precision, world)
        losses.finish()
        _refuse_non_finite(losses.first_bad, number, peak_lr, step.execution.precision, world)
        mean_loss = float(world.summed(losses.total())) / (done_steps * world.size)
        images = int(world.summed(torch.tensor(images)))
        if world.size > 1:
            _average_statistics(state, world)
        trained = time.perf_counter()

        validation = validate(state.scored)
        if not math.isfinite(validation.metrics["loss"]):
            raise _non_finite(number, "validation", peak_lr, step.execution.precision)
        finished = time.perf_counter()
        progress.validation_seconds.append(world.agreed(finished - trained))
        progress.seconds = world.agreed(progress.seconds + finished - started)
        progress.epoch = number
        iou = world.agreed(validation.metrics["iou"])
        is_best = iou > progress.best_iou
        if is_best:
            progress.best_iou, progress.best_epoch = iou, number
        metrics = {
            "train/loss": mean_loss,
            **{f"val/{name}": value for name, value in validation.metrics.items()},
            "best/val_iou": progress.best_iou if progress.best_epoch else math.nan,
            "lr": lr,
            "perf/images_per_s": images / (trained - started),
            "perf/data_share": stall.seconds() / (trained - started),
            "perf/peak_memory_gb": _peak_memory(device) / 1e9,
            "perf/seconds": progress.seconds,
        }
        yield Epoch(number, metrics, is_best, validation)


class StepLosses:
    """The losses of an epoch's steps. They come to the host some at a time, and no step waits for its own.

    Attributes:
        values: of the first steps, as far as they have come.
        first_bad: the first step of them, from 0, whose loss is NaN or infinite; -1 if none is.
    """

    def __init__(self, device: torch.device):
        self.values: list[float] = []
        self.first_bad = -1
        self._every = 1 if device.type == "cpu" else CHECK_EVERY
        self._behind = 0 if device.type == "cpu" else 1  # what was sent last is still on its way
        self._waiting: list[Tensor] = []
        self._sent: deque[Fetched] = deque()

    def add(self, loss: Tensor) -> bool:
        """Take a step's loss, a scalar; tell whether it is time to look at the values."""
        self._waiting.append(loss)
        if len(self._waiting) < self._every:
            return False
        self._send()
        self._receive(self._behind)
        return True

    def finish(self) -> None:
        """Wait for all of them."""
        self._send()
        self._receive(0)

    def total(self) -> Tensor:
        """Return their sum in float32, one after the other."""
        return torch.from_numpy(np.array(self.values, np.float32).cumsum())[-1]

    def _send(self) -> None:
        if self._waiting:
            self._sent.append(Fetched(torch.stack(self._waiting)))
            self._waiting = []

    def _receive(self, behind: int) -> None:
        while len(self._sent) > behind:
            for value in self._sent.popleft().get().tolist():
                if self.first_bad < 0 and not math.isfinite(value):
                    self.first_bad = len(self.values)
                self.values.append(value)


def stop_reason(progress: Progress, train: TrainConfig) -> str:
    """Say why a training that is this far is over; empty if it is not."""
    epochs, budget, patience = train.epochs, train.time_budget, train.patience
    if epochs and progress.epoch >= epochs:
        return f"{epochs} epoch{'s' * (epochs != 1)}"
    if budget and progress.seconds + _validation_time(progress) >= budget and progress.epoch:
        return f"time budget of {budget:g} s"
    if out_of_patience(progress.epoch, progress.best_epoch, patience):
        return f"val/iou has not improved for {patience} epochs"
    return ""


def out_of_patience(epoch: int, best: int, patience: int | None) -> bool:
    """Tell whether so many epochs after the best one, 0 before the first, are enough for `train.patience`."""
    return patience is not None and epoch - max(best, 1) >= patience


def share_done(progress: Progress, train: TrainConfig) -> float:
    """Return the share of a training that is done, in epochs or in seconds, whichever is more."""
    of_epochs = progress.epoch / train.epochs if train.epochs else 0.0
    return min(1.0, max(of_epochs, progress.seconds / train.time_budget if train.time_budget else 0.0))


def _validation_time(progress: Progress) -> float:
    """Seconds that the next validation will take."""
    return median(progress.validation_seconds) if progress.validation_seconds else 0.0


def _seeded(micro_batches: Iterable[Batch], seed: int, epoch: int, step: int, group: int) -> Iterator[Batch]:
    """Yield a process's micro-batches of a step, which are those from `group` on; each has dropout of its own."""
    for part, batch in enumerate(micro_batches):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch, step, group + part]).generate_state(1)[0]))
        yield batch


def _average_statistics(state: TrainState, world: World) -> None:
    """Let all processes have the mean of their BatchNorm statistics, which each has of its own images."""
    norms = [name for name, m in state.model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    own = []
    for model in {id(model): model for model in (state.model, state.scored)}.values():
        modules = dict(model.named_modules())
        own += [b for name in norms for b in modules[name].buffers() if b.is_floating_point()]
    if own:
        mean = world.summed(torch.cat([b.flatten().float() for b in own])) / world.size
        for buffer, part in zip(own, torch.split(mean, [b.numel() for b in own]), strict=True):
            buffer.copy_(part.view_as(buffer))


def _train_mode(model: nn.Module) -> None:
    """Set training mode, but for parts that are frozen: their BatchNorm keeps its statistics."""
    model.train()
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            child.eval()


def _refuse_non_finite(step: int, epoch: int, peak_lr: float, precision: torch.dtype, world: World) -> None:
    if world.any(step >= 0):
        where = f"step {step + 1}" if step >= 0 else "in another process"
        raise _non_finite(epoch, where, peak_lr, precision)


def _non_finite(epoch: int, where: str, peak_lr: float, precision: torch.dtype) -> NonFiniteError:
    likely = f"a learning rate that is too high. Try optim.lr={peak_lr / 10:.1g}"
    if precision == torch.float16:
        likely += ", or train.precision=fp32: fp16 overflows beyond 65504"
    found = f"in epoch {epoch}, {where}, with optim.lr={peak_lr:.3g}"
    return NonFiniteError(f"the loss became NaN or infinite {found}. Most likely {likely}.")


def _peak_memory(device: torch.device) -> float:
    """Bytes: the device's since the epoch began, on a CPU the process's since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
