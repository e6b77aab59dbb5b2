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
        return where_present(self.matrix, iou(self.matrix))

    def dice(self) -> Tensor:
        """Dice coefficient (F1) of each class, float64 `num_classes`; NaN where a class is in no target."""
        return where_present(self.matrix, dice(self.matrix))

    def accuracy(self) -> float:
        """Share of the pixels that are right; NaN without pixels."""
        return float(accuracy(self.matrix))


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
    by_class = pooled.iou()
    matrix = pooled.matrix.double()
    hits = matrix.diag().sum()
    of_images = iou(torch.stack(list(images))) if images else torch.full((1, pooled.num_classes), math.nan)
    return {
        "iou": float(overall(by_class)),
        "iou_fg": float(by_class[1:].nanmean()),
        "iou_micro": float(hits / (2 * matrix.sum() - hits)),
        "iou_image": float(overall(of_images).nanmean()),
        "dice": float(overall(pooled.dice())),
        "accuracy": pooled.accuracy(),
        **{f"iou/{name}": float(score) for name, score in zip(names, by_class, strict=True)},
    }


def iou(matrices: Tensor) -> Tensor:
    """Intersection over union of each class: from matrices `... k k`, targets in rows, to `... k`; NaN for 0 / 0."""
    hits = matrices.diagonal(dim1=-2, dim2=-1).double()
    return hits / (matrices.sum(-2) + matrices.sum(-1) - hits)


def dice(matrices: Tensor) -> Tensor:
    """Dice coefficient of each class: from `... k k` to `... k`; NaN for 0 / 0."""
    hits = matrices.diagonal(dim1=-2, dim2=-1).double()
    return 2 * hits / (matrices.sum(-2) + matrices.sum(-1))


def accuracy(matrices: Tensor) -> Tensor:
    """Share of the pixels that are right: from `... k k` to `...`; NaN without pixels."""
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1).double() / matrices.sum((-2, -1))


def where_present(matrices: Tensor, scores: Tensor) -> Tensor:
    """The scores `... k` of classes that are in the targets of `matrices`; NaN for the others."""
    return torch.where(matrices.sum(-1) > 0, scores, math.nan)


def overall(by_class: Tensor) -> Tensor:
    """One number for scores `... k`: the foreground's of two classes, else the mean over those that are not NaN."""
    return by_class[..., 1] if by_class.shape[-1] == 2 else by_class.nanmean(-1)
