"""Scores from confusion matrices, with confidence intervals by the bootstrap.

A confusion matrix is int64 `... k k` and counts pixels: targets in rows, predictions in columns. Void pixels are not
counted. 0 / 0 is NaN, and means leave it out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
EXAMPLES = 2  # images of each kind
SHOWN = {"iou": "IoU", "dice": "Dice", "accuracy": "pixel accuracy"}  # what a person sees first, and its title
MATRICES = "val_matrices.npz"  # in a run's folder

Matrices = NDArray[Any]
"""Confusion matrices: int64, or float64 with whole numbers where images were pooled."""
Floats = NDArray[np.float64]


def scores(images: Sequence[Matrices], names: Sequence[str]) -> dict[str, float]:
    """Return every score of a split by name, without the split's prefix; all are NaN if there are no images.

    `iou` is `pooled_iou`, `dice` the same for Dice; `iou_fg` is `foreground_iou`, `iou_image` the mean of `image_iou`.
    `iou_micro` pools the pixels of all classes, `accuracy` is the share of correct pixels, and `iou/<name>` is the IoU
    of one class, NaN if it is in no target. `images` holds the confusion matrix `k k` of each image.
    """
    matrices = np.stack(images) if len(images) else np.zeros((0, len(names), len(names)), np.int64)
    total = matrices.sum(0)
    hits = np.trace(total)
    by_class = where_present(total, iou(total))
    return {
        "iou": float(overall(by_class)),
        "iou_fg": float(foreground_iou(total)),
        "iou_micro": float(ratio(hits, 2 * total.sum() - hits)),
        "iou_image": float(_mean(image_iou(matrices))),
        "dice": float(overall(where_present(total, dice(total)))),
        "accuracy": float(accuracy(total)),
        **{f"iou/{name}": float(score) for name, score in zip(names, by_class, strict=True)},
    }


def pooled_iou(matrices: Matrices) -> Floats:
    """Return `val/iou` of pooled matrices, `... k k` to `...`.

    Two classes: IoU of the foreground. More classes: mean over the classes in the targets, the first class included.
    """
    return overall(where_present(matrices, iou(matrices)))


class Validation(NamedTuple):
    """The content of a run's `MATRICES`: the confusion matrices of its best epoch."""

    keys: tuple[str, ...]  # names of the validation images
    matrices: Matrices  # int64 `n k k`, targets in rows, one for each of them
    epoch: int  # that they are of


def read_validation(folder: Path) -> Validation | None:
    """Read a run's `MATRICES`; None where there are none, or they cannot be read."""
    try:
        # Opened here, since numpy leaves a damaged file open.
        with (folder / MATRICES).open("rb") as source, np.load(source, allow_pickle=False) as file:
            keys, matrices = tuple(map(str, file["keys"])), file["matrices"]
            epoch = int(file["epoch"])
    except Exception:  # on noise, numpy and zipfile raise nearly anything
        return None
    fits = matrices.ndim == 3 and matrices.shape[1] == matrices.shape[2] and matrices.dtype.kind in "iu"
    return Validation(keys, matrices, epoch) if fits and len(keys) == len(matrices) else None


def image_iou(matrices: Matrices) -> Floats:
    """Return the IoU of each image, `... k k` to `...`: the only score of single images that segsweep shows.

    Two classes: IoU of the foreground. More classes: mean over the classes in the target or in the prediction, the
    first class included. A class that is only predicted counts as 0: if the target is empty, any predicted foreground
    gives 0.00. An image has no IoU (NaN) if target and prediction are both empty: two classes without any foreground,
    or more classes with only void pixels.
    """
    return overall(iou(matrices))


def examples(matrices: Matrices) -> list[tuple[int, str]]:
    """Choose images to look at by their own IoU, from `n k k`: the worst, some in the middle, the best.

    Those without any foreground say little: they are left out, but for one among the worst where too much was found.

    Returns:
        positions, each with what it is an example of, the worst first.
    """
    scores, has_foreground = image_iou(matrices), matrices[:, 1:].sum((1, 2)) > 0
    order = [int(i) for i in np.argsort(scores, kind="stable") if not np.isnan(scores[i])]
    telling = [i for i in order if has_foreground[i]] or order
    worst = order[:1] + [i for i in telling if i not in order[:1]]
    found = dict.fromkeys(worst[:EXAMPLES], "worst")
    middle = max(0, (len(telling) - EXAMPLES) // 2)
    for i in telling[middle : middle + EXAMPLES]:
        found.setdefault(i, "median")
    for i in telling[-EXAMPLES:]:
        found.setdefault(i, "best")
    return list(found.items())


def foreground_iou(matrices: Matrices) -> Floats:
    """Return the mean IoU over the classes in the targets without the first class, `... k k` to `...`.

    It is `val/iou_fg`, of a split's pooled matrix. No score of an image: classes that are only predicted do not count.
    """
    return _mean(where_present(matrices, iou(matrices))[..., 1:])


def iou(matrices: Matrices) -> Floats:
    """Return intersection over union (Jaccard) of each class, `... k k` to `... k`."""
    return ratio(_hits(matrices), matrices.sum(-2) + matrices.sum(-1) - _hits(matrices))


def dice(matrices: Matrices) -> Floats:
    """Return the Dice coefficient (F1) of each class, `... k k` to `... k`."""
    return ratio(2 * _hits(matrices), matrices.sum(-2) + matrices.sum(-1))


def precision(matrices: Matrices) -> Floats:
    """Return the precision of each class, the share of its predicted pixels that are correct, `... k k` to `... k`."""
    return ratio(_hits(matrices), matrices.sum(-2))


def recall(matrices: Matrices) -> Floats:
    """Return the recall of each class, the share of its target pixels that are predicted, `... k k` to `... k`."""
    return ratio(_hits(matrices), matrices.sum(-1))


def accuracy(matrices: Matrices) -> Floats:
    """Return the share of pixels that are predicted correctly, `... k k` to `...`."""
    return ratio(_hits(matrices).sum(-1), matrices.sum((-2, -1)))


def where_present(matrices: Matrices, by_class: Floats) -> Floats:
    """Keep the scores `... k` of classes that are in the targets of matrices `... k k`; the others become NaN."""
    return np.where(matrices.sum(-1) > 0, by_class, np.nan)


def overall(by_class: Floats) -> Floats:
    """Reduce scores `... k` to one: of two classes the foreground's, else the mean over those that are not NaN."""
    return by_class[..., 1] if by_class.shape[-1] == 2 else _mean(by_class)


def resample(rng: np.random.Generator, images: int) -> NDArray[np.int64]:
    """Draw `RESAMPLES` times as many images as there are, with replacement; return how often each, `r images`."""
    return rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)


def pool(counts: NDArray[Any], weights: NDArray[np.int64]) -> Floats:
    """Add the counts of images, `n ...`, each as often as it was drawn, `r n`: to `r ...`."""
    return np.tensordot(weights.astype(float), counts.astype(float), 1)


def drawn_iou(counts: Matrices, weights: NDArray[np.int64]) -> Floats:
    """Return `pooled_iou` of images drawn with replacement, `n k k` and `r n` to `r`.

    A mean over classes is one over the same classes each time: NaN where a draw misses one that the images have.
    """
    drawn = pool(counts, weights)
    return np.where(hold_every_class(drawn, counts), pooled_iou(drawn), np.nan)


def hold_every_class(drawn: Floats, counts: Matrices) -> NDArray[np.bool_]:
    """Tell which draws, pooled to `r k k`, hold every class that the targets of the images `n k k` have, to `r`."""
    needed = counts.sum((0, 2)) > 0
    return np.asarray((drawn.sum(-1) > 0)[:, needed].all(1))


def by_group(matrices: Matrices, groups: Sequence[str]) -> tuple[tuple[str, ...], Matrices]:
    """Add the counts of images, `n ...`, that are of one group: the groups' names, sorted, and `g ...`."""
    names, positions = np.unique(np.array(groups), return_inverse=True)
    found = np.zeros((len(names), *matrices.shape[1:]), matrices.dtype)
    np.add.at(found, positions, matrices)
    return tuple(map(str, names)), found


def interval(values: Floats) -> tuple[float, float]:
    """Return the 95 % interval of a score from its resamples `r`, lowest and highest.

    NaN where nine tenths of them, or more, are NaN: from a few draws nothing can be said.
    """
    known = values[~np.isnan(values)]
    if len(known) <= len(values) // 10:
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _hits(matrices: Matrices) -> NDArray[Any]:
    return np.diagonal(matrices, axis1=-2, axis2=-1)


def _mean(values: Floats) -> Floats:
    """Over the last dimension, without NaN."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def ratio(part: Any, whole: Any) -> Floats:
    """Divide numbers or arrays; 0 / 0 is NaN and no warning."""
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole)
