"""A linear layer on frozen maps: what it gives at a pixel is what its features say there."""

import pytest
import torch

from segsweep.nn import UNet
from segsweep.nn.probe import LinearProbe


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_vit_relpos"])
def test_logits_are_features_times_weights(name):
    torch.manual_seed(0)
    probe = LinearProbe(UNet(name, num_classes=3))
    pixels = torch.rand(2, 3, 45, 67) * 255  # no multiple of any stride
    where = torch.stack([torch.randint(45, (2, 40)), torch.randint(67, (2, 40))], -1)
    where[:, :4] = torch.tensor([[0, 0], [44, 66], [0, 66], [44, 0]])
    features = probe.features(pixels, where)
    weight, bias = torch.randn(features.shape[-1], 3), torch.randn(3)
    probe.set(weight.double(), bias.double())
    logits = probe(pixels)
    assert logits.shape == (2, 3, 45, 67)
    at = torch.stack([logits[i][:, rows, columns].T for i, (rows, columns) in enumerate(where.transpose(1, 2))])
    torch.testing.assert_close(at, features @ weight + bias, rtol=1e-4, atol=1e-3)


def test_features_come_in_the_precision_that_the_scores_have():
    torch.manual_seed(0)
    probe = LinearProbe(UNet("test_resnet"))
    pixels = torch.rand(1, 3, 32, 32) * 255
    where = torch.cartesian_prod(torch.arange(32), torch.arange(32))[None]
    with torch.autocast("cpu", torch.bfloat16):
        features = probe.features(pixels, where)
        probe.set(torch.randn(features.shape[-1], 1), torch.randn(1))
        found = probe(pixels)
    torch.testing.assert_close(found.flatten(), (features @ probe.weight + probe.bias).flatten(), rtol=1e-4, atol=1e-3)


def test_nothing_of_it_is_trained():
    probe = LinearProbe(UNet("test_resnet"))
    assert not [name for name, parameter in probe.named_parameters() if parameter.requires_grad]
