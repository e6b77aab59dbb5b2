"""Pairs of files, the generated data set, and how problems are told."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segsweep.data.datasets import SOURCES, Options, folder, generated_shapes, refuse
from segsweep.errors import ConfigError, DataError, NonFiniteError, OutOfMemoryError, closest
from segsweep.paths import cache


def drawn(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def keys(root):
    return [sample.key for sample in folder(Options(root=str(root)))]


def refusal(root):
    with pytest.raises(DataError) as refused:
        folder(Options(root=str(root)))
    return str(refused.value)


def test_images_and_masks_pair_by_stem_whatever_the_suffix(tmp_path):
    drawn(tmp_path / "images", "a.jpg", "b.TIF", "c.webp", "d.jpeg")
    drawn(tmp_path / "masks", "a.png", "b.bmp", "c.tiff", "d.PNG")
    samples = folder(Options(root=str(tmp_path)))
    assert [(s.key, s.image.name, s.mask.name) for s in samples] == [
        ("a", "a.jpg", "a.png"),
        ("b", "b.TIF", "b.bmp"),
        ("c", "c.webp", "c.tiff"),
        ("d", "d.jpeg", "d.PNG"),
    ]
    assert all(s.split is None for s in samples)


def test_pairs_keep_their_folders(tmp_path):
    drawn(tmp_path / "images", "b/x.png", "a/deep/x.png", "x.png")
    drawn(tmp_path / "masks", "b/x.png", "a/deep/x.png", "x.png")
    samples = {s.key: s for s in folder(Options(root=str(tmp_path)))}
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
    samples = folder(Options(root=str(tmp_path / "my images")))
    assert {s.key for s in samples} == {stem, f"{stem}/{stem}"}
    assert all(s.image.is_file() and s.mask.is_file() for s in samples)


def test_stems_that_differ_behind_a_dot_are_different(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "a.1.png", "a.2.png", "a.png")
    assert sorted(keys(tmp_path)) == ["a", "a.1", "a.2"]


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "a.png")
    drawn(tmp_path / "images", ".b.png", ".thumbnails/c.png")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "images" / "notes.txt").write_text("x")
    (tmp_path / "masks" / "a.json").write_text("{}")
    assert keys(tmp_path) == ["a"]


def test_a_hidden_folder_above_the_images_hides_nothing(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / ".cache" / kind, "a.png")
    assert keys(tmp_path / ".cache") == ["a"]


def test_a_folder_named_like_an_image_is_none(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "slide.png/a.png")
    assert keys(tmp_path) == ["slide.png/a"]


def test_unpaired_files_of_both_kinds_are_listed_together(tmp_path):
    drawn(tmp_path / "images", "a.png", "only_image.png", "sub/also.jpg")
    drawn(tmp_path / "masks", "a.png", "only_mask.png")
    message = refusal(tmp_path)
    assert "3 do not hold" in message
    for said in ("only_image.png: no mask", "also.jpg: no mask", "only_mask.png: no image"):
        assert said in message
    assert "a.png: no" not in message


def test_the_same_stem_in_another_folder_is_no_partner(tmp_path):
    drawn(tmp_path / "images", "a/x.png")
    drawn(tmp_path / "masks", "b/x.png")
    assert "2 do not hold" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(tmp_path, kind):
    for each in ("images", "masks"):
        drawn(tmp_path / each, "a.png", "b.png")
    drawn(tmp_path / kind, "a.jpg")
    message = refusal(tmp_path)
    assert "1 do not hold" in message
    assert str(tmp_path / kind / "a.jpg") in message
    assert "a.png" in message


def test_unpaired_and_doubled_files_come_in_one_error(tmp_path):
    drawn(tmp_path / "images", "a.png", "a.jpg", "b.png")
    drawn(tmp_path / "masks", "a.png", "c.png")
    assert "3 do not hold" in refusal(tmp_path)


def test_long_lists_are_cut_and_counted():
    with pytest.raises(DataError) as refused:
        refuse([f"problem {i}." for i in range(27)], "all must be well")
    message = str(refused.value)
    assert "all must be well; 27 do not hold" in message
    assert "problem 19." in message
    assert "problem 20." not in message
    assert "7 more" in message


def test_no_problem_is_no_error():
    refuse([], "all must be well")


def test_parts_are_taken_from_the_folders(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "train/a.png", "train/sub/b.png", "val/a.png", "test/c.png")
    samples = folder(Options(root=str(tmp_path)))
    assert [(s.split, s.key) for s in samples] == [("train", "a"), ("train", "sub/b"), ("val", "a"), ("test", "c")]
    assert all(s.split in s.image.parts and s.split in s.mask.parts for s in samples)


@pytest.mark.parametrize("parts", [("train",), ("train", "val"), ("train", "test")])
def test_val_and_test_need_not_be_given(tmp_path, parts):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, *(f"{part}/a.png" for part in parts))
    assert [s.split for s in folder(Options(root=str(tmp_path)))] == list(parts)


def test_folders_without_train_are_no_split(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "left/a.png", "right/a.png")
    assert [(s.split, s.key) for s in folder(Options(root=str(tmp_path)))] == [(None, "left/a"), (None, "right/a")]


def test_an_empty_part_is_refused(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "train/a.png")
    (tmp_path / "images" / "val").mkdir()
    assert str(tmp_path / "images" / "val") in refusal(tmp_path)


def test_masks_without_the_parts_of_the_images_are_refused(tmp_path):
    drawn(tmp_path / "images", "train/a.png")
    drawn(tmp_path / "masks", "a.png")
    assert "no mask" in refusal(tmp_path)


def test_images_and_masks_may_lie_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    drawn(tmp_path / "photos", "a.png")
    drawn(tmp_path / "elsewhere" / "truth", "a.png")
    drawn(tmp_path / "root" / "masks", "b.png")
    options = Options(root=str(tmp_path / "root"), images="~/photos", masks=str(tmp_path / "elsewhere" / "truth"))
    (sample,) = folder(options)
    assert sample.image == tmp_path / "photos" / "a.png"
    assert sample.mask == tmp_path / "elsewhere" / "truth" / "a.png"


def test_paths_are_absolute(tmp_path, monkeypatch):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "a.png")
    monkeypatch.chdir(tmp_path)
    (sample,) = folder(Options(root="."))
    assert sample.image.is_absolute()
    assert sample.mask.is_absolute()


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_missing_folder_is_an_error_of_the_config(tmp_path, kind):
    drawn(tmp_path / ("masks" if kind == "images" else "images"), "a.png")
    with pytest.raises(ConfigError, match=f"no such folder.*data.{kind}=DIR") as refused:
        folder(Options(root=str(tmp_path)))
    assert refused.value.exit_code == 2


def test_a_file_in_place_of_a_folder_is_an_error_of_the_config(tmp_path):
    drawn(tmp_path, "images.png")
    drawn(tmp_path / "masks", "a.png")
    with pytest.raises(ConfigError, match="not a folder"):
        folder(Options(images=str(tmp_path / "images.png"), masks=str(tmp_path / "masks")))


def test_no_folder_at_all_is_an_error_of_the_config():
    with pytest.raises(ConfigError, match=r"data\.images=DIR") as refused:
        folder(Options())
    assert refused.value.exit_code == 2


def test_images_cannot_be_their_own_masks(tmp_path):
    drawn(tmp_path / "images", "a.png")
    with pytest.raises(ConfigError, match="same folder"):
        folder(Options(images=str(tmp_path / "images"), masks=str(tmp_path / "images" / ".." / "images")))


def test_an_empty_folder_is_an_error_of_the_data(tmp_path):
    (tmp_path / "images").mkdir()
    drawn(tmp_path / "masks", "a.png")
    with pytest.raises(DataError, match="no images in it") as refused:
        folder(Options(root=str(tmp_path)))
    assert refused.value.exit_code == 3
    assert str(tmp_path / "images") in str(refused.value)


def test_sources_are_called_by_name(tmp_path):
    for kind in ("images", "masks"):
        drawn(tmp_path / kind, "a.png")
    assert [s.key for s in SOURCES["folder"](Options(root=str(tmp_path)))] == ["a"]
    assert len(SOURCES["shapes"](Options(count=5))) == 5


def test_generated_images_come_with_a_split():
    samples = generated_shapes(Options(count=10))
    assert [s.split for s in samples].count("train") == 6
    assert {s.split for s in samples} == {"train", "val", "test"}
    assert all(s.image.is_relative_to(cache()) for s in samples)


def test_generated_images_are_made_once():
    first = [s.image.stat().st_mtime_ns for s in generated_shapes(Options(count=5))]
    assert [s.image.stat().st_mtime_ns for s in generated_shapes(Options(count=5))] == first


def test_generated_images_are_the_same_for_the_same_seed(tmp_path, monkeypatch):
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        monkeypatch.setenv("SEGSWEEP_OUTPUTS", str(tmp_path / name))
        contents.append([s.image.read_bytes() for s in generated_shapes(Options(count=5, seed=seed))])
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_generated_sets_of_another_size_or_seed_lie_apart():
    folders = {generated_shapes(Options(count=n, seed=seed))[0].image.parents[2] for n in (5, 6) for seed in (0, 1)}
    assert len(folders) == 4


def test_a_killed_generator_leaves_nothing_that_counts(monkeypatch):
    def killed(folder, count, seed):
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "rubbish.png").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("segsweep.data.shapes.write", killed)
        with pytest.raises(KeyboardInterrupt):
            generated_shapes(Options(count=5))
    samples = generated_shapes(Options(count=5))
    assert len(samples) == 5
    assert not list(samples[0].image.parents[2].rglob("rubbish*"))


def test_two_processes_may_generate_at_once():
    code = (
        "import sys; from segsweep.data.datasets import Options, generated_shapes\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(*(s.image for s in generated_shapes(Options(count=10))), sep='|')"
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
    expected = "|".join(str(s.image) for s in generated_shapes(Options(count=10)))
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
    samples = folder(Options(root=str(root), mask_suffix="_mask"))
    assert [s.key for s in samples] == ["000", "001", "002", "003"]
    assert samples[0].mask.name == "000_mask.png"


def test_a_table_gives_pairs_splits_groups_and_folds(pairs):
    root = pairs(3)
    rows = [f"images/{i:03d}.png,masks/{i:03d}.png,{s},g{i},{i}" for i, s in enumerate(("train", "val", "test"))]
    samples = folder(Options(table=str(table(root, rows))))
    assert [(s.key, s.split, s.group, s.fold) for s in samples] == [
        ("images/000", "train", "g0", 0),
        ("images/001", "val", "g1", 1),
        ("images/002", "test", "g2", 2),
    ]


def test_a_table_may_have_two_columns_and_names_with_commas_and_quotes(pairs):
    root = pairs(2)
    (root / "images" / "000.png").rename(root / "images" / 'a, "b" ü.png')
    rows = ['"images/a, ""b"" ü.png",masks/000.png', "images/001.png,masks/001.png"]
    samples = folder(Options(table=str(table(root, rows, "image,mask"))))
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
    with pytest.raises(DataError) as error:
        folder(Options(table=str(table(root, rows))))
    for said in ("line 2: ../secret.png: not a file below", "line 3: images/nope.png", "split 'dev'", "fold 'x'"):
        assert said in str(error.value)


def test_a_table_half_split_or_with_a_pair_twice_is_refused(pairs):
    root = pairs(2)
    rows = ["images/000.png,masks/000.png,train,,", "images/001.png,masks/001.png,,,"]
    with pytest.raises(DataError, match="split is given in 1 rows only"):
        folder(Options(table=str(table(root, rows))))
    with pytest.raises(DataError, match="listed 2 times"):
        folder(Options(table=str(table(root, [rows[0], rows[0]]))))


def test_a_table_without_its_columns_is_refused(pairs):
    root = pairs(1)
    with pytest.raises(DataError, match="needs the columns image and mask"):
        folder(Options(table=str(table(root, ["a,b"], "picture,label"))))
    with pytest.raises(ConfigError, match="no such file"):
        folder(Options(table=str(root / "nope.csv")))


def test_camvid_is_read_in_its_own_layout(tmp_path):
    for part in ("train", "val", "test"):
        for suffix, name in (("", "0001.png"), ("annot", "0001.png")):
            (tmp_path / f"{part}{suffix}").mkdir()
            Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / f"{part}{suffix}" / name)
    samples = SOURCES["camvid"](Options(root=str(tmp_path)))
    assert [(s.split, s.image.parent.name, s.mask.parent.name) for s in samples] == [
        ("train", "train", "trainannot"),
        ("val", "val", "valannot"),
        ("test", "test", "testannot"),
    ]
    with pytest.raises(ConfigError, match=r"data\.root"):
        SOURCES["camvid"](Options())


def test_the_real_camvid_has_its_official_split(real_data):
    samples = SOURCES["camvid"](Options(root=str(real_data / "camvid")))
    assert [sum(s.split == part for s in samples) for part in ("train", "val", "test")] == [367, 101, 233]
