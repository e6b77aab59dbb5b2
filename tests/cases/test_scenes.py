"""The cases' own files, held against readers that did not write them."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from scenes import (
    BLACK,
    GREEN,
    NODATA,
    RED,
    SIZE,
    advice,
    blobs,
    cut_at,
    in_palette,
    nearest,
    percents,
    png_of,
    shown,
    tiff,
    tiff_of,
)


def samples(bits, *channels):
    return np.random.default_rng(bits).integers(0, 2**bits, (*SIZE, *channels))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_pngs_by_hand_are_what_pillow_shows(tmp_path, bits):
    png_of(tmp_path / "a.png", samples(bits), bits)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.convert("L") if bits == 1 else image)
    assert np.array_equal(expected, samples(bits) * (255 // (2**bits - 1) if bits < 8 else 1))
    assert np.array_equal(shown(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_pngs_of_several_channels_by_hand_are_what_pypng_reads(tmp_path, bits, channels):
    png_of(tmp_path / "a.png", samples(bits, channels), bits)
    assert np.array_equal(shown(tmp_path / "a.png"), samples(bits, channels))
    with Image.open(tmp_path / "a.png") as image:  # Pillow knows the size, and 8 bits of each channel
        assert image.size == (SIZE[1], SIZE[0])
        eight = np.asarray(image.convert({2: "LA", 3: "RGB", 4: "RGBA"}[channels]))
    if (bits, channels) != (16, 2):
        assert np.array_equal(eight, samples(bits, channels) >> (bits - 8))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_by_hand_are_what_pillow_shows(tmp_path, bits):
    palette = [(7 * i, 255 - i, i) for i in range(min(2**bits, 30))]
    indices = samples(bits) % len(palette)
    png_of(tmp_path / "a.png", indices, bits, palette)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), indices)
        assert np.array_equal(np.asarray(image.convert("RGB")), np.array(palette)[indices])
    assert np.array_equal(shown(tmp_path / "a.png"), np.array(palette)[indices])


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_palettes_by_pillow_are_what_the_viewer_shows(tmp_path, suffix):
    in_palette(tmp_path / f"a.{suffix}", samples(1) + 1, [GREEN, BLACK, RED])
    assert np.array_equal(shown(tmp_path / f"a.{suffix}"), np.array([BLACK, RED])[samples(1)])


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiffs_by_hand_are_what_pillow_shows(tmp_path, bits, photometric):
    tiff_of(tmp_path / "a.tif", samples(bits), bits, photometric)
    scaled = samples(bits) * (255 // (2**bits - 1))
    with Image.open(tmp_path / "a.tif") as image:
        assert np.array_equal(np.asarray(image.convert("L")), scaled if photometric else 255 - scaled)


def test_twelve_bits_by_hand_are_what_pillow_reads(tmp_path):
    tiff_of(tmp_path / "a.tif", samples(12), 12)
    with Image.open(tmp_path / "a.tif") as image:
        assert np.array_equal(np.asarray(image), samples(12))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32"])
def test_a_lowest_value_that_is_white_is_tagged_so(tmp_path, dtype):
    stored = samples(1).astype(dtype)
    tiff(tmp_path / "a.tif", stored, photometric="miniswhite")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
        assert np.array_equal(file.pages[0].asarray(), stored)
    if dtype == "bool":
        assert np.array_equal(cut_at(tmp_path / "a.tif"), 1 - samples(1))
    highest = 255 if dtype == "bool" else np.iinfo(dtype).max
    right = (1 - samples(1)) * 255 if dtype == "bool" else highest - samples(1)
    assert np.array_equal(shown(tmp_path / "a.tif"), right)


def test_nodata_is_tagged_as_gdal_does(tmp_path):
    tiff(tmp_path / "a.tif", samples(8).astype(np.float32), nodata="-9999")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[NODATA] == "-9999"


def test_blobs_have_every_class_they_are_asked_for():
    mask = blobs(np.random.default_rng(0), (1, 4))
    assert np.unique(mask).tolist() == [0, 1, 4]
    assert np.bincount(mask.ravel())[[0, 1, 4]].min() >= 20


def test_the_nearest_colour_is_the_one_the_least_away():
    pixels = np.array([[[9, 9, 9], [200, 30, 30], [0, 130, 0]]])
    assert nearest(pixels, [BLACK, RED, GREEN]).tolist() == [[0, 1, 2]]


def test_advice_is_taken_from_a_message_as_one_would_type_it():
    text = "255 (12.5 %) is void. Try 'data.classes={a:0,b:[255,1]}' or data.ignore_index=255."
    assert advice(text, "classes") == "data.classes={a:0,b:[255,1]}"
    assert advice(text, "ignore_index") == "data.ignore_index=255"
    assert percents(text) == [12.5]
    for vague in ("data.ignore_index=VALUE", "'data.classes=[c0,c1,...]'"):
        with pytest.raises(AssertionError, match="no complete line"):
            advice(vague, vague[5:].partition("=")[0].strip("."))
