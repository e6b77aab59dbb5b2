"""Losses on logits, computed in float32 whatever the autocast, void pixels left out.

One logit is a binary task: its cross-entropy is BCE, its Dice is the foreground's.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy over the pixels that count; BCE with logits for one logit. 0 if none counts.

    Args:
        logits: `b k h w`.
        target: `b h w` int64; 0 or 1 for one logit.
    """
    counted = target != ignore_index
    if logits.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], (target == 1).to(logits.dtype), reduction="none")
        total = (losses * counted).sum()
    else:
        total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / counted.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """One minus the soft Dice coefficient over the batch, the mean over the classes in its targets.

    With squared probabilities in the denominator, as V-Net has it (https://arxiv.org/abs/1606.04797).

    Args:
        logits: `b k h w`; for one logit the foreground alone counts.
        target: `b h w` int64.
    """
    counted = (target != ignore_index)[:, None]
    if logits.shape[1] == 1:
        probability, truth = logits.sigmoid(), (target == 1)[:, None].to(logits.dtype)
    else:
        probability = logits.softmax(dim=1)
        truth = F.one_hot(target.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    probability, truth = probability * counted, truth * counted
    over = (0, 2, 3)
    common, sizes = (probability * truth).sum(over), (probability**2).sum(over) + truth.sum(over)
    present = truth.sum(over) > 0
    losses = 1 - 2 * common / sizes.clamp(min=1e-6)
    return (losses * present).sum() / present.sum().clamp(min=1)


def build(name: str, num_classes: int, dice_weight: float = 0.5) -> Loss:
    """The loss of that name, as a function of logits `b k h w` and target `b h w`.

    Args:
        num_classes: the model's logits, 1 for a binary task.
        dice_weight: share of the Dice term in sums.

    Raises:
        ConfigError: a binary loss for several classes.
    """
    if name.startswith("bce") and num_classes > 1:
        raise ConfigError(f"loss={name}: for binary tasks; these data have {num_classes} classes. Try loss={name[1:]}.")
    weight = {"dice": 1.0, "ce_dice": dice_weight, "bce_dice": dice_weight}.get(name, 0.0)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            total = torch.zeros((), device=logits.device)
            if weight < 1:
                total = total + (1 - weight) * cross_entropy(logits, target)
            if weight > 0:
                total = total + weight * dice(logits, target)
            return total

    return loss
