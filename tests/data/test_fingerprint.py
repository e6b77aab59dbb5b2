"""How large and how thin the parts of classes are."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import disk

from segsweep.commands.app import main
from segsweep.data.fingerprint import part_areas, thickness


def empty(*size):
    return np.zeros(size, bool)


@pytest.mark.parametrize("width", [1, 3, 5, 9, 21])
@pytest.mark.parametrize("across", [False, True])
def test_a_bar_is_as_thick_as_it_is_wide(width, across):
    mask = empty(100, 100)
    mask[30 : 30 + width, 5:95] = True
    assert (thickness(mask.T if across else mask) == width).all()


def test_a_disk_is_as_thick_as_its_diameter():
    mask = empty(100, 100)
    mask[disk((50, 50), 20)] = True
    assert np.median(thickness(mask)) == pytest.approx(40, abs=2)


def test_an_image_that_is_full_is_as_thick_as_it_is_high():
    assert np.median(thickness(np.ones((41, 90), bool))) == 41


def test_a_thin_thread_on_a_thick_body_is_thin_itself_only():
    mask = empty(200, 200)
    mask[20:61, 20:180] = True  # 41 thick, 6,560 px
    mask[60:190, 100:103] = True  # 3 thick, 387 px of its own
    thick = thickness(mask)
    assert len(thick) == mask.sum()
    assert np.median(thick) == 41
    assert 387 <= (thick == 3).sum() <= 387 + 656  # and at most a tenth of the body, beside it


def test_half_of_the_area_is_as_thin_as_local_thickness_says():
    """Each pixel is as thick as the largest disk in the mask that covers it (Hildebrand and Rüegsegger 1997)."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        mask = empty(150, 150)
        for row, column in rng.integers(20, 130, (12, 2)):
            mask[disk((row, column), rng.integers(2, 15), shape=mask.shape)] = True
        distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        local = np.zeros(mask.shape)
        for row, column in np.argwhere(mask):
            covered = disk((row, column), distance[row, column], shape=mask.shape)
            local[covered] = np.maximum(local[covered], 2 * distance[row, column] - 1)
        assert np.median(thickness(mask)) == pytest.approx(np.median(local[mask]), rel=0.2, abs=1)


def test_parts_that_touch_at_a_corner_are_one():
    mask = empty(10, 10)
    mask[0:2, 0:2] = mask[2:4, 2:4] = mask[8, 8] = True
    assert sorted(part_areas(mask)) == [1, 8]


def test_the_data_command_says_it(pairs, capsys):
    root = pairs()
    assert main(["data", "data=folder", f"data.root={root}"]) == 0
    assert "parts an image" in capsys.readouterr().out
