"""Losses on logits, computed in float32 whatever the autocast, void pixels left out.

One logit is a binary task: its cross-entropy is BCE, its region losses (Dice, Jaccard, Lovász) are the foreground's.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
LARGEST_WEIGHT = 100.0  # of a class, where weights are found by themselves: a few pixels do not rule a batch


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy over the pixels that count; BCE with logits for one logit. 0 if none counts.

    Args:
        logits: `b k h w`.
        target: `b h w` int64; 0 or 1 for one logit.
        weights: of the classes, `k` or, for one logit, 2; the mean is weighted with them, too.
        label_smoothing: share of each target that is spread evenly over all classes, two for one logit
            (https://arxiv.org/abs/1512.00567).
    """
    losses, share = _by_pixel(logits, target, ignore_index, weights, label_smoothing)
    return _weighted_mean(losses, share)


def focal(
    logits: Tensor, target: Tensor, ignore_index: int = 255, weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, p the probability of the right class (https://arxiv.org/abs/1708.02002).

    Args:
        logits, target, weights: as for `cross_entropy`; the mean is not weighted with (1 - p)^gamma.
        gamma: 0 is the cross-entropy.
    """
    losses, share = _by_pixel(logits, target, ignore_index, weights)
    if gamma:
        losses = (1 - torch.exp(-losses)).clamp(min=0) ** gamma * losses
    return _weighted_mean(losses, share)


def _by_pixel(
    logits: Tensor, target: Tensor, ignore_index: int, weights: Tensor | None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each pixel and how much it counts, `b h w` both."""
    counted = target != ignore_index
    truth = target.where(counted, 0)
    if logits.shape[1] == 1:
        hard = (truth == 1).to(logits.dtype)
        soft = hard * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else hard
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], soft, reduction="none")
    else:
        losses = F.cross_entropy(logits, truth, reduction="none", label_smoothing=label_smoothing)
    return losses, counted.to(logits.dtype) if weights is None else weights.to(logits)[truth] * counted


def _weighted_mean(losses: Tensor, share: Tensor) -> Tensor:
    return (losses * share).sum() / share.sum().clamp(min=1e-6)


def dice(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """One minus the soft Dice coefficient over the batch, the mean over the classes in its targets.

    With squared probabilities in the denominator, as V-Net has it (https://arxiv.org/abs/1606.04797).

    Args:
        logits: `b k h w`; for one logit the foreground alone counts.
        target: `b h w` int64.
    """
    probability, truth = _regions(logits, target, ignore_index)
    common, sizes = (probability * truth).sum(1), (probability**2).sum(1) + truth.sum(1)
    return _mean_of_present(1 - 2 * common / sizes.clamp(min=1e-6), truth)


def jaccard(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """One minus the soft intersection over union over the batch, the mean over the classes in its targets.

    Rahman and Wang, "Optimizing intersection-over-union in deep neural networks for image segmentation", 2016.

    Args:
        logits, target: as for `dice`.
    """
    probability, truth = _regions(logits, target, ignore_index)
    common = (probability * truth).sum(1)
    union = probability.sum(1) + truth.sum(1) - common
    return _mean_of_present(1 - common / union.clamp(min=1e-6), truth)


def lovasz(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """The Lovász extension of the Jaccard loss, over the batch, the mean over the classes in its targets.

    Lovász-softmax (https://arxiv.org/abs/1705.08790); for one logit on the sigmoid, of the foreground alone.

    Args:
        logits, target: as for `dice`.
    """
    probability, truth = _regions(logits, target, ignore_index)
    errors, order = (probability - truth).abs().sort(dim=1, descending=True)  # void pixels have none: they come last
    sorted_truth = truth.gather(1, order)
    total = sorted_truth.sum(1, keepdim=True)
    common = total - sorted_truth.cumsum(1)
    union = total + (1 - sorted_truth).cumsum(1)
    steps = 1 - common / union
    gradient = torch.cat([steps[:, :1], steps[:, 1:] - steps[:, :-1]], dim=1)
    return _mean_of_present((errors * gradient).sum(1), truth)


def _regions(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Probabilities and truths, a row for each class (one logit: the foreground): `k n`; 0 where void."""
    counted = (target != ignore_index)[:, None]
    if logits.shape[1] == 1:
        probability, truth = logits.sigmoid(), (target == 1)[:, None]
    else:
        probability = logits.softmax(dim=1)
        truth = F.one_hot(target.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1)
    return (probability * counted).movedim(1, 0).flatten(1), (truth * counted).to(logits.dtype).movedim(1, 0).flatten(1)


def _mean_of_present(losses: Tensor, truth: Tensor) -> Tensor:
    present = truth.sum(1) > 0
    return (losses * present).sum() / present.sum().clamp(min=1)


TERMS: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "dice": dice,
    "jaccard": jaccard,
    "lovasz": lovasz,
    "focal": focal,
}


def build(
    terms: Mapping[str, float],
    weights: Sequence[float] | None = None,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
) -> Loss:
    """A weighted sum of terms, as a function of logits `b k h w` and target `b h w`.

    Args:
        terms: weight by the name in `TERMS`; 0 leaves one out.
        weights: of the classes, for ce and focal.
        gamma: of focal.
        label_smoothing: of ce.

    Raises:
        ConfigError: all terms are 0.
    """
    if not any(terms.values()):
        raise ConfigError(f"loss: every weight is 0. Set one of {', '.join(f'loss.{name}' for name in terms)}.")
    of_classes = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    arguments: dict[str, dict[str, object]] = {
        "ce": {"weights": of_classes, "label_smoothing": label_smoothing},
        "focal": {"weights": of_classes, "gamma": gamma},
    }
    used = {name: weight for name, weight in terms.items() if weight}

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            parts = [w * TERMS[name](logits, target, **arguments.get(name, {})) for name, w in used.items()]
            return torch.stack(parts).sum()

    return loss


def class_weights(
    names: Sequence[str], pixels: Sequence[int], given: str | Sequence[float] | None, pos_weight: str | float | None
) -> list[float] | None:
    """Weights of the classes, None where all count the same.

    Args:
        names: of the classes.
        pixels: of each class in the training split.
        given: the weights, or "auto": median frequency balancing, the median share of a class over the class's own
            (https://arxiv.org/abs/1411.4734), up to `LARGEST_WEIGHT`; classes without a pixel get 1.
        pos_weight: two classes: of the foreground, the background having 1; "auto": background over foreground.

    Raises:
        ConfigError: a weight too few or too many, or a pos_weight for several classes.
    """
    if pos_weight is not None:
        if len(names) != 2:
            raise ConfigError(
                f"loss.pos_weight={pos_weight}: for two classes; these data have {len(names)}. "
                "Try loss.class_weights=auto."
            )
        weight = pixels[0] / max(pixels[1], 1) if pos_weight == "auto" else float(pos_weight)
        return [1.0, min(weight, LARGEST_WEIGHT) if pos_weight == "auto" else weight]
    if given is None:
        return None
    if isinstance(given, str):
        present = sorted(n for n in pixels if n)
        median = (present[(len(present) - 1) // 2] + present[len(present) // 2]) / 2
        return [min(median / n, LARGEST_WEIGHT) if n else 1.0 for n in pixels]
    if len(given) != len(names):
        raise ConfigError(
            f"loss.class_weights={list(given)}: must be one for each of the {len(names)} classes, {', '.join(names)}."
        )
    return [float(weight) for weight in given]
