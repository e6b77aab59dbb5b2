"""The first release's folders are read by this one, and its commands still compute and decide the same.

Front doors only: `train.main`, the command's `main`, and files. `goldens/record.py` says where the numbers and folders
come from, and how two commits are compared bit for bit.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens.compare import MISSING, differences
from goldens.record import ROOT, read_mlflow, read_run, runs, sweep, unpack
from mlflow import MlflowClient
from PIL import Image

import train
from segsweep.commands.app import main as segsweep
from segsweep.tracking.run import sync

HERE = Path(__file__).parent / "goldens"
# Another processor rounds otherwise: without AVX, losses of training differ by 6e-4 at most; those of validation by
# 2e-2 where BatchNorm has seen little.
CLOSE = {"train/loss": 2e-3, "val/loss": 5e-2}
PIXELS = 2e-3  # share of pixels that another processor may class otherwise, with the same weights


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As when the goldens were recorded; what a training has set of torch is set back."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The old folders: data, plain, stopped, sweep."""
    unpack(HERE / "fixtures", tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture
def goldens(root: Path) -> dict[str, Any]:
    """The old numbers and decisions, as if they had been recorded in `root`."""
    found: dict[str, Any] = json.loads((HERE / "goldens.json").read_text(encoding="utf-8").replace(ROOT, str(root)))
    return found


def changed(before: Any, after: Any) -> list[str]:
    """What is not there any more or has another value. What is new is allowed: settings may come."""
    since_then = 'asked > loss > class_weights: null -> "fading"'  # the default
    allowed = f': "{MISSING}" -> ', since_then
    return [line for line in differences(before, after) if not any(part in line for part in allowed)]


def assert_same_training(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The same decisions and metrics, and losses that are close."""
    before = {**before, "files": [name for name in before["files"] if name != ".hydra/hydra.yaml"]}  # until then
    decisions = ("starts", "overrides", "files")
    assert not changed({name: before[name] for name in decisions}, {name: after[name] for name in decisions})
    for kind in ("epochs", "ends"):
        assert [record.keys() for record in after[kind]] == [record.keys() for record in before[kind]]
    for name, close in CLOSE.items():
        losses = [epoch[name] for epoch in before["epochs"]]
        assert [epoch[name] for epoch in after["epochs"]] == pytest.approx(losses, rel=close)


def test_two_classes_and_what_mlflow_is_told(root, goldens, database):
    shutil.rmtree(root / "plain")
    assert train.main([*runs(root)["plain"], f"hydra.run.dir={root / 'plain'}"]) == 0
    assert_same_training(goldens["runs"]["plain"], read_run(root / "plain"))
    ((name, now),) = read_mlflow(f"sqlite:///{database}")["old-data"].items()
    before = goldens["mlflow"]["old-data"][name]
    for told in (before, now):
        del told["tags"]["mlflow.note.content"]  # rounded scores
        told["tags"].pop("mlflow.runName", None)
        told["metrics"] = {metric: [step for step, _ in points] for metric, points in told["metrics"].items()}
    assert not changed(before, now)


def test_four_classes_and_what_auto_becomes(root, goldens):
    assert train.main([*runs(root)["classes"], f"hydra.run.dir={root / 'classes'}"]) == 0
    assert_same_training(goldens["runs"]["classes"], read_run(root / "classes"))


@pytest.mark.parametrize("killed", [False, True], ids=["complete", "killed"])
def test_an_old_run_goes_on(root, goldens, killed):
    (root / "stopped").rename(root / "resumed")
    journal = root / "resumed" / "metrics.jsonl"
    if killed:  # start, epoch, and no end
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    written = journal.read_bytes()
    shutil.rmtree(root / "resumed" / ".hydra")  # for people alone: not written again
    for name in ("split.csv", "summary.json", "val_matrices.npz"):
        (root / "resumed" / name).unlink()
    assert train.main([f"resume={root / 'resumed'}", "train.epochs=3"]) == 0
    assert journal.read_bytes().startswith(written)
    before, after = goldens["runs"]["resumed"], read_run(root / "resumed")
    if killed:
        del before["ends"][0]
    before["files"] = [name for name in before["files"] if not name.startswith(".hydra/")]
    before["starts"][0]["command"] = after["starts"][0]["command"]
    before["overrides"] = after["overrides"]  # a run goes on from its journal alone
    assert_same_training(before, after)


def test_an_old_model_predicts(root, goldens, tmp_path):
    images = root / "data" / "images" / "test"
    assert segsweep(["predict", str(root / "plain"), str(images), "-o", str(tmp_path / "masks"), "--device=cpu"]) == 0
    right = []
    for path in sorted((tmp_path / "masks").rglob("*.png")):
        truth = np.asarray(Image.open(root / "data" / "masks" / "test" / path.name)) > 0
        right.append((np.asarray(Image.open(path)) > 0) == truth)
    assert len(right) == 4
    assert np.mean(right) == pytest.approx(goldens["runs"]["plain"]["ends"][-1]["test/accuracy"], abs=PIXELS)


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_old_model_is_scored_as_it_was(root, goldens, split):
    assert segsweep(["evaluate", str(root / "plain"), "--split", split, "--device=cpu"]) == 0
    (path,) = (root / "plain" / "evaluations").glob("*/metrics.json")
    end = goldens["runs"]["plain"]["ends"][-1]
    for name, score in json.loads(path.read_text()).items():
        if f"{split}/{name}" in end and "loss" not in name:
            assert score == pytest.approx(end[f"{split}/{name}"], abs=5 * PIXELS), name


def test_an_old_run_is_sent(root, goldens, database):
    run = MlflowClient(tracking_uri=f"sqlite:///{database}").get_run(sync(root / "plain"))
    before = goldens["mlflow"]["old-data"][run.info.run_name]
    assert run.data.metrics["best/val_iou"] == before["metrics"]["best/val_iou"][-1][1]
    assert run.data.params["optim.lr"] == before["params"]["optim.lr"]


def test_old_runs_are_compared(root, capsys):
    assert segsweep(["compare", str(root / "plain"), str(root / "stopped")]) == 0
    text = capsys.readouterr().out
    assert "optim.freeze_epochs 0 1" in " ".join(text.split())
    assert "images: 0 better, 6 worse of 6" in text


def test_an_old_sweep_is_tabled_and_reported(root, goldens, capsys):
    assert segsweep(["compare", "--sweep", str(root / "sweep"), "--format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = {Path(row["run"]).relative_to(root / "sweep").as_posix(): float(row["val/iou"]) for row in rows}
    assert found == {name: trial["score"] for name, trial in goldens["sweep"]["trials"].items()}
    assert segsweep(["report", str(root / "sweep")]) == 0
    assert (root / "sweep" / "report.html").stat().st_size > 10_000


def test_the_winner_of_an_old_sweep_is_found(root, goldens, tmp_path, capsys):
    images = root / "data" / "images" / "test"
    assert segsweep(["predict", str(root / "sweep"), str(images), "-o", str(tmp_path / "masks"), "--device=cpu"]) == 0
    (winner,) = goldens["sweep"]["winner"]
    assert f"the sweep's winner: {' '.join(goldens['sweep']['trials'][winner]['typed'])}" in capsys.readouterr().err


def shown(text: str) -> list[str]:
    """The scores and settings of a text, in order: its sentences have got other words since then.

    Without intervals, which are drawn from other random numbers, and what the sweep decides for all trials since then.
    """
    text = re.sub(r"[+-]\d\.\d+ to [+-]\d\.\d+| loss\.class_weights=null|\ndoubtful .*", "", text)
    return re.findall(r"[+-]?\d+\.\d+|[a-z_.]+=\S+", text)


def test_an_old_sweep_finds_everything_finished(root, goldens, database, capsys):
    """The command as it was typed trains nothing, ranks the same, and tells MLflow the same."""
    journals = {path: path.read_bytes() for path in (root / "sweep").rglob("metrics.jsonl")}
    assert train.main([*sweep(root), f"hydra.sweep.dir={root / 'sweep'}"]) == 0
    assert {path: path.read_bytes() for path in (root / "sweep").rglob("metrics.jsonl")} == journals
    ranking = capsys.readouterr().out.partition("finalists:")[2].partition("\nreport ")[0]
    assert shown(ranking) == shown("\n".join(goldens["sweep"]["ranking"]))
    now, before = read_mlflow(f"sqlite:///{database}")["old-data"], goldens["mlflow"]["old-data"]
    assert now.keys() == {name for name, told in before.items() if told["parent"] or name == "sweep"}
    for name, told in now.items():
        del before[name]["artifacts"]  # pictures and models were not kept
        before[name]["metrics"] = {n: v for n, v in before[name]["metrics"].items() if not n.startswith("model/")}
        before[name]["tags"].pop("mlflow.loggedImages", None)
        notes = [shown(run["tags"].pop("mlflow.note.content")) for run in (before[name], told)]
        assert set(notes[0]) <= set(notes[1])
        assert not changed(before[name], told)


def test_compare_tells_what_matters():
    before = {"epochs": [{"train/loss": 0.5, "val/iou": 0.5}], "classes": ["sky"]}
    after = {"epochs": [{"train/loss": 0.5, "val/iou": 0.5 + 1e-13}], "classes": ["sky"]}
    assert not list(differences(before, after))
    after["epochs"][0]["train/loss"] += 1e-13
    assert list(differences(before, after | {"new": 1})) == [
        "epochs[0] > train/loss: 0.5 -> 0.5000000000001",
        'new: "(not there)" -> 1',
    ]
    assert list(differences(before, before | {"classes": ["sky", "sea"]})) == ['classes: ["sky"] -> ["sky", "sea"]']
