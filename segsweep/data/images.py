"""Files to arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segsweep.errors import DataError, first_line

Value = int | tuple[int, int, int]  # what a mask says of a pixel: a number, or a colour

GREY = ("L", "I", "I;16", "I;16B", "I;16L", "F")
TIFF = (".tif", ".tiff")
SUFFIXES = (".png", ".jpg", ".jpeg", *TIFF, ".bmp", ".webp", ".gif")  # of files that are taken for images
LARGEST = 400_000_000  # pixels, all pages together; a file may state any size and unpack to it
ORIENTATION = 274  # the tag, of EXIF and TIFF
COLOR = 1 << 24  # in the codes of a mask: red, green and blue follow, a byte each

Image.MAX_IMAGE_PIXELS = None  # Pillow's own check only warns at first, and warnings are no matter for threads


def read_image(path: Path) -> np.ndarray:
    """Read an image as `h w c` uint8, or uint16 and float32 where the file is.

    c is 1 or 3, palettes expanded and alpha dropped; the pages of a TIFF are channels, as are more than three samples
    of a pixel. DataError if it is no image, truncated, or has pixels that are not finite.
    """
    pixels = _read(path, is_mask=False)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        pixels = pixels.astype(np.uint16)  # in this machine's byte order
    elif pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError(f"{path}: holds NaN or infinite pixels.")
    return pixels


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as `h w` of codes, uint8 or int32: numbers as stored, palettes as indices, colours above `COLOR`.

    Those who write GIFs number a palette anew in each file, so there the colours count, and grey ones are numbers.
    DataError if it is no image, or has channels that are no colour or values that are no whole numbers.
    """
    values = _read(path, is_mask=True)
    if values.dtype != np.uint8 and not ((values == np.floor(values)) & (abs(values.astype(float)) < COLOR)).all():
        raise DataError(f"{path}: mask values must be whole numbers below {COLOR}; these go to {values.max()}.")
    if (values != values[..., :1]).any():
        if values.shape[2] != 3 or values.dtype != np.uint8:
            raise DataError(f"{path}: a mask must have one channel or 8-bit colours; this one has {values.shape[2]}.")
        red, green, blue = np.moveaxis(values.astype(np.int32), 2, 0)
        return np.asarray(COLOR | red << 16 | green << 8 | blue)
    return np.ascontiguousarray(values[..., 0], values.dtype if values.dtype == np.uint8 else np.int32)


def channels_named(number: int) -> str:
    """Name a number of channels for a person."""
    return {1: "grey", 3: "colour"}.get(number, f"{number} channels")


def value(code: int) -> Value:
    """Return what a code of `read_mask` stands for."""
    return ((code >> 16) & 255, (code >> 8) & 255, code & 255) if code >= COLOR else code


def code(value: Value | Sequence[int]) -> int:
    """Return the code of a mask value or colour."""
    return value if isinstance(value, int) else COLOR | value[0] << 16 | value[1] << 8 | value[2]


def _read(path: Path, is_mask: bool) -> np.ndarray:
    """Pixels as `h w c`, turned as the EXIF orientation says; palettes as colours or, in masks, as indices."""
    try:
        # A file and not its path: Pillow maps uncompressed TIFFs into memory by path, and turned ones wrongly.
        with path.open("rb") as file, Image.open(file) as image:
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a camera's JPEG, preview behind it
            _refuse_large(path, image.width, image.height, pages)
            if pages > 1 and (is_mask or image.format != "TIFF"):
                what = "pages" if image.format == "TIFF" else "frames"
                raise DataError(f"{path}: holds {pages} {what}; one is needed. Save them apart.")
            if image.format == "TIFF" and not _plain(image):
                return _tiff(path, is_mask)
            if image.mode in ("LA", "RGB", "RGBA") and any(";16" in str(tile.args) for tile in image.tile):
                return _turned(_deep_png(path), image.getexif().get(ORIENTATION))
            return np.concatenate([_pixels(path, image, page, is_mask) for page in range(pages)], axis=2)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        if path.suffix.lower() in TIFF and path.stat().st_size:
            return _tiff(path, is_mask)
        what = "empty file" if path.stat().st_size == 0 else "not an image that can be read"
        raise DataError(f"{path}: {what}.") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error


def _pixels(path: Path, opened: Image.Image, page: int, is_mask: bool) -> np.ndarray:
    if page:
        first, pages = opened.size, getattr(opened, "n_frames", 1)
        opened.seek(page)
        if opened.size != first:
            raise DataError(f"{path}: its {pages} pages are of several sizes. Save the one that counts.")
    image = ImageOps.exif_transpose(opened)
    indices = is_mask and opened.format != "GIF"
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        image = image if indices else image.convert("RGBA").convert("RGB")
    elif image.mode not in GREY:
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if opened.mode in ("P", "PA") and pixels.ndim == 3 and (indices or (pixels == pixels[..., :1]).all()):
        pixels = pixels[..., 0]  # a grey image may come palette-coded; a mask's indices may have alpha beside them
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _plain(image: Image.Image) -> bool:
    """Whether Pillow reads all of a TIFF: one unsigned sample or float a pixel, or contiguous 8-bit colours."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    samples, bits = tags.get(277, 1), set(tags.get(258, (1,)))
    if samples == 1:
        return bits != {8} or tags.get(339, (1,))[0] != 2
    alpha_or_cmyk = samples == 4 and (tags.get(262) == 5 or tags.get(338, (0,))[0] in (1, 2))
    return bits == {8} and tags.get(284, 1) == 1 and (samples == 3 or alpha_or_cmyk)


def _deep_png(path: Path) -> np.ndarray:
    """A PNG with 16 bits in each of several channels, of which Pillow would drop 8; alpha dropped."""
    import png

    width, height, rows, about = png.Reader(bytes=path.read_bytes()).read()
    pixels = np.vstack([np.array(row, np.uint16) for row in rows]).reshape(height, width, about["planes"])
    return pixels[..., : 3 if about["planes"] > 2 else 1]


def _tiff(path: Path, is_mask: bool) -> np.ndarray:
    """What is beyond Pillow: many samples of a pixel, planes, deep colour. All axes but two become channels."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series, page = file.series[0], file.series[0].keyframe
            sizes = dict(zip(series.axes, series.shape, strict=True))
            _refuse_large(path, sizes.get("X", 1), sizes.get("Y", 1), pages=len(series.pages))
            if not {"Y", "X"} <= sizes.keys():
                raise DataError(f"{path}: holds {series.axes or 'nothing'} and no image with height and width.")
            if is_mask and series.size != sizes["Y"] * sizes["X"] * sizes.get("S", 1):
                raise DataError(f"{path}: holds several pages; one is needed. Save them apart.")
            pixels = series.asarray()
            if "S" in sizes and page.extrasamples and page.extrasamples[-1] in (1, 2):  # alpha
                pixels = np.delete(pixels, -1, axis=series.axes.index("S"))
            orientation = page.tags.valueof(ORIENTATION)
    except DataError:
        raise
    except Exception as error:  # on damaged files, nearly anything
        hint = " pip install imagecodecs reads more of them." if "imagecodecs" in str(error) else ""
        raise DataError(f"{path}: cannot be read: {first_line(error)}{hint}") from error
    if not pixels.size:
        raise DataError(f"{path}: holds no pixels.")
    y, x = series.axes.index("Y"), series.axes.index("X")
    return _turned(np.moveaxis(pixels, (y, x), (0, 1)).reshape(sizes["Y"], sizes["X"], -1), orientation)


def _turned(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """As shown: EXIF's orientations 2 to 8 are stored flipped (2, 3, 4) or with rows and columns swapped, too."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


def _refuse_large(path: Path, width: int, height: int, pages: int) -> None:
    if width * height * pages > LARGEST:
        raise DataError(f"{path}: {width}x{height} pixels of at most {LARGEST // 10**6} million. Cut it up.")
