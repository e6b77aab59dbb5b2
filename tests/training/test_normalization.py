"""What an encoder is shown, by hand: black and white of the chosen range are the encoder's own black and white."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from segsweep.config.schema import DataConfig
from segsweep.config.settings import Normalization
from segsweep.data import store as stores
from segsweep.data.sources import folder
from segsweep.data.store import open_store
from segsweep.nn import UNet, checkpoint
from segsweep.training.normalization import OUTLIERS, choose

ENCODER = "resnet18"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, on 0..1
KINDS = ("rgb8", "grey8", "grey16", "five16", "grey32")
TRAIN = (0, 2, 3)


def image(kind, seed):
    rng = np.random.default_rng(seed)
    size = (30 + seed, 25)
    wave = rng.beta(2, 5, (*size, {"rgb8": 3, "five16": 5}.get(kind, 1))) * (1 + seed)
    wave = wave * np.linspace(0.5, 1, wave.shape[2])
    if kind.endswith("8"):
        return (wave * 50).astype(np.uint8)
    return (wave * 7000 + 300).astype(np.uint16) if kind.endswith("16") else (wave - 2).astype(np.float32)


def written(root, pictures):
    for i, pixels in enumerate(pictures):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            np.arange(pixels.shape[0] * pixels.shape[1]).reshape(pixels.shape[:2]).astype(np.uint8) % 2
        ).save(root / "masks" / f"{i}.png")
        if pixels.dtype == np.uint8:
            Image.fromarray(pixels.squeeze()).save(root / "images" / f"{i}.png")
        else:
            tifffile.imwrite(
                root / "images" / f"{i}.tif", np.moveaxis(pixels, 2, 0).squeeze(), photometric="minisblack"
            )
    return open_store(folder.find(DataConfig(root=str(root))).samples)


@pytest.fixture(params=KINDS)
def data(request, tmp_path):
    """A store of five images, and those of the training split as one row of pixels, `n c`."""
    pictures = [image(request.param, seed) for seed in range(5)]
    store = written(tmp_path / "data", pictures)
    assert store.channels == pictures[0].shape[2]
    return store, np.concatenate([pictures[i].reshape(-1, store.channels) for i in TRAIN]).astype(np.float64)


def chosen(how, store, **more):
    return choose(how, store, TRAIN, ENCODER, **more)


def own(channels):
    """The encoder's mean and std on 0..1, for so many channels."""
    if channels == 3:
        return np.array(MEAN), np.array(STD)
    return np.full(channels, np.mean(MEAN)), np.full(channels, np.mean(STD))


def is_shown_from_to(found, low, high):
    """Low is the encoder's black and high its white: by the definition of its statistics."""
    mean, std = own(len(found.mean))
    black, white = ((np.array(edge) - found.mean) / found.std for edge in (low, high))
    np.testing.assert_allclose(black, (0 - mean) / std, rtol=1e-5)
    np.testing.assert_allclose(white, (1 - mean) / std, rtol=1e-5)


def test_dataset_is_the_mean_and_std_of_the_training_split(data):
    store, pixels = data
    found = chosen("dataset", store)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, pixels.std(0), rtol=1e-5)
    assert found.clip is None


def test_encoder_maps_the_range_to_black_and_white(data):
    store, _ = data
    found = chosen("encoder", store)
    is_shown_from_to(found, [store.range[0]] * store.channels, [store.range[1]] * store.channels)
    assert found.clip is None


def test_encoder_on_bytes_is_what_the_encoder_was_trained_with(tmp_path):
    found = chosen("encoder", written(tmp_path, [image("rgb8", seed) for seed in range(5)]))
    assert list(found.mean) == pytest.approx([255 * m for m in MEAN])
    assert list(found.std) == pytest.approx([255 * s for s in STD])


def test_percentile_maps_each_channels_own_to_black_and_white(data):
    store, pixels = data
    found = chosen("percentile", store)
    low, high = np.percentile(pixels, (0.5, 99.5), axis=0)
    is_shown_from_to(found, low, high)
    np.testing.assert_allclose(found.clip, (low, high), rtol=1e-6)
    outside = (pixels < found.clip[0]) | (pixels > found.clip[1])
    assert (outside.sum(0) <= 2 * OUTLIERS / 100 * len(pixels) + 2).all()


def test_percentiles_are_those_of_the_training_split_alone(data):
    store, _ = data
    assert chosen("percentile", store) != choose("percentile", store, range(5), ENCODER)


@pytest.mark.parametrize("window", ([10, 200], [-1000.0, 400.0], [0.25, 0.5]))
def test_window_maps_its_bounds_to_black_and_white(data, window):
    store, _ = data
    found = chosen("window", store, window=window)
    is_shown_from_to(found, *([edge] * store.channels for edge in window))
    assert [list(edge) for edge in found.clip] == [[edge] * store.channels for edge in window]


def test_grey_among_colour_counts_for_all_three(tmp_path):
    grey, colour = image("grey8", 2), image("rgb8", 4)
    store = written(tmp_path, [grey, colour])
    pixels = np.concatenate([grey.reshape(-1, 1).repeat(3, 1), colour.reshape(-1, 3)]).astype(float)
    low, high = np.percentile(pixels, (0.5, 99.5), axis=0)
    np.testing.assert_allclose(choose("percentile", store, [0, 1], ENCODER).clip, (low, high), rtol=1e-6)
    np.testing.assert_allclose(choose("dataset", store, [0, 1], ENCODER).mean, pixels.mean(0), rtol=1e-6)


def test_percentiles_of_every_nth_pixel_are_near_those_of_all(data, monkeypatch):
    store, pixels = data
    whole = chosen("percentile", store).clip
    monkeypatch.setattr(stores, "SAMPLED", len(pixels) // 3)
    some = chosen("percentile", store).clip
    assert some != whole
    assert np.abs(np.subtract(some, whole)).max() < 0.15 * np.ptp(pixels)


@pytest.mark.parametrize("how", ("encoder", "dataset", "percentile"))
@pytest.mark.parametrize("value", (0, 1, 200, 65535))
def test_a_channel_without_contrast_gives_finite_logits(tmp_path, how, value):
    flat = np.full((40, 40, 1), value, np.uint16)
    store = written(tmp_path, [flat] * 4)
    found = choose(how, store, TRAIN, "test_resnet")
    model = UNet("test_resnet", 1, 1, normalization=found).eval()
    with torch.no_grad():
        assert model(torch.full((1, 1, 40, 40), float(value))).isfinite().all()


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
def test_a_channel_of_few_bright_pixels_on_black_is_not_clipped_to_black(tmp_path, dtype):
    sparse = np.zeros((60, 60, 1), dtype)
    sparse[20:23, 30:34] = 200
    found = choose("percentile", written(tmp_path, [sparse] * 4), TRAIN, ENCODER)
    low, high = np.array(found.clip)
    assert (np.clip(200, low, high) > np.clip(0, low, high)).all()


@pytest.mark.parametrize("how", ("encoder", "dataset", "percentile", "window"))
def test_what_was_chosen_builds_a_model_that_shows_what_was_asked_for(data, how, tmp_path):
    """By hand on the pixels, then through a model without any normalisation."""
    store, _ = data
    found = choose(how, store, TRAIN, "test_resnet", [20, 90] if how == "window" else None)
    torch.manual_seed(0)
    model = UNet("test_resnet", 1, store.channels, normalization=found).eval()
    nothing = Normalization((0.0,) * store.channels, (1.0,) * store.channels)
    plain = UNet("test_resnet", 1, store.channels, normalization=nothing).eval()
    plain.load_state_dict({**model.state_dict(), "mean": plain.mean, "std": plain.std})
    pixels = store.image(1).permute(2, 0, 1)[None].float()[..., :32, :]
    pixels = torch.nn.functional.interpolate(pixels, (32, 32))
    shown = pixels.double().numpy()
    if found.clip:
        shown = np.clip(shown, *(np.array(edge)[:, None, None] for edge in found.clip))
    shown = (shown - np.array(found.mean)[:, None, None]) / np.array(found.std)[:, None, None]
    checkpoint.save_model(tmp_path / "m", model, classes=["a", "b"], size=[32, 32], resize="pad")
    with torch.no_grad():
        expected = plain(torch.from_numpy(shown).float())
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(checkpoint.load_model(tmp_path / "m")(pixels), model(pixels), rtol=0, atol=0)
