"""Pixels without data: out of the statistics, filled by the mean of the others, void unless asked otherwise."""

from functools import partial

import numpy as np
import pytest
from scenes import (
    BLACK,
    RED,
    SIZE,
    coded,
    noise,
    opened,
    percents,
    pictured,
    pillow,
    pixels,
    said,
    same,
    seen,
    tiff,
    truths,
    typed,
    written,
)

from segsweep.commands.app import main
from segsweep.data.images import read_picture
from segsweep.data.labels import VOID
from segsweep.errors import ConfigError

LOWEST = -3.4028234663852886e38  # of float32, as GDAL writes it
HOLE = np.zeros(SIZE, bool)
HOLE[:, :12] = HOLE[40:] = True  # a border on two sides
MARKS = {"tagged": -9999.0, "nan": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "lowest": LOWEST}
TAGS = {"tagged": "-9999", "lowest": "-3.4028234663852886e+38"}


def heights(seed, channels=3):
    """Measured values between 0 and 1, float32 `h w c`."""
    low, high = (0.1, 0.2, 0.05), (0.5, 0.9, 0.3)
    drawn = np.random.default_rng([4, seed]).uniform(low[:channels], high[:channels], (*SIZE, channels))
    return drawn.astype(np.float32)


def holed(picture, mark):
    picture = picture.copy()
    picture[HOLE] = mark
    return picture


def contiguous(path, picture, **how):
    """A TIFF of grey, colour or more bands side by side."""
    grey = picture.ndim == 2 or picture.shape[2] == 1
    kind = {"photometric": "minisblack"} if grey else {"photometric": "rgb", "planarconfig": "contig"}
    tiff(path, picture[..., 0] if grey and picture.ndim == 3 else picture, **kind | how)


def with_hole(tmp_path, mark, tag="", n=5):
    """Float images with a border of one mark."""
    return pictured(tmp_path, [holed(heights(i), mark) for i in range(n)], partial(contiguous, nodata=tag))


def valid(n=5):
    """All pixels that hold data, `n c` in float64."""
    return np.concatenate([heights(i)[~HOLE] for i in range(n)]).astype(np.float64)


# Images


@pytest.mark.parametrize("kind", MARKS)
def test_statistics_are_of_the_pixels_with_data(tmp_path, kind):
    store = opened(with_hole(tmp_path, MARKS[kind], TAGS.get(kind, ""))).store
    mean, std = store.statistics(range(5))
    assert mean == pytest.approx(valid().mean(0), rel=1e-4)
    assert std == pytest.approx(valid().std(0), rel=1e-3)
    assert store.range == pytest.approx((valid().min(), valid().max()))


@pytest.mark.parametrize("kind", MARKS)
def test_percentiles_are_of_the_pixels_with_data(tmp_path, kind):
    low, high = opened(with_hole(tmp_path, MARKS[kind], TAGS.get(kind, ""))).store.percentiles(range(5), 0.5, 99.5)
    assert low == pytest.approx(np.percentile(valid(), 0.5, axis=0), abs=0.01)
    assert high == pytest.approx(np.percentile(valid(), 99.5, axis=0), abs=0.01)


@pytest.mark.parametrize("kind", MARKS)
def test_what_is_missing_is_filled_by_the_images_own_mean(tmp_path, kind):
    found = pixels(opened(with_hole(tmp_path, MARKS[kind], TAGS.get(kind, ""))))
    for i in range(5):
        picture = heights(i)
        assert np.array_equal(found[str(i)][~HOLE], picture[~HOLE])
        filled = np.broadcast_to(picture[~HOLE].mean(0, dtype=np.float64), (HOLE.sum(), 3))
        assert found[str(i)][HOLE] == pytest.approx(filled, rel=1e-5)


@pytest.mark.parametrize("kind", MARKS)
def test_what_is_missing_is_void_in_the_mask(tmp_path, kind):
    dataset = opened(with_hole(tmp_path, MARKS[kind], TAGS.get(kind, "")))
    assert same(seen(dataset), [np.where(HOLE, VOID, truth) for truth in truths(5)])


@pytest.mark.parametrize("kind", MARKS)
def test_what_is_missing_keeps_its_class_if_asked(tmp_path, kind):
    dataset = opened(with_hole(tmp_path, MARKS[kind], TAGS.get(kind, "")), nodata_void=False)
    assert same(seen(dataset), truths(5))
    assert dataset.store.statistics(range(5))[0] == pytest.approx(valid().mean(0), rel=1e-4)


def test_several_marks_are_missing_alike(tmp_path):
    marks = [-9999.0, np.nan, np.inf, -np.inf, -9999.0]
    pictures = [holed(heights(i), mark) for i, mark in enumerate(marks)]
    dataset = opened(pictured(tmp_path, pictures, partial(contiguous, nodata="-9999")))
    assert dataset.store.statistics(range(5))[0] == pytest.approx(valid().mean(0), rel=1e-4)
    assert same(seen(dataset), [np.where(HOLE, VOID, truth) for truth in truths(5)])


def test_the_tag_may_say_nan(tmp_path):
    dataset = opened(with_hole(tmp_path, np.nan, "nan"))
    assert dataset.store.statistics(range(5))[0] == pytest.approx(valid().mean(0), rel=1e-4)


@pytest.mark.parametrize(("dtype", "mark"), [("uint8", 0), ("uint8", 255), ("uint16", 0), ("uint16", 65535)])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_numbers_are_filled_by_the_rounded_mean(tmp_path, dtype, mark, channels):
    drawn = [np.random.default_rng(i).integers(1, 201, (*SIZE, channels)).astype(dtype) for i in range(4)]
    pictures = [holed(picture, mark) for picture in drawn]
    dataset = opened(pictured(tmp_path, pictures, partial(contiguous, nodata=str(mark))))
    rounded = [np.rint(picture[~HOLE].mean(0)) for picture in drawn]
    right = [np.where(HOLE[..., None], fill, picture) for fill, picture in zip(rounded, drawn, strict=True)]
    assert same(pixels(dataset), right)
    everything = np.concatenate([picture[~HOLE] for picture in drawn]).astype(np.float64)
    mean, std = dataset.store.statistics(range(4))
    assert mean == pytest.approx(everything.mean(0))
    assert std == pytest.approx(everything.std(0))
    assert same(seen(dataset), [np.where(HOLE, VOID, truth) for truth in truths(4)])


@pytest.mark.parametrize("word", [-9999, -9999.0])
def test_a_value_may_be_named_without_a_tag(tmp_path, word):
    dataset = opened(with_hole(tmp_path, -9999.0), nodata=word)
    assert dataset.store.statistics(range(5))[0] == pytest.approx(valid().mean(0), rel=1e-4)
    assert same(seen(dataset), [np.where(HOLE, VOID, truth) for truth in truths(5)])


def test_the_tag_may_be_passed_over(tmp_path):
    dataset = opened(with_hole(tmp_path, -9999.0, "-9999"), nodata="none")
    assert same(pixels(dataset), [holed(heights(i), -9999.0) for i in range(5)])
    assert same(seen(dataset), truths(5))


def test_a_tag_that_the_type_cannot_hold_marks_nothing(tmp_path):
    right = [noise(i) for i in range(4)]
    dataset = opened(pictured(tmp_path, right, partial(contiguous, nodata="-9999")))
    assert same(pixels(dataset), right)
    assert same(seen(dataset), truths(4))


def test_a_tag_without_a_pixel_of_it_marks_nothing(tmp_path):
    dataset = opened(pictured(tmp_path, [heights(i) for i in range(4)], partial(contiguous, nodata="-9999")))
    assert same(pixels(dataset), [heights(i) for i in range(4)])
    assert not [note for note in dataset.notes if "nodata" in note.lower()]


def test_it_is_said_with_its_share(tmp_path):
    note = said(opened(with_hole(tmp_path, -9999.0, "-9999")), "nodata")
    assert any(abs(told - 100 * HOLE.mean()) < 0.1 for told in percents(note))


def test_the_command_prints_it(tmp_path, capsys):
    root = with_hole(tmp_path, -9999.0, "-9999")
    note = said(opened(root), "nodata")
    assert main(["data", "data=folder", f"data.root={root}"]) == 0
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_255_stays_foreground_beside_what_is_missing(tmp_path, values):
    root = with_hole(tmp_path, np.nan)
    for i, truth in enumerate(truths(5)):
        pillow(root / "masks" / f"{i}.png", coded(truth, values))
    assert same(seen(opened(root)), [np.where(HOLE, VOID, truth) for truth in truths(5)])


def test_coloured_masks_are_void_there_as_well(tmp_path):
    root = with_hole(tmp_path, np.nan)
    for i, truth in enumerate(truths(5)):
        pillow(root / "masks" / f"{i}.png", coded(truth, [BLACK, RED]))
    assert same(seen(opened(root, classes={"roof": list(RED)})), [np.where(HOLE, VOID, truth) for truth in truths(5)])


def test_numbered_objects_are_void_there_as_well(tmp_path):
    root = with_hole(tmp_path, np.nan)
    for i, truth in enumerate(truths(5)):
        pillow(root / "masks" / f"{i}.png", (truth * (1 + np.arange(64) % 7)).astype(np.uint8))
    assert same(seen(opened(root, binarize=True)), [np.where(HOLE, VOID, truth) for truth in truths(5)])


# A sentinel without a tag


def test_a_value_far_outside_the_rest_is_warned_of(tmp_path):
    warnings = opened(with_hole(tmp_path, -9999.0)).warnings()
    assert len([line for line in warnings if "data.nodata=-9999" in line]) == 1


def test_the_line_of_the_warning_ends_it(tmp_path):
    root = with_hole(tmp_path, -9999.0)
    dataset = typed(root, "data.nodata=-9999")
    assert not [line for line in dataset.warnings() if "nodata" in line]
    assert dataset.store.statistics(range(5))[0] == pytest.approx(valid().mean(0), rel=1e-4)


@pytest.mark.parametrize("kind", ["even", "normal", "skewed", "16 bits", "8 bits"])
def test_images_without_a_sentinel_are_not_warned_of(tmp_path, kind):
    rng = np.random.default_rng(1)
    drawn = {
        "even": lambda: rng.uniform(0, 1, SIZE).astype(np.float32),
        "normal": lambda: rng.normal(0, 1000, SIZE).astype(np.float32),
        "skewed": lambda: rng.lognormal(0, 1.5, SIZE).astype(np.float32),
        "16 bits": lambda: rng.integers(0, 65536, SIZE).astype(np.uint16),
        "8 bits": lambda: np.where(HOLE, 0, rng.integers(100, 256, SIZE)).astype(np.uint8),
    }[kind]
    dataset = opened(pictured(tmp_path, [drawn() for _ in range(4)], contiguous))
    assert not [line for line in dataset.warnings() if "nodata" in line]


@pytest.mark.parametrize(
    ("dtype", "mark", "typed_as"),
    [
        ("int32", -2147483647, "-2147483647.0"),
        ("uint32", 2**32 - 2, "4294967294.0"),
        ("float32", np.finfo(np.float32).min, "-3.4028235e+38"),
        ("float32", -9999.9, "-9999.9"),
        ("float64", -9999.9, "-9999.9"),
    ],
)
def test_the_value_that_is_told_finds_its_pixels(tmp_path, dtype, mark, typed_as):
    pictures = [holed((1000 * heights(i, 1)).astype(dtype), mark) for i in range(4)]
    write = partial(contiguous, photometric="minisblack")
    told = read_picture(pictured(tmp_path, pictures, write) / "images" / "0.tif").sentinel
    assert told == float(typed_as)
    found = read_picture(tmp_path / "images" / "0.tif", float(repr(told)))
    assert np.array_equal(found.lacking[..., 0], HOLE)
    assert found.sentinel is None


def test_what_fills_a_channel_without_data_is_no_sentinel(tmp_path):
    picture = np.dstack([np.full(SIZE, np.nan), 100 + heights(0, 2)]).astype(np.float32)
    write = partial(contiguous, photometric="rgb")
    assert read_picture(pictured(tmp_path, [picture] * 2, write) / "images" / "0.tif").sentinel is None


@pytest.mark.parametrize("tag", ["-1.7976931348623157e+308", "1.7976931348623157e+308"])
def test_a_tag_beyond_the_type_is_no_warning(tmp_path, tag):
    """GDAL's default for float64, kept by tools that cut the pixels to float32, where it is an infinity."""
    dataset = opened(with_hole(tmp_path, np.copysign(np.inf, float(tag)), tag))
    assert same(seen(dataset), [np.where(HOLE, VOID, truth) for truth in truths(5)])
    assert dataset.store.statistics(range(5))[0] == pytest.approx(valid().mean(0), rel=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_masks_tag_beyond_the_type_is_no_warning(tmp_path, dtype):
    root = written(tmp_path, [truth.astype(dtype) for truth in truths()], "tif", partial(tiff, nodata="-1.79769e+308"))
    assert same(seen(opened(root)), truths())


# Masks of their own


def test_a_masks_own_nodata_is_void(tmp_path):
    right = [np.where(HOLE, VOID, truth) for truth in truths()]
    stored = [np.where(HOLE, 7, truth).astype(np.uint8) for truth in truths()]
    dataset = opened(written(tmp_path, stored, "tif", partial(tiff, nodata="7")))
    assert same(seen(dataset), right)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_nodata_is_the_value_that_is_stored_where_the_lowest_is_white(tmp_path, dtype):
    """GDAL's tag speaks of stored values: here background, 255 or 65535, is shown as 0."""
    top = np.iinfo(dtype).max
    stored = [np.where(HOLE, 7, top - top * truth).astype(dtype) for truth in truths()]
    dataset = opened(written(tmp_path, stored, "tif", partial(tiff, nodata="7", photometric="miniswhite")))
    assert same(seen(dataset), [np.where(HOLE, VOID, truth) for truth in truths()])


def test_a_masks_own_nan_is_void(tmp_path):
    stored = [np.where(HOLE, np.nan, truth).astype(np.float32) for truth in truths()]
    dataset = opened(written(tmp_path, stored, "tif", tiff))
    assert same(seen(dataset), [np.where(HOLE, VOID, truth) for truth in truths()])


def test_void_counts_nowhere(tmp_path):
    dataset = opened(with_hole(tmp_path, np.nan))
    for part, indices in dataset.parts.items():
        classes = np.concatenate([seen(dataset)[dataset.samples[i].mask.stem].ravel() for i in indices])
        assert dataset.counts(part) == [int((classes == index).sum()) for index in (0, 1, VOID)]


@pytest.mark.parametrize("word", ["never", [1]])
def test_what_nodata_may_be_is_checked(tmp_path, word):
    with pytest.raises(ConfigError, match=r"data\.nodata"):
        opened(tmp_path, nodata=word)
