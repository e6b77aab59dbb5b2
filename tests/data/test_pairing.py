"""Patterns and folders that are given: which files they mean, and what pairs them."""

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from segsweep.compose import absolute, configuration
from segsweep.config.schema import DataConfig
from segsweep.data.sources import folder
from segsweep.errors import ConfigError, DataError


def drawn(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / name)
    return root


def matched(root, images, masks, **options):
    return folder.find(DataConfig(root=str(root), images=images, masks=masks, **options))


def pairs(found, root):
    return {(s.key, s.image.relative_to(root).as_posix(), s.mask.relative_to(root).as_posix()) for s in found.samples}


PATTERNS = {
    "one folder of both": (
        ("*/Imgs/*.jpg", "*/Imgs/*.png"),
        "a/Imgs/1.jpg a/Imgs/1.png b/Imgs/1.jpg b/Imgs/1.png",
        {("a/1", "a/Imgs/1.jpg", "a/Imgs/1.png"), ("b/1", "b/Imgs/1.jpg", "b/Imgs/1.png")},
    ),
    "folders of other names": (
        ("*/Imgs/*.jpg", "*/GT/*.png"),
        "a/Imgs/1.jpg a/GT/1.png b/Imgs/1.jpg b/GT/1.png",
        {("a/1", "a/Imgs/1.jpg", "a/GT/1.png"), ("b/1", "b/Imgs/1.jpg", "b/GT/1.png")},
    ),
    "stems of other ends": (
        ("images/*_training.tif", "1st_manual/*_manual1.gif"),
        "images/21_training.tif 1st_manual/21_manual1.gif",
        {("21", "images/21_training.tif", "1st_manual/21_manual1.gif")},
    ),
    "stems of other beginnings": (
        ("img_*.png", "gt_*.png"),
        "img_7.png gt_7.png",
        {("7", "img_7.png", "gt_7.png")},
    ),
    "a folder for each image": (
        ("*/image.png", "*/mask.png"),
        "0001/image.png 0001/mask.png 0002/image.png 0002/mask.png",
        {("0001", "0001/image.png", "0001/mask.png"), ("0002", "0002/image.png", "0002/mask.png")},
    ),
    "folders of any depth": (
        ("photos/**/*.jpg", "truth/**/*.png"),
        "photos/1.jpg truth/1.png photos/x/y/1.jpg truth/x/y/1.png",
        {("1", "photos/1.jpg", "truth/1.png"), ("x/y/1", "photos/x/y/1.jpg", "truth/x/y/1.png")},
    ),
    "all below folders": (
        ("photos/**", "truth/**"),
        "photos/1.jpg truth/1.png photos/x/v1.2.jpeg truth/x/v1.2.TIF",
        {("1", "photos/1.jpg", "truth/1.png"), ("x/v1.2", "photos/x/v1.2.jpeg", "truth/x/v1.2.TIF")},
    ),
    "any format": (
        ("*.*", "gt/*"),
        "1.jpg 2.tif gt/1.png gt/2.bmp",
        {("1", "1.jpg", "gt/1.png"), ("2", "2.tif", "gt/2.bmp")},
    ),
    "capitals": (
        ("*.jpg", "*.png"),
        "1.JPG 1.Png",
        {("1", "1.JPG", "1.Png")},
    ),
    "images that the masks' pattern says are none": (
        ("*.png", "*_mask.png"),
        "a.png a_mask.png b.png b_mask.png",
        {("a", "a.png", "a_mask.png"), ("b", "b.png", "b_mask.png")},
    ),
    "one letter": (
        ("?/i?.png", "?/m?.png"),
        "a/i1.png a/m1.png a/i22.png",
        {("a/1", "a/i1.png", "a/m1.png")},
    ),
    "letters that mean something elsewhere": (
        ("x (1)+[b]/*.png", "y{2}^$/*.png"),
        "x (1)+[b]/a.png|y{2}^$/a.png",
        {("a", "x (1)+[b]/a.png", "y{2}^$/a.png")},
    ),
    "masks' usual endings": (
        ("photos/*", "truth/*"),
        "photos/1.jpg truth/1_mask.png",
        {("1", "photos/1.jpg", "truth/1_mask.png")},
    ),
}


@pytest.mark.parametrize("case", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_patterns_pair_by_what_their_stars_matched(tmp_path, case, absolute):
    (images, masks), files, expected = PATTERNS[case]
    root = drawn(tmp_path / "data", *files.split("|" if "|" in files else " "))
    if absolute:
        found = folder.find(DataConfig(images=f"{root}/{images}", masks=f"{root}/{masks}"))
    else:
        found = matched(root, images, masks)
    assert found.problems == []
    assert pairs(found, root) == expected


def test_a_star_that_matches_the_parts_is_the_split(tmp_path):
    drawn(tmp_path, *(f"{part}/{kind}/1.png" for part in ("train", "val", "extra") for kind in ("x", "y")))
    found = matched(tmp_path, "*/x/*", "*/y/*")
    assert [(s.split, s.key) for s in found.samples] == [("train", "1"), ("val", "1")]
    assert found.notes == ("left out: extra/, 1 image: none of train, val",)


def test_a_pattern_and_a_folder_go_together(tmp_path):
    drawn(tmp_path, "photos/x/1.jpg", "truth/x/1.png")
    found = folder.find(DataConfig(images=f"{tmp_path}/photos/*/*.jpg", masks=f"{tmp_path}/truth"))
    assert pairs(found, tmp_path) == {("x/1", "photos/x/1.jpg", "truth/x/1.png")}


def test_a_folder_that_is_called_as_a_pattern_is_one(tmp_path):
    drawn(tmp_path, "what?/1.jpg", "gt*/1.png")
    found = folder.find(DataConfig(images=f"{tmp_path}/what?", masks=f"{tmp_path}/gt*"))
    assert pairs(found, tmp_path) == {("1", "what?/1.jpg", "gt*/1.png")}


def test_what_has_no_partner_is_told_with_its_place(tmp_path):
    drawn(tmp_path, "a/Imgs/1.jpg", "a/GT/1.png", "a/Imgs/2.jpg", "b/GT/3.png")
    assert matched(tmp_path, "*/Imgs/*.jpg", "*/GT/*.png").problems == [
        f"{tmp_path}/a/Imgs/2.jpg: no mask {tmp_path}/a/GT/2.*",
        f"{tmp_path}/b/GT/3.png: no image {tmp_path}/b/3.*",
    ]


@pytest.mark.parametrize(
    ("images", "masks", "error", "message"),
    [
        ("*.tif", "*.png", DataError, r"data\.images=\*\.tif: matches no image below"),
        ("*.jpg", "*.tif", DataError, r"data\.masks=\*\.tif: matches no image below"),
        ("*.jpg", "*.jpg", DataError, r"data\.images=\*\.jpg: matches no image .* data\.masks does not match as well"),
        (
            "nope/*.jpg",
            "*.png",
            ConfigError,
            r"data\.images=nope/\*\.jpg: there is no folder .*nope, with which the pattern begins",
        ),
        ("*.jpg", None, ConfigError, r"data\.masks is not given\. Type data\.masks='PATTERN'"),
        (None, "*.png", ConfigError, r"data\.images is not given\. Type data\.images='PATTERN'"),
    ],
)
def test_patterns_that_match_nothing_are_refused(tmp_path, images, masks, error, message):
    with pytest.raises(error, match=message):
        matched(drawn(tmp_path, "1.jpg", "1.png"), images, masks)


@pytest.mark.parametrize("rooted", [True, False])
def test_patterns_mean_the_same_from_anywhere(tmp_path, monkeypatch, rooted):
    """Below data.root where it is given, else below the working folder in which they were typed."""
    drawn(tmp_path / "data", "a/Imgs/1.jpg", "a/GT/1.png")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path if rooted else tmp_path / "data")
    typed = {"images": "*/Imgs/*.jpg", "masks": "*/GT/*.png"} | ({"root": "data"} if rooted else {})
    words = absolute(OmegaConf.create({"data": typed}), [f"data.{key}={value}" for key, value in typed.items()])
    monkeypatch.chdir(tmp_path / "other")
    found = folder.find(configuration(["data=folder", *words]).data)
    assert pairs(found, tmp_path / "data") == {("a/1", "a/Imgs/1.jpg", "a/GT/1.png")}


@pytest.mark.parametrize("inner", ["images", "masks"])
def test_a_folder_inside_of_the_other_is_not_part_of_it(tmp_path, inner):
    drawn(tmp_path, "a.png", "s/b.png", "inner/a.png", "inner/s/b.png")
    places = dict.fromkeys(("images", "masks"), str(tmp_path)) | {inner: str(tmp_path / "inner")}
    found = folder.find(DataConfig(**places))
    first, second = ("inner/", "") if inner == "images" else ("", "inner/")
    assert pairs(found, tmp_path) == {(key, f"{first}{key}.png", f"{second}{key}.png") for key in ("a", "s/b")}
    assert found.problems == []


def test_masks_without_the_suffix_that_is_given_are_told_in_a_note(tmp_path):
    drawn(tmp_path, "images/a.png", "masks/a_mask.png", "masks/a_instances.png")
    found = folder.find(DataConfig(root=str(tmp_path), mask_suffix="_mask"))
    assert [s.mask.name for s in found.samples] == ["a_mask.png"]
    assert found.notes == ("left out: 1 of 2 masks, not ending in _mask",)
