"""What programs write by habit and people do not think of: tags, void borders, thin classes, shapes in alpha."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scenes import (
    BLACK,
    RED,
    SIZE,
    agreement,
    blobs,
    coded,
    jpeg,
    noise,
    opened,
    pictured,
    pillow,
    refused,
    said,
    same,
    seen,
    shown,
    tiff,
    truths,
    written,
)

from segsweep.config.schema import DataConfig
from segsweep.data.dataset import open_dataset
from segsweep.data.labels import VOID
from segsweep.paths import cache

LARGE = (96, 128)


# A nodata tag on a mask


@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
def test_a_tag_on_the_background_voids_nothing(tmp_path, values):
    right = truths()
    root = written(tmp_path, [coded(t, values) for t in right], "tif", partial(tiff, nodata="0"))
    assert same(seen(opened(root)), right)
    three = truths(classes=3)
    root = written(tmp_path / "b", [coded(t, (0, 1, 2)) for t in three], "tif", partial(tiff, nodata="0"))
    assert same(seen(opened(root, classes=["ground", "roof", "tree"])), three)


def test_a_tag_on_a_value_that_a_class_has_voids_nothing(tmp_path):
    right = truths()
    root = written(tmp_path, [coded(t, (0, 255)) for t in right], "tif", partial(tiff, nodata="255"))
    for words in ({"classes": {"cell": 255}}, {"classes": ["ground", "cell"]}, {}):
        assert same(seen(opened(root, **words)), right)


def test_a_tag_on_a_value_that_no_class_has_voids_it_with_a_note_unless_it_is_passed_over(tmp_path):
    three = truths(classes=3)
    root = written(tmp_path, [coded(t, (0, 1, 9)) for t in three], "tif", partial(tiff, nodata="9"))
    dataset = opened(root, classes={"roof": 1})
    assert same(seen(dataset), [coded(t, (0, 1, VOID)) for t in three])
    assert "data.nodata=none" in said(dataset, "9", "nodata tag")
    assert same(seen(opened(root, classes={"roof": 1}, nodata="none")), [coded(t, (0, 1, 0)) for t in three])


# 255 among objects, and in folders that are classes


def test_255_beside_numbered_objects_is_void_as_elsewhere(tmp_path):
    three = truths(classes=3)
    dataset = opened(written(tmp_path, [coded(t, (0, 1, 255)) for t in three]), binarize=True)
    assert same(seen(dataset), [coded(t, (0, 1, VOID)) for t in three])
    assert said(dataset, "255", "is ignored")


@pytest.mark.parametrize("void", [None, 2, 255])
def test_void_pixels_of_folders_that_are_classes_are_no_class(tmp_path, void):
    three = truths(classes=3)
    values = (0, 1, 255 if void is None else void)
    for i, truth in enumerate(three):
        for kind, pixels in (("images", noise(i)), ("masks", coded(truth, values))):
            path = tmp_path / kind / ("ant", "bee", "cat")[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pillow(path, pixels)
    dataset = open_dataset(DataConfig(root=str(tmp_path), class_from="folder", ignore_index=void))
    assert dataset.labels.names == ("background", "ant", "bee", "cat")
    found = seen(dataset)
    for i, truth in enumerate(three):
        assert np.array_equal(found[str(i)], coded(truth, (0, i % 3 + 1, VOID)))


# Smoothed and lossy masks with other ends, and with a class between


def test_lossy_masks_of_other_ends_than_0_and_255_are_no_objects(tmp_path):
    right = truths(size=LARGE)
    root = written(tmp_path, [coded(t, (0, 128)) for t in right], "jpg", jpeg)
    assert "data.threshold=64" in refused(root, binarize=True)
    assert agreement(seen(opened(root)), right) >= 0.99


def test_a_class_between_two_ends_is_kept_by_its_name(tmp_path):
    right = truths(classes=3, size=LARGE)
    root = written(tmp_path, [coded(t, (0, 128, 255)) for t in right], "jpg", jpeg)
    dataset = opened(root, classes={"vein": 128, "cell": 255})
    levels = np.array([0, 128, 255])
    by_hand = [abs(shown(root / "masks" / f"{i}.jpg")[..., None].astype(int) - levels).argmin(2) for i in range(6)]
    assert same(seen(dataset), by_hand)
    assert agreement(seen(dataset), right) >= 0.95  # a blend of 0 and 255 passes through 128
    assert said(dataset, "nearest of 0, 128, 255")
    message = refused(root)
    assert "'data.classes={background:0,c1:" in message
    assert "binarize" not in message


# Thin lines and small objects


@pytest.mark.parametrize("width", [1, 2])
def test_thin_lines_in_colours_of_their_own_are_neither_the_ground_nor_another_class(tmp_path, width):
    rng = np.random.default_rng(0)
    stored, right = [], []
    for _ in range(6):
        mask, truth = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
        mask[8:20, 8:30], truth[8:20, 8:30] = RED, 1
        for column in range(36, 60, 4):
            mask[5:43, column : column + width] = rng.integers(60, 256, 3)
        stored.append(mask)
        right.append(truth)
    root = written(tmp_path, stored)
    assert same(seen(opened(root, classes={"road": list(RED)})), right)
    assert same(seen(opened(root, binarize=True)), [(mask.any(2)).astype(np.uint8) for mask in stored])


# Shapes in alpha beside flat masks


def test_cut_outs_beside_flat_masks_are_read_alike(tmp_path):
    right = truths()
    right[4][:] = 0
    for i, truth in enumerate(right):
        level = coded(truth, (0, 255))
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / "images").mkdir(exist_ok=True)
        white = np.full((*SIZE, 3), 255, np.uint8)
        cut_out = i % 2 == 0
        pillow(tmp_path / "masks" / f"{i}.png", np.dstack([white, level]) if cut_out else level)
        pillow(tmp_path / "images" / f"{i}.png", noise(i))
    dataset = opened(tmp_path)
    assert same(seen(dataset), right)
    assert said(dataset, "alpha channel")


# Many values


def test_negative_numbers_are_counted_among_too_many(tmp_path):
    ids = (np.arange(48 * 64).reshape(SIZE) % 300 - 150).astype(np.int32)
    dataset = opened(written(tmp_path, [ids] * 4, "tif", tiff), classes={"low": -150, "high": 149})
    right = np.where(ids == -150, 1, np.where(ids == 149, 2, 0))
    assert all(np.array_equal(found, right) for found in seen(dataset).values())


def test_more_classes_than_a_byte_tells_apart_are_refused(tmp_path):
    from segsweep.errors import ConfigError

    ids = (np.arange(48 * 64).reshape(SIZE) % 250).astype(np.uint16)
    classes = {f"c{i}": i for i in range(256)}
    assert "at most 255" in refused(written(tmp_path, [ids] * 4, "tif", tiff), ConfigError, classes=classes)


# Channels, files and memory


def test_channels_of_other_scales_are_normalised_each_by_its_own(tmp_path):
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(0, (1, 1, 5000), (*SIZE, 3)).astype(np.float32) for _ in range(4)]
    dataset = opened(pictured(tmp_path, drawn, partial(tiff, photometric="rgb")))
    std = dataset.store.statistics(range(4))[1]
    assert std == pytest.approx(np.concatenate(drawn).reshape(-1, 3).std(0), rel=1e-3)


def test_a_changed_digit_in_the_manifest_is_seen(tmp_path, caplog):
    root = written(tmp_path, [coded(t, (0, 1)) for t in truths()])
    before = opened(root).store
    (manifest,) = (cache() / "stores").glob("*/manifest.json")
    text = manifest.read_text()
    place = text.index('"total": [') + len('"total": [')
    manifest.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    assert opened(root).store.statistics(range(6)) == before.statistics(range(6))
    assert any("damaged" in record.message for record in caplog.records)


def test_decoding_keeps_no_pixels_in_memory(tmp_path):
    side, n = 512, 24
    rng = np.random.default_rng(0)
    mask = blobs(rng, size=(side, side)).astype(np.uint8)
    for i in range(n):
        for kind, pixels in (("images", rng.integers(0, 256, (side, side, 3)).astype(np.uint8)), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.bmp")
    tracemalloc.start()
    open_dataset(DataConfig(root=str(tmp_path)), workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * side * side * 3 / 2


def test_black_counts_as_a_colour_beside_them(tmp_path):
    right = truths()
    root = written(tmp_path, [coded(t, (BLACK, RED)) for t in right])
    assert same(seen(opened(root, classes={"ground": 0, "roof": list(RED)})), right)
