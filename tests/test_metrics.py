"""Scores against torchmetrics and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from conftest import counted_apart, segmented
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional import classification as torchmetrics

from segsweep import metrics
from segsweep.metrics import scores

VOID = 255
NAMES = {2: ("background", "cell"), 3: ("a", "b", "c"), 5: ("a", "b", "c", "d", "e")}


def filled(k: int, prediction: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    return counted_apart([prediction], [target], k)[0]


def iou(matrix: np.ndarray) -> np.ndarray:
    return metrics.where_present(matrix, metrics.iou(matrix))


def dice(matrix: np.ndarray) -> np.ndarray:
    return metrics.where_present(matrix, metrics.dice(matrix))


def scored(k: int, prediction: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """The scores of a split whose images are the rows of the batch."""
    return scores(counted_apart(prediction, target, k), NAMES[k])


def counted(prediction: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    keep = target != VOID
    return target[keep].numpy(), prediction[keep].numpy()


cases = pytest.mark.parametrize(
    ("k", "absent", "seed"), [(2, (), 0), (2, (1,), 1), (3, (), 2), (3, (0,), 3), (5, (2, 4), 4), (5, (), 5)]
)


@cases
def test_iou_is_torchmetrics_and_nan_where_absent(k, absent, seed):
    prediction, target = segmented(k, seed, absent)
    theirs = torchmetrics.multiclass_jaccard_index(prediction, target, k, average=None, ignore_index=VOID).double()
    theirs[list(absent)] = math.nan
    found = iou(filled(k, prediction, target))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, theirs, rtol=1e-6, atol=1e-6)


@cases
def test_dice_is_scikit_learns_f1_and_nan_where_absent(k, absent, seed):
    prediction, target = segmented(k, seed, absent)
    theirs = sklearn_metrics.f1_score(*counted(prediction, target), labels=range(k), average=None, zero_division=0)
    theirs[list(absent)] = math.nan
    np.testing.assert_allclose(dice(filled(k, prediction, target)), theirs)


@cases
def test_precision_and_recall_are_scikit_learns(k, absent, seed):
    prediction, target = segmented(k, seed, absent)
    matrix, counts = filled(k, prediction, target), counted(prediction, target)
    for ours, theirs in (
        (metrics.precision, sklearn_metrics.precision_score),
        (metrics.recall, sklearn_metrics.recall_score),
    ):
        expected = theirs(*counts, labels=range(k), average=None, zero_division=np.nan)
        np.testing.assert_allclose(ours(matrix), expected)


@cases
def test_accuracy_is_scikit_learns(k, absent, seed):
    prediction, target = segmented(k, seed, absent)
    theirs = sklearn_metrics.accuracy_score(*counted(prediction, target))
    assert metrics.accuracy(filled(k, prediction, target)) == pytest.approx(theirs)


@cases
def test_iou_micro_is_scikit_learns(k, absent, seed):
    prediction, target = segmented(k, seed, absent)
    theirs = sklearn_metrics.jaccard_score(*counted(prediction, target), average="micro")
    assert scored(k, prediction, target)["iou_micro"] == pytest.approx(theirs)


@cases
def test_dice_follows_from_iou(k, absent, seed):
    matrix = filled(k, *segmented(k, seed, absent))
    np.testing.assert_allclose(dice(matrix), 2 * iou(matrix) / (1 + iou(matrix)))


def test_a_class_without_targets_is_nan_even_if_predicted():
    matrix = filled(3, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    assert np.isnan(iou(matrix)).tolist() == [False, False, True]
    assert np.isnan(dice(matrix)).tolist() == [False, False, True]


def test_without_pixels_all_is_nan():
    matrix = filled(3, torch.zeros(4, dtype=torch.int64), torch.full((4,), VOID))
    assert np.isnan(iou(matrix)).all()
    assert all(math.isnan(score) for score in scores([matrix], NAMES[3]).values())


def test_a_split_without_images_is_nan():
    assert all(math.isnan(score) for score in scores([], NAMES[2]).values())


def test_binary_scores_are_the_foregrounds():
    prediction, target = segmented(2, 0)
    found = scored(2, prediction, target)
    truth, guess = counted(prediction, target)
    assert found["iou"] == pytest.approx(sklearn_metrics.jaccard_score(truth, guess))
    assert found["dice"] == pytest.approx(sklearn_metrics.f1_score(truth, guess))
    assert found["iou"] == found["iou_fg"] == found["iou/cell"]
    assert found["iou/background"] == pytest.approx(sklearn_metrics.jaccard_score(truth, guess, pos_label=0))


def test_several_classes_are_averaged_over_those_present_background_included():
    prediction, target = segmented(5, 4, absent=(2, 4))
    found = scored(5, prediction, target)
    each = sklearn_metrics.jaccard_score(*counted(prediction, target), labels=range(5), average=None, zero_division=0)
    f1 = sklearn_metrics.f1_score(*counted(prediction, target), labels=range(5), average=None, zero_division=0)
    assert found["iou"] == pytest.approx(each[[0, 1, 3]].mean())
    assert found["iou_fg"] == pytest.approx(each[[1, 3]].mean())
    assert found["dice"] == pytest.approx(f1[[0, 1, 3]].mean())
    assert math.isnan(found["iou/c"])
    assert math.isnan(found["iou/e"])


def test_iou_image_is_the_mean_of_each_images_own():
    prediction, target = segmented(2, 0)
    own = [sklearn_metrics.jaccard_score(*counted(p, t)) for p, t in zip(prediction, target, strict=True)]
    assert scored(2, prediction, target)["iou_image"] == pytest.approx(np.mean(own))


def test_an_empty_image_without_prediction_is_left_out_of_iou_image():
    target = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    prediction = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]])
    assert scored(2, prediction, target)["iou_image"] == 0.5


def test_an_empty_image_with_a_prediction_counts_as_zero():
    target = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    prediction = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]])
    assert scored(2, prediction, target)["iou_image"] == 0.25


def test_images_without_any_foreground_give_nan():
    nothing = torch.zeros(2, 8, dtype=torch.int64)
    assert math.isnan(scored(2, nothing, nothing)["iou_image"])


def test_iou_image_of_several_classes_is_the_mean_over_an_images_classes():
    target = torch.tensor([[0, 0, 1, 1], [0, 0, 2, 2]])
    prediction = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 2]])
    assert scored(3, prediction, target)["iou_image"] == pytest.approx((1 + (2 / 3 + 1 / 2) / 2) / 2)


def test_a_perfect_prediction_scores_one_everywhere():
    target = torch.arange(12).view(2, 6) % 3
    assert set(scored(3, target, target).values()) == {1.0}


def test_the_number_of_names_must_be_that_of_the_classes():
    with pytest.raises(ValueError, match="zip"):
        scores([filled(3, *segmented(3, 0))], NAMES[2])


def test_the_two_ious_of_an_image_differ_in_what_is_only_predicted_and_in_the_first_class():
    said_of_nothing = np.array([[9, 1], [0, 0]])
    assert metrics.image_iou(said_of_nothing) == 0
    assert np.isnan(metrics.foreground_iou(said_of_nothing))
    three = np.array([[6, 0, 2], [0, 4, 0], [0, 0, 0]])
    assert metrics.image_iou(three) == pytest.approx((6 / 8 + 1 + 0) / 3)
    assert metrics.foreground_iou(three) == 1
    assert metrics.pooled_iou(three) == pytest.approx((6 / 8 + 1) / 2)


def test_resampled_images_are_as_many_as_there_are():
    weights = metrics.resample(np.random.default_rng(0), 7)
    assert weights.shape == (metrics.RESAMPLES, 7)
    assert (weights.sum(1) == 7).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.1)


def test_pooling_adds_each_image_as_often_as_it_was_drawn():
    matrices = np.random.default_rng(0).integers(0, 99, (3, 4, 4))
    found = metrics.pool(matrices, np.array([[1, 1, 1], [0, 3, 0]]))
    np.testing.assert_array_equal(found, [matrices.sum(0), 3 * matrices[1]])


def test_an_interval_leaves_nan_out():
    assert metrics.interval(np.array([np.nan, *range(101)])) == (2.5, 97.5)
    assert np.isnan(metrics.interval(np.array([np.nan]))).all()


@pytest.mark.parametrize(("known", "there"), [(20, False), (21, True)])
def test_an_interval_is_of_more_than_a_tenth_of_its_draws(known, there):
    values = np.full(200, np.nan)
    values[::9][:known] = np.arange(known)
    assert (metrics.interval(values) == tuple(np.percentile(np.arange(known), [2.5, 97.5]))) is there
    assert np.isnan(metrics.interval(values)).all() != there
