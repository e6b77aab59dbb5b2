"""Statistics of a training split: sizes of its images, size and thickness of the parts of each class."""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep import console
from segsweep.config.checks import read_file
from segsweep.data.dataset import Dataset, evenly_spaced
from segsweep.errors import ConfigError
from segsweep.paths import save_json

log = logging.getLogger(__name__)

VERSION = 3  # raised when what is measured changes: what older versions kept is then not used
LOOKED_AT = 48  # images, or one for each class if that is more
PIXELS = 30_000_000  # of them
EACH = 2048  # pixels a side of an image whose parts are measured, at most
WINDOWS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # pixels a side, where it is counted how many show a class
BLOCK = 32  # pixels a side that windows are counted in


@dataclass(frozen=True)
class Range:
    """Minimum, median and maximum."""

    least: float
    median: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        return cls(min(values), median(values), max(values))

    def __str__(self) -> str:
        around = "" if self.least == self.largest else f" ({self.least:.0f} to {self.largest:.0f})"
        return f"{self.median:.0f}{around}"


@dataclass(frozen=True)
class ClassParts:
    """Statistics of the connected parts of a class, in pixels; diagonal neighbours are connected."""

    name: str
    share: float  # of the class in the training pixels that count
    images: int  # that have it, of those looked at
    parts: int
    area: float  # the median part's
    extent: float  # the longer side of the box around it: half of the class's area is in parts that are no longer
    thickness: float  # of its median pixel
    thinnest: float  # of the thinnest quarter of its pixels, at most
    seen: tuple[float, ...]  # of an image that has it, the share of windows of each of WINDOWS that show some

    def share_seen(self, side: float) -> float:
        """Return the share of windows with this side, in pixels, that show the class."""
        return float(np.interp(math.log2(side), np.log2(WINDOWS), self.seen))

    def __str__(self) -> str:
        if not self.parts:
            return f"{self.name}: in no training image"
        parts = self.parts / self.images
        number = f"{parts:.3g}" if parts < 100 else f"{parts:,.0f}"
        return (
            f"{self.name}: {number} parts in an image with this class, half of them smaller than "
            f"{self.area:.0f} px; half of the area is in parts up to {self.extent:.0f} px long; "
            f"{self.thickness:.0f} px thick, a quarter of the area up to {self.thinnest:.0f} px"
        )


@dataclass(frozen=True)
class Fingerprint:
    """A training split, as far as plans ask for it; with folds that of train and val together, the same for all folds.

    Sizes and parts are in pixels of the files.
    """

    training: int  # images
    validation: int  # images; with folds those of a fold, about
    height: Range  # of the training images
    width: Range
    scored: int  # pixels of all validation images
    channels: int
    lowest: float  # that a pixel can be
    highest: float
    classes: tuple[ClassParts, ...]  # of two the foreground alone
    # How unlike in scale objects of a class are in different images: standard deviation of log2; None where no class is
    # in two of them. The background is none.
    spread: float | None
    spread_fitted: float | None  # the same when each image is brought to one size
    looked_at: int  # images whose masks were measured

    @property
    def objects(self) -> tuple[ClassParts, ...]:
        """The classes that occur, without the background, which is the first of several classes."""
        return tuple(parts for parts in self.classes[len(self.classes) > 1 :] if parts.parts)

    def table(self) -> str:
        """Return it for a person."""
        first, *others = map(str, self.classes)
        if self.spread is not None and self.spread_fitted is not None:
            scale = (
                f"objects' scale differs between images by a factor of {2**self.spread:.2f} (one standard deviation)"
            )
            if self.height.least != self.height.largest or self.width.least != self.width.largest:
                scale += f", and by {2**self.spread_fitted:.2f} if images are resized to one size"
            others.append(scale)
        return console.table([("training parts", first), *(("", line) for line in others)])


@dataclass(frozen=True)
class Measured:
    """A class in one image."""

    areas: NDArray[np.int64]  # of its parts, `n`
    extents: NDArray[np.int64]  # the longer side of the box around each, `n`
    widths: NDArray[np.int64]  # pixels of each thickness, by whole pixels
    seen: tuple[float, ...]  # share of windows that show some of it, for each of WINDOWS


def fingerprint(data: Dataset) -> Fingerprint:
    """Measure some training masks of every class, in a few seconds; the result is kept next to the store."""
    folds = data.folds if data.parts["train"] != data.parts["val"] else None  # they are the same with data.overfit
    indices = sorted({*data.parts["train"], *(data.parts["val"] if folds else [])})
    largest = max(Counter(folds[i] for i in indices).values()) if folds else 0
    about = [VERSION, indices, largest, len(data.parts["val"]), data.labels.table.tolist(), data.labels.names]
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    path = data.store.folder / f"fingerprint-{name}.json"
    kept = _kept(path)
    if kept is None:
        kept = _measure(data, indices, largest)
        try:
            save_json(path, asdict(kept))
        except OSError as error:  # no room, or a folder that may not be written
            log.info("%s: not kept: %s", path, error)
    return kept


def _kept(path: Path) -> Fingerprint | None:
    try:
        return read_file(Fingerprint, path, "fingerprint")
    except (OSError, ConfigError):
        return None  # not there, or damaged: measured again


def _measure(data: Dataset, indices: Sequence[int], fold: int) -> Fingerprint:
    """Measure these samples, of which the largest fold has so many; 0: there are no folds."""
    rows = data.store.rows
    sizes = [(rows[i].height, rows[i].width) for i in indices]
    first = 1 if data.labels.logits == 1 else 0
    chosen = _chosen(data, indices, range(first, len(data.labels.names)))
    found: dict[int, dict[int, Measured]] = {k: {} for k in range(first, len(data.labels.names))}
    for index in chosen:
        classes = data.labels.table[data.store.host_mask(index)]
        for k in found:
            if data.pixels[index][k]:
                found[k][index] = measured(classes == k)
    pixels = data.pixels[indices]  # by class, last those that do not count
    counts = pixels[:, :-1].sum(axis=0)
    sides = {i: math.sqrt(rows[i].height * rows[i].width) for i in chosen}
    absolute = [{i: _scale(m) for i, m in by_image.items()} for k, by_image in found.items() if k]
    fitted = [{i: scale / sides[i] for i, scale in by_image.items()} for by_image in absolute]
    validation = fold or len(data.parts["val"])
    scored = int(pixels.sum()) * fold // len(indices) if fold else sum(data.counts("val"))
    return Fingerprint(
        training=len(indices) - fold,
        validation=validation,
        height=Range.of([height for height, _ in sizes]),
        width=Range.of([width for _, width in sizes]),
        scored=scored,
        channels=data.store.channels,
        lowest=data.store.range[0],
        highest=data.store.range[1],
        classes=tuple(
            _joined(data.labels.names[k], float(counts[k] / max(counts.sum(), 1)), list(found[k].values()))
            for k in found
        ),
        spread=_spread(absolute),
        spread_fitted=_spread(fitted),
        looked_at=len(chosen),
    )


def _chosen(data: Dataset, indices: Sequence[int], classes: Sequence[int]) -> list[int]:
    """Choose the samples to look at: half of them for the classes, however few images have one, the rest evenly."""
    rows, candidates = data.store.rows, evenly_spaced(indices, LOOKED_AT)
    large = sum(min(rows[i].height, EACH) * min(rows[i].width, EACH) for i in candidates)
    most = max(1, int(len(candidates) * min(1, PIXELS / large)))
    each = max(1, most // (2 * len(classes)))
    chosen: set[int] = set()
    for k in classes:
        chosen |= set(evenly_spaced([i for i in indices if data.pixels[i][k]], each))
    others = [i for i in indices if i not in chosen]
    return sorted(chosen | set(evenly_spaced(others, max(0, min(most - len(chosen), len(others))))))


def measured(mask: NDArray[np.bool_]) -> Measured:
    """Measure the parts of a mask `h w` that has some; of a large one in a window around its middle pixel."""
    seen = tuple(_seen(mask))
    mask = _window(mask)
    numbered, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = ndimage.find_objects(numbered)
    extents = [max(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
    widths = np.bincount(np.rint(thickness(mask)).astype(np.int64))
    return Measured(np.bincount(numbered.ravel())[1:], np.array(extents), widths, seen)


def _window(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cut a mask to EACH pixels a side around its middle pixel, in the order of rows."""
    reached = np.count_nonzero(mask, axis=1).cumsum()  # the pixels' own places would take eight bytes each
    half = int(reached[-1]) // 2
    row = int(np.searchsorted(reached, half, side="right"))
    middle = row, int(np.flatnonzero(mask[row])[half - (reached[row - 1] if row else 0)])
    first = [min(max(0, at - EACH // 2), max(0, side - EACH)) for at, side in zip(middle, mask.shape, strict=True)]
    return mask[first[0] : first[0] + EACH, first[1] : first[1] + EACH]


def _seen(mask: NDArray[np.bool_]) -> Iterator[float]:
    """Count the windows that show some of a mask, in steps of BLOCK, one no larger than the image."""
    rows, columns = (BLOCK * np.arange(math.ceil(side / BLOCK)) for side in mask.shape)
    blocks = np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, 0), columns, 1)
    sums = np.pad(blocks.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))  # over all that is above and left
    for window in WINDOWS:
        h, w = (min(window // BLOCK, side) for side in blocks.shape)
        yield float((sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w] > 0).mean())


def thickness(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how thick a mask `h w` is at each of its pixels, in pixels: as at the nearest point of its middle lines.

    A point is a middle one where no neighbour is farther from the edge: the discrete medial axis; even widths come out
    one less. What lies beyond the image counts as another class. This stands in for the largest disk in the mask that
    covers the pixel (Hildebrand and Rüegsegger 1997, https://doi.org/10.1046/j.1365-2818.1997.1340694.x), and is less
    near rough edges and where thin and thick parts meet.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    distance = ndimage.distance_transform_edt(part)
    middle = part & (distance == ndimage.maximum_filter(distance, 3))
    nearest = ndimage.distance_transform_edt(~middle, return_distances=False, return_indices=True)
    return np.asarray(2 * distance[tuple(nearest)][part] - 1)


def weighted(values: NDArray[np.int64], weights: NDArray[np.int64], share: float) -> float:
    """Return the value up to which that share of all weight lies."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, share * reached[-1])])


def _scale(image: Measured) -> float:
    """How large a class is drawn in an image: the thickness of its median pixel."""
    return max(1.0, weighted(np.arange(len(image.widths)), image.widths, 0.5))


def _spread(scales: Sequence[dict[int, float]]) -> float | None:
    """Standard deviation of log2 of the scales around each class's own mean; None where no class is in two images."""
    logs = [np.log2(list(by_image.values())) for by_image in scales if len(by_image) > 1]
    around = np.concatenate([np.zeros(0), *(values - values.mean() for values in logs)])
    return math.sqrt(float((around**2).sum()) / (len(around) - len(logs))) if logs else None


def _joined(name: str, share: float, images: Sequence[Measured]) -> ClassParts:
    if not images:
        return ClassParts(name, share, 0, 0, 0.0, 0.0, 0.0, 0.0, (0.0,) * len(WINDOWS))
    areas = np.concatenate([image.areas for image in images])
    extents = np.concatenate([image.extents for image in images])
    thick = np.concatenate([np.arange(len(image.widths)) for image in images])
    pixels = np.concatenate([image.widths for image in images])
    return ClassParts(
        name=name,
        share=share,
        images=len(images),
        parts=len(areas),
        area=float(np.median(areas)),
        extent=weighted(extents, areas, 0.5),
        thickness=weighted(thick, pixels, 0.5),
        thinnest=weighted(thick, pixels, 0.25),
        seen=tuple(np.mean([image.seen for image in images], 0).tolist()),
    )
