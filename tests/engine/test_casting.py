"""Casting all weights at once is what autocast does layer by layer, to the bit."""

import copy

import pytest
import torch
from torch import nn

from segsweep.config.schema import OptimConfig
from segsweep.data.batches import Batch
from segsweep.engine import losses
from segsweep.engine import step as steps
from segsweep.engine.casting import AtOnce
from segsweep.engine.execution import Execution, checkpoint_gradients
from segsweep.engine.step import TrainStep
from segsweep.nn import UNet
from segsweep.training import optim
from segsweep.training.state import TrainState

BF16 = torch.bfloat16


class LayerByLayer(AtOnce):
    """What plain autocast does."""

    def __init__(self, model, precision):
        super().__init__(None, precision)


def trained(model, execution=Execution(BF16), number=2):  # noqa: B008
    """All that two steps of `number` micro-batches leave."""
    torch.manual_seed(0)
    optimizer = optim.build(OptimConfig(lr=1e-2, encoder_lr_scale=1.0), execution.prepare(model.train()))
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    image = 255 * torch.rand(2, 3, 64, 64)
    batch = Batch(image, (image[:, 0] > 127).long(), (0, 1), ())
    step = TrainStep(execution, losses.build({"ce": 1.0, "dice": 1.0}))
    found = [step(state, [batch] * number, number)[0] for _ in range(2)]
    return {**model.state_dict(), "losses": torch.stack(found)}


@pytest.mark.parametrize("doubling", (True, False))
@pytest.mark.parametrize("name", ("test_resnet", "test_efficientnet", "test_convnext", "test_vit"))
def test_a_step_is_that_of_autocast_to_the_bit(monkeypatch, name, doubling):
    torch.manual_seed(0)
    model, execution = UNet(name), Execution(BF16, doubling=doubling)
    found = trained(copy.deepcopy(model), execution)
    monkeypatch.setattr(steps, "AtOnce", LayerByLayer)
    expected = trained(model, execution)
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def test_a_frozen_encoder_and_checkpointing_are_those_of_autocast_to_the_bit(monkeypatch):
    torch.manual_seed(0)
    model = UNet("test_resnet")
    checkpoint_gradients(model, torch.zeros(2, 3, 64, 64))
    model.encoder.requires_grad_(False)
    found = trained(copy.deepcopy(model))
    monkeypatch.setattr(steps, "AtOnce", LayerByLayer)
    expected = trained(model)
    # Parts that are computed again count their batches again; nothing reads these counters.
    unlike = [key for key in expected if not torch.equal(found[key], expected[key])]
    assert all(key.endswith("num_batches_tracked") for key in unlike)


class Standardised(nn.Conv2d):
    """Computes with its weights before autocast casts them."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight / self.weight.std())


def test_only_weights_that_are_used_as_they_are_get_cast_and_all_come_back():
    tied = nn.Linear(4, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Standardised(4, 4, 1), nn.BatchNorm2d(4), tied, nn.Sequential(tied))
    odd = nn.Embedding(4, 4)
    odd.weight = nn.Linear(4, 4).weight
    model.append(odd)
    model.append(nn.Linear(4, 4))
    model[-1].weight = odd.weight  # shared with a layer that casts nothing
    before, counter = dict(model.named_parameters()), model[2].num_batches_tracked
    with pytest.raises(ZeroDivisionError), AtOnce(model, BF16).applied():
        kinds = {name: tensor.dtype for name, tensor in model._modules["0"]._parameters.items()}
        assert kinds == {"weight": BF16, "bias": BF16}
        assert model[1].weight.dtype == torch.float32
        assert tied.weight.dtype == model[4][0].weight.dtype == BF16
        assert model[-1].weight is odd.weight and odd.weight.dtype == torch.float32
        assert model[-1].bias.dtype == BF16
        raise ZeroDivisionError
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model[2].num_batches_tracked is counter and counter == 1


def test_averages_over_everything_still_count_for_themselves():
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=None), nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval())
    for _ in range(3):
        with AtOnce(model, torch.float32).applied():
            model(torch.randn(4, 2, 3, 3))
    assert [int(norm.num_batches_tracked) for norm in model] == [3, 3, 0]


def test_without_a_model_nothing_is_done(calls):
    with calls() as counted, AtOnce(None, BF16).applied():
        pass
    assert counted.total == 0


def test_calls_do_not_grow_with_the_layers(calls):
    """One cast of all weights forward, one of all gradients backward, one count for all BatchNorms."""
    found = []
    for layers in (2, 6):
        model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(layers)))
        at_once, image = AtOnce(model, BF16), torch.randn(2, 3, 4, 4)
        with calls() as counted, at_once.applied(), torch.autocast("cpu", BF16):
            model(image).float().sum().backward()
        found.append({name: counted.by_name[name] for name in ("_to_copy", "add_", "_foreach_copy_", "_foreach_add_")})
    assert found[0] == found[1] == {"_to_copy": 3, "add_": 0, "_foreach_copy_": 2, "_foreach_add_": 1}
