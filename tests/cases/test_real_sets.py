"""Two data sets as their authors share them, held against the masks that are known of them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scenes import cut_at, foreground, opened, said, seen

from segsweep.commands.app import main
from segsweep.data.dataset import Dataset

PARTS = {"train": "train", "val": "val", "test": "test", "different_test": "test"}  # MicroNet's, and ours
PRECIPITATES = {"secondary": [0, 0, 255], "tertiary": [255, 0, 0]}


def table(place: Path, root: Path, rows: list[tuple[Path, Path, str]]) -> Path:
    """A CSV of images, masks and parts, by their paths below `root`."""
    path = place / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "mask", "split"])
        lines.writerows([image.relative_to(root), mask.relative_to(root), split] for image, mask, split in rows)
    return path


def micronet(place: Path, data: Path, images: Path, suffix: str, parts: list[str]) -> Path:
    """MicroNet's own annotations, beside images of one of its two copies."""
    rows = []
    for part in parts:
        for mask in sorted((data / "micronet_original" / f"{part}_annot").iterdir()):
            rows.append((images / part / f"{mask.stem.removesuffix('_mask')}{suffix}", mask, PARTS[part]))
    return table(place, data, rows)


def known(data: Path, stem: str) -> np.ndarray:
    """The same mask as indices: 0 matrix, 1 secondary and 2 tertiary precipitates."""
    (path,) = (data / "micronet" / "super2" / "masks").rglob(f"{stem.removesuffix('_mask')}.png")
    with Image.open(path) as image:
        return np.asarray(image)


def agrees(data: Path, dataset: Dataset, number: int) -> bool:
    found = seen(dataset)
    assert len(found) == number
    assert dataset.labels.names == ("background", "secondary", "tertiary")
    return all(np.array_equal(classes, known(data, stem)) for stem, classes in found.items())


def test_colours_over_grey_in_tiffs_with_alpha_are_micronets_classes(tmp_path, real_data):
    """Images and masks as they come, of 8 bits."""
    parts = ["train", "val", "test"]
    path = micronet(tmp_path, real_data, real_data / "micronet_original", ".tif", parts)
    dataset = opened(real_data, table=str(path), classes=PRECIPITATES)
    assert agrees(real_data, dataset, 12)
    for i, sample in enumerate(dataset.samples):
        assert np.array_equal(dataset.store.image(i).numpy(), tifffile.imread(sample.image))


def test_colours_over_grey_of_16_bits_are_micronets_classes_too(tmp_path, real_data):
    """All annotations, two of which have 16 bits, beside its images in one depth."""
    path = micronet(tmp_path, real_data, real_data / "micronet" / "super2" / "images", ".png", list(PARTS))
    dataset = opened(real_data, table=str(path), classes=PRECIPITATES)
    assert {tifffile.imread(sample.mask).dtype for sample in dataset.samples} == {np.dtype("u1"), np.dtype("u2")}
    assert agrees(real_data, dataset, 17)


def test_the_command_shows_micronet(tmp_path, real_data, capsys):
    path = micronet(tmp_path, real_data, real_data / "micronet_original", ".tif", ["train", "val"])
    words = ["data=folder", f"data.root={real_data}", f"data.table={path}"]
    assert main(["data", *words, "data.classes={secondary:[0,0,255],tertiary:[255,0,0]}"]) == 0
    told = capsys.readouterr().out
    assert "[0,0,255]" in told
    assert "[255,0,0]" in told


@pytest.fixture(scope="module")
def kvasir(tmp_path_factory, real_data):
    """A table of Kvasir-SEG's test part: images and masks are JPEGs of one stem, in two folders."""
    root = real_data / "kvasir" / "test"
    masks = sorted((root / "masks").glob("*.jpg"))
    rows = [(root / "images" / mask.name, mask, "val" if i % 5 == 0 else "train") for i, mask in enumerate(masks)]
    return table(tmp_path_factory.mktemp("kvasir"), real_data, rows)


def test_kvasirs_jpeg_masks_are_cut_in_the_middle(kvasir, real_data):
    dataset = opened(real_data, table=str(kvasir))
    right = {sample.mask.stem: cut_at(sample.mask) for sample in dataset.samples}
    assert len(right) == 100
    assert all(np.array_equal(classes, right[stem]) for stem, classes in seen(dataset).items())
    assert foreground(dataset) == pytest.approx(np.mean(list(right.values())))
    assert foreground(dataset) == pytest.approx(0.161, abs=0.001)  # as its notes say
    assert said(dataset, "data.threshold")


def test_a_cut_at_128_is_the_same(kvasir, real_data):
    dataset = opened(real_data, table=str(kvasir), threshold=128)
    assert all(np.array_equal(seen(dataset)[sample.mask.stem], cut_at(sample.mask)) for sample in dataset.samples[:9])
