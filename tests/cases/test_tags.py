"""What a file's tags say means the same at every depth, in TIFF and PNG, of images and masks."""

from functools import partial

import numpy as np
import pytest
import tifffile
from scenes import (
    BLACK,
    BLUE,
    GREEN,
    RED,
    SIZE,
    WHITE,
    coded,
    noise,
    opened,
    pictured,
    pillow,
    pixels,
    png_of,
    refused,
    said,
    same,
    seen,
    tiff,
    tiff_of,
    truths,
    written,
)

COLORS = (BLACK, RED, GREEN)
BY_COLOR = {"ground": list(BLACK), "roof": list(RED), "tree": list(GREEN)}
HIGHEST = {bits: 2**bits - 1 for bits in (1, 2, 4, 8, 16, 32)}
ALPHA = "unassalpha"


def grey_tiff(path, samples, bits, photometric="minisblack", **how):
    """A grey TIFF of 1 to 32 unsigned bits."""
    if bits in (2, 4):
        tiff_of(path, samples, bits, photometric=int(photometric == "minisblack"))
    else:
        tiff(path, samples.astype(bool if bits == 1 else f"uint{bits}"), photometric=photometric, **how)


def levels(bits, seed=0, channels=()):
    """Random samples of that many bits."""
    return np.random.default_rng([3, seed]).integers(0, HIGHEST[bits] + 1, (*SIZE, *channels))


def rgba(color, alpha):
    """Pixels of one colour with this alpha, `h w 4`."""
    return np.dstack([*(np.full_like(alpha, level) for level in color), alpha])


# Photometric interpretation


@pytest.mark.parametrize("bits", HIGHEST)
def test_a_mask_whose_lowest_value_is_white_is_read_as_it_is_shown(tmp_path, bits):
    right = truths()
    stored = [(1 - truth) * HIGHEST[bits] for truth in right]  # the background is black, stored as the highest
    write = partial(grey_tiff, bits=bits, photometric="miniswhite")
    assert same(seen(opened(written(tmp_path, stored, "tif", write))), right)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_indices_whose_lowest_value_is_white_are_turned(tmp_path, bits):
    right = truths(classes=4)
    write = partial(grey_tiff, bits=bits, photometric="miniswhite")
    root = written(tmp_path, [HIGHEST[bits] - truth for truth in right], "tif", write)
    assert same(seen(opened(root, classes=["a", "b", "c", "d"])), right)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", HIGHEST)
def test_an_image_is_read_as_it_is_shown(tmp_path, bits, photometric):
    right = [levels(bits, i) for i in range(4)]
    stored = right if photometric == "minisblack" else [HIGHEST[bits] - picture for picture in right]
    dataset = opened(pictured(tmp_path, stored, partial(grey_tiff, bits=bits, photometric=photometric)))
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.float32
    assert dataset.store.dtype == dtype
    scale = 255 // HIGHEST[bits] if bits < 8 else 1
    assert same(pixels(dataset), [(scale * picture)[..., None].astype(dtype) for picture in right])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_png_is_read_as_it_is_shown(tmp_path, bits):
    right = [levels(bits, i) for i in range(4)]
    dataset = opened(pictured(tmp_path, right, partial(png_of, bits=bits), "png"))
    scale = 255 // HIGHEST[bits] if bits < 8 else 1
    assert same(pixels(dataset), [(scale * picture)[..., None] for picture in right])


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("classes", [None, ["bg", "cell"], {"cell": 255}], ids=str)
def test_one_bit_is_0_and_255(tmp_path, suffix, classes):
    right = truths()
    root = written(tmp_path, [truth.astype(bool) for truth in right], suffix)
    dataset = opened(root, classes=classes)
    assert same(seen(dataset), right)
    assert dataset.store.counts().keys() == {0, 255}


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_turned_files_are_turned_at_every_depth(tmp_path, bits):
    """Orientation 3: stored upside down and mirrored; beside it, the lowest value is white."""
    right = truths()
    write = partial(grey_tiff, bits=bits, photometric="miniswhite", orientation=3)
    root = written(tmp_path, [(1 - truth[::-1, ::-1]) * HIGHEST[bits] for truth in right], "tif", write)
    assert same(seen(opened(root)), right)


# Extra samples of images

WITH_ALPHA = {
    "tif": lambda path, samples: tiff(path, samples, photometric="rgb", extrasamples=[ALPHA]),
    "planes": lambda path, samples: tiff(
        path, np.moveaxis(samples, 2, 0), photometric="rgb", planarconfig="separate", extrasamples=[ALPHA]
    ),
    "png": lambda path, samples: png_of(path, samples, 8 * samples.dtype.itemsize),
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", WITH_ALPHA)
def test_alpha_that_varies_is_dropped_and_told(tmp_path, kind, bits):
    right = [levels(bits, i, (4,)).astype(f"uint{bits}") for i in range(4)]
    dataset = opened(pictured(tmp_path, right, WITH_ALPHA[kind], "png" if kind == "png" else "tif"))
    assert same(pixels(dataset), [picture[..., :3] for picture in right])
    assert said(dataset, "alpha", "image")


@pytest.mark.parametrize("kind", WITH_ALPHA)
def test_alpha_that_is_opaque_is_dropped_in_silence(tmp_path, kind):
    right = [noise(i) for i in range(4)]
    stored = [np.dstack([picture, np.full(SIZE, 255, np.uint8)]) for picture in right]
    dataset = opened(pictured(tmp_path, stored, WITH_ALPHA[kind], "png" if kind == "png" else "tif"))
    assert same(pixels(dataset), right)
    assert not [note for note in dataset.notes if "alpha" in note]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_beside_grey_is_dropped_and_told(tmp_path, suffix, bits):
    write = {"png": WITH_ALPHA["png"], "tif": partial(tiff, planarconfig="contig", extrasamples=[ALPHA])}[suffix]
    right = [levels(bits, i, (2,)).astype(f"uint{bits}") for i in range(4)]
    dataset = opened(pictured(tmp_path, right, write, suffix))
    assert same(pixels(dataset), [picture[..., :1] for picture in right])
    assert said(dataset, "alpha", "image")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_fourth_band_that_is_no_alpha_is_a_channel(tmp_path, bits):
    right = [levels(bits, i, (4,)).astype(f"uint{bits}") for i in range(4)]
    write = partial(tiff, photometric="rgb", extrasamples=["unspecified"])
    assert same(pixels(opened(pictured(tmp_path, right, write))), right)


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_dropped_where_it_stands(tmp_path, bits):
    """Red, green, blue, alpha, near infrared."""
    right = [levels(bits, i, (5,)).astype(f"uint{bits}") for i in range(4)]
    write = partial(tiff, photometric="rgb", extrasamples=[ALPHA, "unspecified"])
    assert same(pixels(opened(pictured(tmp_path, right, write))), [picture[..., [0, 1, 2, 4]] for picture in right])


# Page order


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", ["pages", "planes", "contiguous"])
def test_three_bands_are_three_channels_in_their_order(tmp_path, kind, dtype):
    def write(path, samples):
        planes = np.ascontiguousarray(np.moveaxis(samples, 2, 0))
        if kind == "pages":
            with tifffile.TiffWriter(path) as file:
                for plane in planes:
                    file.write(plane, photometric="minisblack", metadata=None)
        elif kind == "planes":
            tiff(path, planes, photometric="rgb", planarconfig="separate")
        else:
            tiff(path, samples, photometric="rgb")

    right = [levels(8, i, (3,)).astype(dtype) for i in range(4)]
    assert same(pixels(opened(pictured(tmp_path, right, write))), right)


# Sample format


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"])
def test_an_images_numbers_are_what_its_sample_format_says(tmp_path, dtype, order):
    kind = np.dtype(dtype)
    lowest = {"u": 0, "i": -100, "f": -100}[kind.kind]
    highest = {"uint32": 2**32 - 1, "uint16": 65535, "int32": 2**31 - 1, "int16": 32767}.get(dtype, 100)
    right = [np.random.default_rng(i).integers(lowest, highest, SIZE).astype(kind) for i in range(4)]
    dataset = opened(pictured(tmp_path, right, partial(tiff, byteorder=order)))
    stored = np.uint16 if dtype == "uint16" else np.float32
    assert dataset.store.dtype == stored
    assert same(pixels(dataset), [picture[..., None].astype(stored) for picture in right])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
def test_a_mask_may_be_of_floats(tmp_path, dtype, values):
    right = truths()
    root = written(tmp_path, [coded(truth, values, dtype) for truth in right], "tif", tiff)
    assert same(seen(opened(root)), right)


def test_floats_may_be_indices(tmp_path):
    right = truths(classes=4)
    root = written(tmp_path, [truth.astype(np.float32) for truth in right], "tif", tiff)
    assert same(seen(opened(root, classes=["a", "b", "c", "d"])), right)


# Colours of 16 bits

DEEP = {"png": partial(png_of, bits=16), "tif": partial(tiff, photometric="rgb")}


@pytest.mark.parametrize("suffix", DEEP)
def test_colours_of_16_bits_are_named_as_those_of_8(tmp_path, suffix):
    right = truths(classes=3)
    stored = [257 * coded(truth, COLORS, np.uint16) for truth in right]
    assert same(seen(opened(written(tmp_path, stored, suffix, DEEP[suffix]), classes=BY_COLOR)), right)


def test_colours_of_8_and_16_bits_lie_side_by_side(tmp_path):
    right = truths(classes=3)
    masks = [coded(truth, COLORS, np.uint16) * (257 if i % 2 else 1) for i, truth in enumerate(right)]
    masks = [mask if i % 2 else mask.astype(np.uint8) for i, mask in enumerate(masks)]
    assert same(seen(opened(written(tmp_path, masks, "tif", DEEP["tif"]), classes=BY_COLOR)), right)


def test_colours_of_16_bits_may_have_alpha(tmp_path):
    right = truths(classes=3)
    stored = [np.dstack([257 * coded(truth, COLORS, np.uint16), np.full(SIZE, 65535, np.uint16)]) for truth in right]
    assert same(seen(opened(written(tmp_path, stored, "tif", WITH_ALPHA["tif"]), classes=BY_COLOR)), right)


# Masks with alpha


@pytest.mark.parametrize("color", [BLACK, WHITE, BLUE])
@pytest.mark.parametrize("kind", WITH_ALPHA)
def test_a_mask_may_live_in_the_alpha_channel(tmp_path, kind, color):
    right = truths()
    stored = [rgba(color, coded(truth, [0, 255])) for truth in right]
    dataset = opened(written(tmp_path, stored, "png" if kind == "png" else "tif", WITH_ALPHA[kind]))
    assert same(seen(dataset), right)
    assert said(dataset, "alpha", "mask")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_mask_may_live_in_the_alpha_channel_beside_grey(tmp_path, bits):
    right = truths()
    stored = [np.dstack([0 * truth, truth * HIGHEST[bits]]).astype(f"uint{bits}") for truth in right]
    assert same(seen(opened(written(tmp_path, stored, "png", WITH_ALPHA["png"]))), right)


def test_the_alpha_channel_may_hold_indices(tmp_path):
    right = truths(classes=3)
    stored = [rgba(BLACK, truth.astype(np.uint8)) for truth in right]
    dataset = opened(written(tmp_path, stored, write=WITH_ALPHA["png"]), classes=["a", "b", "c"])
    assert same(seen(dataset), right)


def test_one_mask_that_shows_something_is_enough_for_what_is_seen(tmp_path):
    """All masks but two are black; their alpha varies and means nothing."""
    right = [truth if i % 3 == 0 else 0 * truth for i, truth in enumerate(truths())]
    stored = [np.dstack([coded(truth, [BLACK, WHITE]), levels(8, i)]).astype(np.uint8) for i, truth in enumerate(right)]
    root = written(tmp_path, stored, write=WITH_ALPHA["png"])
    for kind in ("images", "masks"):
        for number in range(6):
            part = root / kind / ("train" if number < 3 else "val")
            part.mkdir(exist_ok=True)
            (root / kind / f"{number}.png").rename(part / f"{number}.png")
    dataset = opened(root)
    assert same(seen(dataset), right)
    assert said(dataset, "alpha", "mask")


@pytest.mark.parametrize("kind", WITH_ALPHA)
def test_opaque_masks_are_their_colours(tmp_path, kind):
    right = truths(classes=3)
    stored = [np.dstack([coded(truth, COLORS), np.full(SIZE, 255, np.uint8)]) for truth in right]
    dataset = opened(written(tmp_path, stored, "png" if kind == "png" else "tif", WITH_ALPHA[kind]), classes=BY_COLOR)
    assert same(seen(dataset), right)
    assert not [note for note in dataset.notes if "alpha" in note]


def test_masks_that_show_nothing_at_all_are_refused(tmp_path):
    stored = [rgba(BLACK, np.full(SIZE, 255, np.uint8)) for _ in range(4)]
    assert "all pixels of all masks are background" in refused(written(tmp_path, stored, write=pillow))
