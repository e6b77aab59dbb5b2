"""Losses on logits `b k h w` and targets `b h w` int64, computed in float32 whatever the autocast, void left out.

One logit is a binary task: its cross-entropy is BCE, its region losses (Dice, Jaccard, Lovász) are the foreground's.
Region losses are over the batch, and the mean over the classes in its targets.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.data.labels import VOID
from segsweep.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
Term = Callable[..., Tensor]  # a loss of `Pixels` that may take more
LARGEST_WEIGHT = 100.0  # of a class, where weights are found by themselves: a few pixels do not rule a batch


class Pixels:
    """Logits `b k h w` float32 and targets `b h w`, and what several losses ask of them, computed once."""

    def __init__(self, logits: Tensor, target: Tensor):
        self.logits, self.target = logits, target
        self.binary = logits.shape[1] == 1
        self.counted = target != VOID
        """Where a pixel counts, `b h w` bool."""
        self.share = self.counted.to(logits.dtype)
        """1 where a pixel counts, else 0, `b h w`."""
        # Not `cached_property`: before Python 3.12 it has a lock, which torch.compile cannot follow.
        self._probability: Tensor | None = None
        self._truth: Tensor | None = None
        self._truths: Tensor | None = None

    @property
    def probability(self) -> Tensor:
        """Of each class (one logit: of the foreground), a row for each: `k n`; 0 where void."""
        if self._probability is None:
            found = self.logits.sigmoid() if self.binary else self.logits.softmax(dim=1)
            self._probability = (found * self.share[:, None]).movedim(1, 0).flatten(1)
        return self._probability

    @property
    def truth(self) -> Tensor:
        """1 where a pixel is of a class (one logit: of the foreground), else 0, as `probability`; void is of none."""
        if self._truth is None:
            if self.binary:
                truth = (self.target == 1)[None]
            else:
                classes = torch.arange(self.logits.shape[1], device=self.target.device)
                truth = self.target == classes[:, None, None, None]
            self._truth = truth.to(self.logits.dtype).flatten(1)
        return self._truth

    @property
    def truths(self) -> Tensor:
        """Pixels of each class in the targets, `k`."""
        if self._truths is None:
            self._truths = self.truth.sum(1)
        return self._truths

    def mean_of_present(self, losses: Tensor) -> Tensor:
        """Return the mean of the classes' losses `k` over those in the targets."""
        present = self.truths > 0
        if len(losses) == 1:  # the same in fewer calls
            return (losses * present).view(())
        return (losses * present).sum() / present.sum().clamp(min=1)


def cross_entropy(
    pixels: Pixels, weights: Tensor | None = None, label_smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy over the pixels that count; BCE with logits for one logit. 0 if none counts.

    Args:
        weights: of the classes, `k` or, for one logit, 2; the mean is weighted with them, too.
        label_smoothing: share of each target that is spread evenly over all classes, two for one logit
            (https://arxiv.org/abs/1512.00567).
        gamma: as for `focal`; 0 leaves the cross-entropy as it is.
    """
    if pixels.binary:
        hard = pixels.truth.view_as(pixels.target)
        soft = hard * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else hard
        losses = F.binary_cross_entropy_with_logits(pixels.logits[:, 0], soft, reduction="none")
    else:
        losses = F.cross_entropy(
            pixels.logits, pixels.target, ignore_index=VOID, reduction="none", label_smoothing=label_smoothing
        )
    if gamma:
        losses = (1 - torch.exp(-losses)).clamp(min=0) ** gamma * losses
    share = pixels.share
    if weights is not None:
        share = weights.to(pixels.logits)[pixels.target.where(pixels.counted, 0)] * pixels.counted
    return (losses * share).sum() / share.sum().clamp(min=1e-6)


def focal(pixels: Pixels, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Return cross-entropy times (1 - p)^gamma, p the right class's probability (https://arxiv.org/abs/1708.02002).

    The mean is weighted with the classes' `weights`, not with (1 - p)^gamma.
    """
    return cross_entropy(pixels, weights, gamma=gamma)


def dice(pixels: Pixels) -> Tensor:
    """Return one minus the soft Dice coefficient, with squares in the denominator (https://arxiv.org/abs/1606.04797)."""
    probability = pixels.probability
    common, sizes = (probability * pixels.truth).sum(1), (probability**2).sum(1) + pixels.truths
    return pixels.mean_of_present(1 - 2 * common / sizes.clamp(min=1e-6))


def jaccard(pixels: Pixels) -> Tensor:
    """Return one minus the soft intersection over union.

    Rahman and Wang, "Optimizing intersection-over-union in deep neural networks for image segmentation", 2016.
    """
    common = (pixels.probability * pixels.truth).sum(1)
    union = pixels.probability.sum(1) + pixels.truths - common
    return pixels.mean_of_present(1 - common / union.clamp(min=1e-6))


def lovasz(pixels: Pixels) -> Tensor:
    """Return the Lovász extension of the Jaccard loss (https://arxiv.org/abs/1705.08790), on sigmoid or softmax."""
    errors, order = (pixels.probability - pixels.truth).abs().sort(dim=1, descending=True)  # void has none: it is last
    sorted_truth = pixels.truth.gather(1, order)
    total = pixels.truths[:, None]
    common = total - sorted_truth.cumsum(1)
    union = total + (1 - sorted_truth).cumsum(1)
    steps = 1 - common / union
    gradient = torch.cat([steps[:, :1], steps[:, 1:] - steps[:, :-1]], dim=1)
    return pixels.mean_of_present((errors * gradient).sum(1))


TERMS: dict[str, Term] = {"ce": cross_entropy, "dice": dice, "jaccard": jaccard, "lovasz": lovasz, "focal": focal}


def build(
    terms: Mapping[str, float],
    weights: Sequence[float] | Tensor | None = None,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    device: torch.device | None = None,
) -> Loss:
    """Make a weighted sum of terms.

    Args:
        terms: weight by the name in `TERMS`; 0 leaves one out.
        weights: of the classes, for ce and focal; `gamma` is focal's, `label_smoothing` is ce's. A tensor `k` float32
            on the device may change later.
        device: where logits will be; elsewhere the weights are copied there, and waited for, at each call.

    Raises ConfigError: all terms are 0.
    """
    if not any(terms.values()):
        raise ConfigError(f"loss: every weight is 0. Set one of {', '.join(f'loss.{name}' for name in terms)}.")
    of_classes = None if weights is None else torch.as_tensor(weights, dtype=torch.float32, device=device)
    arguments: dict[str, dict[str, object]] = {
        "ce": {"weights": of_classes, "label_smoothing": label_smoothing},
        "focal": {"weights": of_classes, "gamma": gamma},
    }
    used = {name: weight for name, weight in terms.items() if weight}

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            pixels = Pixels(logits.float(), target)
            parts = [w * TERMS[name](pixels, **arguments.get(name, {})) for name, w in used.items()]
            return reduce(torch.add, parts)

    return loss


class FadingLoss:
    """A loss whose class weights become equal in the course of a training.

    The weights are the first ones to the power of the share that is left: rare classes are learnt early, and common
    ones are not given up for them in the end.
    """

    def __init__(
        self,
        terms: Mapping[str, float],
        weights: Sequence[float],
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        device: torch.device | None = None,
    ):
        self._first = torch.tensor(weights, dtype=torch.float32, device=device)
        self._now = self._first.clone()  # one tensor for good: a compiled loss reads it
        self._loss = build(terms, self._now, gamma, label_smoothing, device)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return self._loss(logits, target)

    def advance(self, done: float) -> None:
        """Set the weights to what they are when this share of the training is done."""
        torch.pow(self._first, 1 - done, out=self._now)


def class_weights(
    names: Sequence[str], pixels: Sequence[int], given: str | Sequence[float] | None, pos_weight: str | float | None
) -> list[float] | None:
    """Return weights of the classes, None where all count the same.

    Args:
        names, pixels: of each class; pixels in the training split.
        given: the weights, or "auto": median frequency balancing, the median share of a class over the class's own
            (https://arxiv.org/abs/1411.4734), up to `LARGEST_WEIGHT`; classes without a pixel get 1. "fading": the
            same, as those that a `FadingLoss` begins with.
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
