"""A training killed between any two of its writes goes on to the same end as one that never was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_pairs
from PIL import Image

import train
from segsweep.nn.checkpoint import describe
from segsweep.runs import journal
from segsweep.runs.journal import Journal
from segsweep.training import build

EPOCHS = 2
FOR_PEOPLE = (".hydra", "plan.json", "code.diff")  # written before the first record, so that there is nothing to resume
TYPED = (
    *TINY,
    "data=folder",
    "data.size=[32,32]",
    "data.zoom=1",
    "train.batch_size=4",
    "tracking=none",
    "augmentation=light",
)
RUN = (*TYPED, f"train.epochs={EPOCHS}", "optim.lr=2e-2", "train.ema=0.5", "train.seed=1")


def watched(folder, kept, typed):
    """Train, and keep the folder as it is before each write: what a kill at that moment leaves.

    Returns:
        the names of the writes, in order; before each the folder `kept/NUMBER` was as it is there.
    """
    writes = []

    def keep(name):
        if folder.exists():
            shutil.copytree(folder, kept / f"{len(writes)}")
            writes.append(name)

    def before(kind, name, named):
        original = getattr(kind, name)

        def write(self, *args, **more):
            target = named(self, *args)
            if target is not None:
                keep(target)
            return original(self, *args, **more)

        patch.setattr(kind, name, write)

    def inside(path):
        first = Path(path).relative_to(folder).parts[0] if Path(path).is_relative_to(folder) else None
        return None if first in FOR_PEOPLE else first

    with pytest.MonkeyPatch.context() as patch:
        before(Path, "replace", lambda _, target: inside(target))
        before(Journal, "write", lambda _, record: type(record).__name__)
        assert train.main(typed) == 0
    return writes


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was never killed, what it wrote, and the folder as it was before each write."""
    place = tmp_path_factory.mktemp("kills")
    root, whole, kept = write_pairs(place)(12, ("train", "val", "test")), place / "whole", place / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_OUTPUTS", str(place / "outputs"))
        patch.setattr(build, "SHOWN", 2)
        writes = watched(whole, kept, [*RUN, f"data.root={root}", f"hydra.run.dir={whole}"])
    return whole, kept, writes


BEST = ["last.pt", "best.safetensors", "predictions", "predictions", "val_matrices.npz", "EpochRecord"]
ORDER = ["Start", "figures", *BEST * EPOCHS, "figures", "figures", "End", "summary.json"]


def test_every_write_is_known(killed):
    """Both epochs are the best so far, and the order is what `Recorder` promises."""
    assert killed[2] == ORDER


@pytest.mark.parametrize("number", range(1, len(ORDER)), ids=lambda n: f"{n}-{ORDER[n]}")
def test_a_killed_run_goes_on_to_the_same_end(number, killed, tmp_path, monkeypatch, capsys):
    whole, kept, _ = killed
    cut = shutil.copytree(kept / str(number), tmp_path / "cut")
    monkeypatch.setattr(build, "SHOWN", 2)
    assert train.main([f"resume={cut}"]) == 0
    assert_same(whole, cut)
    capsys.readouterr()
    assert train.main([f"resume={cut}"]) == 2
    assert f"complete after {EPOCHS} epochs" in capsys.readouterr().err


def test_a_killed_run_goes_further_to_the_same_end(killed, tmp_path, monkeypatch):
    """A run that is complete goes further and is killed in turn: what it had written before is not taken for new."""
    monkeypatch.setattr(build, "SHOWN", 2)
    further = shutil.copytree(killed[0], tmp_path / "further")
    writes = watched(further, tmp_path / "kept", [f"resume={further}", f"train.epochs={EPOCHS + 1}"])
    assert writes[-1] == "summary.json"
    for number in range(1, len(writes)):
        cut = tmp_path / "kept" / str(number)
        assert train.main([f"resume={cut}", f"train.epochs={EPOCHS + 1}"]) == 0, writes[number]
        assert_same(further, cut)


def scores(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("perf/")}


def assert_same(whole, cut):
    """The same results and files, and all of one epoch; times and speed apart."""
    one, other = journal.read(whole), journal.read(cut)
    assert [epoch.epoch for epoch in other.epochs] == [epoch.epoch for epoch in one.epochs]
    assert [scores(epoch.metrics) for epoch in other.epochs] == [scores(epoch.metrics) for epoch in one.epochs]
    assert (other.end.status, other.end.reason) == (one.end.status, one.end.reason)
    assert scores(other.end.metrics) == scores(one.end.metrics)
    summaries = [scores(json.loads((folder / "summary.json").read_text())) for folder in (whole, cut)]
    assert {**summaries[0], "seconds": 0} == {**summaries[1], "seconds": 0}
    assert (cut / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    with np.load(whole / "val_matrices.npz") as before, np.load(cut / "val_matrices.npz") as after:
        assert after["epoch"] == before["epoch"] == other.best.epoch == describe(cut / "best.safetensors").epoch
        assert (after["keys"] == before["keys"]).all()
        assert (after["matrices"] == before["matrices"]).all()
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (whole, cut)]
    for part in (lambda state: state["model"], lambda state: state["average"]["model"]):
        assert all(torch.equal(tensor, part(states[1])[name]) for name, tensor in part(states[0]).items())
    found, wanted = (
        {p.relative_to(folder): p for folder_ in [folder] for p in pictures(folder_)} for folder in (cut, whole)
    )
    assert found.keys() == wanted.keys()
    assert any(path.stem == f"{other.best.epoch:04d}" for path in found)
    for name, path in found.items():
        if name.stem != "training":  # draws the speed, too
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(wanted[name]))), name


def pictures(folder):
    return [path for kind in ("predictions", "figures") for path in (folder / kind).rglob("*.png")]
