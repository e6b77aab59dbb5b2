"""Scores, all from one confusion matrix.

Absent classes are NaN and left out of means; void pixels never count.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts of (target, prediction) pairs.

    Args:
        num_classes: two for a binary task.
        ignore_index: target value of pixels that do not count.

    Attributes:
        matrix: int64 `num_classes num_classes`, targets in rows, predictions in columns; on the CPU.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Add predictions and targets, int64 `b h w` each (or any one shape), and return these pixels' own matrix.

        Raises:
            ValueError: other shapes or types, or class indices out of range.
        """
        return self.update_each([prediction], [target])[0]

    def update_each(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The same for several images, of any sizes, with a single wait for the device; the matrices are `n k k`."""
        k = self.num_classes
        bins = k * k + 2  # void and impossible pairs go to bins of their own
        found = []
        for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            if prediction.shape != target.shape:
                raise ValueError(f"shapes differ: prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
            if prediction.is_floating_point() or target.is_floating_point():
                raise ValueError(f"class indices must be integers, got {prediction.dtype} and {target.dtype}")
            possible = (target >= 0) & (target < k) & (prediction >= 0) & (prediction < k)
            pair = torch.where(possible, target.long() * k + prediction.long(), k * k + 1)
            found.append((torch.where(target != self.ignore_index, pair, k * k) + i * bins).flatten())
        counts = torch.bincount(torch.cat(found), minlength=len(found) * bins).cpu().view(-1, bins)
        if counts[:, -1].any():
            wrong = int(counts[:, -1].nonzero()[0])
            prediction, target = predictions[wrong], targets[wrong]
            outside = (target != self.ignore_index) & (
                (target < 0) | (target >= k) | (prediction < 0) | (prediction >= k)
            )
            raise ValueError(
                f"class indices must be in 0..{k - 1} (or, in targets, {self.ignore_index}); got target "
                f"{int(target[outside][0])} with prediction {int(prediction[outside][0])}"
            )
        added = counts[:, :-2].reshape(-1, k, k)
        self.matrix += added.sum(0)
        return added

    def iou(self) -> Tensor:
        """Intersection over union (Jaccard) of each class, float64 `num_classes`; NaN where it is in no target."""
        return self._where_present(_iou(self.matrix))

    def dice(self) -> Tensor:
        """Dice coefficient (F1) of each class, float64 `num_classes`; NaN where a class is in no target."""
        hits = self.matrix.diag().double()
        return self._where_present(2 * hits / (self.matrix.sum(0) + self.matrix.sum(1)))

    def accuracy(self) -> float:
        """Share of the pixels that are right; NaN without pixels."""
        return float(self.matrix.diag().sum().double() / self.matrix.sum())

    def _where_present(self, scores: Tensor) -> Tensor:
        return torch.where(self.matrix.sum(1) > 0, scores, math.nan)


def scores(pooled: ConfusionMatrix, images: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
    """Every score of a split by name, without the split's prefix.

    `iou` and `dice` are the foreground's for two classes, else the mean over the classes in the split's targets,
    background included. `iou_fg` leaves the first class out. `iou_micro` pools the pixels of all classes. `iou_image`
    is the mean over images of each image's own IoU (empty target: NaN if nothing was predicted, else 0).

    Args:
        pooled: over the whole split.
        images: the matrix of each image, `k k`.
        names: of the classes.
    """
    iou, dice = pooled.iou(), pooled.dice()
    binary = pooled.num_classes == 2
    matrix = pooled.matrix.double()
    hits = matrix.diag().sum()
    of_images = torch.stack([_iou(m) for m in images]) if images else torch.full((1, pooled.num_classes), math.nan)
    return {
        "iou": float(iou[1] if binary else iou.nanmean()),
        "iou_fg": float(iou[1:].nanmean()),
        "iou_micro": float(hits / (2 * matrix.sum() - hits)),
        "iou_image": float((of_images[:, 1] if binary else of_images.nanmean(1)).nanmean()),
        "dice": float(dice[1] if binary else dice.nanmean()),
        "accuracy": pooled.accuracy(),
        **{f"iou/{name}": float(score) for name, score in zip(names, iou, strict=True)},
    }


def _iou(matrix: Tensor) -> Tensor:
    hits = matrix.diag().double()
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)
