"""Files to arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segsweep.errors import DataError, first_line

GREY = ("L", "I", "I;16", "I;16B", "I;16L", "F")
LARGEST = 400_000_000  # pixels; a file may state any size and unpack to it
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
EXIF_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = None  # Pillow's own check only warns at first, and warnings are no matter for threads


def size(path: Path) -> tuple[int, int]:
    """Height and width as shown (after EXIF rotation), read from the header alone.

    Raises:
        DataError: not an image, or of more than `LARGEST` pixels.
    """
    with _opened(path) as image:
        width, height = image.size
        exif = Image.Exif()
        if image.format != "TIFF":  # there, the size has been turned already
            exif.load(image.info.get("exif", b""))
        return (width, height) if exif.get(EXIF_ORIENTATION) in TURNED else (height, width)


def read_image(path: Path) -> np.ndarray:
    """An image as `h w c`, c 1 or 3; uint8, or uint16 and float32 where the file is. Palettes expanded, alpha dropped.

    Raises:
        DataError: not an image, truncated, or with pixels that are not finite.
    """
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("1", "LA"):
            image = image.convert("L")
        elif image.mode in ("P", "PA"):
            image = image.convert("RGBA").convert("RGB")
            red, green, blue = image.split()
            if red.tobytes() == green.tobytes() == blue.tobytes():  # a grey image may come palette-coded
                image = red
        elif image.mode not in GREY:
            image = image.convert("RGB")
        pixels = np.asarray(image)
    if pixels.dtype == np.int32:
        pixels = pixels.astype(np.float32)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        pixels = pixels.astype(np.uint16)  # in this machine's byte order
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError(f"{path}: holds NaN or infinite pixels.")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_mask(path: Path) -> np.ndarray:
    """A mask as `h w` uint8: its values as stored, palettes as indices, never expanded.

    Raises:
        DataError: not an image, several channels that differ, or values above 255.
    """
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened)
        values = np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)
    if values.ndim == 3:
        values = values[..., : 3 if values.shape[2] == 4 else None]
        if (values != values[..., :1]).any():
            raise DataError(f"{path}: a mask must have one channel, this one is coloured ({image.mode}).")
        values = values[..., 0]
    if values.size and (values.min() < 0 or values.max() > 255 or (values != np.floor(values)).any()):
        raise DataError(f"{path}: mask values must be whole numbers in 0..255, these go to {values.max()}.")
    return values.astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An open image; whatever goes wrong until it is closed is a DataError that names the file."""
    try:
        # A file and not its path: Pillow maps uncompressed TIFFs into memory by path, and turned ones wrongly.
        with path.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > LARGEST:
                raise DataError(
                    f"{path}: {image.width}x{image.height} pixels of at most {LARGEST // 10**6} million. Cut it up."
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise DataError(f"{path}: holds {frames} pages or frames; one is needed. Save them apart.")
            if image.mode in ("RGB", "RGBA") and any(";16" in str(tile.args) for tile in image.tile):
                raise DataError(f"{path}: 16 bits for each of several channels, of which 8 would be lost. Save 8 bits.")
            yield image
    except UnidentifiedImageError as error:
        what = "empty file" if path.stat().st_size == 0 else "not an image that can be read"
        raise DataError(f"{path}: {what}.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error
