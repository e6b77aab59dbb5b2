"""Cross-validation: out-of-fold predictions together, groups drawn together, and what is said of it."""

import csv
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
from fake_train import config, end, epoch, start
from PIL import Image
from records import write_about

import train
from segsweep import metrics
from segsweep.commands import app as cli
from segsweep.metrics import MATRICES
from segsweep.runs import journal
from segsweep.runs.journal import Journal
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import about, crossval, mirror, report
from segsweep.sweeping.html_report import write

FOLDS = 3


def images(rng, k, quality, n=10, size=400):
    """Targets and predictions of one fold, each `n size`: a prediction is right with this probability."""
    targets = rng.integers(0, k, (n, size)) * (rng.random((n, 1)) < 0.8)
    wrong = rng.random((n, size)) >= quality * rng.uniform(0.6, 1, (n, 1))
    return targets, np.where(wrong, rng.integers(0, k, (n, size)), targets)


def kept(folder, number, fold, truth, setting=(), groups=None, state="complete"):
    """A fold's trial with its journal, matrices and split, as a sweep leaves it; returns the images' names."""
    targets, predictions = truth
    k = max(targets.max(), predictions.max()) + 1
    typed = [*setting, f"data.fold={fold}"]
    trial = Trial(str(number), "resnet18", typed, ["sweeps=cv", "data.folds=3", *typed], {}, state)
    trial.save(folder)
    if state != "complete":
        return []
    asked = config(epochs=1)
    asked = replace(asked, data=replace(asked.data, folds=FOLDS, fold=fold))
    pixels = [np.bincount(k * t + p, minlength=k * k).reshape(k, k) for t, p in zip(targets, predictions, strict=True)]
    keys = [f"fold{fold}/image{i}" for i in range(len(targets))]
    with Journal(folder / trial.name) as book:
        book.write(start(asked))
        book.write(epoch(1, iou(targets, predictions)))
        book.write(end())
    np.savez(folder / trial.name / MATRICES, keys=keys, matrices=np.stack(pixels), epoch=1)
    with (folder / trial.name / "split.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "split", "group", "fold", "image", "mask"])
        for i, key in enumerate(keys):
            rows.writerow([key, "val", groups(fold, i) if groups else key, fold, "", ""])
    return keys


def iou(targets, predictions):
    """The product's definition, from the pixels themselves: the foreground's of two classes, else the classes' mean."""
    k = max(targets.max(), predictions.max()) + 1
    found = [
        ((targets == c) & (predictions == c)).sum() / ((targets == c) | (predictions == c)).sum()
        for c in range(k)
        if (targets == c).any()
    ]
    return float(found[1] if k == 2 else np.mean(found))


def drawn_groups(truths, groups, draws=600):
    """The 95 % interval by drawing whole groups of images and scoring their pixels, the slow way."""
    rng = np.random.default_rng(11)
    of = {}
    for fold, (targets, predictions) in enumerate(truths):
        for i in range(len(targets)):
            of.setdefault(groups(fold, i), []).append((targets[i], predictions[i]))
    members = list(of.values())
    found = []
    for _ in range(draws):
        chosen = [pair for g in rng.integers(len(members), size=len(members)) for pair in members[g]]
        found.append(iou(np.stack([t for t, _ in chosen]), np.stack([p for _, p in chosen])))
    return np.percentile(found, [2.5, 97.5])


def crossed(folder):
    write_about(folder, cross_validates=True)
    return crossval.results(folder, load_all(folder))


@pytest.mark.parametrize("k", [2, 4])
def test_the_score_is_that_of_all_out_of_fold_predictions_together(tmp_path, k):
    rng = np.random.default_rng(k)
    truths = [images(rng, k, 0.5 + 0.15 * fold, n=6 + 2 * fold) for fold in range(FOLDS)]
    for fold, truth in enumerate(truths):
        kept(tmp_path, fold, fold, truth)
    (result,) = crossed(tmp_path)
    together = [np.concatenate([truth[side] for truth in truths]) for side in (0, 1)]
    assert result.iou == pytest.approx(iou(*together), abs=1e-12)
    own = [iou(*truth) for truth in truths]
    assert abs(result.iou - np.mean(own)) > 1e-3  # which is another number
    assert (result.mean, result.sd) == (pytest.approx(np.mean(own)), pytest.approx(np.std(own, ddof=1)))
    assert (result.folds, result.images, result.groups) == (3, 24, 24)
    expected = drawn_groups(truths, lambda fold, i: (fold, i))
    assert np.allclose(result.interval, expected, atol=0.012)
    assert result.interval[0] < result.iou < result.interval[1]


def test_images_of_a_group_are_drawn_together(tmp_path):
    """Ten images of a group are alike, so the interval is wider than that of as many single images."""
    rng = np.random.default_rng(0)
    truths = []
    for _ in range(FOLDS):
        parts = [images(rng, 2, quality, n=10) for quality in rng.uniform(0.2, 1, 3)]
        truths.append(tuple(np.concatenate([part[side] for part in parts]) for side in (0, 1)))

    def of(fold, i):
        return f"patient{fold}-{i // 10}"

    for name, groups in (("grouped", of), ("single", None)):
        for fold, truth in enumerate(truths):
            kept(tmp_path / name, fold, fold, truth, groups=groups)
    (grouped,), (single,) = crossed(tmp_path / "grouped"), crossed(tmp_path / "single")
    assert (grouped.images, grouped.groups, single.groups) == (90, 9, 90)
    assert grouped.iou == single.iou
    assert np.allclose(grouped.interval, drawn_groups(truths, of), atol=0.02)
    widths = [high - low for low, high in (grouped.interval, single.interval)]
    assert widths[0] > 1.5 * widths[1]
    assert "over 9 groups of images" in " ".join(report.cross_caption([grouped]))
    assert "over images" in " ".join(report.cross_caption([single]))


def three_settings(folder):
    rng = np.random.default_rng(5)
    numbers = iter(range(9))
    targets = [images(rng, 2, 1.0) for _ in range(FOLDS)]
    for encoder, quality in (("a", 0.6), ("b", 0.9), ("c", 0.7)):
        for fold in range(FOLDS):
            noise = rng.random(targets[fold][0].shape) >= quality
            truth = targets[fold][0], np.where(noise, rng.integers(0, 2, noise.shape), targets[fold][0])
            state = "failed" if (encoder, fold) == ("c", 1) else "complete"
            kept(folder, next(numbers), fold, truth, [f"encoder={encoder}"], state=state)
    return crossed(folder)


def test_settings_are_ranked_and_one_that_lacks_a_fold_has_no_score(tmp_path):
    best, second, last = three_settings(tmp_path)
    assert [result.setting for result in (best, second, last)] == [["encoder=b"], ["encoder=a"], ["encoder=c"]]
    assert best.behind is None
    low, high = second.behind
    assert 0 < low < best.iou - second.iou < high
    assert (last.iou, last.interval, last.problem) == (None, None, "fold 1: failed")


def test_the_end_the_page_and_the_record_say_the_same(tmp_path):
    best, *_ = found = three_settings(tmp_path)
    trials = list(load_all(tmp_path))
    said = report.summary(trials, [], tmp_path)
    score, between = f"{best.iou:.4f}", f"{best.interval[0]:.4f} to {best.interval[1]:.4f}"
    spread = f"{best.mean:.4f} ± {best.sd:.4f}"
    assert f"IoU             {score}   95 % {between}, out of fold, 30 images" in said
    assert f"spread of folds {spread}\n" in said
    assert "fold 1: failed" in said
    assert "python train.py sweeps=cv data.folds=3 encoder=b data.fold=0 hydra.mode=RUN" in said
    page = write(tmp_path).read_text()
    assert "<h2>Cross-validation</h2>" in page
    assert all(text in page for text in (score, between, spread, "fold 1: failed"))
    replace(about.load(tmp_path), cross_validation=found).save(tmp_path)
    assert about.load(tmp_path).cross_validation == found
    assert json.loads((tmp_path / "sweep.json").read_text())["cross_validation"][0]["iou"] == best.iou


def test_what_the_end_wrote_down_is_what_is_said_later(tmp_path):
    """The page and the summary of a sweep that is over ask no matrices: `sweep.json` has it."""
    best, *_ = found = three_settings(tmp_path)
    replace(about.load(tmp_path), cross_validation=found).save(tmp_path)
    for path in tmp_path.rglob(MATRICES):
        path.unlink()
    trials = list(load_all(tmp_path))
    assert crossval.results(tmp_path, trials) == found
    assert f"IoU             {best.iou:.4f} " in report.summary(trials, [], tmp_path)
    assert f"{best.iou:.4f}" in write(tmp_path).read_text()
    shutil.rmtree(tmp_path / best.trials[0])
    said = report.summary(list(load_all(tmp_path)), [], tmp_path)
    assert f"IoU             {best.iou:.4f} " in said
    assert "command" not in said


def test_each_setting_is_resampled_once(tmp_path, monkeypatch):
    drawn = []
    draw = metrics.resample
    monkeypatch.setattr(metrics, "resample", lambda *given: (drawn.append(1), draw(*given))[1])
    three_settings(tmp_path)
    assert len(drawn) == 2  # the third has no score


def test_mlflow_is_told_the_score_and_the_spread(tmp_path, monkeypatch):
    best, *_ = found = three_settings(tmp_path)
    replace(about.load(tmp_path), cross_validation=found).save(tmp_path)
    told = []
    monkeypatch.setattr(mirror, "close_sweep", lambda *arguments: told.append(arguments[3]))
    mirror.Mirror(tmp_path, None).close("complete", "", [])
    assert told == [{"cv/val_iou": best.iou, "cv/fold_mean": best.mean, "cv/fold_sd": best.sd}]


def test_folds_that_do_not_fit_together_give_no_score(tmp_path):
    rng = np.random.default_rng(1)
    for fold in range(FOLDS):
        kept(tmp_path, fold, fold, images(rng, 2 + (fold == 1), 0.9))
    assert "its classes differ" in crossed(tmp_path)[0].problem
    (tmp_path / "0" / MATRICES).unlink()
    assert "lacks the val_matrices.npz" in crossed(tmp_path)[0].problem
    assert "IoU    " not in report.summary(list(load_all(tmp_path)), [], tmp_path)
    write(tmp_path)


def test_folds_whose_classes_have_another_order_are_brought_to_one(tmp_path):
    """Those of an older version: their background may come last."""
    names, rng = ["background", "crack", "oxide"], np.random.default_rng(3)
    truths = [images(rng, 3, 0.7) for _ in range(FOLDS)]
    for fold, truth in enumerate(truths):
        kept(tmp_path / "one", fold, fold, truth)
        turned = [(part + 1) % 3 for part in truth] if fold else truth
        kept(tmp_path / "two", fold, fold, turned)
        for place in ("one", "two"):
            book = tmp_path / place / str(fold) / "metrics.jsonl"
            order = [names[-1], *names[:-1]] if fold and place == "two" else names
            line, *rest = book.read_text().splitlines()
            began = {**json.loads(line), "classes": order}
            book.write_text("\n".join([json.dumps(began), *rest, ""]))
    assert crossed(tmp_path / "two")[0].iou == crossed(tmp_path / "one")[0].iou


def test_another_sweep_over_folds_is_no_cross_validation(tmp_path):
    kept(tmp_path, 0, 0, images(np.random.default_rng(0), 2, 0.9))
    write_about(tmp_path)
    assert crossval.results(tmp_path, load_all(tmp_path)) == []


def test_a_cross_validation_from_the_command_line(pairs, tmp_path, capsys, monkeypatch):
    """The score against the masks that each fold's model predicts for the images that it has not seen."""
    drawn, draw = [], metrics.resample
    monkeypatch.setattr(metrics, "resample", lambda *given: (drawn.append(1), draw(*given))[1])
    root, folder = pairs(12), tmp_path / "cv"
    tiny = ["encoder=test_resnet", "encoder.pretrained=false", "train.device=cpu", "train.precision=fp32"]
    tiny += ["data=folder", f"data.root={root}", "data.size=[48,64]", "train.epochs=2", "train.batch_size=4"]
    tiny += ["optim.lr=2e-2", "tracking=none", "data.folds=2", "data.resize=pad", "data.passes=1"]
    assert train.main(["sweeps=cv", *tiny, f"hydra.sweep.dir={folder}"]) == 0
    text = capsys.readouterr().out
    assert len(drawn) == 1  # once for the end, the page and the record
    (result,) = about.load(folder).cross_validation
    trials = list(load_all(folder))
    assert [trial.state for trial in trials] == ["complete", "complete"]
    assert not (folder / "finalists").exists()
    assert f"{result.iou:.4f}" in text and result.iou > 0.1

    hits, union, seen = 0, 0, 0
    for trial in trials:
        with (folder / trial.name / "split.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
        masks = tmp_path / f"masks{trial.name}"
        argv = ["predict", str(folder / trial.name), *(row["image"] for row in rows), "-o", str(masks)]
        assert cli.main([*argv, "--device", "cpu"]) == 0
        for row in rows:
            target = np.array(Image.open(row["mask"])) > 0
            predicted = np.array(Image.open(masks / f"{row['key']}.png")) == 1
            hits, union, seen = hits + (target & predicted).sum(), union + (target | predicted).sum(), seen + 1
    assert seen == result.images == 12
    assert result.iou == pytest.approx(hits / union, abs=1e-9)

    # The command that is printed trains the first fold's model again.
    command = shlex.split(text[text.index("python train.py ") :].splitlines()[0])[2:]
    assert train.main([*command, f"hydra.run.dir={tmp_path / 'again'}"]) == 0
    assert journal.read(tmp_path / "again").best.iou == trials[0].iou
