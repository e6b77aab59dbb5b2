"""The files that `segsweep predict` writes for an image: its mask, an overlay, probabilities."""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from segsweep.data.labels import VOID
from segsweep.data.raster import TIFF
from segsweep.errors import ConfigError
from segsweep.figures import pictures
from segsweep.inference.geotiff import Georeference, nodata_tag
from segsweep.nn.checkpoint import ModelInfo
from segsweep.nn.unet import predict as classes_of
from segsweep.paths import aside, atomically, reserve

OVERLAYS, PROBABILITIES = "overlays", "probabilities"
PNG = (np.uint8, np.uint16)  # that a PNG can hold
MARK = "segsweep predict"  # names the software in each file: a PNG's text, a TIFF's tag, a JPEG's comment


@dataclass(frozen=True)
class MaskForm:
    """How the classes of a mask are written: as indices with a palette, or each as a value or colour of its own."""

    table: np.ndarray | None = None  # the value of each class, `k`, or its colour, uint8 `k 3`; None: indices
    void: int = VOID  # the value, or each channel of the colour, of pixels without data; no class has it

    @classmethod
    def original(cls, info: ModelInfo) -> "MaskForm":
        """Write what the masks of the training held.

        Raises ConfigError: the model's file does not say it, or no file can hold it.
        """
        if info.values is None:
            raise ConfigError(
                "--values original: the model's file does not say which mask values its classes "
                "had. Drop --values to get class indices."
            )
        table = _table(info.values)
        taken = table if table.ndim == 1 else table[(table == table[:, :1]).all(1), 0]
        return cls(table, max(set(range(256)) - set(taken.tolist())))

    def values(self, classes: int) -> list[Any]:
        """Return what is written for each class."""
        return list(range(classes)) if self.table is None else self.table.tolist()

    @property
    def suffix(self) -> str:
        """Name the kind of file that can hold it."""
        return ".png" if self.table is None or self.table.dtype in PNG else ".tif"

    def save(self, classes: np.ndarray, path: Path, ground: Georeference) -> None:
        """Write class indices, uint8 `h w`, as PNG or TIFF by the path's suffix; a TIFF has its place on the ground.

        255 stands for no data; a TIFF with such pixels says so in GDAL's tag, unless it is of colours.
        """
        pixels = classes
        if self.table is not None:
            written = np.full((VOID + 1, *self.table.shape[1:]), self.void, self.table.dtype)
            written[: len(self.table)] = self.table
            pixels = written[classes]
        if path.suffix == ".png":
            image = pictures.indexed(pixels) if self.table is None else Image.fromarray(pixels)
            about = PngInfo()
            about.add_text("Software", MARK)
            _save(image, path, "PNG", pnginfo=about)
            return
        how: dict[str, Any] = {"photometric": "rgb" if pixels.ndim == 3 else "minisblack"}
        if self.table is None:
            how = {"photometric": "palette", "colormap": (pictures.COLORS.T * 257).astype(np.uint16)}
        tags = ground.tags
        if pixels.ndim == 2 and (classes == VOID).any():
            tags += (nodata_tag(self.void),)
        how |= {"compression": "zlib", "metadata": None, "software": MARK, "extratags": tags}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomically(path, lambda target: tifffile.imwrite(target, pixels, **how))


INDICES = MaskForm()


class Places(NamedTuple):
    """Where a mask is written, and its overlay and probabilities if they are wanted."""

    mask: Path
    overlay: Path | None
    probabilities: Path | None

    @classmethod
    def of(cls, folder: Path, target: Path, overlay: bool, probabilities: bool) -> "Places":
        """Place what is wanted below a folder; `target` is the mask's path there."""
        painted = (folder / OVERLAYS / target).with_suffix(".jpg") if overlay else None
        maps = (folder / PROBABILITIES / target).with_suffix(".tif") if probabilities else None
        return cls(folder / target, painted, maps)


def is_own(path: Path) -> bool:
    """Tell whether `write` wrote this file, by its mark; False if the file cannot be read."""
    try:
        if path.suffix.lower() in TIFF:
            with tifffile.TiffFile(path) as file:
                return bool(file.pages.first.tags.valueof("Software") == MARK)
        with Image.open(path) as image:
            return MARK in (image.info.get("Software"), image.info.get("comment", b"").decode(errors="replace"))
    except Exception:  # on damaged files, nearly anything
        return False


def probability(logits: Tensor) -> Tensor:
    """Turn logits `k ...` into probabilities of the same shape: of the foreground for one logit, else of each class."""
    return logits.sigmoid() if len(logits) == 1 else logits.softmax(0)


def write(
    pixels: np.ndarray,
    parts: Iterable[tuple[slice, Tensor]],
    place: Places,
    limits: tuple[float, float],
    form: MaskForm,
    ground: Georeference | None,
    lacking: np.ndarray | None = None,
) -> None:
    """Write what a model says of an image, the mask last: one that is there is done.

    Args:
        pixels: the image, `h w c`, from black to white within `limits`.
        parts: rows and their logits, `k rows w`, from the top down.
        ground: where a GeoTIFF lies; what is written as TIFF lies there, too.
        lacking: the pixels without data, bool `h w`; None: there are none. They are of no class: `form.void` in the
            mask, NaN in the probabilities, dark in the overlay.
    """
    size, placed = (pixels.shape[0], pixels.shape[1]), ground or Georeference()
    mask = np.empty(placed.stored(size), np.uint8)
    classes = placed.upright(mask)
    painted = np.empty((*size, 3 if place.overlay else 0), np.uint8)
    maps: np.ndarray | None = None
    with ExitStack() as written:
        for rows, logits in parts:
            classes[rows] = classes_of(logits[None])[0].to(torch.uint8).cpu().numpy()
            if lacking is not None:
                classes[rows][lacking[rows]] = VOID
            if place.overlay:
                painted[rows] = pictures.overlay(pictures.shown(pixels[rows], *limits), classes[rows])
            if place.probabilities:
                if maps is None:
                    place.probabilities.parent.mkdir(parents=True, exist_ok=True)
                    writing = written.enter_context(aside(place.probabilities))
                    maps = _maps(writing, (len(logits), *placed.stored(size)), ground, lacking is not None)
                found = placed.upright(maps)[:, rows]
                found[:] = probability(logits).cpu().numpy()
                if lacking is not None:
                    found[:, lacking[rows]] = np.nan
        if maps is not None:
            maps.flush()  # type: ignore[attr-defined]
    if place.overlay:
        _save(Image.fromarray(painted), place.overlay, "JPEG", quality=90, comment=MARK)
    form.save(mask, place.mask, placed)


def _maps(path: Path, shape: tuple[int, int, int], ground: Georeference | None, gaps: bool) -> np.ndarray:
    """Make a float32 TIFF `k h w` in which rows are filled in as they come.

    A GeoTIFF has its maps as bands of one page, as geographic programs expect them, and with `gaps` GDAL's tag says
    that NaN stands for no data; others have a page for each.
    """
    how: dict[str, Any] = {"metadata": {"axes": "CYX"}}
    if ground:
        tags = ground.tags + ((nodata_tag(math.nan),) if gaps else ())
        how = {"metadata": None, "extratags": tags, "planarconfig": "separate" if shape[0] > 1 else None}
    how |= {"photometric": "minisblack", "software": MARK}
    made: np.ndarray = tifffile.memmap(path, shape=shape, dtype=np.float32, **how)
    reserve(path)
    return made


def _table(values: Sequence[int | Sequence[int]]) -> np.ndarray:
    """Return each class's value, of the smallest integer type that holds all and 255, or its colour, uint8 `k 3`."""
    if all(isinstance(value, int) for value in values):
        return np.array(values, np.result_type(*(np.min_scalar_type(value) for value in (*values, VOID))))
    colors = [(value, value, value) if isinstance(value, int) else value for value in values]
    if not all(0 <= channel <= 255 for color in colors for channel in color):
        raise ConfigError(
            f"--values original: the training masks hold colours and also numbers outside 0 to 255, {values}; one "
            f"file cannot hold both. Drop --values to get class indices."
        )
    return np.array(colors, np.uint8)


def _save(image: Image.Image, path: Path, kind: str, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomically(path, lambda target: image.save(target, kind, **options))
