"""Large images in overlapping tiles, blended smoothly, so that memory is that of a tile."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Size = tuple[int, int]  # height, width

OVERLAP = 0.25  # of a tile's side: what its neighbour also sees


def tiled(forward: Callable[[Tensor], Tensor], image: Tensor, tile: Size) -> Tensor:
    """Run a model on tiles of an image and join what comes.

    All tiles have one size, the image's own where it is smaller. Neighbours overlap by `OVERLAP` of a side or more, and
    each counts the less the nearer it ends, where it has seen the least of the surroundings.

    Args:
        forward: from `b c h w` to logits `b k h w`.
        image: `b c H W`.
        tile: height and width.

    Returns:
        logits `b k H W`, float32 where there is more than one tile.
    """
    size = tuple(image.shape[-2:])
    if size[0] <= tile[0] and size[1] <= tile[1]:
        return forward(image)
    height, width = min(tile[0], size[0]), min(tile[1], size[1])
    weight = _ramp(height, image.device)[:, None] * _ramp(width, image.device)
    total: Tensor | None = None
    weights = torch.zeros(size, device=image.device)
    for top in _starts(size[0], height):
        for left in _starts(size[1], width):
            place = (..., slice(top, top + height), slice(left, left + width))
            logits = forward(image[place])
            if total is None:
                total = torch.zeros(*logits.shape[:2], *size, device=image.device)
            total[place] += logits.float() * weight
            weights[place] += weight
    assert total is not None
    return total.div_(weights)


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin: as few as overlap enough, evenly spread."""
    step = max(1, int(tile * (1 - OVERLAP)))
    gaps = math.ceil((length - tile) / step)
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)] if gaps else [0]


def _ramp(length: int, device: torch.device) -> Tensor:
    """Rising from the ends over the overlap to 1."""
    distance = torch.arange(length, device=device) + 0.5
    distance = torch.minimum(distance, length - distance)
    return (distance / max(1.0, OVERLAP * length)).clamp(max=1.0)
