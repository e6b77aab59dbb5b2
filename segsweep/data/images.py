"""Files to arrays."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segsweep.errors import DataError

GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


def size(path: Path) -> tuple[int, int]:
    """Height and width as shown (after EXIF rotation), read from the header alone.

    Raises:
        DataError: not an image.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
            return (width, height) if turned else (height, width)
    except _UNREADABLE as error:
        raise DataError(_unreadable(path, error)) from error


def read_image(path: Path) -> np.ndarray:
    """An image as `h w c`, c 1 or 3; uint8, or uint16 and float32 where the file is. Palettes expanded, alpha dropped.

    Raises:
        DataError: not an image, or truncated.
    """
    try:
        with _open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("1", "LA"):
                image = image.convert("L")
            elif image.mode == "P":
                image = image.convert("RGB")
                pixels = np.asarray(image)
                grey = bool((pixels == pixels[..., :1]).all())  # a grey image may come palette-coded
                image = image.convert("L") if grey else image
            elif image.mode not in GREY:
                image = image.convert("RGB")
            pixels = np.asarray(image)
    except _UNREADABLE as error:
        raise DataError(_unreadable(path, error)) from error
    if pixels.dtype == np.int32:
        pixels = pixels.astype(np.uint16) if pixels.min() >= 0 and pixels.max() < 2**16 else pixels.astype(np.float32)
    if pixels.dtype == np.dtype(">u2"):
        pixels = pixels.astype(np.uint16)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_mask(path: Path) -> np.ndarray:
    """A mask as `h w` uint8: its values as stored, palettes as indices, never expanded.

    Raises:
        DataError: not an image, several channels that differ, or values above 255.
    """
    try:
        with _open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            values = np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)
    except _UNREADABLE as error:
        raise DataError(_unreadable(path, error)) from error
    if values.ndim == 3:
        values = values[..., : 3 if values.shape[2] == 4 else None]
        if (values != values[..., :1]).any():
            raise DataError(f"{path}: a mask must have one channel, this one is coloured ({image.mode}).")
        values = values[..., 0]
    if values.size and (values.min() < 0 or values.max() > 255 or (values != np.floor(values)).any()):
        raise DataError(f"{path}: mask values must be whole numbers in 0..255, these go to {values.max()}.")
    return values.astype(np.uint8)


_UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def _unreadable(path: Path, error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"{path}: empty file." if path.stat().st_size == 0 else f"{path}: not an image that can be read."
    return f"{path}: cannot be read: {error}"
