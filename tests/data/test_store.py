"""Decoded once, the same as the files, whoever opens it and however often."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import read_mask
from PIL import Image

from segsweep.config.schema import DataConfig
from segsweep.data import masks
from segsweep.data.images import read_image
from segsweep.data.scan import STOP, Decoding
from segsweep.data.source import Sample
from segsweep.data.sources import folder
from segsweep.data.store import open_store
from segsweep.errors import DataError, DiskError
from segsweep.paths import cache

SHAPES = [(40, 48, 3), (20, 31), (5, 64, 3), (33, 33)]


OPEN = """
import sys
from segsweep.config.schema import DataConfig
from segsweep.data.sources import folder
from segsweep.data.store import open_store
samples = folder.find(DataConfig(root=sys.argv[1])).samples
print("ready", flush=True)
sys.stdin.readline()
store = open_store(samples, workers=2)
print(store.digest, *(int(store.image(i).sum()) for i in range(len(samples))))
"""


def saved(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def found(root):
    return folder.find(DataConfig(root=str(root))).samples


def written(root, shapes=SHAPES, dtype=np.uint8, suffix="png", seed=0):
    rng = np.random.default_rng(seed)
    high = 256 if dtype == np.uint8 else 5000
    for i, shape in enumerate(shapes):
        saved(root / "images" / f"{i:02d}.{suffix}", rng.integers(0, high, shape).astype(dtype))
        saved(root / "masks" / f"{i:02d}.png", rng.integers(0, 3, shape[:2]).astype(np.uint8))
    return found(root)


def stores():
    return sorted(path for path in (cache() / "stores").iterdir() if path.is_dir())


def is_as_the_files(store, samples):
    return len(store.rows) == len(samples) and all(
        np.array_equal(store.image(i).numpy(), read_image(sample.image))
        and np.array_equal(store.mask(i).numpy(), read_mask(sample.mask))
        for i, sample in enumerate(samples)
    )


def test_what_comes_out_is_what_the_files_hold(tmp_path):
    samples = written(tmp_path)
    store = open_store(samples)
    assert is_as_the_files(store, samples)
    assert [row.key for row in store.rows] == ["00", "01", "02", "03"]
    assert [(row.height, row.width, row.channels) for row in store.rows] == [
        (40, 48, 3),
        (20, 31, 1),
        (5, 64, 3),
        (33, 33, 1),
    ]
    assert store.channels == 3
    assert store.range == (0.0, 255.0)
    assert store.image(0).dtype == store.mask(0).dtype == torch.uint8


def test_grey_images_alone_have_one_channel(tmp_path):
    assert open_store(written(tmp_path, [(8, 9), (9, 8)])).channels == 1


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.float32, "tif")])
def test_wider_types_are_kept_and_their_range_is_that_of_the_data(tmp_path, dtype, suffix):
    samples = written(tmp_path, [(8, 9), (9, 8)], dtype, suffix)
    store = open_store(samples)
    values = np.concatenate([read_image(sample.image).ravel() for sample in samples])
    assert store.dtype == dtype
    assert is_as_the_files(store, samples)
    assert store.range == (values.min(), values.max())


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_order_is_the_samples_whatever_the_number_of_workers(tmp_path, workers):
    samples = written(tmp_path, [(n, 3) for n in range(1, 40)])
    store = open_store(samples, workers=workers)
    assert [row.height for row in store.rows] == list(range(1, 40))
    assert is_as_the_files(store, samples)


def test_the_order_of_the_samples_is_the_order_of_the_store(tmp_path):
    samples = written(tmp_path)[::-1]
    assert is_as_the_files(open_store(samples), samples)


def test_writing_into_a_view_does_not_reach_the_store(tmp_path):
    samples = written(tmp_path)
    open_store(samples).image(0).zero_()
    assert is_as_the_files(open_store(samples), samples)


def test_a_store_is_made_once(tmp_path):
    samples = written(tmp_path)
    open_store(samples)
    (made,) = stores()
    before = (made / "manifest.json").stat().st_mtime_ns
    open_store(samples)
    assert stores() == [made]
    assert (made / "manifest.json").stat().st_mtime_ns == before


def test_an_open_store_needs_no_decoding(tmp_path, monkeypatch):
    samples = written(tmp_path)
    open_store(samples)
    monkeypatch.setattr("segsweep.data.scan.read_picture", None)
    assert len(open_store(samples).rows) == 4


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_changed_file_makes_another_store(tmp_path, kind):
    samples = written(tmp_path, [(8, 9)] * 3)
    before = open_store(samples).digest
    saved(tmp_path / kind / "01.png", np.full((8, 9), 2, np.uint8))
    after = open_store(samples)
    assert len(stores()) == 2
    assert after.digest != before
    assert is_as_the_files(after, samples)


def test_another_choice_of_samples_is_another_store(tmp_path):
    samples = written(tmp_path)
    digests = {open_store(chosen).digest for chosen in (samples, samples[:2], samples[::-1])}
    assert len(digests) == len(stores()) == 3


def test_the_digest_does_not_change_with_the_time_of_a_file(tmp_path):
    samples = written(tmp_path)
    before = open_store(samples).digest
    os.utime(samples[0].image, (1, 1))
    assert open_store(samples).digest == before


def test_the_digest_does_not_depend_on_where_the_files_lie_nor_how_they_are_packed(tmp_path):
    one = open_store(written(tmp_path / "one"))
    two = open_store(written(tmp_path / "two", suffix="tif"))
    assert one.digest == two.digest


def test_the_digest_depends_on_keys_and_pixels(tmp_path):
    digest = open_store(written(tmp_path / "a")).digest
    assert open_store(written(tmp_path / "b", seed=1)).digest != digest
    samples = written(tmp_path / "c")
    renamed = [Sample(f"x{s.key}", s.image, s.mask) for s in samples]
    assert open_store(renamed).digest != digest


def test_what_a_killed_writer_left_is_no_store(tmp_path):
    samples = written(tmp_path)
    open_store(samples)
    (made,) = stores()
    making = made.with_name(f"{made.name}.making")
    made.rename(making)
    (making / "manifest.json").write_text("{half")
    (making / "rubbish").write_bytes(b"x")
    assert is_as_the_files(open_store(samples), samples)
    assert stores() == [made]
    assert sorted(path.name for path in made.iterdir()) == ["images.bin", "manifest.json", "masks.bin"]


def test_a_store_without_its_manifest_is_made_again(tmp_path):
    samples = written(tmp_path)
    open_store(samples)
    (made,) = stores()
    (made / "manifest.json").unlink()
    (made / "images.bin").write_bytes(b"half")
    assert is_as_the_files(open_store(samples), samples)


def test_an_interrupted_writer_cleans_up_and_the_next_one_succeeds(tmp_path):
    samples = written(tmp_path)

    def interrupted(rows, *_):
        yield next(rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(samples, workers=2, progress=interrupted)
    assert stores() == []
    assert is_as_the_files(open_store(samples), samples)


def test_progress_sees_every_sample_and_their_number(tmp_path):
    seen = []

    def progress(rows, n, title):
        for row in rows:
            seen.append((n, title))
            yield row

    open_store(written(tmp_path), progress=progress)
    assert seen == [(4, "decoding")] * 4


def test_several_processes_may_open_at_once(tmp_path):
    samples = written(tmp_path, [(32, 32, 3)] * 20)
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    store = open_store(samples)
    expected = [store.digest, *(str(int(store.image(i).sum())) for i in range(20))]
    assert [out.split() for out, _ in told] == [expected] * 3
    assert len(stores()) == 1


@pytest.mark.parametrize(
    ("shapes", "dtype", "suffix"),
    [
        ([(9, 8, 3), (20, 31, 3), (7, 7, 3)], np.uint8, "png"),
        ([(9, 8), (20, 31), (7, 7)], np.uint8, "png"),
        ([(9, 8), (20, 31), (7, 7)], np.uint16, "png"),
        ([(9, 8), (20, 31, 3), (7, 7)], np.uint8, "png"),
    ],
)
def test_statistics_are_those_of_the_pixels(tmp_path, shapes, dtype, suffix):
    samples = written(tmp_path, shapes, dtype, suffix)
    store = open_store(samples)
    for chosen in ([0, 1, 2], [1], [2, 0]):
        pixels = [read_image(samples[i].image) for i in chosen]
        pixels = np.concatenate(
            [np.broadcast_to(p, (*p.shape[:2], store.channels)).reshape(-1, store.channels) for p in pixels]
        )
        mean, std = store.statistics(chosen)
        assert len(mean) == len(std) == store.channels
        assert np.allclose(mean, pixels.mean(0, np.float64))
        assert np.allclose(std, pixels.std(0, dtype=np.float64))


def test_a_constant_channel_has_a_standard_deviation_above_zero(tmp_path):
    for kind in ("images", "masks"):
        saved(tmp_path / kind / "a.png", np.full((8, 8), 200, np.uint8))
    mean, std = open_store(found(tmp_path)).statistics([0])
    assert mean == [200.0]
    assert 0 < std[0] < 1


def test_mask_values_are_counted(tmp_path):
    samples = written(tmp_path)
    store = open_store(samples)
    masks = [read_mask(sample.mask).ravel() for sample in samples]
    values, n = np.unique(np.concatenate(masks), return_counts=True)
    assert store.counts() == dict(zip(values.tolist(), n.tolist(), strict=True))


def test_sound_files_have_no_problems(tmp_path):
    store = open_store(written(tmp_path))
    assert store.problems == []
    assert store.kept == [0, 1, 2, 3]


def test_sound_files_are_kept_and_what_is_wrong_with_the_others_is_told(tmp_path):
    samples = written(tmp_path, [(8, 9)] * 6)
    (tmp_path / "images" / "01.png").write_bytes(b"")
    (tmp_path / "images" / "03.png").write_text("hello")
    (tmp_path / "masks" / "03.png").write_text("hello")
    (tmp_path / "masks" / "04.png").write_text("hello")
    store = open_store(samples)
    assert store.kept == [0, 2, 5]
    assert [row.key for row in store.rows] == ["00", "02", "05"]
    assert is_as_the_files(store, [samples[i] for i in store.kept])
    assert [problem.partition(": ")[0] for problem in store.problems] == [
        str(tmp_path / name) for name in ("images/01.png", "images/03.png", "masks/03.png", "masks/04.png")
    ]


@pytest.mark.parametrize("size", [(8, 10), (9, 8), (1, 72)])
def test_a_mask_of_another_size_is_told_with_both_sizes(tmp_path, size):
    samples = written(tmp_path, [(8, 9)] * 3)
    saved(tmp_path / "masks" / "01.png", np.zeros(size, np.uint8))
    store = open_store(samples)
    assert store.kept == [0, 2]
    assert store.problems == [
        f"{tmp_path / 'masks' / '01.png'}: {size[1]}x{size[0]} pixels, its image has 9x8",
    ]


def test_a_turned_image_and_its_turned_mask_are_of_one_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path / "images" / "a.jpg", np.zeros((8, 12, 3), np.uint8), exif=exif)
    saved(tmp_path / "masks" / "a.png", np.zeros((12, 8), np.uint8))
    store = open_store(found(tmp_path))
    assert store.problems == []
    assert store.image(0).shape == (12, 8, 3)


def test_files_of_which_none_is_sound_are_refused_in_one_error(tmp_path):
    samples = written(tmp_path, [(40, 40)] * 4)
    for sample in samples:
        content = sample.image.read_bytes()
        sample.image.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError) as refused:
        open_store(samples)
    assert refused.value.exit_code == 3
    assert all(str(sample.image) in str(refused.value) for sample in samples)
    assert stores() == []


def test_many_problems_end_the_decoding_early(tmp_path):
    samples = written(tmp_path, [(8, 9)] * (3 * STOP))
    for sample in samples[1:]:
        sample.mask.write_bytes(b"")
    seen = []

    def progress(rows, *_):
        for row in rows:
            seen.append(row)
            yield row

    with pytest.raises(DataError, match=f"{STOP} problems"):
        open_store(samples, workers=1, progress=progress)
    assert len(seen) == STOP + 1
    assert stores() == []
    for sample in samples[STOP:]:
        saved(sample.mask, np.zeros((8, 9), np.uint8))
    store = open_store(samples)
    assert len(store.problems) == STOP - 1
    assert store.kept == [0, *range(STOP, 3 * STOP)]


def test_a_store_with_bad_files_is_not_decoded_again(tmp_path, monkeypatch):
    samples = written(tmp_path)
    samples[1].image.write_bytes(b"")
    first = open_store(samples)
    monkeypatch.setattr("segsweep.data.scan.read_picture", None)
    again = open_store(samples, progress=lambda rows, *_: pytest.fail("decodes"))
    assert (again.kept, again.problems, again.digest) == (first.kept, first.problems, first.digest)
    assert [row for row in again.rows] == first.rows
    monkeypatch.undo()
    saved(samples[1].image, np.zeros(SHAPES[1], np.uint8))
    assert open_store(samples).problems == []


def test_the_digest_is_that_of_the_sound_files_alone(tmp_path):
    samples = written(tmp_path)
    samples[1].image.write_bytes(b"")
    kept = [samples[i] for i in (0, 2, 3)]
    assert open_store(samples).digest == open_store(kept).digest


def test_images_of_several_data_types_are_refused_naming_one_of_each(tmp_path):
    samples = written(tmp_path, [(8, 9)] * 4)
    saved(tmp_path / "images" / "02.png", np.full((8, 9), 1000, np.uint16))
    with pytest.raises(DataError) as refused:
        open_store(samples)
    message = str(refused.value)
    assert f"uint8 grey in {tmp_path / 'images' / '00.png'}" in message
    assert f"uint16 grey in {tmp_path / 'images' / '02.png'}" in message
    assert stores() == []


def test_nothing_is_written_outside_of_the_cache(tmp_path):
    samples = written(tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    open_store(samples)
    assert sorted((tmp_path / "data").rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["outputs"]


def test_a_store_on_the_cpu_stays_where_it_is(tmp_path):
    store = open_store(written(tmp_path))
    assert store.to(torch.device("cpu")) is store
    assert store.image(0).device.type == "cpu"


def masked(root, pixels_of, image=None, suffix="png"):
    """Images of noise with these masks."""
    rng = np.random.default_rng(0)
    for i, mask in enumerate(pixels_of):
        pixels = rng.integers(0, 256, mask.shape[:2]).astype(np.uint8) if image is None else image
        saved(root / "images" / f"{i:03d}.png", pixels)
        saved(root / "masks" / f"{i:03d}.{suffix}", mask)
    return found(root)


def meant(store, index):
    """A mask's values and colours, whatever their places in the store."""
    values = store.values or list(range(256))
    return [values[v] for v in store.mask(index).ravel().tolist()]


def colours(mask):
    rgb = mask if mask.ndim == 3 else np.repeat(mask[..., None], 3, 2)
    return [tuple(pixel) for pixel in rgb.reshape(-1, 3).tolist()]


def test_coloured_masks_stand_for_their_colours(tmp_path):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (9, 3)).astype(np.uint8)
    masks = [palette[rng.integers(0, 9, (8, 9 + i))] for i in range(4)]
    store = open_store(masked(tmp_path, masks))
    assert store.problems == []
    assert all(meant(store, i) == colours(mask) for i, mask in enumerate(masks))
    assert sorted(store.values) == sorted({tuple(color) for mask in masks for color in colours(mask)})
    for stored, n in store.counts().items():
        assert n == sum(colours(mask).count(store.values[stored]) for mask in masks)


def test_grey_masks_among_coloured_ones_are_of_the_same_colours(tmp_path):
    red = np.zeros((8, 9, 3), np.uint8)
    red[2:5] = (255, 0, 0)
    red[0] = 128
    black, grey, equal = np.zeros((8, 9), np.uint8), np.full((8, 9), 128, np.uint8), np.full((8, 9, 3), 255, np.uint8)
    masks = [black, red, grey, equal]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        store = open_store(masked(tmp_path / str(order), [masks[i] for i in order]))
        assert store.values == [(0, 0, 0), (128, 128, 128), (255, 0, 0), (255, 255, 255)]
        for place, i in enumerate(order):
            assert meant(store, place) == colours(masks[i])
            assert sum(store.rows[place].values.values()) == 72
            assert set(store.rows[place].values) == set(store.mask(place).unique().tolist())


def test_small_numbers_stand_for_themselves(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 3, 7, 255], (8, 9)).astype(np.uint8) for _ in range(3)]
    masks.append(rng.choice([7, 200], (8, 9)).astype(np.uint8))
    store = open_store(masked(tmp_path, masks))
    assert store.values is None
    assert all(np.array_equal(store.mask(i).numpy(), mask) for i, mask in enumerate(masks))
    assert set(store.counts()) == {0, 3, 7, 200, 255}


@pytest.mark.parametrize("high", [300, 70000])
def test_numbers_beyond_a_byte_keep_their_meaning(tmp_path, high):
    rng = np.random.default_rng(0)
    known = np.array([0, 1, 200, 256, high - 1], np.int32)
    masks = [rng.choice(known, (8, 9)) for _ in range(3)] + [np.zeros((8, 9), np.int32), np.ones((8, 9), np.uint8)]
    store = open_store(masked(tmp_path, masks, suffix="tif"))
    assert store.values == known.tolist()
    assert all(meant(store, i) == mask.ravel().tolist() for i, mask in enumerate(masks))


def test_negative_numbers_keep_their_meaning(tmp_path):
    mask = np.arange(-2, 10, dtype=np.int32).reshape(3, 4)
    store = open_store(masked(tmp_path, [mask, mask + 1], suffix="tif"))
    assert store.values == list(range(-2, 11))
    assert meant(store, 1) == list(range(-1, 11))


def test_values_beyond_254_are_kept_together_but_named_ones_and_the_background(tmp_path):
    many = np.arange(0, 600, dtype=np.int32).reshape(20, 30)
    store = open_store(masked(tmp_path / "c", [many], suffix="tif"), named=[577, 599])
    others = masks.Others(600 - 254)
    assert meant(store, 0)[0] == 0
    assert [meant(store, 0)[i] for i in (577, 599)] == [577, 599]
    assert sum(value == others for value in meant(store, 0)) == 600 - 254
    assert all(value in (i, others) for i, value in enumerate(meant(store, 0)))


def test_254_values_are_kept_apart(tmp_path):
    numbers = np.arange(1000, 1000 + 254, dtype=np.int32)[np.arange(256).reshape(16, 16) % 254]
    store = open_store(masked(tmp_path / "a", [numbers, numbers.T.copy()], suffix="tif"))
    assert meant(store, 1) == numbers.T.ravel().tolist()


def test_another_void_value_alone_is_no_other_store(tmp_path):
    samples = masked(tmp_path, [np.arange(300, 372, dtype=np.int32).reshape(8, 9)], suffix="tif")
    digests = {open_store(samples, how).digest for how in (Decoding(), Decoding(void=300), Decoding(threshold=310))}
    assert len(digests) == len(stores()) == 2


def test_masks_in_host_memory_are_the_masks(tmp_path):
    store = open_store(written(tmp_path))
    for i in range(4):
        assert isinstance(store.host_mask(i), np.ndarray)
        assert np.array_equal(store.host_mask(i), store.mask(i).numpy())


@pytest.mark.parametrize(
    ("shapes", "dtype", "suffix"),
    [
        ([(9, 8, 3), (20, 31, 3), (7, 7, 3)], np.uint8, "png"),
        ([(9, 8), (20, 31, 3), (7, 7)], np.uint8, "png"),
        ([(9, 8), (20, 31), (7, 7)], np.uint16, "png"),
        ([(9, 8), (20, 31), (7, 7)], np.float32, "tif"),
    ],
)
@pytest.mark.parametrize("limits", [(0, 100), (1, 99), (0.5, 50), (50, 50)])
def test_percentiles_are_those_of_the_pixels(tmp_path, shapes, dtype, suffix, limits):
    samples = written(tmp_path, shapes, dtype, suffix)
    store = open_store(samples)
    for chosen in ([0, 1, 2], [2]):
        pixels = np.concatenate(
            [
                np.broadcast_to(p, (*p.shape[:2], store.channels)).reshape(-1, store.channels)
                for p in (read_image(samples[i].image) for i in chosen)
            ]
        )
        found_of = store.percentiles(chosen, *limits)
        assert np.allclose(found_of, np.percentile(pixels.astype(np.float64), limits, axis=0), rtol=1e-5)


def test_percentiles_of_very_many_pixels_are_near_those_of_all(tmp_path, monkeypatch):
    samples = written(tmp_path, [(200, 211, 3)] * 3)
    store = open_store(samples)
    pixels = np.concatenate([read_image(sample.image).reshape(-1, 3) for sample in samples])
    monkeypatch.setattr("segsweep.data.store.SAMPLED", 10_000)
    assert np.allclose(store.percentiles([0, 1, 2], 10, 90), np.percentile(pixels, (10, 90), axis=0), atol=6)


def test_statistics_of_floats_far_from_zero_are_right(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(2):
        saved(tmp_path / "images" / f"{i}.tif", (rng.normal(size=(30, 40)) + 1000).astype(np.float32))
        saved(tmp_path / "masks" / f"{i}.png", np.ones((30, 40), np.uint8))
    samples = found(tmp_path)
    pixels = np.stack([read_image(sample.image) for sample in samples]).astype(np.float64)
    mean, std = open_store(samples).statistics([0, 1])
    assert np.allclose(mean, pixels.mean())
    assert np.allclose(std, pixels.std(), rtol=1e-6)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_many_channels_come_back_and_are_counted_each(tmp_path, channels):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 5000, (channels, 8, 9 + i)).astype(np.uint16) for i in range(2)]
    for i, image in enumerate(pixels):
        pages = [Image.fromarray(page) for page in image]
        (tmp_path / "images").mkdir(exist_ok=True)
        pages[0].save(tmp_path / "images" / f"{i}.tif", save_all=True, append_images=pages[1:])
        saved(tmp_path / "masks" / f"{i}.png", np.ones((8, 9 + i), np.uint8))
    store = open_store(found(tmp_path))
    assert store.channels == channels
    assert all(np.array_equal(store.image(i).numpy(), image.transpose(1, 2, 0)) for i, image in enumerate(pixels))
    flat = np.concatenate([image.reshape(channels, -1) for image in pixels], 1)
    assert np.allclose(store.statistics([0, 1]), [flat.mean(1), flat.std(1)])


@pytest.mark.parametrize(("one", "other"), [((8, 9, 5), (8, 9)), ((8, 9, 5), (8, 9, 3)), ((8, 9, 5), (8, 9, 4))])
def test_images_of_several_numbers_of_channels_are_refused(tmp_path, one, other):
    samples = written(tmp_path, [(8, 9)] * 2, suffix="tif")
    for sample, shape in zip(samples, (one, other), strict=True):
        page = Image.fromarray(np.zeros(shape[:2], np.uint8))
        page.save(sample.image, save_all=True, append_images=[page] * (shape[2] - 1 if len(shape) == 3 else 0))
    with pytest.raises(DataError, match=r"images differ in pixel type or channels.*5 channels in"):
        open_store(samples)


def test_the_same_pixels_have_the_same_content_however_packed(tmp_path):
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 8, 9, 3)).astype(np.uint8)
    for name, pixels in (("a.png", one), ("b.tif", one), ("c.bmp", one), ("d.png", other), ("e.png", one[::-1].copy())):
        saved(tmp_path / "images" / name, pixels)
        saved(tmp_path / "masks" / f"{name[0]}.png", rng.integers(0, 2, (8, 9)).astype(np.uint8))
    a, b, c, d, e = (row.content for row in open_store(found(tmp_path)).rows)
    assert a == b == c
    assert len({a, d, e}) == 3


def test_the_same_bytes_in_another_shape_are_another_content(tmp_path):
    for name, shape in (("a", (8, 9)), ("b", (9, 8)), ("c", (4, 6, 3))):
        saved(tmp_path / "images" / f"{name}.png", np.zeros(shape, np.uint8))
        saved(tmp_path / "masks" / f"{name}.png", np.ones(shape[:2], np.uint8))
    assert len({row.content for row in open_store(found(tmp_path)).rows}) == 3


def test_the_digest_depends_on_the_given_split(tmp_path):
    samples = written(tmp_path)
    digests = set()
    for splits in (("train",) * 4, ("train", "train", "val", "val"), (None,) * 4):
        given = [Sample(s.key, s.image, s.mask, split) for s, split in zip(samples, splits, strict=True)]
        digests.add(open_store(given).digest)
    assert len(digests) == 3


def test_the_digest_does_not_depend_on_how_masks_are_packed(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (8, 9))
    kinds = [mask.astype(np.uint8), mask.astype(np.int32), np.repeat(mask[..., None], 3, 2).astype(np.uint8)]
    digests = {open_store(masked(tmp_path / str(i), [kind], suffix="tif")).digest for i, kind in enumerate(kinds)}
    assert len(digests) == 1


def test_the_digest_depends_on_what_the_values_stand_for(tmp_path):
    places = np.random.default_rng(0).integers(0, 3, (8, 9))
    palettes = [[0, 1, 2], [0, 1, 3], [0, 300, 400], [0, 300, 401]]
    masks = [np.array(palette, np.int32)[places] for palette in palettes]
    masks += [
        np.array(p, np.uint8)[places] for p in ([(0, 0, 0), (9, 0, 0), (0, 9, 0)], [(0, 0, 0), (9, 0, 0), (0, 8, 0)])
    ]
    digests = {open_store(masked(tmp_path / str(i), [mask], suffix="tif")).digest for i, mask in enumerate(masks)}
    assert len(digests) == len(masks)


@pytest.mark.parametrize("name", ["a b", "it's", 'say "hi"', "two\nlines", "Zürich", "細胞", "%s{x}", "a,b;c"])
def test_files_of_any_name_are_stored_and_told(tmp_path, name):
    for kind in ("images", "masks"):
        saved(tmp_path / kind / f"{name}.png", np.ones((4, 5), np.uint8))
        saved(tmp_path / kind / f"{name}2.png", np.ones((4, 5), np.uint8))
    samples = found(tmp_path)
    assert {row.key for row in open_store(samples).rows} == {name, f"{name}2"}
    (tmp_path / "masks" / f"{name}.png").write_bytes(b"")
    (problem,) = open_store(samples).problems
    assert problem == f"{tmp_path / 'masks' / name}.png: empty file."


def test_files_whose_name_is_no_utf_8_are_named_in_one_line(tmp_path):
    for kind in ("images", "masks"):
        saved(tmp_path / kind / "a.png", np.ones((4, 5), np.uint8))
        (tmp_path / kind / "a.png").rename(os.fsdecode(os.fsencode(tmp_path / kind) + b"/Z\xfcrich.png"))
    with pytest.raises(
        DataError, match=r"rich\.png: its name is not valid UTF-8\. Rename it\. For all files in a folder: convmv"
    ):
        found(tmp_path)


@pytest.mark.parametrize("seed", range(30))
def test_any_set_of_masks_keeps_its_meaning_and_counts(tmp_path, seed):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (rng.integers(1, 60), 3)).astype(np.uint8)
    palette[:: rng.integers(1, 4)] = rng.integers(0, 256, (1, 1))  # some are grey
    masks = []
    for _ in range(rng.integers(1, 6)):
        chosen = rng.choice(len(palette), rng.integers(1, len(palette) + 1))
        masks.append(palette[rng.choice(chosen, rng.integers(1, 20, 2))])
    samples = masked(tmp_path, masks)
    for order in (samples, samples[::-1]):
        store = open_store(order)
        assert (store.values is None) == all((mask == mask[..., :1]).all() for mask in masks)
        for i, mask in enumerate(masks if order is samples else masks[::-1]):
            expected = colours(mask) if store.values else mask[..., 0].ravel().tolist()
            assert meant(store, i) == expected
            assert store.rows[i].values == dict(zip(*np.unique(store.mask(i), return_counts=True), strict=True))


@pytest.mark.parametrize("palette", (False, True), ids=("numbers", "colours"))
def test_without_room_samples_are_decoded_whenever_they_are_asked_for(tmp_path, palette):
    samples = written(tmp_path)
    if palette:
        colours = np.array([(0, 0, 0), (200, 30, 30), (7, 7, 7)], np.uint8)
        for sample in samples:
            saved(sample.mask, colours[read_mask(sample.mask)])
    kept, streamed = open_store(samples), open_store(samples, keep=False)
    assert not list(streamed_folder().glob("*.bin"))
    assert streamed.digest == kept.digest
    rows = [replace(row, checksum=(row.checksum[0], 0)) for row in kept.rows]  # of masks that are not written
    assert (streamed.values, streamed.rows, streamed.range) == (kept.values, rows, kept.range)
    for i in range(len(samples)):
        for found, expected in zip(streamed.pair(i), kept.pair(i), strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(streamed.image(i), kept.image(i))
        assert torch.equal(streamed.mask(i), kept.mask(i))
        assert np.array_equal(streamed.host_mask(i), kept.host_mask(i))
    assert streamed.percentiles([0, 1], 5, 95) == kept.percentiles([0, 1], 5, 95)
    assert not streamed.on_device
    assert streamed.to(torch.device("cpu")) is streamed


def streamed_folder():
    (folder,) = (path for path in stores() if path.name.endswith("-scan"))
    return folder


def test_a_file_that_changes_under_a_stream_is_noticed(tmp_path):
    samples = written(tmp_path)
    store = open_store(samples, keep=False)
    saved(samples[1].image, np.zeros(SHAPES[1], np.uint8))
    assert store.pair(0)
    with pytest.raises(DataError, match=r"01: has changed since the data were scanned"):
        store.pair(1)
    samples[2].mask.unlink()
    with pytest.raises(DataError, match=r"02\.png"):
        store.pair(2)


@pytest.mark.parametrize("name", ("images.bin", "masks.bin"))
@pytest.mark.parametrize("harm", ("cut", "gone"))
def test_a_store_that_lost_pixels_is_made_again(tmp_path, name, harm):
    samples = written(tmp_path)
    digest = open_store(samples).digest
    (path,) = (folder / name for folder in stores())
    if harm == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    store = open_store(samples)
    assert is_as_the_files(store, samples)
    assert store.digest == digest


def harm(path, at, value=None):
    """Change a byte of a file: a bit of it, or all of it."""
    with path.open("r+b") as file:
        file.seek(at)
        before = file.read(1)[0]
        file.seek(at)
        file.write(bytes([before ^ 4 if value is None else value]))


@pytest.mark.parametrize("name", ["images.bin", "masks.bin"])
def test_a_flipped_bit_is_seen_when_its_sample_is_read_and_the_files_are_read_instead(tmp_path, caplog, name):
    samples = written(tmp_path)
    row = open_store(samples).rows[2]
    (folder,) = stores()
    harm(folder / name, (row.image_offset if name == "images.bin" else row.mask_offset) + 3)
    store = open_store(samples)
    assert is_as_the_files(store, samples)
    assert [record.message for record in caplog.records] == [f"{folder}: damaged, at 02. It is decoded again."]
    assert is_as_the_files(open_store(samples), samples)  # made anew
    assert (folder / "manifest.json").is_file()
    assert len(caplog.records) == 1


def test_zeroed_pixels_are_not_trained_on(tmp_path, caplog):
    samples = written(tmp_path)
    open_store(samples)
    (folder,) = stores()
    for name in ("images.bin", "masks.bin"):
        (folder / name).write_bytes(bytes((folder / name).stat().st_size))
    assert is_as_the_files(open_store(samples), samples)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", bytes(300), b'{"rows": [{"key": 1}]}'])
def test_a_damaged_manifest_is_no_manifest(tmp_path, caplog, content):
    samples = written(tmp_path)
    open_store(samples)
    (folder,) = stores()
    (folder / "manifest.json").write_bytes(content)
    assert is_as_the_files(open_store(samples), samples)
    assert [record.message for record in caplog.records] == [f"{folder}: damaged. The data are decoded again."]


def test_a_store_that_is_cut_while_it_is_used_is_an_error(tmp_path):
    store = open_store(written(tmp_path))
    (folder,) = stores()
    assert store.image(3).sum()
    os.truncate(folder / "images.bin", 10)
    for read in (store.image, store.mask, store.host_mask, store.pair):
        with pytest.raises(DataError, match=r"images\.bin: became shorter while it was in use\. Start again"):
            read(3)


def test_damage_beside_changed_files_is_an_error(tmp_path):
    samples = written(tmp_path)
    store = open_store(samples)
    (folder,) = stores()
    harm(folder / "images.bin", 0)
    saved(samples[0].image, np.zeros(SHAPES[0], np.uint8))
    with pytest.raises(DataError, match="00: has changed since the data were decoded"):
        store.image(0)


def test_a_full_disk_is_told_with_what_to_do(tmp_path, monkeypatch):
    from segsweep.data import store

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.scan, "write", full)
    with pytest.raises(DiskError, match=r"no room for the decoded images\. Try data\.cache=none.*SEGSWEEP_OUTPUTS"):
        open_store(written(tmp_path))
    assert not stores()
