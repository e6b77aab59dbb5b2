"""The registry: what is registered runs without segsweep, at other sizes than it was traced at."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from segsweep.commands import app as cli
from segsweep.inference.evaluate import EvaluationRecord
from segsweep.inference.export import Sizes
from segsweep.inference.register import model_card
from segsweep.nn.checkpoint import describe, load_model
from segsweep.runs import journal
from segsweep.tracking import registry
from segsweep.tracking.client import connected, tracking_uri
from segsweep.tracking.run import run_id, sync

# In a process in which segsweep cannot be imported, nor anything be unpickled.
USER = """
import os, sys
sys.modules["segsweep"] = None
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
import mlflow, numpy as np, torch
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model("models:/nuclei@champion")
given = np.load(sys.argv[2])
with torch.no_grad():
    np.savez(sys.argv[3], **{name: model(torch.from_numpy(given[name])).numpy() for name in given})
assert not [name for name in sys.modules if name.startswith(("segsweep.", "timm", "hydra"))]
"""


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    return tmp_path / "run"


def test_the_champion_runs_where_there_is_no_segsweep(run, database, tmp_path, capsys):
    uri = tracking_uri()
    folder = run / "evaluations" / "val"
    folder.mkdir(parents=True)
    scored = {
        "split": "val",
        "images": 4,
        "data_digest": "0123",
        "own": True,
        "epoch": describe(run / "best.safetensors").epoch,
        "metrics": {"iou": 0.75},
        "intervals": {"iou": [0.5, 0.875]},
    }
    (folder / "metrics.json").write_text(json.dumps(scored))
    assert cli.main(["register", str(run), "nuclei"]) == 0
    said = capsys.readouterr().out
    assert "nuclei, version 1, champion" in said
    assert "4 validation images" in said
    lines = [line[16:].strip() for line in said[said.index("load ") :].splitlines()]
    assert lines[0] == "import mlflow"
    assert lines[1] == f'mlflow.set_tracking_uri("{uri}")'  # elsewhere MLflow would look in the working folder
    assert lines[2] == 'mlflow.pytorch.load_model("models:/nuclei@champion")'
    assert "resized to 48x64 first, with their aspect ratio" in said

    client = connected(uri)
    version = client.get_model_version_by_alias("nuclei", "champion")
    assert version.run_id == run_id(run)  # it had not been sent before
    assert client.get_run(version.run_id).data.metrics["best/val_iou"] > 0
    for part in (
        "| val | IoU | 0.7500 | 0.5000 to 0.8750 |",
        "python train.py encoder=test_resnet",
        "It contains no weights from others",
        "models:/nuclei@",
    ):
        assert part in version.description

    rng = np.random.default_rng(0)
    pixels = {f"{h}x{w}": rng.uniform(0, 255, (b, 3, h, w)).astype("float32") for b, h, w in ((1, 64, 64), (3, 33, 90))}
    np.savez(tmp_path / "in.npz", **pixels)
    typed = [sys.executable, "-c", USER, uri, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    ran = subprocess.run(typed, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr
    model = load_model(run / "best.safetensors")
    with np.load(tmp_path / "out.npz") as found, torch.no_grad():
        for size, given in pixels.items():
            assert np.abs(found[size] - model(torch.from_numpy(given)).numpy()).max() < 1e-4


@pytest.mark.parametrize("tta", ["none", "flips"])
def test_the_card_says_that_scores_are_means_over_views_where_they_are(run, tta):
    info = replace(describe(run / "best.safetensors"), tta=tta)
    card = model_card("nuclei", run, info, journal.read(run), Sizes(1, 33))
    told = "\n\nThe scores are means over mirrored views (train.tta=flips), and this model computes one view.\n\n"
    assert (told in card, "views" in card) == (tta == "flips",) * 2
    assert "\n\n\n" not in card


@pytest.mark.parametrize(
    ("other", "shown"),
    [({}, True), ({"split": "val"}, False), ({"tta": "hflip"}, False), ({"own": False}, False), ({"epoch": 99}, False)],
)
def test_the_card_has_scores_of_its_own_test_split_whatever_an_evaluation_is_called(run, other, shown):
    info = describe(run / "best.safetensors")
    scored = EvaluationRecord("test", info.epoch, "0123", 4, {"iou": 0.75}, {"iou": (0.5, 0.875)}, own=True, tta="none")
    folder = run / "evaluations" / "test"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(asdict(replace(scored, **other))))
    card = model_card("nuclei", run, info, journal.read(run), Sizes(1, 33))
    assert ("| test | IoU | 0.7500 | 0.5000 to 0.8750 |" in card) is shown
    assert shown or "0.7500" not in card


def test_a_second_one_takes_the_title_and_the_run_is_sent_once(run, database, monkeypatch, tmp_path):
    uri = tracking_uri()
    sent = sync(run, uri)
    program = tmp_path / "model.pt2"
    program.write_bytes(b"a program")
    for number, before in (("1", ""), ("2", "1")):
        done = registry.register(run, uri, "nuclei", program, (3, 1), "2.15.0", "a card", {})
        assert (done.version, done.before, done.run) == (number, before, sent)
    assert connected(uri).get_model_version_by_alias("nuclei", "champion").version == 2


def test_what_cannot_be_registered_is_refused(run, database, tmp_path, monkeypatch, capsys):
    shutil.copy(run / "best.safetensors", tmp_path / "model.safetensors")
    assert cli.main(["register", str(tmp_path / "model.safetensors"), "nuclei"]) == 2
    assert "is not in a run folder" in capsys.readouterr().err
    monkeypatch.setattr("segsweep.inference.register.export", lambda *_: pytest.fail("it takes minutes"))
    assert cli.main(["register", str(run), "a/b"]) == 2
    assert "a/b: not a name for a registered model" in capsys.readouterr().err
    assert not connected(tracking_uri()).search_registered_models()
