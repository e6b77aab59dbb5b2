"""Optimizers and learning-rate schedules by name."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from segsweep.config.schema import OptimConfig

Schedule = Callable[[float], float]


def build(config: OptimConfig, model: nn.Module, layers: Mapping[str, int] | None = None) -> Optimizer:
    """Make an optimizer over the model's parameters; `config` says no `auto`.

    `model.encoder` has its own learning rate; at `encoder_lr_scale=0` it is frozen. Biases and norms (parameters of one
    dimension) do not decay. Adam has L2 regularisation, AdamW decoupled decay (https://arxiv.org/abs/1711.05101), SGD
    is Nesterov's; `layer_decay` is BEiT's (https://arxiv.org/abs/2106.08254).

    Args:
        layers: of the encoder's parameters by name, from 0, nearest to the image; needed where layer_decay is not 1.
    """
    layers = layers or {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        of_encoder = key.startswith("encoder.")
        if of_encoder and config.encoder_lr_scale == 0:
            parameter.requires_grad_(False)
            continue
        scale = 1.0
        if of_encoder:
            depth = last - layers[key] if config.layer_decay != 1 else 0
            scale = config.encoder_lr_scale * config.layer_decay**depth
        groups.setdefault((of_encoder, scale, parameter.ndim > 1), []).append(parameter)
    rows: list[dict[str, Any]] = []
    for (of_encoder, scale, decays), parameters in groups.items():
        lr, decay = config.lr * scale, config.weight_decay if decays else 0.0
        rows.append({"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": decay, "of_encoder": of_encoder})
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    momentum = config.momentum
    if config.name == "sgd":
        return SGD(rows, lr=config.lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    kind: type[Adam] = {"adam": Adam, "adamw": AdamW}[config.name]
    return kind(rows, lr=config.lr, betas=(momentum, 0.999), fused=fused)


def freeze(optimizer: Optimizer, frozen: bool) -> None:
    """Freeze the encoder's parameters (no gradient), or unfreeze them."""
    for group in optimizer.param_groups:
        if group["of_encoder"]:
            for parameter in group["params"]:
                parameter.requires_grad_(not frozen)


class Average:
    """A running average of a model's weights and statistics, which often scores better than the last step's.

    Polyak and Juditsky 1992. The decay rises with the steps, min(decay, (1 + n) / (10 + n)), so that a short training's
    average is not made of its first weights. `model` is in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0
        self._of: nn.Module | None = None  # whose tensors these are
        self._floats: list[list[Tensor]] = []  # the average's, and that model's
        self._counts: list[list[Tensor]] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        if self._of is not model:  # to look all of them up at each step takes longer than to launch the two calls
            own, new = self.model.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
            floats = [name for name, tensor in own.items() if tensor.is_floating_point()]
            counts = list(own.keys() - set(floats))
            self._floats = [[tensors[name] for name in floats] for tensors in (own, new)]
            self._counts = [[tensors[name] for name in counts] for tensors in (own, new)]
            self._of = model
        torch._foreach_lerp_(self._floats[0], self._floats[1], 1 - decay)
        if self._counts[0]:
            torch._foreach_copy_(self._counts[0], self._counts[1])

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Set every group to `factor` of its peak learning rate; return the last group's: the decoder's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[-1]["lr"])


def schedule(name: str, warmup: float = 0.0) -> Schedule:
    """Return the learning rate, as a multiple of the peak, by the share of the training that is done.

    cosine: linear warm-up from 1/100, then half a cosine to 0 (https://arxiv.org/abs/1608.03983). onecycle: a cosine
    from 1/25 up over the first 30 percent, then down to 1/10000 (https://arxiv.org/abs/1708.07120; momentum stays).
    constant: linear warm-up, then 1. `warmup` is the share of the training that the warm-up takes.
    """

    def rise(done: float) -> float:
        return 1.0 if done >= warmup else 0.01 + 0.99 * done / warmup

    def cosine(done: float) -> float:
        return rise(done) if done < warmup else _half_cosine(1.0, 0.0, (done - warmup) / (1 - warmup))

    def onecycle(done: float) -> float:
        return _half_cosine(1 / 25, 1.0, done / 0.3) if done < 0.3 else _half_cosine(1.0, 1e-4, (done - 0.3) / 0.7)

    return {"cosine": cosine, "onecycle": onecycle, "constant": rise}[name]


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
