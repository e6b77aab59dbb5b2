"""How large and how thin the parts of classes are."""

from dataclasses import replace

import numpy as np
import pytest
from fingerprints import CELL
from PIL import Image
from scipy import ndimage
from skimage.draw import disk

from segsweep.commands.app import main
from segsweep.config.data import DataConfig
from segsweep.data import fingerprint as module
from segsweep.data.dataset import open_dataset
from segsweep.data.fingerprint import ClassParts, fingerprint, measured, thickness, weighted


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
    assert sorted(measured(mask).areas) == [1, 8]


def test_parts_are_as_long_as_the_box_around_them():
    mask = empty(50, 50)
    mask[2:5, 3:33] = mask[20:40, 10] = True
    assert sorted(measured(mask).extents) == [20, 30]


def test_windows_that_show_a_class_are_counted():
    mask = empty(512, 1024)
    mask[0:32, 0:32] = True  # one block in the corner: one window of each size shows it
    assert measured(mask).seen == pytest.approx(
        (1 / (15 * 31), 1 / (13 * 29), 1 / (9 * 25), 1 / 17, 1.0, 1.0, 1.0, 1.0)
    )
    rows = np.zeros((512, 1024), bool)
    rows[:, 500] = True  # a line across: by where windows begin
    assert measured(rows).seen[2] == pytest.approx(8 / 25)


def test_shares_between_the_windows_lie_between():
    cell = replace(CELL, seen=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0))
    assert [cell.share_seen(side) for side in (32, 128, 181.02, 4096)] == pytest.approx([0, 0.2, 0.3, 1], abs=1e-3)


def test_a_share_of_the_weight_lies_up_to_a_value():
    values, weights = np.array([9, 1, 5]), np.array([1, 1, 2])
    assert [weighted(values, weights, share) for share in (0.25, 0.5, 0.75, 1)] == [1, 5, 5, 9]


@pytest.fixture
def disks(tmp_path):
    """Images with one disk each, of a tenth of their height; a data set of them, with its configuration's changes."""
    for i, side in enumerate([100, 100, 200, 200, 400, 400]):
        mask = np.zeros((side, 2 * side), np.uint8)
        mask[disk((side // 2, side), side // 20)] = 255
        for folder, pixels in (("images", mask - i * (mask > 0)), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
    return lambda **changes: open_dataset(DataConfig(root=str(tmp_path), **changes))


def test_sizes_and_parts_of_the_training_split_are_told(disks):
    data = disks(split=[0.5, 0.5], seed=1)
    found, rows = fingerprint(data), [data.store.rows[i] for i in data.parts["train"]]
    assert (found.training, found.validation) == (len(rows), len(data.parts["val"]))
    assert (found.height.least, found.width.largest) == (min(r.height for r in rows), max(r.width for r in rows))
    assert found.scored == sum(r.height * r.width for r in (data.store.rows[i] for i in data.parts["val"]))
    assert (found.channels, found.lowest, found.highest) == (1, 0, 255)
    (cell,) = found.classes
    assert (cell.parts, cell.images) == (len(rows), len(rows))
    assert cell.share == pytest.approx(
        sum(np.pi * (r.height / 20) ** 2 for r in rows) / sum(r.height * r.width for r in rows), rel=0.05
    )


def test_objects_that_grow_with_their_images_have_one_scale_when_those_are_fitted(disks):
    found = fingerprint(disks(folds=2))
    assert 2**found.spread == pytest.approx(2, rel=0.2)  # the sides are 1, 2 and 4 to each other
    assert 2**found.spread_fitted == pytest.approx(1, abs=0.1)


def test_a_class_that_one_image_has_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 6)
    for i in range(40):
        mask = np.zeros((64, 64), np.uint8)
        mask[:32] = 1
        if i in (17, 23):  # one of them at least is trained on
            mask[40:43, 10:60] = 2
        for folder, pixels in (("images", mask + np.uint8(i)), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i:02d}.png")
    split = {"split": [0.99, 0.01], "classes": ["ground", "road", "crack"]}
    data = open_dataset(DataConfig(root=str(tmp_path), **split, seed=1))
    crack = fingerprint(data).classes[2]
    assert crack.images >= 1 and crack.thickness == 3
    assert fingerprint(data).looked_at <= 7
    assert [parts.name for parts in fingerprint(data).objects] == ["road", "crack"]


def test_only_what_is_there_is_measured_and_counted_as_masks_have_it(tmp_path, monkeypatch):
    """In some masks a class is missing, void, or only where the image has no data."""
    rng = np.random.default_rng(0)
    for i in range(12):
        mask = rng.integers(0, 4 if i % 3 else 2, (40, 50)).astype(np.uint8)
        mask[mask == 3] = 255 if i % 2 else 2
        image = rng.integers(1, 256, (40, 50)).astype(np.uint8)
        image[mask == 2] = 0 if i % 4 == 1 else 9
        for folder, pixels in (("images", image), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i:02d}.png")
    told = {"classes": ["a", "b", "c"], "ignore_index": 255, "nodata": 0, "nodata_void": True}
    data = open_dataset(DataConfig(root=str(tmp_path), **told))
    seen = []
    monkeypatch.setattr(module, "measured", lambda mask: seen.append(mask.sum()) or measured(mask))
    found = fingerprint(data)
    masks = [data.labels.table[data.store.host_mask(i)] for i in range(12)]
    assert [np.bincount(mask.ravel(), minlength=256)[[0, 1, 2, 255]].tolist() for mask in masks] == data.pixels.tolist()
    trained = [[(masks[i] == k).sum() for k in range(3)] for i in sorted(data.parts["train"])]
    assert seen == [n for counts in trained for n in counts if n]
    assert [parts.images for parts in found.classes] == np.count_nonzero(trained, 0).tolist()
    assert min(parts.images for parts in found.classes) < len(trained)


def test_all_folds_have_one_fingerprint(disks):
    found = [fingerprint(disks(folds=4, fold=fold)) for fold in range(4)]
    assert all(one == found[0] for one in found)
    assert (found[0].training, found[0].validation) == (4, 2)  # of the fold that leaves the fewest


def test_with_overfit_there_are_no_folds(disks):
    found = fingerprint(disks(folds=2, overfit=4))
    assert (found.training, found.validation) == (found.validation, found.training)


def test_of_a_large_image_a_window_is_measured(monkeypatch):
    monkeypatch.setattr(module, "EACH", 64)
    mask = empty(300, 500)
    mask[200:220, 400:430] = True
    (area,) = measured(mask).areas
    assert area == 600
    assert module._window(mask).shape == (64, 64)
    assert module._window(empty(40, 500) | True).shape == (40, 64)


def test_it_is_measured_once(disks, monkeypatch):
    first = fingerprint(disks())
    monkeypatch.setattr(module, "measured", None)
    assert fingerprint(disks()) == first
    kept = next(disks().store.folder.glob("fingerprint-*.json"))
    kept.write_text("{")
    with pytest.raises(TypeError):  # damaged: it would be measured again
        fingerprint(disks())


def test_many_parts_are_written_as_a_number():
    many = ClassParts("nucleus", 0.1, 24, 37_920, 154, 22, 15, 10, (1.0,))
    assert str(many).startswith("nucleus: 1,580 parts")
    assert str(replace(many, parts=28)).startswith("nucleus: 1.17 parts")


def test_the_data_command_says_it(pairs, capsys):
    root = pairs()
    assert main(["data", "data=folder", f"data.root={root}"]) == 0
    said = capsys.readouterr().out
    assert "parts in an image with this class" in said
    assert "data.zoom=" in said
