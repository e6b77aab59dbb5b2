"""Images to arrays, pixels without data filled."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segsweep.data import raster

SUFFIXES = (".png", ".jpg", ".jpeg", *raster.TIFF, ".bmp", ".webp", ".gif")  # of files that are taken for images
WIDEST = 1e31  # between two pixels: float32 holds no sums over an image of larger ones
OFTEN = 1e-3  # share of an image's values from which on one far outside of the rest may stand for no data


@dataclass(frozen=True)
class Picture:
    """A decoded image."""

    pixels: np.ndarray  # `h w c` uint8, or uint16 and float32 where the file is; finite everywhere
    lacking: np.ndarray | None = None  # bool `h w c`: where the file has no data and `pixels` the channel's mean
    dropped_alpha: bool = False  # the file has an alpha channel that is not the same everywhere
    sentinel: float | None = None  # a frequent value far outside of all others, which nothing says stands for no data
    inverted: bool = False  # the file stores its lowest value as white, and `pixels` have it as black

    @property
    def nowhere(self) -> np.ndarray | None:
        """Pixels where a channel has no data, bool `h w`; None: there are none."""
        return None if self.lacking is None else np.asarray(self.lacking.any(2))


def read_image(path: Path) -> np.ndarray:
    """Read an image as `h w c` uint8, or uint16 and float32 where the file is, as `read_picture` does."""
    return read_picture(path).pixels


def read_picture(path: Path, nodata: float | str = "auto") -> Picture:
    """Read an image; c is 1 or 3, palettes expanded and alpha dropped.

    The pages of a TIFF are channels, as are more than three samples of a pixel. NaN, infinities and `nodata` become the
    mean of the image's other pixels in that channel, rounded for whole numbers.

    Args:
        nodata: the value that stands for no data; "tag" or "auto": what the file's GDAL tag says; "none": NaN and
            infinities alone. In images of whole numbers a pixel lacks data where all its channels have that value.

    Raises DataError: it is no image, or damaged.
    """
    decoded = raster.read(path)
    stored = decoded.expanded
    if decoded.palette is not None and (stored == stored[..., :1]).all():
        stored = stored[..., :1]  # a grey image may come palette-coded
    pixels = _in_our_types(stored)
    absent = decoded.nodata if nodata in ("auto", "tag") else None if nodata == "none" else float(nodata)
    # A palette's tag is one of its indices.
    indices = decoded.palette is not None and nodata in ("auto", "tag")
    lacking = _lacking(decoded.samples if indices else stored, pixels, absent)
    alpha = decoded.alpha
    dropped = alpha is not None and bool((alpha != alpha[0, 0]).any())
    return Picture(_filled(pixels, lacking), lacking, dropped, _sentinel(stored, lacking), decoded.inverted)


def picture_of(pixels: np.ndarray, nodata: float | str = "auto") -> Picture:
    """Return pixels `h w c` that are no file as `read_picture` returns a file's; they have no tag."""
    lacking = _lacking(pixels, pixels, None if isinstance(nodata, str) else float(nodata))
    return Picture(_filled(pixels, lacking), lacking)


def _filled(pixels: np.ndarray, lacking: np.ndarray | None) -> np.ndarray:
    """Pixels `h w c` with the channel's mean where they lack data."""
    if lacking is None:
        return pixels
    pixels = np.array(pixels)
    for channel in range(pixels.shape[2]):
        values, gaps = pixels[..., channel], lacking[..., channel]
        mean = values[~gaps].mean(dtype=np.float64) if not gaps.all() else 0.0
        values[gaps] = mean if pixels.dtype.kind == "f" else round(mean)
    return pixels


def channels_named(number: int) -> str:
    """Name a number of channels for a person."""
    return {1: "grey", 3: "colour"}.get(number, f"{number} channels")


def _in_our_types(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.uint8:
        return stored
    if stored.dtype.kind == "u" and stored.dtype.itemsize == 2:
        return stored.astype(np.uint16)  # in this machine's byte order
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, and lacking
        return stored.astype(np.float32)


def _lacking(stored: np.ndarray, pixels: np.ndarray, absent: float | None) -> np.ndarray | None:
    """Where values stand for no data, bool `h w c`; None: nowhere."""
    gaps = ~np.isfinite(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, bool)
    if absent is not None and np.isfinite(absent):
        same = raster.equal(stored, absent)
        if stored.dtype.kind != "f":  # a red of (255, 0, 0) lacks nothing where 0 stands for no data
            same = np.broadcast_to(same.all(2, keepdims=True), same.shape)
        gaps |= same
    return gaps if gaps.any() else None


def _sentinel(stored: np.ndarray, lacking: np.ndarray | None) -> float | None:
    """The lowest or highest value with data, if it is frequent and far outside of all others.

    It is the value as it is stored, in the fewest digits that tell it from its neighbours, and finds all its pixels.
    """
    if stored.dtype == np.uint8:
        return None
    values = stored if lacking is None else stored[~lacking]
    if not values.size:
        return None
    for extreme, beyond in ((values.min(), np.greater), (values.max(), np.less)):
        rest = values[beyond(values, extreme)].astype(np.float64)
        if rest.size and values.size - rest.size >= max(4, OFTEN * stored.size):
            low, high = rest.min(), rest.max()
            if high > low and min(abs(low - float(extreme)), abs(high - float(extreme))) > 2 * (high - low):
                return float(str(extreme))
    return None
