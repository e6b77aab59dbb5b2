"""Scores against torchmetrics and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional import classification as torchmetrics

from segsweep.metrics import ConfusionMatrix, scores

VOID = 255
NAMES = {2: ("background", "cell"), 3: ("a", "b", "c"), 5: ("a", "b", "c", "d", "e")}


def case(k: int, seed: int, absent: tuple[int, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction with all classes, and a target with void pixels and without the absent classes."""
    rng = np.random.default_rng(seed)
    classes = [c for c in range(k) if c not in absent]
    target = rng.choice([*classes, VOID], size=(3, 16, 20))
    prediction = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, k, target.shape))
    prediction[prediction == VOID] = rng.integers(0, k)
    return torch.from_numpy(prediction), torch.from_numpy(target)


def filled(k: int, prediction: torch.Tensor, target: torch.Tensor) -> ConfusionMatrix:
    matrix = ConfusionMatrix(k)
    matrix.update(prediction, target)
    return matrix


def scored(k: int, prediction: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """The scores of a split whose images are the rows of the batch."""
    pooled = ConfusionMatrix(k)
    images = [pooled.update(p, t) for p, t in zip(prediction, target, strict=True)]
    return scores(pooled, images, NAMES[k])


def counted(prediction: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    keep = target != VOID
    return target[keep].numpy(), prediction[keep].numpy()


cases = pytest.mark.parametrize(
    ("k", "absent", "seed"), [(2, (), 0), (2, (1,), 1), (3, (), 2), (3, (0,), 3), (5, (2, 4), 4), (5, (), 5)]
)


@cases
def test_the_matrix_is_torchmetrics(k, absent, seed):
    prediction, target = case(k, seed, absent)
    theirs = torchmetrics.multiclass_confusion_matrix(prediction, target, k, ignore_index=VOID)
    assert torch.equal(filled(k, prediction, target).matrix, theirs)


@cases
def test_iou_is_torchmetrics_and_nan_where_absent(k, absent, seed):
    prediction, target = case(k, seed, absent)
    theirs = torchmetrics.multiclass_jaccard_index(prediction, target, k, average=None, ignore_index=VOID).double()
    theirs[list(absent)] = math.nan
    iou = filled(k, prediction, target).iou()
    assert iou.dtype == torch.float64
    torch.testing.assert_close(iou, theirs, rtol=1e-6, atol=1e-6, equal_nan=True)


@cases
def test_dice_is_scikit_learns_f1_and_nan_where_absent(k, absent, seed):
    prediction, target = case(k, seed, absent)
    theirs = sklearn_metrics.f1_score(*counted(prediction, target), labels=range(k), average=None, zero_division=0)
    theirs[list(absent)] = math.nan
    np.testing.assert_allclose(filled(k, prediction, target).dice().numpy(), theirs)


@cases
def test_accuracy_is_scikit_learns(k, absent, seed):
    prediction, target = case(k, seed, absent)
    theirs = sklearn_metrics.accuracy_score(*counted(prediction, target))
    assert filled(k, prediction, target).accuracy() == pytest.approx(theirs)


@cases
def test_iou_micro_is_scikit_learns(k, absent, seed):
    prediction, target = case(k, seed, absent)
    theirs = sklearn_metrics.jaccard_score(*counted(prediction, target), average="micro")
    assert scored(k, prediction, target)["iou_micro"] == pytest.approx(theirs)


@cases
def test_dice_follows_from_iou(k, absent, seed):
    matrix = filled(k, *case(k, seed, absent))
    torch.testing.assert_close(matrix.dice(), 2 * matrix.iou() / (1 + matrix.iou()), equal_nan=True)


def test_a_class_without_targets_is_nan_even_if_predicted():
    matrix = filled(3, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    assert matrix.iou().isnan().tolist() == [False, False, True]
    assert matrix.dice().isnan().tolist() == [False, False, True]


def test_updates_over_parts_equal_one_over_the_whole():
    prediction, target = case(5, 0)
    parts = ConfusionMatrix(5)
    own = [parts.update(p, t) for p, t in zip(prediction, target, strict=True)]
    whole = filled(5, prediction, target)
    assert torch.equal(parts.matrix, whole.matrix)
    assert torch.equal(torch.stack(own).sum(0), whole.matrix)


def test_void_pixels_never_count():
    prediction, target = case(3, 0)
    other = torch.where(target == VOID, (prediction + 1) % 3, prediction)
    assert torch.equal(filled(3, prediction, target).matrix, filled(3, other, target).matrix)


def test_another_ignore_index_is_void():
    matrix = ConfusionMatrix(2, ignore_index=1)
    matrix.update(torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1]))
    assert matrix.matrix.tolist() == [[1, 0], [0, 0]]


def test_bytes_count_as_int64_do():
    prediction, target = case(5, 0)
    assert torch.equal(filled(5, prediction.byte(), target.byte()).matrix, filled(5, prediction, target).matrix)


def test_without_pixels_all_is_nan():
    matrix = filled(3, torch.zeros(4, dtype=torch.int64), torch.full((4,), VOID))
    assert math.isnan(matrix.accuracy())
    assert matrix.iou().isnan().all()
    assert all(math.isnan(score) for score in scores(matrix, [matrix.matrix], NAMES[3]).values())


def test_a_split_without_images_is_nan():
    assert all(math.isnan(score) for score in scores(ConfusionMatrix(2), [], NAMES[2]).values())


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"shapes differ.*\(2, 3\).*\(3, 2\)"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64), "shapes differ"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64), "integers.*float32"),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.float64), "integers.*float64"),
        (torch.tensor([0, 3]), torch.tensor([0, 1]), r"0\.\.2.*target 1 with prediction 3"),
        (torch.tensor([0, -1]), torch.tensor([0, 1]), "target 1 with prediction -1"),
        (torch.tensor([0, 1]), torch.tensor([0, 7]), "target 7 with prediction 1"),
        (torch.tensor([255, 1]), torch.tensor([0, 1]), "target 0 with prediction 255"),
    ],
)
def test_wrong_inputs_are_refused_and_leave_the_matrix(prediction, target, says):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=says):
        matrix.update(prediction, target)
    assert not matrix.matrix.any()


def test_a_void_pixels_prediction_may_be_anything():
    assert filled(2, torch.tensor([0, 99]), torch.tensor([0, VOID])).matrix.tolist() == [[1, 0], [0, 0]]


def test_binary_scores_are_the_foregrounds():
    prediction, target = case(2, 0)
    found = scored(2, prediction, target)
    truth, guess = counted(prediction, target)
    assert found["iou"] == pytest.approx(sklearn_metrics.jaccard_score(truth, guess))
    assert found["dice"] == pytest.approx(sklearn_metrics.f1_score(truth, guess))
    assert found["iou"] == found["iou_fg"] == found["iou/cell"]
    assert found["iou/background"] == pytest.approx(sklearn_metrics.jaccard_score(truth, guess, pos_label=0))


def test_several_classes_are_averaged_over_those_present_background_included():
    prediction, target = case(5, 4, absent=(2, 4))
    found = scored(5, prediction, target)
    each = sklearn_metrics.jaccard_score(*counted(prediction, target), labels=range(5), average=None, zero_division=0)
    f1 = sklearn_metrics.f1_score(*counted(prediction, target), labels=range(5), average=None, zero_division=0)
    assert found["iou"] == pytest.approx(each[[0, 1, 3]].mean())
    assert found["iou_fg"] == pytest.approx(each[[1, 3]].mean())
    assert found["dice"] == pytest.approx(f1[[0, 1, 3]].mean())
    assert math.isnan(found["iou/c"])
    assert math.isnan(found["iou/e"])


def test_iou_image_is_the_mean_of_each_images_own():
    prediction, target = case(2, 0)
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
        scores(filled(3, *case(3, 0)), [], NAMES[2])


def test_several_images_at_once_are_the_same_as_one_after_the_other():
    rng = torch.Generator().manual_seed(0)
    sizes = ((5, 7), (1, 1), (8, 3), (4, 4))
    targets = [torch.randint(0, 4, size, generator=rng) for size in sizes]
    targets = [torch.where(target == 3, 255, target) for target in targets]
    predictions = [torch.randint(0, 3, size, generator=rng) for size in sizes]
    one_by_one, together = ConfusionMatrix(3), ConfusionMatrix(3)
    expected = torch.stack([one_by_one.update(p, t) for p, t in zip(predictions, targets, strict=True)])
    assert torch.equal(together.update_each(predictions, targets), expected)
    assert torch.equal(together.matrix, one_by_one.matrix)


def test_the_image_that_is_wrong_is_found_among_several():
    fine = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"got target 7 with prediction 1"):
        ConfusionMatrix(2).update_each([fine, fine + 1, fine], [fine, fine + 7, fine])
