"""Tiles: what is local comes out as of the whole image, whatever the sizes."""

import pytest
import torch
from torch.nn import functional as F

from segsweep.nn.tiles import OVERLAP, bands, pixels, tiled

SIZES = [(64, 64), (65, 64), (100, 333), (640, 31), (257, 129)]


@pytest.mark.parametrize("size", SIZES)
def test_what_looks_at_single_pixels_is_the_same(size):
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size)
    seen = []

    def forward(part):
        seen.append(tuple(part.shape[-2:]))
        return torch.stack([part.sum(1), part[:, 0] ** 2], 1)

    assert torch.allclose(tiled(forward, image, (64, 96)), forward(image), atol=1e-5)
    *tiles, _ = seen
    assert pixels(size, (64, 96)) == sum(height * width for height, width in tiles)
    assert set(tiles) == {(min(64, size[0]), min(96, size[1]))}


def test_an_image_that_fits_is_one_call():
    image = torch.randn(1, 3, 40, 64)
    calls = []
    assert tiled(lambda part: calls.append(part) or part, image, (64, 64)).data_ptr() == image.data_ptr()
    assert len(calls) == 1


@pytest.mark.parametrize("size", SIZES)
def test_bands_come_from_the_top_and_as_soon_as_they_can(size):
    image = torch.rand(1, 2, *size)
    reached, rows = 0, []

    def run(down, across):
        nonlocal reached
        reached = down.stop
        return image[..., down, across]

    for band, logits in bands(run, size, (64, 96)):
        assert torch.allclose(logits, image[..., band, :], atol=1e-6)
        assert reached - band.start <= 64  # no tile below the band has been run
        rows += range(size[0])[band]
    assert rows == list(range(size[0]))


def test_errors_at_the_ends_of_tiles_count_little():
    """A blur sees zeros beyond a tile's ends: in the middle of overlaps nothing of that is left, no seam stands out."""
    image = torch.rand(1, 1, 200, 300) + 1
    kernel = torch.ones(1, 1, 9, 9) / 81

    def blur(part):
        return F.conv2d(part, kernel, padding=4)

    whole = blur(image)
    inner = (..., slice(4, -4), slice(4, -4))
    joined = (tiled(blur, image, (96, 96)) - whole)[inner].abs().max()
    rows = [blur(part) for part in image.split(96, dim=2)]
    cut = (torch.cat(rows, 2) - whole)[inner].abs().max()
    assert joined < cut / 4
    assert 0 < OVERLAP < 0.5
