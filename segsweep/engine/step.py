"""One optimizer step, and how long the device waits for its images."""

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segsweep.data.batches import Batch
from segsweep.engine.casting import AtOnce
from segsweep.engine.execution import Execution
from segsweep.engine.losses import Loss
from segsweep.world import SINGLE, World


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
    world: World = SINGLE  # the processes that take it together, each on micro-batches of its own
    _called: "_Called | None" = field(default=None, init=False)

    def __call__(self, state: Trained, micro_batches: Iterable[Batch], number: int) -> tuple[Tensor, int]:
        """Take a step over this number of micro-batches; return the loss, a scalar on the device, and how many images.

        The loss is the micro-batches' mean; the gradient is the mean over those of all processes.
        """
        state.optimizer.zero_grad(set_to_none=True)
        parts, images = [], 0
        called = self._called_for(state.model)
        for i, batch in enumerate(micro_batches, 1):
            with called.at_once.applied(), nullcontext() if i == number else self.world.apart(called.shared):
                part = self.loss(self.execution.forward(called.compiled, batch.image), batch.mask)
                part = part / number if number > 1 else part
                state.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            parts.append(part.detach())
            images += len(batch.indices)
        if self.grad_clip:
            state.scaler.unscale_(state.optimizer)
            clip_gradients(state.model, self.grad_clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return reduce(torch.add, parts), images

    def _called_for(self, model: nn.Module) -> "_Called":
        """What is called in the model's place; made once, by several processes anew where other parameters train."""
        trained = [p.requires_grad for p in model.parameters()] if self.world.size > 1 else []
        known = self._called
        if known is None or known.model is not model or known.trained != trained:
            shared = self.world.shared(model)
            compiled = self.execution.compiled(shared)
            # What is compiled has its casts joined anyway; of several processes each weight's gradient goes to the
            # others as soon as it is there.
            layer_by_layer = self.execution.compile or self.world.size > 1
            at_once = AtOnce(nn.Identity() if layer_by_layer else model, self.execution.precision)
            known = self._called = _Called(model, trained, shared, compiled, at_once)
        return known


@dataclass(frozen=True)
class _Called:
    """What is called in a model's place: shared by the processes, then compiled."""

    model: nn.Module
    trained: list[bool]  # of its parameters, which are; empty with one process
    shared: nn.Module
    compiled: nn.Module
    at_once: AtOnce  # of the model, where its layers are called one by one


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
