"""Predictions become counts where they lie; only the counts come to the host."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segsweep.data.labels import VOID

SPREAD = 1 << 16  # bins that a GPU counts in: many threads that add to one bin wait for each other


def pair_counts(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count the (target, prediction) pairs of each of n images of one size, without a wait for the device.

    Args:
        prediction, target: class indices `n ...`, integers; 255 in a target is void.
        classes: two for a binary task.

    Returns:
        `n k*k+2` int64: pairs by target, then by prediction; void pixels; impossible pairs.

    Raises ValueError: other shapes or types.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"shapes differ: prediction {tuple(prediction.shape[1:])}, target {tuple(target.shape[1:])}")
    if prediction.is_floating_point() or target.is_floating_point():
        raise ValueError(f"class indices must be integers, got {prediction.dtype} and {target.dtype}")
    n, bins = len(target), classes * classes + 2
    prediction, target = prediction.flatten(1).long(), target.flatten(1).long()
    pair = torch.where(_possible(prediction, target, classes), target * classes + prediction, bins - 1)
    pair = torch.where(target != VOID, pair, bins - 2)
    pair += bins * torch.arange(n, device=pair.device)[:, None]
    # Elsewhere than on a CPU bincount waits for the device to tell the largest value.
    counts = torch.bincount(pair.flatten(), minlength=n * bins) if pair.device.type == "cpu" else _added(pair, n * bins)
    return counts.view(n, bins)


def _added(pair: Tensor, bins: int) -> Tensor:
    """Count the numbers below `bins` in `n p`, by adding them up in several copies of the bins."""
    copies = max(1, min(pair.shape[1], SPREAD // bins))
    spread = pair + bins * (torch.arange(pair.shape[1], device=pair.device) % copies)
    counts = torch.zeros(copies * bins, dtype=torch.int32, device=pair.device)
    counts.scatter_add_(0, spread.flatten(), counts.new_ones(()).expand(spread.numel()))
    return counts.view(copies, bins).sum(0)


def matrices(counts: Tensor, classes: int) -> NDArray[np.int64]:
    """Return what `pair_counts` counted, now on the host, as confusion matrices `n k k`; targets are in rows.

    Raises ValueError: class indices were out of range.
    """
    if counts[:, -1].any():
        raise ValueError(f"class indices must be in 0..{classes - 1} (or, in targets, {VOID})")
    return counts[:, :-2].reshape(-1, classes, classes).numpy()


def _possible(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    return (target >= 0) & (target < classes) & (prediction >= 0) & (prediction < classes)
