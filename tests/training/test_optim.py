"""Schedules as curves, optimizers as a partition of the parameters."""

import copy
import itertools

import pytest
import torch
from torch import nn

from segsweep.config.schema import OptimConfig
from segsweep.training import optim

KINDS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
GRID = [i / 1000 for i in range(1001)]


@pytest.fixture
def model() -> nn.Module:
    """An encoder with a norm and a decoder with a bias."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return nn.ModuleDict({"encoder": encoder, "decoder": nn.Linear(4, 4)})


def build(name, model, layers=None, **keys):
    """An optimizer that trains all at one rate and decays nothing, but for what is given."""
    return optim.build(OptimConfig(name=name, **{"encoder_lr_scale": 1.0, "weight_decay": 0.0, **keys}), model, layers)


def groups_by_parameter(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    names = {id(p): name for name, p in model.named_parameters()}
    rows = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(rows) == len(dict(rows)), "a parameter is in two groups"
    return dict(rows)


@pytest.mark.parametrize(
    ("name", "warmup", "start", "top", "end"),
    [
        ("cosine", 0.1, 0.01, 0.1, 0.0),
        ("cosine", 0.0, 1.0, 0.0, 0.0),
        ("constant", 0.1, 0.01, 0.1, 1.0),
        ("constant", 0.0, 1.0, 0.0, 1.0),
        ("onecycle", 0.0, 1 / 25, 0.3, 1e-4),
        ("onecycle", 0.1, 1 / 25, 0.3, 1e-4),
    ],
)
def test_schedules_start_peak_and_end_where_they_say(name, warmup, start, top, end):
    rate = optim.schedule(name, warmup)
    assert rate(0.0) == pytest.approx(start)
    assert rate(top) == pytest.approx(1.0)
    assert rate(1.0) == pytest.approx(end, abs=1e-12)
    assert max(map(rate, GRID)) == pytest.approx(1.0)
    rise = [rate(done) for done in GRID if done <= top]
    fall = [rate(done) for done in GRID if done >= top]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)


@pytest.mark.parametrize("name", ("cosine", "onecycle", "constant"))
def test_schedules_have_no_jumps(name):
    curve = [optim.schedule(name, 0.05)(done) for done in GRID]
    assert max(abs(b - a) for a, b in itertools.pairwise(curve)) < 0.03


def test_cosine_is_torchs():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert optim.schedule("cosine")(step / 20) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_onecycle_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=101, pct_start=0.3, div_factor=25, final_div_factor=400, cycle_momentum=False
    )
    # torch peaks one step early: at pct_start * total_steps - 1.
    for step in range(101):
        share = 0.3 * step / 29.3 if step < 29.3 else 0.3 + 0.7 * (step - 29.3) / 70.7
        assert optim.schedule("onecycle")(share) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_is_in_exactly_one_group(model, name):
    optimizer = build(name, model, lr=0.1)
    assert type(optimizer) is KINDS[name]
    assert groups_by_parameter(model, optimizer).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("scale", (0.1, 1.0, 2.0))
def test_the_encoder_has_its_own_learning_rate(model, scale):
    groups = groups_by_parameter(model, build("adamw", model, lr=0.1, encoder_lr_scale=scale))
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(0.1 * scale if name.startswith("encoder.") else 0.1)


def test_scale_zero_freezes_the_encoder(model):
    groups = groups_by_parameter(model, build("adamw", model, lr=0.1, encoder_lr_scale=0))
    assert set(groups) == {"decoder.weight", "decoder.bias"}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}


@pytest.mark.parametrize("name", KINDS)
def test_only_parameters_of_several_dimensions_decay(model, name):
    groups = groups_by_parameter(model, build(name, model, lr=0.1, weight_decay=0.3))
    parameters = dict(model.named_parameters())
    assert {key for key, group in groups.items() if group["weight_decay"] == 0.3} == {
        key for key, p in parameters.items() if p.ndim > 1
    }
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.3}


@pytest.mark.parametrize("name", KINDS)
def test_momentum_is_sgds_and_adams_first_beta(model, name):
    for group in build(name, model, lr=0.1, momentum=0.8).param_groups:
        assert (group["momentum"] if name == "sgd" else group["betas"][0]) == 0.8


def test_sgd_without_momentum_is_plain(model):
    assert not any(group["nesterov"] for group in build("sgd", model, lr=0.1, momentum=0.0).param_groups)


def test_set_lr_scales_every_groups_peak_and_returns_the_decoders(model):
    optimizer = build("adamw", model, lr=0.1, encoder_lr_scale=0.1)
    for factor in (0.5, 0.25, 1.0):
        assert optim.set_lr(optimizer, factor) == pytest.approx(0.1 * factor)
        for name, group in groups_by_parameter(model, optimizer).items():
            assert group["lr"] == pytest.approx(factor * (0.01 if name.startswith("encoder.") else 0.1))


@pytest.mark.parametrize("name", KINDS)
def test_a_step_is_torchs_own(model, name):
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    build(name, model, lr=0.1, momentum=0.9).step()
    for key, p in model.named_parameters():
        other = nn.Parameter(start[key])
        other.grad = torch.ones_like(other)
        arguments = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {"weight_decay": 0.0}
        KINDS[name]([other], lr=0.1, **arguments).step()
        torch.testing.assert_close(p, other)


def test_layer_decay_falls_towards_the_image(model):
    layers = {name: i for i, (name, _) in enumerate(model.named_parameters()) if name.startswith("encoder.")}
    optimizer = build("adamw", model, lr=1.0, encoder_lr_scale=0.5, layer_decay=0.8, layers=layers)
    rates = {name: group["peak_lr"] for name, group in groups_by_parameter(model, optimizer).items()}
    assert [rates[name] for name in layers] == pytest.approx([0.5 * 0.8**3, 0.5 * 0.8**2, 0.5 * 0.8, 0.5])
    assert rates["decoder.weight"] == 1.0
    assert optim.set_lr(optimizer, 0.5) == 0.5


def test_freezing_leaves_the_encoder_as_it_is(model):
    optimizer = build("adamw", model, lr=0.1, weight_decay=0.1)
    optim.freeze(optimizer, True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model["decoder"](model["encoder"](torch.rand(2, 3, 5, 5)).mean((2, 3))).sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"decoder.weight", "decoder.bias"}
    optim.freeze(optimizer, False)
    assert all(p.requires_grad for p in model.parameters())


def test_an_average_is_two_calls_a_step(model, calls):
    average = optim.Average(model, decay=0.5)
    average.update(model)
    with calls() as counted:
        average.update(model)
    assert counted.by_name == {"_foreach_lerp_": 1, "_foreach_copy_": 1}


def test_an_average_is_the_closed_form(model):
    average = optim.Average(model, decay=0.5)
    expected = model["decoder"].weight.detach().clone()
    for n in range(6):
        with torch.no_grad():
            model["decoder"].weight += 1
            model["encoder"][1].num_batches_tracked += 1
        average.update(model)
        share = min(0.5, (1 + n) / (10 + n))
        expected = share * expected + (1 - share) * model["decoder"].weight
    assert torch.allclose(average.model["decoder"].weight, expected)
    assert average.model["encoder"][1].num_batches_tracked == 6
    again = optim.Average(model, decay=0.5)
    again.update(copy.deepcopy(model))
    again.load_state_dict(average.state_dict())
    assert again.steps == 6
    assert torch.equal(again.model["decoder"].weight, average.model["decoder"].weight)
    assert not any(p.requires_grad for p in again.model.parameters())
