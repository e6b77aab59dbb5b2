"""COCO's JSON: right places, right masks (beside pycocotools and two other rasterisers), clear errors."""

import json
import shlex
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as reference
from skimage.draw import polygon as skimage_polygon

from segsweep.compose import configuration
from segsweep.config.schema import DataConfig
from segsweep.data.dataset import open_dataset
from segsweep.data.images import read_image
from segsweep.data.masks import read_mask
from segsweep.data.source import source
from segsweep.data.sources.coco import Annotation, draw
from segsweep.errors import ConfigError, DataError
from segsweep.paths import cache

SIZE = (90, 120)  # height, width
SQUARE = [10, 10, 40, 10, 40, 30, 10, 30]
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]


def content(*annotations, images=("a.jpg",), categories=CATEGORIES):
    """A file of annotations: each is (image number, category, segmentation) or a dict."""
    height, width = SIZE
    listed = [{"id": n, "file_name": name, "height": height, "width": width} for n, name in enumerate(images)]
    given = [
        a if isinstance(a, dict) else {"image_id": a[0], "category_id": a[1], "segmentation": a[2]} for a in annotations
    ]
    return {"images": listed, "annotations": given, "categories": categories}


def written(root, files, images=("images/a.jpg",)):
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / name)
    for name, found in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(found if isinstance(found, str) else json.dumps(found))
    return root


def find(root=None, **options):
    return source("coco").find(DataConfig(name="coco", root=root and str(root), **options))


def masks(found):
    return {sample.key: np.asarray(Image.open(sample.mask)) for sample in found.samples}


def mask_of(tmp_path, *annotations, **options):
    found = find(written(tmp_path, {"a.json": content(*annotations, **options)}))
    assert found.problems == []
    return masks(found)["a"]


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def star(rng, center, radius, points):
    """An outline whose points lie around a center, as x, y, x, y, ..."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, points))
    reach = rng.uniform(0.6, 1, points) * radius
    x, y = center[0] + reach * np.cos(angle), center[1] + reach * np.sin(angle)
    return np.stack([x, y], 1).ravel().round(2).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_polygons_are_drawn_as_other_rasterisers_draw_them(seed):
    rng = np.random.default_rng(seed)
    height, width = 200, 240
    outline = star(rng, (rng.uniform(60, 180), rng.uniform(60, 140)), rng.uniform(40, 90), int(rng.integers(8, 30)))
    drawn = draw([Annotation(1, 5, [outline])], {5: 1}, height, width) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own, with numpy 2
        theirs = reference.decode(reference.merge(reference.frPyObjects([outline], height, width))) == 1
    assert drawn.sum() >= 1000
    assert iou(drawn, theirs) >= 0.99
    x, y = np.array(outline).reshape(-1, 2).T
    filled = np.zeros((height, width), bool)
    filled[skimage_polygon(y - 0.5, x - 0.5, filled.shape)] = True  # a pixel's center lies at half
    assert iou(drawn, filled) >= 0.98
    image = Image.new("L", (width * 8, height * 8))
    ImageDraw.Draw(image).polygon((np.array(outline) * 8).tolist(), fill=255)
    covered = np.asarray(image).reshape(height, 8, width, 8).mean((1, 3)) >= 127.5  # half of the pixel or more
    assert iou(drawn, covered) >= 0.98


def test_an_object_of_several_polygons_is_one(tmp_path):
    mask = mask_of(tmp_path, (0, 7, [SQUARE, [60, 50, 80, 50, 80, 70, 60, 70]]))
    expected = np.zeros(SIZE, np.uint8)
    expected[10:30, 10:40] = expected[50:70, 60:80] = 2
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("packed", [True, False])
def test_run_lengths_are_exact(seed, packed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 60, 2))
    inside = np.kron(rng.random((height, width)) < 0.4, np.ones((3, 5))).astype(np.uint8)[:height, :width]
    if packed:
        encoded = reference.encode(np.asfortranarray(inside))
        encoded["counts"] = encoded["counts"].decode()
    else:
        flat = np.concatenate([[0], inside.T.ravel(), [2]])
        starts = np.flatnonzero(np.diff(flat))
        counts = np.diff(np.concatenate([[0], starts])).tolist()
        encoded = {"size": [height, width], "counts": counts}
    drawn = draw([Annotation(1, 5, encoded)], {5: 3}, height, width)
    assert np.array_equal(drawn, inside * 3)


def test_long_runs_are_exact():
    inside = np.zeros((1500, 2000), np.uint8)
    inside[3:1490, 1000:1900] = 1
    encoded = reference.encode(np.asfortranarray(inside))
    segmentation = {"size": [1500, 2000], "counts": encoded["counts"].decode()}
    assert np.array_equal(draw([Annotation(1, 1, segmentation)], {1: 1}, 1500, 2000), inside)


@pytest.mark.parametrize("order", [1, -1])
def test_small_objects_stay_visible_on_large_ones(tmp_path, order):
    large, small = (0, 7, [[0, 0, 100, 0, 100, 80, 0, 80]]), (0, 2, [SQUARE])
    mask = mask_of(tmp_path, *[large, small][::order])
    expected = np.zeros(SIZE, np.uint8)
    expected[:80, :100] = 2
    expected[10:30, 10:40] = 1
    assert np.array_equal(mask, expected)


def test_of_two_equal_objects_the_later_is_on_top(tmp_path):
    assert mask_of(tmp_path, (0, 7, [SQUARE]), (0, 2, [SQUARE]))[20, 20] == 1


def test_crowds_are_void_and_below_all_objects(tmp_path):
    runs = {"size": list(SIZE), "counts": [0, 90 * 60, 90 * 60]}  # the left half
    crowd = {"image_id": 0, "category_id": 7, "segmentation": runs, "iscrowd": 1}
    found = find(written(tmp_path, {"a.json": content((0, 2, [[50, 10, 70, 10, 70, 30, 50, 30]]), crowd)}))
    expected = np.zeros(SIZE, np.uint8)
    expected[:, :60] = 255
    expected[10:30, 50:70] = 1
    assert np.array_equal(masks(found)["a"], expected)
    assert found.notes == ("a.json: 1 crowd (iscrowd) void",)
    assert found.void == 255


def test_without_crowds_nothing_is_void(tmp_path):
    assert find(written(tmp_path, {"a.json": content((0, 2, [SQUARE]))})).void is None


def test_classes_are_the_categories_in_the_order_of_their_ids(tmp_path):
    found = find(written(tmp_path, {"a.json": content()}))
    assert found.classes == {"background": 0, "cat": 1, "dog": 2}
    assert not masks(found)["a"].any()


def test_a_category_called_background_is_the_background(tmp_path):
    categories = [{"id": 0, "name": "background"}, {"id": 1, "name": "cat"}]
    everything = (0, 0, [[0, 0, 120, 0, 120, 90, 0, 90]])
    found = find(written(tmp_path, {"a.json": content(everything, (0, 1, [SQUARE]), categories=categories)}))
    assert found.classes == {"background": 0, "cat": 1}
    assert masks(found)["a"].sum() == 20 * 30


def test_the_group_that_roboflow_lists_as_a_category_is_none(tmp_path):
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    assert find(written(tmp_path, {"a.json": content(categories=categories)})).classes == {
        "background": 0,
        "cat": 1,
        "dog": 2,
    }


def test_more_categories_than_8_bits_hold_are_16_bits_without_the_void_value(tmp_path):
    categories = [{"id": n, "name": f"c{n}"} for n in range(1, 301)]
    annotations = [(0, 254, [[50, 50, 70, 50, 60, 70]]), (0, 255, [SQUARE])]
    found = find(written(tmp_path, {"a.json": content(*annotations, categories=categories)}), binarize=True)
    assert found.classes["c254"] == 254
    assert found.classes["c255"] == 256
    assert 255 not in found.classes.values()
    assert set(np.unique(masks(found)["a"])) == {0, 254, 256}


PLACES = {
    "roboflow": (
        {f"{part}/_annotations.coco.json": f"{part}.jpg" for part in ("train", "valid", "test")},
        {f"{part}/{part}.jpg": split for part, split in (("train", "train"), ("valid", "val"), ("test", "test"))},
    ),
    "the original": (
        {"annotations/instances_train2017.json": "a.jpg", "annotations/instances_val2017.json": "b.jpg"},
        {"train2017/a.jpg": "train", "val2017/b.jpg": "val"},
    ),
    "the original, images together": (
        {"annotations/instances_train2017.json": "a.jpg", "annotations/instances_val2017.json": "b.jpg"},
        {"images/train2017/a.jpg": "train", "images/val2017/b.jpg": "val"},
    ),
    "one folder of images": (
        {"annotations/train.json": "a.jpg", "annotations/val.json": "b.jpg"},
        {"images/a.jpg": "train", "images/b.jpg": "val"},
    ),
    "one file": ({"annotations/all.json": "a.jpg"}, {"images/a.jpg": None}),
    "one file in the root": ({"_annotations.coco.json": "a.jpg"}, {"a.jpg": None}),
    "folders in the names": ({"result.json": "images/s/a.jpg"}, {"images/s/a.jpg": None}),
    "folders of the exporter": ({"result.json": "upload\\3\\a.jpg"}, {"images/a.jpg": None}),
}


@pytest.mark.parametrize("place", PLACES)
def test_annotations_are_found_where_exporters_put_them(tmp_path, place):
    files, expected = PLACES[place]
    written(tmp_path, {name: content(images=[image]) for name, image in files.items()}, expected)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    if "annotations/instances_train2017.json" in files:
        (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    found = find(tmp_path)
    assert found.problems == []
    assert found.notes == ()
    assert {s.image.relative_to(tmp_path).as_posix(): s.split for s in found.samples} == expected


def test_the_file_and_the_images_may_be_given(tmp_path):
    written(tmp_path, {"somewhere/x.json": content((0, 2, [SQUARE]))}, ["photos/a.jpg"])
    found = find(images=str(tmp_path / "photos"), annotations=str(tmp_path / "somewhere" / "x.json"))
    assert [s.image for s in found.samples] == [tmp_path / "photos" / "a.jpg"]
    assert masks(found)["a"].sum() == 20 * 30


def test_a_name_that_two_images_have_is_a_problem(tmp_path):
    file = content(images=["elsewhere/a.jpg"])
    found = find(written(tmp_path, {"x.json": file}, ["images/1/a.jpg", "images/2/a.jpg"]))
    (problem,) = found.problems
    assert "elsewhere/a.jpg: not a file below" in problem


def test_images_that_are_not_listed_are_told_and_missing_ones_are_problems(tmp_path):
    file = content(images=["a.jpg", "b.jpg", "../secret.jpg"])
    written(tmp_path / "data", {"x.json": file}, ["images/a.jpg", "images/c.jpg", "images/d.jpg"])
    written(tmp_path, {}, ["secret.jpg"])
    found = find(tmp_path / "data")
    assert [s.key for s in found.samples] == ["a"]
    assert found.notes == (f"left out: 2 images below {tmp_path / 'data' / 'images'} without annotations",)
    assert found.problems == [
        f"{tmp_path / 'data' / 'x.json'}: {name}: not a file below {tmp_path / 'data' / 'images'}"
        for name in ("b.jpg", "../secret.jpg")
    ]


def test_masks_are_drawn_once_and_anew_when_the_file_changes(tmp_path):
    root = written(tmp_path / "data", {"x.json": content((0, 2, [SQUARE]))})
    first = find(root).samples[0].mask
    written_at = first.stat().st_mtime_ns
    assert first.is_relative_to(cache())
    assert find(root).samples[0].mask.stat().st_mtime_ns == written_at
    written(root, {"x.json": content((0, 2, [SQUARE]), (0, 7, [[50, 50, 70, 50, 60, 70]]))})
    assert set(np.unique(masks(find(root))["a"])) == {0, 1, 2}


@pytest.mark.parametrize("harm", ["a mask", "zeros", "no bytes", "the index", "half of the index"])
def test_damaged_masks_are_drawn_again(tmp_path, harm):
    root = written(tmp_path, {"x.json": content((0, 2, [SQUARE]))})
    mask = find(root).samples[0].mask
    index = mask.with_name("index.json")
    if harm == "half of the index":
        index.write_bytes(index.read_bytes()[:40])
    elif harm == "zeros":
        mask.write_bytes(bytes(mask.stat().st_size))
    elif harm == "no bytes":
        mask.write_bytes(b"")
    else:
        (mask if harm == "a mask" else index).unlink()
    assert masks(find(root))["a"].sum() == 20 * 30


def test_an_image_that_is_listed_twice_is_a_problem(tmp_path):
    found = find(written(tmp_path, {"x.json": content(images=["a.jpg", "a.jpg"])}))
    assert found.problems == [f"{tmp_path / 'x.json'}: a.jpg: is listed more than once"]


BROKEN = {
    "no segmentation": ({"image_id": 0, "category_id": 2, "bbox": [1, 1, 5, 5]}, "has no segmentation"),
    "an empty one": ((0, 2, []), "has no segmentation"),
    "half a point": ((0, 2, [[1, 2, 3, 4, 5, 6, 7]]), "must be a list of x, y"),
    "words": ((0, 2, [["a"] * 6]), "must be a list of x, y"),
    "points in pairs": ((0, 2, [[[1, 2], [3, 4], [5, 6]]]), "must be a list of x, y"),
    "far away": ((0, 2, [[0, 0, 1e30, 0, 0, 1e30]]), "must be a list of x, y"),
    "runs has another size": ((0, 2, {"size": [9, 9], "counts": [81]}), "another size than its image, 120x90"),
    "runs that are too short": ((0, 2, {"size": [90, 120], "counts": [5, 5]}), "another size"),
    "text that is too short": ((0, 2, {"size": [90, 120], "counts": "zzzz"}), "run-length encoding"),
    "runs below zero": ((0, 2, {"size": [90, 120], "counts": [-5, 10805]}), "must be numbers, or their text"),
    "no runs": ((0, 2, {"size": [90, 120]}), "must be numbers, or their text"),
    "another image": ((5, 2, [SQUARE]), "to image 5, which is not listed"),
    "another category": ((0, 9, [SQUARE]), "the category 9, which is not listed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_an_annotation_is_a_problem(tmp_path, case):
    annotation, message = BROKEN[case]
    images = ("a.jpg", "b.jpg")
    file = content(annotation, (1, 2, [SQUARE]), images=images)
    found = find(written(tmp_path, {"x.json": file}, ["images/a.jpg", "images/b.jpg"]))
    (problem,) = found.problems
    assert problem.startswith(f"{tmp_path / 'x.json'}: ")
    assert message in problem
    assert masks(found)["b"].sum() == 20 * 30


@pytest.mark.parametrize("height", [0, -90, 10**9])
def test_an_image_of_no_size_is_a_problem(tmp_path, height):
    file = content()
    file["images"][0]["height"] = height
    (problem,) = find(written(tmp_path, {"x.json": file})).problems
    assert "a.jpg: " in problem
    assert "not a size of an image" in problem


def test_an_outline_of_two_points_has_no_area(tmp_path):
    assert mask_of(tmp_path, (0, 2, [[1, 1, 30, 30], SQUARE]), (0, 7, [[1, 1, 50, 50]])).sum() == 20 * 30


MALFORMED = {
    "{": "not valid JSON",
    "[]": "must be an object",
    "{}": "lacks images, annotations, categories",
    '{"images": [{"id": 1}], "annotations": [], "categories": []}': r"images\[0\]: lacks file_name, height, width",
    '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}': "lists no images",
    '{"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1}], "annotations": [], "categories": []}': (
        "lists no categories"
    ),
    '{"images": 3, "annotations": [], "categories": []}': "images: must be a list",
    '{"images": [{"id": 1, "file_name": "a", "height": "1", "width": 1}], "annotations": [], "categories": []}': (
        r"images\[0\]\.height: must be a whole number"
    ),
    json.dumps(content(categories=[{"id": 1, "name": "x"}, {"id": 1, "name": "y"}])): "two of its categories",
    json.dumps(content(categories=[{"id": 1, "name": "x"}, {"id": 2, "name": "x"}])): "two categories are called x",
}


@pytest.mark.parametrize("text", MALFORMED, ids=list(MALFORMED.values()))
def test_a_file_that_is_no_coco_is_one_line(tmp_path, text):
    with pytest.raises(DataError, match=MALFORMED[text]) as refused:
        find(written(tmp_path, {"x.json": text}))
    assert str(refused.value).startswith(str(tmp_path / "x.json"))
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 3


def test_parts_with_other_categories_are_refused(tmp_path):
    files = {f"annotations/{part}.json": content(images=[f"{part}.jpg"]) for part in ("train", "val")}
    files["annotations/val.json"]["categories"] = CATEGORIES[:1]
    with pytest.raises(DataError, match=r"val\.json: its categories differ from those in .*train\.json"):
        find(written(tmp_path, files, ["images/train.jpg", "images/val.jpg"]))


@pytest.mark.parametrize("files", [("annotations/a.json", "annotations/b.json"), ("annotations/train.json", "c.json")])
@pytest.mark.parametrize("folder", ["my data", "a,b", "Ann's"])
def test_several_files_are_refused_with_the_line_for_each(tmp_path, files, folder):
    root = written(tmp_path / folder, {name: content((0, 2, [SQUARE])) for name in files})
    with pytest.raises(ConfigError, match="several annotation files") as refused:
        find(root)
    lines = str(refused.value).rpartition("Type ")[2].split(" or ")
    assert len(lines) == 2
    for line in lines:
        data = configuration(["data=coco", *shlex.split(line)]).data
        assert [s.key for s in source("coco").find(data).samples] == ["a"]


def test_missing_annotations_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.images=DIR data\.annotations=FILE\.json"):
        find(written(tmp_path, {}))
    with pytest.raises(ConfigError, match=r"data\.annotations is not given"):
        find(images=str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        find(images=str(tmp_path), annotations=str(tmp_path / "nope.json"))


def test_without_pycocotools_the_line_to_install_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[coco\]'"):
        find(written(tmp_path, {"a.json": content((0, 2, [SQUARE]))}))


def test_its_group_says_that_crowds_are_void_and_that_nothing_is_cut():
    data = configuration(["data=coco"]).data
    assert (data.ignore_index, data.threshold) == (255, None)


def test_images_of_one_name_in_two_parts_have_a_key_each(tmp_path):
    parts = ("train", "valid")
    root = written(
        tmp_path,
        {f"{p}/_annotations.coco.json": content((0, 2, [SQUARE])) for p in parts},
        [f"{p}/a.jpg" for p in parts],
    )
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(root / "valid" / "a.jpg")
    dataset = open_dataset(configuration(["data=coco", f"data.root={root}"]).data, workers=1)
    assert [(s.key, s.split) for s in dataset.samples] == [("train/a", "train"), ("val/a", "val")]


MANY = [{"id": n, "name": f"c{n}"} for n in range(1, 301)]


@pytest.mark.parametrize("options", [{}, {"classes": {"x": 3}}, {"classes": [f"c{n}" for n in range(1, 301)]}])
def test_more_categories_than_can_be_told_apart_are_refused(tmp_path, options):
    root = written(tmp_path, {"x.json": content((0, 300, [SQUARE]), categories=MANY)})
    with pytest.raises(ConfigError, match=r"300 categories; at most 252 .* 'data\.classes=\[NAME,NAME") as refused:
        find(root, **options)
    assert "\n" not in str(refused.value)


def test_of_too_many_categories_those_that_are_named_are_drawn(tmp_path):
    names = ["c300", "c255"]
    over = [30, 20, 50, 20, 50, 40, 30, 40]
    annotations = [(0, 300, [SQUARE]), (0, 7, [[12, 12, 15, 12, 15, 15, 12, 15]]), (0, 255, [over])]
    root = written(tmp_path, {"x.json": content(*annotations, categories=MANY)}, ["images/a.jpg"])
    found = find(root, classes=names)
    assert found.classes == {"background": 0, "c255": 1, "c300": 2}
    expected = np.zeros(SIZE, np.uint8)
    expected[10:30, 10:40] = 2
    expected[20:40, 30:50] = 1  # smaller, above
    expected[12:15, 12:15] = 0  # another object above
    assert np.array_equal(masks(found)["a"], expected)
    with pytest.raises(ConfigError, match=r"c3000 is not a category of .*x\.json\. Closest: c300\."):
        find(root, classes=["c3000"])


def test_252_categories_and_void_are_told_apart(tmp_path):
    crowd = {"image_id": 0, "category_id": 1, "segmentation": [[0, 0, 120, 0, 120, 90, 0, 90]], "iscrowd": 1}
    squares = [(n // 126, 1 + n, [_square(n % 126)]) for n in range(252)]
    file = content(crowd, *squares, images=("a.png", "b.png"), categories=MANY[:252])
    written(tmp_path, {"x.json": file}, ["images/a.png", "images/b.png"])
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(tmp_path / "images" / "b.png")
    typed = configuration(["data=coco", f"data.root={tmp_path}", "data.split=[0.5,0.5]"])
    dataset = open_dataset(typed.data, workers=1)
    assert len(dataset.labels.names) == 253
    pixels = sum(np.array(dataset.counts(part)) for part in dataset.parts)
    assert pixels[1:].tolist() == [4] * 252 + [SIZE[0] * SIZE[1] - 126 * 4]


def _square(n):
    x, y = 4 * (n % 20), 4 * (n // 20)
    return [x, y, x + 2, y, x + 2, y + 2, x, y + 2]


def turned_photo(path, orientation, height=60, width=100):
    """A photo stored so, of which EXIF says how it is shown."""
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    exif = image.getexif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)


def of_photo(height, width, *outlines, names=("a.jpg",)):
    listed = [{"id": n, "file_name": name, "height": height, "width": width} for n, name in enumerate(names)]
    given = [{"image_id": n, "category_id": 2, "segmentation": [outline]} for n, outline in enumerate(outlines)]
    return json.dumps({"images": listed, "annotations": given, "categories": CATEGORIES})


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("listed", ["as shown", "as stored"])
def test_masks_lie_on_photos_as_these_are_shown(tmp_path, listed, suffix):
    """Orientation 6 is shown turned by 90 degrees clockwise: the stored top left is the shown top right."""
    turned_photo(tmp_path / "images" / f"a.{suffix}", 6)
    size = (100, 60) if listed == "as shown" else (60, 100)
    (tmp_path / "x.json").write_text(of_photo(*size, [0, 0, 20, 0, 20, 10, 0, 10], names=[f"a.{suffix}"]))
    expected = np.zeros((100, 60), np.uint8)
    if listed == "as shown":
        expected[:10, :20] = 1
    else:
        expected[:20, 50:] = 1
    found = find(tmp_path)
    assert np.array_equal(masks(found)["a"], expected)
    note = ("x.json: 1 mask rotated in the same way as EXIF rotates the photo",)
    assert found.notes == (() if listed == "as shown" else note)
    assert read_image(found.samples[0].image).shape[:2] == read_mask(found.samples[0].mask).index.shape


@pytest.mark.parametrize("stored", [True, False])
def test_photos_turned_by_180_degrees_follow_the_others_of_their_file(tmp_path, stored):
    turned_photo(tmp_path / "images" / "a.jpg", 3)
    turned_photo(tmp_path / "images" / "b.jpg", 6, *((60, 100) if stored else (100, 60)))
    corner = [0, 0, 20, 0, 20, 10, 0, 10]
    (tmp_path / "x.json").write_text(of_photo(60, 100, corner, corner, names=["a.jpg", "b.jpg"]))
    expected = np.zeros((60, 100), np.uint8)
    expected[(slice(50, 60), slice(80, 100)) if stored else (slice(10), slice(20))] = 1
    found = find(tmp_path)
    assert np.array_equal(masks(found)["a"], expected)
    notes = {
        True: "x.json: 2 masks rotated in the same way as EXIF rotates the photo",
        False: "x.json: of 1 image that EXIF rotates, the size fits with and without the rotation; "
        "the outlines are used for the rotated image",
    }
    assert found.notes == (notes[stored],)


def test_a_size_that_is_not_the_images_names_the_file_of_annotations(tmp_path):
    written(tmp_path, {"x.json": of_photo(32, 64, SQUARE)})
    for options in ({}, {"mask_resize": "nearest"}):
        (problem,) = find(tmp_path, **options).problems
        assert problem == f"{tmp_path / 'x.json'}: a.jpg: listed as 64x32 pixels, the image has 120x90"
    (tmp_path / "x.json").write_text(of_photo(45, 60, [10, 10, 20, 10, 20, 20, 10, 20]))
    (problem,) = find(tmp_path).problems
    assert problem.endswith("has 120x90. Resize the masks with data.mask_resize=nearest")
    assert find(tmp_path, mask_resize="nearest").problems == []


def test_masks_are_drawn_anew_when_a_photo_changes(tmp_path):
    (tmp_path / "x.json").write_text(of_photo(60, 100, [0, 0, 20, 0, 20, 10, 0, 10]))
    turned_photo(tmp_path / "images" / "a.jpg", 1)
    assert find(tmp_path).problems == []
    turned_photo(tmp_path / "images" / "a.jpg", 1, 70, 70)
    (problem,) = find(tmp_path).problems
    assert "the image has 70x70" in problem
