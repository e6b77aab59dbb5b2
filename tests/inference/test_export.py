"""Export: the same answers from a file that needs no segsweep, at every size that it says it takes."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segsweep.commands import app as cli
from segsweep.config.schema import DecoderConfig
from segsweep.data.batches import EvalBatches, Pixels
from segsweep.data.geometry import Canvas
from segsweep.data.images import read_image
from segsweep.engine.execution import Execution
from segsweep.engine.scorer import own_grid
from segsweep.errors import ConfigError
from segsweep.inference import export as module
from segsweep.inference.demo import segment
from segsweep.inference.export import EQUAL, METADATA, TOLERANCE, Sizes, compare, export, levels, opened, preparation
from segsweep.inference.predict import Predictor
from segsweep.nn import UNet
from segsweep.nn.checkpoint import ModelInfo, load_model, save_model
from segsweep.runs import journal
from segsweep.training.build import load


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The trained run as ONNX, and what the command line said."""
    path = tmp_path_factory.mktemp("exported") / "deep" / "model.onnx"
    program = [
        sys.executable,
        "-m",
        "segsweep",
        "export",
        str(trained.folder),
        "--format",
        "onnx",
        "-o",
        str(path),
    ]
    return path, subprocess.run(program, capture_output=True, text=True, check=False)


def model_file(path, encoder="test_resnet", classes=("a", "b"), **more):
    """An untrained model, as a run would leave it."""
    torch.manual_seed(0)
    model = UNet(
        encoder, 1 if len(classes) == 2 else len(classes), more.pop("channels", 3), decoder=DecoderConfig(width=[8] * 5)
    )
    save_model(path, model, classes=classes, size=(64, 96), resize="pad", **more)
    return path


def test_the_command_line_tells_what_it_verified(exported, trained):
    path, ran = exported
    assert ran.returncode == 0, ran.stderr
    said = {line[:16].strip(): line[16:].strip() for line in ran.stdout.splitlines()}
    assert said["file"] == str(path)
    assert said["sizes"] == "any from 33x33; any batch"
    assert said["compared"] == "with PyTorch in fp32, as the file computes, on 4 validation images"
    assert said["equal pixels"] == "100.0000 %"
    assert said["run as scored"] == "100.0000 % equal pixels; fp32, channels last: as in training"
    assert "onnxruntime" in said["speed"]
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_an_onnx_file_says_what_it_takes_and_gives(exported):
    file = onnx.load(exported[0])
    onnx.checker.check_model(file)
    about = {item.key: item.value for item in file.metadata_props}
    assert json.loads(about["classes"]) == ["background", "foreground"]
    assert about["sizes"] == "any from 33x33"
    assert json.loads(about["normalization"])["inside"] is True
    assert (json.loads(about["size"]), about["resize"]) == ([48, 64], "pad")
    (given,), (result,) = file.graph.input, file.graph.output
    assert (given.name, result.name) == ("pixels", "logits")
    for value, channels in ((given, 3), (result, 1)):
        sides = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert sides == ["batch", channels, "height", "width"]


def test_one_preprocessing(exported, trained, tmp_path):
    """A file of the data set through training's batches, `predict`, the exported model and the demo, at one canvas."""
    data = load(journal.started(trained.folder).starts[-1].asked.data)
    index = data.parts["val"][0]
    pixels = Pixels(data.store, data.labels, torch.device("cpu"))
    (batch,) = EvalBatches(pixels, [index], Canvas((48, 64), "pad"), batch_size=1)
    with torch.no_grad():
        wanted = load_model(trained.folder / "best.safetensors")(batch.image).numpy()
    session = onnxruntime.InferenceSession(exported[0])
    (found,) = session.run(None, {"pixels": batch.image.numpy()})
    assert np.abs(found - wanted).max() < TOLERANCE
    assert np.ptp(wanted) > 1  # it says something

    path = data.samples[index].image
    predictor = Predictor(trained.folder / "best.safetensors", device="cpu", precision="fp32")
    assert predictor.canvas(read_image(path)) == batch.image.shape[2:]
    (parts,) = predictor.logits([predictor.accept(read_image(path), path)])
    predicted = torch.cat([logits for _, logits in parts], 1)
    on_grid = torch.cat([part for _, part in own_grid(batch, torch.from_numpy(found), 0)], 1)
    assert (predicted - on_grid).abs().max() < TOLERANCE
    assert np.abs(segment(predictor, path, tmp_path).logits - predicted[0].numpy()).max() < TOLERANCE


def test_a_pt2_file_needs_no_model_code_and_takes_other_sizes(tmp_path):
    path = model_file(tmp_path / "m.safetensors", classes=("sky", "road", "car"), range=(0, 4095), dtype="uint16")
    done = export(path, tmp_path / "m.pt2", "pt2")
    extra = {METADATA: ""}
    loaded = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    about = json.loads(extra[METADATA])
    assert (about["classes"], about["range"], about["dtype"]) == (["sky", "road", "car"], [0, 4095], "uint16")
    model = load_model(path)
    for batch, height, width in ((1, 33, 64), (2, 64, 64), (1, 50, 131), (5, 96, 33)):
        assert done.sizes.takes((height, width))
        pixels = torch.rand(batch, 3, height, width) * 4095
        with torch.no_grad():
            assert (loaded(pixels) - model(pixels)).abs().max() < 1e-5


@pytest.mark.census
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize(
    ("encoder", "sizes"),
    [
        ("test_resnet", "any from 33x33"),
        ("test_convnext", "any from 33x33"),
        ("test_vit", "any from 33x33"),
        ("test_efficientnet", "any from 33x33"),
        ("tf_efficientnet_lite0", "any from 33x33"),  # TensorFlow's SAME padding
        ("test_maxvit", "multiples of 32 from 64x64"),  # of fixed size
    ],
)
def test_encoders_export_at(encoder, sizes, kind, tmp_path):
    path = model_file(tmp_path / "m.safetensors", encoder)
    done = export(path, tmp_path / f"model.{kind}", kind)
    assert str(done.sizes) == sizes
    run, model = opened(done.path, kind), load_model(path)
    least, step = done.sizes.least, done.sizes.step
    for n, (down, right) in enumerate(itertools.product((0, 1, 3), (0, 2, 5)), 1):
        pixels = torch.rand(n % 3 + 1, 3, least + down * step, least + right * step) * 255
        found = compare(model, run, [pixels])
        assert found.difference < TOLERANCE, pixels.shape


def test_sizes():
    free, stepped, fixed = Sizes(1, 33), Sizes(32, 64), Sizes(fixed=(48, 64))
    assert [free.takes(s) for s in ((33, 40), (32, 40))] == [True, False]
    assert [stepped.takes(s) for s in ((64, 96), (64, 97), (32, 64))] == [True, False, False]
    assert [fixed.takes(s) for s in ((48, 64), (64, 48))] == [True, False]
    assert (free.near((20, 50)), stepped.near((65, 20)), fixed.near((1, 1))) == ((33, 50), (96, 64), (48, 64))
    model = UNet("test_resnet", 1, decoder=DecoderConfig(width=[8] * 5))
    assert list(map(str, levels(model, (48, 64)))) == ["any from 33x33", "multiples of 32 from 64x64", "48x64 only"]


def test_a_difference_is_found_and_leaves_no_file(tmp_path, monkeypatch):
    """A file whose answers are not the model's: at any level, so that none is left to try."""
    path = model_file(tmp_path / "m.safetensors")
    (tmp_path / "model.pt2").write_bytes(b"the one before")
    monkeypatch.setattr(module, "_written", lambda model, *_: lambda pixels: model(pixels) + 0.01)
    with pytest.raises(ConfigError, match=r"differ from PyTorch's by up to 0\.01 .*No file was written"):
        export(path, tmp_path / "model.pt2", "pt2")
    assert (tmp_path / "model.pt2").read_bytes() == b"the one before"
    assert len(list(tmp_path.glob("model*"))) == 1


def test_comparison_counts_pixels_and_knows_nan():
    model = UNet("test_resnet", 1, decoder=DecoderConfig(width=[8] * 5)).eval()
    pixels = [torch.rand(2, 3, 64, 64) * 255, torch.rand(1, 3, 32, 64) * 255]
    found = compare(model, lambda batch: -model(batch), pixels)
    assert (found.images, found.equal < EQUAL) == (3, True)
    assert found.difference > 0
    assert compare(model, lambda batch: model(batch) * torch.nan, pixels).difference == float("inf")
    same = compare(model, model, pixels)
    assert (same.images, same.difference, same.equal) == (3, 0.0, 1.0)
    assert np.isnan(same.rates).all()
    assert same.as_scored == 1.0
    timed = compare(model, lambda batch: time.sleep(0.2) or model(batch), pixels, rounds=2)
    assert 0 < timed.rates[1] <= 10 < timed.rates[0]  # two images in the largest batch


def test_the_classes_are_compared_with_those_of_the_trainings_precision(monkeypatch):
    """A precision that says the opposite: the file is as good as fp32, and no pixel is as it was scored."""
    model = UNet("test_resnet", 1, decoder=DecoderConfig(width=[8] * 5)).eval()
    pixels = [torch.rand(2, 3, 64, 64) * 255]

    def forward(ran, model, image):
        return model(image) if ran.precision == torch.float32 else -model(image)

    monkeypatch.setattr(Execution, "forward", forward)
    found = compare(model, model, pixels, scored=Execution(torch.bfloat16, channels_last=False))
    assert (found.difference, found.equal, found.as_scored) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["nowhere", "--format", "onnx"], "nowhere: no such run"),
        (["RUN", "--format", "onnx", "-o", "file/model.onnx"], "-o file/model.onnx: cannot be written"),
        (["RUN", "--format", "pt2", "-o", "folder.pt2"], "-o folder.pt2: cannot be written"),
        (["RUN", "--format", "onnx", "-o", "best.safetensors"], "must end in .onnx. Try -o best.onnx"),
        (["bad.safetensors", "--format", "pt2"], "not a safetensors file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(typed, said, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 64)
    typed = [str(trained.folder) if word == "RUN" else word for word in typed]
    assert cli.main(["export", *typed]) == 2
    found = capsys.readouterr().err.splitlines()[-1]
    assert said in found
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "outputs") == [
        "bad.safetensors",
        "file",
        "folder.pt2",
    ]


def test_a_run_without_a_model_and_an_unknown_format(trained, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes((trained.folder / "metrics.jsonl").read_bytes())
    assert cli.main(["export", str(tmp_path), "--format", "onnx"]) == 2
    assert "has no best.safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(trained.folder), "--format", "tflite"])
    assert stopped.value.code == 2


def test_without_the_extra_one_line_says_what_to_install(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.main(["export", str(trained.folder), "--format", "onnx"]) == 2
    assert "needs onnxscript, not installed. Type: pip install -e '.[export]'" in capsys.readouterr().err


def test_patience_ends(tmp_path, monkeypatch):
    """Whatever torch thinks about for too long is left for the next level."""
    path = model_file(tmp_path / "m.safetensors")
    original = torch.export.export

    def thinking(model, args, dynamic_shapes, **more):
        while len(dynamic_shapes[0]) > 1:
            pass
        return original(model, args, dynamic_shapes=dynamic_shapes, **more)

    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module.torch.export, "export", thinking)
    monkeypatch.setattr(module, "_within", _only_once(module._within))
    assert str(export(path, tmp_path / "m.pt2", "pt2").sizes) == "64x96 only"


def _only_once(within):
    """The last level needs longer than the test's patience."""
    seen = []

    def limited(seconds):
        seen.append(seconds)
        return within(seconds if len(seen) < 3 else 60)

    return limited


@pytest.mark.parametrize("tta", ["none", "hflip"])
def test_a_score_that_is_a_mean_over_views_is_told_with_the_file_that_computes_one(tmp_path, monkeypatch, tta):
    about = {}

    def written(model, sizes, target, kind, metadata):
        about.update(metadata)
        target.write_bytes(b"")
        return model

    monkeypatch.setattr(module, "_written", written)
    monkeypatch.setattr(module, "_trials", lambda *_: [])
    path = model_file(tmp_path / "m.safetensors", tta=tta, precision="fp32")
    done = export(path, tmp_path / "m.pt2", "pt2", rounds=0)
    told = "; scores are means over mirrored views (train.tta=hflip), and this model computes one view"
    assert (about["tta"], done.how.endswith(told), "views" in done.how) == (tta, tta == "hflip", tta == "hflip")


LOGITS = "; then resize the logits to the image's size"
CUT = "; then cut the padding off the logits, and resize them to the image's size"


@pytest.mark.parametrize(
    ("resize", "zoom", "said", "then"),
    [
        ("crop", 1.0, "as they are", "as they are"),
        ("crop", 0.5, "resized first, to 0.5 times their height and width", LOGITS),
        ("pad", 1.0, "resized to 48x64 first, with their aspect ratio, padded on both sides alike", CUT),
        ("squash", 1.0, "resized to 48x64 first, stretched", LOGITS),
    ],
)
def test_what_an_image_needs_first_and_its_logits_then_is_said(resize, zoom, said, then):
    found = preparation(ModelInfo({}, ["a", "b"], (48, 64), resize, zoom=zoom))
    assert found.startswith(said)
    assert found.endswith(then)


def test_tiles_are_said():
    tiled = preparation(ModelInfo({}, ["a", "b"], (224, 224), "crop", filled=True))
    assert "at 224x224: smaller ones padded by repeating the edge, larger ones in overlapping tiles" in tiled
