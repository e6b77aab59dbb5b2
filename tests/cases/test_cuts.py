"""Masks that are not quite what they mean: JPEG, smooth and blended borders, numbered objects, another size."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from scenes import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    RED,
    SIZE,
    WHITE,
    YELLOW,
    advice,
    agreement,
    blobs,
    coded,
    cut_at,
    foreground,
    jpeg,
    nearest,
    opened,
    percents,
    pillow,
    refused,
    said,
    same,
    seen,
    shown,
    soft,
    tiff,
    truths,
    typed,
    written,
)

from segsweep.commands.app import main
from segsweep.errors import ConfigError

LARGE = (96, 128)
COLORS = (BLACK, RED, GREEN, BLUE)
NAMED = {"ground": list(BLACK), "roof": list(RED), "tree": list(GREEN), "water": list(BLUE)}


def two_valued(n=6):
    return truths(n, size=LARGE)


def as_jpeg(tmp_path, right=None):
    return written(tmp_path, [coded(truth, [0, 255]) for truth in right or two_valued()], "jpg", jpeg)


def as_soft(tmp_path, right=None, radius=1.0):
    return written(tmp_path, [soft(coded(truth, [0, 255]), radius) for truth in right or two_valued()])


def cuts(root, level=128):
    """What Pillow says of the masks 0, 1, ... of a folder, cut at a level."""
    files = sorted((root / "masks").iterdir(), key=lambda path: int(path.stem))
    return [cut_at(path, level) for path in files]


WRITTEN = {"jpeg": as_jpeg, "soft": as_soft}


# Two ends with blends between


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("words", [{}, {"threshold": "auto"}, {"threshold": 128}], ids=str)
def test_two_ends_are_cut_in_the_middle(tmp_path, kind, words):
    right, root = two_valued(), WRITTEN[kind](tmp_path)
    dataset = opened(root, **words)
    assert dataset.labels.names == ("background", "foreground")
    assert same(seen(dataset), cuts(root))
    assert agreement(seen(dataset), right) >= 0.99
    assert foreground(dataset) == pytest.approx(np.mean(right), abs=0.005)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("level", [40, 200])
def test_a_threshold_cuts_where_it_says(tmp_path, kind, level):
    root = WRITTEN[kind](tmp_path)
    assert same(seen(opened(root, threshold=level)), cuts(root, level))


def test_a_threshold_belongs_to_the_foreground(tmp_path):
    right = truths(classes=3)
    root = written(tmp_path, [coded(truth, [99, 100, 101]) for truth in right])
    assert same(seen(opened(root, threshold=100)), [(truth > 0).astype(int) for truth in right])


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_cut_is_said(tmp_path, kind):
    note = said(opened(WRITTEN[kind](tmp_path)), "data.threshold")
    assert "128" in note or "127.5" in note


def test_the_command_says_the_cut(tmp_path, capsys):
    root = as_jpeg(tmp_path)
    assert main(["data", "data=folder", f"data.root={root}"]) == 0
    assert "data.threshold" in capsys.readouterr().out


def test_nothing_is_said_of_two_values(tmp_path):
    dataset = opened(written(tmp_path, [coded(truth, [0, 255]) for truth in truths()]))
    assert not [note for note in dataset.notes if "threshold" in note]


def test_two_ends_may_have_names(tmp_path):
    root = as_jpeg(tmp_path)
    dataset = opened(root, classes=["bg", "polyp"])
    assert dataset.labels.names == ("bg", "polyp")
    assert same(seen(dataset), cuts(root))


def test_the_ends_may_be_of_16_bits(tmp_path):
    stored = [257 * soft(coded(truth, [0, 255])).astype(np.uint16) for truth in two_valued()]
    root = written(tmp_path, stored, "tif", tiff)
    assert same(seen(opened(root)), [(mask >= 32768).astype(int) for mask in stored])


def test_a_threshold_may_cut_probabilities(tmp_path):
    stored = [soft(coded(truth, [0, 255]), 3).astype(np.float32) / 255 for truth in two_valued()]
    root = written(tmp_path, stored, "tif", tiff)
    assert same(seen(opened(root, threshold=0.5)), [(mask >= 0.5).astype(int) for mask in stored])


def test_a_lossy_webp_is_cut_as_well(tmp_path):
    right = two_valued()
    root = written(tmp_path, [coded(truth, [0, 255]) for truth in right], "webp", partial(pillow, quality=80))
    assert len(np.unique(shown(root / "masks" / "0.webp").reshape(-1, 3), axis=0)) > 2  # it is lossy
    dataset = opened(root)
    assert agreement(seen(dataset), right) >= 0.99
    assert same(seen(dataset), cuts(root))


def test_a_jpeg_in_colour_mode_is_cut_as_well(tmp_path):
    stored = [np.repeat(coded(truth, [0, 255])[..., None], 3, axis=2) for truth in two_valued()]
    root = written(tmp_path, stored, "jpg", jpeg)
    assert same(seen(opened(root)), cuts(root))


# No two ends


def test_indices_are_not_cut(tmp_path):
    right = truths(classes=5)
    dataset = opened(written(tmp_path, right), classes=list("abcde"))
    assert same(seen(dataset), right)
    assert not [note for note in dataset.notes if "threshold" in note]


def test_greys_from_end_to_end_are_refused(tmp_path):
    stored = [np.random.default_rng(i).integers(0, 256, SIZE).astype(np.uint8) for i in range(4)]
    assert "data.threshold" in refused(written(tmp_path, stored))


def test_a_third_value_that_many_pixels_have_is_no_blend(tmp_path):
    stored = [soft(coded(truth, [0, 128, 255])) for truth in truths(classes=3, size=LARGE)]
    message = refused(written(tmp_path, stored))
    assert "128" in message


# Numbered objects


@pytest.mark.parametrize("kind", WRITTEN)
def test_two_ends_are_no_numbered_objects(tmp_path, kind):
    root = WRITTEN[kind](tmp_path)
    message = refused(root, binarize=True)
    assert same(seen(typed(root, advice(message, "threshold"))), cuts(root))


@pytest.mark.parametrize("kind", WRITTEN)
def test_no_line_recommends_binarize_for_two_ends(tmp_path, kind):
    dataset = opened(WRITTEN[kind](tmp_path))
    assert not [line for line in [*dataset.notes, *dataset.warnings()] if "binarize" in line]


@pytest.mark.parametrize("last", [2, 40, 255])
def test_objects_of_a_byte_are_one_class(tmp_path, last):
    right = truths()
    ids = 1 + np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % last
    assert same(seen(opened(written(tmp_path, [truth * ids for truth in right]), binarize=True)), right)


@pytest.mark.parametrize("number", [1, 255, 1000])
def test_one_object_in_each_file_is_one_class(tmp_path, number):
    right = truths()
    stored = [(number * truth).astype(np.uint16) for truth in right]
    assert same(seen(opened(written(tmp_path, stored), binarize=True)), right)


def test_objects_in_a_colour_each_are_one_class(tmp_path):
    right = truths()
    draws = [np.random.default_rng(i).integers(1, 256, (*SIZE, 3)) for i in range(6)]
    stored = [(truth[..., None] * draw).astype(np.uint8) for truth, draw in zip(right, draws, strict=True)]
    assert same(seen(opened(written(tmp_path, stored), binarize=True)), right)


# Colours


def as_blended(tmp_path, right, radius=0.8):
    return written(tmp_path, [soft(coded(truth, COLORS), radius) for truth in right])


def test_blended_borders_go_to_the_nearest_named_colour(tmp_path):
    right = truths(classes=4, size=LARGE)
    root = as_blended(tmp_path, right)
    blends = [(shown(path)[:, :, None] != np.array(COLORS)).any(3).all(2).mean() for path in root.glob("masks/*")]
    assert np.mean(blends) > 0.05  # of all pixels
    dataset = opened(root, classes=NAMED)
    by_hand = [nearest(shown(root / "masks" / f"{i}.png"), COLORS) for i in range(len(right))]
    assert agreement(dict(zip("012345", by_hand, strict=True)), right) > 0.99  # so it can be done
    assert dataset.labels.names == tuple(NAMED)  # what is left over of borders makes no class of its own
    assert agreement(seen(dataset), right) >= 0.99


def test_borders_blend_into_a_background_that_nobody_named(tmp_path):
    right = truths(classes=3, size=LARGE)
    dataset = opened(as_blended(tmp_path, right), classes={"roof": list(RED), "tree": list(GREEN)})
    assert agreement(seen(dataset), right) >= 0.99


def test_black_and_one_colour_with_blended_borders_need_no_names(tmp_path):
    right = two_valued()
    dataset = opened(written(tmp_path, [soft(coded(truth, [BLACK, RED])) for truth in right]))
    assert agreement(seen(dataset), right) >= 0.99
    assert foreground(dataset) == pytest.approx(np.mean(right), abs=0.005)


def test_coloured_jpegs_go_to_the_nearest_named_colour(tmp_path):
    right = truths(classes=4, size=LARGE)
    root = written(tmp_path, [coded(truth, COLORS) for truth in right], "jpg", jpeg)
    assert len(np.unique(shown(root / "masks" / "0.jpg").reshape(-1, 3), axis=0)) > 256
    dataset = opened(root, classes=NAMED)
    assert dataset.labels.names == tuple(NAMED)
    assert agreement(seen(dataset), right) >= 0.99
    for number in range(4):
        shares = [np.mean(classes == number) for classes in seen(dataset).values()]
        assert np.mean(shares) == pytest.approx(np.mean([truth == number for truth in right]), abs=0.005)


def test_colours_painted_over_grey_are_the_only_ones_that_count(tmp_path):
    """The picture is the background, in any grey; the classes are painted over it."""
    right = [blobs(np.random.default_rng(i), (1, 2)) for i in range(6)]
    greys = [np.random.default_rng([1, i]).integers(0, 256, SIZE) for i in range(6)]
    stored = [
        np.where((truth == 0)[..., None], grey[..., None], coded(truth, (BLACK, BLUE, RED))).astype(np.uint8)
        for truth, grey in zip(right, greys, strict=True)
    ]
    dataset = opened(written(tmp_path, stored), classes={"fine": list(BLUE), "coarse": list(RED)})
    assert same(seen(dataset), right)


def test_what_no_class_names_is_background_and_told_with_its_share(tmp_path):
    right = truths(classes=4)
    root = written(tmp_path, [coded(truth, (BLACK, RED, GREEN, YELLOW)) for truth in right])
    dataset = opened(root, classes={"roof": list(RED), "tree": list(GREEN)})
    assert dataset.labels.names == ("background", "roof", "tree")
    assert same(seen(dataset), [np.where(truth == 3, 0, truth) for truth in right])
    left = 100 * np.mean([truth == 3 for truth in right])
    assert any(abs(told - left) < 0.1 for told in percents(said(dataset, "[255,255,0]")))


def test_a_colour_far_from_every_class_is_told_with_its_value(tmp_path):
    right = truths(classes=3)
    hazes = [np.random.default_rng(i).integers(90, 131, (*SIZE, 3)) for i in range(6)]
    stored = [
        np.where((truth == 2)[..., None], haze, coded(truth, (BLACK, RED, BLACK))).astype(np.uint8)
        for truth, haze in zip(right, hazes, strict=True)
    ]
    dataset = opened(written(tmp_path, stored), classes={"roof": list(RED)})
    assert dataset.labels.names == ("background", "roof")
    assert same(seen(dataset), [np.where(truth == 2, 0, truth) for truth in right])
    assert any(told > 1 for note in dataset.notes for told in percents(note))


def test_colours_that_are_all_named_leave_nothing_to_tell(tmp_path):
    dataset = opened(written(tmp_path, [coded(truth, COLORS) for truth in truths(classes=4)]), classes=NAMED)
    assert not [note for note in dataset.notes if "%" in note]


def test_close_colours_stay_apart_where_both_are_named(tmp_path):
    right = truths(classes=3)
    stored = [coded(truth, (BLACK, GREY, (128, 128, 136))) for truth in right]
    dataset = opened(written(tmp_path, stored), classes={"a": list(GREY), "b": [128, 128, 136]})
    assert same(seen(dataset), right)


def test_a_flat_colour_that_nobody_named_is_not_the_nearest_class(tmp_path):
    right = truths(classes=3)
    stored = [coded(truth, (WHITE, (200, 30, 30), (200, 90, 30))) for truth in right]
    dataset = opened(written(tmp_path, stored), classes={"a": [200, 30, 30]})
    assert same(seen(dataset), [(truth == 1).astype(int) for truth in right])


# Another size


def resized(tmp_path, right, size):
    """Masks of another size than their images."""
    root = written(tmp_path, right)
    for i, truth in enumerate(right):
        image = Image.fromarray(coded(truth, [0, 255, 128]))
        image.resize(size[::-1], Image.Resampling.NEAREST).save(root / "masks" / f"{i}.png")
    return root


def coarse(n=6, classes=2):
    """Masks in squares of 4 pixels."""
    return [np.kron(truth, np.ones((4, 4), np.int64)) for truth in truths(n, classes, (24, 32))]


@pytest.mark.parametrize("size", [(24, 32), (48, 64), (192, 256), (288, 384)])
def test_a_mask_of_the_same_aspect_is_brought_to_its_image(tmp_path, size):
    right = coarse()
    dataset = opened(resized(tmp_path, right, size), mask_resize="nearest")
    assert same(seen(dataset), right)
    assert said(dataset, "data.mask_resize")


def test_a_mask_of_another_size_is_refused_and_the_line_to_type_works(tmp_path):
    right = coarse()
    root = resized(tmp_path, right, (48, 64))
    assert same(seen(typed(root, advice(refused(root), "mask_resize"))), right)


def test_a_mask_of_another_aspect_is_refused(tmp_path):
    root = resized(tmp_path, coarse(), (48, 48))
    for words in ({}, {"mask_resize": "nearest"}):
        assert "48x48" in refused(root, **words)
    assert "data.mask_resize" not in refused(root)


def test_masks_of_the_right_size_leave_nothing_to_tell(tmp_path):
    dataset = opened(written(tmp_path, coarse()), mask_resize="nearest")
    assert same(seen(dataset), coarse())
    assert not [note for note in dataset.notes if "resize" in note]


# What may be typed


@pytest.mark.parametrize("word", ["middle", [1], True])
def test_what_a_threshold_may_be_is_checked(tmp_path, word):
    with pytest.raises(ConfigError, match=r"data\.threshold"):
        opened(tmp_path, threshold=word)


def test_how_a_mask_may_be_resized_is_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.mask_resize"):
        opened(tmp_path, mask_resize="bilinear")
