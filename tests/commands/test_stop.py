"""`segsweep stop`: the epoch is finished, everything is kept, and the run can go on."""

import time
from multiprocessing import get_context

import pytest
from conftest import TINY

import train
from segsweep.commands import app
from segsweep.runs import journal, locks
from segsweep.runs.trial import NAME as TRIAL
from segsweep.sweeping import about, screened


def test_a_run_ends_after_the_epoch_and_goes_on_later(pairs, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*TINY, "data=folder", f"data.root={pairs()}", "data.size=[32,32]", "train.batch_size=4", "tracking=none"]
    words += ["train.epochs=2000", f"hydra.run.dir={folder}"]
    # A process of its own: this one would let its lock go by asking for it.
    process = get_context("spawn").Process(target=train.main, args=(words,))
    process.start()
    while len(journal.read(folder).epochs) < 2:
        assert process.is_alive()
        time.sleep(0.02)
    assert app.main(["stop", str(folder)]) == 0
    assert "asked to stop: the run ends when it has finished its epoch" in capsys.readouterr().out
    process.join(60)
    assert process.exitcode == 0
    found = journal.read(folder)
    assert (found.end.status, found.end.reason) == ("stopped", "asked to (segsweep stop)")
    assert 2 <= len(found.epochs) < 2000
    assert (folder / "figures" / "training.png").exists()
    assert train.main([f"resume={folder}", f"train.epochs={len(found.epochs) + 1}"]) == 0
    assert journal.read(folder).end.status == "complete"
    assert app.main(["stop", str(folder)]) == 2
    assert "no training and no sweep is running there" in capsys.readouterr().err


@pytest.mark.parametrize("name", [about.NAME, screened.NAME])
def test_a_job_of_a_sweep_or_screening_is_stopped_with_all_of_it(name, tmp_path, monkeypatch, capsys):
    job = tmp_path / "epoch" / "resnet18"
    job.mkdir(parents=True)
    (job / TRIAL).touch()
    (tmp_path / name).touch()
    monkeypatch.setattr(locks, "alive", lambda folder: True)
    assert app.main(["stop", str(job)]) == 2
    assert f"instead: segsweep stop {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere", ""])
def test_what_cannot_be_stopped_is_said(name, tmp_path, capsys):
    assert app.main(["stop", str(tmp_path / name)]) == 2
    assert ("no such folder" if name else "no training and no sweep is running there") in capsys.readouterr().err
