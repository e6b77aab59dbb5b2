"""The georeference of a GeoTIFF, copied into the masks that are written for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from segsweep.data.geometry import Size
from segsweep.data.raster import GDAL_NODATA, ORIENTATION, TIFF, upright

# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams (OGC 19-008r4).
TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
ASCII = 2  # TIFF's type of texts


@dataclass(frozen=True)
class Georeference:
    """The tags that place a file's pixels, which may lie in it mirrored or turned, on the ground.

    The tags speak of the pixels as they are stored. What is written with them is stored the same way.
    """

    tags: tuple[tuple[Any, ...], ...] = ()  # as tifffile's `extratags`; the orientation is one of them
    orientation: int = 1  # as EXIF has it

    def stored(self, size: Size) -> Size:
        """Return height and width in the file of an image that is read at this size."""
        return size[::-1] if self.orientation in (5, 6, 7, 8) else size

    def upright(self, stored: np.ndarray) -> np.ndarray:
        """Return a view of stored pixels `... h w` as they are read: what is written to it is stored in its place."""
        return np.moveaxis(upright(np.moveaxis(stored, (-2, -1), (0, 1)), self.orientation), (0, 1), (-2, -1))


def nodata_tag(value: float) -> tuple[Any, ...]:
    """Return GDAL's tag, as tifffile's `extratags` has one, that says which value stands for no data."""
    return GDAL_NODATA, "s", 0, f"{value}", True


def _value(file: tifffile.TiffFile, tag: tifffile.TiffTag) -> Any:
    """Return a tag's value; of a text its bytes: tifffile writes no letters beyond ASCII, and cuts blanks off."""
    if tag.dtype != ASCII:
        return tag.value
    file.filehandle.seek(tag.valueoffset)
    return file.filehandle.read(tag.valuebytecount)


def georeference(path: Path) -> Georeference | None:
    """Read an image's georeference; None where it has none, or is no TIFF that can be read."""
    if path.suffix.lower() not in TIFF:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            orientation = int(page.tags.valueof(ORIENTATION, default=1))
            found = [tag for tag in page.tags if tag.code in TAGS]
            tags: list[tuple[Any, ...]] = [(tag.code, tag.dtype, tag.count, _value(file, tag), True) for tag in found]
    except Exception:  # on damaged files, nearly anything; `read_image` says what is wrong
        return None
    if orientation != 1:
        tags.append((ORIENTATION, "H", 1, orientation, True))
    return Georeference(tuple(tags), orientation) if found else None
