"""Masks to codes: whole numbers that keep number, colour and alpha of a pixel until all files are known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Stands for many values that are not kept separately, such as those of hundreds of numbered objects."""

    number: int


@dataclass(frozen=True)
class NoData:
    """Stands for a missing value: NaN, the value of the file's nodata tag, or a pixel without data in the image."""


Value = int | Color | Entry | Others | NoData  # what a mask says of a pixel

# A code is a number itself, or one of these with its parts in the lower bits: red, green and blue, a byte each; above
# them the number of a palette's entry; above both the alpha of a file whose other channels are the same everywhere.
LARGEST = 1 << 40
COLOR, PALETTE, ALPHA = 1 << 41, 1 << 42, 1 << 62
ALPHA_SHIFT = 43
NO_DATA, OTHERS = -(1 << 50), -(1 << 51)
SPREAD = 16  # levels between a pixel's channels that a lossy format may make of grey
NOISE = 8  # levels between neighbours in an area of one colour that a lossy format may make
FEW, SPAN = 3, 64  # values, and levels between the lowest and the highest, that masks with blends have more of


@dataclass(frozen=True)
class Mask:
    """A decoded mask."""

    codes: Codes  # `n`, each once, rising
    index: np.ndarray  # `h w`: which of the codes a pixel has; uint8, or int32 for more than 256
    counts: Codes  # `n`: pixels of each code
    flat: Codes  # `n`: of these, such whose four neighbours have the same value, as good as
    ramp: Codes  # `n`: of these, such that lie between two opposite neighbours and differ from both
    dropped_alpha: bool = False  # the file has an alpha channel that is not the same everywhere
    lossy: bool = False  # of a format that may have changed values
    inverted: bool = False  # its tag says that white is zero
    absent: int | None = None  # the number that its tag says stands for no data


def read_mask(
    path: Path, threshold: float | None = None, void: int | None = None, nodata: float | str = "auto"
) -> Mask:
    """Read a mask: numbers as stored, colours of 8 bits a channel, entries of palettes with number and colour.

    Equal channels are one. Bilevel masks are 0 and 255. In GIFs the colours of the palette count alone, since those
    who write GIFs number them anew in each file. Where one colour fills the file, its alpha is kept beside it.

    Args:
        threshold: in grey masks this value and all above it become 255, all below it 0.
        void: the code of what stands for no data then.
        nodata: "none": what the file's nodata tag says does not count; "tag": it does, whatever is cut.

    Raises DataError: no image, or damaged; channels that are no colour; values that are no whole numbers; a threshold
        for colours.
    """
    decoded = raster.read(path, one_page=True)
    absent = _absent(path, decoded, threshold, nodata)
    if void is not None and threshold is not None:
        absent = [*absent, void]
    codes, alpha = _codes(path, decoded, threshold, absent), decoded.alpha
    found, index, counts = _indexed(codes)
    varies = alpha is not None and bool((alpha != alpha[0, 0]).any())
    if alpha is not None and len(found) == 1 and found[0] >= 0:
        if threshold is not None:
            alpha = np.where(alpha >= threshold, 255, 0)
        found, index, counts = _indexed(ALPHA | alpha.astype(np.int64) << ALPHA_SHIFT | found[0])
        varies = False
    tag = decoded.nodata
    return replace(
        counted(found, index, counts, decoded.lossy),
        dropped_alpha=varies,
        lossy=decoded.lossy,
        inverted=decoded.inverted,
        absent=int(tag) if tag is not None and abs(tag) < LARGEST and tag == int(tag) else None,
    )


def counted(codes: Codes, index: np.ndarray, counts: Codes | None = None, lossy: bool = False) -> Mask:
    """Make a mask of `n` codes, `h w` indices into them and, where they are known, each one's pixels."""
    n = len(codes)
    if counts is None:
        counts = np.bincount(index.reshape(-1), minlength=n).astype(np.int64)
    levels = _levels(codes)
    if n <= FEW or np.ptp(levels) < SPAN:  # no blends: those would be more values, or farther apart
        inner = index[1:-1, 1:-1]
        flat = np.asarray(np.logical_and.reduce([inner == beside for beside in _neighbours(index)]))
        ramp = np.zeros_like(flat)
    else:
        pixels = levels.astype(np.int32)[index]
        inner, (up, down, left, right) = pixels[1:-1, 1:-1], _neighbours(pixels)
        noise = NOISE if lossy else 0
        near = [(abs(inner - beside) <= noise).all(2) for beside in (up, down, left, right)]
        flat = np.asarray(np.logical_and.reduce(near))
        ramp = _between(up, inner, down) | _between(left, inner, right)
    flats, ramps = (np.bincount(index[1:-1, 1:-1][where], minlength=n).astype(np.int64) for where in (flat, ramp))
    return Mask(codes, index, counts, flats, ramps)


def _neighbours(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Those above, below, to the left and to the right of all but the outermost pixels."""
    return pixels[:-2, 1:-1], pixels[2:, 1:-1], pixels[1:-1, :-2], pixels[1:-1, 2:]


def _between(one: np.ndarray, middle: np.ndarray, other: np.ndarray) -> NDArray[np.bool_]:
    """Where values `h w c` lie between two others in every channel, and are neither."""
    inside = (np.minimum(one, other) <= middle) & (middle <= np.maximum(one, other))
    return np.asarray(inside.all(2) & (middle != one).any(2) & (middle != other).any(2))


def _levels(codes: Codes) -> NDArray[np.int64]:
    """What is compared of codes, `n c`: numbers, alphas, or red, green and blue."""
    if (codes >= ALPHA).all():
        return (codes >> ALPHA_SHIFT & 0xFFFF)[:, None]
    return colors(codes) if (codes >= COLOR).any() else np.clip(codes, -(1 << 24), 1 << 24)[:, None]


def numbers(codes: Codes) -> Codes:
    """Return the number that each code is called by: of a palette's entry its own; of others the code."""
    return np.where(is_entry(codes), codes >> 24 & 0xFFFF, codes)


def colors(codes: Codes) -> NDArray[np.int64]:
    """Return red, green and blue of each code, `n 3`; of a number of a byte grey."""
    grey = (codes >= 0) & (codes <= 255)
    return np.where(grey[:, None], codes[:, None], np.stack([codes >> shift & 255 for shift in (16, 8, 0)], -1))


def is_color(codes: Codes) -> NDArray[np.bool_]:
    """Tell which codes are colours."""
    return (codes >= COLOR) & (codes < PALETTE)


def is_entry(codes: Codes) -> NDArray[np.bool_]:
    """Tell which codes are entries of palettes."""
    return (codes >= PALETTE) & (codes < ALPHA)


def is_black(codes: Codes) -> NDArray[np.bool_]:
    """Tell which codes are 0 or black."""
    return np.asarray((codes == 0) | ((codes >= COLOR) & (codes < ALPHA) & (codes & 0xFFFFFF == 0)))


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
    """Return the number by which a user may name a value; a grey is named by its level."""
    if isinstance(value, Entry):
        return value.number
    if isinstance(value, tuple):
        return value[0] if value[0] == value[1] == value[2] else None
    return value if isinstance(value, int) else None


def color_of(value: Value) -> Color | None:
    """Return the colour by which a user may name a value; 0 to 255 are greys."""
    if isinstance(value, Entry):
        return value.color
    if isinstance(value, int):
        return (value, value, value) if 0 <= value <= 255 else None
    return value if isinstance(value, tuple) else None


def shown(value: Value) -> str:
    """Return a value as the user types it."""
    if isinstance(value, Entry):
        return f"{value.number} {shown(value.color)}"
    if isinstance(value, Others):
        return f"{value.number} others"
    if isinstance(value, NoData):
        return "no data"
    return str(value) if isinstance(value, int) else f"[{','.join(map(str, value))}]"


def _absent(path: Path, decoded: raster.Raster, threshold: float | None, nodata: float | str) -> list[float]:
    """The tag's value if it can be no class: GDAL's lowest number or, where masks are cut, one below 0.

    Where masks are cut, a tag from 0 on and below the threshold is harmless: its pixels are background either way. One
    above may be a habit or a hole; who knows types it.
    """
    tag = None if decoded.palette is not None or nodata == "none" else decoded.nodata
    if tag is None or not np.isfinite(tag):
        return []
    if abs(tag) >= LARGEST:
        return [tag]
    if threshold is None or 0 <= tag < threshold:
        return []
    if tag >= threshold and nodata != "tag" and (decoded.samples == tag).any():
        raise DataError(
            f"{path}: its nodata tag is {tag:g}, and with data.threshold={threshold:g} that is foreground. To ignore "
            f"these pixels: data.nodata=tag; to use them: data.nodata=none."
        )
    return [tag]


def _codes(path: Path, decoded: raster.Raster, threshold: float | None, absent: Sequence[float]) -> np.ndarray:
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
        return _numbers(path, samples[..., 0], threshold, absent)
    if threshold is not None:
        raise DataError(
            f"{path}: is coloured, and data.threshold={threshold:g} works only for grey masks. Drop it, and name the "
            f"colours."
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


def _numbers(path: Path, values: np.ndarray, threshold: float | None, absent: Sequence[float]) -> np.ndarray:
    """The codes of a grey mask; some numbers are `absent`."""
    if values.dtype == np.uint8 and threshold is None:
        return values
    gaps = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    for number in absent:
        gaps |= raster.equal(values, number)
    if threshold is not None:
        with np.errstate(invalid="ignore"):
            values = np.where(values >= threshold, 255, 0)
    known = np.where(gaps, 0, values)
    if values.dtype.kind == "f" and (known != np.floor(known)).any():
        low, high = known.min(), known.max()
        raise DataError(
            f"{path}: mask values must be whole numbers; these are fractions between {low:g} and {high:g}. "
            f"Type data.threshold={(max(low, 0) + high) / 2:g} to make two classes of them."
        )
    if (abs(known.astype(float)) >= LARGEST).any():
        raise DataError(f"{path}: mask values must lie between {-LARGEST} and {LARGEST}; these go to {known.max():g}.")
    return np.where(gaps, NO_DATA, known.astype(np.int64))


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
    """Return the mask without values where the bool array `h w` is true."""
    return recounted(mask, *_indexed(np.where(where, NO_DATA, mask.codes[mask.index])))


def recounted(mask: Mask, codes: Codes, index: np.ndarray, counts: Codes | None = None) -> Mask:
    """Return the mask with other pixels; arguments are those of `counted`."""
    new = counted(codes, index, counts, mask.lossy)
    return replace(mask, codes=new.codes, index=new.index, counts=new.counts, flat=new.flat, ramp=new.ramp)
