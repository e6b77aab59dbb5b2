"""Encoders: measured, not looked up; their maps are timm's own."""

import itertools
import math

import pytest
import timm
import torch

from segsweep.errors import ConfigError
from segsweep.nn import UNet
from segsweep.nn.encoder import Encoder, decoder_width, encoder_traits

FAMILIES = (
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_byobnet",
    "test_nfnet",
    "test_mambaout",
    "test_vit",
    "test_vit3",
    "test_maxvit",
    "test_coatnet",
)
SWIN = "swin_tiny_patch4_window7_224"
VIT14 = "vit_small_patch14_dinov2"


def timms_own(encoder: Encoder, **arguments: object) -> torch.nn.Module:
    """timm's feature extractor, built without us, with the encoder's weights."""
    model = timm.create_model(encoder.name, features_only=True, **arguments)
    model.load_state_dict(encoder.timm.state_dict())
    return model.eval()


@pytest.mark.parametrize("name", (*FAMILIES, SWIN, VIT14))
@pytest.mark.parametrize("steps", ((1, 1), (5, 3)), ids=str)
def test_maps_have_the_announced_channels_and_strides(name, steps):
    with torch.device("meta"):
        encoder = Encoder(name)
    step = math.ceil(encoder.maps[-1].stride)
    height, width = steps[0] * step, steps[1] * step
    with torch.no_grad():
        maps = encoder(torch.empty(2, 3, height, width, device="meta"))
    expected = [(2, m.channels, math.ceil(height / m.stride), math.ceil(width / m.stride)) for m in encoder.maps]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize("name", (*FAMILIES, SWIN))
def test_maps_come_finest_first_with_distinct_strides(name):
    strides = [m.stride for m in encoder_traits(name).maps]
    assert strides == sorted(set(strides))


@pytest.mark.parametrize("name", ("test_resnet", "test_efficientnet", "test_convnext"))
def test_maps_are_those_of_timms_features_only(name):
    encoder = Encoder(name).eval()
    image = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(encoder(image), timms_own(encoder)(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_channels_last_maps_are_timms_transposed():
    encoder = Encoder("test_mambaout").eval()
    image = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(encoder(image), timms_own(encoder)(image), strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2), rtol=0, atol=0)


@pytest.mark.parametrize("name", ("test_vit", "test_vit3"))
def test_a_vits_map_at_its_native_size_is_timms_deepest(name):
    encoder = Encoder(name).eval()
    image = torch.randn(1, 3, *encoder_traits(name).native)
    (ours,) = encoder(image)
    torch.testing.assert_close(ours, timms_own(encoder)(image)[-1])


def test_a_fixed_encoder_at_its_own_size_gives_timms_maps():
    encoder = Encoder("test_maxvit").eval()
    assert encoder.input_size == (160, 160)
    image = torch.randn(1, 3, 160, 160)
    for ours, theirs in zip(encoder(image), timms_own(encoder)(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_fixed_encoder_scales_its_maps_to_the_image():
    with torch.device("meta"):
        encoder = Encoder("test_maxvit")
    maps = encoder(torch.empty(1, 3, 96, 224, device="meta"))
    assert [m.shape[-2:] for m in maps] == [(96 // m.stride, 224 // m.stride) for m in encoder.maps]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fixed_encoder_needs_no_multiple_and_others_their_deepest_stride(name):
    with torch.device("meta"):
        encoder = Encoder(name)
    assert encoder.multiple == (1 if encoder.input_size else encoder.maps[-1].stride)


def test_patch_14_strides_are_kept_as_they_are():
    assert [m.stride for m in encoder_traits(VIT14).maps] == [14]


def test_a_pretrained_tag_does_not_change_the_architecture():
    assert encoder_traits("test_resnet.r160_in1k") == encoder_traits("test_resnet")


@pytest.mark.parametrize("in_channels", (1, 3, 5))
def test_in_channels_are_those_of_the_stem(in_channels):
    encoder = Encoder("test_resnet", in_channels).eval()
    assert len(encoder(torch.randn(1, in_channels, 32, 32))) == 5


def test_on_meta_no_weights_are_sought():
    with torch.device("meta"):
        encoder = Encoder("resnet18", pretrained=True)
    assert encoder.weights_source == "random"
    assert {p.device.type for p in encoder.parameters()} == {"meta"}


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(
        ConfigError, match=r"encoder=resnt34: not a timm model\. Closest: resnet34.*Try encoder=resnet34"
    ):
        Encoder("resnt34")


def test_a_name_like_no_other_is_refused_too():
    with pytest.raises(ConfigError, match="encoder=qqqqqq: not a timm model"):
        Encoder("qqqqqq")


def test_macs_are_those_of_the_convolutions():
    encoder = Encoder("test_resnet").eval()
    total = 0

    def count(layer: torch.nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()

    for layer in encoder.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    encoder(torch.zeros(1, 3, 160, 160))
    assert encoder.macs == pytest.approx(total / 160**2)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_layers_count_from_the_image(name):
    encoder = Encoder(name)
    layers = encoder.layers()
    assert layers.keys() == dict(encoder.named_parameters()).keys()
    assert set(layers.values()) == set(range(max(layers.values()) + 1))
    blocks = [layer for key, layer in layers.items() if "norm" not in key.rpartition(".")[0].rpartition(".")[2]]
    assert blocks[0] == 0
    assert max(blocks) >= 2
    assert sum(a > b for a, b in itertools.pairwise(blocks)) <= 1  # timm's order is nearly that of the layers


def test_a_frozen_norm_keeps_its_statistics():
    encoder = Encoder("test_resnet")
    encoder.freeze_norm = True
    before = {key: tensor.clone() for key, tensor in encoder.named_buffers()}
    encoder.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.named_buffers())
    encoder.freeze_norm = False
    encoder.train()(torch.randn(2, 3, 64, 64))
    assert not all(torch.equal(tensor, before[key]) for key, tensor in encoder.named_buffers())


def test_drop_path_skips_blocks_in_training_only():
    encoder = Encoder("test_convnext", drop_path=0.5)
    image = torch.randn(4, 3, 64, 64)
    assert not torch.equal(encoder.train()(image)[-1], encoder(image)[-1])
    encoder.eval()
    assert torch.equal(encoder(image)[-1], encoder(image)[-1])
    with pytest.raises(ConfigError, match="has no drop path"):
        Encoder("vgg11", drop_path=0.5)


@pytest.mark.parametrize("name", ("test_resnet", "test_vit", "test_convnext", SWIN))
def test_widths_that_are_decided_before_are_those_of_the_model(name):
    with torch.device("meta"):
        model = UNet(name)
    widths = decoder_width(name)
    assert widths == [stage.width for stage in model.plan.stages] == model.architecture.decoder.width
    assert decoder_width(name, widths) == widths


def test_widths_that_do_not_fit_the_encoder_are_refused():
    with pytest.raises(ConfigError, match=r"decoder\.width=\[8, 8\].*takes 5 widths"):
        decoder_width("test_resnet", [8, 8])
