"""One optimizer step, and how long the device waits for its images."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segsweep import console
from segsweep.data.batches import Batch
from segsweep.engine.casting import AtOnce
from segsweep.engine.device import mark_compiled
from segsweep.engine.execution import Execution, unchanged
from segsweep.engine.losses import FadingLoss, Loss
from segsweep.errors import first_line
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
    kind: str = ""  # under which it is remembered that this was compiled here; empty: it is not
    _called: "_Called | None" = field(default=None, init=False)

    def __call__(self, state: Trained, micro_batches: Iterable[Batch], number: int) -> tuple[Tensor, int]:
        """Take a step over this number of micro-batches; return the loss, a scalar on the device, and how many images.

        The loss is the micro-batches' mean; the gradient is the mean over those of all processes.
        """
        state.optimizer.zero_grad(set_to_none=True)
        parts, images = [], 0
        called = None
        for i, batch in enumerate(micro_batches, 1):
            called = called or self._called_for(state.model, batch)
            with called.at_once.applied(), nullcontext() if i == number else self.world.apart(called.shared):
                part = called.loss(batch.image, batch.mask)
                part = part / number if number > 1 else part
                state.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            parts.append(part.detach())
            images += len(batch.indices)
        if self.grad_clip:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.grad_clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return reduce(torch.add, parts), images

    def advance(self, done: float) -> None:
        """Say which share of the training is done; the weights of a `FadingLoss` follow it."""
        if isinstance(self.loss, FadingLoss):
            self.loss.advance(done)

    def _called_for(self, model: nn.Module, batch: Batch) -> "_Called":
        """What is called in the model's place; where it depends on it, made anew when other parameters train."""
        depends = self.world.size > 1 or self.execution.compile
        trained = [p.requires_grad for p in model.parameters()] if depends else []
        known = self._called
        if known is None or known.model is not model or known.trained != trained:
            known = self._called = self._made(model, trained, batch)
        return known

    def _made(self, model: nn.Module, trained: list[bool], batch: Batch) -> "_Called":
        shared = self.world.shared(model)
        if self.world.size > 1:
            # Each weight's gradient goes to the others as soon as it is there; they would wait for a process whose
            # compiler fails.
            called = self.execution.compiled(shared)
            return _Called(model, trained, shared, self._loss_of(called), AtOnce(None, torch.float32))
        loss = self._loss_of(model)
        compiled = self._tried(model, loss, batch) if self.execution.compile else None
        at_once = AtOnce(None if compiled else model, self.execution.precision)
        return _Called(model, trained, shared, compiled or loss, at_once)

    def _loss_of(self, model: Callable[..., Tensor]) -> Loss:
        """The loss of an image and its mask."""

        def loss(image: Tensor, mask: Tensor) -> Tensor:
            return self.loss(self.execution.forward(model, image), mask)

        return loss

    def _tried(self, model: nn.Module, loss: Loss, batch: Batch) -> Loss | None:
        """Compile it, and run it once; None where that fails."""
        console.note("compiling the training step: minutes, or less if a similar training was compiled here before")
        compiled = self.execution.compiled(loss)
        try:
            with unchanged(model):
                compiled(batch.image, batch.mask).backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            console.note(f"note: torch.compile failed, so this training runs without it: {first_line(error)}")
            return None
        if self.kind:
            mark_compiled(self.kind)
        return compiled


@dataclass(frozen=True)
class _Called:
    """What is called in a model's place."""

    model: nn.Module
    trained: list[bool]  # of its parameters, which are; empty where nothing depends on it
    shared: nn.Module  # by the processes
    loss: Loss  # of an image and its mask, perhaps compiled
    at_once: AtOnce  # of the model, where its layers are called one by one


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
