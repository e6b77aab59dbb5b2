"""Files of every kind to arrays."""

import io
import struct
import time
import tracemalloc
import warnings
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from conftest import read_mask
from PIL import Image

from segsweep.data import masks, raster
from segsweep.data.images import read_image, read_picture
from segsweep.data.masks import COLOR, LARGEST, code, value
from segsweep.errors import DataError

HEIGHT, WIDTH = 12, 17
ORIENTATION = 0x0112
# What a viewer does to the stored pixels (EXIF 2.3, 4.6.4 A).
SHOWN = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


def noise(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape or (HEIGHT, WIDTH)).astype(dtype)


def saved(path, pixels, **how):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **how)
    return path


def with_palette(indices, colors):
    image = Image.fromarray(indices)
    image.putpalette(np.asarray(colors, np.uint8).ravel().tolist())
    assert image.mode == "P"
    return image


def oriented(value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def tiff(path, pixels, **how):
    tifffile.imwrite(path, pixels, **how)
    return path


def pages(path, images, **how):
    images[0].save(path, save_all=True, append_images=images[1:], **how)
    return path


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(path, pixels, extra=b"", size=None):
    """A PNG of 8 or 16 bits and 1 to 4 channels, by hand: Pillow writes no deep colour."""
    height, width, channels = pixels.shape
    bits, kind = 8 * pixels.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(f">u{pixels.itemsize}").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *(size or (width, height)), bits, kind, 0, 0, 0))
    content = header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def tiff_of(path, width, height, bits, data, **tags):
    """A TIFF of one uncompressed strip, by hand: tags as the standard numbers them, `_277=5` for five samples."""
    known = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = known | {int(name[1:]): number for name, number in tags.items()}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in sorted(entries.items()))
    start = 8 + len(data) + len(data) % 2
    body = data + b"\0" * (len(data) % 2) + struct.pack("<H", len(entries)) + directory + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + body)
    return path


def packed(rows):
    """Rows of 12-bit numbers, the first in the highest bits, each row filled up to whole bytes."""
    bits = ((rows[..., None] >> np.arange(11, -1, -1)) & 1).astype(np.uint8).reshape(len(rows), -1)
    return np.packbits(bits, axis=1).tobytes()


def same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


def quietly(read, path):
    """A damaged file's array or error; what libraries warn of on the way does not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(path)
        except DataError as error:
            return error


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_has_one_channel(tmp_path, suffix):
    pixels = noise()
    found = read_image(saved(tmp_path / f"a.{suffix}", pixels))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels[..., None])


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colour_has_three_channels(tmp_path, suffix):
    pixels = noise(HEIGHT, WIDTH, 3)
    assert np.array_equal(read_image(saved(tmp_path / f"a.{suffix}", pixels)), pixels)


@pytest.mark.parametrize(("suffix", "how"), [("jpg", {"quality": 95, "subsampling": 0}), ("webp", {"quality": 95})])
def test_lossy_files_come_out_nearly_as_they_went_in(tmp_path, suffix, how):
    y, x = np.mgrid[:64, :48]
    pixels = np.stack([3 * y, 4 * x, y + x], -1).astype(np.uint8)
    found = read_image(saved(tmp_path / f"a.{suffix}", pixels, **how)).astype(int)
    assert found.shape == pixels.shape
    assert np.abs(found - pixels).mean() < 3


def test_alpha_is_dropped(tmp_path):
    pixels = noise(HEIGHT, WIDTH, 4)
    assert np.array_equal(read_image(saved(tmp_path / "a.png", pixels)), pixels[..., :3])


def test_alpha_of_grey_is_dropped(tmp_path):
    pixels = noise(HEIGHT, WIDTH, 2)
    image = Image.merge("LA", [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(2)])
    assert np.array_equal(read_image(saved(tmp_path / "a.png", image)), pixels[..., :1])


def test_a_palette_of_colours_is_expanded(tmp_path):
    indices, colors = noise(high=16), noise(16, 3)
    assert np.array_equal(read_image(saved(tmp_path / "a.png", with_palette(indices, colors))), colors[indices])


def test_a_palette_of_greys_is_a_grey_image(tmp_path):
    indices, greys = noise(high=16), noise(16)
    path = saved(tmp_path / "a.png", with_palette(indices, np.stack([greys] * 3, -1)))
    assert np.array_equal(read_image(path), greys[indices][..., None])


def test_a_palette_with_transparent_entries_is_expanded_without_a_warning(tmp_path):
    indices, colors = noise(high=16), noise(16, 3)
    path = saved(tmp_path / "a.png", with_palette(indices, colors), transparency=bytes([0, 128, 255]))
    assert np.array_equal(read_image(path), colors[indices])


def test_one_bit_is_black_and_white(tmp_path):
    bits = noise(high=2).astype(bool)
    path = saved(tmp_path / "a.png", Image.fromarray(bits))
    with Image.open(path) as image:
        assert image.mode == "1"
    assert np.array_equal(read_image(path), np.where(bits, 255, 0).astype(np.uint8)[..., None])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    pixels = noise(high=2**16, dtype=np.uint16)
    found = read_image(saved(tmp_path / f"a.{suffix}", pixels))
    assert found.dtype == np.uint16
    assert np.array_equal(found, pixels[..., None])


def test_sixteen_bits_the_other_way_round_are_the_same_numbers(tmp_path):
    pixels = noise(high=2**16, dtype=np.uint16)
    big = Image.frombytes("I;16B", (WIDTH, HEIGHT), pixels.astype(">u2").tobytes())
    found = read_image(saved(tmp_path / "a.tif", big))
    assert found.dtype == np.uint16
    assert np.array_equal(found[..., 0], pixels)


def test_32_bits_are_float32_whatever_their_values_so_that_a_set_has_one_type(tmp_path):
    pixels = noise(high=2**16, dtype=np.int32)
    found = read_image(saved(tmp_path / "a.tif", pixels))
    assert found.dtype == np.float32
    assert np.array_equal(found[..., 0], pixels)


def test_32_bits_that_do_not_fit_are_float32(tmp_path):
    pixels = noise(high=2**20, dtype=np.int32)
    found = read_image(saved(tmp_path / "a.tif", pixels))
    assert found.dtype == np.float32
    assert np.array_equal(found[..., 0], pixels)


def test_floats_are_kept(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    found = read_image(saved(tmp_path / "a.tif", pixels))
    assert found.dtype == np.float32
    assert np.array_equal(found, pixels[..., None])


def test_cmyk_is_colour(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(noise(HEIGHT, WIDTH, 3)).convert("CMYK"))
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize(
    ("suffix", "how"),
    [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_deflate"}), ("tif", {"compression": "tiff_lzw"})],
    ids=["png", "tif", "tif-z", "tif-lzw"],
)
def test_images_and_masks_are_read_as_shown(tmp_path, suffix, how, orientation):
    pixels = noise()
    path = saved(tmp_path / f"a.{suffix}", pixels, exif=oriented(orientation), **how)
    assert np.array_equal(read_image(path)[..., 0], SHOWN[orientation](pixels))
    assert np.array_equal(read_mask(path), SHOWN[orientation](pixels))


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_is_ignored(tmp_path, orientation):
    pixels = noise()
    path = saved(tmp_path / "a.png", pixels, exif=oriented(orientation))
    assert np.array_equal(read_image(path)[..., 0], pixels)
    assert np.array_equal(read_mask(path), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix, read):
    path = saved(tmp_path / f"a.{suffix}", noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=r"cannot be read|not an image") as refused:
            read(path)
    assert str(path) in str(refused.value)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_an_empty_file_is_refused_as_empty(tmp_path, read):
    path = tmp_path / "a.png"
    path.touch()
    with pytest.raises(DataError, match=r"a\.png: empty file"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(
    "content", [b"hello, world\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"BM", b"RIFF"]
)
def test_what_is_no_image_is_refused_by_name(tmp_path, read, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=r"a\.png"):
            read(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_missing_file_is_refused_by_name(tmp_path, read):
    with pytest.raises(DataError, match="gone"):
        read(tmp_path / "gone.png")


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_files_are_closed_again(tmp_path, read):
    path = saved(tmp_path / "a.png", noise())
    read(path)
    path.write_bytes(b"")
    with pytest.raises(DataError):
        read(path)


def test_other_warnings_filters_are_left_as_they_were(tmp_path):
    path = saved(tmp_path / "a.png", noise())
    before = list(warnings.filters)
    read_image(path)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_a_grey_mask_is_its_values(tmp_path, suffix):
    pixels = noise()
    found = read_mask(saved(tmp_path / f"a.{suffix}", pixels))
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("classes", [2, 3, 16, 200])
@pytest.mark.parametrize("grey", [False, True])
def test_a_mask_with_a_palette_is_its_indices(tmp_path, classes, grey):
    indices = noise(high=classes)
    colors = np.stack([noise(classes)] * 3, -1) if grey else noise(classes, 3)
    assert np.array_equal(read_mask(saved(tmp_path / "a.png", with_palette(indices, colors))), indices)


def test_a_mask_with_a_palette_and_transparency_is_its_indices(tmp_path):
    indices = noise(high=5)
    path = saved(tmp_path / "a.png", with_palette(indices, noise(5, 3)), transparency=bytes([0, 128]))
    assert np.array_equal(read_mask(path), indices)


def test_a_one_bit_mask_is_0_and_255(tmp_path):
    bits = noise(high=2).astype(bool)
    assert np.array_equal(read_mask(saved(tmp_path / "a.png", Image.fromarray(bits))), np.where(bits, 255, 0))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_mask_of_equal_channels_is_one_of_them(tmp_path, channels):
    pixels = noise()
    stacked = np.stack([pixels] * 3 + [noise(HEIGHT, WIDTH)[::-1]] * (channels - 3), -1)
    assert np.array_equal(read_mask(saved(tmp_path / "a.png", stacked)), pixels)


def test_alpha_of_a_grey_mask_is_dropped(tmp_path):
    pixels = noise()
    image = Image.merge("LA", [Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())])
    assert np.array_equal(read_mask(saved(tmp_path / "a.png", image)), pixels)


@pytest.mark.parametrize("given", [0, 7, 255, 256, COLOR - 1, (0, 0, 0), (1, 2, 3), (255, 0, 128), (255, 255, 255)])
def test_a_code_stands_for_one_value_and_back(given):
    assert value(code(given)) == given
    assert code(value(code(given))) == code(given)


def test_a_list_is_a_colour_as_good_as_a_tuple():
    assert code([1, 2, 3]) == code((1, 2, 3)) == COLOR + 0x010203


@pytest.mark.parametrize("channels", [3, 4])
def test_a_coloured_mask_is_the_codes_of_its_colours(tmp_path, channels):
    pixels = noise(HEIGHT, WIDTH, channels)
    found = read_mask(saved(tmp_path / "a.png", pixels))
    assert [value(int(c)) for c in found.ravel()] == [
        tuple(map(int, pixel)) for pixel in pixels[..., :3].reshape(-1, 3)
    ]


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_coloured_pixel_makes_a_mask_of_colours(tmp_path, channel):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[3, 4, channel] = 255
    found = read_mask(saved(tmp_path / "a.png", pixels))
    assert value(int(found[3, 4])) == tuple(pixels[3, 4].tolist())
    assert {value(int(c)) for c in np.delete(found.ravel(), 3 * WIDTH + 4)} == {(0, 0, 0)}


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("high", [200, 60000])
def test_wide_masks_of_whole_numbers_are_their_numbers(tmp_path, dtype, high):
    pixels = noise(high=high, dtype=dtype)
    found = read_mask(saved(tmp_path / "a.tif", pixels))
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("number", [2**24, 2**31 - 1, -(2**31), 2**32 - 1])
def test_large_numbers_stay_what_they_are(tmp_path, number):
    pixels = np.full((HEIGHT, WIDTH), number, np.uint32 if number > 0 else np.int32)
    found = read_mask(tiff(tmp_path / "a.tif", pixels, photometric="minisblack"))
    assert {value(int(c)) for c in found.ravel()} == {number}


def test_a_float_mask_between_whole_numbers_is_refused_with_a_threshold_to_type(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH), np.float32)
    pixels[2, 3] = 0.5
    path = saved(tmp_path / "a.tif", pixels)
    with pytest.raises(DataError, match=r"a\.tif.*whole numbers.*data\.threshold=0\.25"):
        read_mask(path)
    mask = masks.read_mask(path, threshold=0.25)
    assert np.array_equal(mask.codes[mask.index], np.where(pixels > 0, 255, 0))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_in_a_mask_is_no_data(tmp_path, wrong):
    pixels = noise(high=3, dtype=np.float32)
    pixels[2, 3] = wrong
    found = read_mask(saved(tmp_path / "a.tif", pixels))
    assert found[2, 3] == masks.NO_DATA
    assert np.array_equal(np.delete(found, 2 * WIDTH + 3), np.delete(pixels, 2 * WIDTH + 3))


@pytest.mark.parametrize("wrong", [float(LARGEST), 1e30, -float(LARGEST)])
def test_numbers_as_high_as_colours_are_refused(tmp_path, wrong):
    pixels = np.zeros((HEIGHT, WIDTH), np.float32)
    pixels[2, 3] = wrong
    with pytest.raises(DataError, match=r"a\.tif: mask values must lie between"):
        read_mask(saved(tmp_path / "a.tif", pixels))


def test_a_negative_number_is_a_value_as_others_are(tmp_path):
    pixels = noise(high=3, dtype=np.int32) - 1
    found = read_mask(saved(tmp_path / "a.tif", pixels))
    assert np.array_equal(found, pixels)
    assert value(int(found.min())) == -1


def test_a_mask_of_many_channels_that_are_no_colour_is_refused(tmp_path):
    path = tiff(tmp_path / "a.tif", noise(HEIGHT, WIDTH, 5), photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError, match=r"a\.tif.*one channel or be coloured; this one has 5"):
        read_mask(path)


def test_colours_of_16_bits_are_brought_to_8(tmp_path):
    pixels = noise(HEIGHT, WIDTH, 3)
    deep = tiff(tmp_path / "a.tif", pixels.astype(np.uint16) * 257, photometric="rgb")
    assert np.array_equal(read_mask(deep), read_mask(saved(tmp_path / "a.png", pixels)))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_mask_of_several_pages_that_differ_is_refused(tmp_path, n):
    with pytest.raises(DataError, match=r"a\.tif"):
        read_mask(pages(tmp_path / "a.tif", [Image.fromarray(p) for p in noise(n, HEIGHT, WIDTH, high=2)]))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_deep_mask_of_equal_channels_is_one_of_them(tmp_path, bits):
    pixels = noise(HEIGHT, WIDTH, 1, high=2**bits, dtype=np.dtype(f"u{bits // 8}").type)
    found = read_mask(png_of(tmp_path / "a.png", np.repeat(pixels, 3, 2)))
    assert np.array_equal(found, pixels[..., 0])


@pytest.mark.parametrize("size", [(16, 16), (160, 31), (31, 161), (1616, 8)])
def test_sixteen_in_the_size_is_not_sixteen_bits(size, tmp_path):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_pngs_are_kept(tmp_path, channels):
    pixels = noise(HEIGHT, WIDTH, channels, high=2**16, dtype=np.uint16)
    same(read_image(png_of(tmp_path / "a.png", pixels)), pixels[..., :3])


def test_alpha_of_sixteen_bit_grey_is_dropped(tmp_path):
    pixels = noise(HEIGHT, WIDTH, 2, high=2**16, dtype=np.uint16)
    same(read_image(png_of(tmp_path / "a.png", pixels)), pixels[..., :1])


def test_the_significant_bits_of_a_png_leave_its_numbers_alone(tmp_path):
    for channels in (1, 3):
        pixels = noise(HEIGHT, WIDTH, channels, high=2**16, dtype=np.uint16)
        same(read_image(png_of(tmp_path / "a.png", pixels, chunk(b"sBIT", bytes([12] * channels)))), pixels)


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["png16", "rgb16", "samples"])
def test_what_is_beyond_pillow_is_read_as_shown_too(tmp_path, kind, orientation):
    pixels = noise(HEIGHT, WIDTH, 3, high=2**16, dtype=np.uint16)
    tag = {"extratags": [(ORIENTATION, "H", 1, orientation, True)]}
    if kind == "png16":
        exif = oriented(orientation).tobytes().removeprefix(b"Exif\0\0")
        path = png_of(tmp_path / "a.png", pixels, chunk(b"eXIf", exif))
    elif kind == "rgb16":
        path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", **tag)
    else:
        pixels = noise(HEIGHT, WIDTH, 5)
        path = tiff(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig", **tag)
    same(read_image(path), SHOWN[orientation](pixels))


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_pages_are_turned_each(tmp_path, orientation):
    pixels = noise(3, HEIGHT, WIDTH)
    tag = [(ORIENTATION, "H", 1, orientation, False)]
    found = read_image(tiff(tmp_path / "a.tif", pixels, photometric="minisblack", extratags=tag))
    same(found, np.stack([SHOWN[orientation](page) for page in pixels], -1))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colour_tiffs_are_kept_however_packed(tmp_path, dtype, compression):
    pixels = noise(HEIGHT, WIDTH, 3, high=250, dtype=dtype)
    for how in ({}, {"tile": (16, 16)}, {"bigtiff": True}, {"byteorder": ">"}):
        path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", compression=compression, **how)
        same(read_image(path), pixels)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colour_tiffs_may_lie_plane_after_plane(tmp_path, dtype, compression):
    pixels = noise(3, HEIGHT, WIDTH, high=2**16 if dtype == np.uint16 else 250, dtype=dtype)
    path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate", compression=compression)
    same(read_image(path), pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_of_a_colour_tiff_is_dropped(tmp_path, dtype):
    pixels = noise(HEIGHT, WIDTH, 4, high=np.iinfo(dtype).max, dtype=dtype)
    path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    same(read_image(path), pixels[..., :3])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("samples", [4, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_many_samples_of_a_pixel_are_channels(tmp_path, dtype, samples, planes, compression):
    pixels = noise(HEIGHT, WIDTH, samples, high=250, dtype=dtype)
    stored = pixels if planes == "contig" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    path = tiff(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planes, compression=compression)
    same(read_image(path), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_samples_beside_red_green_and_blue_are_channels(tmp_path, dtype):
    pixels = noise(HEIGHT, WIDTH, 5, dtype=dtype)
    path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified", "unspecified"])
    same(read_image(path), pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", None])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_compressed_tiffs_are_what_went_in(tmp_path, compression, dtype):
    pixels = noise(high=np.iinfo(dtype).max, dtype=dtype)
    path = saved(tmp_path / "a.tif", pixels, compression=compression)
    same(read_image(path), pixels[..., None])
    assert np.array_equal(read_mask(path), pixels)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_pages_are_channels(tmp_path, n, dtype, compression):
    pixels = noise(n, HEIGHT, WIDTH, high=250, dtype=dtype)
    path = tiff(tmp_path / "a.tif", pixels, photometric="minisblack", compression=compression)
    same(read_image(path), pixels.transpose(1, 2, 0))


def test_pages_of_colour_are_three_channels_each(tmp_path):
    pixels = noise(2, HEIGHT, WIDTH, 3)
    path = pages(tmp_path / "a.tif", [Image.fromarray(p) for p in pixels])
    same(read_image(path), np.concatenate(pixels, 2))


def test_channels_of_a_microscope_are_channels(tmp_path):
    pixels = noise(4, HEIGHT, WIDTH, high=2**16, dtype=np.uint16)
    same(read_image(tiff(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "CYX"})), pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("order", [1, -1])
def test_pages_of_several_sizes_are_refused(tmp_path, read, order):
    both = [Image.fromarray(noise()), Image.fromarray(noise(HEIGHT // 2, WIDTH // 2))][::order]
    with pytest.raises(DataError, match=r"a\.tif: (its 2 pages have different sizes|holds 2 pages)"):
        read(pages(tmp_path / "a.tif", both))


def appended(path, arrays, **how):
    """A TIFF of one `TiffWriter.write` an array; `how` holds a list for each keyword."""
    with tifffile.TiffWriter(path, ome=path.name.endswith(".ome.tif")) as file:
        for number, pixels in enumerate(arrays):
            file.write(pixels, **{name: values[number] for name, values in how.items()})
    return path


@pytest.mark.parametrize("metadata", [{}, None], ids=["metadata", "plain"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_written_one_by_one_are_channels(tmp_path, dtype, metadata):
    pixels = noise(4, HEIGHT, WIDTH, dtype=dtype)
    path = appended(tmp_path / "a.tif", pixels, metadata=[metadata] * 4)
    same(read_image(path), pixels.transpose(1, 2, 0))
    with pytest.raises(DataError, match=r"a\.tif: holds 4 pages, but must hold one"):
        read_mask(path)


def test_pages_keep_their_order_however_each_is_packed(tmp_path):
    pixels = noise(4, HEIGHT, WIDTH)
    how = {"compression": [None, "zlib", None, "zlib"], "metadata": [None] * 4}
    same(read_image(appended(tmp_path / "a.tif", pixels, **how)), pixels.transpose(1, 2, 0))


def test_overviews_between_pages_are_no_channels(tmp_path):
    first, second = noise(2, 32, 48)
    arrays = [first, first[::2, ::2], second, second[::2, ::2]]
    for metadata in ({}, None):
        how = {"subfiletype": [0, 1, 0, 1], "tile": [(16, 16)] * 4, "metadata": [metadata] * 4}
        same(read_image(appended(tmp_path / "a.tif", arrays, **how)), np.stack([first, second], -1))


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("metadata", [{}, None], ids=["metadata", "plain"])
@pytest.mark.parametrize("other", ["type", "samples", "white"])
def test_pages_of_several_kinds_are_refused(tmp_path, read, metadata, other):
    grey = noise()
    second, photometric, said = {
        "type": (grey.astype(np.uint16), "minisblack", r"types \(uint8, uint16\)"),
        "samples": (noise(HEIGHT, WIDTH, 3), "rgb", r"numbers of samples \(1, 3\)"),
        "white": (grey, "miniswhite", r"photometric interpretations \(1, 0\)"),
    }[other]
    how = {"photometric": ["minisblack", photometric], "metadata": [metadata] * 2}
    with pytest.raises(DataError, match=rf"a\.tif: its 2 pages have different {said}"):
        read(appended(tmp_path / "a.tif", [grey, second], **how))


@pytest.mark.parametrize("axes", ["CYX", "CYXS"])
def test_ome_channels_are_channels(tmp_path, axes):
    pixels = noise(*{"CYX": (4, HEIGHT, WIDTH), "CYXS": (2, HEIGHT, WIDTH, 3)}[axes], dtype=np.uint16)
    right = pixels.transpose(1, 2, 0) if axes == "CYX" else np.concatenate(pixels, -1)
    how = {"photometric": "rgb" if axes == "CYXS" else "minisblack", "metadata": {"axes": axes}}
    same(read_image(tiff(tmp_path / "a.ome.tif", pixels, ome=True, **how)), right)


def with_ome(path, pixels, channels, planes, **about):
    """A TIFF whose OME metadata say that it is of so many grey channels, and where their planes are."""
    more = "".join(f' {name}="{value}"' for name, value in about.items())
    ome = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{more}>'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{WIDTH}" '
        f'SizeY="{HEIGHT}" SizeC="{channels}" SizeZ="1" SizeT="1">{"".join(planes)}</Pixels></Image></OME>'
    )
    return tiff(path, pixels, photometric="minisblack", description=ome, metadata=None)


def test_the_order_of_ome_channels_is_that_of_its_metadata(tmp_path):
    pixels = noise(3, HEIGHT, WIDTH)
    planes = [f'<TiffData FirstC="{c}" IFD="{page}" PlaneCount="1"/>' for c, page in enumerate((2, 0, 1))]
    path = with_ome(tmp_path / "a.tif", pixels, 3, planes)
    same(read_image(path), pixels[[2, 0, 1]].transpose(1, 2, 0))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("named", [False, True], ids=["root without id", "root with id"])
def test_a_file_of_an_ome_image_in_several_files_is_read_alone(tmp_path, named, missing):
    pixels = noise(2, HEIGHT, WIDTH)
    planes = [
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{c}.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(2)
    ]
    for c, own in enumerate(pixels):
        with_ome(tmp_path / f"{c}.tif", own, 2, planes, **{"UUID": f"urn:uuid:{c}"} if named else {})
    for c, own in enumerate(pixels):
        hidden = (tmp_path / f"{1 - c}.tif").rename(tmp_path / "elsewhere") if missing else None
        same(read_image(tmp_path / f"{c}.tif"), own[..., None])
        assert np.array_equal(read_mask(tmp_path / f"{c}.tif"), own)
        if hidden:
            hidden.rename(tmp_path / f"{1 - c}.tif")


def test_an_ome_channel_that_is_in_no_file_is_no_channel_of_zeros(tmp_path):
    path = with_ome(tmp_path / "a.tif", noise(), 2, ['<TiffData FirstC="0" IFD="0" PlaneCount="1"/>'])
    same(read_image(path), noise()[..., None])


def test_several_ome_images_of_one_kind_are_channels(tmp_path):
    pixels = noise(2, HEIGHT, WIDTH)
    how = {"metadata": [{"axes": "YX"}] * 2}
    same(read_image(appended(tmp_path / "a.ome.tif", pixels, **how)), pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_internal_mask_is_alpha_and_no_channel(tmp_path, compression, orientation):
    """GDAL's mask of valid pixels: a page of one bit, whose subfile type says what it is."""
    pixels, valid = noise(HEIGHT, WIDTH, 3), noise(high=2).astype(bool)
    saved(tmp_path / "a.tif", pixels, compression=compression, exif=oriented(orientation))
    tifffile.imwrite(tmp_path / "a.tif", valid, append=True, photometric="mask", subfiletype=4, metadata=None)
    picture = read_picture(tmp_path / "a.tif")
    same(picture.pixels, SHOWN[orientation](pixels))
    assert picture.dropped_alpha
    found = raster.read(tmp_path / "a.tif", one_page=True)
    same(found.alpha, SHOWN[orientation](np.where(valid, 255, 0).astype(np.uint8)))
    assert not read_picture(saved(tmp_path / "b.tif", pixels)).dropped_alpha


def lzw_of_32_bits(path, numbers, order="<", **tags):
    """A TIFF of one row by hand, packed in codes of 9 bits: the table clears, each byte stands for itself, the end."""
    codes = [256, *struct.pack(f"{order}{len(numbers)}I", *numbers), 257]
    strip = np.packbits([int(bit) for number in codes for bit in f"{number:09b}"]).tobytes()
    known = {256: len(numbers), 257: 1, 258: 32, 259: 5, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(strip), 339: 1}
    entries = known | {int(name[1:]): number for name, number in tags.items()}
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, number) for tag, number in entries.items())
    body = strip + b"\0" * (len(strip) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    path.write_bytes(head + body + struct.pack(f"{order}H", len(entries)) + directory + bytes(4))
    return path


def test_lzw_of_unsigned_32_bits_is_unsigned(tmp_path):
    path = lzw_of_32_bits(tmp_path / "a.tif", [2**31 + 5, 7])
    assert read_mask(path).tolist() == [[2**31 + 5, 7]]
    same(read_image(path), np.array([[[2**31 + 5], [7]]], np.float32))


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="it reads them")
@pytest.mark.parametrize("how", [{"order": ">"}, {"_262": 0}], ids=["big end first", "white is zero"])
def test_lzw_that_nothing_reads_is_refused_with_what_reads_it(tmp_path, how):
    with pytest.raises(DataError, match=r"a\.tif: cannot be read: .*pip install"):
        read_image(lzw_of_32_bits(tmp_path / "a.tif", [2**31 + 5, 7], **how))


@pytest.mark.parametrize(
    ("dtype", "stored", "right"),
    [
        ("uint8", [0, 7, 255], [0, 7, 255]),
        ("uint16", [0, 300, 65535], [0, 300, 65535]),
        ("int8", [0, 7, 127], [0, 7, 127]),
        ("int16", [-1, 7, 32767], [0, 7, 32767]),
        ("uint32", [0, 2**31, 2**32 - 1], [0, 32768, 65535]),
        ("int32", [0, 2**30, 2**31 - 1], [0, 32768, 65535]),
        ("int32", [0, 1, 255], [0, 1, 255]),
        ("float32", [0, 0.5, 1], [0, 32768, 65535]),
        ("float64", [np.nan, -np.inf, 1], [0, 0, 65535]),
        ("float32", [0, 2, 255], [0, 2, 255]),
    ],
)
def test_alpha_has_8_or_16_bits(tmp_path, dtype, stored, right):
    pixels = np.zeros((1, 3, 4), dtype)
    pixels[0, :, 3] = stored
    path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    alpha = raster.read(path).alpha
    assert alpha.dtype in (np.uint8, np.uint16)
    assert alpha.tolist() == [right]


@pytest.mark.parametrize("fourth", [255, "noise"])
@pytest.mark.parametrize("tag", [["unspecified"], None])
def test_a_masks_fourth_sample_beside_colours_is_alpha(tmp_path, tag, fourth):
    pixels = noise(HEIGHT, WIDTH, 4)
    if fourth != "noise":
        pixels[..., 3] = fourth
    if tag:
        path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=tag)
    else:
        path = tiff_of(tmp_path / "a.tif", WIDTH, HEIGHT, 8, pixels.tobytes(), _262=2, _277=4)
    same(read_image(path), pixels)
    found = raster.read(path, one_page=True)
    same(found.samples, pixels[..., :3])
    same(found.alpha, pixels[..., 3])
    colors = [tuple(map(int, pixel)) for pixel in pixels[..., :3].reshape(-1, 3)]
    assert [value(int(c)) for c in read_mask(path).ravel()] == colors


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", ["8", "1", "16", "float", "black"])
def test_a_picture_tells_that_it_is_inverted(tmp_path, kind, compression):
    pixels = {"1": noise(high=2).astype(bool), "16": noise(dtype=np.uint16), "float": noise(dtype=np.float32)}
    stored = pixels.get(kind, noise())
    path = saved(tmp_path / "a.tif", stored, tiffinfo={262: int(kind == "black")}, compression=compression)
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.photometric == (1 if kind == "black" else 0)
    assert read_picture(path).inverted == raster.read(path).inverted == (kind in ("8", "1", "16"))


@pytest.mark.parametrize("orientation", SHOWN)
def test_upright_turns_the_first_two_axes(orientation):
    pixels = noise(HEIGHT, WIDTH, 3)
    same(raster.upright(pixels, orientation), SHOWN[orientation](pixels))
    assert np.shares_memory(raster.upright(pixels, orientation), pixels)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_moving_pictures_are_refused_with_their_number_of_frames(tmp_path, read, suffix):
    frames = [Image.fromarray(noise(HEIGHT, WIDTH, 3) // (n + 1)) for n in range(3)]
    with pytest.raises(DataError, match=rf"a\.{suffix}: holds 3 frames"):
        read(pages(tmp_path / f"a.{suffix}", frames))


def test_a_gif_is_its_colours_however_its_palette_is_numbered(tmp_path):
    ink = noise(high=2)
    for name, indices, colors in (
        ("a", ink, [(0, 0, 0), (255, 255, 255)]),
        ("b", 1 - ink, [(255, 255, 255), (0, 0, 0)]),
    ):
        path = saved(tmp_path / f"{name}.gif", with_palette(indices, colors))
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), indices)  # Pillow kept the numbers
        assert np.array_equal(read_mask(path), 255 * ink)
        same(read_image(path), np.uint8(255 * ink)[..., None])
    green = saved(tmp_path / "c.gif", with_palette(ink, [(0, 0, 0), (0, 128, 0)]))
    assert np.array_equal(read_mask(green), np.where(ink, code((0, 128, 0)), code((0, 0, 0))))


def test_a_photo_with_its_preview_behind_it_is_the_photo(tmp_path):
    photo, preview = (Image.new("RGB", (side, side), tint) for side, tint in ((32, (200, 10, 10)), (8, (10, 200, 10))))
    pages(tmp_path / "a.jpg", [photo, preview], format="MPO", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    found = read_image(tmp_path / "a.jpg")
    assert found.shape == (32, 32, 3)
    assert abs(found.mean((0, 1)) - (200, 10, 10)).max() < 4


@pytest.mark.parametrize("width", [1, 2, 7, 16])
def test_packed_12_bits_are_kept(tmp_path, width):
    pixels = noise(5, width, high=2**12, dtype=np.uint16)
    path = tiff_of(tmp_path / "a.tif", width, 5, 12, packed(pixels))
    same(read_image(path), pixels[..., None])
    assert np.array_equal(read_mask(path), pixels)


def test_12_bits_lie_in_the_file_as_the_standard_says(tmp_path):
    path = tiff_of(tmp_path / "a.tif", 2, 1, 12, bytes([0x12, 0x3A, 0xBC]))
    assert read_image(path).ravel().tolist() == [0x123, 0xABC]


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 5)], ids=["grey", "samples"])
def test_signed_numbers_are_of_one_type_whether_some_are_negative_or_not(tmp_path, shape):
    types = []
    for lowest in (0, -100):
        pixels = noise(*shape, dtype=np.int16) + np.int16(lowest)
        how = {"photometric": "minisblack", "planarconfig": "contig"} if len(shape) == 3 else {}
        found = read_image(tiff(tmp_path / "a.tif", pixels, **how))
        assert np.array_equal(found, pixels.reshape(found.shape))
        types.append(found.dtype)
    assert types[0] == types[1]


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float16, np.float64])
def test_types_that_pillow_does_not_know_are_float32(tmp_path, dtype):
    pixels = noise(dtype=dtype)
    path = tiff(tmp_path / "a.tif", pixels, photometric="minisblack")
    same(read_image(path), pixels.astype(np.float32)[..., None])
    assert np.array_equal(read_mask(path), pixels)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (3, HEIGHT, WIDTH)])
def test_pixels_that_are_not_finite_are_filled_with_the_channels_mean(tmp_path, wrong, shape):
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pixels[..., 2, 3] = wrong
    picture = read_picture(tiff(tmp_path / "a.tif", pixels, photometric="minisblack"))
    for channel, plane in enumerate(pixels.reshape(-1, HEIGHT, WIDTH)):
        expected = np.where(np.isfinite(plane), plane, plane[np.isfinite(plane)].mean(dtype=np.float64))
        assert np.allclose(picture.pixels[..., channel], expected, atol=1e-6)
        assert np.array_equal(picture.lacking[..., channel], ~np.isfinite(plane))


def bomb(path, kind, side=100_000):
    """A file of some hundred bytes that states `side` x `side` pixels."""
    if kind == "png":
        return png_of(path, noise(2, 2, 3), size=(side, side))
    if kind == "png16":
        return png_of(path, noise(2, 2, 3, dtype=np.uint16), size=(side, side))
    if kind == "samples":
        return tiff_of(path, side, side, 8, bytes(64), _277=5, _338=0)
    if kind == "bmp":
        Image.new("RGB", (2, 2)).save(path, "BMP")
        content = bytearray(path.read_bytes())
        content[18:26] = struct.pack("<ii", side, side)
        path.write_bytes(content)
        return path
    return tiff_of(path, side, side, 8, bytes(64))


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("kind", ["png", "png16", "tif", "samples", "bmp"])
def test_a_file_that_states_a_monstrous_size_is_refused_without_room_made_for_it(tmp_path, read, kind):
    path = bomb(tmp_path / f"a.{dict(png16='png', samples='tif').get(kind, kind)}", kind)
    assert path.stat().st_size < 1000
    read(saved(tmp_path / "warm.png", noise()))
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"a\.\w+: 100000x100000 pixels of at most 400 million"):
        read(path)
    assert time.perf_counter() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_what_unpacks_to_more_than_the_header_says_is_not_unpacked(tmp_path, kind):
    """100 MB of zeros, of which the image needs 24 KB."""
    packed = zlib.compress(bytes(100_000_000), 9)
    path = tmp_path / f"a.{kind}"
    if kind == "png":

        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    else:
        tifffile.imwrite(path, iter([packed]), shape=(64, 64), dtype=np.uint16, compression="zlib", rowsperstrip=64)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="unpacks to more bytes than its header says"):
            raster.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_long_thin_image_is_not_large(tmp_path):
    assert read_image(saved(tmp_path / "a.png", np.zeros((1, 60_000), np.uint8))).shape == (1, 60_000, 1)


def samples_of_formats(tmp_path):
    """One small file of each kind that goes its own way through the reader."""
    deep = noise(HEIGHT, WIDTH, 3, high=2**16, dtype=np.uint16)
    many = {"photometric": "minisblack", "planarconfig": "contig"}
    return {
        "png": saved(tmp_path / "a.png", noise(HEIGHT, WIDTH, 3)),
        "jpg": saved(tmp_path / "b.jpg", noise(HEIGHT, WIDTH, 3)),
        "webp": saved(tmp_path / "c.webp", noise(HEIGHT, WIDTH, 3)),
        "bmp": saved(tmp_path / "d.bmp", noise(HEIGHT, WIDTH, 3)),
        "lzw": saved(tmp_path / "e.tif", noise(), compression="tiff_lzw"),
        "png16": png_of(tmp_path / "f.png", deep),
        "rgb16": tiff(tmp_path / "g.tif", deep, photometric="rgb"),
        "rgb16z": tiff(tmp_path / "h.tif", deep, photometric="rgb", compression="zlib"),
        "samples": tiff(tmp_path / "i.tif", noise(HEIGHT, WIDTH, 5), **many),
        "samplesz": tiff(tmp_path / "j.tif", noise(HEIGHT, WIDTH, 5), compression="zlib", **many),
        "pages": tiff(tmp_path / "k.tif", noise(4, HEIGHT, WIDTH), photometric="minisblack"),
    }


KINDS = ("png", "jpg", "webp", "bmp", "lzw", "png16", "rgb16", "rgb16z", "samples", "samplesz", "pages")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_is_an_error_of_the_data(tmp_path, kind):
    path = samples_of_formats(tmp_path)[kind]
    content, whole = path.read_bytes(), read_image(path)
    for end in np.linspace(0, len(content) * 9 // 10, 40).astype(int):
        path.write_bytes(content[:end])
        found = quietly(read_image, path)
        if kind == "pages" and not isinstance(found, DataError):  # whole pages are left: the store sees another kind
            assert np.array_equal(found, whole[..., : found.shape[2]])
            continue
        assert isinstance(found, DataError), f"{end} of {len(content)} bytes are read as {found.shape}"
        assert str(path) in str(found)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, kind):
    path = samples_of_formats(tmp_path)[kind]
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        for at in rng.integers(0, min(len(content), rng.choice([250, len(content)])), rng.integers(1, 5)):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        for read in (read_image, read_mask):
            found = quietly(read, path)
            assert isinstance(found, DataError) or (found.size and found.ndim == (3 if read is read_image else 2))


@pytest.mark.parametrize(
    "name", ["a b.png", "it's.png", 'say "hi".png', "two\nlines.png", "Zürich 細胞.png", "[x].png"]
)
def test_errors_name_the_file_whatever_its_name(tmp_path, name):
    for content in (b"", b"hello"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as refused:
            read_image(tmp_path / name)
        assert name in str(refused.value)


def test_a_capital_suffix_is_as_good(tmp_path):
    for name, how in (("A.TIF", {}), ("A.Tiff", {"compression": "zlib"})):
        pixels = noise(HEIGHT, WIDTH, 5)
        same(read_image(tiff(tmp_path / name, pixels, photometric="minisblack", planarconfig="contig", **how)), pixels)


def test_a_file_of_another_kind_than_its_suffix_says_is_read_for_what_it_is(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "PNG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert np.array_equal(read_image(tmp_path / "a.jpg")[..., 0], noise())
