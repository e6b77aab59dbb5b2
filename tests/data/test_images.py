"""Files of every kind to arrays."""

import warnings

import numpy as np
import pytest
from PIL import Image

from segsweep.data.images import read_image, read_mask, size
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
    ("suffix", "how"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_deflate"})], ids=["png", "tif", "tif-z"]
)
def test_images_and_masks_are_read_as_shown(tmp_path, suffix, how, orientation):
    pixels = noise()
    path = saved(tmp_path / f"a.{suffix}", pixels, exif=oriented(orientation), **how)
    assert np.array_equal(read_image(path)[..., 0], SHOWN[orientation](pixels))
    assert np.array_equal(read_mask(path), SHOWN[orientation](pixels))


@pytest.mark.parametrize("orientation", [None, *SHOWN])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_header_says_the_size_that_is_read(tmp_path, suffix, orientation):
    how = {} if orientation is None else {"exif": oriented(orientation)}
    path = saved(tmp_path / f"a.{suffix}", noise(HEIGHT, WIDTH, 3), **how)
    assert size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_is_ignored_by_both(tmp_path, orientation):
    path = saved(tmp_path / "a.jpg", noise(HEIGHT, WIDTH, 3), exif=oriented(orientation))
    assert size(path) == read_image(path).shape[:2] == (HEIGHT, WIDTH)


def test_the_size_is_height_and_width(tmp_path):
    assert size(saved(tmp_path / "a.png", noise())) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_the_size_is_read_from_the_header_alone(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", noise(64, 65))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert size(path) == (64, 65)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
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


@pytest.mark.parametrize("read", [size, read_image, read_mask])
def test_an_empty_file_is_refused_as_empty(tmp_path, read):
    path = tmp_path / "a.png"
    path.touch()
    with pytest.raises(DataError, match=r"a\.png: empty file"):
        read(path)


@pytest.mark.parametrize("read", [size, read_image, read_mask])
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


@pytest.mark.parametrize("read", [size, read_image, read_mask])
def test_a_missing_file_is_refused_by_name(tmp_path, read):
    with pytest.raises(DataError, match="gone"):
        read(tmp_path / "gone.png")


@pytest.mark.parametrize("read", [size, read_image, read_mask])
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
    assert found.dtype == np.uint8
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


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_coloured_mask_is_refused(tmp_path, channel):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[3, 4, channel] = 255
    with pytest.raises(DataError, match=r"a\.png.*coloured"):
        read_mask(saved(tmp_path / "a.png", pixels))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_wide_masks_of_small_whole_numbers_are_taken(tmp_path, dtype):
    pixels = noise()
    found = read_mask(saved(tmp_path / "a.tif", pixels.astype(dtype)))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -1.0, 256.0])
def test_a_float_mask_that_is_no_class_index_is_refused(tmp_path, value):
    pixels = np.zeros((HEIGHT, WIDTH), np.float32)
    pixels[2, 3] = value
    with pytest.raises(DataError, match=r"a\.tif.*whole numbers in 0\.\.255"):
        read_mask(saved(tmp_path / "a.tif", pixels))


@pytest.mark.parametrize(("dtype", "value"), [(np.uint16, 256), (np.uint16, 65535), (np.int32, 300), (np.int32, -1)])
def test_mask_values_beyond_a_byte_are_refused(tmp_path, dtype, value):
    pixels = np.zeros((HEIGHT, WIDTH), dtype)
    pixels[2, 3] = value
    with pytest.raises(DataError, match=r"a\.tif.*whole numbers in 0\.\.255"):
        read_mask(saved(tmp_path / "a.tif", pixels))


@pytest.mark.parametrize("size", [(16, 16), (160, 31), (31, 161), (1616, 8)])
def test_sixteen_in_the_size_is_not_sixteen_bits(size, tmp_path):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


def test_sixteen_bit_colour_is_refused(tmp_path):
    """Pillow reads it as 8 bits. Pillow does not write it either: the file is made by hand."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(DataError, match="16 bits for each"):
        read_image(tmp_path / "a.png")


def test_pages_are_refused(tmp_path):
    pages = [Image.new("L", (8, 8), n) for n in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="3 pages"):
        read_image(tmp_path / "a.tif")
