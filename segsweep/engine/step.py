"""One optimizer step, and how long the device waits for its images."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segsweep.data.batches import Batch
from segsweep.engine.execution import Execution
from segsweep.engine.losses import Loss


class Trained(Protocol):
    """What a step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass
class TrainStep:
    """Forward and backward passes over a batch's micro-batches, and one move of the optimizer."""

    execution: Execution
    loss: Loss  # of logits `b k h w` and targets `b h w`
    grad_clip: float = 0.0  # largest norm of the gradient; 0 does not clip
    _compiled: tuple[nn.Module, nn.Module] | None = field(default=None, init=False)

    def __call__(self, state: Trained, micro_batches: Iterable[Batch], number: int) -> tuple[Tensor, int]:
        """Take a step over this number of micro-batches; return the loss, a scalar on the device, and how many images.

        The loss is the micro-batches' mean.
        """
        state.optimizer.zero_grad(set_to_none=True)
        total, images = torch.zeros((), device=next(state.model.parameters()).device), 0
        model = self._called(state.model)
        for batch in micro_batches:
            part = self.loss(self.execution.forward(model, batch.image), batch.mask) / number
            state.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            total += part.detach()
            images += len(batch.indices)
        if self.grad_clip:
            state.scaler.unscale_(state.optimizer)
            clip_gradients(state.model, self.grad_clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return total, images

    def _called(self, model: nn.Module) -> nn.Module:
        """What is called in the model's place, compiled once."""
        if self._compiled is None or self._compiled[0] is not model:
            self._compiled = model, self.execution.compiled(model)
        return self._compiled[1]


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale the gradients down to this norm if they are longer, and return the norm that they had."""
    gradients = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(gradients, largest, error_if_nonfinite=False)


class DataStallTimer:
    """How long the device has nothing to train on, or is busy with making it.

    On a GPU by events in its own stream: from the end of one step's work to the batch being ready. No step waits for
    the answer.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.host = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items; the time that each takes to come counts."""
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
        """Return the time so far; on a GPU this waits for it."""
        if not self.on_gpu:
            return self.host
        torch.cuda.synchronize()
        return float(sum(before.elapsed_time(after) for before, after in self.events)) / 1000

    def _event(self) -> torch.cuda.Event | None:
        if not self.on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
