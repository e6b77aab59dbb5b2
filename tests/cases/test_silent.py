"""Values that were once taken for others without a word: tags, 255 beside 1, folders that are classes."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import (
    BLACK,
    SIZE,
    WHITE,
    coded,
    in_palette,
    noise,
    opened,
    pillow,
    refused,
    said,
    same,
    seen,
    tiff,
    truths,
    written,
)

from segsweep.config.schema import DataConfig
from segsweep.data import raster
from segsweep.data.dataset import open_dataset
from segsweep.data.images import read_picture
from segsweep.data.labels import VOID, Hints, labels
from segsweep.data.source import Sample
from segsweep.data.split import fold_of, group
from segsweep.data.store import Decoding, _name
from segsweep.errors import ConfigError, DataError

LOWEST = -3.4028234663852886e38  # of float32, as GDAL writes it
HOLE = np.zeros(SIZE, bool)
HOLE[:, :12] = True


def with_hole(truth):
    return np.where(HOLE, VOID, truth)


@pytest.mark.parametrize(
    ("levels", "mark", "kind", "threshold", "unread"),
    [
        ((0.1, 0.9), -9999.0, np.float32, 0.5, 0),  # probabilities
        ((10, 90), 255, np.uint8, 50, 1),  # a cover in percent
    ],
)
def test_where_masks_are_cut_a_tags_value_is_neither_side(tmp_path, levels, mark, kind, threshold, unread):
    right = truths()
    masks = [np.where(HOLE, kind(mark), coded(t, levels, kind)) for t in right]
    root = written(tmp_path, masks, "tif", partial(tiff, nodata=f"{mark:g}"))
    if unread:  # a hole in a cover, or the foreground of who tags by habit
        message = refused(root, threshold=threshold)
        assert "To ignore these pixels: data.nodata=tag; to use them: data.nodata=none." in message
    dataset = opened(root, threshold=threshold, nodata="tag" if unread else "auto")
    assert same(seen(dataset), [with_hole(t) for t in right])
    assert said(dataset, "without a value", "ignored")
    passed_over = seen(opened(root, threshold=threshold, nodata="none"))
    assert same(passed_over, [np.where(HOLE, unread, t) for t in right])


def test_where_a_palette_is_cut_its_tag_says_nothing_of_levels(tmp_path):
    right = truths()
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, 1] = 65535
    how = {"photometric": "palette", "colormap": colormap, "nodata": "255"}
    root = written(tmp_path, [t.astype(np.uint8) for t in right], "tif", partial(tiff, **how))
    assert same(seen(opened(root, threshold=128)), right)


def test_the_lowest_number_is_no_value_of_a_mask(tmp_path):
    right = truths()
    masks = [np.where(HOLE, np.float32(LOWEST), t.astype(np.float32)) for t in right]
    root = written(tmp_path, masks, "tif", partial(tiff, nodata=str(LOWEST)))
    assert same(seen(opened(root)), [with_hole(t) for t in right])


@pytest.mark.parametrize("words", [{}, {"binarize": True}, {"classes": {"cell": 1}}])
def test_a_stray_value_does_not_void_the_foreground(tmp_path, words):
    masks = [coded(t, (0, 255)) for t in truths()]
    masks[2][0, :3] = 1
    message = refused(written(tmp_path, masks), **words)
    assert "5 masks hold 255 but not 1, 1 hold 1" in message
    assert "data.ignore_index=255" in message


def folders(root: Path, masks, write=pillow, suffix="png"):
    """Masks in folders that are classes, by name; an image for each."""
    for name, own in masks.items():
        for i, mask in enumerate(own):
            for kind in ("images", "masks"):
                (root / kind / name).mkdir(parents=True, exist_ok=True)
            pillow(root / "images" / name / f"{name}{i}.png", noise(i))
            write(root / "masks" / name / f"{name}{i}.{suffix}", mask)
    return root


def test_a_pixel_without_a_value_makes_no_class_of_void_borders(tmp_path):
    three = truths(classes=3)
    masks = [coded(t, (0, 1, 255), np.float32) for t in three]
    masks[0][:2] = np.nan
    root = folders(tmp_path, {"ant": masks[:3], "bee": masks[3:]}, tiff, "tif")
    found = seen(opened(root, class_from="folder"))
    for i, truth in enumerate(three):
        expected = coded(truth, (0, 1 + i // 3, VOID))
        expected[:2] = VOID if i == 0 else expected[:2]
        assert np.array_equal(found[f"{'ant' if i < 3 else 'bee'}{i % 3}"], expected)


def test_folders_of_classes_may_be_coded_differently(tmp_path):
    right = truths()
    masks = {"crack": [coded(t, (0, 1)) for t in right[:3]], "hole": [coded(t, (0, 255)) for t in right[3:]]}
    dataset = opened(folders(tmp_path, masks), class_from="folder")
    found = seen(dataset)
    for i, truth in enumerate(right):
        assert np.array_equal(found[f"{'crack' if i < 3 else 'hole'}{i % 3}"], coded(truth, (0, 1 + i // 3)))
    assert said(dataset, "255 is foreground", "data.ignore_index=255")


@pytest.mark.parametrize("cached", ["auto", "none"])
def test_a_tags_value_is_no_class_of_a_folder(tmp_path, cached):
    right = truths()
    masks = [np.where(HOLE, 9, t).astype(np.uint8) for t in right]
    tagged = partial(tiff, nodata="9")
    root = folders(tmp_path / "a", {"ant": masks[:3], "bee": masks[3:]}, tagged, "tif")
    found = seen(opened(root, class_from="folder", cache=cached))
    assert all(np.array_equal(found[f"bee{i}"], np.where(HOLE, VOID, 2 * right[3 + i])) for i in range(3))
    only = [coded(t, (0, 9)) for t in right]  # the tag is of what there is to learn
    root = folders(tmp_path / "b", {"ant": only[:3], "bee": only[3:]}, tagged, "tif")
    found = seen(opened(root, class_from="folder", cache=cached))
    assert all(np.array_equal(found[f"bee{i}"], 2 * right[3 + i]) for i in range(3))


@pytest.mark.parametrize("cached", ["auto", "none"])
def test_a_mask_that_is_white_everywhere_is_all_of_its_folders_class_if_others_are_black(tmp_path, cached):
    right = truths()
    right[4][:] = 1
    masks = [1 - truth for truth in right]  # the palette's first entry is white
    write = partial(in_palette, palette=[WHITE, BLACK])
    root = folders(tmp_path, {"ant": masks[:3], "bee": masks[3:]}, write)
    found = seen(opened(root, class_from="folder", cache=cached))
    assert all(
        np.array_equal(found[f"{'ant' if i < 3 else 'bee'}{i % 3}"], t * (1 + i // 3)) for i, t in enumerate(right)
    )


def test_void_borders_alone_in_a_mask_make_no_class_of_255(tmp_path):
    three = truths(classes=3)
    masks = [coded(t, (0, 1, 255)) for t in three]
    masks[0][masks[0] == 1] = 0  # background and border
    masks[1][masks[1] == 255] = 0  # no border
    root = folders(tmp_path, {"ant": masks[:3], "bee": masks[3:]})
    dataset = opened(root, class_from="folder")
    assert not (seen(dataset)["bee0"] == 2)[three[3] == 2].any()
    assert (seen(dataset)["bee0"][three[3] == 2] == VOID).all()
    assert said(dataset, "255 is ignored")


def test_folders_in_which_255_means_two_things_are_refused(tmp_path):
    three, two = truths(classes=3), truths()
    masks = {"ant": [coded(t, (0, 1, 255)) for t in three[:3]], "bee": [coded(t, (0, 255)) for t in two[:3]]}
    message = refused(folders(tmp_path, masks), class_from="folder")
    assert "To ignore 255: data.ignore_index=255" in message
    assert str(tmp_path / "masks" / "bee") in message


def test_a_folder_that_its_class_covers_needs_no_background_beside_void(tmp_path):
    right = truths()
    masks = {"ant": [coded(t, (1, 255)) for t in right[:3]], "bee": [coded(t, (0, 1)) for t in right[3:]]}
    found = seen(opened(folders(tmp_path, masks), class_from="folder", ignore_index=255))
    assert all(np.array_equal(found[f"ant{i}"], coded(right[i], (1, VOID))) for i in range(3))


def test_white_that_is_ignored_is_no_class_of_a_folder(tmp_path):
    three = truths(classes=3)
    masks = [coded(t, ((0, 0, 0), (255, 0, 0), (255, 255, 255))) for t in three]
    root = folders(tmp_path, {"ant": masks[:3], "bee": masks[3:]})
    found = seen(opened(root, class_from="folder", ignore_index=255))
    assert all(np.array_equal(found[f"bee{i}"], coded(three[3 + i], (0, 2, VOID))) for i in range(3))


def test_a_folder_of_a_class_without_background_is_refused(tmp_path):
    right = truths()
    masks = {"ant": [coded(t, (1, 2)) for t in right[:3]], "bee": [coded(t, (0, 1)) for t in right[3:]]}
    message = refused(folders(tmp_path, masks), class_from="folder")
    assert "masks have 2 values, and none of them is background" in message
    assert str(tmp_path / "masks" / "ant") in message


def test_what_a_source_draws_as_void_stays_void_whatever_else_is_ignored():
    found = labels({0: 50, 1: 30, 255: 20}, None, 0, {"background": 0, "cat": 1}, hints=Hints(void=255))
    assert (found.table[0], found.table[1], found.table[255]) == (VOID, 1, VOID)


def test_a_palettes_tag_is_an_index_and_no_colour(tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 6
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, :6] = np.array([[200, 10, 60], [0, 0, 0], [5, 5, 5], [255, 255, 255], [90, 0, 0], [0, 7, 0]]).T * 257
    tiff(tmp_path / "map.tif", indices, nodata="0", photometric="palette", colormap=colormap)
    picture = read_picture(tmp_path / "map.tif")
    assert np.array_equal(picture.nowhere, indices == 0)
    assert not read_picture(tmp_path / "map.tif", "none").lacking


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_says_whether_it_keeps_values(tmp_path, lossless):
    pixels = np.random.default_rng(0).integers(0, 150, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "m.webp", lossless=lossless, quality=90, exact=True)
    found = raster.read(tmp_path / "m.webp")
    assert found.lossy == (not lossless)
    assert np.array_equal(found.samples, pixels) == lossless


def samples(*keys, folds=None):
    return [Sample(key, Path(key), Path(key), fold=folds and folds[i]) for i, key in enumerate(keys)]


def test_of_alternatives_the_parenthesis_that_took_part_is_the_group():
    found = samples("p7_a", "case12_3", "case12_4")
    assert group(found, r"^p(\d+)|^case(\d+)") == ["7", "12", "12"]
    for pattern in (r"^(p\d+)?", r"^(\d*)"):
        with pytest.raises(DataError, match="finds no group in"):
            group(found, pattern)


def test_a_tables_fold_beyond_the_folds_is_refused():
    found = samples(*"abcdef", folds=[0, 1, 5, 1, 2, 2])
    with pytest.raises(DataError, match=r"the table has the fold 5.* Type data\.folds=6\."):
        fold_of(found, list("abcdef"), 3)
    assert fold_of(found, list("abcdef"), 6) == [0, 1, 5, 1, 2, 2]


def test_what_one_decoder_could_not_read_another_is_asked_again(tmp_path, monkeypatch):
    pillow(tmp_path / "a.png", noise(0))
    found = [Sample("a", tmp_path / "a.png", tmp_path / "a.png")]
    before = _name(found, Decoding(), True)
    monkeypatch.setattr(raster, "optional_decoders", lambda: "2026.1.1")
    assert _name(found, Decoding(), True) != before


def test_what_is_ignored_in_one_run_is_a_class_in_the_next_of_masks_of_16_bits(tmp_path):
    right = truths(classes=4)
    root = written(tmp_path, [t.astype(np.uint16) for t in right], "tif", tiff)
    three = opened(root, classes=["a", "b", "c"], ignore_index=3)
    assert same(seen(three), [np.where(t == 3, VOID, t) for t in right])
    assert same(seen(opened(root, classes=["a", "b", "c", "d"])), right), "the store is one for both"


@pytest.mark.parametrize("last", (False, True))
def test_background_is_the_first_class_wherever_it_was_typed(tmp_path, last):
    right = truths(classes=3)
    root = written(tmp_path, right, "png", pillow)
    typed = {"crack": 1, "oxide": 2, "background": 0} if last else {"crack": 1, "background": 0, "oxide": 2}
    dataset = opened(root, classes=typed)
    assert dataset.labels.names == ("background", "crack", "oxide")
    assert same(seen(dataset), right)
    before = dataset.ordered(list(typed))  # as a model of an older version has learnt them
    assert before.labels.names == tuple(typed)
    assert same(seen(before), [np.array([list(typed).index(n) for n in dataset.labels.names])[t] for t in right])
    assert before.counts("train") == [dataset.counts("train")[dataset.labels.names.index(n)] for n in typed] + [0]
    assert dataset.ordered(["background", "crack", "other"]) is dataset


def test_shares_that_are_not_used_are_told(tmp_path):
    root = written(tmp_path, truths(), "png", pillow)
    assert not [note for note in opened(root, split=[0.5, 0.5]).notes if "data.split" in note]
    assert said(opened(root, split=[0.5, 0.5], folds=2), "data.split is not used: data.folds decides")
    for kind in ("images", "masks"):
        for part in ("train", "val"):
            (root / kind / part).mkdir()
        for number, file in enumerate(sorted((root / kind).glob("*.png"))):
            file.rename(root / kind / ("val" if number == 5 else "train") / file.name)
    assert said(opened(root, split=[0.5, 0.3, 0.2]), "data.split is not used: the data have their own split")
    for kind in ("images", "masks"):
        shutil.rmtree(root / kind / "val")
    assert said(opened(root, split=[0.5, 0.3, 0.2]), "data.split makes no test part")


@pytest.mark.parametrize(("name", "unread"), (("coco", "table"), ("coco", "masks"), ("camvid", "images")))
def test_a_place_that_a_kind_of_data_does_not_read_is_refused(tmp_path, name, unread):
    with pytest.raises(ConfigError, match=rf"data\.{unread}: data={name} does not read it\. .*data=folder"):
        open_dataset(DataConfig(name=name, root=str(tmp_path), **{unread: "x"}))


def test_a_table_beside_folders_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.table says which images.*Drop data\.images"):
        open_dataset(DataConfig(name="folder", table=str(tmp_path / "t.csv"), images=str(tmp_path)))
