"""How large and how thin each class's parts are in the training split: what decides whether images may be shrunk."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep import console
from segsweep.data.dataset import Dataset, evenly_spaced

LOOKED_AT = 48  # images at most
PIXELS = 30_000_000  # of them at most, but for the first image


@dataclass(frozen=True)
class ClassParts:
    """The connected parts of a class (diagonal neighbours are connected), in pixels; a class without any has none."""

    name: str
    parts: int
    area: float  # the median part's
    thickness: float  # of its median pixel
    thinnest: float  # of the thinnest quarter of its pixels, at most

    def line(self, images: int) -> str:
        """Say it for a person; `images` were looked at."""
        if not self.parts:
            return f"{self.name}: none in {images} images"
        return (
            f"{self.name}: {self.parts / images:.3g} parts an image, half of them below {self.area:.0f} px; "
            f"{self.thickness:.0f} px thick, a quarter of its area up to {self.thinnest:.0f} px"
        )


@dataclass(frozen=True)
class Fingerprint:
    images: int  # that were looked at
    classes: tuple[ClassParts, ...]  # of two the foreground alone

    def table(self) -> str:
        """Return it for a person."""
        first, *others = (parts.line(self.images) for parts in self.classes)
        return console.table([("training parts", first), *(("", line) for line in others)])


def fingerprint(data: Dataset) -> Fingerprint:
    """Look at evenly spaced training masks, as many as take a few seconds."""
    chosen = evenly_spaced(data.parts["train"], LOOKED_AT)
    sizes = [data.store.rows[i].height * data.store.rows[i].width for i in chosen]
    chosen = evenly_spaced(chosen, max(1, int(len(chosen) * min(1, PIXELS / sum(sizes)))))
    first = 1 if data.labels.logits == 1 else 0
    areas: dict[int, list[NDArray[np.float64]]] = {k: [] for k in range(first, len(data.labels.names))}
    widths: dict[int, list[NDArray[np.float64]]] = {k: [] for k in areas}
    for index in chosen:
        classes = data.labels.table[data.store.host_mask(index)]
        for k in areas:
            here = classes == k
            if here.any():
                areas[k].append(part_areas(here))
                widths[k].append(thickness(here))
    return Fingerprint(len(chosen), tuple(_joined(data.labels.names[k], areas[k], widths[k]) for k in areas))


def part_areas(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the pixels of each connected part of a mask `h w`."""
    numbered, _ = ndimage.label(mask, np.ones((3, 3)))
    return np.bincount(numbered.ravel())[1:].astype(float)


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


def _joined(name: str, areas: Iterable[NDArray[np.float64]], widths: Iterable[NDArray[np.float64]]) -> ClassParts:
    every, thick = (np.concatenate([np.empty(0), *arrays]) for arrays in (areas, widths))
    if not len(every):
        return ClassParts(name, 0, 0.0, 0.0, 0.0)
    return ClassParts(name, len(every), float(np.median(every)), *np.percentile(thick, [50, 25]).tolist())
