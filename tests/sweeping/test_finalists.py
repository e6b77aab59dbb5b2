"""Who wins: fresh seeds, paired images, ties that are called ties."""

import numpy as np
import pytest
from fake_train import epoch

from segsweep import metrics
from segsweep.metrics import MATRICES, pooled_iou
from segsweep.runs.records import Run
from segsweep.runs.trial import Trial
from segsweep.sweeping.finalists import behind, best_of_each, ranked, read, repeats


def trial(name, encoder, score, state="complete", typed=()):
    words = [f"encoder={encoder}", *typed]
    return Trial(name, encoder, words, list(words), {}, state, run=Run([epoch(1, score)]))


def matrices(rng, right, images=40, classes=2):
    """Confusion matrices in which a pixel is right with this probability."""
    found = np.zeros((images, classes, classes), np.int64)
    for i in range(images):
        for t in range(classes):
            found[i, t] = rng.multinomial(
                500, [right if p == t else (1 - right) / (classes - 1) for p in range(classes)]
            )
    return found


def scored(runs, images="i"):
    """Runs that were scored on the same images."""
    return {tuple(f"{images}{i}" for i in range(len(runs[0]))): runs}


def kept(folder, run, matrices, images="i"):
    (folder / run.name).mkdir(parents=True)
    keys = np.array([f"{images}{i}" for i in range(len(matrices))])
    np.savez(folder / run.name / MATRICES, keys=keys, matrices=matrices, epoch=1)


def test_each_backbone_sends_its_best_complete_trial():
    trials = [
        trial("0", "a", 0.5),
        trial("1", "a", 0.7),
        trial("2", "b", 0.9, "pruned"),
        trial("3", "b", 0.6),
        trial("4", "c", 0.8),
        trial("5", "d", None),
    ]
    assert [t.name for t in best_of_each(trials, 2)] == ["4", "1"]
    assert [t.name for t in best_of_each(trials, 9)] == ["4", "1", "3"]
    assert best_of_each(trials, 0) == []


def test_repeats_differ_in_the_seed_alone():
    first, second = repeats(trial("7", "a", 0.5, typed=["train.seed=9"]), [1, 2])
    assert first.name == "finalists/7-1"
    assert first.typed == ["encoder=a", "train.seed=1"]
    assert first.argv == ["encoder=a", "train.seed=1"]
    assert second.argv[-1] == "train.seed=2"
    assert first.state == "running"


def test_varied_folds_are_the_same_for_all_finalists(tmp_path):
    rng = np.random.default_rng(5)
    parents = [trial("0", "a", 0.8, typed=["data.fold=3"]), trial("1", "b", 0.8, typed=["data.fold=1"])]
    runs = [run for parent in parents for run in repeats(parent, [1, 2, 3], [0, 1])]
    assert [run.typed[1:] for run in runs[:3]] == [
        [f"train.seed={s}", f"data.fold={f}"] for s, f in ((1, 0), (2, 1), (3, 0))
    ]
    assert runs[0].argv.count("data.fold=3") == 0
    for i, run in enumerate(runs):
        run.state, run.run = "complete", Run([epoch(1, 0.8 - 0.1 * (i > 2))])
        kept(tmp_path, run, matrices(rng, 0.9 - 0.05 * (i > 2), 30 + i % 3 % 2), images=run.typed[-1])
    first, second = ranked(tmp_path, parents, runs)
    assert first.trial is parents[0]
    assert second.gap_to_best[0] > 0
    assert first.setting == ["encoder=a"]
    fewer = ranked(tmp_path, parents, [run for run in runs if run.name != "finalists/1-2"])
    assert {run.typed[-1] for result in fewer for run in result.runs} == {"data.fold=0"}
    assert fewer[1].gap_to_best[0] > 0  # on the fold that both have
    apart = ("finalists/0-2", "finalists/1-1", "finalists/1-3")
    none = ranked(tmp_path, parents, [run for run in runs if run.name not in apart])
    assert none[1].gap_to_best is None  # not on the same folds


def test_folds_count_alike_however_many_repeats_they_have(tmp_path):
    parent = trial("0", "a", 0.8)
    runs = repeats(parent, [1, 2, 3], [0, 1])  # two of the first fold, one of the second
    for run, score in zip(runs, (0.5, 0.9, 0.6), strict=True):
        run.state, run.run = "complete", Run([epoch(1, score)])
    assert ranked(tmp_path, [parent], runs)[0].iou == pytest.approx((0.55 + 0.9) / 2)


def test_a_fold_on_which_a_finalists_repeat_failed_counts_for_nobody(tmp_path):
    """The second fold is easier, so whoever has it would seem better."""
    better, worse = trial("0", "a", 0.8), trial("1", "b", 0.7)
    runs = [run for parent in (better, worse) for run in repeats(parent, [1, 2], [0, 1])]
    for run, score in zip(runs, (0.6, None, 0.5, 0.9), strict=True):
        run.state, run.run = ("failed", Run()) if score is None else ("complete", Run([epoch(1, score)]))
    first, second = ranked(tmp_path, [worse, better], runs)
    assert (first.trial, first.iou, first.failed) == (better, 0.6, 1)
    assert (second.trial, second.iou, second.runs) == (worse, 0.5, (runs[2],))


def test_a_clear_difference_is_no_tie():
    rng = np.random.default_rng(0)
    good, bad = [matrices(rng, 0.9) for _ in range(3)], [matrices(rng, 0.8) for _ in range(3)]
    low, high = behind(scored(good), scored(bad))
    gap = np.mean([pooled_iou(m.sum(0)) for m in good]) - np.mean([pooled_iou(m.sum(0)) for m in bad])
    assert 0 < low < gap < high
    assert behind(scored(bad), scored(good))[1] < 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    """Two equal models, many times: 95 % of the intervals hold 0, give or take."""
    monkeypatch.setattr(metrics, "RESAMPLES", 200)
    rng = np.random.default_rng(1)
    held = 0
    for i in range(60):
        a, b = ([matrices(rng, rng.normal(0.85, 0.005), 30) for _ in range(3)] for _ in range(2))
        low, high = behind(scored(a), scored(b), seed=i)
        held += low <= 0 <= high
    assert held >= 50


def test_ranking_is_by_the_repeats_and_not_by_the_search(tmp_path):
    rng = np.random.default_rng(2)
    lucky, solid = trial("0", "lucky", 0.9), trial("1", "solid", 0.8)
    runs = []
    for parent, score, right in ((lucky, 0.7, 0.8), (solid, 0.79, 0.9)):
        for run in repeats(parent, [1, 2]):
            run.state, run.run = "complete", Run([epoch(1, score + 0.001 * len(runs))])
            kept(tmp_path, run, matrices(rng, right))
            runs.append(run)
    first, second = ranked(tmp_path, [lucky, solid], runs)
    assert (first.trial, second.trial) == (solid, lucky)
    assert first.iou == pytest.approx(0.7925)
    assert first.winner is runs[3]
    assert first.gap_to_best is None
    assert not first.tied
    assert not second.tied
    assert second.gap_to_best[0] > 0


def test_equal_ones_are_tied(tmp_path):
    rng = np.random.default_rng(3)
    parents = [trial("0", "a", 0.8), trial("1", "b", 0.8)]
    runs = []
    for parent in parents:
        for run in repeats(parent, [1, 2, 3]):
            run.state, run.run = "complete", Run([epoch(1, 0.8)])
            kept(tmp_path, run, matrices(rng, 0.85))
            runs.append(run)
    assert ranked(tmp_path, parents, runs)[1].tied


def test_failed_repeats_are_left_out_and_none_at_all_fall_back_on_the_search(tmp_path):
    a, b = trial("0", "a", 0.8), trial("1", "b", 0.7)
    runs = [*repeats(a, [1, 2]), *repeats(b, [1, 2])]
    runs[0].state, runs[0].run = "complete", Run([epoch(1, 0.65)])
    for failed in runs[1:]:
        failed.state = "failed"
    (first,) = ranked(tmp_path, [a, b], runs)  # a search's 0.7 does not beat a fresh 0.65
    assert first.runs == (runs[0],)
    assert first.failed == 1
    assert first.sd is None
    first, second = ranked(tmp_path, [a, b], runs[1:])
    assert (first.runs, second.runs) == ((a,), (b,))
    assert second.gap_to_best is None  # no matrices were kept
    assert first.setting == a.typed


def test_no_finalist_no_place(tmp_path):
    assert ranked(tmp_path, [], []) == []


def test_matrices_of_another_epoch_than_the_journals_best_are_not_read(tmp_path):
    run = trial("0", "a", 0.8)
    kept(tmp_path, run, found := matrices(np.random.default_rng(0), 0.9, 3))
    for number, n in ((None, 0), (1, 1), (2, 0)):
        more = {} if number is None else {"epoch": number}
        np.savez(tmp_path / "0" / MATRICES, keys=["i0", "i1", "i2"], matrices=found, **more)
        assert len(read([(tmp_path / "0", run.run)])) == n
    assert read([(tmp_path / "0", Run())]) == {}


def test_other_images_are_not_paired(tmp_path):
    rng = np.random.default_rng(4)
    runs = [matrices(rng, 0.9, 10)]
    assert behind(scored(runs), scored([matrices(rng, 0.9, 11)])) is None
    assert behind(scored(runs), scored(runs, "j")) is None
    assert behind(scored(runs), scored([matrices(rng, 0.9, 10, classes=3)])) is None
    assert behind({}, scored(runs)) is None
    assert behind(scored(runs), scored(runs)) == (0, 0)
