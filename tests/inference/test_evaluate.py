"""Evaluation: the training's own scores to the last digit, and what training does not tell."""

import csv
import json
import math
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from conftest import train_once
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import ndimage

from segsweep import metrics
from segsweep.commands import app as cli
from segsweep.inference.evaluate import (
    Counts,
    _write,
    best_threshold,
    bootstrap,
    boundaries,
    boundary,
    curve,
    histogram,
)
from segsweep.runs import journal
from segsweep.tracking.client import connected, tracking_uri
from segsweep.tracking.run import run_id, sync

OTHER = (40, 50)  # pixels of images that are not those of the trained run: `pairs` draws the same ones each time


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, to be written to."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return tmp_path / "run"


def metrics_of(run, name="val"):
    return json.loads((run / "evaluations" / name / "metrics.json").read_text())


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_trainings_scores_come_out_again_to_the_last_digit(run, capsys):
    assert cli.main(["evaluate", str(run)]) == 0
    found = metrics_of(run)["metrics"]
    best = journal.read(run).best.metrics
    for name in ("iou", "dice", "accuracy", "iou_image", "iou/background"):
        assert found[name] == best[f"val/{name}"]
    said = capsys.readouterr().out
    assert f"IoU                 {found['iou']:.4f}" in said
    assert "test scored" not in said
    images = rows(run / "evaluations" / "val" / "images.csv")
    keys = np.load(run / "val_matrices.npz")["keys"]
    assert {row["key"] for row in images} == set(keys.tolist())
    confusion = rows(run / "evaluations" / "val" / "confusion.csv")
    assert sum(int(row[name]) for row in confusion for name in ("background", "foreground")) == 4 * 40 * 48
    halfway = next(row for row in rows(run / "evaluations" / "val" / "thresholds.csv") if float(row["at"]) == 0.5)
    assert float(halfway["iou"]) == found["iou"]
    assert found["threshold/iou"] >= found["iou"]
    low, high = metrics_of(run)["intervals"]["iou"]
    assert low <= found["iou"] <= high
    assert low < high


def test_other_data_and_splits_have_their_own_folder(run, pairs, capsys):
    other = pairs(9, splits=("train", "val", "test"), size=OTHER, name="other")
    assert cli.main(["evaluate", str(run), "data=folder", f"data.root={other}", "--split", "test"]) == 0
    (folder,) = (run / "evaluations").glob("test-other-*")
    found = metrics_of(run, folder.name)
    assert (found["split"], found["images"], found["times"], found["own"]) == ("test", 9, 0, False)
    said = capsys.readouterr().out
    assert "test scored" not in said
    assert "chosen on the validation split" in said
    assert found["threshold_chosen_on"] == "val"
    typed = ["data=folder", f"data.root={other}", "--name", "theirs"]
    assert cli.main(["evaluate", str(run), *typed]) == 0
    assert "chosen on these images, so its IoU is optimistic" in capsys.readouterr().out
    val = [
        {k: float(v or "nan") for k, v in r.items()} for r in rows(run / "evaluations" / "theirs" / "thresholds.csv")
    ]
    # What is best on val is scored on test, whatever is best there.
    assert found["metrics"]["threshold/at"] == val[best_threshold(val)]["at"]
    at = next(r for r in rows(folder / "thresholds.csv") if float(r["at"]) == found["metrics"]["threshold/at"])
    assert float(at["iou"]) == found["metrics"]["threshold/iou"]
    assert cli.main(["evaluate", str(run), "--split", "test"]) == 2
    assert "--split test: the data have val, train. Try --split val." in capsys.readouterr().err


def test_of_other_data_without_a_split_every_image_is_scored(run, pairs, capsys):
    other = pairs(7, size=OTHER, name="other")
    typed = ["evaluate", str(run), "data=folder", f"data.root={other}", "--name"]
    assert cli.main([*typed, "usual"]) == cli.main([*typed, "asked", "--split", "all"]) == 0
    said = capsys.readouterr().out
    assert said.count("       all    95 % over 7 images") == 2
    assert said.count("chosen on these images, so its IoU is optimistic") == 2
    found = metrics_of(run, "usual")
    assert (found["split"], found["images"], found["own"], found["threshold_chosen_on"]) == ("all", 7, False, "all")
    assert metrics_of(run, "asked") == found
    confusion = np.zeros((2, 2))
    for part in ("train", "val"):  # what all holds are its parts
        assert cli.main([*typed, part, "--split", part]) == 0
        confusion += [
            [int(n) for n in list(r.values())[1:]] for r in rows(run / "evaluations" / part / "confusion.csv")
        ]
    assert found["images"] == metrics_of(run, "train")["images"] + metrics_of(run, "val")["images"]
    assert found["metrics"]["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    split = pairs(6, splits=("train", "val"), size=OTHER, name="split")
    assert cli.main(["evaluate", str(run), "data=folder", f"data.root={split}", "--name", "given"]) == 0
    assert metrics_of(run, "given")["split"] == "val"
    assert cli.main([*typed[:-1], "data.folds=3", "--name", "fold"]) == 0
    assert metrics_of(run, "fold")["split"] == "val"


def test_intervals_of_grouped_images_are_over_groups(run, pairs, capsys):
    other = pairs(12, size=OTHER, name="other")
    typed = ["evaluate", str(run), "data=folder", f"data.root={other}"]
    assert cli.main([*typed, "data.group='^..'"]) == cli.main(typed) == 0
    said = capsys.readouterr().out
    assert said.count("       all    95 % over 2 groups of images") == 1
    assert said.count("       all    95 % over 12 images") == 1


def test_a_split_may_be_called_otherwise(run, capsys):
    for word in ("validation", "valid"):
        assert cli.main(["evaluate", str(run), "--split", word]) == 0
        assert "       val    95 % over 4 images" in capsys.readouterr().out
    assert [path.name for path in (run / "evaluations").iterdir()] == ["val"]


def test_other_views_are_what_a_run_with_them_scores(run):
    assert cli.main(["evaluate", str(run), "--tta", "hflip"]) == 0
    mirrored = metrics_of(run, "val-tta-hflip")
    assert mirrored["tta"] == "hflip"
    assert cli.main(["evaluate", str(run), "--tta", "none"]) == 0
    assert metrics_of(run)["metrics"] != mirrored["metrics"]
    path = run / "best.safetensors"
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["segsweep"])
    assert about["tta"] == "none"
    save_file(load_file(path), path, metadata={"segsweep": json.dumps(about | {"tta": "hflip"})})
    assert cli.main(["evaluate", str(run)]) == 0
    assert metrics_of(run) == mirrored


def test_images_that_were_learnt_are_refused(run, trained, capsys):
    """The same files in another split: most were in the training's."""
    typed = ["data=folder", f"data.root={trained.root}", "data.split=[0.3,0.3,0.4]"]
    assert cli.main(["evaluate", str(run), *typed, "--split", "test"]) == 2
    assert "were in the run's training split" in capsys.readouterr().err
    assert not (run / "evaluations").exists()
    assert cli.main(["evaluate", str(run), "--split", "train"]) == 0


def test_images_that_were_learnt_are_known_by_their_pixels_wherever_they_lie(run, trained, pairs, capsys):
    """In another folder, under other names and in files of another kind, among images that are new."""
    copy = pairs(5, size=OTHER, name="copy")
    for path in (trained.root / "images").iterdir():
        Image.open(path).save(copy / "images" / f"again {path.stem}.bmp")
        shutil.copy(trained.root / "masks" / path.name, copy / "masks" / f"again {path.name}")
    typed = ["evaluate", str(run), "data=folder", f"data.root={copy}", "--name", "copy", "--split", "all"]
    assert cli.main(typed) == 2
    assert "8 of these 17 images were in the run's training split" in capsys.readouterr().err
    before = rows(run / "split.csv")
    with (run / "split.csv").open("w", newline="") as file:  # as older versions wrote it
        table = csv.DictWriter(file, [name for name in before[0] if name != "content"], extrasaction="ignore")
        table.writeheader()
        table.writerows(before)
    assert cli.main(typed) == cli.main(["evaluate", str(run)]) == 0
    assert (metrics_of(run, "copy")["images"], metrics_of(run)["images"]) == (17, 4)


@pytest.mark.parametrize(("words", "own"), [(["data.folds=3", "data.fold=1"], 8), (["data.overfit=4"], 4)])
def test_other_data_are_scored_whole_though_a_run_took_a_part_of_its_own(words, own, pairs, tmp_path):
    run = train_once(tmp_path, pairs(12), "data.size=[32,32]", "train.epochs=1", *words)
    for n in (7, 2):  # two are too few for folds
        other = pairs(n, size=OTHER, name=str(n))
        assert cli.main(["evaluate", str(run), f"data.root={other}", "--name", str(n)]) == 0
    assert cli.main(["evaluate", str(run), "--split", "train"]) == 0
    found = [metrics_of(run, name) for name in ("7", "2", "train")]
    scored = [(one["split"], one["images"], one["own"]) for one in found]
    assert scored == [("all", 7, False), ("all", 2, False), ("train", own, True)]


def test_copies_in_the_runs_own_split_and_images_of_one_colour_are_scored(pairs, tmp_path):
    root, other = pairs(6, splits=("train", "val")), pairs(3, size=OTHER, name="other")
    for kind, black in product(("images", "masks"), (root / "{}" / "train", other / "{}")):
        Image.new("RGB" if kind == "images" else "L", (48, 40)).save(str(black / "black.png").format(kind))
        shutil.copy(root / kind / "train" / "train000.png", root / kind / "val" / "copy.png")
    run = train_once(tmp_path, root, "data.size=[32,32]", "train.epochs=1")
    assert cli.main(["evaluate", str(run)]) == 0
    assert cli.main(["evaluate", str(run), f"data.root={other}", "--name", "other"]) == 0
    assert (metrics_of(run)["images"], metrics_of(run, "other")["images"]) == (7, 4)


def test_all_of_the_runs_own_images_are_refused(run, trained, tmp_path, capsys):
    """What the refusal says to type works."""
    own = ["evaluate", str(run)]
    assert cli.main([*own, "--split", "all"]) == 2
    assert "8 of these 12 images were in the run's training split" in (said := capsys.readouterr().err)
    assert said.endswith("Leave out data.split, data.fold, data.seed and data.group, and type --split val.\n")
    assert cli.main([*own, "--split", "val"]) == 0
    table = tmp_path / "some.csv"  # other data by their digest, of the same files
    names = [f"{path.name}" for path in sorted((trained.root / "images").iterdir())][:10]
    table.write_text("image,mask\n" + "".join(f"images/{name},masks/{name}\n" for name in names))
    some = [*own, "data=folder", f"data.table={table}", f"data.root={trained.root}"]
    capsys.readouterr()
    assert cli.main([*some, "--split", "all"]) == 2
    assert "of these 10 images were in the run's training split" in (said := capsys.readouterr().err)
    assert said.endswith("Give data without them, or type --split train.\n")
    assert cli.main([*some, "--split", "train"]) == 0
    assert cli.main([*some, "data.split=[0.2,0.8]"]) == 2  # not `all` without being asked
    assert "--split val: " in capsys.readouterr().err


def test_only_the_record_says_what_a_run_was(run, tmp_path):
    """What lies in `.hydra/` is for people: nothing in it is composed, and nothing of it runs."""
    word = f"+hydra.callbacks.d={{_target_: pathlib.Path.touch, self: {tmp_path / 'ran'}}}"
    for path in (run / ".hydra").iterdir():
        path.write_text(f"- '{word}'\n- 'data.root=${{oc.env:HOME}}'\n")
    assert cli.main(["evaluate", str(run)]) == 0
    shutil.rmtree(run / ".hydra")
    assert cli.main(["evaluate", str(run)]) == 0
    assert not (tmp_path / "ran").exists()


def test_a_damaged_evaluation_is_one_line_that_names_it(run, capsys):
    path = run / "evaluations" / "val" / "metrics.json"
    path.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"split": 3}'):
        path.write_text(text)
        assert cli.main(["evaluate", str(run)]) == 2
        assert f"{path}: damaged: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "..", "a/b", ""])
def test_a_name_is_that_of_a_folder(run, name, capsys):
    assert cli.main(["evaluate", str(run), "--name", name]) == 2
    assert "must be the name of a folder" in capsys.readouterr().err


def test_looks_at_the_test_split_are_counted(run, pairs, tmp_path, outputs, capsys):
    from conftest import TINY

    import train

    root = pairs(6, splits=("train", "val", "test"), name="other")
    typed = [
        "data=folder",
        f"data.root={root}",
        "data.size=[48,64]",
        "train.epochs=1",
        "train.batch_size=4",
        "tracking=none",
    ]
    folder = tmp_path / "tested"
    assert train.main([*TINY, *typed, f"hydra.run.dir={folder}"]) == 0
    for looks in (2, 3):  # the training's own was the first
        assert cli.main(["evaluate", str(folder), "--split", "test"]) == 0
        assert f"test scored       {looks} time" in capsys.readouterr().out
    assert cli.main(["evaluate", str(folder), "--split", "test", "--name", "again"]) == 0
    assert "test scored       4 times so far" in capsys.readouterr().out
    tested = journal.read(folder).end.tested["test/iou"]
    assert metrics_of(folder, "test")["metrics"]["iou"] == tested


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["data.classes=[sky,car]"], "the data have the classes sky, car; the model was trained on background"),
        (["data=camvid"], "data"),
        (["nonsense=1"], "nonsense"),
    ],
)
def test_data_that_the_model_was_not_made_for_is_refused(run, typed, said, capsys):
    assert cli.main(["evaluate", str(run), *typed]) in (2, 3)
    said_ = capsys.readouterr().err
    assert said in said_
    assert "Traceback" not in said_
    assert not (run / "evaluations").exists()


def test_16_bits_are_refused(run, pairs, capsys):
    root = pairs(6, grey=True, name="deep")
    for path in (root / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)
    assert cli.main(["evaluate", str(run), "data=folder", f"data.root={root}"]) == 2
    assert "the data are uint16; the model was trained on uint8" in capsys.readouterr().err


def test_mlflow_hears_of_it(run, database):
    uri = tracking_uri()
    sync(run, uri)
    assert cli.main(["evaluate", str(run)]) == 0
    found = connected(uri).get_run(run_id(run))
    assert found.data.metrics["evaluate/val/boundary_iou"] == metrics_of(run)["metrics"]["boundary_iou"]
    names = [f.path for f in connected(uri).list_artifacts(found.info.run_id, "evaluations/val")]
    assert "evaluations/val/images.csv" in names


def squares(*corners, size=(60, 80), side=20):
    mask = torch.zeros(size, dtype=torch.int64)
    for top, left in corners:
        mask[top : top + side, left : left + side] = 1
    return mask


@pytest.mark.parametrize("size", [(60, 80), (200, 90), (33, 400), (8, 8)])
def test_boundaries_are_what_erosion_takes_away(size):
    """Against SciPy's erosion, as the paper's authors do it: a 3x3 square, as often as the boundary is thick."""
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=size), 4) > 0
    times = max(1, round(0.02 * np.hypot(*size)))
    eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=times, border_value=0)
    found = boundary(torch.from_numpy(mask), torch.zeros(size, dtype=torch.bool))
    assert np.array_equal(found.numpy(), mask & ~eroded)


def test_void_pixels_are_no_edge_and_in_no_boundary():
    mask = squares((20, 30)).bool()
    void = torch.zeros_like(mask)
    void[:, 40:] = True  # the right half of the square, and all behind
    found = boundary(mask, void)
    assert not found[:, 40:].any()
    assert not found[30, 35:40].any()  # beside the void, far from the other edges
    assert found[30, 30]


def test_boundary_iou_of_equal_masks_is_one_and_a_shift_costs_more_than_iou():
    target = squares((20, 30), (0, 60))
    both, either = boundaries(target, target, 2).T
    assert np.array_equal(both, either)
    assert (both > 0).all()
    shifted = torch.roll(target, 2, 1)
    both, either = boundaries(shifted, target, 2)[1].tolist()
    plain = float((shifted & target).sum() / (shifted | target).sum())
    assert 0 < both / either < plain


def test_the_curve_is_what_counting_at_each_threshold_gives():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 70, generator=rng) * 3
    target = torch.randint(0, 2, (50, 70), generator=rng)
    target[:5] = 255
    found = {row["at"]: row for row in curve(histogram(logits, target))}
    assert len(found) == 255
    counted = target != 255
    for at in (1 / 256, 0.25, 0.5, 0.75, 255 / 256):
        predicted = logits.double().sigmoid()[counted] > at
        true, actual = predicted & (target[counted] == 1), target[counted] == 1
        assert found[at]["precision"] == pytest.approx(float(true.sum() / predicted.sum()))
        assert found[at]["recall"] == pytest.approx(float(true.sum() / actual.sum()))
        assert found[at]["iou"] == pytest.approx(float(true.sum() / (predicted | actual).sum()))
        assert found[at]["dice"] == pytest.approx(2 * float(true.sum() / (predicted.sum() + actual.sum())))


def test_intervals_narrow_with_more_images_and_hold_the_score():
    rng = np.random.default_rng(0)

    def interval(images):
        counts = Counts()
        for i in range(images):
            hits, missed = rng.integers(50, 100, 2)
            counts.keys.append(str(i))
            counts.matrices.append(np.array([[1000, 10], [missed, hits]]))
            counts.boundaries.append(np.array([[5, 10], [hits, 200]]))
        return bootstrap(counts)

    few, many = interval(8), interval(512)
    for name in ("iou", "dice", "accuracy", "boundary_iou"):
        assert many[name][1] - many[name][0] < (few[name][1] - few[name][0]) / 3
    low, high = many["iou"]
    assert low < 75 / 160 < high
    alone = bootstrap(Counts(["a"], [np.eye(2, dtype=int)], [np.ones((2, 2), int)]))
    assert all(math.isnan(edge) for between in alone.values() for edge in between), "one image has no interval"


def drawn_counts(images, classes=2):
    """Counts of images in which every class is."""
    rng = np.random.default_rng(1)
    each = [rng.integers(1, 200, (images, classes, columns)) for columns in (classes, 2)]
    each[1][..., 1] += each[1][..., 0]
    return Counts([f"{i:03}" for i in range(images)], *map(list, each))


def test_groups_are_drawn_as_images_whose_pixels_are_theirs_together():
    counts = drawn_counts(30, classes=3)
    groups = [f"clip{i % 7}" for i in range(30)]
    together = Counts(sorted(set(groups)))
    for name in together.keys:
        inside = [i for i, group in enumerate(groups) if group == name]
        together.matrices.append(sum(counts.matrices[i] for i in inside))
        together.boundaries.append(sum(counts.boundaries[i] for i in inside))
    found = bootstrap(counts, groups)
    assert found == bootstrap(together)
    assert all(high - low > 0 for low, high in found.values())
    assert found != bootstrap(counts) == bootstrap(counts, counts.keys)
    alone = bootstrap(counts, ["clip"] * 30)
    assert all(math.isnan(edge) for between in alone.values() for edge in between)


@pytest.mark.parametrize("classes", [3, 6])
def test_accuracy_is_of_all_draws_and_means_are_of_a_tenth_of_them_at_least(classes):
    """Each class is in one image: a draw holds them all with a chance of n! / n^n, 22 % of three and 1.5 % of six."""
    counts = drawn_counts(classes, classes)
    for i, matrix in enumerate(counts.matrices):
        matrix[np.arange(classes) != i] = 0
    found = bootstrap(counts)
    weights = metrics.resample(np.random.default_rng(0), classes)
    drawn = metrics.pool(np.stack(counts.matrices), weights)
    assert found["accuracy"] == metrics.interval(metrics.accuracy(drawn))
    for name in ("iou", "dice", "boundary_iou"):
        assert all(math.isnan(edge) is (classes == 6) for edge in found[name])


def test_of_equal_thresholds_the_one_closest_to_a_half_is_best():
    rows = [{"at": at, "iou": iou} for at, iou in ((0.1, 0.9), (0.4, 0.9), (0.7, 0.9), (0.8, float("nan")), (0.9, 0.2))]
    assert best_threshold(rows) == 1
    assert best_threshold([{"at": 0.5, "iou": float("nan")}]) is None


def test_a_class_of_one_image_does_not_leave_the_mean():
    """Draws without it would be means over other classes."""
    counts = Counts(keys=[str(i) for i in range(12)])
    rare = np.array([[90, 10, 0], [10, 90, 0], [0, 45, 5]])
    usual = np.array([[90, 10, 0], [10, 90, 0], [0, 0, 0]])
    counts.matrices = [rare, *[usual] * 11]
    counts.boundaries = [np.ones((3, 2), int)] * 12
    low, high = bootstrap(counts)["iou"]
    score = metrics.pooled_iou(np.sum(counts.matrices, 0))
    assert low <= score <= high < score + 0.1


def test_nothing_there_has_no_interval():
    counts = Counts(keys=["a", "b"])
    counts.matrices = [np.array([[100, 0], [0, 0]])] * 2
    counts.boundaries = [np.zeros((2, 2), int)] * 2
    found = bootstrap(counts)
    assert all(math.isnan(edge) for edge in found["iou"])
    assert found["accuracy"] == (1.0, 1.0)


def test_a_class_may_be_called_as_the_first_column_of_the_confusion_matrix(tmp_path):
    matrix = np.array([[5, 1], [2, 8]])
    _write(tmp_path, Counts(["i"], [matrix], [np.ones((2, 2), int)]), ["other", "target"], [])
    with (tmp_path / "confusion.csv").open() as file:
        assert list(csv.reader(file)) == [["target", "other", "target"], ["other", "5", "1"], ["target", "2", "8"]]
