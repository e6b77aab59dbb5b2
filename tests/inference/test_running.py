"""How a trained model is run: as in training where the device can; else what it can, and why is said."""

import pytest
import torch
from PIL import Image
from test_predict import model_file

from segsweep.commands import app as cli
from segsweep.engine import device as devices
from segsweep.inference.predict import Predictor
from segsweep.inference.running import execution
from segsweep.nn.checkpoint import describe

CPU = torch.device("cpu")


@pytest.fixture
def info(tmp_path):
    def make(**more):
        return describe(model_file(tmp_path / "m.safetensors", **more))

    return make


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("own", ["fp32", "bf16", "fp16"])
def test_precision_and_layout_are_the_trainings_own(info, monkeypatch, own, channels_last):
    monkeypatch.setattr(devices, "_survives", lambda kind: True)
    ran, how = execution(info(precision=own, channels_last=channels_last), CPU)
    assert (ran.precision, ran.channels_last) == (devices.PRECISIONS[own], channels_last)
    assert how == f"{own}, channels {'last' if channels_last else 'first'}: as in training"


def test_where_the_processor_dies_of_it_fp32_is_taken_and_told(info, monkeypatch):
    monkeypatch.setattr(devices, "_survives", lambda kind: False)
    ran, how = execution(info(precision="bf16", channels_last=True), CPU)
    assert ran.precision == torch.float32
    assert how.startswith("fp32, channels last: this processor crashes with bf16, the precision of its training")


def test_what_is_asked_for_is_taken_and_a_difference_told(info, monkeypatch):
    monkeypatch.setattr(devices, "_survives", lambda kind: True)
    trained = info(precision="fp32", channels_last=False)
    ran, how = execution(trained, CPU, "bf16")
    assert (ran.precision, ran.channels_last) == (torch.bfloat16, False)
    assert how.startswith("bf16, channels first: as --precision bf16 says; the model was trained and scored in fp32")
    assert execution(trained, CPU, "fp32")[1] == "fp32, channels first: as --precision fp32 says"


def test_advice_for_a_device_or_a_precision_that_is_not_there_can_be_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "_survives", lambda kind: False)
    model = str(model_file(tmp_path / "m.safetensors"))
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    typed = ["predict", model, str(tmp_path / "1.png"), "-o", str(tmp_path / "out")]
    for wrong, advice in ((["--precision", "bf16"], "--precision fp32"), (["--device", "cuda:7"], "--device auto")):
        assert cli.main([*typed, *wrong]) == 2
        assert f"Try {advice}." in capsys.readouterr().err


def test_a_model_that_comes_from_no_run_is_run_in_the_fastest_way(tmp_path):
    ran, how = execution(describe(model_file(tmp_path / "m.safetensors")), CPU)
    assert ran.precision == devices.precision("auto", CPU)
    assert "the model's file does not record the precision of its training" in how


def test_views_and_tiles_are_the_trainings_own_too(tmp_path):
    path = model_file(tmp_path / "m.safetensors", precision="fp32", channels_last=True, tta="hflip", tile=(64, 96))
    own, other = Predictor(path, device="cpu"), Predictor(path, device="cpu", tta="none", tile=128)
    assert (own._scorer.tta, own._tile) == ("hflip", (64, 96))
    assert own.how.endswith("; mirrored views: hflip, as in training")
    assert (other._scorer.tta, other._tile) == ("none", (128, 128))
    assert other.how.endswith("; mirrored views: none, training scored with hflip")
