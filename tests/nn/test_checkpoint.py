"""Models and training states on disk: bit-equal, whole, and never a pickle that runs."""

import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from segsweep.config.schema import DecoderConfig
from segsweep.config.settings import Normalization
from segsweep.errors import ConfigError
from segsweep.nn import UNet, checkpoint

CPU = torch.device("cpu")


def save(path: Path, model: UNet, **more: object) -> None:
    checkpoint.save_model(path, model, classes=["background", "cell"], size=[64, 96], resize="pad", **more)


def tiny(clip: tuple[tuple[float], tuple[float]] | None = None) -> UNet:
    torch.manual_seed(0)
    normalization = Normalization((7.0,), (3.0,), clip)
    return UNet("test_resnet", 2, 1, decoder=DecoderConfig(norm="group"), normalization=normalization).eval()


@pytest.fixture
def model() -> UNet:
    return tiny()


@pytest.mark.parametrize("name", ("test_resnet", "test_convnext", "test_vit", "test_maxvit"))
def test_a_loaded_model_gives_bit_equal_logits(tmp_path, name):
    torch.manual_seed(0)
    model = UNet(name, 3)
    pixels = torch.rand(2, 3, 40, 56) * 255
    model(pixels)
    save(tmp_path / "best.safetensors", model.eval())
    loaded = checkpoint.load_model(tmp_path / "best.safetensors")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(pixels), model(pixels))


def test_a_loaded_model_has_its_own_statistics(tmp_path, model):
    save(tmp_path / "best.safetensors", model)
    loaded = checkpoint.load_model(tmp_path / "best.safetensors")
    assert (loaded.mean.item(), loaded.std.item()) == (7.0, 3.0)
    assert loaded.architecture == model.architecture


def test_a_loaded_model_has_its_own_window(tmp_path):
    model = tiny(clip=((1.5,), (9.25,)))
    save(tmp_path / "best.safetensors", model)
    loaded = checkpoint.load_model(tmp_path / "best.safetensors")
    assert (loaded.low.item(), loaded.high.item()) == (1.5, 9.25)
    assert checkpoint.describe(tmp_path / "best.safetensors").model == loaded.architecture == model.architecture


def test_a_loaded_model_clips_as_the_one_that_was_saved(tmp_path):
    model = tiny(clip=((1.5,), (9.25,)))
    save(tmp_path / "best.safetensors", model)
    loaded = checkpoint.load_model(tmp_path / "best.safetensors")
    inside = 1.5 + 7.75 * torch.rand(1, 1, 40, 56)
    edge, beyond = inside.clone(), inside.clone()
    edge[..., :20], beyond[..., :20] = 1.5, -300.0
    edge[..., 20:40], beyond[..., 20:40] = 9.25, 65535.0
    with torch.no_grad():
        assert torch.equal(loaded(beyond), loaded(edge))
        assert torch.equal(loaded(beyond), model(beyond))
        assert not torch.equal(loaded(edge), loaded(inside))


def test_a_model_without_a_window_does_not_clip(tmp_path, model):
    save(tmp_path / "best.safetensors", model)
    loaded = checkpoint.load_model(tmp_path / "best.safetensors")
    pixels = torch.rand(1, 1, 40, 56) * 255
    with torch.no_grad():
        assert not torch.equal(loaded(pixels * 100), loaded(pixels))


def test_a_model_in_channels_last_is_saved_as_any_other(tmp_path, model):
    save(tmp_path / "a.safetensors", model)
    save(tmp_path / "b.safetensors", model.to(memory_format=torch.channels_last))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_describe_tells_what_was_kept(tmp_path, model):
    save(tmp_path / "best.safetensors", model, epoch=3, val_iou=0.5, range=(0, 4095), dtype="uint16")
    info = checkpoint.describe(tmp_path / "best.safetensors")
    assert info.classes == ["background", "cell"]
    assert (info.size, info.resize) == ((64, 96), "pad")
    assert (info.weights_source, info.encoder) == ("random", "test_resnet")
    assert (info.epoch, info.val_iou) == (3, 0.5)
    assert (info.range, info.dtype) == ((0, 4095), "uint16")
    assert info.model == model.architecture


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "Expecting"),
        ("[]", "must be an object"),
        ({"classes": "cell"}, "segsweep.classes: must be a list"),
        ({"size": [64]}, "segsweep.size"),
        ({"resize": "zoom"}, "must be one of pad, squash, crop"),
        ({"model": None}, "segsweep.model: must be an object"),
        ({"model": {"name": "test_resnet"}}, "segsweep.model: lacks num_classes"),
        ({"model": {"name": "test_resnet", "in_channels": "three"}}, ""),
        ({"model": {"name": "test_resnet.x:/y", "num_classes": 1}}, "test_resnet has no pretrained tag 'x:/y'"),
    ],
)
def test_metadata_that_do_not_hold_what_they_should_are_one_line(tmp_path, model, change, said):
    path = tmp_path / "best.safetensors"
    save(path, model)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["segsweep"])
    if "num_classes" in str(change):
        change["model"] = about["model"] | change["model"]
    text = change if isinstance(change, str) else json.dumps(about | change)
    save_file(model.state_dict(), path, metadata={"segsweep": text})
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: cannot be read as a model: .*{said}") as refusal:
        checkpoint.load_model(path)
    assert "\n" not in str(refusal.value)


def test_a_file_makes_nobody_look_for_weights_elsewhere(tmp_path, model):
    path = tmp_path / "best.safetensors"
    save(path, model)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["segsweep"])
    about["model"] |= {"pretrained": True, "weights_file": "/dev/zero"}
    save_file(model.state_dict(), path, metadata={"segsweep": json.dumps(about)})
    assert checkpoint.load_model(path).weights_source == "random"


def test_weights_of_another_architecture_are_one_line(tmp_path, model):
    path = tmp_path / "best.safetensors"
    save(path, model)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ConfigError, match="the weights are not those of its architecture"):
        checkpoint.load_model(path)


def test_load_weights_fills_an_existing_model(tmp_path, model):
    save(tmp_path / "best.safetensors", model)
    other = UNet(**vars(model.architecture))
    checkpoint.load_weights(tmp_path / "best.safetensors", other)
    assert all(torch.equal(t, other.state_dict()[key]) for key, t in model.state_dict().items())


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="not a segsweep model"):
        checkpoint.load_model(tmp_path / "other.safetensors")


def test_a_later_format_is_refused(tmp_path):
    about = json.dumps({"version": checkpoint.VERSION + 1})
    save_file({"a": torch.zeros(2)}, tmp_path / "later.safetensors", metadata={"segsweep": about})
    with pytest.raises(ConfigError, match=f"has format {checkpoint.VERSION + 1}, .*Update segsweep"):
        checkpoint.load_model(tmp_path / "later.safetensors")


@pytest.mark.parametrize("content", (b"", b"hello", b"\x80\x02}q\x00.", b"\xff" * 64), ids=repr)
def test_garbage_is_not_a_model(tmp_path, content):
    (tmp_path / "best.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="not a safetensors file"):
        checkpoint.load_model(tmp_path / "best.safetensors")


def test_a_truncated_model_is_refused(tmp_path, model):
    path = tmp_path / "best.safetensors"
    save(path, model)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match="not a safetensors file"):
        checkpoint.load_model(path)


@pytest.mark.parametrize("what", ("none.safetensors", "."))
def test_a_missing_file_or_a_folder_is_refused(tmp_path, what):
    with pytest.raises(ConfigError, match=r"no such file.*best\.safetensors"):
        checkpoint.load_model(tmp_path / what)


def test_a_state_comes_back_as_it_went(tmp_path):
    state = {"epoch": 3, "best": 0.5, "tensors": [torch.arange(5), {"a": torch.randn(2)}], "name": "x", "none": None}
    checkpoint.save_state(tmp_path / "last.pt", state)
    loaded = checkpoint.load_state(tmp_path / "last.pt", CPU)
    assert loaded["version"] == checkpoint.VERSION
    assert (loaded["epoch"], loaded["best"], loaded["name"], loaded["none"]) == (3, 0.5, "x", None)
    assert torch.equal(loaded["tensors"][0], state["tensors"][0])
    assert torch.equal(loaded["tensors"][1]["a"], state["tensors"][1]["a"])


def test_an_optimizers_state_comes_back(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.square().sum().backward()
    optimizer.step()
    checkpoint.save_state(tmp_path / "last.pt", {"optimizer": optimizer.state_dict()})
    loaded = checkpoint.load_state(tmp_path / "last.pt", CPU)["optimizer"]
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(loaded["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_state_with_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"version": 1, "epoch": Bomb(tmp_path / "boom")}, tmp_path / "last.pt")
    with pytest.raises(ConfigError, match=r"not a checkpoint that can be read: .*never runs code") as refusal:
        checkpoint.load_state(tmp_path / "last.pt", CPU)
    assert "weights_only" not in str(refusal.value)  # torch's advice is to run it
    assert not (tmp_path / "boom").exists()


def test_a_later_state_is_refused(tmp_path):
    torch.save({"version": checkpoint.VERSION + 1}, tmp_path / "last.pt")
    with pytest.raises(ConfigError, match="Update segsweep"):
        checkpoint.load_state(tmp_path / "last.pt", CPU)


@pytest.mark.parametrize("content", (b"", b"hello", b"G", b"h:", b"r\x16\xb8\x87\xc9.", b"PK\x03\x04half"), ids=repr)
def test_garbage_is_not_a_state(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(ConfigError, match="not a checkpoint that can be read"):
        checkpoint.load_state(tmp_path / "last.pt", CPU)


@pytest.mark.parametrize("keep", (0.3, 0.9, 0.99))
def test_a_truncated_state_is_refused(tmp_path, keep):
    whole = io.BytesIO()
    torch.save({"version": 1, "tensor": torch.randn(1000)}, whole)
    (tmp_path / "last.pt").write_bytes(whole.getvalue()[: int(keep * len(whole.getvalue()))])
    with pytest.raises(ConfigError, match="not a checkpoint that can be read"):
        checkpoint.load_state(tmp_path / "last.pt", CPU)


@pytest.mark.parametrize("content", ({"epoch": 3}, [1], torch.zeros(2)), ids=repr)
def test_a_file_of_others_is_not_a_state(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ConfigError, match=r"last\.pt"):
        checkpoint.load_state(tmp_path / "last.pt", CPU)


def test_a_missing_state_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.pt"):
        checkpoint.load_state(tmp_path / "none.pt", CPU)


def test_a_path_may_be_a_string(tmp_path):
    model = UNet("test_resnet")
    checkpoint.save_model(tmp_path / "best.safetensors", model, classes=["a", "b"], size=[32, 32], resize="pad")
    assert checkpoint.load_model(str(tmp_path / "best.safetensors")).num_classes == 1
