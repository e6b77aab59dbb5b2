"""Losses on logits `b k h w` and targets `b h w` int64, computed in float32 whatever the autocast, void left out.

One logit is a binary task: its cross-entropy is BCE, its region losses (Dice, Jaccard, Lovász) are the foreground's.
Region losses are over the batch, and the mean over the classes in its targets.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.data.labels import VOID
from segsweep.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
Term = Callable[..., Tensor]  # a loss that may take more
LARGEST_WEIGHT = 100.0  # of a class, where weights are found by themselves: a few pixels do not rule a batch


def cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy over the pixels that count; BCE with logits for one logit. 0 if none counts.

    Args:
        weights: of the classes, `k` or, for one logit, 2; the mean is weighted with them, too.
        label_smoothing: share of each target that is spread evenly over all classes, two for one logit
            (https://arxiv.org/abs/1512.00567).
        gamma: as for `focal`; 0 leaves the cross-entropy as it is.
    """
    counted = target != VOID
    truth = target.where(counted, 0)
    if logits.shape[1] == 1:
        hard = (truth == 1).to(logits.dtype)
        soft = hard * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else hard
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], soft, reduction="none")
    else:
        losses = F.cross_entropy(logits, truth, reduction="none", label_smoothing=label_smoothing)
    if gamma:
        losses = (1 - torch.exp(-losses)).clamp(min=0) ** gamma * losses
    share = counted.to(logits.dtype) if weights is None else weights.to(logits)[truth] * counted
    return (losses * share).sum() / share.sum().clamp(min=1e-6)


def focal(logits: Tensor, target: Tensor, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Return cross-entropy times (1 - p)^gamma, p the right class's probability (https://arxiv.org/abs/1708.02002).

    The mean is weighted with the classes' `weights`, not with (1 - p)^gamma.
    """
    return cross_entropy(logits, target, weights, gamma=gamma)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return one minus the soft Dice coefficient, with squares in the denominator (https://arxiv.org/abs/1606.04797)."""
    probability, truth = _regions(logits, target)
    common, sizes = (probability * truth).sum(1), (probability**2).sum(1) + truth.sum(1)
    return _mean_of_present(1 - 2 * common / sizes.clamp(min=1e-6), truth)


def jaccard(logits: Tensor, target: Tensor) -> Tensor:
    """Return one minus the soft intersection over union.

    Rahman and Wang, "Optimizing intersection-over-union in deep neural networks for image segmentation", 2016.
    """
    probability, truth = _regions(logits, target)
    common = (probability * truth).sum(1)
    union = probability.sum(1) + truth.sum(1) - common
    return _mean_of_present(1 - common / union.clamp(min=1e-6), truth)


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Lovász extension of the Jaccard loss (https://arxiv.org/abs/1705.08790), on sigmoid or softmax."""
    probability, truth = _regions(logits, target)
    errors, order = (probability - truth).abs().sort(dim=1, descending=True)  # void pixels have none: they come last
    sorted_truth = truth.gather(1, order)
    total = sorted_truth.sum(1, keepdim=True)
    common = total - sorted_truth.cumsum(1)
    union = total + (1 - sorted_truth).cumsum(1)
    steps = 1 - common / union
    gradient = torch.cat([steps[:, :1], steps[:, 1:] - steps[:, :-1]], dim=1)
    return _mean_of_present((errors * gradient).sum(1), truth)


def _regions(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and truths, a row for each class (one logit: the foreground): `k n`; 0 where void."""
    counted = (target != VOID)[:, None]
    if logits.shape[1] == 1:
        probability, truth = logits.sigmoid(), (target == 1)[:, None]
    else:
        probability = logits.softmax(dim=1)
        truth = F.one_hot(target.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1)
    return (probability * counted).movedim(1, 0).flatten(1), (truth * counted).to(logits.dtype).movedim(1, 0).flatten(1)


def _mean_of_present(losses: Tensor, truth: Tensor) -> Tensor:
    present = truth.sum(1) > 0
    return (losses * present).sum() / present.sum().clamp(min=1)


TERMS: dict[str, Term] = {"ce": cross_entropy, "dice": dice, "jaccard": jaccard, "lovasz": lovasz, "focal": focal}


def build(
    terms: Mapping[str, float], weights: Sequence[float] | None = None, gamma: float = 2.0, label_smoothing: float = 0.0
) -> Loss:
    """Make a weighted sum of terms.

    Args:
        terms: weight by the name in `TERMS`; 0 leaves one out.
        weights: of the classes, for ce and focal; `gamma` is focal's, `label_smoothing` is ce's.

    Raises ConfigError: all terms are 0.
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
    """Return weights of the classes, None where all count the same.

    Args:
        names, pixels: of each class; pixels in the training split.
        given: the weights, or "auto": median frequency balancing, the median share of a class over the class's own
            (https://arxiv.org/abs/1411.4734), up to `LARGEST_WEIGHT`; classes without a pixel get 1.
        pos_weight: two classes: of the foreground, the background having 1; "auto": background over foreground.

    Raises ConfigError: a weight too few or too many, or a pos_weight for several classes.
    """
    if pos_weight is not None:
        if len(names) != 2:
            told = f"for two classes; these data have {len(names)}. Try loss.class_weights=auto."
            raise ConfigError(f"loss.pos_weight={pos_weight}: {told}")
        weight = pixels[0] / max(pixels[1], 1) if pos_weight == "auto" else float(pos_weight)
        return [1.0, min(weight, LARGEST_WEIGHT) if pos_weight == "auto" else weight]
    if given is None:
        return None
    if isinstance(given, str):
        present = sorted(n for n in pixels if n)
        median = (present[(len(present) - 1) // 2] + present[len(present) // 2]) / 2
        return [min(median / n, LARGEST_WEIGHT) if n else 1.0 for n in pixels]
    if len(given) != len(names):
        told = f"must be one for each of the {len(names)} classes, {', '.join(names)}."
        raise ConfigError(f"loss.class_weights={list(given)}: {told}")
    return [float(weight) for weight in given]
