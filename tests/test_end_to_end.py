"""As a user runs it: `python train.py` in its own process, killed and resumed, read back through MLflow's client."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from conftest import TINY
from mlflow import MlflowClient
from safetensors.torch import load_file

import train
from segsweep.nn.checkpoint import load_model
from segsweep.runs import journal
from segsweep.tracking.client import tracking_uri

ROOT = Path(train.__file__).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*typed):
    return [sys.executable, str(ROOT / "train.py"), *typed]


def test_the_default_run_with_its_pretrained_encoder_reaches_mlflow(outputs, database, tmp_path):
    """The default encoder, loss and augmentation on fewer and smaller images; from another working folder."""
    typed = command("data.count=60", "data.size=[64,64]", "train.epochs=3", "train.batch_size=12", "train.device=cpu")
    env = {**ENV, "SEGSWEEP_OUTPUTS": str(outputs)}
    done = subprocess.run(typed, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "weights: package" in done.stdout
    assert "compare           segsweep ui   then http://127.0.0.1:5000/#/experiments/1/runs?" in done.stdout
    (folder,) = (path.parent for path in outputs.rglob(journal.NAME))
    recorded = journal.read(folder)
    losses = [epoch.metrics["train/loss"] for epoch in recorded.epochs]
    assert losses[-1] < losses[0]

    client = MlflowClient(tracking_uri=tracking_uri())
    experiment = client.get_experiment_by_name("shapes")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["encoder.name"] == "tf_efficientnet_lite0"
    assert run.data.params["weights_source"] == "package"
    history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val/iou")}
    assert history == {epoch.epoch: epoch.iou for epoch in recorded.epochs}
    assert run.data.metrics["best/val_iou"] == max(history.values())
    assert "test/iou" in run.data.metrics
    assert run.inputs.dataset_inputs[0].dataset.digest == recorded.start.data_digest
    assert "segsweep train data.count=60" in run.data.tags["mlflow.note.content"]
    attached = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"summary.json", "split.csv", "hydra", "images"} <= attached


def test_resume_after_kill_9_is_bit_equal(pairs, outputs, tmp_path):
    root = pairs(20)
    typed = [
        *TINY,
        "data=folder",
        f"data.root={root}",
        "data.size=[32,32]",
        "train.epochs=12",
        "train.batch_size=4",
        "augmentation=strong",
        "decoder.dropout=0.3",
        "tracking=none",
    ]
    env = {**ENV, "SEGSWEEP_OUTPUTS": str(outputs)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(*typed, f"hydra.run.dir={whole}"), env=env, check=True, capture_output=True, timeout=300)

    child = subprocess.Popen(command(*typed, f"hydra.run.dir={cut}"), env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(journal.read(cut).epochs) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = len(journal.read(cut).epochs)
    assert 2 <= before < 12, "the run was over before it could be killed"
    with (cut / journal.NAME).open("ab") as file:
        file.write(b'{"kind": "epo')  # as a kill in the middle of a write leaves it

    subprocess.run(command(f"resume={cut}"), env=env, check=True, capture_output=True, timeout=300)
    assert [epoch.epoch for epoch in journal.read(cut).epochs] == list(range(1, 13))
    assert same_scores(whole, cut)
    states = [torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (whole, cut)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    best = [load_file(folder / "best.safetensors") for folder in (whole, cut)]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])
    assert load_model(cut / "best.safetensors")(torch.zeros(1, 3, 40, 40)).shape == (1, 1, 40, 40)


def test_a_run_killed_before_its_first_checkpoint_starts_over(pairs, tmp_path, outputs):
    typed = [*TINY, "data=folder", f"data.root={pairs(12)}", "data.size=[32,32]", "train.batch_size=4", "tracking=none"]
    typed += ["train.epochs=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main([*typed, f"hydra.run.dir={whole}"]) == 0
    assert train.main([*typed, f"hydra.run.dir={cut}"]) == 0
    # What a kill during the first epoch leaves: the start record alone.
    lines = (cut / journal.NAME).read_bytes().splitlines(keepends=True)
    (cut / journal.NAME).write_bytes(lines[0])
    (cut / "last.pt").unlink()
    (cut / "best.safetensors").unlink()
    assert train.main([f"resume={cut}"]) == 0
    assert same_scores(whole, cut)


def test_a_run_killed_between_checkpoint_and_record_gets_its_record_back(pairs, tmp_path, outputs):
    typed = [*TINY, "data=folder", f"data.root={pairs(12)}", "data.size=[32,32]", "train.batch_size=4", "tracking=none"]
    cut = tmp_path / "cut"
    assert train.main([*typed, "train.epochs=2", f"hydra.run.dir={cut}"]) == 0
    lines = (cut / journal.NAME).read_bytes().splitlines(keepends=True)
    (cut / journal.NAME).write_bytes(b"".join(lines[:2]))  # start, epoch 1; last.pt is of epoch 2
    assert train.main([f"resume={cut}", "train.epochs=3"]) == 0
    assert [epoch.epoch for epoch in journal.read(cut).epochs] == [1, 2, 3]


def same_scores(one, other):
    """Whether two journals hold the same training; times, speed and memory apart."""

    def rows(folder):
        return [
            (epoch.epoch, {name: value for name, value in epoch.metrics.items() if not name.startswith("perf/")})
            for epoch in journal.read(folder).epochs
        ]

    return rows(one) == rows(other)
