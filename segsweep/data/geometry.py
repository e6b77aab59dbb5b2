"""Where a canvas lies on an image: affine maps from canvas pixels to image pixels.

Coordinates are continuous, x first: pixel i covers [i, i + 1). A `Placement` maps a point of the canvas, measured from
the canvas's centre, to the image: `image = linear @ canvas + center`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # height, width

SMALLEST = 32  # pixels a side of the least canvas
STRIP = 4_000_000, 64_000_000  # numbers brought to an image's own grid at once: on a CPU, on another device


@dataclass(frozen=True)
class Placement:
    """Where a canvas lies on an image."""

    linear: np.ndarray  # `2 2`
    center: np.ndarray  # `2`, the image point under the canvas's centre
    canvas: Size

    def part(self, rows: slice, columns: slice) -> "Placement":
        """Place a part of the canvas on the image."""
        if (rows.start, columns.start) == (0, 0) and (rows.stop, columns.stop) == self.canvas:
            return self
        middle = np.array([columns.start + columns.stop, rows.start + rows.stop]) / 2
        shift = self.linear @ (middle - np.array(self.canvas[::-1]) / 2)
        return Placement(self.linear, self.center + shift, (rows.stop - rows.start, columns.stop - columns.start))

    def untouched(self, image: Size) -> bool:
        """Tell whether the canvas is the image's own pixel grid."""
        pixel_on_pixel = (self.linear == np.eye(2)).all() and (2 * self.center == image[::-1]).all()
        return bool(self.canvas == image and pixel_on_pixel)


@dataclass(frozen=True)
class Canvas:
    """How images are cropped or resized to the canvas."""

    size: Size
    resize: str  # "pad": the whole image, its aspect kept; "squash": the whole image, stretched; "crop": a part of it
    zoom: float = 1.0  # with crops: canvas pixels for each image pixel along a side
    filled: bool = False  # with crops: no canvas is smaller than `size`, since the encoder stretches it to its own size

    def whole(self, image: Size) -> "Canvas":
        """Return the canvas that a whole image is seen on: with crops one of the zoomed image's height and width."""
        if self.resize != "crop":
            return self
        least = self.size if self.filled else (SMALLEST, SMALLEST)
        height, width = (max(low, round(side * self.zoom)) for low, side in zip(least, image, strict=True))
        return replace(self, size=(height, width))

    @property
    def extent(self) -> np.ndarray:
        """Width and height of a crop in image pixels, `2`."""
        return np.array(self.size[::-1]) / self.zoom

    def place(self, image: Size, window: np.ndarray | None = None) -> Placement:
        """Lay the canvas over an image; `window` is where a crop lies, x and y in [0, 1], by default the middle."""
        size, space = np.array(image[::-1], float), np.array(self.size[::-1], float)
        center = size / 2
        if self.resize == "pad":
            scale = np.full(2, (size / space).max())
        elif self.resize == "squash":
            scale = size / space
        else:
            scale = np.full(2, 1 / self.zoom)
            extent = self.extent
            room = size - extent
            middle = np.floor(room / 2) if self.zoom == 1 else room / 2  # unzoomed pixels are not resampled
            within = np.minimum(np.floor((room + 1) * window), room) if window is not None else middle
            center = np.where(room > 0, within, middle) + extent / 2
        return Placement(np.diag(scale), center, self.size)


def sample(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample maps `b c h w` float bilinearly at pixel coordinates x and y: `b c H W`, the edge replicated.

    The coordinates are `b H W`, or `1 H W` for all.
    """
    height, width = maps.shape[-2:]
    points = x.new_empty(*x.shape, 2)
    points[..., 0] = (x - width / 2).mul_(2 / width)
    points[..., 1] = (y - height / 2).mul_(2 / height)
    points = points.expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, points, mode="bilinear", padding_mode="border", align_corners=False)


def to_image(maps: Tensor, placement: Placement, image: Size, rows: slice = slice(None)) -> Tensor:
    """Bring maps from a canvas laid without rotation to the image's pixel grid: to `... c h w`, or `rows` of it.

    Args:
        maps: `c H W`, or `b c H W` of several images of one size and placement.
    """
    if placement.untouched(image):
        return maps[..., rows, :]
    scale = np.diag(placement.linear)
    offset = np.array(placement.canvas[::-1]) / 2 - placement.center / scale
    y = (torch.arange(image[0], device=maps.device)[rows] + 0.5) / scale[1] + offset[1]
    x = (torch.arange(image[1], device=maps.device) + 0.5) / scale[0] + offset[0]
    x, y = torch.meshgrid(x.to(maps.dtype), y.to(maps.dtype), indexing="xy")
    sampled = sample(maps if maps.ndim == 4 else maps[None], x[None], y[None])
    return sampled if maps.ndim == 4 else sampled[0]


def strips(maps: Tensor, placement: Placement, image: Size) -> Iterator[tuple[slice, Tensor]]:
    """Bring maps to the image as `to_image` does, from the top down, in bounded memory: yield rows and `... rows w`."""
    step = max(1, STRIP[maps.device.type != "cpu"] // (image[1] * math.prod(maps.shape[:-2])))
    for start in range(0, image[0], step):
        rows = slice(start, min(start + step, image[0]))
        yield rows, to_image(maps, placement, image, rows)
