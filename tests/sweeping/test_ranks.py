"""Several processes train one model: what one alone does, and one end for all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from conftest import write_pairs

import train
from segsweep.commands.train import launch
from segsweep.config.schema import DecoderConfig
from segsweep.engine import device
from segsweep.errors import ConfigError
from segsweep.nn import UNet
from segsweep.runs import journal, locks
from segsweep.runs.records import EpochRecord
from segsweep.sweeping.backends.base import OUTPUT, Job
from segsweep.sweeping.backends.local import LocalBackend
from segsweep.sweeping.backends.slots import Slot, slots
from segsweep.training import build
from segsweep.world import World

ROOT = Path(train.__file__).parent
TWO = Slot(0, ("0", "1"), 2)  # GPUs that are not there: the ranks run on the CPU
SMALL = (
    *("encoder.pretrained=false", "train.device=auto", "train.precision=fp32", "train.batch_size=8"),
    *("data=folder", "data.size=[64,64]", "data.passes=1", "decoder.norm=group", "tracking=none", "optim.lr=4e-3"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))(24, ("train", "val", "test"), (64, 72))


@pytest.fixture(scope="module", autouse=True)
def server_with_torch():
    """A fork server that has torch loaded: that of other tests has not, and each rank would load it anew."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


@pytest.fixture
def backend(tmp_path):
    made = LocalBackend(tmp_path, [TWO], preloaded=["rank_train", "segsweep.engine.ranks", "segsweep.training.run"])
    yield made
    made.close()


def typed(root, *words, encoder="test_vit"):
    return [f"encoder={encoder}", *SMALL, f"data.root={root}", *words]


def on_two(backend, name, words, **how):
    """Train on two ranks; the update of the end, when no process of it is left."""
    backend.submit(Job(name, "rank_train", tuple(words), **how))
    return ended(backend, name)


def ended(backend, name, seconds=60.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for update in backend.poll(0.2):
            if update.ended:
                assert not left(backend.folder / name)
                return update
    raise AssertionError((backend.folder / name / OUTPUT).read_text())


def left(folder):
    """Processes whose output goes to the folder."""
    found, until = [0], time.monotonic() + 5
    while found and time.monotonic() < until:
        found = []
        for path in Path("/proc").glob("[0-9]*/fd/1"):
            try:
                found += [path] * (path.readlink() == folder / OUTPUT)
            except OSError:
                continue
    return found


def said(backend, name):
    return (backend.folder / name / OUTPUT).read_text()


def losses(folder):
    return [epoch.metrics["train/loss"] for epoch in journal.read(folder).epochs]


def alone(folder, words):
    assert train.main([*words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
def test_two_ranks_train_as_one_process_with_two_micro_batches(encoder, backend, root, tmp_path):
    words = typed(root, "train.epochs=3", encoder=encoder)
    one = alone(tmp_path / "one", [*words, "train.grad_accum=2"])
    assert on_two(backend, "two", words).error is None, said(backend, "two")
    two = tmp_path / "two"
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    starts = [journal.read(folder).start for folder in (one, two)]
    assert [start.execution.ranks for start in starts] == [1, 2]
    assert [start.settings.train.grad_accum for start in starts] == [2, 1]
    assert [start.execution.micro_batch for start in starts] == [4, 4]
    assert said(backend, "two").count("epoch   3/3") == 1  # one speaks


def test_micro_batches_on_ranks_add_up(backend, root, tmp_path):
    """Nine images on two ranks with two micro-batches each: groups of 3, 2, 2 and 2, as one process has with four."""
    words = [word.replace("batch_size=8", "batch_size=9") for word in typed(root, "train.epochs=1")]
    assert on_two(backend, "two", [*words, "train.grad_accum=auto"]).error is None, said(backend, "two")
    words = [word.replace("batch_size=8", "batch_size=12") for word in typed(root, "train.epochs=1")]
    one = alone(tmp_path / "one", [*words, "train.grad_accum=4"])
    assert on_two(backend, "four", [*words, "train.grad_accum=2"]).error is None, said(backend, "four")
    assert losses(tmp_path / "four") == pytest.approx(losses(one), abs=1e-6)


def test_what_began_on_two_goes_on_alone_and_is_scored_alike(backend, root, tmp_path):
    words = typed(root, "train.epochs=6", "train.test=false")
    whole = alone(tmp_path / "whole", [*words, "train.grad_accum=2"])
    backend.submit(Job("two", "rank_train", tuple(words)))
    seen = 0
    while not seen:
        for update in backend.poll(0.05):
            assert not update.ended, said(backend, "two")
            seen += sum(isinstance(record, EpochRecord) for record in update.records)
    os.kill(backend._living["two"].pid, signal.SIGKILL)
    ended(backend, "two")
    two = tmp_path / "two"
    assert 1 <= len(losses(two)) < 6
    assert train.main([f"resume={two}"]) == 0
    assert losses(two) == pytest.approx(losses(whole), abs=2e-6)
    assert journal.read(two).start.settings.train.grad_accum == 2

    for name in ("copy", "bare"):  # the same checkpoint, scored by one and by two
        shutil.copytree(two, tmp_path / name)
    (tmp_path / "bare" / "last.pt").unlink()  # the best model is enough
    assert train.main([f"resume={two}", "train.test=true"]) == 0
    for name in ("copy", "bare"):
        assert on_two(backend, name, ["train.test=true"], resume=True).error is None, said(backend, name)
    found = [journal.read(folder).end.tested for folder in (two, tmp_path / "copy", tmp_path / "bare")]
    assert found[0] == found[1] == found[2]
    assert found[0].keys() >= {"test/iou", "test/loss"}


def test_what_began_alone_goes_on_on_two(backend, root, tmp_path):
    words = [*typed(root, "train.epochs=4"), "train.grad_accum=2"]
    whole = alone(tmp_path / "whole", words)
    half = alone(tmp_path / "half", [*words[:-2], "train.epochs=4", words[-1], "train.time_budget=1e-3"])
    done = len(losses(half))
    assert 1 <= done < 4
    update = on_two(backend, "half", ["train.time_budget=null"], resume=True)
    assert update.error is None, said(backend, "half")
    assert losses(half)[done:] == pytest.approx(losses(whole)[done:], abs=0.2)  # another schedule until then
    assert journal.read(half).start.settings.train.grad_accum == 1
    assert journal.read(half).start.execution.micro_batch == 4


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("memory", "out_of_memory", "rank 1 on "),
        ("nan", "non_finite", "the loss became NaN"),
        ("crash", "crash", "ZeroDivisionError: what nobody thought of"),
        ("refused", "config", "the data differ from those of rank 0"),
    ],
)
def test_the_first_error_of_any_rank_is_the_one_that_is_told(fault, kind, words, backend, root):
    update = on_two(backend, "0", [f"fault={fault}", *typed(root, "train.epochs=3")])
    assert update.error == kind, said(backend, "0")
    assert words in update.words
    if fault == "refused":  # before anything is recorded
        assert not journal.exists(backend.folder / "0")
        return
    end = journal.read(backend.folder / "0").end
    assert (end.status, end.error) == ("failed", kind)
    assert "peer" not in end.reason


def test_a_rank_that_is_killed_ends_the_others_and_is_named(backend, root):
    update = on_two(backend, "0", ["fault=killed", *typed(root, "train.epochs=3")])
    assert update.error == "crash"
    assert update.words == "rank 1 of 2: signal 9 (SIGKILL): most likely the system's memory was full"
    end = journal.read(backend.folder / "0").end
    assert (end.status, end.error) == ("failed", "crash")
    assert end.reason.startswith("another process of this training ended without a message")


def test_the_budget_goes_by_the_clock_of_the_first(backend, root):
    words = typed(root, "train.time_budget=2")
    assert on_two(backend, "0", ["fault=clock", *words]).error is None, said(backend, "0")
    end = journal.read(backend.folder / "0").end
    assert end.reason == "time budget of 2 s"


def test_frozen_parts_are_trained_later(backend, root, tmp_path):
    words = [word for word in typed(root, encoder="test_resnet") if not word.startswith("decoder.norm")]
    asked = ["train.epochs=3", "optim.freeze_epochs=2", "train.ema=0.5"]
    assert on_two(backend, "0", [*words, *asked]).error is None, said(backend, "0")
    one = losses(alone(tmp_path / "1", [*words, *asked, "train.grad_accum=2"]))
    two = losses(tmp_path / "0")
    assert two[:1] == pytest.approx(one[:1], abs=1e-6)
    assert two == pytest.approx(one, rel=0.02)  # validation sees other BatchNorm statistics; training does not


def test_a_trial_that_is_stopped_leaves_no_rank(backend, root):
    job = backend.submit(Job("0", "rank_train", tuple(typed(root, "train.epochs=1000"))))
    while not any(update.records for update in backend.poll(0.2)):
        pass
    backend.stop(job)
    assert ended(backend, "0").error is None
    end = journal.read(backend.folder / "0").end
    assert (end.status, end.reason) == ("stopped", "terminated (SIGTERM)")


def test_a_first_process_that_is_killed_leaves_nothing_behind(backend, root):
    backend.submit(Job("0", "rank_train", tuple(typed(root, "train.epochs=1000"))))
    while not any(update.records for update in backend.poll(0.2)):
        pass
    claim = json.loads((backend.folder / "0" / "process").read_text())
    meeting = Path(tempfile.gettempdir()) / f"segsweep-ranks-{claim['attempt']}"
    assert meeting.exists()
    os.kill(locks.holder(backend.folder / "0" / "process"), signal.SIGKILL)
    assert ended(backend, "0").words.startswith("signal 9 (SIGKILL)")
    assert not meeting.exists()


def test_one_image_a_process_is_little_for_batchnorm(capsys, caplog):
    world = World()
    world.size = 2
    build._say_share(UNet("test_resnet", 1), 1, world)
    assert "2 processes train together, each 1 image of a batch at a time" in capsys.readouterr().err
    assert "BatchNorm gets its statistics from one image at a time" in caplog.text
    caplog.clear()
    build._say_share(UNet("test_vit", 1, decoder=DecoderConfig(norm="group")), 1, World())
    build._say_share(UNet("test_resnet", 1), 2, World())
    assert not capsys.readouterr().err and not caplog.text


def test_a_run_that_is_refused_ends_every_rank(backend, root):
    update = on_two(backend, "0", typed(root, "train.batch_size=1"))
    assert update.error == "config"
    assert update.words == "train.batch_size=1: too few for 2 processes. Try train.batch_size=2."
    assert not journal.exists(backend.folder / "0")


def torchrun(*words, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", *words]
    env = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_torchrun_trains_one_run_and_leaves_none_behind_when_it_is_killed(root, outputs):
    process = torchrun(*typed(root, "train.epochs=1000"), SEGSWEEP_OUTPUTS=str(outputs))
    for line in process.stderr:
        if line.startswith("epoch   2/1000"):
            break
    (folder,) = [path.parent for path in outputs.rglob(journal.NAME)]
    assert journal.read(folder).start.execution.ranks == 2
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while (running := ranks_of(outputs)) and time.monotonic() < until:
        time.sleep(0.2)
    process.stdout.close()
    process.stderr.close()
    assert not running
    end = journal.read(folder).end
    assert (end.status, end.reason) == ("stopped", "terminated (SIGTERM)")
    assert json.loads((folder / "summary.json").read_text())["epochs"] >= 2


def ranks_of(outputs):
    """Processes that were started with this outputs folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue
        if f"SEGSWEEP_OUTPUTS={outputs}".encode() in environment and b"LOCAL_RANK=" in environment:
            found.append(path.parent.name)
    return found


def test_sweeps_are_not_for_torchrun(outputs):
    world = World()
    world.size = 2
    with pytest.raises(ConfigError, match="a sweep starts its trials itself"):
        launch(["-m", "hydra/sweeper=optuna"], world)
    assert not outputs.exists()


def test_torchruns_one_thread_is_nobodys_word(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "cores", lambda: 8)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert device.set_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device.set_threads() == 3
    torch.set_num_threads(before)


def test_a_slot_names_a_gpu_once(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert slots([[0, 1]])[0].environment["WORLD_SIZE"] == "2"
    with pytest.raises(ConfigError, match="names a GPU twice"):
        slots([[0, 0]])
