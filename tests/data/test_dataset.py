"""From folders to a data set that can be trained on, and all that is wrong told at once."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from segsweep.config.schema import DataConfig
from segsweep.data import scan
from segsweep.data.dataset import open_dataset
from segsweep.data.labels import VOID
from segsweep.data.split import apart, read_split
from segsweep.data.summary import table
from segsweep.errors import ConfigError, DataError

BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)
SIZE = (10, 12)


def saved(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **how)
    return path


def noise(seed, shape=(*SIZE, 3)):
    return np.random.default_rng([7, seed]).integers(0, 256, shape).astype(np.uint8)


def mask_of(seed, values=(0, 1), dtype=np.uint8):
    """A mask that holds every one of the values, numbers or colours."""
    places = np.random.default_rng([8, seed]).permutation(np.arange(np.prod(SIZE)) % len(values))
    return np.array(values, dtype)[places].reshape(*SIZE, *np.shape(values)[1:])


def written(root, masks, part="", suffix="png", first=0):
    """Images of noise, no two the same, and these masks; returns the root."""
    for i, mask in enumerate(masks, start=first):
        saved(root / "images" / part / f"{i:03d}.png", noise(i))
        saved(root / "masks" / part / f"{i:03d}.{suffix}", mask)
    return root


def plain(root, n=10, values=(0, 1), **more):
    return written(root, [mask_of(i, values) for i in range(n)], **more)


def opened(root, name="folder", **options):
    return open_dataset(DataConfig(name=name, root=str(root), **options), workers=2)


def refusal(root, kind=DataError, **options):
    with pytest.raises(kind) as refused:
        opened(root, **options)
    return str(refused.value)


def as_classes(dataset, index):
    """A sample's class indices, VOID where they do not count."""
    return dataset.labels.table[dataset.store.mask(index).numpy()]


def same_as_files(dataset, meaning):
    """Every mask, read by Pillow alone, has the classes that `meaning` gives its values or colours."""
    for i, sample in enumerate(dataset.samples):
        with Image.open(sample.mask) as image:
            pixels = np.asarray(image)
        flat = pixels.reshape(-1, 3).tolist() if pixels.ndim == 3 else pixels.ravel().tolist()
        coloured = any(isinstance(value, tuple) for value in meaning)
        values = (tuple(v) if isinstance(v, list) else (v, v, v) if coloured else v for v in flat)
        assert as_classes(dataset, i).ravel().tolist() == [meaning[value] for value in values]
    return True


# What comes out


def test_a_folder_becomes_a_data_set(tmp_path):
    dataset = opened(plain(tmp_path, 20))
    assert dataset.labels.names == ("background", "foreground")
    assert list(dataset.parts) == ["train", "val"]
    assert sorted(dataset.parts["train"] + dataset.parts["val"]) == list(range(20))
    assert same_as_files(dataset, {0: 0, 1: 1})
    assert dataset.warnings() == []
    assert dataset.copies == []


@pytest.mark.parametrize("values", [(0, 7), (0, 255), (0, 128)])
def test_zero_and_any_other_value_are_background_and_foreground(tmp_path, values):
    assert same_as_files(opened(plain(tmp_path, values=values)), {0: 0, values[1]: 1})


def test_pixels_of_each_class_are_counted_for_each_part(tmp_path):
    dataset = opened(plain(tmp_path, 12, (0, 1, 2, 255)), classes=["a", "b", "c"])
    for part, indices in dataset.parts.items():
        pixels = np.concatenate([as_classes(dataset, i).ravel() for i in indices])
        assert dataset.counts(part) == [int((pixels == index).sum()) for index in (0, 1, 2, VOID)]


def test_the_summary_holds_what_the_files_hold(tmp_path):
    written(tmp_path, [np.zeros(SIZE, np.uint8)], "train")
    plain(tmp_path, 3, (0, 1, 255), part="train", first=1)
    plain(tmp_path, 2, (0, 1), part="val", first=4)
    saved(tmp_path / "images" / "val" / "005.png", noise(1))
    lines = table(opened(tmp_path, ignore_index=255)).splitlines()
    rows = {line[:16].strip(): line[16:].split() for line in lines}
    assert (lines[0].split(), rows["images"], rows["groups"]) == (["train", "val"], ["4", "2"], ["4", "2"])
    assert rows["background"] == ["66.67", "%", "in", "4", "50.00", "%", "in", "2"]
    assert rows["foreground"] == ["33.33", "%", "in", "3", "50.00", "%", "in", "2"]
    assert rows["void"] == ["25.00", "%", "in", "3", "0.00", "%", "in", "0"]
    assert rows["empty masks"] == ["1", "0"]
    assert rows["width x height"] == [f"{SIZE[1]}x{SIZE[0]}", "(6)"]
    assert " ".join(rows["pixels"]) == "uint8, 0 to 255; colour (6)"
    assert rows["copies"] == ["1"]
    assert " ".join(rows["mask values"]) == "background = 0; foreground = 1; void = 255"


# Colours


def coloured(root, palette, n=10, **more):
    return written(root, [mask_of(i, palette) for i in range(n)], **more)


def test_classes_may_be_colours_merged_and_one_not_count(tmp_path):
    palette = [BLACK, RED, GREEN, (0, 0, 255), (1, 1, 1), WHITE]
    given = {"thing": [list(RED), list(GREEN)], "water": [0, 0, 255]}
    dataset = opened(coloured(tmp_path, palette), classes=given, ignore_index=list(WHITE))
    assert dataset.labels.names == ("background", "thing", "water")
    meaning = {BLACK: 0, (1, 1, 1): 0, RED: 1, GREEN: 1, (0, 0, 255): 2, WHITE: VOID}
    assert same_as_files(dataset, meaning)


@pytest.mark.parametrize("other", [RED, (0, 0, 1)])
def test_black_and_one_other_colour_need_no_classes(tmp_path, other):
    dataset = opened(coloured(tmp_path, [BLACK, other]))
    assert dataset.labels.logits == 1
    assert same_as_files(dataset, {BLACK: 0, other: 1})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_all_black_mask_among_coloured_ones_is_background(tmp_path, first, channels):
    black = np.zeros((*SIZE, 3) if channels == 3 else SIZE, np.uint8)
    masks = [mask_of(i, [BLACK, RED]) for i in range(8)]
    written(tmp_path, [black, *masks] if first else [*masks, black])
    dataset = opened(tmp_path)
    assert same_as_files(dataset, {BLACK: 0, RED: 1})
    assert [i for part in dataset.parts for i in dataset.empty(part)] == [0 if first else 8]


def test_several_colours_are_refused_with_a_line_that_then_works(tmp_path):
    coloured(tmp_path, [BLACK, BLACK, BLACK, RED, RED, GREEN])
    message = refusal(tmp_path)
    (line,) = re.findall(r"'data\.classes=\{(.*?)\}'", message)
    assert "[0,0,0] (50 %)" in message
    named = {name: [int(v) for v in color.split(",")] for name, color in re.findall(r"(\w+):\[(.*?)\]", line)}
    assert named == {"background": [0, 0, 0], "c1": [255, 0, 0], "c2": [0, 255, 0]}
    assert same_as_files(opened(tmp_path, classes=named), {BLACK: 0, RED: 1, GREEN: 2})


def test_several_colours_may_be_one_class(tmp_path):
    coloured(tmp_path, [BLACK, RED, GREEN])
    written(tmp_path, [np.zeros(SIZE, np.uint8)], first=10)
    assert same_as_files(opened(tmp_path, binarize=True), {BLACK: 0, RED: 1, GREEN: 1})


def test_coloured_masks_saved_as_jpeg_are_refused_by_name(tmp_path):
    plain(tmp_path, 5)
    blocks = np.kron(noise(0, (8, 8, 3)), np.ones((8, 8, 1), np.uint8))
    saved(tmp_path / "images" / "jpeg.png", noise(9, (64, 64, 3)))
    saved(tmp_path / "masks" / "jpeg.jpg", blocks, quality=60)
    message = refusal(tmp_path)
    assert "blended colours, as in smoothed or JPEG masks" in message
    assert "binarize" not in message


# Numbers beyond a byte


def numbered(root, n=10):
    return written(root, [mask_of(i, (0, 1, 300, 40000, 65535), np.int32) for i in range(n)], suffix="tif")


def test_numbers_beyond_a_byte_may_be_classes(tmp_path):
    dataset = opened(numbered(tmp_path), classes={"a": [1, 300], "b": 40000}, ignore_index=65535)
    assert dataset.labels.names == ("background", "a", "b")
    assert same_as_files(dataset, {0: 0, 1: 1, 300: 1, 40000: 2, 65535: VOID})


def test_numbers_beyond_a_byte_without_classes_are_refused_with_what_to_type(tmp_path):
    message = refusal(numbered(tmp_path))
    assert "300 (20 %)" in message
    assert "data.binarize=true" in message


def test_numbered_objects_are_one_class_when_binarized(tmp_path):
    dataset = opened(numbered(tmp_path), binarize=True)
    assert dataset.labels.names == ("background", "foreground")
    assert same_as_files(dataset, {0: 0, 1: 1, 300: 1, 40000: 1, 65535: 1})


def test_numbered_objects_are_one_class_but_for_void(tmp_path):
    dataset = opened(numbered(tmp_path), binarize=True, ignore_index=65535)
    assert same_as_files(dataset, {0: 0, 1: 1, 300: 1, 40000: 1, 65535: VOID})


@pytest.mark.parametrize("void", [None, 255, 9])
def test_numbers_of_a_byte_are_one_class_but_for_void(tmp_path, void):
    dataset = opened(plain(tmp_path, values=(0, 1, 9, 255)), binarize=True, ignore_index=void)
    assert same_as_files(dataset, {0: 0} | {value: VOID if value == void else 1 for value in (1, 9, 255)})


# Masks that cannot be learnt from


def test_a_value_that_no_class_has_is_refused_with_the_masks_that_hold_it(tmp_path):
    plain(tmp_path, 8, (0, 1, 2))
    written(tmp_path, [mask_of(8, (0, 1, 2, 7))], first=8)
    message = refusal(tmp_path, classes=["a", "b", "c"])
    assert f"7 is none of the 3 data.classes (0 to 2) ({tmp_path}/masks/008.png)" in message
    written(tmp_path, [mask_of(9, (0, 7))], first=9)
    assert f"({tmp_path}/masks/008.png and 1 more)" in refusal(tmp_path, classes=["a", "b", "c"])
    assert same_as_files(opened(tmp_path, classes=["a", "b", "c"], ignore_index=7), {0: 0, 1: 1, 2: 2, 7: VOID})


def test_masks_that_are_all_empty_are_refused(tmp_path):
    written(tmp_path, [np.zeros(SIZE, np.uint8)] * 6)
    assert "all pixels of all masks are background" in refusal(tmp_path)
    assert "all pixels of all masks are background" in refusal(tmp_path, ignore_index=255)


@pytest.mark.parametrize("value", [1, 7, 255])
def test_masks_that_are_all_full_are_refused(tmp_path, value):
    written(tmp_path, [np.full(SIZE, value, np.uint8)] * 6)
    assert "all pixels of all masks are foreground" in refusal(tmp_path)


def test_a_part_without_foreground_or_with_void_alone_is_refused_by_name(tmp_path):
    plain(tmp_path, 4, part="train")
    written(tmp_path, [np.zeros(SIZE, np.uint8)] * 2, "val", first=4)
    assert "the val split has no foreground pixel" in refusal(tmp_path)
    written(tmp_path, [np.full(SIZE, 255, np.uint8)] * 2, "val", first=4)
    assert "the val split has only void pixels" in refusal(tmp_path, ignore_index=255)


# Problems


def test_problems_of_every_kind_come_in_one_error(tmp_path):
    plain(tmp_path, 5, (0, 1, 2), part="train")
    plain(tmp_path, 4, (0, 1, 2), part="val", first=5)
    train, val = (tmp_path / "images" / part for part in ("train", "val"))
    saved(train / "lonely.png", noise(50))
    saved(tmp_path / "masks" / "val" / "widow.png", mask_of(0))
    saved(tmp_path / "images" / "beside.png", noise(51))
    (train / "001.png").write_bytes((train / "001.png").read_bytes()[:200])
    saved(tmp_path / "masks" / "train" / "002.png", np.zeros((3, 4), np.uint8))
    (val / "005.png").write_text("no image")
    (val / "006.png").write_bytes(b"")
    saved(val / "007.png", noise(0))  # as train/000
    message = refusal(tmp_path, classes=["a", "b", "c"])
    first, *lines = message.splitlines()
    assert first.startswith("data: 8 problems. ")
    told = {
        f"{train}/lonely.png: no mask",
        f"{tmp_path}/masks/val/widow.png: no image",
        f"{tmp_path}/images/beside.png: lies next to the split folders",
        f"{train}/001.png: cannot be read",
        f"{tmp_path}/masks/train/002.png: 4x3 pixels, its image has 12x10",
        f"{val}/005.png: not an image",
        f"{val}/006.png: empty file",
        f"1 images have copies in another part of the split, such as {train}/000.png and {val}/007.png",
    }
    assert all(sum(problem in line for line in lines) == 1 for problem in told), message


def test_a_label_out_of_range_is_told_beside_the_files(tmp_path):
    plain(tmp_path, 6, (0, 1, 7))
    saved(tmp_path / "images" / "lonely.png", noise(50))
    (tmp_path / "images" / "003.png").write_bytes(b"")
    message = refusal(tmp_path, classes=["a", "b", "c"])
    assert message.startswith("data: 3 problems. ")
    for said in (
        "lonely.png: no mask",
        "003.png: empty file",
        "  data.classes=[a,b,c]: these are names",
        "{a:0,b:1,c:7}",
    ):
        assert said in message
    assert "data: data" not in message


def test_too_few_images_left_are_told_beside_the_files(tmp_path):
    plain(tmp_path, 3)
    for i in range(2):
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(b"")
    message = refusal(tmp_path)
    assert message.startswith("data: 3 problems. ")
    assert "1 image cannot be split into train and val" in message


def test_unpaired_files_are_told_also_where_no_file_is_sound(tmp_path):
    plain(tmp_path, 3)
    saved(tmp_path / "images" / "lonely.png", noise(50))
    for path in (tmp_path / "masks").iterdir():
        path.write_bytes(b"")
    message = refusal(tmp_path)
    assert message.startswith("data: 4 problems. ")
    assert "lonely.png: no mask" in message


def test_unpaired_files_are_told_also_where_images_are_of_several_kinds(tmp_path):
    plain(tmp_path, 3)
    saved(tmp_path / "images" / "lonely.png", noise(50))
    saved(tmp_path / "images" / "001.png", np.full(SIZE, 1000, np.uint16))
    message = refusal(tmp_path)
    assert "images differ in pixel type or channels" in message
    assert "lonely.png: no mask" in message


def test_a_given_train_of_which_no_file_is_sound_is_told(tmp_path):
    plain(tmp_path, 3, part="train")
    plain(tmp_path, 2, part="test", first=3)
    for path in (tmp_path / "images" / "train").iterdir():
        path.write_bytes(b"")
    assert refusal(tmp_path).count("empty file") == 3


def test_images_without_any_partner_are_told(tmp_path):
    saved(tmp_path / "images" / "a.png", noise(0))
    saved(tmp_path / "masks" / "b.png", mask_of(0))
    assert refusal(tmp_path).startswith("data: 2 problems. ")


def test_a_class_that_is_given_twice_is_an_error_of_the_config(tmp_path):
    refusal(plain(tmp_path), ConfigError, classes={"a": 1, "b": 1})


def test_one_problem_is_enough_to_be_refused_and_mending_it_is_enough_to_go_on(tmp_path):
    plain(tmp_path)
    (tmp_path / "masks" / "004.png").write_bytes(b"")
    assert f"{tmp_path}/masks/004.png: empty file" in refusal(tmp_path)
    saved(tmp_path / "masks" / "004.png", mask_of(4))
    assert len(opened(tmp_path).samples) == 10


@pytest.mark.parametrize("bad", [0, 1])
def test_nothing_is_decoded_a_second_time(tmp_path, bad, monkeypatch):
    plain(tmp_path)
    for i in range(bad):
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(b"")
    read, calls = scan.read_picture, []
    monkeypatch.setattr(scan, "read_picture", lambda path, nodata: calls.append(path) or read(path, nodata))
    told = []
    for _ in range(2):
        told.append(refusal(tmp_path) if bad else opened(tmp_path).store.digest)
    assert len(calls) == 10
    assert told[0] == told[1]


# Splits


def listed(root, rows, header="image,mask,split,group,fold", **options):
    (root / "pairs.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    config = DataConfig(table=str(root / "pairs.csv"), **options)
    return open_dataset(config, workers=2)


def rows_of(n, split=lambda i: "", group=lambda i: "", fold=lambda i: ""):
    return [f"images/{i:03d}.png,masks/{i:03d}.png,{split(i)},{group(i)},{fold(i)}" for i in range(n)]


@pytest.mark.parametrize("seed", range(10))
def test_copies_are_never_apart_in_our_own_splits(tmp_path, seed):
    rng = np.random.default_rng(seed)
    plain(tmp_path, 24)
    pictures = rng.integers(0, 12, 24)
    for i, picture in enumerate(pictures):
        saved(tmp_path / "images" / f"{i:03d}.png", noise(picture))
    dataset = opened(tmp_path, split=[0.6, 0.2, 0.2], seed=seed)
    assert len(dataset.copies) == 24 - len(set(pictures))
    assert all(pictures[a] == pictures[b] for a, b in dataset.copies)
    held = [{pictures[i] for i in indices} for indices in dataset.parts.values()]
    assert sum(map(len, held)) == len(set(pictures))
    assert dataset.warnings() == []
    folded = [opened(tmp_path, seed=seed, folds=3, fold=fold).parts["val"] for fold in range(3)]
    assert sorted(i for part in folded for i in part) == list(range(24))
    assert sum(len({pictures[i] for i in part}) for part in folded) == len(set(pictures))


def test_copies_and_groups_apart_in_a_given_split_are_warned_of(tmp_path):
    plain(tmp_path, 8)
    saved(tmp_path / "images" / "007.png", noise(0))
    saved(tmp_path / "images" / "002.png", noise(1))  # a copy within train is none apart
    rows = rows_of(8, lambda i: "train" if i < 5 else "val", lambda i: "left" if i in (3, 6) else f"g{i}")
    dataset = listed(tmp_path, rows)
    assert dataset.parts == {"train": [0, 1, 2, 3, 4], "val": [5, 6, 7]}
    copies, groups = dataset.warnings()
    assert copies.startswith("1 images have copies in another part of the split")
    assert f"{tmp_path}/images/000.png and {tmp_path}/images/007.png" in copies
    assert groups.startswith("1 groups lie in more than one part of the given split, such as left in train and val")


def test_parts_of_mostly_empty_masks_are_warned_of(tmp_path):
    empty = np.zeros(SIZE, np.uint8)
    written(tmp_path, [empty, empty, empty, mask_of(3)], "train")
    written(tmp_path, [empty, mask_of(5)], "val", first=4)
    dataset = opened(tmp_path)
    assert dataset.empty("train") == [0, 1, 2]
    assert dataset.empty("val") == [4]
    assert dataset.warnings() == ["3 of 4 masks of the train split are empty."]


def uneven(root, part=""):
    """Masks in which image i has i pixels of foreground, and two void ones."""
    masks = []
    for i in range(50):
        flat = np.zeros(np.prod(SIZE), np.uint8)
        flat[:i], flat[-2:] = 1, 255
        masks.append(flat.reshape(SIZE))
    return written(root, masks, part)


def foreground(dataset, part):
    """The share of all foreground that lies in a part, counted from the masks themselves."""
    counts = {p: sum((as_classes(dataset, i) == 1).sum() for i in dataset.parts[p]) for p in dataset.parts}
    return counts[part] / sum(counts.values())


def test_a_stratified_split_shares_out_the_foreground_and_says_that_it_moves(tmp_path):
    root, split = uneven(tmp_path), [0.6, 0.2, 0.2]
    hashed = [foreground(opened(root, split=split, seed=seed), "train") for seed in range(4)]
    assert max(abs(share - 0.6) for share in hashed) > 0.05
    for seed in range(4):
        dataset = opened(root, split=split, seed=seed, stratify=True, group=r"(\d)$")
        assert abs(foreground(dataset, "train") - 0.6) < 0.05
        assert apart(dataset.parts, dataset.groups) == {}
        alone = opened(root, split=split, seed=seed, stratify=True)
        assert abs(foreground(alone, "train") - 0.6) < 0.03
        assert abs(foreground(alone, "val") - 0.2) < 0.03
    assert "the split depends on all images. If you add images" in alone.warnings()[0]
    assert opened(root, split=split).warnings() == []
    alone.write_split(tmp_path)
    again = opened(root, table=str(tmp_path / "split.csv"))
    for part, indices in alone.parts.items():
        kept = {again.samples[i].image for i in again.parts[part]}
        assert kept == {alone.samples[i].image for i in indices}


def test_stratified_folds_each_have_their_share_of_the_foreground(tmp_path):
    root = uneven(tmp_path)
    shares = [foreground(opened(root, folds=5, fold=fold, stratify=True), "val") for fold in range(5)]
    assert max(abs(share - 0.2) for share in shares) < 0.03


def test_a_given_split_is_not_to_be_stratified(tmp_path):
    root = uneven(uneven(tmp_path, "train"), "val")
    assert "the data have their own split" in refusal(root, ConfigError, stratify=True)
    assert len(opened(root, stratify=True, folds=4).parts["val"]) in range(22, 29)


def test_groups_by_pattern_are_not_apart(tmp_path):
    for i in range(30):
        saved(tmp_path / "images" / f"clip{i % 7}_{i:03d}.png", noise(i))
        saved(tmp_path / "masks" / f"clip{i % 7}_{i:03d}.png", mask_of(i))
    dataset = opened(tmp_path, group="clip[0-9]", split=[0.6, 0.2, 0.2])
    held = [{dataset.groups[i] for i in indices} for indices in dataset.parts.values()]
    assert sum(map(len, held)) == 7
    assert "no group in 30 of 30" in refusal(tmp_path, group="scene[0-9]")


def test_folds_of_a_table_are_kept_and_its_test_split_left_alone(tmp_path):
    plain(tmp_path, 9)
    rows = rows_of(9, lambda i: "test" if i > 6 else "train", fold=lambda i: i % 3)
    for fold in range(3):
        dataset = listed(tmp_path, rows, folds=3, fold=fold)
        assert dataset.parts["test"] == [7, 8]
        assert dataset.parts["val"] == [i for i in range(7) if i % 3 == fold]
        assert dataset.folds == [0, 1, 2, 0, 1, 2, 0, None, None]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 50])
def test_overfitting_takes_some_training_images_that_are_not_empty(tmp_path, number):
    empty = np.zeros(SIZE, np.uint8)
    written(tmp_path, [mask_of(i) if i % 3 else empty for i in range(30)], "train")
    plain(tmp_path, 3, part="val", first=30)
    dataset = opened(tmp_path, overfit=number)
    chosen = dataset.parts["train"]
    assert dataset.parts == {"train": chosen, "val": chosen}
    assert len(chosen) == len(set(chosen)) == min(number, 20)
    assert all(i < 30 and i % 3 for i in chosen)


@pytest.mark.parametrize("number", [1, 2, 3, 7, 11, 15, 20])
def test_images_to_overfit_on_are_evenly_spread(tmp_path, number):
    plain(tmp_path, 20, part="train")
    plain(tmp_path, 3, part="val", first=20)
    chosen = opened(tmp_path, overfit=number).parts["train"]
    assert max(np.diff([-1, *chosen, 20])) <= 2 * 20 / number


def test_a_copy_of_an_image_that_is_overfitted_on_is_not_in_another_part(tmp_path):
    plain(tmp_path, 10, part="train")
    plain(tmp_path, 3, part="val", first=10)
    saved(tmp_path / "images" / "train" / "001.png", noise(0))
    dataset = opened(tmp_path, overfit=1)
    assert dataset.copies
    assert dataset.warnings() == []


# Names


NAMES = ["a b", "it's", 'say "hi"', "two\nlines", "a,b;c", "Zürich", "細胞", "-n", "%s{x}", "[x]*?", "$HOME"]


@pytest.mark.parametrize("by", ["folder", "table"])
def test_files_of_any_name_are_read_and_split_as_others(tmp_path, by):
    for i, name in enumerate(NAMES):
        saved(tmp_path / "images" / f"{name}.png", noise(i))
        saved(tmp_path / "masks" / f"{name}.png", mask_of(i))
    rows = [
        ",".join('"{}"'.format(f"{kind}/{n}.png".replace('"', '""')) for kind in ("images", "masks")) for n in NAMES
    ]
    dataset = listed(tmp_path, rows, "image,mask") if by == "table" else opened(tmp_path)
    assert {sample.image.stem for sample in dataset.samples} == set(NAMES)
    for i, sample in enumerate(dataset.samples):
        assert np.array_equal(dataset.store.image(i).numpy(), noise(NAMES.index(sample.image.stem)))
    assert same_as_files(dataset, {0: 0, 1: 1})


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_a_name_that_is_no_utf_8_is_read_or_told(tmp_path):
    plain(tmp_path, 6)
    for kind in ("images", "masks"):
        path = tmp_path / kind / "003.png"
        path.rename(path.with_name("Z\udcfcrich.png"))
    try:
        assert len(opened(tmp_path).samples) == 6
    except DataError as error:
        assert "rich.png" in str(error)


# Benchmarks


def indexed(mask):
    """A mask with a palette, as PASCAL VOC's own files are."""
    image = Image.fromarray(mask)
    image.putpalette(noise(99, (256, 3)).ravel().tolist())
    assert image.mode == "P"
    return image


def test_voc_has_21_classes_and_void_from_masks_with_a_palette(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    lists = {"train": [f"2007_{i:06d}" for i in range(6)], "val": [f"2008_{i:06d}" for i in range(3)]}
    kept = {}
    for i, key in enumerate(lists["train"] + lists["val"]):
        kept[key] = mask_of(i, (*range(21), 255))
        saved(base / "JPEGImages" / f"{key}.jpg", noise(i))
        saved(base / "SegmentationClass" / f"{key}.png", indexed(kept[key]))
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part, keys in {**lists, "trainval": lists["train"] + lists["val"]}.items():
        (base / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(keys) + "\n")
    dataset = opened(tmp_path, "voc2012", ignore_index=255)
    assert len(dataset.labels.names) == dataset.labels.logits == 21
    assert (dataset.labels.names[0], dataset.labels.names[20]) == ("background", "tvmonitor")
    assert dataset.parts == {"train": list(range(6)), "val": [6, 7, 8]}
    assert all(np.array_equal(as_classes(dataset, i), kept[s.key]) for i, s in enumerate(dataset.samples))
    person = opened(tmp_path, "voc2012", ignore_index=255, classes=["person"])
    assert person.labels.names == ("background", "person")
    expected = [np.where(m == 255, VOID, m == 15) for m in kept.values()]
    assert all(np.array_equal(as_classes(person, i), mask) for i, mask in enumerate(expected))


def test_pets_are_pet_and_background_and_the_border_is_void(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    names = [f"Abyssinian_{i}" for i in range(8)] + ["american_bulldog_1", "american_bulldog_2"]
    for i, name in enumerate(names):
        saved(base / "images" / f"{name}.jpg", noise(i))
        saved(base / "annotations" / "trimaps" / f"{name}.png", mask_of(i, (1, 2, 3)))
    for part, listed_names in (("trainval", names[:8]), ("test", names[8:])):
        (base / "annotations" / f"{part}.txt").write_text("".join(f"{name} 1 1 1\n" for name in listed_names))
    dataset = opened(tmp_path, "oxford_pets", ignore_index=3)
    assert dataset.labels.names == ("background", "pet")
    assert dataset.labels.logits == 1
    assert same_as_files(dataset, {1: 1, 2: 0, 3: VOID})
    assert dataset.parts["test"] == [8, 9]
    assert sorted(dataset.parts["train"] + dataset.parts["val"]) == list(range(8))
    (base / "images" / "Abyssinian_3.jpg").unlink()
    assert f"{base}/images/Abyssinian_3.jpg: no such file" in refusal(tmp_path, name="oxford_pets", ignore_index=3)


def test_images_of_one_name_in_several_parts_have_a_key_each(tmp_path):
    for kind in ("images", "masks"):
        for n, name in enumerate(("train/0", "train/1", "valid/0", "test/2")):
            pixels = noise(n) if kind == "images" else mask_of(n)
            part, stem = name.split("/")
            saved(tmp_path / part / kind / f"{stem}.png", pixels)
    dataset = opened(tmp_path)
    keys = {part: [dataset.samples[i].key for i in indices] for part, indices in dataset.parts.items()}
    assert keys == {"train": ["train/0", "train/1"], "val": ["val/0"], "test": ["2"]}
    dataset.write_split(tmp_path)
    assert {row["key"]: row["split"] for row in read_split(tmp_path)} == {
        "train/0": "train",
        "train/1": "train",
        "val/0": "val",
        "2": "test",
    }


def test_keys_without_a_repeat_do_not_name_the_part(tmp_path):
    for part, first in (("train", 0), ("val", 5)):
        written(tmp_path, [mask_of(i) for i in range(2)], part=part, first=first)
    assert [sample.key for sample in opened(tmp_path).samples] == ["000", "001", "005", "006"]


def test_two_images_of_one_key_are_refused_with_both(tmp_path):
    root = plain(tmp_path, 4)
    saved(root / "images" / "000.bmp", noise(0))
    (tmp_path / "pairs.csv").write_text(
        "image,mask\n" + "\n".join(f"images/{name},masks/000.png" for name in ("000.png", "000.bmp"))
    )
    message = refusal(tmp_path, table=str(tmp_path / "pairs.csv"))
    assert f"{root}/images/000.png and {root}/images/000.bmp: both are called images/000" in message


def test_parts_in_keys_are_no_classes(tmp_path):
    for part, names in (("train", "ab"), ("val", "ab"), ("test", "c")):
        for n, name in enumerate(names):
            number = name if part == "test" else "0"
            for kind in ("images", "masks"):
                pixels = noise(10 * n + len(part) + ord(part[0])) if kind == "images" else mask_of(n)
                saved(tmp_path / part / kind / "ab"[n] / f"{number}.png", pixels)
    dataset = opened(tmp_path, class_from="folder")
    assert dataset.labels.names == ("background", "a", "b")
    assert [s.key for s in dataset.samples] == ["train/a/0", "train/b/0", "val/a/0", "val/b/0", "a/c"]


def test_a_group_is_the_same_in_all_parts_whatever_names_the_part(tmp_path):
    for n, (part, stem) in enumerate([("train", "p1_0"), ("train", "p2_0"), ("val", "p1_0"), ("val", "p3_0")]):
        saved(tmp_path / part / "images" / f"{stem}.png", noise(n))
        saved(tmp_path / part / "masks" / f"{stem}.png", mask_of(n))
    dataset = opened(tmp_path, group="^([^_]+)_")
    assert dataset.groups == ["p1", "p2", "p1", "p3"]
    assert any("1 groups lie in more than one part" in warning for warning in dataset.warnings())
