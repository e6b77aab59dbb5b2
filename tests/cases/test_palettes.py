"""Palettes: an index means what the palette of its own file says, wherever the files do not agree."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from scenes import (
    BLACK,
    BLUE,
    GREEN,
    RED,
    WHITE,
    YELLOW,
    advice,
    blobs,
    coded,
    foreground,
    in_palette,
    meant,
    nearest,
    opened,
    pillow,
    png_of,
    refused,
    said,
    same,
    seen,
    truths,
    typed,
    written,
)

from segsweep.data.labels import VOID

COLORS = (BLACK, RED, GREEN)
BY_COLOR = {"ground": list(BLACK), "roof": list(RED), "tree": list(GREEN)}


def palettes(tmp_path, right, colors, orders, suffix="png", write=in_palette):
    """Masks with the colours of `colors`, in the palette order of `orders`, one after the other."""
    orders = [orders[i % len(orders)] for i in range(len(right))]
    indices = [np.argsort(order)[truth].astype(np.uint8) for truth, order in zip(right, orders, strict=True)]
    writers = [
        lambda path, pixels, order=order: write(path, pixels, [colors[color] for color in order]) for order in orders
    ]
    return written(tmp_path, indices, suffix, writers)


def square():
    """A square on 6.25 % of the pixels."""
    truth = np.zeros((48, 64), np.int64)
    truth[8:20, 30:46] = 1
    return truth


# They differ


@pytest.mark.parametrize("color", [WHITE, RED])
def test_two_colours_swapped_in_half_of_the_files(tmp_path, color):
    dataset = opened(palettes(tmp_path, [square()] * 8, (BLACK, color), [(0, 1), (1, 0)]))
    assert foreground(dataset) == pytest.approx(0.0625)
    assert same(seen(dataset), [square()] * 8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_three_colours_in_any_order_are_named_by_colour(tmp_path, suffix):
    right = truths(classes=3)
    dataset = opened(palettes(tmp_path, right, COLORS, [(0, 1, 2), (2, 0, 1), (1, 2, 0)], suffix), classes=BY_COLOR)
    assert dataset.labels.names == ("ground", "roof", "tree")
    assert same(seen(dataset), right)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palettes_of_few_bits_differ_as_well(tmp_path, bits):
    def write(path, indices, palette):
        png_of(path, indices, bits, palette)

    right = truths(classes=3)
    root = palettes(tmp_path, right, COLORS, [(0, 1, 2), (2, 1, 0)], write=write)
    assert same(seen(opened(root, classes=BY_COLOR)), right)


def test_palettes_of_16_bits_a_channel_differ_as_well(tmp_path):
    def write(path, indices, palette):
        colormap = np.zeros((3, 256), np.uint16)
        colormap[:, : len(palette)] = 257 * np.array(palette, np.uint16).T  # 65535 is the brightest
        tifffile.imwrite(path, indices, photometric="palette", colormap=colormap)

    right = truths(classes=3)
    root = palettes(tmp_path, right, COLORS, [(0, 1, 2), (2, 1, 0)], "tif", write)
    assert same(seen(opened(root, classes=BY_COLOR)), right)


def test_what_no_class_names_is_background(tmp_path):
    right = truths(classes=3)
    dataset = opened(palettes(tmp_path, right, COLORS, [(0, 1, 2), (2, 0, 1)]), classes={"tree": list(GREEN)})
    assert same(seen(dataset), [(truth == 2).astype(int) for truth in right])


def test_a_colour_may_be_void(tmp_path):
    right = truths(classes=3)
    root = palettes(tmp_path, right, COLORS, [(0, 1, 2), (2, 0, 1)])
    dataset = opened(root, classes={"roof": list(RED)}, ignore_index=list(GREEN))
    assert same(seen(dataset), [np.array([0, 1, VOID])[truth] for truth in right])


def test_one_file_that_differs_is_enough(tmp_path):
    right = truths(classes=3)
    root = palettes(tmp_path, right, COLORS, [(0, 1, 2)] * 5 + [(0, 2, 1)])
    assert same(seen(opened(root, classes=BY_COLOR)), right)


def test_files_that_lack_a_colour_count_their_own(tmp_path):
    """As programs do that write a file's colours in the order of their appearance."""
    right = [blobs(np.random.default_rng(i), [(1,), (2,), (1, 2)][i % 3]) for i in range(6)]
    indices, writers = [], []
    for truth in right:
        used = sorted(np.unique(truth), key=lambda number, truth=truth: (truth == number).argmax())
        indices.append(nearest(coded(truth, COLORS), [COLORS[number] for number in used]))
        writers.append(lambda path, pixels, used=used: in_palette(path, pixels, [COLORS[number] for number in used]))
    assert same(seen(opened(written(tmp_path, indices, "png", writers), classes=BY_COLOR)), right)


@pytest.mark.parametrize("classes", [None, ["ground", "roof", "tree"]], ids=["unnamed", "listed"])
def test_three_colours_are_refused_without_colours_and_the_line_to_type_works(tmp_path, classes):
    right = truths(classes=3)
    root = palettes(tmp_path, right, COLORS, [(0, 1, 2), (2, 0, 1)])
    line = advice(refused(root, classes=classes), "classes")
    assert same(seen(typed(root, line)), [meant(line, COLORS)[truth] for truth in right])
    assert set(meant(line, COLORS)) == {0, 1, 2}


def test_the_way_is_said_where_they_differ(tmp_path):
    dataset = opened(palettes(tmp_path, truths(), (BLACK, RED), [(0, 1), (1, 0)]))
    assert said(dataset, "palette", "colour")


def test_palettes_beside_colours_are_read_by_colour(tmp_path):
    right = truths(classes=3)
    masks = [truth if i % 2 else coded(truth, COLORS) for i, truth in enumerate(right)]
    writers = [(lambda path, pixels: in_palette(path, pixels, COLORS)) if i % 2 else pillow for i in range(len(right))]
    assert same(seen(opened(written(tmp_path, masks, "png", writers), classes=BY_COLOR)), right)


def test_a_transparent_entry_changes_nothing(tmp_path):
    def write(path, indices, palette):
        in_palette(path, indices, palette, transparency=0)

    right = truths(classes=3)
    root = palettes(tmp_path, right, COLORS, [(0, 1, 2), (2, 0, 1)], write=write)
    assert same(seen(opened(root, classes=BY_COLOR)), right)


# They agree


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize(
    "classes", [["ground", "roof", "tree"], {"roof": 1, "tree": 2}, BY_COLOR], ids=["listed", "numbered", "coloured"]
)
def test_one_palette_is_named_by_index_or_by_colour(tmp_path, suffix, classes):
    right = truths(classes=3)
    assert same(seen(opened(palettes(tmp_path, right, COLORS, [(0, 1, 2)], suffix), classes=classes)), right)


def test_entries_that_no_pixel_uses_may_differ(tmp_path):
    right = truths(classes=3)
    extra = [[BLUE], [YELLOW, WHITE], []]
    writers = [lambda path, pixels, i=i: in_palette(path, pixels, [*COLORS, *extra[i % 3]]) for i in range(len(right))]
    dataset = opened(written(tmp_path, right, "png", writers), classes=["ground", "roof", "tree"])
    assert same(seen(dataset), right)
    assert said(dataset, "palette", "ind")  # index, indices


def test_255_of_one_palette_is_void(tmp_path):
    """As in PASCAL VOC, whose borders have the last entry."""
    right = truths(classes=3)
    right = [np.where(np.arange(64) < 2, VOID, truth) for truth in right]
    palette = [*COLORS, *[BLUE] * 252, (224, 224, 192)]
    root = written(tmp_path, right, "png", lambda path, pixels: in_palette(path, pixels, palette))
    assert same(seen(opened(root, classes=["a", "b", "c"])), right)


def test_black_is_background_wherever_it_is(tmp_path):
    right = truths()
    assert same(seen(opened(palettes(tmp_path, right, (BLACK, RED), [(1, 0)]))), right)


def test_without_black_the_first_index_is_background(tmp_path):
    right = truths()
    assert same(seen(opened(palettes(tmp_path, right, (BLUE, YELLOW), [(0, 1)]))), right)


def test_a_palette_of_greys_is_of_indices_where_all_agree(tmp_path):
    right = truths(classes=3)
    root = palettes(tmp_path, right, (BLACK, (1, 1, 1), (2, 2, 2)), [(0, 1, 2)])
    with Image.open(root / "masks" / "0.png") as image:
        assert image.mode == "P"
    assert same(seen(opened(root, classes=["a", "b", "c"])), right)
