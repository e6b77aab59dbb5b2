"""Pairs of files, the generated data set, and how problems are told."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segsweep.config.schema import DataConfig
from segsweep.data.source import refuse, same_keys, source
from segsweep.data.sources import folder, shapes
from segsweep.errors import ConfigError, DataError, NonFiniteError, OutOfMemoryError, closest
from segsweep.paths import cache


def drawn(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def paired(**options):
    """The pairs of a source of folders in which nothing is wrong."""
    found = folder.find(DataConfig(**{name: str(given) for name, given in options.items()}))
    assert found.problems == []
    return found.samples


def drawn_pairs(root, *names):
    for kind in ("images", "masks"):
        drawn(root / kind, *names)
    return root


def keys(root):
    return [sample.key for sample in paired(root=root)]


def problems(**options):
    return folder.find(DataConfig(**{name: str(given) for name, given in options.items()})).problems


def test_images_and_masks_pair_by_stem_whatever_the_suffix(tmp_path):
    drawn(tmp_path / "images", "a.jpg", "b.TIF", "c.webp", "d.jpeg", "e.tif")
    drawn(tmp_path / "masks", "a.png", "b.bmp", "c.tiff", "d.PNG", "e.gif")
    samples = paired(root=tmp_path)
    assert [(s.key, s.image.name, s.mask.name) for s in samples] == [
        ("a", "a.jpg", "a.png"),
        ("b", "b.TIF", "b.bmp"),
        ("c", "c.webp", "c.tiff"),
        ("d", "d.jpeg", "d.PNG"),
        ("e", "e.tif", "e.gif"),
    ]
    assert all(s.split is None for s in samples)


def test_pairs_keep_their_folders(tmp_path):
    drawn(tmp_path / "images", "b/x.png", "a/deep/x.png", "x.png")
    drawn(tmp_path / "masks", "b/x.png", "a/deep/x.png", "x.png")
    samples = {s.key: s for s in paired(root=tmp_path)}
    assert set(samples) == {"a/deep/x", "b/x", "x"}
    for key, sample in samples.items():
        assert sample.image == tmp_path / "images" / f"{key}.png"
        assert sample.mask == tmp_path / "masks" / f"{key}.png"


def test_the_order_does_not_depend_on_which_file_was_written_first(tmp_path):
    for name, order in (("one", "abc"), ("two", "cba")):
        for kind in ("images", "masks"):
            drawn(tmp_path / name / kind, *(f"{stem}.png" for stem in order))
    assert keys(tmp_path / "one") == keys(tmp_path / "two") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "stem", ["a b", "it's", 'say "hi"', "Zürich", "細胞", "v1.2", "[x]", "100%", "a=b,c", "$HOME", "-n", "*"]
)
def test_any_name_will_do(tmp_path, stem):
    drawn(tmp_path / "my images" / "images", f"{stem}.png", f"{stem}/{stem}.png")
    drawn(tmp_path / "my images" / "masks", f"{stem}.png", f"{stem}/{stem}.png")
    samples = paired(root=tmp_path / "my images")
    assert {s.key for s in samples} == {stem, f"{stem}/{stem}"}
    assert all(s.image.is_file() and s.mask.is_file() for s in samples)


def test_stems_that_differ_behind_a_dot_are_different(tmp_path):
    drawn_pairs(tmp_path, "a.1.png", "a.2.png", "a.png")
    assert sorted(keys(tmp_path)) == ["a", "a.1", "a.2"]


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    drawn_pairs(tmp_path, "a.png")
    drawn(tmp_path / "images", ".b.png", ".thumbnails/c.png")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "images" / "notes.txt").write_text("x")
    (tmp_path / "masks" / "a.json").write_text("{}")
    assert keys(tmp_path) == ["a"]


def test_a_hidden_folder_above_the_images_hides_nothing(tmp_path):
    drawn_pairs(tmp_path / ".cache", "a.png")
    assert keys(tmp_path / ".cache") == ["a"]


def test_a_folder_named_like_an_image_is_none(tmp_path):
    drawn_pairs(tmp_path, "slide.png/a.png")
    assert keys(tmp_path) == ["slide.png/a"]


def test_unpaired_files_of_both_kinds_are_listed_together(tmp_path):
    drawn(tmp_path / "images", "a.png", "only_image.png", "sub/also.jpg")
    drawn(tmp_path / "masks", "a.png", "only_mask.png")
    found = folder.find(DataConfig(root=str(tmp_path)))
    assert [sample.key for sample in found.samples] == ["a"]
    assert sorted(problem.partition(" ")[0] for problem in found.problems) == sorted(
        f"{tmp_path / name}:" for name in ("images/only_image.png", "images/sub/also.jpg", "masks/only_mask.png")
    )
    assert [("no mask" in problem, "no image" in problem) for problem in found.problems] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_the_same_stem_in_another_folder_is_no_partner(tmp_path):
    drawn(tmp_path / "images", "a/x.png")
    drawn(tmp_path / "masks", "b/x.png")
    assert folder.find(DataConfig(root=str(tmp_path))).samples == []
    assert len(problems(root=tmp_path)) == 2


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(tmp_path, kind):
    for each in ("images", "masks"):
        drawn(tmp_path / each, "a.png", "b.png")
    drawn(tmp_path / kind, "a.jpg")
    (message,) = problems(root=tmp_path)
    assert str(tmp_path / kind / "a.jpg") in message
    assert "a.png" in message


def test_unpaired_and_doubled_files_come_together(tmp_path):
    drawn(tmp_path / "images", "a.png", "a.jpg", "b.png")
    drawn(tmp_path / "masks", "a.png", "c.png")
    assert len(problems(root=tmp_path)) == 3


def test_long_lists_are_cut_and_counted():
    with pytest.raises(DataError) as refused:
        refuse([f"problem {i}." for i in range(27)])
    message = str(refused.value)
    assert message.startswith("data: 27 problems. ")
    assert "problem 19." in message
    assert "problem 20." not in message
    assert "7 more" in message


@pytest.mark.parametrize("n", [1, 2, 20, 21])
def test_problems_are_told_a_line_each_with_their_number(n):
    with pytest.raises(DataError) as refused:
        refuse([f"problem {i}." for i in range(n)])
    first, *lines = str(refused.value).splitlines()
    assert first.startswith("data: 1 problem. " if n == 1 else f"data: {n} problems. ")
    assert lines[:20] == [f"  problem {i}." for i in range(min(n, 20))]
    assert lines[20:] == (["  ... and 1 more"] if n == 21 else [])
    assert refused.value.exit_code == 3


def test_no_problem_is_no_error():
    refuse([])


def test_parts_are_taken_from_the_folders(tmp_path):
    drawn_pairs(tmp_path, "train/a.png", "train/sub/b.png", "val/a.png", "test/c.png")
    samples = paired(root=tmp_path)
    assert [(s.split, s.key) for s in samples] == [("train", "a"), ("train", "sub/b"), ("val", "a"), ("test", "c")]
    assert all(s.split in s.image.parts and s.split in s.mask.parts for s in samples)


@pytest.mark.parametrize("parts", [("train",), ("train", "val"), ("train", "test")])
def test_val_and_test_need_not_be_given(tmp_path, parts):
    drawn_pairs(tmp_path, *(f"{part}/a.png" for part in parts))
    assert [s.split for s in paired(root=tmp_path)] == list(parts)


def test_folders_without_train_are_no_split(tmp_path):
    drawn_pairs(tmp_path, "left/a.png", "right/a.png")
    assert [(s.split, s.key) for s in paired(root=tmp_path)] == [(None, "left/a"), (None, "right/a")]


def test_an_empty_part_is_refused(tmp_path):
    drawn_pairs(tmp_path, "train/a.png")
    (tmp_path / "images" / "val").mkdir()
    with pytest.raises(DataError, match="no images in it") as refused:
        folder.find(DataConfig(root=str(tmp_path)))
    assert str(tmp_path / "images" / "val") in str(refused.value)


def test_masks_without_the_parts_of_the_images_are_refused(tmp_path):
    drawn(tmp_path / "images", "train/a.png")
    drawn(tmp_path / "masks", "a.png")
    beside, unpaired = problems(root=tmp_path)
    assert beside.startswith(f"{tmp_path / 'masks' / 'a.png'}: lies next to the split folders train/")
    assert unpaired.startswith(f"{tmp_path / 'images' / 'train' / 'a.png'}: no mask")


def test_images_and_masks_may_lie_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    drawn(tmp_path / "photos", "a.png")
    drawn(tmp_path / "elsewhere" / "truth", "a.png")
    drawn(tmp_path / "root" / "masks", "b.png")
    (sample,) = paired(root=tmp_path / "root", images="~/photos", masks=tmp_path / "elsewhere" / "truth")
    assert sample.image == tmp_path / "photos" / "a.png"
    assert sample.mask == tmp_path / "elsewhere" / "truth" / "a.png"


def test_paths_are_absolute(tmp_path, monkeypatch):
    drawn_pairs(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    (sample,) = paired(root=".")
    assert sample.image.is_absolute()
    assert sample.mask.is_absolute()


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_missing_folder_is_an_error_of_the_config(tmp_path, kind):
    drawn(tmp_path / ("masks" if kind == "images" else "images"), "a.png")
    with pytest.raises(ConfigError, match=f"no such folder.*data.{kind}=DIR") as refused:
        paired(root=tmp_path)
    assert refused.value.exit_code == 2


def test_a_file_in_place_of_a_folder_is_an_error_of_the_config(tmp_path):
    drawn(tmp_path, "images.png")
    drawn(tmp_path / "masks", "a.png")
    with pytest.raises(ConfigError, match="not a folder"):
        folder.find(DataConfig(images=str(tmp_path / "images.png"), masks=str(tmp_path / "masks")))


def test_no_folder_at_all_is_an_error_of_the_config():
    with pytest.raises(ConfigError, match=r"data\.images=DIR") as refused:
        folder.find(DataConfig())
    assert refused.value.exit_code == 2


def test_images_cannot_be_their_own_masks(tmp_path):
    drawn(tmp_path / "images", "a.png")
    with pytest.raises(ConfigError, match="same folder"):
        folder.find(DataConfig(images=str(tmp_path / "images"), masks=str(tmp_path / "images" / ".." / "images")))


def test_an_empty_folder_is_an_error_of_the_data(tmp_path):
    (tmp_path / "images").mkdir()
    drawn(tmp_path / "masks", "a.png")
    with pytest.raises(DataError, match="no images in it") as refused:
        paired(root=tmp_path)
    assert refused.value.exit_code == 3
    assert str(tmp_path / "images") in str(refused.value)


def test_sources_are_called_by_name(tmp_path):
    drawn_pairs(tmp_path, "a.png")
    assert [s.key for s in source("folder").find(DataConfig(root=str(tmp_path))).samples] == ["a"]
    assert len(source("shapes").find(DataConfig(count=10)).samples) == 10


def test_generated_images_come_with_a_split():
    samples = shapes.find(DataConfig(count=10)).samples
    assert [s.split for s in samples].count("train") == 6
    assert {s.split for s in samples} == {"train", "val", "test"}
    assert all(s.image.is_relative_to(cache()) for s in samples)


def test_generated_images_are_made_once():
    first = [s.image.stat().st_mtime_ns for s in shapes.find(DataConfig(count=10)).samples]
    assert [s.image.stat().st_mtime_ns for s in shapes.find(DataConfig(count=10)).samples] == first


def test_generated_images_are_the_same_for_the_same_seed(tmp_path, monkeypatch):
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        monkeypatch.setenv("SEGSWEEP_OUTPUTS", str(tmp_path / name))
        contents.append([s.image.read_bytes() for s in shapes.find(DataConfig(count=10, seed=seed)).samples])
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_generated_sets_of_another_size_or_seed_lie_apart():
    folders = {
        shapes.find(DataConfig(count=n, seed=seed)).samples[0].image.parents[2] for n in (10, 11) for seed in (0, 1)
    }
    assert len(folders) == 4


def test_a_killed_generator_leaves_nothing_that_counts(monkeypatch):
    def killed(folder, count, seed):
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "rubbish.png").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("segsweep.data.sources.shapes.write", killed)
        with pytest.raises(KeyboardInterrupt):
            shapes.find(DataConfig(count=10))
    samples = shapes.find(DataConfig(count=10)).samples
    assert len(samples) == 10
    assert not list(samples[0].image.parents[2].rglob("rubbish*"))


def test_two_processes_may_generate_at_once():
    code = (
        "import sys; from segsweep.config.schema import DataConfig; from segsweep.data.sources.shapes import find\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(*(s.image for s in find(DataConfig(count=10)).samples), sep='|')"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    expected = "|".join(str(s.image) for s in shapes.find(DataConfig(count=10)).samples)
    assert [out.strip() for out, _ in told] == [expected, expected]


def test_errors_have_the_exit_codes_that_are_documented():
    kinds = (ConfigError, DataError, OutOfMemoryError, NonFiniteError)
    assert [kind("x").exit_code for kind in kinds] == [2, 3, 4, 5]
    assert all(issubclass(kind, ConfigError) for kind in kinds)


def test_the_closest_words_come_best_first_and_far_ones_not_at_all():
    known = ["resnet34", "resnet50", "vit_base"]
    assert closest("resnt34", known) == ["resnet34"]
    assert closest("resnet3", known, n=2) == ["resnet34", "resnet50"]
    assert closest("qqqq", known) == []


def table(root, rows, header="image,mask,split,group,fold"):
    path = root / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_masks_may_have_a_suffix(pairs):
    root = pairs(4)
    for path in list((root / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    (root / "masks" / "000_instances.png").write_bytes(b"another kind of mask")
    samples = paired(root=root, mask_suffix="_mask")
    assert [s.key for s in samples] == ["000", "001", "002", "003"]
    assert samples[0].mask.name == "000_mask.png"


def test_a_table_gives_pairs_splits_groups_and_folds(pairs):
    root = pairs(3)
    rows = [f"images/{i:03d}.png,masks/{i:03d}.png,{s},g{i},{i}" for i, s in enumerate(("train", "val", "test"))]
    samples = paired(table=table(root, rows))
    assert [(s.key, s.split, s.group, s.fold) for s in samples] == [
        ("images/000", "train", "g0", 0),
        ("images/001", "val", "g1", 1),
        ("images/002", "test", "g2", 2),
    ]


def test_a_table_may_have_two_columns_and_names_with_commas_and_quotes(pairs):
    root = pairs(2)
    (root / "images" / "000.png").rename(root / "images" / 'a, "b" ü.png')
    rows = ['"images/a, ""b"" ü.png",masks/000.png', "images/001.png,masks/001.png"]
    samples = paired(table=table(root, rows, "image,mask"))
    assert samples[0].image.name == 'a, "b" ü.png'
    assert samples[0].split is samples[0].group is samples[0].fold is None


def test_all_that_is_wrong_in_a_table_is_listed(pairs, tmp_path):
    root = pairs(2)
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"")
    rows = [
        "images/000.png,../secret.png,train,,",
        "images/nope.png,masks/000.png,train,,",
        "images/001.png,masks/001.png,dev,,x",
    ]
    found = folder.find(DataConfig(table=str(table(root, rows))))
    assert found.samples == []
    assert len(found.problems) == 4
    for said in ("line 2: ../secret.png: not a file below", "line 3: images/nope.png", "split 'dev'", "fold 'x'"):
        assert any(said in problem for problem in found.problems)
    assert ["data.root" in problem for problem in found.problems] == [True, False, False, False]


def test_what_is_for_the_test_is_in_no_fold(pairs):
    root = pairs(3)
    rows = [f"images/{i:03d}.png,masks/{i:03d}.png,{s},,{f}" for i, (s, f) in enumerate((("train", 0), ("val", 1)))]
    test = "images/002.png,masks/002.png,test,,"
    samples = paired(table=table(root, [*rows, test]))
    assert [(s.split, s.fold) for s in samples] == [("train", 0), ("val", 1), ("test", None)]
    (partly,) = problems(table=table(root, [rows[0], test.replace("test", "train")]))
    assert "fold is given in 1 rows only" in partly


def test_a_table_half_split_or_with_a_pair_twice_is_refused(pairs):
    root = pairs(2)
    rows = ["images/000.png,masks/000.png,train,,", "images/001.png,masks/001.png,,,"]
    (half,) = problems(table=table(root, rows))
    assert "split is given in 1 rows only" in half
    twice = folder.find(DataConfig(table=str(table(root, [rows[0], rows[0]]))))
    assert same_keys(twice.samples) == [f"{root / 'images' / '000.png'}: is listed more than once"]


def test_a_table_without_its_columns_is_refused(pairs):
    root = pairs(1)
    with pytest.raises(DataError, match="must have the columns image and mask"):
        folder.find(DataConfig(table=str(table(root, ["a,b"], "picture,label"))))
    with pytest.raises(ConfigError, match="no such file"):
        folder.find(DataConfig(table=str(root / "nope.csv")))


def test_camvid_is_read_in_its_own_layout(tmp_path):
    for part in ("train", "val", "test"):
        for suffix, name in (("", "0001.png"), ("annot", "0001.png")):
            (tmp_path / f"{part}{suffix}").mkdir()
            Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / f"{part}{suffix}" / name)
    samples = source("camvid").find(DataConfig(root=str(tmp_path))).samples
    assert [(s.split, s.image.parent.name, s.mask.parent.name) for s in samples] == [
        ("train", "train", "trainannot"),
        ("val", "val", "valannot"),
        ("test", "test", "testannot"),
    ]
    with pytest.raises(ConfigError, match=r"data\.root"):
        source("camvid").find(DataConfig())


def test_the_real_camvid_has_its_official_split(real_data):
    samples = source("camvid").find(DataConfig(root=str(real_data / "camvid"))).samples
    assert [sum(s.split == part for s in samples) for part in ("train", "val", "test")] == [367, 101, 233]


NAMES = ["a b", "it's", 'say "hi"', "two\nlines", "a,b;c", "Zürich", "細胞", "\u0301combining", "-n", "*", "%s", "{x}"]


def test_any_name_will_do_in_a_table(tmp_path):
    drawn_pairs(tmp_path, *(f"{name}.png" for name in NAMES))
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask", "group"])
        writer.writerows([f"images/{name}.png", f"masks/{name}.png", name] for name in NAMES)
    samples = paired(table=tmp_path / "pairs.csv")
    assert [(s.key, s.group) for s in samples] == [(f"images/{name}", name) for name in NAMES]
    assert [s.image.name for s in samples] == [s.mask.name for s in samples] == [f"{name}.png" for name in NAMES]


def test_folders_and_tables_find_the_same_pairs(tmp_path):
    drawn_pairs(tmp_path, *(f"{name}.png" for name in NAMES))
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "mask"], *([f"{k}/{n}.png" for k in ("images", "masks")] for n in NAMES)])
    found = ({(s.image, s.mask) for s in paired(**how)} for how in ({"root": tmp_path}, {"table": file.name}))
    assert next(found) == next(found)


@pytest.mark.parametrize("suffix", ["_mask", " (label)", ".gt", "-m"])
def test_images_and_masks_may_lie_in_one_folder(tmp_path, suffix):
    drawn(tmp_path, *(f"{stem}{end}" for stem in ("a", "sub/b", "c.1") for end in (".jpg", f"{suffix}.png")))
    samples = paired(images=tmp_path, masks=tmp_path, mask_suffix=suffix)
    assert [(s.key, s.image.suffix, s.mask.name) for s in samples] == [
        ("a", ".jpg", f"a{suffix}.png"),
        ("c.1", ".jpg", f"c.1{suffix}.png"),
        ("sub/b", ".jpg", f"b{suffix}.png"),
    ]


def test_unpaired_files_of_one_folder_are_told_apart_by_the_suffix(tmp_path):
    drawn(tmp_path, "a.png", "a_mask.png", "b.png", "c_mask.png")
    found = folder.find(DataConfig(images=str(tmp_path), masks=str(tmp_path), mask_suffix="_mask"))
    assert [s.key for s in found.samples] == ["a"]
    assert [problem.partition(": no ")[::2] for problem in found.problems] == [
        (str(tmp_path / "b.png"), f"mask {tmp_path / 'b'}_mask.*"),
        (str(tmp_path / "c_mask.png"), f"image {tmp_path / 'c'}.*"),
    ]


def test_one_folder_may_be_split_in_parts(tmp_path):
    drawn(tmp_path, *(f"{part}/{name}.png" for part in ("train", "valid") for name in ("a", "a_mask")))
    samples = paired(images=tmp_path, masks=tmp_path, mask_suffix="_mask")
    assert [(s.split, s.key) for s in samples] == [("train", "a"), ("val", "a")]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_folder_of_val_has_three_names(tmp_path, name):
    drawn_pairs(tmp_path, "train/a.png", f"{name}/b.png")
    assert [(s.split, s.key) for s in paired(root=tmp_path)] == [("train", "a"), ("val", "b")]


def test_val_without_train_is_refused(tmp_path):
    drawn_pairs(tmp_path, "val/a.png", "test/b.png")
    with pytest.raises(DataError, match=r"holds val, test/ but no train/"):
        folder.find(DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize("beside", ["b.png", "validation/b.png"])
def test_images_beside_the_parts_are_told(tmp_path, beside):
    drawn_pairs(tmp_path, "train/a.png", "val/a.png", beside)
    found = folder.find(DataConfig(root=str(tmp_path)))
    told = " ".join(found.problems)
    lost = [name for name in ("val/a.png", beside) if str(tmp_path / "images" / name) in told]
    assert len(lost) == 1
    assert len(found.samples) == 2


@pytest.mark.parametrize("name", ["extra", "trainer", "different_test"])
def test_a_folder_beside_the_parts_is_left_out_with_a_note(tmp_path, name):
    drawn_pairs(tmp_path, "train/a.png", "val/a.png", f"{name}/b.png", f"{name}/c.png")
    found = folder.find(DataConfig(root=str(tmp_path)))
    assert (found.problems, len(found.samples)) == ([], 2)
    assert found.notes == (f"left out: {name}/, 2 images: none of train, val",)


@pytest.mark.parametrize("name", ["train.png", "val.png"])
def test_an_image_called_as_a_part_lies_beside_the_parts_too(tmp_path, name):
    drawn_pairs(tmp_path, "train/a.png", "val/a.png", name)
    assert any(str(tmp_path / "images" / name) in problem for problem in problems(root=tmp_path))


@pytest.mark.parametrize("header", ["image", "mask", "picture,label", "image;mask", ""])
def test_a_table_without_a_column_is_refused_with_those_it_has(tmp_path, header):
    drawn_pairs(tmp_path, "a.png")
    with pytest.raises(DataError, match="must have the columns image and mask") as refused:
        folder.find(DataConfig(table=str(table(tmp_path, ["images/a.png,masks/a.png"], header))))
    assert all(f"'{column}'" in str(refused.value) for column in header.split(",") if column)
    assert ("commas" in str(refused.value)) == (";" in header)


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_table_without_commas_is_told_so(tmp_path, between):
    with pytest.raises(DataError, match=r"Separate the columns with commas\.$"):
        folder.find(
            DataConfig(table=str(table(tmp_path, [between.join(("a.png", "b.png"))], between.join(("image", "mask")))))
        )


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one row"):
        folder.find(DataConfig(table=str(table(tmp_path, []))))


def test_a_short_row_is_told_and_a_long_one_taken(tmp_path):
    drawn_pairs(tmp_path, "a.png", "b.png")
    path = table(tmp_path, ["images/a.png", "images/b.png,masks/b.png,,,,more,and more"])
    found = folder.find(DataConfig(table=str(path)))
    assert [s.key for s in found.samples] == ["images/b"]
    assert len(found.problems) == 1
    assert f"{path}, line 2: " in found.problems[0]


@pytest.mark.parametrize("way", ["absolute", "up", "link"])
def test_files_outside_of_the_root_of_a_table_are_refused(tmp_path, way):
    root, outside = drawn_pairs(tmp_path / "in", "a.png"), tmp_path / "out.png"
    drawn(tmp_path, "out.png")
    (root / "link.png").symlink_to(outside)
    name = {"absolute": str(outside), "up": "images/../../out.png", "link": "link.png"}[way]
    for row in (f"{name},masks/a.png", f"images/a.png,{name}"):
        found = folder.find(DataConfig(table=str(table(root, [row], "image,mask"))))
        assert found.samples == []
        (problem,) = found.problems
        assert problem.startswith(
            f"{root / 'pairs.csv'}, line 2: {name}: not a file below {root}; or type data.root=DIR"
        )


def test_a_table_of_absolute_paths_is_told_their_folder(tmp_path):
    root = drawn_pairs(tmp_path / "in", "a.png", "b.png")
    rows = [f"{root}/images/{name}.png,{root}/masks/{name}.png" for name in "ab"]
    (tmp_path / "tables").mkdir()
    path = table(tmp_path / "tables", rows, "image,mask")
    with pytest.raises(DataError, match="none of its files is below") as refused:
        folder.find(DataConfig(table=str(path)))
    assert str(refused.value).endswith(f"Add data.root={root}")
    assert len(folder.find(DataConfig(table=str(path), root=str(root))).samples) == 2


def test_a_table_may_lie_elsewhere_and_begin_with_a_byte_order_mark(tmp_path):
    drawn_pairs(tmp_path / "data", "a.png")
    path = tmp_path / "pairs.csv"
    path.write_text("image,mask\r\nimages/a.png,masks/a.png\r\n", encoding="utf-8-sig", newline="")
    (sample,) = paired(table=path, root=tmp_path / "data")
    assert sample.image == tmp_path / "data" / "images" / "a.png"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_in_another_encoding_is_an_error_of_the_data(tmp_path, encoding):
    drawn_pairs(tmp_path, "Zürich.png")
    path = tmp_path / "pairs.csv"
    path.write_text("image,mask\nimages/Zürich.png,masks/Zürich.png\n", encoding=encoding)
    with pytest.raises(ConfigError, match=r"pairs\.csv"):
        folder.find(DataConfig(table=str(path)))


@pytest.mark.parametrize("fold", ["x", "-1", "1.5", "²"])
def test_a_fold_that_is_no_number_is_told(tmp_path, fold):
    drawn_pairs(tmp_path, "a.png")
    (problem,) = problems(table=table(tmp_path, [f"images/a.png,masks/a.png,,,{fold}"]))
    assert f"fold {fold!r} must be a whole number" in problem


def test_two_files_of_one_stem_in_a_table_are_one_key_twice(tmp_path):
    drawn_pairs(tmp_path, "a.png", "a.jpg")
    rows = [f"images/a.{suffix},masks/a.{suffix}" for suffix in ("png", "jpg")]
    twice = folder.find(DataConfig(table=str(table(tmp_path, rows, "image,mask"))))
    png, jpg = (tmp_path / "images" / f"a.{suffix}" for suffix in ("png", "jpg"))
    assert same_keys(twice.samples) == [f"{png} and {jpg}: both are called images/a without suffix. Rename one"]


def listed(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def pets(root):
    """Oxford-IIIT Pet as torchvision unpacks it, in small."""
    base = root / "oxford-iiit-pet"
    names = ["Abyssinian_1", "beagle_12", "yorkshire_terrier_3"]
    drawn(base, *(f"images/{name}.jpg" for name in names), *(f"annotations/trimaps/{name}.png" for name in names))
    drawn(base, "images/beagle_99.jpg")  # unlisted, as some in the original are
    (base / "annotations" / "trimaps" / "._beagle_12.png").write_bytes(b"of a Mac, as in the original")
    listed(base / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1", "beagle_12 5 2 1")
    listed(base / "annotations" / "test.txt", "yorkshire_terrier_3 37 2 25")
    return base


def test_pets_are_read_in_their_own_layout(tmp_path):
    base = pets(tmp_path)
    found = source("oxford_pets").find(DataConfig(root=str(tmp_path)))
    assert found.problems == []
    assert [(s.key, s.split) for s in found.samples] == [
        ("Abyssinian_1", "train"),
        ("beagle_12", "train"),
        ("yorkshire_terrier_3", "test"),
    ]
    assert all(s.image == base / "images" / f"{s.key}.jpg" for s in found.samples)
    assert all(s.mask == base / "annotations" / "trimaps" / f"{s.key}.png" for s in found.samples)


def voc(root):
    """PASCAL VOC 2012 as torchvision unpacks it, in small."""
    base = root / "VOCdevkit" / "VOC2012"
    names = ["2007_000032", "2007_000033", "2008_000001"]
    drawn(base, *(f"JPEGImages/{name}.jpg" for name in [*names, "2009_000009"]))
    drawn(base, *(f"SegmentationClass/{name}.png" for name in names))
    lists = {"train": names[:2], "val": names[2:], "trainval": names}
    for part, keys in lists.items():
        listed(base / "ImageSets" / "Segmentation" / f"{part}.txt", *keys)
    return base


def test_voc_is_read_in_its_own_layout(tmp_path):
    base = voc(tmp_path)
    found = source("voc2012").find(DataConfig(root=str(tmp_path)))
    assert found.problems == []
    assert [(s.key, s.split) for s in found.samples] == [
        ("2007_000032", "train"),
        ("2007_000033", "train"),
        ("2008_000001", "val"),
    ]
    assert all(s.image == base / "JPEGImages" / f"{s.key}.jpg" for s in found.samples)
    assert all(s.mask == base / "SegmentationClass" / f"{s.key}.png" for s in found.samples)


BENCHMARKS = {"oxford_pets": pets, "voc2012": voc}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_listed_files_that_are_not_there_are_told_and_the_others_kept(tmp_path, name):
    base = BENCHMARKS[name](tmp_path)
    before = source(name).find(DataConfig(root=str(tmp_path))).samples
    before[0].image.unlink()
    before[1].mask.unlink()
    found = source(name).find(DataConfig(root=str(tmp_path)))
    assert found.samples == before[2:]
    assert found.problems == [f"{before[0].image}: no such file", f"{before[1].mask}: no such file"]
    assert all(str(base) in problem for problem in found.problems)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_data_are_told_with_how_to_fetch_them(tmp_path, name):
    with pytest.raises(ConfigError, match=r"data\.download=true") as refused:
        source(name).find(DataConfig(root=str(tmp_path)))
    assert f"data.root={tmp_path}" in str(refused.value)
    assert refused.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"data\.root=DIR.*data\.download=true"):
        source(name).find(DataConfig())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nothing_is_fetched_unless_asked_for(tmp_path, name, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(ConfigError) as refused:
        source(name).find(DataConfig(root=str(tmp_path / "a")))
    assert "no route" not in str(refused.value)
    with pytest.raises(ConfigError, match="no route to host"):
        source(name).find(DataConfig(root=str(tmp_path / "b"), download=True))


@pytest.mark.parametrize(
    ("name", "lost"),
    [("oxford_pets", "trainval"), ("oxford_pets", "test"), ("voc2012", "trainval"), ("voc2012", "val")],
)
def test_a_missing_list_is_told(tmp_path, name, lost):
    (path,) = BENCHMARKS[name](tmp_path).rglob(f"{lost}.txt")
    path.unlink()
    with pytest.raises(ConfigError, match=rf"{lost}\.txt"):
        source(name).find(DataConfig(root=str(tmp_path)))


def test_classes_of_benchmarks_are_their_own():
    assert len(source("voc2012").CLASSES) == 21
    assert list(source("voc2012").CLASSES.values()) == list(range(21))
    assert {name: source("voc2012").CLASSES[name] for name in ("background", "cat", "person", "tvmonitor")} == {
        "background": 0,
        "cat": 8,
        "person": 15,
        "tvmonitor": 20,
    }
    assert source("oxford_pets").CLASSES == {"background": 2, "pet": 1}
