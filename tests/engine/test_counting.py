"""Counting against torchmetrics; void, types and what is impossible."""

import numpy as np
import pytest
import torch
from conftest import counted_apart, segmented
from torchmetrics.functional import classification as torchmetrics

from segsweep.engine.counting import _added, matrices, pair_counts

VOID = 255


@pytest.mark.parametrize(("k", "absent"), [(2, ()), (2, (1,)), (3, ()), (3, (0,)), (5, (2, 4)), (11, ())])
def test_each_images_matrix_is_torchmetrics(k, absent):
    predictions, targets = segmented(k, absent=absent)
    found = counted_apart(predictions, targets, k)
    assert found.dtype == np.int64
    for matrix, prediction, target in zip(found, predictions, targets, strict=True):
        theirs = torchmetrics.multiclass_confusion_matrix(prediction, target, k, ignore_index=VOID)
        np.testing.assert_array_equal(matrix, theirs)


def test_the_whole_is_the_sum_of_its_parts():
    prediction, target = segmented(5)
    parts = counted_apart(prediction, target, 5)
    np.testing.assert_array_equal(parts.sum(0), counted_apart([prediction], [target], 5)[0])


def test_void_pixels_never_count_whatever_was_predicted():
    prediction, target = segmented(3)
    other = torch.where(target == VOID, 99, prediction)
    np.testing.assert_array_equal(counted_apart([prediction], [target], 3), counted_apart([other], [target], 3))
    assert counted_apart([torch.tensor([0, 99])], [torch.tensor([0, VOID])], 2).tolist() == [[[1, 0], [0, 0]]]


def test_bytes_count_as_int64_do():
    prediction, target = segmented(5)
    np.testing.assert_array_equal(
        counted_apart([prediction.byte()], [target.byte()], 5), counted_apart([prediction], [target], 5)
    )


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"shapes differ.*\(2, 3\).*\(3, 2\)"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64), "shapes differ"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64), "integers.*float32"),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.float64), "integers.*float64"),
        (torch.tensor([0, 3]), torch.tensor([0, 1]), r"in 0\.\.2 .or, in targets, 255"),
        (torch.tensor([0, -1]), torch.tensor([0, 1]), r"in 0\.\.2"),
        (torch.tensor([0, 1]), torch.tensor([0, 7]), r"in 0\.\.2"),
        (torch.tensor([255, 1]), torch.tensor([0, 1]), r"in 0\.\.2"),
    ],
)
def test_wrong_inputs_are_refused(prediction, target, says):
    with pytest.raises(ValueError, match=says):
        counted_apart([prediction], [target], 3)


def test_images_of_one_size_are_counted_together_as_one_by_one():
    predictions, targets = segmented(4)
    counts = pair_counts(predictions, targets, 4)
    assert (counts.sum(1) == targets[0].numel()).all()
    assert torch.equal(counts[:, -2], (targets == VOID).flatten(1).sum(1))
    np.testing.assert_array_equal(matrices(counts, 4), counted_apart(predictions, targets, 4))


def test_what_is_out_of_range_is_refused_when_the_counts_have_come():
    counts = pair_counts(torch.tensor([[0, 1], [0, 5]]), torch.tensor([[0, 1], [1, 1]]), 2)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        matrices(counts, 2)


@pytest.mark.parametrize("bins", (1, 7, 70_000))
def test_adding_up_is_bincount(bins):
    numbers = torch.randint(0, bins, (3, 1000), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_added(numbers, bins), torch.bincount(numbers.flatten(), minlength=bins))
