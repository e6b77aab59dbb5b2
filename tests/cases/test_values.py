"""What a mask's values mean: 255 is a class wherever somebody names it, and void only beside small indices."""

import numpy as np
import pytest
from scenes import (
    RED,
    advice,
    coded,
    foreground,
    meant,
    opened,
    percents,
    pillow,
    png_of,
    refused,
    said,
    same,
    seen,
    tiff,
    tiff_of,
    truths,
    typed,
    written,
)

from segsweep.commands.app import main
from segsweep.data.labels import VOID
from segsweep.errors import ConfigError


def valued(tmp_path, right, values, dtype=np.uint8, suffix="png"):
    return written(tmp_path, [coded(truth, values, dtype) for truth in right], suffix)


def with_border(truth):
    """The class of each pixel, VOID in the two rows at the top and the bottom."""
    bordered = truth.copy()
    bordered[[0, 1, -2, -1]] = VOID
    return bordered


# 0 and 255


@pytest.mark.parametrize("classes", [None, ["bg", "cell"], {"cell": 255}, {"bg": 0, "cell": 255}], ids=str)
def test_0_and_255_are_background_and_foreground_however_they_are_named(tmp_path, classes):
    right = truths()
    dataset = opened(valued(tmp_path, right, [0, 255]), classes=classes)
    assert same(seen(dataset), right)
    expected = ("background", "foreground") if classes is None else ("bg", "cell")
    assert dataset.labels.names == (("background", "cell") if classes == {"cell": 255} else expected)


@pytest.mark.parametrize("highest", [1, 255, 256, 65535])
def test_two_values_of_16_bits_are_background_and_foreground(tmp_path, highest):
    right = truths()
    assert same(seen(opened(valued(tmp_path, right, [0, highest], np.uint16))), right)


def test_only_255_is_void_where_it_is_said_to_be(tmp_path):
    right = [with_border(truth) for truth in truths()]
    root = written(tmp_path, [np.where(truth == VOID, 255, 7 * truth) for truth in right], write=pillow_8)
    assert same(seen(opened(root, ignore_index=255)), right)


def pillow_8(path, pixels):
    pillow(path, pixels.astype(np.uint8))


# A value that a class names


def test_255_is_the_class_that_names_it_beside_128(tmp_path):
    right = truths(classes=3)
    dataset = opened(valued(tmp_path, right, [0, 128, 255]), classes={"wall": 128, "cell": 255})
    assert dataset.labels.names == ("background", "wall", "cell")
    assert same(seen(dataset), right)
    assert dataset.counts("train")[-1] == 0  # none is void


def test_255_is_the_class_that_names_it_beside_small_indices(tmp_path):
    right = truths(classes=4)
    dataset = opened(valued(tmp_path, right, [0, 1, 2, 255]), classes={"a": 0, "b": 1, "c": 2, "edge": 255})
    assert same(seen(dataset), right)


def test_255_may_be_merged_with_1(tmp_path):
    right = truths(classes=3)
    dataset = opened(valued(tmp_path, right, [0, 1, 255]), classes={"cell": [1, 255]})
    assert same(seen(dataset), [(truth > 0).astype(int) for truth in right])


def test_255_is_left_over_beside_128_as_any_other_value(tmp_path):
    right = truths(classes=3)
    dataset = opened(valued(tmp_path, right, [0, 128, 255]), classes={"wall": 128})
    assert same(seen(dataset), [(truth == 1).astype(int) for truth in right])


def test_a_value_cannot_be_a_class_and_void(tmp_path):
    root = valued(tmp_path, truths(), [0, 255])
    message = refused(root, ConfigError, classes={"cell": 255}, ignore_index=255)
    assert "data.ignore_index=255" in message
    assert "cell" in message


def test_a_colour_cannot_be_a_class_and_void(tmp_path):
    root = valued(tmp_path, truths(), [(0, 0, 0), RED])
    message = refused(root, ConfigError, classes={"cell": list(RED)}, ignore_index=list(RED))
    assert "data.ignore_index=[255,0,0]" in message
    assert "cell" in message


# 255 that nobody names


@pytest.mark.parametrize("classes", [["a", "b", "c"], {"a": 0, "b": 1, "c": 2}], ids=["listed", "numbered"])
def test_255_beside_small_indices_is_void_unnamed(tmp_path, classes):
    right = [with_border(truth) for truth in truths(classes=3)]
    root = written(tmp_path, [truth.astype(np.uint8) for truth in right])
    assert same(seen(opened(root, classes=classes)), right)


def test_255_beside_0_and_1_is_void_and_said_with_its_share(tmp_path):
    right = [with_border(truth) for truth in truths()]
    dataset = opened(written(tmp_path, [truth.astype(np.uint8) for truth in right]))
    assert same(seen(dataset), right)
    share = 100 * np.mean([truth == VOID for truth in right])  # 4 of 48 rows
    assert any(abs(told - share) < 0.1 for told in percents(said(dataset, "255")))


def test_the_line_that_makes_255_a_class_makes_it_one(tmp_path):
    right = truths(classes=3)
    root = valued(tmp_path, right, [0, 1, 255])
    line = advice(said(opened(root), "255"), "classes")
    assert "255" in line
    assert same(seen(typed(root, line)), [meant(line, [0, 1, 255])[truth] for truth in right])


def test_nothing_is_said_of_masks_without_255(tmp_path):
    dataset = opened(valued(tmp_path, truths(), [0, 1]))
    assert not [note for note in dataset.notes if "255" in note]


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 64, 128, 255)])
def test_spread_values_are_refused_unnamed_and_the_line_to_type_works(tmp_path, values):
    right = truths(classes=len(values))
    root = valued(tmp_path, right, values)
    line = advice(refused(root), "classes")
    assert "255" in line
    assert same(seen(typed(root, line)), [meant(line, values)[truth] for truth in right])


# 255 in some files, 1 in others


def of_two_hands(tmp_path):
    """Half of the masks hold 0 and 1, the others 0 and 255."""
    right = truths(8)
    masks = [coded(truth, [0, (1, 255)[i % 2]]) for i, truth in enumerate(right)]
    return right, written(tmp_path, masks)


def test_255_without_1_beside_1_without_255_is_refused(tmp_path):
    _, root = of_two_hands(tmp_path)
    message = refused(root)
    assert "data.ignore_index=255" in message
    assert "'data.classes={foreground:[1,255]}'" in message


def test_the_line_that_merges_1_and_255_works(tmp_path):
    right, root = of_two_hands(tmp_path)
    dataset = typed(root, advice(refused(root), "classes"))
    assert same(seen(dataset), right)
    assert foreground(dataset) == pytest.approx(np.mean(right))


def test_the_line_that_makes_255_void_works(tmp_path):
    right, root = of_two_hands(tmp_path)
    line = advice(refused(root), "ignore_index")
    for i in range(8):  # a split of which both parts hold a 1
        for kind in ("images", "masks"):
            part = root / kind / ("train" if i < 4 else "val")
            part.mkdir(exist_ok=True)
            (root / kind / f"{i}.png").rename(part / f"{i}.png")
    expected = [np.where(truth == 1, (1, VOID)[i % 2], 0) for i, truth in enumerate(right)]
    assert same(seen(typed(root, line)), expected)


def test_1_in_some_files_and_255_beside_it_in_others_is_void(tmp_path):
    right = [with_border(truth) if i % 2 else truth for i, truth in enumerate(truths())]
    assert same(seen(opened(written(tmp_path, [truth.astype(np.uint8) for truth in right]))), right)


# Numbers of every size


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("uint16", (0, 300, 65535)),
        ("uint32", (0, 70_000, 16_777_216)),
        ("uint32", (0, 2_147_483_648, 4_294_967_295)),
        ("int8", (0, -1, 127)),
        ("int16", (-2, -32768, 300)),
        ("int32", (0, -7, 2_147_483_647)),
    ],
)
def test_numbers_stay_what_they_are(tmp_path, dtype, values):
    right = truths(classes=3)
    root = written(tmp_path, [coded(truth, values, dtype) for truth in right], "tif", tiff)
    dataset = opened(root, classes={"a": values[0], "b": values[1], "c": values[2]})
    assert same(seen(dataset), right)


def test_a_negative_number_may_be_void(tmp_path):
    right = [with_border(truth) for truth in truths()]
    root = written(tmp_path, [np.where(truth == VOID, -1, truth).astype(np.int16) for truth in right], "tif", tiff)
    assert same(seen(opened(root, ignore_index=-1)), right)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_more_than_256_numbered_objects_are_one_class(tmp_path, dtype):
    right = truths()
    first = 1 if dtype == "uint16" else 3_000_000_000
    ids = [first + np.arange(truth.size).reshape(truth.shape) for truth in right]  # each pixel an object
    masks = [np.where(truth, number, 0).astype(dtype) for truth, number in zip(right, ids, strict=True)]
    assert same(seen(opened(written(tmp_path, masks, "tif", tiff), binarize=True)), right)


def test_numbered_objects_may_be_a_byte(tmp_path):
    right = truths()
    masks = [np.where(truth, 1 + np.arange(64) % 9, 0).astype(np.uint8) for truth in right]
    assert same(seen(opened(written(tmp_path, masks), binarize=True)), right)


# `segsweep data`


def printed(capsys, root, *words):
    assert main(["data", "data=folder", f"data.root={root}", *words]) == 0
    return capsys.readouterr().out.splitlines()


def line_of(lines, *words):
    """Whether a line holds these words one after the other."""
    places = [[line.find(word) for word in words] for line in lines]
    return any(-1 not in found and found == sorted(found) for found in places)


def test_the_command_says_which_values_a_class_is(tmp_path, capsys):
    root = valued(tmp_path, truths(classes=3), [0, 128, 255])
    lines = printed(capsys, root, "data.classes={wall:128,cell:255}")
    assert line_of(lines, "wall", "128")
    assert line_of(lines, "cell", "255")


def test_the_command_says_which_colours_a_class_is(tmp_path, capsys):
    root = valued(tmp_path, truths(classes=3), [(0, 0, 0), (200, 10, 77), (1, 2, 3)])
    lines = printed(capsys, root, "data.classes={roof:[200,10,77],road:[1,2,3]}")
    assert line_of(lines, "roof", "[200,10,77]")
    assert line_of(lines, "road", "[1,2,3]")


def test_the_command_prints_what_was_decided(tmp_path, capsys):
    root = written(tmp_path, [with_border(truth).astype(np.uint8) for truth in truths()])
    note = said(opened(root), "255")
    assert any(note in line for line in printed(capsys, root))


def test_the_command_refuses_in_a_line(tmp_path, capsys):
    root = valued(tmp_path, truths(classes=3), [0, 128, 255])
    assert main(["data", "data=folder", f"data.root={root}"]) == 3
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segsweep: ")]
    assert len(told) == 1
    assert advice(told[0], "classes")


# Fewer than 8 bits


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_highest_of_few_bits_is_255(tmp_path, bits, suffix):
    right, writer = truths(classes=3), {"png": png_of, "tif": tiff_of}[suffix]
    stored = [coded(truth, [0, 1, 2**bits - 1]) for truth in right]
    root = written(tmp_path, stored, suffix, lambda path, samples: writer(path, samples, bits))
    step = 255 // (2**bits - 1)
    assert same(seen(opened(root, classes={"a": step, "b": 255})), right)
