"""All that changes while a model is trained, and is kept to go on."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from segsweep.config.checks import read
from segsweep.training.optim import Average


@dataclass
class Progress:
    """How far a training is."""

    epoch: int = 0  # epochs done
    seconds: float = 0.0  # of training and validation so far, over all resumptions
    best_iou: float = -1.0  # of the best validation so far; -1 before the first
    best_epoch: int = 0  # that it was after; 0 before the first
    validation_seconds: list[float] = field(default_factory=list)


@dataclass
class TrainState:
    """A model in training; with an average of its weights, that is what is scored and kept."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def scored(self) -> nn.Module:
        """The model that is scored and kept."""
        return self.average.model if self.average else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, as tensors, numbers and containers of them."""
        return {**{name: part.state_dict() for name, part in self._parts()}, "progress": asdict(self.progress)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for name, part in self._parts():
            if state[name]:  # a scaler that is switched off gives nothing
                part.load_state_dict(state[name])
        self.progress = read(Progress, state["progress"], "progress")

    def _parts(self) -> Iterator[tuple[str, Any]]:
        yield from {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}.items()
        if self.average:
            yield "average", self.average
