"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

Schedule = Callable[[float], float]

_FUSED = {"cpu", "cuda"}


def build(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    encoder_lr_scale: float = 1.0,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> Optimizer:
    """An optimizer over the model's parameters.

    `model.encoder` has its own learning rate, `lr * encoder_lr_scale`; at 0 it is frozen. Biases and norms (parameters
    of one dimension) do not decay.

    Args:
        name: adam (with L2 regularisation), adamw (decoupled, https://arxiv.org/abs/1711.05101) or sgd (Nesterov).
        momentum: SGD's momentum, Adam's first beta.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        of_encoder = key.startswith("encoder.")
        if of_encoder and encoder_lr_scale == 0:
            parameter.requires_grad_(False)
            continue
        groups.setdefault((of_encoder, parameter.ndim > 1), []).append(parameter)
    rows: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": lr * (encoder_lr_scale if of_encoder else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (of_encoder, decays), parameters in groups.items()
    ]
    for row in rows:
        row["peak_lr"] = row["lr"]
    fused = next(model.parameters()).device.type in _FUSED
    if name == "sgd":
        return SGD(rows, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    kind = {"adam": Adam, "adamw": AdamW}[name]
    return kind(rows, lr=lr, betas=(momentum, 0.999), fused=fused)


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Set every group to `factor` of its peak learning rate; return the last group's: the decoder's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[-1]["lr"])


def schedule(name: str, warmup: float = 0.0) -> Schedule:
    """A learning rate, as a multiple of the peak, by the share of the training that is done.

    cosine: linear warm-up, then half a cosine to 0 (https://arxiv.org/abs/1608.03983). onecycle: a cosine from 1/25 up
    over the first 30 percent, then down to 1/10000 (https://arxiv.org/abs/1708.07120; momentum stays). constant: linear
    warm-up, then 1.

    Args:
        warmup: share of the training over which cosine and constant rise from 1/100.
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


def gradient_norm(model: nn.Module, largest: float) -> torch.Tensor:
    """Scale the gradients down to this norm if they are longer; 0 only measures."""
    return nn.utils.clip_grad_norm_(
        [p for p in model.parameters() if p.grad is not None], largest or math.inf, error_if_nonfinite=False
    )
