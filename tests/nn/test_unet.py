"""The U-Net from pixels to logits, on timm's tiny models of each family."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F

from segsweep.config.checks import read
from segsweep.config.schema import DecoderConfig
from segsweep.config.settings import Normalization
from segsweep.errors import ConfigError
from segsweep.nn import UNet
from segsweep.nn.unet import Architecture, encoder_statistics, predict

FAMILIES = (
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_byobnet",
    "test_nfnet",
    "test_mambaout",
    "test_vit",
    "test_vit3",
    "test_vit_relpos",
    "test_maxvit",
)
SWIN = "swin_tiny_patch4_window7_224"
VIT14 = "vit_small_patch14_dinov2"
PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 255


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_have_the_images_size(name):
    model = UNet(name).eval()
    with torch.no_grad():
        for size in ((32, 32), (33, 65), (50, 70)):
            logits = model(pixels(1, 3, *size))
            assert logits.shape == (1, 1, *size)
            assert logits.isfinite().all()


@pytest.mark.parametrize("name", (*FAMILIES, SWIN, VIT14))
def test_logits_have_the_images_size_on_meta(name):
    with torch.device("meta"):
        model = UNet(name, num_classes=4)
        for size in ((32, 32), (33, 65), (50, 70), (250, 350)):
            assert model(torch.empty(2, 3, *size)).shape == (2, 4, *size)


@pytest.mark.parametrize("in_channels", (1, 3, 5))
@pytest.mark.parametrize("num_classes", (1, 4))
@pytest.mark.parametrize("name", ("test_resnet", "test_vit"))
def test_any_number_of_channels_and_classes(name, in_channels, num_classes):
    model = UNet(name, num_classes, in_channels).eval()
    assert model(pixels(1, in_channels, 32, 48)).shape == (1, num_classes, 32, 48)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name):
    model = UNet(name).train()
    model(pixels(2, 3, 64, 64)).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ("test_resnet", "test_convnext", "test_vit", "test_maxvit"))
def test_the_loss_falls_on_one_batch(name):
    model = UNet(name).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images = pixels(2, 3, 64, 64)
    target = (images.mean(1, keepdim=True) > 127).float()
    losses = []
    for _ in range(10):
        loss = F.binary_cross_entropy_with_logits(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses


@pytest.mark.parametrize(
    ("norm", "layer"), (("batch", torch.nn.BatchNorm2d), ("group", torch.nn.GroupNorm), ("layer", torch.nn.LayerNorm))
)
@pytest.mark.parametrize("name", ("test_resnet", "test_vit"))
def test_the_decoder_has_the_norm_that_was_asked_for(name, norm, layer):
    model = UNet(name, decoder=DecoderConfig(norm=norm))
    kinds = (torch.nn.BatchNorm2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
    norms = [m for m in model.decoder.modules() if isinstance(m, kinds)]
    assert norms
    assert all(isinstance(m, layer) for m in norms)
    assert model(pixels(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("norm", ("batch", "group", "layer"))
@pytest.mark.parametrize("name", ("test_resnet", "test_vit", "test_convnext", "mobilenetv3_large_100"))
def test_a_batch_of_one_small_image_can_be_trained_on(name, norm):
    model = UNet(name, decoder=DecoderConfig(norm=norm)).train()
    logits = model(torch.rand(1, 3, 32, 32) * 255)
    assert logits.shape == (1, 1, 32, 32)
    logits.mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_model_on_meta_has_no_memory():
    with torch.device("meta"):
        model = UNet("test_resnet")
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("size", ((64, 96), (50, 70)), ids=str)
def test_normalisation_is_the_models_own(size):
    mean, std = (100.0, 120.0, 90.0), (50.0, 60.0, 70.0)
    inside = UNet("test_resnet", normalization=Normalization(mean, std)).eval()
    outside = UNet("test_resnet", normalization=PLAIN).eval()
    outside.load_state_dict({**inside.state_dict(), "mean": outside.mean, "std": outside.std})
    image = pixels(1, 3, *size)
    normalised = (image - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(inside(image), outside(normalised))


def clipped(in_channels=3, low=40.0, high=200.0, statistics=None):
    """A model that clips each channel to another window, evaluating; and the window as `1 c 1 1`."""
    step = torch.arange(float(in_channels))
    window = tuple((low + step).tolist()), tuple((high - step).tolist())
    mean, std = statistics or map(tuple, encoder_statistics("test_resnet", in_channels))
    model = UNet("test_resnet", 2, in_channels, normalization=Normalization(mean, std, window)).eval()
    return model, *(torch.tensor(edge).view(1, -1, 1, 1) for edge in window)


@pytest.mark.parametrize("in_channels", (1, 3, 5))
def test_pixels_beyond_the_window_are_as_at_its_edge(in_channels):
    model, low, high = clipped(in_channels)
    inside = low + (high - low) * pixels(1, in_channels, 40, 50) / 255
    edge, beyond = inside.clone(), inside.clone()
    for part, bound, far in ((slice(0, 10), low, -1e4), (slice(30, 40), high, 1e6)):
        edge[..., part, :] = bound
        beyond[..., part, :] = bound + far * torch.rand(beyond[..., part, :].shape)
    with torch.no_grad():
        assert torch.equal(model(beyond), model(edge))
        assert not torch.equal(model(edge), model(inside))


def test_pixels_within_the_window_are_left_alone():
    model, low, high = clipped()
    free = UNet("test_resnet", 2).eval()
    free.load_state_dict(model.state_dict())
    inside = low + (high - low) * pixels(1, 3, 40, 50) / 255
    with torch.no_grad():
        assert torch.equal(model(inside), free(inside))
        assert not torch.equal(model(pixels(1, 3, 40, 50)), free(pixels(1, 3, 40, 50)))


def test_clipping_comes_before_the_mean_and_std():
    model, low, high = clipped(statistics=((100.0, 90.0, 80.0), (20.0, 30.0, 40.0)))
    plain = UNet("test_resnet", 2, normalization=PLAIN).eval()
    plain.load_state_dict({**model.state_dict(), "mean": plain.mean, "std": plain.std})
    image = pixels(1, 3, 40, 50)
    with torch.no_grad():
        shown = (image.maximum(low).minimum(high) - model.mean) / model.std
        torch.testing.assert_close(model(image), plain(shown))


def test_the_window_is_no_part_of_the_weights_and_goes_where_the_model_goes():
    model, _, _ = clipped()
    free = UNet("test_resnet", 2)
    assert model.state_dict().keys() == free.state_dict().keys()
    assert model.double().low.dtype == torch.float64
    assert {model.to("meta").low.device.type, model.high.device.type} == {"meta"}


def test_an_image_of_bytes_is_clipped_as_one_of_floats():
    model, _, _ = clipped()
    image = pixels(1, 3, 32, 32).round()
    with torch.no_grad():
        assert torch.equal(model(image), model(image.to(torch.uint8)))


@pytest.mark.parametrize("name", ("test_resnet", "test_vit"))
def test_an_image_goes_on_as_its_edge_beyond_it(name):
    model = UNet(name).eval()
    step = model.encoder.multiple
    image = pixels(1, 3, step + 1, 3 * step - 5)
    longer = F.pad(image, (0, 5, 0, step - 1), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(model(image), model(longer)[..., : step + 1, : 3 * step - 5])


def test_bytes_and_floats_of_the_same_pixels_give_the_same_logits():
    model = UNet("test_resnet").eval()
    image = pixels(1, 3, 32, 32).round()
    with torch.no_grad():
        assert torch.equal(model(image), model(image.to(torch.uint8)))


@pytest.mark.parametrize("name", ("test_resnet", "test_vit", "test_maxvit"))
def test_an_image_does_not_see_the_others_of_its_batch(name):
    model = UNet(name).eval()
    images = pixels(2, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip", (None, ((0.0,) * 5, (100.0, 200.0, 300.0, 400.0, 500.0))), ids=("free", "clipped"))
def test_an_architecture_builds_the_same_model_again(clip):
    decoder = DecoderConfig([48, 40, 32, 24, 16], "group", 0.1)
    model = UNet("test_resnet", 3, 5, decoder=decoder, normalization=Normalization((7.0,) * 5, (3.0,) * 5, clip))
    written = json.loads(json.dumps(asdict(model.architecture)))
    again = UNet(**vars(read(Architecture, written, "model"))).eval()
    again.load_state_dict(model.state_dict())
    assert again.architecture == model.architecture
    with torch.no_grad():
        assert torch.equal(again(pixels(1, 5, 32, 32) * 3), model.eval()(pixels(1, 5, 32, 32) * 3))


def test_auto_widths_are_written_down():
    model = UNet("test_vit")
    assert model.architecture.decoder.width == [stage.width for stage in model.plan.stages]


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"decoder\.width=\[8, 8\].*takes 5 widths"):
        UNet("test_resnet", decoder=DecoderConfig([8, 8]))


def test_an_unknown_encoder_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match="Try encoder=test_resnet"):
        UNet("test_resnt")


def test_dropout_acts_in_training_only():
    model = UNet("test_resnet", decoder=DecoderConfig(dropout=0.5))
    model.train()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
    image = pixels(1, 3, 32, 32)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


def test_statistics_are_imagenets_on_the_scale_of_bytes():
    mean, std = encoder_statistics("resnet18")
    assert mean == pytest.approx([123.675, 116.28, 103.53])
    assert std == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize("in_channels", (1, 5))
def test_statistics_of_other_channels_are_the_average(in_channels):
    mean, std = encoder_statistics("resnet18", in_channels)
    assert mean == pytest.approx([(123.675 + 116.28 + 103.53) / 3] * in_channels)
    assert std == pytest.approx([(58.395 + 57.12 + 57.375) / 3] * in_channels)


def test_one_logit_predicts_foreground_above_zero():
    logits = torch.tensor([-1.0, 0.0, 1e-6, 3.0]).view(1, 1, 2, 2)
    assert torch.equal(predict(logits), torch.tensor([[[0, 0], [1, 1]]]))


def test_several_logits_predict_the_largest():
    logits = torch.randn(2, 4, 5, 6)
    prediction = predict(logits)
    assert prediction.dtype == torch.int64
    assert torch.equal(F.one_hot(prediction, 4).movedim(-1, 1).bool(), logits == logits.amax(1, keepdim=True))
