"""What folders' names say: every layout that people share is found, or answered with lines that work when typed."""

import shlex

import numpy as np
import pytest
from PIL import Image

from segsweep.compose import configuration
from segsweep.config.schema import DataConfig
from segsweep.data.sources import folder
from segsweep.errors import ConfigError, DataError
from segsweep.paths import override


def drawn(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / name)
    return root


def found(root, **options):
    return folder.find(DataConfig(root=str(root), **options))


def pairs(found, root):
    """Image, mask and split of each pair."""
    return {(s.image.relative_to(root).as_posix(), s.mask.relative_to(root).as_posix(), s.split) for s in found.samples}


def typed(message):
    """What is found with each of the lines that an error says to type."""
    lines = [line.partition(" (")[0].removesuffix(".") for line in message.rpartition("Type ")[2].split(" or ")]
    return [folder.find(configuration(["data=folder", *shlex.split(line)]).data) for line in lines]


LAYOUTS = {
    "split folders first": (
        "train/images/a.jpg train/masks/a.png validation/images/b.jpg validation/masks/b.png test/images/c.jpg "
        "test/masks/c.png",
        [
            ("train/images/a.jpg", "train/masks/a.png", "train"),
            ("validation/images/b.jpg", "validation/masks/b.png", "val"),
            ("test/images/c.jpg", "test/masks/c.png", "test"),
        ],
    ),
    "split folders inside": (
        "images/train/a.jpg labels/train/a.png images/val/b.jpg labels/val/b.png",
        [
            ("images/train/a.jpg", "labels/train/a.png", "train"),
            ("images/val/b.jpg", "labels/val/b.png", "val"),
        ],
    ),
    "masks beside the parts": (
        "train/a.tif train_annot/a_mask.tif val/b.tif val_annot/b_mask.tif",
        [("train/a.tif", "train_annot/a_mask.tif", "train"), ("val/b.tif", "val_annot/b_mask.tif", "val")],
    ),
    "without a sign between": (
        "train/a.png trainannot/a.png test/b.png testannot/b.png",
        [("train/a.png", "trainannot/a.png", "train"), ("test/b.png", "testannot/b.png", "test")],
    ),
    "both are beside": (
        "train_images/a.jpg train_masks/a.png val_images/b.jpg val_masks/b.png",
        [("train_images/a.jpg", "train_masks/a.png", "train"), ("val_images/b.jpg", "val_masks/b.png", "val")],
    ),
    "the part comes last": (
        "images_train/a.jpg annotations_train/a.png images_test/b.jpg annotations_test/b.png",
        [
            ("images_train/a.jpg", "annotations_train/a.png", "train"),
            ("images_test/b.jpg", "annotations_test/b.png", "test"),
        ],
    ),
    "of ADE20K's kind": (
        "images/training/a.jpg annotations/training/a.png images/validation/b.jpg annotations/validation/b.png",
        [
            ("images/training/a.jpg", "annotations/training/a.png", "train"),
            ("images/validation/b.jpg", "annotations/validation/b.png", "val"),
        ],
    ),
    "masks called as their images and a suffix": (
        "img/a.jpg masks/a.jpg.png img/b.png masks/b.jpg.png",
        [("img/a.jpg", "masks/a.jpg.png", None), ("img/b.png", "masks/b.jpg.png", None)],
    ),
    "short names": (
        "train/img/a.jpg train/mask/a.png",
        [("train/img/a.jpg", "train/mask/a.png", "train")],
    ),
    "capitals": (
        "Train/Images/a.jpg Train/GT/a.png",
        [("Train/Images/a.jpg", "Train/GT/a.png", "train")],
    ),
    "of VOC's kind": (
        "JPEGImages/a.jpg SegmentationClass/a.png",
        [("JPEGImages/a.jpg", "SegmentationClass/a.png", None)],
    ),
    "a folder around it": (
        "data/set/train/images/a.jpg data/set/train/masks/a.png",
        [("data/set/train/images/a.jpg", "data/set/train/masks/a.png", "train")],
    ),
    "images above their masks": (
        "a.jpg b.jpg masks/a.png masks/b.png",
        [("a.jpg", "masks/a.png", None), ("b.jpg", "masks/b.png", None)],
    ),
    "a folder for each class": (
        "crack/images/1.jpg crack/masks/1.png hole/images/1.jpg hole/masks/1.png",
        [
            ("crack/images/1.jpg", "crack/masks/1.png", None),
            ("hole/images/1.jpg", "hole/masks/1.png", None),
        ],
    ),
    "one folder, an ending": (
        "1.jpg 1_mask.png 2.jpg 2_mask.png",
        [("1.jpg", "1_mask.png", None), ("2.jpg", "2_mask.png", None)],
    ),
    "one folder of each part, an ending": (
        "train/x.jpg train/x_mask.png valid/y.jpg valid/y_mask.png",
        [("train/x.jpg", "train/x_mask.png", "train"), ("valid/y.jpg", "valid/y_mask.png", "val")],
    ),
    "one folder, two formats": (
        "1.jpg 1.png 2.JPEG 2.tif",
        [("1.jpg", "1.png", None), ("2.JPEG", "2.tif", None)],
    ),
    "a folder of pairs beside a pair": (
        "1.jpg 1_mask.png more/2.jpg more/2_mask.png",
        [("1.jpg", "1_mask.png", None), ("more/2.jpg", "more/2_mask.png", None)],
    ),
    "two formats of stems that end as masks' do": (
        "a.jpg a.png a_label.jpg a_label.png",
        [("a.jpg", "a.png", None), ("a_label.jpg", "a_label.png", None)],
    ),
    "masks called after the images' folder": (
        "images/a.jpg images_mask/a.png",
        [("images/a.jpg", "images_mask/a.png", None)],
    ),
    "a folder of both for each class": (
        "MT_Break/Imgs/1.jpg MT_Break/Imgs/1.png MT_Crack/Imgs/1.jpg MT_Crack/Imgs/1.png",
        [
            ("MT_Break/Imgs/1.jpg", "MT_Break/Imgs/1.png", None),
            ("MT_Crack/Imgs/1.jpg", "MT_Crack/Imgs/1.png", None),
        ],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_found_and_told(tmp_path, layout):
    files, expected = LAYOUTS[layout]
    drawn(tmp_path, *files.split())
    result = found(tmp_path)
    assert result.problems == []
    assert pairs(result, tmp_path) == set(expected)
    image, mask, _ = min(expected, key=lambda pair: [s.image for s in result.samples].index(tmp_path / pair[0]))
    assert any(image.split("/")[-1] in note and mask.split("/")[-1] in note for note in result.notes), result.notes


def test_plain_folders_need_no_note(tmp_path):
    assert found(drawn(tmp_path, "images/a.jpg", "masks/a.png", "images/s/b.jpg", "masks/s/b.png")).notes == ()


@pytest.mark.parametrize(
    "ending", ["_mask", "-mask", ".mask", " mask", "_seg", "_gt", "_label", "_labels", "_annotation"]
)
@pytest.mark.parametrize("apart", [True, False])
def test_usual_endings_of_masks_are_found(tmp_path, ending, apart):
    images, masks = ("images/", "masks/") if apart else ("", "")
    drawn(tmp_path, *(f"{images}{stem}.png" for stem in "abc"), *(f"{masks}{stem}{ending}.png" for stem in "abc"))
    result = found(tmp_path)
    assert result.problems == []
    assert {(s.key, s.mask.stem) for s in result.samples} == {(stem, f"{stem}{ending}") for stem in "abc"}
    assert any(note.endswith(f"end in {ending}") for note in result.notes)


def test_keys_do_not_name_the_split_and_keep_other_folders(tmp_path):
    drawn(tmp_path, "train/images/s/a.jpg", "train/masks/s/a.png", "val/images/a.jpg", "val/masks/a.png")
    assert [(s.split, s.key) for s in found(tmp_path).samples] == [("train", "s/a"), ("val", "a")]


def test_a_folder_that_is_no_part_is_left_out_with_a_note(tmp_path):
    for part in ("train", "val"):
        drawn(tmp_path, f"{part}/a.tif", f"{part}_annot/a_mask.tif")
    drawn(tmp_path, "other/b.tif", "other_annot/b_mask.tif", "other/c.tif")
    result = found(tmp_path)
    assert (len(result.samples), result.problems) == (2, [])
    assert "left out: other/, 2 images: none of train, val" in result.notes


def test_folders_of_which_one_is_called_train_are_no_split(tmp_path):
    drawn(tmp_path, *(f"{kind}/{name}/1.png" for kind in ("images", "masks") for name in ("car", "bus", "train")))
    problems = found(tmp_path).problems
    assert [problem.partition(":")[0] for problem in problems] == [
        f"{tmp_path}/images/{n}/1.png" for n in ("bus", "car")
    ]
    assert all("lies next to the split folders train/" in problem for problem in problems)


def test_folders_whose_names_say_nothing_are_left_out_with_a_note(tmp_path):
    drawn(tmp_path, "images/a.jpg", "masks/a.png", "overlay/a.png", "outputs/images/z.png", "outputs/masks/z.png")
    result = found(tmp_path)
    assert pairs(result, tmp_path) == {("images/a.jpg", "masks/a.png", None)}
    assert [note.split(",")[0] for note in result.notes] == [
        f"left out: {tmp_path / name}/" for name in ("outputs", "overlay")
    ]


def test_a_loose_image_beside_the_folders_is_told(tmp_path):
    result = found(drawn(tmp_path, "images/a.jpg", "masks/a.png", "overview.png"))
    (problem,) = result.problems
    assert problem.startswith(f"{tmp_path / 'overview.png'}: ")
    assert "data.images=DIR data.masks=DIR" in problem


def test_a_test_folder_without_masks_is_left_out_with_a_note(tmp_path):
    drawn(tmp_path, "train/a.jpg", "train_masks/a.png", "test/b.jpg")
    result = found(tmp_path)
    assert pairs(result, tmp_path) == {("train/a.jpg", "train_masks/a.png", "train")}
    assert "left out: test/, which has no masks" in result.notes


@pytest.mark.parametrize(
    "layout", ["train/a.jpg train_masks/a.png val/b.jpg", "train/images/a.jpg train/masks/a.png val/b.jpg"]
)
def test_a_val_folder_without_masks_is_told(tmp_path, layout):
    (problem,) = found(drawn(tmp_path, *layout.split())).problems
    assert problem.startswith(f"{tmp_path / 'val' / 'b.jpg'}: ")


def test_a_part_without_images_is_refused(tmp_path):
    drawn(tmp_path, "train/images/a.jpg", "train/masks/a.png")
    (tmp_path / "val" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"val: no images in it"):
        found(tmp_path)


def test_links_to_folders_are_followed(tmp_path):
    drawn(tmp_path / "elsewhere", "images/a.jpg", "masks/a.png")
    (tmp_path / "root" / "train").mkdir(parents=True)
    for kind in ("images", "masks"):
        (tmp_path / "root" / "train" / kind).symlink_to(tmp_path / "elsewhere" / kind)
    (tmp_path / "root" / "train" / "images" / "round").symlink_to(tmp_path / "root")
    assert [(s.split, s.key) for s in found(tmp_path / "root").samples] == [("train", "a")]


TWO_WAYS = {
    "two folders of masks": (
        "images/a.jpg masks/a.png labels/a.png",
        [{("images/a.jpg", "masks/a.png", None)}, {("images/a.jpg", "labels/a.png", None)}],
    ),
    "two folders of images": (
        "images/a.jpg img/a.jpg masks/a.png",
        [{("images/a.jpg", "masks/a.png", None)}, {("img/a.jpg", "masks/a.png", None)}],
    ),
    "two folders of masks in train alone": (
        "train/images/a.jpg train/masks/a.png train/gt/a.png",
        [{("train/images/a.jpg", "train/masks/a.png", None)}, {("train/images/a.jpg", "train/gt/a.png", None)}],
    ),
    "two folders of masks in parts": (
        "train/img/a.jpg train/masks/a.png train/gt/a.png val/img/b.jpg val/masks/b.png val/gt/b.png",
        [
            {("train/img/a.jpg", f"train/{name}/a.png", "train"), ("val/img/b.jpg", f"val/{name}/b.png", "val")}
            for name in ("gt", "masks")
        ],
    ),
    "two folders of masks beside train alone": (
        "train/a.jpg train_masks/a.png train_labels/a.png",
        [{("train/a.jpg", "train_masks/a.png", None)}, {("train/a.jpg", "train_labels/a.png", None)}],
    ),
    "two folders of masks beside parts": (
        "train/a.jpg train_masks/a.png train_gt/a.png val/b.jpg val_masks/b.png val_gt/b.png",
        [
            {("train/a.jpg", f"train_{name}/a.png", "train"), ("val/b.jpg", f"val_{name}/b.png", "val")}
            for name in ("gt", "masks")
        ],
    ),
    "parts beside folders": (
        "images/a.jpg masks/a.png train/images/b.jpg train/masks/b.png",
        [{("images/a.jpg", "masks/a.png", None)}, {("train/images/b.jpg", "train/masks/b.png", "train")}],
    ),
    "two lossless formats": (
        "1.tif 1.png 2.tif 2.png",
        [{(f"{n}{a}", f"{n}{b}", None) for n in "12"} for a, b in ((".png", ".tif"), (".tif", ".png"))],
    ),
    "two endings": (
        "a.jpg a_mask.png a_label.png",
        [{("a.jpg", "a_label.png", None)}, {("a.jpg", "a_mask.png", None)}],
    ),
    "two endings in folders": (
        "images/a.jpg masks/a_mask.png masks/a_label.png",
        [{("images/a.jpg", "masks/a_label.png", None)}, {("images/a.jpg", "masks/a_mask.png", None)}],
    ),
}


@pytest.mark.parametrize("case", TWO_WAYS)
@pytest.mark.parametrize("name", ["data", "my data", "a,b", "Ann's", "Ann's data, new"])
def test_two_answers_are_refused_with_the_line_for_each(tmp_path, case, name):
    files, expected = TWO_WAYS[case]
    root = drawn(tmp_path / name, *files.split())
    with pytest.raises(ConfigError) as refused:
        found(root)
    message = str(refused.value)
    if case == "two endings in folders":  # the root is the user's own already
        message = message.replace("data.mask_suffix=", f"{override('data.root', root)} data.mask_suffix=")
    answers = typed(message)
    assert all(answer.problems == [] for answer in answers)
    answered = [pairs(answer, root) for answer in answers]
    assert len(answered) == len(expected)
    assert all(way in answered for way in expected)


@pytest.mark.parametrize("files", ["a.jpg a_mask.png b.jpg", "a.jpg a.png b.jpg"])
def test_files_of_one_folder_that_are_in_no_pair_are_told_with_the_line_that_lists_them(tmp_path, files):
    drawn(tmp_path, *files.split())
    with pytest.raises(ConfigError, match="some files are in no pair") as refused:
        found(tmp_path)
    (answer,) = typed(str(refused.value))
    (problem,) = answer.problems
    assert problem.startswith(f"{tmp_path / 'b.jpg'}: no mask {tmp_path / 'b'}")


OTHER_NAMES = {
    "prefixes": (
        "img_1.png mask_1.png img_2.png mask_2.png",
        [{(f"img_{n}.png", f"mask_{n}.png", None) for n in "12"}],
    ),
    "prefixes without a sign between": (
        "img1.png gt1.png img2.png gt2.png",
        [{(f"img{n}.png", f"gt{n}.png", None) for n in "12"}],
    ),
    "prefixes of words": (
        "image_cat.png label_cat.png image_dog.png label_dog.png",
        [{(f"image_{n}.png", f"label_{n}.png", None) for n in ("cat", "dog")}],
    ),
    "prefixes in folders": (
        "images/img_1.png masks/mask_1.png images/img_2.png masks/mask_2.png",
        [{(f"images/img_{n}.png", f"masks/mask_{n}.png", None) for n in "12"}],
    ),
    "masks alone have a prefix": (
        "images/1.png masks/mask_1.png images/2.png masks/mask_2.png",
        [{(f"images/{n}.png", f"masks/mask_{n}.png", None) for n in "12"}],
    ),
    "prefixes in parts": (
        "train/images/img_1.png train/masks/mask_1.png val/images/img_1.png val/masks/mask_1.png",
        [{(f"{part}/images/img_1.png", f"{part}/masks/mask_1.png", part) for part in ("train", "val")}],
    ),
    "DRIVE, one folder": (
        "21_training.tif 21_manual1.gif 22_training.tif 22_manual1.gif",
        [
            {(f"{n}_training.tif", f"{n}_manual1.gif", None) for n in (21, 22)},
            {(f"{n}_manual1.gif", f"{n}_training.tif", None) for n in (21, 22)},
        ],
    ),
    "DRIVE, folders of usual names": (
        "images/21_training.tif masks/21_manual1.gif images/22_training.tif masks/22_manual1.gif",
        [{(f"images/{n}_training.tif", f"masks/{n}_manual1.gif", None) for n in (21, 22)}],
    ),
    "DRIVE, its own folders": (
        "images/21_training.tif 1st_manual/21_manual1.gif images/22_training.tif 1st_manual/22_manual1.gif",
        [{(f"images/{n}_training.tif", f"1st_manual/{n}_manual1.gif", None) for n in (21, 22)}],
    ),
    "folders without a word": (
        "left/a.jpg left/b.jpg right/a_x.png right/b_x.png",
        [{(f"left/{n}.jpg", f"right/{n}_x.png", None) for n in "ab"}],
    ),
}


@pytest.mark.parametrize("case", OTHER_NAMES)
@pytest.mark.parametrize("name", ["data", "Ann's data, new"])
def test_names_that_patterns_tell_apart_are_refused_with_the_patterns(tmp_path, case, name):
    files, expected = OTHER_NAMES[case]
    root = drawn(tmp_path / name, *files.split())
    with pytest.raises(ConfigError) as refused:
        found(root)
    answers = typed(str(refused.value))
    assert [answer.problems for answer in answers] == [[]] * len(expected)
    answered = [pairs(answer, root) for answer in answers]
    assert all(way in answered for way in expected)


def test_the_same_folder_given_twice_is_refused_with_the_patterns(tmp_path):
    drawn(tmp_path, *(f"{name}_{n}.png" for name in ("img", "mask") for n in "12"))
    with pytest.raises(ConfigError) as refused:
        folder.find(DataConfig(images=str(tmp_path), masks=str(tmp_path)))
    (answer,) = typed(str(refused.value))
    assert pairs(answer, tmp_path) == {(f"img_{n}.png", f"mask_{n}.png", None) for n in "12"}


@pytest.mark.parametrize("files", ["a.jpg b.jpg", "left/a.jpg right/a_x.png", "img_1.png mask_1.png img_2.png"])
def test_images_of_which_nothing_says_that_they_are_masks_are_refused(tmp_path, files):
    with pytest.raises(ConfigError, match=r"no name says which .* Type data\.images=DIR data\.masks=DIR"):
        found(drawn(tmp_path, *files.split()))


def test_a_folder_without_any_image_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no images in it") as refused:
        found(tmp_path)
    assert str(refused.value).endswith("Give the right data.root=DIR.")
    with pytest.raises(ConfigError, match=r"no such folder.*data\.root=DIR"):
        found(tmp_path / "nope")


def test_folders_are_classes(tmp_path):
    drawn(
        tmp_path, *(f"{name}/{n}.{end}" for name in ("crack", "hole", "Break") for n in "12" for end in ("jpg", "png"))
    )
    result = found(tmp_path, class_from="folder")
    assert result.problems == []
    assert result.classes == {"background": 0, "Break": 1, "crack": 2, "hole": 3}
    assert {(s.key, s.foreground) for s in result.samples} == {
        (f"{name}/{n}", value) for name, value in (("Break", 1), ("crack", 2), ("hole", 3)) for n in "12"
    }
    assert result.notes[-1] == "the folder of a mask is the class of its foreground: Break, crack, hole"


@pytest.mark.parametrize(
    "files",
    [
        "images/crack/1.jpg masks/crack/1.png images/hole/1.jpg masks/hole/1.png",
        "images/x/crack/1.jpg masks/x/crack/1.png images/x/hole/1.jpg masks/x/hole/1.png",
        "train/images/crack/1.jpg train/masks/crack/1.png val/images/hole/1.jpg val/masks/hole/1.png",
        "crack/images/1.jpg crack/masks/1.png hole/old/images/1.jpg hole/old/masks/1.png",
    ],
)
def test_the_class_is_the_first_folder_that_not_all_share(tmp_path, files):
    result = found(drawn(tmp_path, *files.split()), class_from="folder")
    assert result.classes == {"background": 0, "crack": 1, "hole": 2}
    assert {s.foreground: "crack" in str(s.image) for s in result.samples} == {1: True, 2: False}


def test_the_first_star_names_the_class(tmp_path):
    drawn(tmp_path, "set/crack/Imgs/1.jpg", "set/crack/GT/1.png", "set/hole/Imgs/1.jpg", "set/hole/GT/1.png")
    result = found(tmp_path, images="set/*/Imgs/*.jpg", masks="set/*/GT/*.png", class_from="folder")
    assert [(s.key, s.foreground) for s in result.samples] == [("crack/1", 1), ("hole/1", 2)]


def test_one_folder_is_one_class(tmp_path):
    result = found(drawn(tmp_path, "images/crack/1.jpg", "masks/crack/1.png"), class_from="folder")
    assert (result.classes, result.samples[0].foreground) == ({"background": 0, "crack": 1}, 1)


@pytest.mark.parametrize("classes", [("crack", "hole"), ("crack",)])
def test_folders_of_classes_may_hold_the_parts_of_a_split(tmp_path, classes):
    files = [
        f"{kind}/{name}/{part}/{part}.png"
        for name in classes
        for part in ("train", "valid", "test")
        for kind in ("images", "masks")
    ]
    result = found(drawn(tmp_path, *files), class_from="folder")
    assert result.classes == {"background": 0} | {name: n for n, name in enumerate(classes, start=1)}
    assert {(s.key, s.foreground, s.split) for s in result.samples} == {
        (f"{name}/{part}/{part}", n, split)
        for n, name in enumerate(classes, start=1)
        for part, split in (("train", "train"), ("valid", "val"), ("test", "test"))
    }


def test_a_split_that_a_table_gives_counts_and_not_the_folders(tmp_path):
    names = [f"{name}/{part}" for name in "ab" for part in ("train", "val")]
    drawn(tmp_path, *(f"{kind}/{name}/1.png" for name in names for kind in ("images", "masks")))
    rows = [f"images/{name}/1.png,masks/{name}/1.png,{'val' if 'train' in name else 'train'}" for name in names]
    (tmp_path / "x.csv").write_text("\n".join(["image,mask,split", *rows]))
    result = folder.find(DataConfig(table=str(tmp_path / "x.csv"), class_from="folder"))
    assert [(s.foreground, s.split) for s in result.samples] == [(1, "val"), (1, "train"), (2, "val"), (2, "train")]


def test_parts_inside_of_the_classes_may_lie_before_images_and_masks(tmp_path):
    drawn(
        tmp_path,
        *(f"{name}/{part}/{kind}/1.png" for name in "ab" for part in ("train", "val") for kind in ("images", "masks")),
    )
    result = found(tmp_path, class_from="folder")
    assert [(s.key, s.foreground, s.split) for s in result.samples] == [
        (f"{name}/{part}/1", n, part) for n, name in enumerate("ab", start=1) for part in ("train", "val")
    ]


@pytest.mark.parametrize("place", ["{kind}/{name}/1.png", "{name}/{kind}/1.png"])
def test_a_class_called_train_is_told_with_what_works(tmp_path, place):
    drawn(tmp_path, *(place.format(kind=k, name=n) for k in ("images", "masks") for n in ("car", "train")))
    assert found(tmp_path, class_from="folder").problems[0] == (
        "a folder named train is read as the training split, next to other folders. If it is a class, rename it, or "
        "list the pairs: data.table=FILE.csv"
    )
    rows = [f"{place.format(kind='images', name=n)},{place.format(kind='masks', name=n)}" for n in ("car", "train")]
    (tmp_path / "x.csv").write_text("\n".join(["image,mask", *rows]))
    result = folder.find(DataConfig(table=str(tmp_path / "x.csv"), class_from="folder"))
    assert (result.problems, result.classes) == ([], {"background": 0, "car": 1, "train": 2})
    assert [(s.foreground, s.split) for s in result.samples] == [(1, None), (2, None)]


def test_images_without_a_folder_of_a_class_are_told(tmp_path):
    drawn(tmp_path, "images/crack/1.jpg", "masks/crack/1.png", "images/2.jpg", "masks/2.png")
    result = found(tmp_path, class_from="folder")
    (problem,) = result.problems
    assert problem.startswith(f"{tmp_path / 'images' / '2.jpg'}: is in no folder")
    assert [s.foreground for s in result.samples] == [1]


def test_a_folder_called_background_is_refused(tmp_path):
    drawn(tmp_path, *(f"{kind}/{name}/1.png" for kind in ("images", "masks") for name in ("background", "crack")))
    with pytest.raises(ConfigError, match="named background"):
        found(tmp_path, class_from="folder")


def test_real_sets_are_found_as_they_are_shared(real_data):
    numbers = {
        "kvasir": (800, 100, 100),
        "micronet_original": (4, 4, 4),
        "micronet/super1": (10, 4, 4),
        "micronet/super2": (4, 4, 4),
        "micronet/super3": (1, 4, 4),
        "micronet/super4": (4, 4, 5),
        "micronet/ebc2": (4, 3, 3),
    }
    for name, expected in numbers.items():
        if not (real_data / name).is_dir():
            pytest.skip(f"no {name} in {real_data}")
        result = found(real_data / name)
        assert result.problems == []
        assert tuple(sum(s.split == part for s in result.samples) for part in ("train", "val", "test")) == expected
        left = [note for note in result.notes if note.startswith("left out: different_test/, 5 images")]
        assert len(left) == (name in ("micronet_original", "micronet/super2", "micronet/super3"))


def any_layout(rng):
    """Images, masks and parts in a layout at random: the image, the mask and the split of each pair."""
    images = str(rng.choice(["images", "image", "Imgs", "img"]))
    masks = str(rng.choice(["masks", "mask", "labels", "GT", "annotations", "annot"]))
    ending = str(rng.choice(["", "_mask", "-label", ".seg", "_GT"]))
    suffixes = [str(s) for s in rng.choice([".png", ".tif", ".bmp"], 2)]
    if rng.random() < 0.5:
        suffixes[0] = ".jpg"
    sub = str(rng.choice(["", "s/", "left/deep/"]))
    ways = {
        "beside": (f"{images}/", f"{masks}/"),
        "first": (f"{{}}/{images}/", f"{{}}/{masks}/"),
        "inside": (f"{images}/{{}}/", f"{masks}/{{}}/"),
        "annot": ("{}/", f"{{}}{rng.choice(['_', '-', ''])}{masks}/"),
        "both": (f"{{}}_{images}/", f"{{}}_{masks}/"),
        "one": ("", ""),
        "one of each part": ("{}/", "{}/"),
    }
    way = str(rng.choice(list(ways)))
    parts = {"train": "train", str(rng.choice(["val", "valid", "validation"])): "val"}
    if rng.random() < 0.5:
        parts["test"] = "test"
    if way.startswith("one") and not ending and (suffixes[0] != ".jpg" or suffixes[1] == ".jpg"):
        ending = "_mask"
    expected = set()
    for name, part in parts.items() if "{}" in ways[way][0] else [("", None)]:
        for n in range(rng.integers(1, 4)):
            above = [place.format(name) + sub for place in ways[way]]
            expected.add((f"{above[0]}{n}{suffixes[0]}", f"{above[1]}{n}{ending}{suffixes[1]}", part))
    return expected


@pytest.mark.parametrize("seed", range(60))
def test_any_mixture_of_names_is_found(tmp_path, seed):
    expected = any_layout(np.random.default_rng(seed))
    for image, mask, _ in expected:
        for name in (image, mask):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    result = found(tmp_path)
    assert result.problems == []
    assert pairs(result, tmp_path) == expected


def test_a_folder_one_too_high_is_refused_with_the_line_to_type(tmp_path):
    drawn(
        tmp_path,
        *(f"a/{part}/{kind}/1.png" for part in ("train", "val") for kind in ("images", "masks")),
        *(f"b/{kind}/{n}.png" for n in range(2) for kind in ("images", "masks")),
    )
    with pytest.raises(DataError, match=rf"a/ has its own split \(train/\).*Type data\.root={tmp_path}/a$"):
        found(tmp_path)


def test_a_maze_of_links_is_refused_soon(tmp_path):
    """Twelve folders that link to each other have more paths than anybody lists."""
    drawn(tmp_path, "images/a.jpg", "masks/a.png")
    folders = [tmp_path / "images" / f"{i}" for i in range(12)]
    for one in folders:
        one.mkdir()
    for one in folders:
        for other in folders:
            if other != one:
                (one / other.name).symlink_to(other)
    with pytest.raises(ConfigError, match="links lead to this folder by more than 100 paths"):
        found(tmp_path)
