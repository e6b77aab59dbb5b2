"""Masks to codes: whole numbers that keep all that a file says of a pixel until the whole data set is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data import raster
from segsweep.errors import DataError

Color = tuple[int, int, int]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """An entry of a palette, which has a number and a colour."""

    number: int
    color: Color


@dataclass(frozen=True)
class Others:
    """Values that are too many to be kept apart, as those of hundreds of numbered objects."""

    number: int


@dataclass(frozen=True)
class NoData:
    """There is no value: NaN, what the file's tag says, or a pixel without data in the image."""


Value = int | Color | Entry | Others | NoData  # what a mask says of a pixel

# A code is a number itself, or one of these with its parts in the lower bits: red, green and blue, a byte each; above
# them the number of a palette's entry; above both the alpha of a file whose other channels are the same everywhere.
LARGEST = 1 << 40
COLOR, PALETTE, ALPHA = 1 << 41, 1 << 42, 1 << 62
ALPHA_SHIFT = 43
NO_DATA, OTHERS = -(1 << 50), -(1 << 51)
SPREAD = 16  # levels between a pixel's channels that a lossy format may make of grey


@dataclass(frozen=True)
class Mask:
    """A decoded mask."""

    codes: Codes  # `n`, each once, rising
    index: np.ndarray  # `h w`: which of the codes a pixel has; uint8, or int32 for more than 256
    counts: Codes  # `n`: pixels of each code
    flat: Codes  # `n`: of these, such whose four neighbours have the same code
    dropped_alpha: bool = False  # the file has an alpha channel that is not the same everywhere


def read_mask(path: Path, threshold: float | None = None, void: int | None = None) -> Mask:
    """Read a mask: numbers as stored, colours of 8 bits a channel, entries of palettes with number and colour.

    Equal channels are one. Bilevel masks are 0 and 255. In GIFs the colours of the palette count alone, since those
    who write GIFs number them anew in each file. Where one colour fills the file, its alpha is kept beside it.

    Args:
        threshold: in grey masks this value and all above it become 255, all below it 0.
        void: a code that stays what it is.

    Raises DataError: no image, or damaged; channels that are no colour; values that are no whole numbers; a threshold
        for colours.
    """
    decoded = raster.read(path, one_page=True)
    codes = _codes(path, decoded, threshold, void)
    found, index, counts = _indexed(codes)
    alpha = decoded.alpha
    varies = alpha is not None and bool((alpha != alpha[0, 0]).any())
    if alpha is not None and alpha.dtype.kind == "u" and len(found) == 1 and found[0] >= 0:
        found, index, counts = _indexed(ALPHA | alpha.astype(np.int64) << ALPHA_SHIFT | found[0])
        varies = False
    return counted(found, index, counts, dropped_alpha=varies)


def counted(codes: Codes, index: np.ndarray, counts: Codes | None = None, *, dropped_alpha: bool = False) -> Mask:
    """Make a mask of `n` codes, `h w` indices into them and, where they are known, each one's pixels."""
    n, inner = len(codes), index[1:-1, 1:-1]
    if counts is None:
        counts = np.bincount(index.reshape(-1), minlength=n).astype(np.int64)
    same = (inner == index[:-2, 1:-1]) & (inner == index[2:, 1:-1])
    same &= (inner == index[1:-1, :-2]) & (inner == index[1:-1, 2:])
    return Mask(codes, index, counts, np.bincount(inner[same], minlength=n).astype(np.int64), dropped_alpha)


def code(value: Value | Sequence[int]) -> int:
    """Return the code of a value; a colour may be any sequence of three."""
    if isinstance(value, int):
        return value
    if isinstance(value, Entry):
        return PALETTE | value.number << 24 | code(value.color) & 0xFFFFFF
    if isinstance(value, (Others, NoData)):
        return OTHERS if isinstance(value, Others) else NO_DATA
    return COLOR | value[0] << 16 | value[1] << 8 | value[2]


def value(of: int, others: int = 0) -> Value:
    """Return what a code stands for; `others` is how many values `OTHERS` has."""
    color = (of >> 16) & 255, (of >> 8) & 255, of & 255
    if of in (NO_DATA, OTHERS):
        return NoData() if of == NO_DATA else Others(others)
    if of >= ALPHA:
        return of >> ALPHA_SHIFT & 0xFFFF
    if of >= PALETTE:
        return Entry(of >> 24 & 0xFFFF, color)
    return color if of >= COLOR else of


def number_of(value: Value) -> int | None:
    """Return the number that a person may call a value by: a grey has its level."""
    if isinstance(value, Entry):
        return value.number
    if isinstance(value, tuple):
        return value[0] if value[0] == value[1] == value[2] else None
    return value if isinstance(value, int) else None


def color_of(value: Value) -> Color | None:
    """Return the colour that a person may call a value by: of 0 to 255 the grey of that level."""
    if isinstance(value, Entry):
        return value.color
    if isinstance(value, int):
        return (value, value, value) if 0 <= value <= 255 else None
    return value if isinstance(value, tuple) else None


def shown(value: Value) -> str:
    """Write a value as a person would type it."""
    if isinstance(value, Entry):
        return f"{value.number} {shown(value.color)}"
    if isinstance(value, Others):
        return f"{value.number} others"
    if isinstance(value, NoData):
        return "no data"
    return str(value) if isinstance(value, int) else f"[{','.join(map(str, value))}]"


def _codes(path: Path, decoded: raster.Raster, threshold: float | None, void: int | None) -> np.ndarray:
    """The code of each pixel, `h w` uint8 or int64."""
    samples = decoded.samples
    if decoded.palette is not None and threshold is None:
        numbers = samples[..., 0].astype(np.int64)
        colors = decoded.expanded.astype(np.int64)
        return np.asarray(PALETTE | numbers << 24 | colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2])
    samples = decoded.expanded
    grey = samples.shape[2] == 1 or bool((samples == samples[..., :1]).all())
    if not grey and decoded.lossy and int(np.ptp(samples.astype(int), axis=2).max()) <= SPREAD:
        samples, grey = np.rint(samples.mean(2, keepdims=True)).astype(samples.dtype), True
    if grey:
        return _numbers(path, samples[..., 0], decoded.nodata, threshold, void)
    if threshold is not None:
        raise DataError(
            f"{path}: coloured; data.threshold={threshold:g} cuts grey masks. Drop it, and name the colours."
        )
    if samples.shape[2] != 3 or samples.dtype.kind not in "ui":
        raise DataError(
            f"{path}: a mask must have one channel or be coloured; this one has {samples.shape[2]} channels."
        )
    if samples.dtype != np.uint8:
        top = int(samples.max())
        if samples.min() < 0 or top > 65535:
            raise DataError(f"{path}: colours must have 8 or 16 bits a channel; these go to {top}.")
        samples = np.rint(samples / 257) if top > 255 else samples
    red, green, blue = np.moveaxis(samples.astype(np.int64), 2, 0)
    return np.asarray(COLOR | red << 16 | green << 8 | blue)


def _numbers(
    path: Path, values: np.ndarray, nodata: float | None, threshold: float | None, void: int | None
) -> np.ndarray:
    """The codes of a grey mask."""
    absent = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if nodata is not None and np.isfinite(nodata):
        absent |= values == nodata
    if threshold is not None:
        with np.errstate(invalid="ignore"):
            cut = np.where(values >= threshold, 255, 0)
        values = cut if void is None else np.where(values == void, void, cut)
    elif values.dtype == np.uint8 and not absent.any():
        return values
    known = np.where(absent, 0, values)
    if values.dtype.kind == "f" and (known != np.floor(known)).any():
        low, high = known.min(), known.max()
        raise DataError(
            f"{path}: mask values must be whole numbers; these lie between {low:g} and {high:g}. "
            f"Type data.threshold={(low + high) / 2:g} to cut them there."
        )
    if (abs(known.astype(float)) >= LARGEST).any():
        raise DataError(f"{path}: mask values must lie between {-LARGEST} and {LARGEST}; these go to {known.max():g}.")
    return np.where(absent, NO_DATA, known.astype(np.int64))


def _indexed(codes: np.ndarray) -> tuple[Codes, np.ndarray, Codes]:
    """The codes that occur, for each pixel which of them it has, and the pixels of each."""
    if codes.dtype == np.uint8:
        counts = np.bincount(codes.reshape(-1), minlength=256).astype(np.int64)
        found = np.flatnonzero(counts)
        place = np.zeros(256, np.uint8)
        place[found] = np.arange(len(found))
        return found.astype(np.int64), place[codes], counts[found]
    found, index, counts = np.unique(codes, return_inverse=True, return_counts=True)
    small = np.uint8 if len(found) <= 256 else np.int32
    return found, index.reshape(codes.shape).astype(small), counts.astype(np.int64)


def blanked(mask: Mask, where: np.ndarray) -> Mask:
    """Make a mask that says nothing where bool `h w` is true."""
    return counted(*_indexed(np.where(where, NO_DATA, mask.codes[mask.index])), dropped_alpha=mask.dropped_alpha)
