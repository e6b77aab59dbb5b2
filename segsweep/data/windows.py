"""From an image to a canvas: the part of it that is needed is cut out on the host, and warped on the device.

Training, scoring and prediction all see their images through this.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.data.geometry import Placement, Size, sample

NUMBERS = 14  # that `Windows` has of each window
AT_ONCE = 1 << 26  # numbers of images that are cut out of a device's memory at once

Points = tuple[Tensor, Tensor]  # x and y


def alike(kinds: Iterable[Hashable]) -> list[list[int]]:
    """Return the places of equal items, those of the first item first."""
    places: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        places.setdefault(kind, []).append(i)
    return list(places.values())


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
    first -= first % factor  # blocks are the whole image's, so that its tiles see what it shows
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
    # `b 14` float32 of each window: its box's affine and bounds, its first and last pixel centre, x first. What else a
    # batch knows of each image may follow: it is copied to the device with them.
    numbers: Tensor

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Bring them to a device, without a wait for it."""
        images, masks, numbers = (tensor.to(device, non_blocking=True) for tensor in vars(self).values())
        return images, masks, numbers

    def joined(self, more: np.ndarray | None) -> "Windows":
        """Add `b m` numbers to those of each window."""
        if more is None:
            return self
        return replace(self, numbers=torch.from_numpy(np.concatenate([self.numbers.numpy(), more], 1)))

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


@dataclass(frozen=True)
class Flat:
    """All images and masks of a data set on a device, one after the other."""

    images: Tensor  # of one data type, `n`: of each image `h w c`
    masks: Tensor  # uint8 `n`: of each mask `h w`
    channels: int  # of a window; images of one channel count for all

    def cut(self, places: np.ndarray, boxes: Sequence[Box]) -> Windows:
        """Cut out windows, each a box, all in a few calls: what `cut` and `stack` give, but beyond a window's edges.

        Args:
            places: `b 4` int64 of each sample: where its image and its mask begin, its width, its channels.
        """
        firsts, spans = np.stack([box.first for box in boxes]), np.stack([box.last - box.first for box in boxes])
        parts = self._parts([(int(x), int(y)) for x, y in (box.factor for box in boxes)], spans)
        order = [i for _, same in parts for i in same]
        image, mask, stride, channels = places.T
        corner = firsts[:, 1] * stride + firsts[:, 0]
        # In the order they are cut in: where the box begins in all images and in all masks, the sample's width and
        # channels, the box's width and height, its last pixel and channel; and where each box is in that order.
        of_boxes = [image + corner * channels, mask + corner, stride, channels, *spans.T, *(spans.T - 1), channels - 1]
        table = np.stack([*(column[order] for column in of_boxes), np.argsort(order)], 1)
        rows = torch.from_numpy(table).to(self.masks.device, non_blocking=True)
        width, height = np.max([box.extent for box in boxes], 0).tolist()
        images: list[Tensor] = []
        masks: list[Tensor] = []
        done = 0
        for factor, same in parts:
            found = self._gathered(rows[done : done + len(same)], factor, spans[same].max(0).tolist())
            for kind, tensor in zip((images, masks), found, strict=True):
                below, right = height - tensor.shape[1], width - tensor.shape[2]
                around = (0, 0) * (tensor.ndim - 3) + (0, right, 0, below)
                kind.append(F.pad(tensor, around) if below or right else tensor)
            done += len(same)
        if len(parts) == 1:
            return Windows(images[0].view(self.images.dtype), masks[0], _numbers(boxes))
        back = rows[:, -1]
        return Windows(torch.cat(images)[back].view(self.images.dtype), torch.cat(masks)[back], _numbers(boxes))

    def _parts(self, factors: Sequence[tuple[int, int]], spans: np.ndarray) -> list[tuple[tuple[int, int], list[int]]]:
        """Boxes that are cut out together: of one factor, and no more than memory should hold at once."""
        parts: list[tuple[tuple[int, int], list[int]]] = []
        for same in alike(factors):
            each = max(1, AT_ONCE // int(np.prod(spans[same].max(0)) * self.channels))
            parts += [(factors[same[0]], same[start : start + each]) for start in range(0, len(same), each)]
        return parts

    def _gathered(self, rows: Tensor, factor: tuple[int, int], span: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Images `b h w c` and masks `b h w` of boxes of one factor; `span` is the largest width and height.

        Little can be done with uint16 everywhere, so its bits are moved as int16.
        """
        kind = self.images.dtype
        moved = self.images.view(torch.int16) if kind == torch.uint16 else self.images
        image, mask, stride, channels, width, height, right, bottom, last = (c[:, None, None] for c in rows[:, :-1].T)
        y = torch.arange(span[1], device=rows.device)[:, None]
        x = torch.arange(span[0], device=rows.device)
        pixel = torch.minimum(y, bottom) * stride + torch.minimum(x, right)
        shrunk = factor != (1, 1)
        middles = pixel
        if shrunk:
            middle_y = torch.minimum(y[:: factor[1]] + factor[1] // 2, bottom)
            middle_x = torch.minimum(x[:: factor[0]] + factor[0] // 2, right)
            middles = middle_y * stride + middle_x
        masks = torch.take(self.masks, mask + middles)
        channel = torch.minimum(torch.arange(self.channels, device=rows.device), last[..., None])
        images = torch.take(moved, (image + pixel * channels)[..., None] + channel)
        if shrunk:
            inside = ((y < height) & (x < width))[..., None]
            means = _blocks(images.view(kind).float() * inside, factor, (width, height))
            images = (means if kind.is_floating_point else means.round().to(kind)).view(images.dtype)
        return images, masks


def _blocks(images: Tensor, factor: tuple[int, int], sides: tuple[Tensor, Tensor]) -> Tensor:
    """Means of blocks of factor x and y of `b h w c` float, 0 beyond its `sides`, width and height of `b 1 1`."""
    x, y = factor
    sums = F.avg_pool2d(images.permute(0, 3, 1, 2), (y, x), ceil_mode=True, divisor_override=1).permute(0, 2, 3, 1)
    row = torch.arange(sums.shape[1], device=images.device)[:, None]
    column = torch.arange(sums.shape[2], device=images.device)
    tall, wide = (sides[1] - y * row).clamp(1, y), (sides[0] - x * column).clamp(1, x)
    return sums / (tall * wide)[..., None]


def _numbers(boxes: Sequence[Box]) -> Tensor:
    rows = [np.concatenate([b.affine.ravel(), b.bounds.ravel(), (0.5, 0.5), b.extent - 0.5]) for b in boxes]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def warped(images: Tensor, masks: Tensor, numbers: Tensor, centres: Points) -> tuple[Tensor, Tensor, Tensor]:
    """Warp windows onto a canvas: images, mask values, and where there is an image at all. Tensors alone decide.

    Args:
        images, masks, numbers: what `Windows` has, on one device.
        centres: of the canvas's pixels.

    Returns:
        `b c h w` float32, bilinear, the edge replicated beyond the image; `b h w` uint8, nearest; `b h w` bool.
    """
    points = _mapped(centres, numbers[:, :6].view(-1, 2, 3))
    # Each of `2 b 1 1`: x and y of the image's corners, and of the window's outermost pixel centres. Beyond these the
    # edge is replicated, whatever the other windows' sizes.
    low, high, least, most = numbers[:, 6:NUMBERS].view(-1, 4, 2).permute(1, 2, 0)[..., None, None]
    along, down = (points >= low) & (points < high)
    inside = along & down
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


def _mapped(centres: Points, affine: Tensor) -> Tensor:
    """Where the pixel centres of a canvas lie under the maps `b 2 3` from its centre: x and y, `2 b h w`."""
    x, y = centres
    by_x, by_y, shift = affine.permute(2, 1, 0)[..., None, None]  # each `2 b 1 1`
    found: Tensor = by_x * x + (by_y * y + shift)
    return found


@lru_cache(maxsize=8)
def centres(canvas: Size, device: torch.device) -> Points:
    """Pixel centres of a canvas from its middle: x `w`, y `h 1`."""
    with torch.inference_mode(False):
        x = torch.arange(canvas[1], device=device) + 0.5 - canvas[1] / 2
        y = torch.arange(canvas[0], device=device)[:, None] + 0.5 - canvas[0] / 2
    return x, y
