"""Large images in overlapping tiles, blended smoothly, so that memory is that of a tile."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # height, width

OVERLAP = 0.25  # of a tile's side: what its neighbour also sees
LARGEST = 1024  # pixels a side up to which an image is run whole


def limit(size: Size, input_size: Size | None, given: Sequence[int] | None = None) -> Size:
    """Decide the height and width beyond which images are run in tiles: what is given, else `LARGEST` or the canvas.

    An encoder of fixed `input_size` shall see as little at once as in training: the canvas, of height and width `size`.
    """
    least = 0 if input_size else LARGEST
    height, width = given or [max(least, side) for side in size]
    return height, width


def pixels(size: Size, tile: Size) -> int:
    """Return how many pixels of an image a model is run on: more than it has where tiles overlap."""
    parts = [(side, min(side, most)) for side, most in zip(size, tile, strict=True)]
    return math.prod(len(_starts(side, part)) * part for side, part in parts)


def tiled(forward: Callable[[Tensor], Tensor], image: Tensor, tile: Size) -> Tensor:
    """Run a model on tiles of an image `b c H W` and join their logits: `b k H W`, float32 if there are several."""
    size = (image.shape[2], image.shape[3])
    joined = [logits for _, logits in bands(lambda rows, columns: forward(image[..., rows, columns]), size, tile)]
    return joined[0] if len(joined) == 1 else torch.cat(joined, dim=2)


def bands(run: Callable[[slice, slice], Tensor], size: Size, tile: Size) -> Iterator[tuple[slice, Tensor]]:
    """Run a model on tiles and yield what comes, from the top down: a band of rows when no further tile lies on it.

    All tiles have one size, the image's own where it is smaller. Neighbours overlap by `OVERLAP` of a side or more, and
    each counts the less the nearer it ends, where it has seen the least of the surroundings.

    Args:
        run: gives the logits `b k h w` of a tile, of which it is told the rows and the columns.

    Yields:
        rows, and their logits `b k rows W`.
    """
    if size[0] <= tile[0] and size[1] <= tile[1]:
        yield slice(0, size[0]), run(slice(0, size[0]), slice(0, size[1]))
        return
    height, width = min(tile[0], size[0]), min(tile[1], size[1])
    tops = _starts(size[0], height)
    total = weights = weight = torch.empty(0)
    for top, following in zip(tops, [*tops[1:], size[0]], strict=True):
        for left in _starts(size[1], width):
            columns = slice(left, left + width)
            logits = run(slice(top, top + height), columns)
            if not len(total):
                weight = _ramp(height, logits.device)[:, None] * _ramp(width, logits.device)
                total = torch.zeros(*logits.shape[:2], height, size[1], device=logits.device)
                weights = torch.zeros(height, size[1], device=logits.device)
            total[..., columns] += logits.float() * weight
            weights[:, columns] += weight
        done = following - top
        yield slice(top, following), total[..., :done, :] / weights[:done]
        total, weights = _moved_up(total, done), _moved_up(weights, done)


def _moved_up(rows: Tensor, done: int) -> Tensor:
    return F.pad(rows[..., done:, :], (0, 0, 0, done))  # zeros below


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
