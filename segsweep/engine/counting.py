"""Predictions become counts where they lie; only the counts come to the host."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segsweep.data.labels import VOID


def confusion_matrices(predictions: Sequence[Tensor], targets: Sequence[Tensor], classes: int) -> NDArray[np.int64]:
    """Count the (target, prediction) pairs of each image, with a single wait for the device.

    Args:
        predictions, targets: class indices of each image, integers of any one shape; 255 in a target is void.
        classes: two for a binary task.

    Returns:
        `n k k`, targets in rows, predictions in columns; void pixels are nowhere.

    Raises ValueError: other shapes or types, or class indices out of range.
    """
    bins = classes * classes + 2  # void and impossible pairs go to bins of their own
    found = []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        if prediction.shape != target.shape:
            raise ValueError(f"shapes differ: prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
        if prediction.is_floating_point() or target.is_floating_point():
            raise ValueError(f"class indices must be integers, got {prediction.dtype} and {target.dtype}")
        pair = target.long() * classes + prediction.long()
        pair = torch.where(_possible(prediction, target, classes), pair, bins - 1)
        found.append((torch.where(target != VOID, pair, bins - 2) + i * bins).flatten())
    counts = torch.bincount(torch.cat(found), minlength=len(found) * bins).cpu().view(-1, bins).numpy()
    if counts[:, -1].any():
        wrong = counts[:, -1].nonzero()[0][0]
        prediction, target = predictions[wrong], targets[wrong]
        outside = (target != VOID) & ~_possible(prediction, target, classes)
        raise ValueError(
            f"class indices must be in 0..{classes - 1} (or, in targets, {VOID}); got target "
            f"{int(target[outside][0])} with prediction {int(prediction[outside][0])}"
        )
    return counts[:, :-2].reshape(-1, classes, classes)


def _possible(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    return (target >= 0) & (target < classes) & (prediction >= 0) & (prediction < classes)
