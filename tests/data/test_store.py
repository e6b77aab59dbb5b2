"""Decoded once, the same as the files, whoever opens it and however often."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from segsweep.data import scan
from segsweep.data.datasets import Options, Sample, folder
from segsweep.data.images import read_image, read_mask
from segsweep.data.store import open_store
from segsweep.errors import DataError
from segsweep.paths import cache

SHAPES = [(40, 48, 3), (20, 31), (5, 64, 3), (33, 33)]
OPEN = """
import sys
from segsweep.data.datasets import Options, folder
from segsweep.data.store import open_store
samples = folder(Options(root=sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
store = open_store(samples, 2)
print(store.digest, *(int(store.image(i).sum()) for i in range(len(samples))))
"""


def saved(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def written(root, shapes=SHAPES, dtype=np.uint8, suffix="png", seed=0):
    rng = np.random.default_rng(seed)
    high = 256 if dtype == np.uint8 else 5000
    for i, shape in enumerate(shapes):
        saved(root / "images" / f"{i:02d}.{suffix}", rng.integers(0, high, shape).astype(dtype))
        saved(root / "masks" / f"{i:02d}.png", rng.integers(0, 3, shape[:2]).astype(np.uint8))
    return folder(Options(root=str(root)))


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
    store = open_store(samples, workers)
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
    monkeypatch.setattr("segsweep.data.images.read_image", None)
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

    def interrupted(rows, _):
        yield next(rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(samples, 2, interrupted)
    assert stores() == []
    assert is_as_the_files(open_store(samples), samples)


def test_progress_sees_every_sample_and_their_number(tmp_path):
    seen = []

    def progress(rows, n):
        for row in rows:
            seen.append(n)
            yield row

    open_store(written(tmp_path), progress=progress)
    assert seen == [4] * 4


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
    mean, std = open_store(folder(Options(root=str(tmp_path)))).statistics([0])
    assert mean == [200.0]
    assert 0 < std[0] < 1


def test_mask_values_are_counted(tmp_path):
    samples = written(tmp_path)
    store = open_store(samples)
    for chosen in (None, [0], [3, 1]):
        masks = [read_mask(samples[i].mask).ravel() for i in (range(4) if chosen is None else chosen)]
        values, n = np.unique(np.concatenate(masks), return_counts=True)
        assert store.counts(chosen) == dict(zip(values.tolist(), n.tolist(), strict=True))


@pytest.mark.parametrize("examine", [scan.check, open_store])
def test_sound_files_are_not_refused(tmp_path, examine):
    examine(written(tmp_path))


@pytest.mark.parametrize("examine", [scan.check, open_store])
def test_all_unreadable_files_are_listed_in_one_error(tmp_path, examine):
    samples = written(tmp_path, [(8, 9)] * 6)
    (tmp_path / "images" / "01.png").write_bytes(b"")
    (tmp_path / "images" / "03.png").write_text("hello")
    (tmp_path / "masks" / "04.png").write_text("hello")
    with pytest.raises(DataError) as refused:
        examine(samples)
    message = str(refused.value)
    assert refused.value.exit_code == 3
    assert "3 do not hold" in message
    for name in ("images/01.png", "images/03.png", "masks/04.png"):
        assert str(tmp_path / name) in message
    assert "00.png" not in message


@pytest.mark.parametrize("examine", [scan.check, open_store])
def test_masks_of_another_size_are_listed(tmp_path, examine):
    samples = written(tmp_path, [(8, 9)] * 4)
    saved(tmp_path / "masks" / "01.png", np.zeros((8, 10), np.uint8))
    saved(tmp_path / "masks" / "02.png", np.zeros((9, 8), np.uint8))
    with pytest.raises(DataError) as refused:
        examine(samples)
    message = str(refused.value)
    assert "2 do not hold" in message
    assert f"{tmp_path / 'masks' / '01.png'}: 10x8" in message
    assert f"{tmp_path / 'masks' / '02.png'}: 8x9" in message


@pytest.mark.parametrize("examine", [scan.check, open_store])
def test_a_turned_image_and_its_turned_mask_are_of_one_size(tmp_path, examine):
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path / "images" / "a.jpg", np.zeros((8, 12, 3), np.uint8), exif=exif)
    saved(tmp_path / "masks" / "a.png", np.zeros((12, 8), np.uint8))
    examine(folder(Options(root=str(tmp_path))))


def test_truncated_files_are_all_listed_when_decoded(tmp_path):
    samples = written(tmp_path, [(40, 40)] * 4)
    for name in ("images/00.png", "images/02.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError) as refused:
        open_store(samples)
    assert "2 do not hold" in str(refused.value)
    assert "images/00.png" in str(refused.value)
    assert "images/02.png" in str(refused.value)
    assert stores() == []


def test_coloured_masks_are_listed(tmp_path):
    samples = written(tmp_path, [(8, 9)] * 3)
    for name in ("00", "02"):
        saved(tmp_path / "masks" / f"{name}.png", np.random.default_rng(0).integers(0, 9, (8, 9, 3)).astype(np.uint8))
    with pytest.raises(DataError, match="2 do not hold"):
        open_store(samples)


def test_images_of_several_data_types_are_refused_naming_one_of_each(tmp_path):
    samples = written(tmp_path, [(8, 9)] * 4)
    saved(tmp_path / "images" / "02.png", np.full((8, 9), 1000, np.uint16))
    with pytest.raises(DataError) as refused:
        open_store(samples)
    message = str(refused.value)
    assert f"uint8 in {tmp_path / 'images' / '00.png'}" in message
    assert f"uint16 in {tmp_path / 'images' / '02.png'}" in message
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
