"""From an image to a canvas: the part of it that is needed is cut out on the host, and warped on the device.

Training, scoring and prediction all see their images through this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.data.geometry import Placement, Size, sample


@dataclass(frozen=True)
class Window:
    """The part of one image that a canvas needs, shrunk by a whole factor where the canvas is coarser."""

    image: Tensor  # `h w c` in the store's data type
    mask: Tensor  # `h w`
    affine: np.ndarray  # `2 3`, from the canvas to window pixels
    bounds: np.ndarray  # `2 2`, first and last corner of the image in window pixels, x first


def cut(image: Tensor, mask: Tensor, placement: Placement) -> Window:
    """Cut out the window of `h w c`, of any number type, and its mask, `h w` uint8, that a canvas laid so needs."""
    size = np.array(mask.shape[::-1])
    # Averaging blocks of whole pixels first keeps the bilinear warp from skipping any: an antialias that costs little.
    factor = np.maximum(1, np.floor(np.linalg.norm(placement.linear, axis=1))).astype(int)
    half = np.abs(placement.linear) @ (np.array(placement.canvas[::-1]) / 2)
    first = np.clip(np.floor(placement.center - half) - factor, 0, size - 1).astype(int)
    last = np.clip(np.ceil(placement.center + half) + factor, first + 1, size).astype(int)
    image = image[first[1] : last[1], first[0] : last[0]]
    mask = mask[first[1] : last[1], first[0] : last[0]]
    if (factor > 1).any():
        image = _shrunk(image, int(factor[0]), int(factor[1]))
        mask = mask[_middles(mask.shape[0], int(factor[1]))][:, _middles(mask.shape[1], int(factor[0]))]
    linear = placement.linear / factor[:, None]
    shift = (placement.center - first) / factor
    bounds = np.stack([(0 - first) / factor, (size - first) / factor])
    return Window(image, mask, np.concatenate([linear, shift[:, None]], axis=1), bounds)


@dataclass(frozen=True)
class Windows:
    """Several windows in arrays of one size, from the upper left."""

    images: Tensor  # `b h w c`, of one data type
    masks: Tensor  # `b h w` uint8
    affine: Tensor  # `b 2 3`
    bounds: Tensor  # `b 2 2`
    extent: Tensor  # `b 2`, each window's width and height

    def pinned(self) -> "Windows":
        """Copy images and masks to memory that a GPU can copy from by itself."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


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
    affine = torch.from_numpy(np.stack([w.affine for w in windows])).float()
    bounds = torch.from_numpy(np.stack([w.bounds for w in windows])).float()
    return Windows(images, masks, affine, bounds, extent=torch.tensor([w.mask.shape[::-1] for w in windows]))


def warp(windows: Windows, canvas: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Warp windows onto a canvas: images, mask values, and where there is an image at all.

    They are `b c h w` float32, bilinear, the edge replicated beyond the image; `b h w` uint8, nearest; `b h w` bool.
    """
    images, masks, affine, bounds, extent = (t.to(device, non_blocking=True) for t in vars(windows).values())
    x, y = _mapped(canvas, affine)
    (left, right), (top, bottom) = bounds.permute(2, 1, 0)[..., None, None]
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    # The outermost pixel centres: beyond them the edge is replicated, whatever the other windows' sizes.
    width, height = extent.float().T[..., None, None]
    half = torch.full_like(width, 0.5)
    x, y = torch.clamp(x, half, width - 0.5), torch.clamp(y, half, height - 0.5)
    pixels = sample(images.permute(0, 3, 1, 2).float(), x, y)
    values = masks.flatten(1).gather(1, (y.long() * masks.shape[2] + x.long()).flatten(1)).view_as(inside)
    return pixels, values, inside


def _shrunk(image: Tensor, x: int, y: int) -> Tensor:
    """Means of blocks of y by x pixels; smaller blocks at the far edges."""
    planes = F.avg_pool2d(image.permute(2, 0, 1)[None].float(), (y, x), ceil_mode=True, count_include_pad=False)
    pooled = planes[0].permute(1, 2, 0)
    return pooled if image.dtype.is_floating_point else pooled.round().to(image.dtype)


def _middles(length: int, factor: int) -> slice | Tensor:
    return (torch.arange(0, length, factor) + factor // 2).clamp(max=length - 1) if factor > 1 else slice(None)


def _mapped(canvas: Size, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixel centres of a canvas lie under the maps `b 2 3` from its centre: x and y, `b h w` each."""
    y = torch.arange(canvas[0], device=affine.device)[:, None] + 0.5 - canvas[0] / 2
    x = torch.arange(canvas[1], device=affine.device) + 0.5 - canvas[1] / 2
    by_x, by_y, shift = affine.permute(2, 1, 0)[..., None, None]  # each `2 b 1 1`
    along = by_x * x
    down = by_y * y + shift
    return along[0] + down[0], along[1] + down[1]
