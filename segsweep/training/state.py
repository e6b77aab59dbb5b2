"""All that changes while a model is trained, and is kept to go on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from segsweep.training.optim import Average


@dataclass
class Progress:
    """How far a training is.

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


@dataclass
class TrainState:
    """A model in training.

    Attributes:
        model: trained in place.
        average: of the model's weights; where there is one, it is what is scored and kept.
    """

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
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
        }
        return state | ({"average": self.average.state_dict()} if self.average else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
