"""Read an image file: its samples and its tags, in the same way for every format and bit depth."""

import logging
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from segsweep.errors import DataError, first_line
from segsweep.paths import extra

TIFF = (".tif", ".tiff")
LARGEST = 400_000_000  # pixels, all pages together; a file may state any size and unpack to it
ORIENTATION, GDAL_NODATA = 274, 42113  # tags, the first of EXIF and TIFF
WHITE_IS_ZERO, RGB, PALETTE, MASK, CMYK = 0, 2, 3, 4, 5  # TIFF's photometric interpretations; 1: black is zero
PIECE = 1 << 20  # bytes that are unpacked at a time to see how many there are
DEFLATE = (8, 32946)  # TIFF's compressions by zlib
ALPHA = (1, 2)  # TIFF's extra samples that are alpha, multiplied into the colours or not
GREY_MODES = ("L", "I", "I;16", "I;16B", "I;16L", "F")
LOSSY = ("JPEG", "MPO", "WEBP")

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of oddities that do no harm
Image.MAX_IMAGE_PIXELS = None  # Pillow's own check only warns at first, and warnings are no matter for threads


def decoders() -> str:
    """Return the names and versions of the decoders: another libjpeg may give other pixels."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"Pillow {PIL.__version__}, libjpeg {jpeg}, tifffile {version('tifffile')}"


def optional_decoders() -> str:
    """Return the version of what reads more of TIFF's compressions; empty where that is not installed."""
    try:
        return version("imagecodecs")
    except PackageNotFoundError:
        return ""


def equal(values: np.ndarray, number: float) -> NDArray[np.bool_]:
    """Tell where values are the number that a tag says, as their own type has it."""
    with np.errstate(over="ignore"):  # what is beyond a type's range is infinite in it
        return np.asarray(values == (values.dtype.type(number) if values.dtype.kind == "f" else number))


@dataclass(frozen=True)
class Raster:
    """A decoded file, turned as shown. Black is the lowest value, and grey of fewer than 8 bits is spread over 8."""

    samples: np.ndarray  # `h w c` as stored; the pages of a TIFF, one after the other, are channels
    alpha: np.ndarray | None = None  # `h w` uint8 or uint16; a TIFF's transparency mask is one, too
    palette: np.ndarray | None = None  # `n 3` uint8; then `samples` are indices into it, and c is 1
    nodata: float | None = None  # the value in `samples` that stands for no data, as GDAL's tag says
    lossy: bool = False  # a format that may have changed values
    inverted: bool = False  # the file stores its lowest value as white

    @property
    def expanded(self) -> np.ndarray:
        """Return the samples `h w c`, colours instead of indices."""
        if self.palette is None:
            return self.samples
        colors: np.ndarray = self.palette[np.minimum(self.samples[..., 0], len(self.palette) - 1)]
        return colors


def read(path: Path, one_page: bool = False) -> Raster:
    """Decode a file.

    Args:
        one_page: as masks have it: several pages are refused, and a sample beside red, green and blue is alpha even
            where nothing says what it is.

    Raises DataError: it is no image, is damaged, moves, has pages of several kinds or, with `one_page`, several pages.
    """
    try:
        # A file and not its path: Pillow maps uncompressed TIFFs into memory by path, and turned ones wrongly.
        with path.open("rb") as file, Image.open(file) as image:
            if image.format == "TIFF":
                return _tiff(path, one_page)
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a camera's JPEG, preview behind it
            _refuse_large(path, image.width, image.height, frames)
            if frames > 1:
                raise DataError(f"{path}: holds {frames} frames, but must hold one. Save each frame as a file.")
            deep = image.mode in ("LA", "RGB", "RGBA") and any(";16" in str(tile.args) for tile in image.tile)
            found = _deep_png(path) if deep else _opened(image, image.format in LOSSY and not _lossless(path))
            return _upright(found, image.getexif().get(ORIENTATION))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        if path.suffix.lower() in TIFF and path.stat().st_size:
            return _tiff(path, one_page)
        what = "empty file" if path.stat().st_size == 0 else "not an image that can be read"
        raise DataError(f"{path}: {what}.") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error


def _lossless(path: Path) -> bool:
    """Whether a WebP keeps every value: it has a chunk VP8L, and none that is called VP8."""
    with path.open("rb") as file:
        if file.read(12)[8:] != b"WEBP":
            return False
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8L", b"VP8 "):
                return head[:4] == b"VP8L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _opened(image: Image.Image, lossy: bool) -> Raster:
    """What Pillow makes of a file."""
    palette = alpha = None
    if image.mode in ("P", "PA"):
        palette = _pillow_palette(image)
        pixels = np.array(image)
        pixels = pixels[..., 0] if pixels.ndim == 3 else pixels
        if image.format == "GIF":  # whoever writes one numbers the colours anew, so that the numbers mean nothing
            pixels, palette = palette[np.minimum(pixels, len(palette) - 1)], None
            pixels = pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels
    else:
        if image.mode in ("1", "LA"):
            alpha = np.asarray(image)[..., 1] if image.mode == "LA" else None
            image = image.convert("L")
        elif image.mode not in GREY_MODES:
            alpha = np.asarray(image)[..., 3] if image.mode == "RGBA" else None
            image = image.convert("RGB")
        pixels = np.array(image)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return Raster(pixels, alpha, palette, lossy=lossy)


def _pillow_palette(image: Image.Image) -> np.ndarray:
    """A palette as `n 3` uint8."""
    colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return colors if len(colors) else np.zeros((1, 3), np.uint8)


def _deep_png(path: Path) -> Raster:
    """A PNG with 16 bits in each of several channels, of which Pillow would drop 8."""
    import png

    content = path.read_bytes()
    reader = png.Reader(bytes=content)
    reader.preamble()
    size = reader.height * (1 + 2 * reader.planes * reader.width)
    _refuse_bomb(path, (data for kind, data in png.Reader(bytes=content).chunks() if kind == b"IDAT"), size)
    width, height, rows, about = png.Reader(bytes=content).read()
    pixels = np.vstack([np.array(row, np.uint16) for row in rows]).reshape(height, width, about["planes"])
    has_alpha = about["planes"] in (2, 4)
    return Raster(pixels[..., :-1], pixels[..., -1]) if has_alpha else Raster(pixels)


def _refuse_bomb(path: Path, packed: Iterable[bytes], size: int) -> None:
    """Refuse what unpacks to far more than its header says, by DEFLATE, which packs a thousand bytes into one.

    Damaged data are left to whoever decodes them.
    """
    unpacker, left = zlib.decompressobj(), 2 * size + 4096  # interlaced rows are more
    with suppress(zlib.error):
        for block in packed:
            while block and left > 0:
                left -= len(unpacker.decompress(block, min(left, PIECE)))
                block = unpacker.unconsumed_tail
    if left <= 0:
        raise DataError(
            f"{path}: unpacks to more bytes than its header says. The file is damaged, or was made to fill the memory."
        )


def _tiff(path: Path, one_page: bool) -> Raster:
    """Any TIFF, through tifffile; only what is packed in a way that it cannot unpack comes from Pillow."""
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            every: list[Any] = list(file.pages)
            full = [page for page in every if not page.is_reduced and not page.is_mask]
            _refuse_several_kinds(path, full)
            parts = _parts(file, full)
            page, pages = parts[0].keyframe, 0
            for part in parts:
                sizes = dict(zip(part.axes, part.shape, strict=True))
                height, width = sizes.get("Y", 1), sizes.get("X", 1)
                pages += math.prod(part.shape) // max(1, height * width * page.samplesperpixel)
                _refuse_large(path, width, height, pages)
                if not {"Y", "X"} <= sizes.keys():
                    raise DataError(f"{path}: holds {part.axes or 'nothing'} and no image with height and width.")
            if one_page and pages > 1:
                raise DataError(f"{path}: holds {pages} pages, but must hold one. Save each page as a file.")
            for whole in (page for page in full if page.compression in DEFLATE):
                size = math.prod(whole.chunks) * whole.dtype.itemsize
                for start, length in zip(whole.dataoffsets, whole.databytecounts, strict=True):
                    file.filehandle.seek(start)
                    _refuse_bomb(path, [file.filehandle.read(length)], size)
            try:
                stacked = [_stacked(part) for part in parts]
                found = _interpreted(path, page, np.concatenate(stacked, 2) if len(parts) > 1 else stacked[0], one_page)
            except (ValueError, NotImplementedError) as error:  # a codec that tifffile lacks
                by_pillow = _by_pillow(path, page, parts) if _pillow_reads(page) else None
                if by_pillow is None:
                    hint = f" {extra('tiff')} reads more of them." if "imagecodecs" in str(error) else ""
                    raise DataError(f"{path}: cannot be read: {first_line(error)}{hint}") from error
                found = by_pillow
            if not found.samples.size:
                raise DataError(f"{path}: holds no pixels.")
            alpha = found.alpha
            for hidden in (page for page in every if full and page.is_mask and not page.is_reduced):
                if alpha is None and (hidden.imagelength, hidden.imagewidth) == found.samples.shape[:2]:
                    alpha = np.where(hidden.asarray(), np.uint8(255), np.uint8(0))
            inverted = page.photometric == WHITE_IS_ZERO and found.samples.dtype.kind == "u"
            lossy = page.compression in (6, 7, 34712)
            found = replace(found, alpha=alpha, lossy=lossy, inverted=inverted)
            if (nodata := _number(page.tags.valueof(GDAL_NODATA))) is not None:
                found = replace(found, nodata=_as_samples(nodata, found, page.bitspersample))
            return _upright(found, page.tags.valueof(ORIENTATION))
    except DataError:
        raise
    except Exception as error:  # on damaged files, nearly anything
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error


def _refuse_several_kinds(path: Path, pages: Sequence[Any]) -> None:
    kinds = [
        {
            "sizes": f"{page.imagewidth}x{page.imagelength}",
            "types": str(page.dtype),
            "numbers of bits": str(page.bitspersample),
            "numbers of samples": str(page.samplesperpixel),
            "kinds of extra samples": str([int(extra) for extra in page.extrasamples]),
            "photometric interpretations": str(int(page.photometric)),
        }
        for page in pages
    ]
    for what in kinds[0] if kinds else ():
        if len(found := dict.fromkeys(kind[what] for kind in kinds)) > 1:
            raise DataError(
                f"{path}: its {len(pages)} pages have different {what} ({', '.join(found)}). Save them with the same, "
                f"or save only the page that you need."
            )


def _parts(file: Any, full: list[Any]) -> list[Any]:
    """What to read, in the file's order: pages, or series where metadata say what the pages are, as OME's.

    One page of such a series may stand for several (ImageJ), and their order need not be that of the file (OME). A
    series over several files is not taken: others' pages are not this image's, and missing ones would be zeros.
    """
    series = [s for s in file.series if not s.keyframe.is_reduced and not s.keyframe.is_mask] or file.series[:1]
    own = not any(one.is_multifile or None in one._pages for one in series)
    if full and (series[0].kind in ("generic", "uniform") or not own):
        return full
    return sorted(series, key=lambda one: int(one.keyframe.index))


def _stacked(part: Any) -> np.ndarray:
    """A page or series as `h w pages samples`."""
    pixels = part.asarray()
    samples = pixels.shape[part.axes.index("S")] if "S" in part.axes else 1
    order = [part.axes.index(axis) for axis in "YX"]
    last = [part.axes.index("S")] if "S" in part.axes else []
    between = [i for i in range(pixels.ndim) if i not in (*order, *last)]
    pixels = pixels.transpose(*order, *between, *last)
    return np.asarray(pixels.reshape(*pixels.shape[:2], -1, samples))


def _interpreted(path: Path, page: Any, stacked: np.ndarray, one_page: bool) -> Raster:
    """Samples `h w pages samples` as the page's tags say. ValueError if only Pillow knows what they are."""
    if stacked.dtype.kind not in "uifb":
        raise DataError(
            f"{path}: {stacked.dtype} numbers cannot be pixels. Save the image with whole numbers or floats."
        )
    height, width, pages, _ = stacked.shape
    kind, bits = page.photometric, page.bitspersample
    alpha, first = None, stacked.shape[3] - len(page.extrasamples)
    place = next((first + i for i, extra in enumerate(page.extrasamples) if extra in ALPHA), 0)
    if one_page and kind == RGB and stacked.shape[3] == 4:
        place = 3
    if place:
        alpha = _alpha(stacked[..., 0, place], bits) if pages == 1 else None
        stacked = np.delete(stacked, place, axis=3)
    if kind == PALETTE and page.colormap is not None and stacked.shape[2:] == (1, 1):
        palette = (page.colormap.T >> 8).astype(np.uint8) if page.colormap.max() > 255 else page.colormap.T
        return Raster(stacked[..., 0], alpha, palette.astype(np.uint8))
    if kind == CMYK and stacked.shape[3] >= 4:
        top = 2**bits - 1
        inks = stacked[..., :4].astype(np.float64)
        stacked = np.rint((top - inks[..., :3]) * (top - inks[..., 3:]) / top).astype(stacked.dtype)
    elif kind > PALETTE and kind not in (MASK, CMYK) and stacked.shape[3] == 3:
        raise ValueError(f"photometric interpretation {kind}")  # as YCbCr and Lab
    samples = stacked.reshape(height, width, -1)
    if samples.dtype == bool:
        samples = samples.astype(np.uint8)
    if kind == WHITE_IS_ZERO and samples.dtype.kind == "u":
        samples = (2**bits - 1 - samples.astype(np.int64)).astype(samples.dtype)
    if samples.dtype == np.uint8 and bits < 8 and kind != PALETTE:
        samples = samples * np.uint8(255 // (2**bits - 1))
    return Raster(samples, alpha)


def _alpha(samples: np.ndarray, bits: int) -> np.ndarray:
    """Alpha `h w` of any type as uint8 or uint16.

    Fewer than 8 bits are spread over 8. Wider whole numbers that 16 bits hold stay as they are, since they may be a
    mask's; others are scaled by the range of their type. Floats up to 1 are scaled by 65535, others rounded.
    """
    if samples.dtype.kind in "bu" and samples.dtype.itemsize <= 2:
        spread = 255 // (2**bits - 1) if bits < 8 else 1
        return np.asarray(samples.astype(f"u{samples.dtype.itemsize}") * np.uint8(spread))
    values = np.nan_to_num(samples.astype(np.float64)).clip(0)
    if samples.dtype.kind == "f":
        scale = 65535.0 if values.max(initial=0) <= 1 else 1.0
    else:
        scale = 65535 / np.iinfo(samples.dtype).max if values.max(initial=0) > 65535 else 1.0
    return np.asarray(np.rint((values * scale).clip(0, 65535)).astype(np.uint16))


def _pillow_reads(page: Any) -> bool:
    """Whether Pillow reads all of a TIFF: one sample a pixel, or contiguous 8-bit colours."""
    samples, bits = page.samplesperpixel, page.bitspersample
    if samples == 1:
        return (bits, page.sampleformat) != (8, 2)
    known = samples == 3 or page.photometric == CMYK or (page.extrasamples and page.extrasamples[-1] in ALPHA)
    return bool(samples in (3, 4) and bits == 8 and page.planarconfig == 1 and known)


def _by_pillow(path: Path, page: Any, parts: Sequence[Any]) -> Raster | None:
    """A TIFF that `_pillow_reads`, as it is stored; None: Pillow does not know its type, as of some with 32 bits."""
    import tifffile

    pages: list[Any] = [
        one for part in parts for one in (part.pages if isinstance(part, tifffile.TiffPageSeries) else [part])
    ]
    try:
        with path.open("rb") as file, Image.open(file) as image:
            found = []
            for one in pages:
                image.seek(one.index)
                turned = image.tag_v2.get(ORIENTATION)  # type: ignore[attr-defined]
                image.load()  # it comes as it is shown
                found.append(_upright(_opened(image, lossy=False), {6: 8, 8: 6}.get(turned, turned)))
    except UnidentifiedImageError:
        return None
    pixels = np.concatenate([raster.samples for raster in found], axis=2)
    if page.dtype == np.uint32:  # Pillow has signed numbers of 32 bits alone
        pixels = pixels.view(np.uint32)
    bits = page.bitspersample
    if page.photometric == WHITE_IS_ZERO and bits > 8 and pixels.dtype.kind == "u":  # Pillow turns up to 8 bits
        pixels = (2**bits - 1 - pixels.astype(np.int64)).astype(pixels.dtype)
    return Raster(pixels, found[0].alpha, found[0].palette)


def _as_samples(nodata: float, raster: Raster, bits: int) -> float:
    """A stored value as `samples` have it: inverted, spread over 8 bits, infinite where a float cannot hold it."""
    if raster.inverted:
        nodata = 2**bits - 1 - nodata
    if bits < 8 and raster.palette is None:
        nodata *= 255 // (2**bits - 1)
    with np.errstate(over="ignore"):
        return float(raster.samples.dtype.type(nodata)) if raster.samples.dtype.kind == "f" else nodata


def _number(tag: object) -> float | None:
    """The tag of a value for no data, a text, as a number."""
    try:
        return float(str(tag).strip("\0 "))
    except ValueError:
        return None


def upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """Return a view of stored pixels `h w ...` in the orientation in which they are displayed.

    Orientations 2 to 8 are stored flipped (2, 3, 4) or with rows and columns swapped, too; others mean nothing.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def _upright(raster: Raster, orientation: object) -> Raster:
    if orientation not in range(2, 9):
        return raster
    alpha = None if raster.alpha is None else np.ascontiguousarray(upright(raster.alpha, orientation))
    return replace(raster, samples=np.ascontiguousarray(upright(raster.samples, orientation)), alpha=alpha)


def _refuse_large(path: Path, width: int, height: int, pages: int) -> None:
    if width * height * pages > LARGEST:
        raise DataError(f"{path}: {width}x{height} pixels of at most {LARGEST // 10**6} million. Cut it up.")
