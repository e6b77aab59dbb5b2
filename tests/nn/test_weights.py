"""Pretrained weights: they arrive whole or not at all, and no file runs code."""

import http.server
import io
import logging
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from segsweep.errors import ConfigError
from segsweep.nn import weights
from segsweep.nn.encoder import Encoder

LITE = "tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights but those that the test puts there, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


@pytest.fixture
def tiny() -> dict[str, torch.Tensor]:
    """A checkpoint of timm's own test_resnet, whole, with its head."""
    torch.manual_seed(1)
    return timm.create_model("test_resnet").state_dict()


def timms_maps(name: str, tensors: dict[str, torch.Tensor], image: torch.Tensor) -> list[torch.Tensor]:
    model = timm.create_model(name, features_only=True)
    model.load_state_dict({key: tensors[key] for key in model.state_dict()})
    return model.eval()(image)


def assert_features_are_timms(encoder: Encoder, tensors: dict[str, torch.Tensor]) -> None:
    image = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(encoder.eval()(image), timms_maps(encoder.name, tensors, image), strict=True):
        assert torch.equal(ours, theirs)


def crop224(array: np.ndarray) -> torch.Tensor:
    image = Image.fromarray(array)
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    crop = np.array(image.crop((left, top, left + 224, top + 224)), np.float32)
    return (torch.from_numpy(crop).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5


def test_the_package_comes_first():
    assert weights.find(LITE, True).source == "package"
    assert weights.find(f"{LITE}.in1k", "auto").source == "package"
    assert Encoder(LITE, pretrained="auto").weights_source == "package"


@pytest.mark.parametrize("name", weights.PACKAGES)
@pytest.mark.parametrize(("photo", "classes", "top"), (("chelsea", range(281, 288), 3), ("coffee", (967,), 1)))
def test_the_packages_weights_know_a_cat_and_a_coffee(name, photo, classes, top):
    data = pytest.importorskip("skimage.data")
    try:
        array = getattr(data, photo)()
    except (OSError, ValueError) as error:
        pytest.skip(f"skimage's {photo} is not here: {error}")
    model = timm.create_model(name)
    model.load_state_dict(weights.find(name, True).tensors)
    with torch.no_grad():
        best = model.eval()(crop224(array)).topk(top).indices[0].tolist()
    assert set(best) & set(classes), best


def test_a_grey_stem_is_the_sum_over_rgb():
    colour, grey = Encoder(LITE, 3, pretrained=True).timm, Encoder(LITE, 1, pretrained=True).timm
    torch.testing.assert_close(grey.conv_stem.weight, colour.conv_stem.weight.sum(1, keepdim=True))


def test_a_grey_image_gives_the_features_of_the_same_in_rgb():
    colour, grey = Encoder(LITE, 3, pretrained=True).eval(), Encoder(LITE, 1, pretrained=True).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for one, three in zip(grey(image), colour(image.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-3)


def test_true_without_weights_is_an_error_that_names_the_remedies():
    start = time.monotonic()
    with pytest.raises(ConfigError, match=rf"encoder=resnet18 .*encoder\.weights_file=PATH.*encoder={LITE}"):
        weights.find("resnet18", pretrained=True)
    assert time.monotonic() - start < 10


def test_auto_without_weights_is_random_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert weights.find("resnet18", "auto") == weights.RANDOM
    assert "RANDOM" in caplog.text
    assert "encoder=resnet18" in caplog.text


def test_false_is_random_without_a_word(caplog):
    assert weights.find(LITE, False) == weights.RANDOM
    assert not caplog.records


def test_a_model_that_was_never_pretrained_says_so():
    with pytest.raises(ConfigError, match="timm has no pretrained weights"):
        weights.find("botnet50ts_256", True)


@pytest.mark.parametrize("suffix", (".safetensors", ".pth"))
def test_a_file_fills_everything(tmp_path, tiny, suffix):
    path = tmp_path / f"tiny{suffix}"
    save_file(tiny, path) if suffix == ".safetensors" else torch.save(tiny, path)
    encoder = Encoder("test_resnet", weights_file=str(path))
    assert encoder.weights_source == "file"
    assert_features_are_timms(encoder, tiny)


@pytest.mark.parametrize("wrapper", ("state_dict", "model", "state_dict_ema", "model_ema"))
def test_wrapped_state_dicts_are_unwrapped(tmp_path, tiny, wrapper):
    torch.save({"epoch": 3, wrapper: {f"module.{key}": t for key, t in tiny.items()}}, tmp_path / "tiny.pth")
    read = weights.read(tmp_path / "tiny.pth")
    assert read.keys() == tiny.keys()
    assert all(torch.equal(read[key], tiny[key]) for key in tiny)


@pytest.mark.parametrize("name", ("test_vit", "test_convnext", "test_mambaout", "test_maxvit"))
def test_a_file_gives_the_maps_of_the_whole_model_that_wrote_it(tmp_path, name):
    torch.manual_seed(1)
    whole = timm.create_model(name).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    encoder = Encoder(name, weights_file=str(tmp_path / "w.safetensors")).eval()
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        ours, theirs = encoder(image), whole.forward_intermediates(image, intermediates_only=True)
    for one, other in zip(ours, theirs[-len(ours) :], strict=True):
        torch.testing.assert_close(one, other)


def test_timms_cache_is_used_and_named_where_it_is_damaged(empty_caches, tiny):
    folder = empty_caches / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs").mkdir()
    cached = folder / "blobs" / "0123"  # the hub's cache has links
    save_file(tiny, cached)
    (folder / "snapshots" / "abc" / "model.safetensors").symlink_to(cached)
    encoder = Encoder("test_resnet", pretrained=True)
    assert encoder.weights_source == "cache"
    assert_features_are_timms(encoder, tiny)
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(ConfigError) as refused:
        Encoder("test_resnet", pretrained=True)
    said = str(refused.value)
    assert said.startswith(f"{cached} (timm's cache; remove it, and it is fetched again): cannot be read as ")
    assert "encoder.weights_file" not in said


def test_renamed_keys_are_refused_and_not_silently_random(tmp_path, tiny):
    save_file({f"backbone.{key}": t for key, t in tiny.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"encoder=test_resnet: the weights \(file\) fill only 0 of"):
        Encoder("test_resnet", weights_file=str(tmp_path / "w.safetensors"))


def test_one_missing_tensor_is_refused_by_name(tmp_path, tiny):
    del tiny["layer3.0.conv1.weight"]
    save_file(tiny, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"without: layer3\.0\.conv1\.weight"):
        Encoder("test_resnet", weights_file=str(tmp_path / "w.safetensors"))


def test_another_models_weights_are_refused(tmp_path, tiny):
    save_file(tiny, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"encoder=test_efficientnet: the weights \(file\)"):
        Encoder("test_efficientnet", weights_file=str(tmp_path / "w.safetensors"))


def test_a_hub_that_fails_is_a_config_error():
    with pytest.raises(ConfigError, match=r"the weights \(hub\) could not be loaded"):
        weights.create("test_resnet", weights.Weights("hub"))


class HubError(Exception):
    """As of an HTTP library: of no class that Python itself has."""


@pytest.fixture
def hub_fails(monkeypatch):
    """`hub_fails(error)`: whoever loads pretrained weights gets it."""
    whole = timm.create_model

    def fail(error):
        def create(*names, pretrained, **more):
            if pretrained:
                raise error
            return whole(*names, pretrained=False, **more)

        monkeypatch.setattr(timm, "create_model", create)

    return fail


@pytest.mark.parametrize("error", [HubError("gone"), KeyError("gone"), AttributeError("gone")], ids=repr)
def test_whatever_fails_is_an_error_or_random_weights_with_a_warning(error, hub_fails, caplog):
    hub_fails(error)
    with pytest.raises(ConfigError, match=r"encoder=test_resnet: the weights \(hub\) could not be loaded: '?gone"):
        weights.create("test_resnet", weights.Weights("hub"))
    assert not caplog.records
    model, source = weights.create("test_resnet", weights.Weights("hub", required=False))
    assert (source, len(model.feature_info)) == ("random", 5)
    assert "starts from RANDOM weights: the hub failed: " in caplog.text


def test_an_argument_that_a_model_does_not_take_is_the_callers_to_tell(hub_fails):
    hub_fails(TypeError("unexpected keyword argument"))
    with pytest.raises(TypeError):
        weights.create("test_resnet", weights.Weights("hub", required=False))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"state_dict": Bomb(tmp_path / "boom")}, tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match=r"encoder\.weights_file=.*segsweep never runs code from a file") as refusal:
        weights.read(tmp_path / "bad.pth")
    assert "weights_only" not in str(refusal.value)  # torch's advice is to run it
    assert not (tmp_path / "boom").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "boom").exists(), "the bomb is a dud"


def test_a_folder_has_a_checkpoint_for_each_model(tmp_path, tiny, capsys):
    save_file(tiny, tmp_path / "test_resnet.safetensors")
    assert_features_are_timms(Encoder("test_resnet", weights_file=str(tmp_path)), tiny)
    usual, other = timm.create_model("resnet18").state_dict(), timm.create_model("resnet18").state_dict()
    save_file(usual, tmp_path / "resnet18.safetensors")
    torch.save(other, tmp_path / "resnet18.tv_in1k.pth")

    def first_layer(name):
        return weights.find(name, True, tmp_path).tensors["conv1.weight"]

    assert torch.equal(first_layer("resnet18"), usual["conv1.weight"])
    assert torch.equal(first_layer("resnet18.a1_in1k"), usual["conv1.weight"])  # what the name alone means
    assert torch.equal(first_layer("resnet18.tv_in1k"), other["conv1.weight"])
    with pytest.raises(ConfigError, match="not installed"):
        first_layer("resnet18.a2_in1k")
    assert "the weights come from elsewhere" not in capsys.readouterr().err
    assert weights.find(LITE, True, tmp_path).source == "package"  # what the folder lacks is looked for elsewhere
    assert f"weights_file={tmp_path}: has no checkpoint of {LITE}, so the weights come" in capsys.readouterr().err


def test_what_cannot_be_had_is_told_and_never_random(tmp_path, tiny):
    save_file(tiny, tmp_path / "test_resnet.safetensors")
    save_file({"conv1.0.weight": tiny["conv1.0.weight"]}, tmp_path / "test_vit.safetensors")
    found = weights.available(["test_resnet", LITE, "resnet18", "test_vit", "botnet50ts_256"], str(tmp_path))
    assert [source for source, _ in found.values()] == ["file", "package", None, None, None]
    assert found["resnet18"][1] == "not installed, not in timm's cache, and the hub is out of reach"
    assert found["test_vit"][1].startswith("the weights (file)")
    (tmp_path / "test_resnet.safetensors").write_bytes(b"no checkpoint")
    assert weights.available(["test_resnet"], str(tmp_path))["test_resnet"][0] is None
    assert weights.available(["resnet18.none"])["resnet18.none"] == (
        None,
        "Invalid pretrained tag (none) for resnet18.",
    )
    assert found["botnet50ts_256"][1] == "timm has no pretrained weights for it"


def test_what_lies_on_the_hub_is_fetched_unless_it_is_only_asked_about(monkeypatch):
    fetched = []

    def create(name, found):
        fetched.append((name, found.required))
        if name == "resnet34":
            raise ConfigError("encoder=resnet34: the weights (hub) could not be loaded: accept its licence at the hub.")
        return None, "hub"

    monkeypatch.setattr(weights, "_reachable", lambda url: True)
    monkeypatch.setattr(weights, "create", create)
    assert weights.available(["resnet18"], fetch=False) == {"resnet18": ("hub", "")}
    assert fetched == []
    found = weights.available(["resnet18", "resnet34"])
    assert found["resnet18"] == ("hub", "")
    assert found["resnet34"] == (None, "the weights (hub) could not be loaded: accept its licence at the hub.")
    assert fetched == [("resnet18", True), ("resnet34", True)]  # random ones would not do


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"encoder\.weights_file=.*none\.pth: no such file"):
        weights.find("test_resnet", file=tmp_path / "none.pth")


@pytest.mark.parametrize("name", ("w.safetensors", "w.pth"))
@pytest.mark.parametrize(
    "content", (b"", b"<html>404</html>", b"G", b"r\x16\xb8\x87\xc9.", b"PK\x03\x04half"), ids=repr
)
def test_garbage_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"encoder\.weights_file="):
        weights.read(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path, tiny):
    whole = io.BytesIO()
    torch.save(tiny, whole)
    (tmp_path / "half.pth").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ConfigError, match=r"encoder\.weights_file="):
        weights.read(tmp_path / "half.pth")


@pytest.mark.parametrize("content", ({"epoch": 3}, [torch.zeros(2)], torch.zeros(2), {1: torch.zeros(2)}), ids=repr)
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds no tensors by name"):
        weights.read(tmp_path / "w.pth")


def test_loading_leaves_torch_as_it_was(tmp_path, tiny):
    before = torch.nn.Module.load_state_dict
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError):
        Encoder("test_resnet", weights_file=str(tmp_path / "w.safetensors"))
    assert torch.nn.Module.load_state_dict is before


@pytest.fixture
def server():
    """A web server that answers everything with an error, as a hub behind a login does."""

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_any_answer_counts_as_reachable(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert weights.find("resnet18", True).source == "hub"


def test_a_closed_port_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="out of reach"):
        weights.find("resnet18", True)


@pytest.mark.parametrize(
    ("reason", "reached"),
    [(ssl.SSLCertVerificationError(1, "unable to get local issuer certificate"), True), (OSError("no route"), False)],
)
def test_a_certificate_that_nobody_here_knows_is_an_answer(reason, reached, monkeypatch):
    """The hub's own client brings certificates along."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)

    def ask(*_, **__):
        raise urllib.error.URLError(reason)

    monkeypatch.setattr(urllib.request, "urlopen", ask)
    assert weights._reachable("https://huggingface.co") is reached
