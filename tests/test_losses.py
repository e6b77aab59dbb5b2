"""Losses against torch's own with the void pixels removed, and as algebra."""

import pytest
import torch
from torch.nn import functional as F

from segsweep import losses
from segsweep.errors import ConfigError

VOID = 255
EVERY = [("bce", 1), ("ce", 1), ("ce", 4), ("dice", 1), ("dice", 4), ("bce_dice", 1), ("ce_dice", 1), ("ce_dice", 4)]

every_loss = pytest.mark.parametrize(("name", "k"), EVERY)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def case(k: int, void: float = 0.2, size: tuple[int, ...] = (2, 12, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.randint(0, max(k, 2), size)
    target[torch.rand(size) < void] = VOID
    return torch.randn(size[0], k, *size[1:], requires_grad=True), target


def test_one_logits_cross_entropy_is_torchs_bce_without_the_void():
    logits, target = case(1)
    keep = target != VOID
    theirs = F.binary_cross_entropy_with_logits(logits[:, 0][keep], target[keep].float())
    torch.testing.assert_close(losses.build("bce", 1)(logits, target), theirs)


@pytest.mark.parametrize("k", (2, 3, 7))
def test_several_logits_cross_entropy_is_torchs_without_the_void(k):
    logits, target = case(k)
    keep = target != VOID
    theirs = F.cross_entropy(logits.movedim(1, -1)[keep], target[keep])
    torch.testing.assert_close(losses.build("ce", k)(logits, target), theirs)


def test_ce_of_one_logit_is_bce():
    logits, target = case(1)
    assert torch.equal(losses.build("ce", 1)(logits, target), losses.build("bce", 1)(logits, target))


def test_one_logit_is_two_with_the_first_at_zero():
    logits, target = case(1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(losses.cross_entropy(logits, target), losses.cross_entropy(two, target))


@every_loss
def test_void_pixels_get_no_gradient_and_change_nothing(name, k):
    logits, target = case(k)
    loss = losses.build(name, k)
    loss(logits, target).backward()
    void = (target == VOID)[:, None].expand_as(logits)
    assert not logits.grad[void].any()
    assert logits.grad[~void].any()
    changed = torch.where(void, torch.full_like(logits, 50.0), logits)
    torch.testing.assert_close(loss(changed, target), loss(logits, target))


@every_loss
def test_an_all_void_batch_is_zero_with_a_finite_gradient(name, k):
    logits, target = case(k, void=1.1)
    loss = losses.build(name, k)(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("k", (1, 4))
def test_dice_of_a_perfect_prediction_is_about_zero_and_of_its_opposite_about_one(k):
    _, target = case(k)
    truth = target.where(target != VOID, 0)
    hot = F.one_hot(truth, max(k, 2)).movedim(-1, 1).float()
    logits = (hot[:, 1:] if k == 1 else hot) * 40 - 20
    assert losses.dice(logits, target).item() == pytest.approx(0, abs=1e-6)
    assert losses.dice(-logits, target).item() > 0.7


def test_dice_of_hard_predictions_is_one_minus_the_dice_coefficient():
    target = torch.tensor([[[1, 1, 1, 0, 0, VOID]]])
    logits = torch.tensor([[[[99.0, 99, -99, 99, -99, 99]]]])
    assert losses.dice(logits, target).item() == pytest.approx(1 - 2 * 2 / (3 + 3))


def test_dice_is_the_mean_over_the_classes_present():
    logits, target = case(4)
    target[target == 2] = 1
    p = logits.softmax(1).movedim(1, -1)[target != VOID]
    truth = F.one_hot(target[target != VOID], 4).float()
    each = 1 - 2 * (p * truth).sum(0) / ((p**2).sum(0) + (truth**2).sum(0))
    torch.testing.assert_close(losses.dice(logits, target), each[[0, 1, 3]].mean())


def test_permuting_the_classes_leaves_dice_unchanged():
    logits, target = case(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    position = torch.cat([order.argsort(), torch.tensor([VOID])])
    moved = position[target.where(target != VOID, 5)]
    torch.testing.assert_close(losses.dice(logits[:, order], moved), losses.dice(logits, target))


def test_dice_pools_the_batch():
    logits, target = case(1, size=(4, 6, 6))
    joined = logits.movedim(0, 1).reshape(1, 1, 24, 6)
    torch.testing.assert_close(losses.dice(logits, target), losses.dice(joined, target.reshape(1, 24, 6)))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("name", "k"), (("bce_dice", 1), ("ce_dice", 3)))
@pytest.mark.parametrize("magnitude", (1.0, 3e4))
def test_half_precision_logits_of_large_images_stay_finite(dtype, name, k, magnitude):
    target = torch.randint(0, max(k, 2), (4, 512, 512))
    logits = (torch.randn(4, k, 512, 512) * magnitude).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.build(name, k)(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_a_sum_over_many_half_precision_pixels_is_that_of_float32():
    logits, target = case(1, size=(4, 512, 512))
    half = logits.detach().bfloat16()
    loss = losses.build("bce_dice", 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(half, target), loss(half.float(), target))


@pytest.mark.parametrize("weight", (0.0, 0.3, 0.5, 1.0))
@pytest.mark.parametrize(("name", "k"), (("bce_dice", 1), ("ce_dice", 1), ("ce_dice", 4)))
def test_sums_are_weighted(name, k, weight):
    logits, target = case(k)
    expected = (1 - weight) * losses.cross_entropy(logits, target) + weight * losses.dice(logits, target)
    torch.testing.assert_close(losses.build(name, k, dice_weight=weight)(logits, target), expected)


@pytest.mark.parametrize(("name", "part"), (("ce", losses.cross_entropy), ("dice", losses.dice)))
def test_the_weight_is_for_sums_only(name, part):
    logits, target = case(4)
    torch.testing.assert_close(losses.build(name, 4, dice_weight=0.2)(logits, target), part(logits, target))


@pytest.mark.parametrize(("name", "instead"), (("bce", "ce"), ("bce_dice", "ce_dice")))
def test_a_binary_loss_is_refused_for_several_classes(name, instead):
    with pytest.raises(ConfigError, match=f"loss={name}: .*3 classes. Try loss={instead}."):
        losses.build(name, 3)
