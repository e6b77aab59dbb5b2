"""What an earlier segsweep wrote is read by this one. `formats/` is never regenerated, only added to."""

import gzip
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from segsweep.nn.checkpoint import describe, load_model
from segsweep.runs import journal
from segsweep.tracking.client import tracking_uri
from segsweep.tracking.run import sync

FORMATS = Path(__file__).parent / "formats"


@pytest.mark.parametrize("name", sorted(path.name for path in FORMATS.glob("model-*.gz")))
def test_old_models_load(name, tmp_path):
    path = tmp_path / "best.safetensors"
    path.write_bytes(gzip.decompress((FORMATS / name).read_bytes()))
    about = describe(path)
    assert about.classes == ["sky", "road", "car"]
    assert about.zoom == 1  # which came later
    model = load_model(path)
    logits = model(torch.zeros(1, 1, 40, 50))
    assert torch.equal(logits, torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 40, 50))
    assert (model.mean.item(), model.std.item()) == (10, 20)
    assert model.arguments["normalization"]["clip"] is None  # which came later


def test_keys_that_were_renamed_keep_their_values(tmp_path):
    shutil.copy(FORMATS / "journal-v2.jsonl", tmp_path / journal.NAME)
    start = journal.started(tmp_path).start
    for found in (start.asked, start.settings):
        assert (found.data.passes, found.train.grad_accum, found.train.grad_clip) == (3, 2, 0.5)


@pytest.mark.parametrize("name", sorted(path.name for path in FORMATS.glob("journal-*.jsonl")))
def test_old_journals_are_read_and_sent(name, tmp_path, database):
    shutil.copy(FORMATS / name, tmp_path / journal.NAME)
    read = journal.read(tmp_path)
    assert read.start and read.end
    assert read.start.settings.data.zoom == 1  # which came later; auto would be decided anew
    assert read.records == [read.start, *read.epochs, read.end]
    assert [epoch.epoch for epoch in read.epochs] == [1, 2]
    run = MlflowClient(tracking_uri=tracking_uri()).get_run(sync(tmp_path))
    assert run.data.metrics["best/val_iou"] == read.end.metrics["val/iou"]
    assert (run.data.params["optim.lr"], run.data.params["precision_used"]) == ("0.001", "fp32")
