"""The decoder's shortcuts give what the plain operations give."""

import pytest
import torch
from torch.nn import functional as F

from segsweep.engine.execution import checkpoint_gradients
from segsweep.nn import UNet
from segsweep.nn.decoder import Block, _upsampled, set_doubling
from segsweep.nn.plan import Stage

SIZES = ((12, 14), (18, 21), (6, 7), (11, 13), (12, 21))  # doubled, tripled, the same, odd, one side doubled


def plainly(x, weight, size):
    whole = size[0] % x.shape[2] == 0 and size[1] % x.shape[3] == 0
    x = F.interpolate(x, size=size, mode="nearest" if whole else "bilinear") if x.shape[2:] != size else x
    return F.conv2d(x, weight, padding=1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_upsampling_and_convolution_are_what_they_are_one_after_the_other(size):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 5, 6, 7), (4, 5, 3, 3)))
    x.requires_grad_()
    weight.requires_grad_()
    ours, plain = _upsampled(x, weight, size), plainly(x, weight, size)
    assert torch.allclose(ours, plain, atol=1e-12)
    ahead = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    for found, expected in zip(
        torch.autograd.grad(ours, (x, weight), ahead), torch.autograd.grad(plain, (x, weight), ahead), strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize("doubling", (True, False))
@pytest.mark.parametrize("skip", (0, 3))
def test_a_block_is_two_convolutions_over_what_is_joined(skip, doubling):
    torch.manual_seed(0)
    block = Block(Stage(stride=1, inputs=5, skip=skip, width=4), "batch")
    set_doubling(block, doubling)
    x, skipped = torch.randn(2, 5, 6, 7), torch.randn(2, skip, 12, 14)
    joined = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skipped], 1)
    joining, *others = block.convs[0]
    plain = F.conv2d(joined, joining.weight, padding=1)
    for layer in (*others, block.convs[1]):
        plain = layer(plain)
    assert torch.allclose(block(x, skipped if skip else None, (12, 14)), plain, atol=1e-5)


@pytest.mark.parametrize("name", ("test_resnet", "test_vit", "test_convnext", "test_efficientnet"))
def test_checkpointing_changes_neither_gradients_nor_statistics(name):
    image, small = 255 * torch.rand(2, 3, 64, 64), 255 * torch.rand(2, 3, 64, 64)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = UNet(name).train()
        if checkpointing:
            before = {key: value.clone() for key, value in model.state_dict().items()}
            assert not checkpoint_gradients(model, small).isdisjoint(model.encoder.modules())
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            assert all(p.grad is None for p in model.parameters())
        model(image).square().mean().backward()
        found.append((dict(model.named_buffers()), {n: p.grad for n, p in model.named_parameters()}))
    for kept, computed_again in zip(*found, strict=True):
        for key, value in kept.items():
            # BatchNorm's counter of batches, which nothing uses, counts the second pass, too.
            if value is not None and not key.endswith("num_batches_tracked"):
                assert torch.allclose(value, computed_again[key], rtol=1e-4, atol=1e-6), key


def test_an_encoder_that_refuses_is_none_of_those_that_took_the_switch(monkeypatch):
    model = UNet("test_resnet")

    def refuse(enable):
        raise AssertionError("gradient checkpointing not supported")

    monkeypatch.setattr(model.encoder.timm, "set_grad_checkpointing", refuse)
    taken = checkpoint_gradients(model, torch.zeros(2, 3, 64, 64))
    assert model.decoder in taken
    assert taken.isdisjoint(model.encoder.modules())


def test_no_activation_is_checkpointed_in_place():
    """timm before 1.0.31 checkpoints a stem's activation alone, and it overwrote what it is computed from again."""
    model = UNet("test_resnet")
    stem = [part for part in model.encoder.timm.children() if isinstance(part, torch.nn.ReLU)]
    assert stem and all(part.inplace for part in stem)
    checkpoint_gradients(model, torch.zeros(2, 3, 64, 64))
    assert not any(part.inplace for part in stem)
