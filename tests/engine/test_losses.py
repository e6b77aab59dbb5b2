"""Losses against torch, scikit-learn and slow literal formulas with the void pixels removed, and as algebra."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from segsweep.config import schema as config
from segsweep.engine import losses
from segsweep.engine.losses import Pixels
from segsweep.errors import ConfigError

VOID = 255
TERMS = tuple(losses.TERMS)
REGIONS = ("dice", "jaccard", "lovasz")
GROUPS = {
    "ce": {"ce": 1.0},
    "ce_dice": {"ce": 0.5, "dice": 0.5},
    "ce_lovasz": {"ce": 0.5, "lovasz": 0.5},
    "all": {"ce": 0.1, "dice": 0.2, "jaccard": 0.3, "lovasz": 0.4, "focal": 0.5},
}

every_term = pytest.mark.parametrize("name", TERMS)
every_sum = pytest.mark.parametrize("name", (*TERMS, "ce_dice", "ce_lovasz", "all"))
some_classes = pytest.mark.parametrize("k", (1, 3))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def built(name, **more):
    return losses.build(GROUPS.get(name, {name: 1.0}), **more)


def case(k: int, void: float = 0.2, size: tuple[int, ...] = (2, 12, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.randint(0, max(k, 2), size)
    target[torch.rand(size) < void] = VOID
    return torch.randn(size[0], k, *size[1:], requires_grad=True), target


def probabilities(logits, target):
    """Of the pixels that count, float64: a row for each class of which there is a region, and where it is."""
    kept = target.numpy().ravel() != VOID
    rows = logits.detach().double().movedim(1, 0).flatten(1).numpy()[:, kept]
    if len(rows) == 1:
        return 1 / (1 + np.exp(-rows)), (target.numpy().ravel()[kept] == 1)[None]
    powers = np.exp(rows - rows.max(0))
    return powers / powers.sum(0), np.arange(len(rows))[:, None] == target.numpy().ravel()[kept]


def mean_of_present(loss, logits, target):
    """A loss of one region after the other, the mean over those that are there; 0 if none is."""
    rows = [loss(p, truth) for p, truth in zip(*probabilities(logits, target), strict=True) if truth.any()]
    return float(np.mean(rows)) if rows else 0.0


def slow_dice(p, truth):
    return 1 - 2 * sum(p[truth]) / (sum(p**2) + sum(truth))


def slow_jaccard(p, truth):
    return 1 - sum(p[truth]) / (sum(p) + sum(truth) - sum(p[truth]))


def slow_lovasz(p, truth):
    """Algorithm 1 of the paper, the Jaccard loss of sets of mispredicted pixels taken literally."""
    errors = np.where(truth, 1 - p, p)
    region, wrong, before, total = set(np.flatnonzero(truth)), set(), 0.0, 0.0
    for i in np.argsort(-errors, kind="stable"):
        wrong.add(i)
        now = len(wrong) / len(region | wrong)
        total, before = total + errors[i] * (now - before), now
    return total


def threshold_lovasz(p, truth):
    """The extension's other definition: the Jaccard loss of all pixels with an error above t, integrated over t."""
    errors = np.where(truth, 1 - p, p)
    region, edges, total = set(np.flatnonzero(truth)), np.unique(np.append(errors, 0.0)), 0.0
    for low, high in pairwise(edges):
        wrong = set(np.flatnonzero(errors > low))
        total += (high - low) * len(wrong) / len(region | wrong)
    return total


SLOW = {"dice": slow_dice, "jaccard": slow_jaccard, "lovasz": slow_lovasz}


def certain(prediction, k):
    """Logits that leave no doubt about these classes."""
    if k == 1:
        return (prediction[:, None] * 2.0 - 1) * 1e4
    return (F.one_hot(prediction, k).movedim(-1, 1) * 2.0 - 1) * 1e4


# Each term against another's arithmetic.


def test_one_logits_cross_entropy_is_torchs_bce_without_the_void():
    logits, target = case(1)
    keep = target != VOID
    theirs = F.binary_cross_entropy_with_logits(logits[:, 0][keep], target[keep].float())
    torch.testing.assert_close(built("ce")(logits, target), theirs)


@pytest.mark.parametrize("k", (2, 3, 7))
def test_several_logits_cross_entropy_is_torchs_without_the_void(k):
    logits, target = case(k)
    torch.testing.assert_close(built("ce")(logits, target), F.cross_entropy(logits, target, ignore_index=VOID))


@pytest.mark.parametrize("k", (2, 3, 7))
def test_several_logits_weights_are_torchs(k):
    logits, target = case(k)
    weights = (torch.rand(k) + 0.1).tolist()
    theirs = F.cross_entropy(logits, target, torch.tensor(weights), ignore_index=VOID)
    torch.testing.assert_close(built("ce", weights=weights)(logits, target), theirs)


@pytest.mark.parametrize("positive", (0.2, 1.0, 7.0))
def test_one_logits_second_weight_is_torchs_pos_weight_in_a_weighted_mean(positive):
    logits, target = case(1)
    keep = target != VOID
    truth = target[keep].float()
    total = F.binary_cross_entropy_with_logits(
        logits[:, 0][keep], truth, pos_weight=torch.tensor(positive), reduction="sum"
    )
    share = (truth == 0).sum() + positive * (truth == 1).sum()
    torch.testing.assert_close(built("ce", weights=[1.0, positive])(logits, target), total / share)


@pytest.mark.parametrize("name", ("ce", "focal"))
@some_classes
def test_equal_weights_of_any_size_are_none(name, k):
    logits, target = case(k)
    weighted = built(name, weights=[3.0] * max(k, 2))
    torch.testing.assert_close(weighted(logits, target), built(name)(logits, target))


@pytest.mark.parametrize("name", ("ce", "focal"))
@some_classes
def test_a_weight_counts_a_classes_pixels_that_often(name, k):
    logits, target = case(k, void=0, size=(1, 8, 8))
    weights = [float(w) for w in range(1, max(k, 2) + 1)]
    times = torch.tensor(weights, dtype=torch.int64)[target.flatten()]
    repeated = logits.flatten(2).repeat_interleave(times, 2)[..., None]
    expected = built(name)(repeated, target.flatten(1).repeat_interleave(times, 1)[..., None])
    torch.testing.assert_close(built(name, weights=weights)(logits, target), expected)


@pytest.mark.parametrize("gamma", (0.0, 0.5, 1.0, 2.0, 5.0))
@pytest.mark.parametrize("weights", (None, (0.5, 2.0, 1.5)))
@pytest.mark.parametrize("k", (1, 3))
def test_focal_is_its_formula(gamma, weights, k):
    logits, target = case(k)
    of_class = np.array(weights or (1.0, 1.0, 1.0))
    p, truth = probabilities(logits, target)
    if k == 1:
        p, truth = np.concatenate([1 - p, p]), np.concatenate([~truth, truth])
    right, own = p[truth.argmax(0), np.arange(p.shape[1])], of_class[truth.argmax(0)]
    expected = sum(own * (1 - right) ** gamma * -np.log(right)) / sum(own)
    found = losses.build({"focal": 1}, None if weights is None else list(weights)[: max(k, 2)], gamma)(logits, target)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_focal_is_torchvisions():
    from torchvision.ops import sigmoid_focal_loss

    logits, target = case(1, void=0)
    theirs = sigmoid_focal_loss(logits[:, 0], target.float(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(losses.focal(Pixels(logits, target)), theirs)


@some_classes
def test_focal_with_gamma_zero_is_the_cross_entropy(k):
    logits, target = case(k)
    torch.testing.assert_close(built("focal", gamma=0.0)(logits, target), built("ce")(logits, target))


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("k", (1, 2, 3, 6))
@pytest.mark.parametrize("void", (0.0, 0.3, 0.95))
def test_region_losses_are_their_formulas_without_the_void(name, k, void):
    for spread in (0.3, 3.0):
        logits, target = case(k, void)
        logits = logits.detach() * spread
        expected = mean_of_present(SLOW[name], logits, target)
        assert losses.TERMS[name](Pixels(logits, target)).item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("k", (1, 3))
def test_lovasz_is_the_integral_over_thresholds(k):
    logits, target = case(k)
    assert losses.lovasz(Pixels(logits, target)).item() == pytest.approx(
        mean_of_present(threshold_lovasz, logits, target), abs=2e-6
    )


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("k", (3, 4))
def test_region_losses_leave_out_classes_that_are_not_there(name, k):
    logits, target = case(k)
    target[target == 1] = 0
    assert losses.TERMS[name](Pixels(logits, target)).item() == pytest.approx(
        mean_of_present(SLOW[name], logits, target), abs=2e-6
    )


@pytest.mark.parametrize("name", ("jaccard", "lovasz", "dice"))
@pytest.mark.parametrize("k", (1, 3, 5))
@pytest.mark.parametrize("seed", range(3))
def test_of_hard_predictions_region_losses_are_one_minus_scikit_learns_score(name, k, seed):
    torch.manual_seed(seed)
    _, target = case(k, void=0.3)
    classes = max(k, 2)
    prediction = torch.randint(0, classes, target.shape)
    kept = target != VOID
    score = sklearn_metrics.f1_score if name == "dice" else sklearn_metrics.jaccard_score
    each = score(target[kept], prediction[kept], labels=range(classes), average=None)
    expected = 1 - (each[1] if k == 1 else each.mean())
    assert losses.TERMS[name](Pixels(certain(prediction, k), target)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", TERMS)
@some_classes
def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_all(name, k):
    _, target = case(k)
    truth = target.where(target != VOID, 0)
    assert built(name)(certain(truth, k), target).item() == pytest.approx(0, abs=1e-6)
    wrong = built(name)(certain((truth + 1) % max(k, 2), k), target).item()
    assert wrong == pytest.approx(1, abs=1e-6) if name in REGIONS else wrong > 100


@pytest.mark.parametrize("k", (1, 4))
def test_dice_of_a_perfect_prediction_is_about_zero_and_of_its_opposite_about_one(k):
    _, target = case(k)
    truth = target.where(target != VOID, 0)
    hot = F.one_hot(truth, max(k, 2)).movedim(-1, 1).float()
    logits = (hot[:, 1:] if k == 1 else hot) * 40 - 20
    assert losses.dice(Pixels(logits, target)).item() == pytest.approx(0, abs=1e-6)
    assert losses.dice(Pixels(-logits, target)).item() > 0.7


def test_dice_of_hard_predictions_is_one_minus_the_dice_coefficient():
    target = torch.tensor([[[1, 1, 1, 0, 0, VOID]]])
    logits = torch.tensor([[[[99.0, 99, -99, 99, -99, 99]]]])
    assert losses.dice(Pixels(logits, target)).item() == pytest.approx(1 - 2 * 2 / (3 + 3))
    assert losses.jaccard(Pixels(logits, target)).item() == pytest.approx(1 - 2 / 4)
    assert losses.lovasz(Pixels(logits, target)).item() == pytest.approx(1 - 2 / 4)


# What holds for every term.


@pytest.mark.parametrize("name", TERMS)
def test_one_logit_is_two_with_the_first_at_zero(name):
    """Of the foreground alone for regions: the mean over both classes is another loss."""
    logits, target = case(1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    if name in REGIONS:
        p, truth = probabilities(two, target)
        expected = SLOW[name](p[1], truth[1])
        assert losses.TERMS[name](Pixels(logits, target)).item() == pytest.approx(expected, abs=2e-6)
    else:
        torch.testing.assert_close(losses.TERMS[name](Pixels(logits, target)), losses.TERMS[name](Pixels(two, target)))


@every_sum
@some_classes
def test_void_pixels_get_no_gradient_and_change_nothing(name, k):
    logits, target = case(k)
    loss = built(name)
    value = loss(logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    void = (target == VOID)[:, None].expand_as(logits)
    assert not gradient[void].any()
    assert gradient[~void].any()
    for size in (1.0, 50.0, 1e4):
        changed = torch.where(void, torch.randn_like(logits) * size, logits).detach().requires_grad_()
        again = loss(changed, target)
        torch.testing.assert_close(again, value)
        torch.testing.assert_close(torch.autograd.grad(again, changed)[0], gradient)


@every_sum
@some_classes
def test_void_pixels_may_as_well_be_cut_off(name, k):
    logits, target = case(k, void=0.4, size=(1, 9, 10))
    kept = target != VOID
    cut = logits.movedim(1, -1)[kept].mT[None, ..., None]
    torch.testing.assert_close(built(name)(logits, target), built(name)(cut, target[kept][None, :, None]))


@every_sum
@some_classes
def test_an_all_void_batch_is_zero_with_a_zero_gradient(name, k):
    for size in (1.0, 1e4):
        logits, target = case(k, void=1.1)
        logits = (logits.detach() * size).requires_grad_()
        loss = built(name, weights=[1.0, 2.0, 3.0][: max(k, 2)])(logits, target)
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any()


@every_sum
@some_classes
@pytest.mark.parametrize("void", (0.0, 0.2, 0.99))
def test_extreme_logits_give_a_finite_loss_and_gradient(name, k, void):
    _, target = case(k, void)
    for prediction in (target.where(target != VOID, 0), torch.randint(0, max(k, 2), target.shape)):
        logits = certain(prediction, k).requires_grad_()
        loss = built(name, weights=[1.0, 9.0, 3.0][: max(k, 2)])(logits, target)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


@some_classes
@pytest.mark.parametrize("gamma", (0.5, 1.0, 1.5, 5.0))
def test_focal_has_a_finite_gradient_where_a_pixel_is_sure_whatever_gamma(gamma, k):
    _, target = case(k)
    logits = certain(target.where(target != VOID, 0), k).requires_grad_()
    built("focal", gamma=gamma)(logits, target).backward()
    assert logits.grad.isfinite().all()


@every_term
@some_classes
def test_a_batch_of_one_class_alone_is_finite(name, k):
    for only in range(max(k, 2)):
        logits = torch.randn(2, k, 6, 6, requires_grad=True)
        loss = built(name)(logits, torch.full((2, 6, 6), only))
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()
        if name in REGIONS and k == 1 and only == 0:
            assert loss.item() == 0


@every_sum
@some_classes
def test_the_order_of_the_pixels_does_not_matter(name, k):
    logits, target = case(k)
    order = torch.randperm(target.numel())
    row = logits.movedim(1, 0).flatten(1)[:, order][None, ..., None]
    moved = target.flatten()[order][None, :, None]
    loss = built(name)
    torch.testing.assert_close(loss(row, moved), loss(logits, target))
    own, theirs = (
        torch.autograd.grad(loss(x, t), x)[0].movedim(1, 0).flatten(1)
        for x, t in ((logits, target), (row.detach().requires_grad_(), moved))
    )
    torch.testing.assert_close(theirs, own[:, order])


@every_term
def test_the_order_of_the_classes_does_not_matter(name):
    logits, target = case(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    position = torch.cat([order.argsort(), torch.tensor([VOID])])
    moved = position[target.where(target != VOID, 5)]
    torch.testing.assert_close(built(name)(logits[:, order], moved), built(name)(logits, target))


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("k", (1, 3))
def test_region_losses_pool_the_batch(name, k):
    logits, target = case(k, size=(4, 6, 6))
    joined = logits.movedim(0, 1).reshape(1, k, 24, 6)
    loss = losses.TERMS[name]
    torch.testing.assert_close(loss(Pixels(logits, target)), loss(Pixels(joined, target.reshape(1, 24, 6))))


@every_term
@some_classes
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_finite_differences(name, k, seed):
    torch.manual_seed(seed)
    logits, target = case(k, size=(2, 3, 4))
    target[0, 0, : max(k, 2)] = torch.arange(max(k, 2))
    weights = torch.rand(max(k, 2), dtype=torch.float64) + 0.5
    more = {"weights": weights} if name in ("ce", "focal") else {}
    double = logits.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.TERMS[name](Pixels(x, target), **more), double, eps=1e-7)


@every_term
@some_classes
def test_void_is_what_the_labels_call_so(name, k, monkeypatch):
    logits, target = case(k)
    moved = torch.where(target == VOID, 77, target)
    expected = losses.TERMS[name](Pixels(logits, target))
    monkeypatch.setattr(losses, "VOID", 77)
    assert torch.equal(losses.TERMS[name](Pixels(logits, moved)), expected)


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("k", (1, 4))
def test_region_losses_are_shares(name, k):
    for spread in (0.1, 1.0, 10.0):
        logits, target = case(k)
        assert 0 <= losses.TERMS[name](Pixels(logits.detach() * spread, target)).item() <= 1


@every_sum
@some_classes
def test_a_few_steps_down_its_gradient_lower_it_and_find_the_masks(name, k):
    """A linear model of two coordinates learns which side of a line pixels lie on."""
    points = torch.rand(2, 2, 12, 12) * 2 - 1
    target = ((points[:, 0] + 1) * max(k, 2) / 2).long().clamp(max=max(k, 2) - 1)
    target[torch.rand(target.shape) < 0.1] = VOID
    model = torch.nn.Conv2d(2, k, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    loss, found = built(name), []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(model(points), target)
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert min(found[1:4]) < found[0]
    assert found[-1] < 0.6 * found[0]
    logits = model(points)
    prediction = (logits[:, 0] > 0).long() if k == 1 else logits.argmax(1)
    kept = target != VOID
    assert (prediction[kept] == target[kept]).float().mean() > 0.8


# Half precision.


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("name", "k"), (("ce_dice", 1), ("ce_dice", 3), ("all", 1), ("all", 3)))
@pytest.mark.parametrize("magnitude", (1.0, 3e4))
def test_half_precision_logits_of_large_images_stay_finite(dtype, name, k, magnitude):
    target = torch.randint(0, max(k, 2), (2, 384, 384))
    logits = (torch.randn(2, k, 384, 384) * magnitude).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = built(name)(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ("ce_dice", "all"))
def test_a_sum_over_many_half_precision_pixels_is_that_of_float32(name):
    logits, target = case(1, size=(2, 384, 384))
    half = logits.detach().bfloat16()
    loss = built(name, weights=[1.0, 3.0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(half, target), loss(half.float(), target))


@pytest.mark.parametrize("name", TERMS)
def test_many_pixels_in_float32_are_as_exact_as_in_float64(name):
    target = (torch.rand(1, 1500, 1500) < 0.01).long()
    logits = torch.randn(1, 1, 1500, 1500)
    loss = losses.TERMS[name]
    single, double = (loss(Pixels(given, target)).item() for given in (logits, logits.double()))
    assert single == pytest.approx(double, rel=1e-4)


# Sums of terms.


@pytest.mark.parametrize("k", (1, 4))
@pytest.mark.parametrize("seed", range(3))
def test_sums_are_weighted(k, seed):
    torch.manual_seed(seed)
    logits, target = case(k)
    weights = dict(zip(TERMS, (torch.rand(len(TERMS)) * 2).tolist(), strict=True))
    of_classes = (torch.rand(max(k, 2)) + 0.1).tolist()
    more = {"weights": torch.tensor(of_classes)}
    parts = {
        "ce": losses.cross_entropy(Pixels(logits, target), **more),
        "focal": losses.focal(Pixels(logits, target), gamma=3.0, **more),
        **{name: losses.TERMS[name](Pixels(logits, target)) for name in REGIONS},
    }
    expected = sum(weights[name] * part for name, part in parts.items())
    torch.testing.assert_close(losses.build(weights, of_classes, 3.0)(logits, target), expected)


@every_term
def test_one_term_of_weight_one_is_the_term_itself(name):
    logits, target = case(4)
    assert torch.equal(built(name)(logits, target), losses.TERMS[name](Pixels(logits, target)))


def test_terms_of_weight_zero_are_not_computed(monkeypatch):
    monkeypatch.setitem(losses.TERMS, "lovasz", None)
    logits, target = case(3)
    assert losses.build({"ce": 1.0, "lovasz": 0.0})(logits, target).isfinite()


def test_weights_that_fade_are_equal_in_the_end():
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    fading = losses.FadingLoss({"ce": 1.0, "dice": 1.0}, [0.25, 1.0, 16.0])
    for done, weights in ((0.0, [0.25, 1.0, 16.0]), (0.5, [0.5, 1.0, 4.0]), (1.0, None)):
        fading.advance(done)
        assert torch.allclose(fading(logits, target), losses.build({"ce": 1.0, "dice": 1.0}, weights)(logits, target))


def test_weights_that_fade_are_balanced_at_first():
    of_three = "abc", [9, 3, 1]
    assert losses.class_weights(*of_three, "fading", None) == losses.class_weights(*of_three, "auto", None)


def test_class_weights_are_for_cross_entropies_only():
    logits, target = case(3)
    for name in REGIONS:
        assert torch.equal(built(name, weights=[1.0, 5.0, 9.0])(logits, target), built(name)(logits, target))


def test_all_weights_zero_is_refused_with_the_keys():
    with pytest.raises(ConfigError, match=r"every weight is 0\. Set one of loss\.ce, loss\.dice, .*loss\.focal"):
        losses.build(dict.fromkeys(TERMS, 0.0))


def test_the_schema_knows_every_term():
    assert config.LOSSES == TERMS


# Weights of classes.


@pytest.mark.parametrize(
    ("pixels", "weights"),
    [
        ([60, 30, 10], [0.5, 1, 3]),
        ([40, 10, 30, 20], [25 / 40, 25 / 10, 25 / 30, 25 / 20]),
        ([100, 0, 50, 25], [0.5, 1, 1, 2]),
        ([7, 7, 7], [1, 1, 1]),
        ([10**6, 10**6, 1], [1, 1, losses.LARGEST_WEIGHT]),
        ([900, 100], [500 / 900, 5]),
    ],
)
def test_auto_is_median_frequency_balancing(pixels, weights):
    names = [f"c{i}" for i in range(len(pixels))]
    assert losses.class_weights(names, pixels, "auto", None) == pytest.approx(weights)


def test_auto_makes_every_class_count_the_same():
    pixels = [50_000, 3_000, 700, 9_000]
    weights = losses.class_weights("abcd", pixels, "auto", None)
    assert len({round(w * n, 6) for w, n in zip(weights, pixels, strict=True)}) == 1


@pytest.mark.parametrize(
    ("pixels", "given", "weight"),
    [
        ([900, 100], "auto", 9),
        ([100, 900], "auto", 1 / 9),
        ([10**6, 1], "auto", losses.LARGEST_WEIGHT),
        ([100, 0], "auto", losses.LARGEST_WEIGHT),
        ([900, 100], 2.5, 2.5),
        ([900, 100], 500, 500),
    ],
)
def test_pos_weight_is_the_foregrounds_beside_one(pixels, given, weight):
    assert losses.class_weights(("background", "cell"), pixels, None, given) == pytest.approx([1, weight])


def test_without_weights_there_are_none():
    assert losses.class_weights("abc", [1, 2, 3], None, None) is None


def test_given_weights_are_kept_as_numbers():
    assert losses.class_weights("abc", [1, 2, 3], [1, 2, 0.5], None) == [1.0, 2.0, 0.5]


@pytest.mark.parametrize("given", ("auto", 2.0))
@pytest.mark.parametrize("names", ("abc", "a"))
def test_pos_weight_is_refused_but_for_two_classes(given, names):
    said = rf"loss\.pos_weight={given}: for two classes; .* {len(names)}\. Try loss\.class_weights=auto\."
    with pytest.raises(ConfigError, match=said):
        losses.class_weights(names, [1] * len(names), None, given)


@pytest.mark.parametrize("given", ([1.0, 2.0], [1.0, 2.0, 3.0, 4.0], []))
def test_a_wrong_number_of_weights_is_refused_with_the_classes(given):
    with pytest.raises(ConfigError, match=r"loss\.class_weights=.*one for each of the 3 classes, sky, road, car"):
        losses.class_weights(("sky", "road", "car"), [1, 2, 3], given, None)


def test_balanced_weights_let_rare_pixels_weigh_as_much_as_frequent_ones():
    target = torch.zeros(1, 10, 10, dtype=torch.int64)
    target[0, 0, :5] = 1
    logits = torch.zeros(1, 1, 10, 10, requires_grad=True)
    weights = losses.class_weights(("background", "cell"), [95, 5], None, "auto")
    built("ce", weights=weights)(logits, target).backward()
    assert logits.grad.sum().item() == pytest.approx(0, abs=1e-6)
    assert logits.grad[0, 0][target[0] == 1].sum().item() == pytest.approx(-0.25)


def test_focal_looks_away_from_easy_pixels():
    logits = torch.tensor([[[[3.0, -1.0]]]], requires_grad=True)
    target = torch.ones(1, 1, 2, dtype=torch.int64)
    shares = []
    for gamma in (0.0, 1.0, 2.0, 4.0):
        (gradient,) = torch.autograd.grad(losses.focal(Pixels(logits, target), gamma=gamma), logits)
        shares.append(float(gradient[..., 0] / gradient.sum()))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx((1 - 1 / (1 + math.exp(-3))) / (2 - 1 / (1 + math.exp(-3)) - 1 / (1 + math.e)))


@pytest.mark.parametrize("k", [1, 3])
def test_label_smoothing_is_torchs(k):
    torch.manual_seed(0)
    logits, target = torch.randn(2, k, 5, 6), torch.randint(0, max(k, 2), (2, 5, 6))
    target[0, 0] = 255
    own = losses.cross_entropy(Pixels(logits, target), label_smoothing=0.2)
    both = torch.cat([torch.zeros_like(logits), logits], 1) if k == 1 else logits
    assert own == pytest.approx(float(F.cross_entropy(both, target, ignore_index=255, label_smoothing=0.2)), abs=1e-6)
    loss = losses.build({"ce": 1.0}, label_smoothing=0.2)
    assert float(loss(logits, target)) == pytest.approx(float(own))


@every_sum
@some_classes
def test_images_are_scored_together_as_one_by_one(name, k):
    logits, target = case(k, size=(3, 6, 7))
    target[1] = VOID
    loss = built(name)
    together = torch.func.vmap(loss)(logits[:, None], target[:, None])
    alone = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
