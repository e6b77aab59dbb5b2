"""Masks in formats that are not read: one line that says what makes images of them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import read_mask
from PIL import Image

from segsweep.compose import configuration
from segsweep.config.schema import DataConfig
from segsweep.data import foreign
from segsweep.data.foreign import converter
from segsweep.data.images import read_image
from segsweep.data.sources import coco, folder
from segsweep.errors import DataError

LABELME = {"version": "5.0", "shapes": [{"label": "cat", "points": [[0, 0], [9, 9], [0, 9]]}], "imagePath": "a.jpg"}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
    "annotations": [],
    "categories": [{"id": 1, "name": "cat"}],
}
FORMATS = {
    "a.json": (
        json.dumps(LABELME),
        "a.json is a file of LabelMe. Convert it to COCO: pip install labelme2coco; labelme2coco DIR;",
    ),
    "export.json": (json.dumps([{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}]), "-f BRUSH_TO_PNG"),
    "a.txt": (
        "1 0.1 0.1 0.5 0.1 0.5 0.5\n",
        "a.txt has polygons of YOLO. Convert them to COCO: pip install supervision;",
    ),
    "b.txt": ("\n1 0.1 0.1 0.5 0.5\n", "b.txt has boxes of YOLO. Masks cannot be made"),
    "a.npy": ("", "a.npy is a numpy array."),
    "a.nii.gz": ("", "a.nii.gz is a NIfTI volume. Save its slices"),
    "a.nii": ("", "a.nii is a NIfTI volume. Save its slices"),
    "a.DCM": ("", "a.DCM is DICOM. Save its pixels"),
}


def drawn(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", ["images/ masks/", "images/train/ labels/train/", "images/ given/"])
def test_masks_of_another_format_are_answered_with_what_converts_them(tmp_path, name, layout):
    content, advice = FORMATS[name]
    images, masks = layout.split()
    drawn(tmp_path / images / "a.jpg")
    (tmp_path / masks).mkdir(parents=True)
    (tmp_path / masks / name).write_text(content)
    given = {"images": str(tmp_path / images), "masks": str(tmp_path / masks)} if masks == "given/" else {}
    with pytest.raises(DataError, match="holds no mask images") as refused:
        folder.find(DataConfig(root=str(tmp_path), **given))
    assert advice in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.npy", "a.dcm"])
def test_images_of_another_format_are_answered_as_well(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(b"x")
    drawn(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=rf"images: no images in it .*\. {name} is "):
        folder.find(DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "five words and no number"),
        ("a.txt", "1 2 3"),
        ("a.json", "{"),
        ("b.json", "[1]"),
        ("c.json", "{}"),
    ],
)
def test_other_files_say_nothing(tmp_path, name, content):
    drawn(tmp_path / "images" / "a.jpg")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).write_text(content)
    with pytest.raises(DataError, match=r"masks: no images in it .*Give the right data\.masks=DIR\.$"):
        folder.find(DataConfig(root=str(tmp_path)))


def test_masks_that_are_images_are_taken_whatever_lies_beside_them(tmp_path):
    drawn(tmp_path / "images" / "a.jpg")
    drawn(tmp_path / "masks" / "a.png")
    (tmp_path / "masks" / "a.json").write_text(json.dumps(LABELME))
    assert len(folder.find(DataConfig(root=str(tmp_path))).samples) == 1


@pytest.mark.parametrize("place", ["annotations/instances_train.json", "train/_annotations.coco.json", "gt/x.json"])
@pytest.mark.parametrize("name", ["data", "my data", "a,b", "Ann's"])
def test_coco_is_answered_with_a_line_that_works(tmp_path, place, name):
    tmp_path = tmp_path / name
    drawn(tmp_path / ("train" if place.startswith("train") else "images") / "a.jpg")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(json.dumps(COCO))
    given = {"images": str(tmp_path / "images"), "masks": str(tmp_path / "gt")} if place.startswith("gt") else {}
    with pytest.raises(DataError, match="is COCO") as refused:
        folder.find(DataConfig(root=str(tmp_path), **given))
    words = shlex.split(str(refused.value).partition("Type ")[2])
    found = coco.find(configuration(words).data)
    assert ([s.key for s in found.samples], found.problems) == (["a"], [])


NUMBERS = {
    "whole": np.arange(12) * 40,
    "below zero": np.arange(12) - 4,
    "large": np.arange(12) * 2**20,
    "fractions": np.arange(12) / 8,
    "yes or no": np.arange(12) % 3 == 0,
}


@pytest.mark.parametrize("array", NUMBERS.values(), ids=NUMBERS)
def test_the_line_for_numpy_makes_images_of_the_same_numbers(tmp_path, array):
    array = array.reshape(3, 4)
    drawn(tmp_path / "images" / "a.jpg")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "a.npy", array)
    with pytest.raises(DataError) as refused:
        folder.find(DataConfig(root=str(tmp_path)))
    (code,) = re.findall(r'python -c "(.+)" DIR/\*\.npy', str(refused.value))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "masks" / "a.npy")], check=True)
    (sample,) = folder.find(DataConfig(root=str(tmp_path))).samples
    assert np.array_equal(read_image(sample.mask)[..., 0], array)
    if array.dtype.kind != "f":
        assert np.array_equal(read_mask(sample.mask), array)


def test_no_more_folders_are_listed_than_files_are_looked_at(tmp_path, monkeypatch):
    for name in ("a/1.csv", "a/2.csv", "b/3.csv", "c/4.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    assert "is a numpy array" in converter(tmp_path)
    monkeypatch.setattr(foreign, "LOOKED_AT", 2)
    listed.clear()
    assert converter(tmp_path) == ""
    assert listed == [tmp_path.name, "a"]
