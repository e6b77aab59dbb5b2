"""From an image to a canvas: the part of it that is needed is cut out on the host, and warped on the device.

Training, scoring and prediction all see their images through this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.data.geometry import Placement, Size, sample


@dataclass(frozen=True)
class Box:
    """The part of an image that a canvas needs, and where the canvas lies in it."""

    first: np.ndarray  # `2` int64, x and y of its upper left pixel
    last: np.ndarray  # `2`, beyond its lower right one
    factor: np.ndarray  # `2`, whole factors that it is shrunk by along x and y, where the canvas is coarser
    affine: np.ndarray  # `2 3`, from the canvas to pixels of the shrunk part
    bounds: np.ndarray  # `2 2`, first and last corner of the image in these pixels, x first

    @property
    def extent(self) -> np.ndarray:
        """Width and height of the shrunk part."""
        return np.asarray(-(-(self.last - self.first) // self.factor))


def needed(size: Size, placement: Placement) -> Box:
    """Return what a canvas laid so needs of an image of this height and width."""
    sides = np.array(size[::-1])
    # Averaging blocks of whole pixels first keeps the bilinear warp from skipping any: an antialias that costs little.
    factor = np.maximum(1, np.floor(np.linalg.norm(placement.linear, axis=1))).astype(int)
    half = np.abs(placement.linear) @ (np.array(placement.canvas[::-1]) / 2)
    first = np.clip(np.floor(placement.center - half) - factor, 0, sides - 1).astype(int)
    last = np.clip(np.ceil(placement.center + half) + factor, first + 1, sides).astype(int)
    linear = placement.linear / factor[:, None]
    shift = (placement.center - first) / factor
    bounds = np.stack([(0 - first) / factor, (sides - first) / factor])
    return Box(first, last, factor, np.concatenate([linear, shift[:, None]], axis=1), bounds)


@dataclass(frozen=True)
class Window:
    """The part of one image that a canvas needs."""

    image: Tensor  # `h w c` in the store's data type
    mask: Tensor  # `h w`
    box: Box


def cut(image: Tensor, mask: Tensor, placement: Placement) -> Window:
    """Cut out the window of `h w c`, of any number type, and its mask, `h w` uint8, that a canvas laid so needs."""
    box = needed((mask.shape[0], mask.shape[1]), placement)
    (left, top), (right, bottom), (x, y) = box.first.tolist(), box.last.tolist(), box.factor.tolist()
    image, mask = image[top:bottom, left:right], mask[top:bottom, left:right]
    if x > 1 or y > 1:
        image = _shrunk(image, x, y)
        mask = mask[_middles(mask.shape[0], y)][:, _middles(mask.shape[1], x)]
    return Window(image, mask, box)


@dataclass(frozen=True)
class Windows:
    """Several windows in arrays of one size, from the upper left."""

    images: Tensor  # `b h w c`, of one data type
    masks: Tensor  # `b h w` uint8
    # `b 14` float32 of each window: its box's affine and bounds, its first and last pixel centre, x first.
    numbers: Tensor

    def pinned(self) -> "Windows":
        """Copy it to memory that a GPU can copy from by itself."""
        return Windows(*(tensor.pin_memory() for tensor in vars(self).values()))


def stack(windows: Sequence[Window], channels: int) -> Windows:
    """Put windows together; one of a single channel counts for all `channels`."""
    height, width = (max(sides) for sides in zip(*(w.mask.shape for w in windows), strict=True))
    first = windows[0].image
    images = torch.zeros(len(windows), height, width, channels, dtype=first.dtype, device=first.device)
    masks = torch.zeros(len(windows), height, width, dtype=torch.uint8, device=first.device)
    for i, window in enumerate(windows):
        h, w = window.mask.shape
        images[i, :h, :w] = window.image
        masks[i, :h, :w] = window.mask
    return Windows(images, masks, _numbers([window.box for window in windows]))


def _numbers(boxes: Sequence[Box]) -> Tensor:
    rows = [np.concatenate([b.affine.ravel(), b.bounds.ravel(), (0.5, 0.5), b.extent - 0.5]) for b in boxes]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def warp(windows: Windows, canvas: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Warp windows onto a canvas: images, mask values, and where there is an image at all.

    They are `b c h w` float32, bilinear, the edge replicated beyond the image; `b h w` uint8, nearest; `b h w` bool.
    """
    images, masks, numbers = (tensor.to(device, non_blocking=True) for tensor in vars(windows).values())
    points = _mapped(canvas, numbers[:, :6].view(-1, 2, 3))
    # Each of `2 b 1 1`: x and y of the image's corners, and of the window's outermost pixel centres. Beyond these the
    # edge is replicated, whatever the other windows' sizes.
    low, high, least, most = numbers[:, 6:].view(-1, 4, 2).permute(1, 2, 0)[..., None, None]
    inside = ((points >= low) & (points < high)).all(0)
    x, y = points = torch.clamp(points, least, most)
    pixels = sample(images.permute(0, 3, 1, 2).float(), x, y)
    column, row = points.long()
    values = masks.flatten(1).gather(1, (row * masks.shape[2] + column).flatten(1)).view_as(inside)
    return pixels, values, inside


def _shrunk(image: Tensor, x: int, y: int) -> Tensor:
    """Means of blocks of y by x pixels; smaller blocks at the far edges."""
    planes = F.avg_pool2d(image.permute(2, 0, 1)[None].float(), (y, x), ceil_mode=True, count_include_pad=False)
    pooled = planes[0].permute(1, 2, 0)
    return pooled if image.dtype.is_floating_point else pooled.round().to(image.dtype)


def _middles(length: int, factor: int) -> slice | Tensor:
    return (torch.arange(0, length, factor) + factor // 2).clamp(max=length - 1) if factor > 1 else slice(None)


def _mapped(canvas: Size, affine: Tensor) -> Tensor:
    """Where the pixel centres of a canvas lie under the maps `b 2 3` from its centre: x and y, `2 b h w`."""
    x, y = _centres(canvas, affine.device)
    by_x, by_y, shift = affine.permute(2, 1, 0)[..., None, None]  # each `2 b 1 1`
    found: Tensor = by_x * x + (by_y * y + shift)
    return found


@lru_cache(maxsize=8)
def _centres(canvas: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres of a canvas from its middle: x `w`, y `h 1`."""
    with torch.inference_mode(False):
        x = torch.arange(canvas[1], device=device) + 0.5 - canvas[1] / 2
        y = torch.arange(canvas[0], device=device)[:, None] + 0.5 - canvas[0] / 2
    return x, y
