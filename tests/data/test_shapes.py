"""The generated data set."""

import numpy as np
import pytest
from PIL import Image

from segsweep.data.sources import shapes


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_an_image_is_colour_and_its_mask_a_truth_value_for_each_pixel():
    image, mask = shapes.draw(np.random.default_rng(0))
    assert image.shape == (shapes.SIDE, shapes.SIDE, 3)
    assert image.dtype == np.uint8
    assert mask.shape == image.shape[:2]
    assert mask.dtype == bool


def test_draws_depend_on_the_generator_only():
    one, two, other = (shapes.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])


def test_foreground_is_a_part_of_nearly_every_image():
    share = np.array([shapes.draw(np.random.default_rng(seed))[1].mean() for seed in range(40)])
    assert (share > 0).mean() > 0.9
    assert share.max() < 0.8
    assert 0.03 < share.mean() < 0.4


def test_brightness_does_not_give_the_foreground_away():
    inside, outside = [], []
    for seed in range(40):
        image, mask = shapes.draw(np.random.default_rng(seed))
        if mask.any():
            inside.append(image[mask].mean())
            outside.append(image[~mask].mean())
    difference = np.subtract(inside, outside)
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference))


def test_files_pair_up_in_parts_of_60_20_and_20_percent(tmp_path):
    shapes.write(tmp_path, 20, 0)
    files = contents(tmp_path)
    for kind in ("images", "masks"):
        n = {part: sum(name.startswith(f"{kind}/{part}/") for name in files) for part in ("train", "val", "test")}
        assert n == {"train": 12, "val": 4, "test": 4}
    assert {name.removeprefix("images/") for name in files if name.startswith("images/")} == {
        name.removeprefix("masks/") for name in files if name.startswith("masks/")
    }


def test_masks_are_one_channel_of_0_and_255(tmp_path):
    shapes.write(tmp_path, 5, 0)
    for path in (tmp_path / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            assert mask.mode == "L"
            assert set(np.unique(np.asarray(mask))) <= {0, 255}


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        shapes.write(tmp_path / name, 5, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    other = contents(tmp_path / "c")
    assert all(other[name] != content for name, content in contents(tmp_path / "a").items() if "images" in name)


@pytest.mark.parametrize("few", [1, 6])
def test_an_image_does_not_depend_on_how_many_there_are(tmp_path, few):
    shapes.write(tmp_path / "few", few, 0)
    shapes.write(tmp_path / "many", 8, 0)
    assert contents(tmp_path / "few").items() <= contents(tmp_path / "many").items()
