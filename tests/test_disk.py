"""The file system refuses, at any byte and in any way: one line, exit code 7 or 2, and what was recorded goes on."""

import errno
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, no_file_is_longer, write_pairs
from PIL import Image

import train
from segsweep import paths
from segsweep.commands import app
from segsweep.errors import DISK
from segsweep.nn.checkpoint import save_state
from segsweep.process import DEBUG
from segsweep.runs import journal
from segsweep.runs.journal import _line
from segsweep.training.recorder import Recorder

ROOT = Path(__file__).parents[1]
TYPED = (*TINY, "data=folder", "data.size=[32,32]", "train.batch_size=4", "train.epochs=2", "train.seed=1")
PICTURES = ("augmented.png", "training.png", "worst.png")  # a training goes on without them
# What is written when the disk is full, and how much of it still fits.
WRITES = [
    *(("Start", 0.5), ("EpochRecord", 0), ("EpochRecord", 0.9), ("End", 0.5), ("last.pt", 0.5), ("last.pt", 0.999)),
    *(("best.safetensors", 0.5), ("val_matrices.npz", 0.5), ("summary.json", 0.5), ("config.yaml", 0.5)),
    *((name, 0.5) for name in PICTURES),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, and its data."""
    place = tmp_path_factory.mktemp("whole")
    root = write_pairs(place)(8, ("train", "val", "test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_OUTPUTS", str(place / "outputs"))
        typed = [*TYPED, f"data.root={root}", "tracking=none", f"hydra.run.dir={place / 'run'}"]
        assert train.main(typed) == 0
    return place, typed[:-1]


def scores(folder):
    run = journal.read(folder)
    found = [epoch.metrics for epoch in run.epochs] + [run.end.metrics]
    return [{name: value for name, value in each.items() if not name.startswith("perf/")} for each in found]


@contextmanager
def full_from(what, share, whole_run, monkeypatch):
    """From this file's or kind of record's first write on, of which a share fits, no file may be longer than that."""

    def limited(size):
        full.enter_context(no_file_is_longer(int(size)))

    def of(path):
        (written,) = whole_run.rglob(path.name)
        return share * written.stat().st_size

    def aside(path):
        if path.name == what:
            limited(of(path))
        return beside(path)

    def record(self, one):
        if type(one).__name__ == what:
            there = self._path.stat().st_size if self._path.exists() else 0
            limited(there + share * len(_line(one)))
        return append(self, one)

    beside, append = paths.beside, journal.Journal.write
    with monkeypatch.context() as patch, ExitStack() as full:
        patch.setattr(paths, "beside", aside)
        patch.setattr(journal.Journal, "write", record)
        yield


@pytest.mark.parametrize(("what", "share"), WRITES)
def test_a_disk_that_is_full_at_any_byte_is_one_line_and_the_run_goes_on(
    what, share, whole, tmp_path, monkeypatch, capsys, caplog
):
    place, typed = whole
    monkeypatch.delenv(DEBUG)
    monkeypatch.setenv("SEGSWEEP_OUTPUTS", str(place / "outputs"))
    folder = tmp_path / "run"
    with full_from(what, share, place / "run", monkeypatch):
        code = train.main([*typed, f"hydra.run.dir={folder}"])
    said = capsys.readouterr().err
    assert "Traceback" not in said, said
    if code:
        assert code == 7
        assert re.search(rf"^train.py: \S+: {os.strerror(errno.EFBIG)}\.$", said.splitlines()[-1]), said
    else:
        assert what in PICTURES and "was not drawn" in caplog.text
    before = journal.read(folder)
    assert before.end is None or (before.end.status, before.end.error) in (("failed", "disk"), ("complete", None))
    go_on = [f"resume={folder}"] if before.records else [*typed, f"hydra.run.dir={folder}"]
    assert train.main(go_on) == (0 if code else 2)
    assert scores(folder) == scores(place / "run")
    assert not list(folder.rglob("*.writing"))


def test_a_cache_that_does_not_fit_is_one_line_and_made_anew(whole, tmp_path, monkeypatch, capsys):
    _, typed = whole
    monkeypatch.delenv(DEBUG)
    for size in (0, 100, 20_000):
        with no_file_is_longer(size):
            assert train.main([*typed, f"hydra.run.dir={tmp_path / 'run'}"]) == 7
        assert "Traceback" not in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert train.main([*typed, f"hydra.run.dir={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_state_that_does_not_fit_says_so_and_leaves_the_one_before(share, tmp_path):
    """torch by itself says `unexpected pos` then, and which file it was."""
    path = tmp_path / "last.pt"
    save_state(path, {"tensor": torch.zeros(20_000)})
    before = path.read_bytes()
    with no_file_is_longer(int(share * len(before))), pytest.raises(OSError) as raised:
        save_state(path, {"tensor": torch.ones(20_000)})
    assert raised.value.errno in DISK
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_probabilities_that_do_not_fit_are_one_line_and_not_the_end_of_the_process(
    trained, tmp_path, monkeypatch, capsys
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(image)
    words = ["predict", str(trained.folder), str(image), "-o", str(tmp_path / "masks"), "--probabilities"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        assert app.main(words) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "masks").rglob("*") if path.is_file()]
    assert app.main(words) == 0


def test_room_is_set_aside(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    paths.reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20


def unwritable(tmp_path):
    """Places where no run can be, and what the system says of them."""
    loop, file = tmp_path / "loop", tmp_path / "file"
    loop.symlink_to(loop)
    file.touch()
    return [
        (loop / "run", errno.ELOOP),
        (file / "run", errno.ENOTDIR),
        (tmp_path / ("x" * 300), errno.ENAMETOOLONG),
        (Path("/proc/self/run"), None),
    ]


@pytest.mark.parametrize(
    ("key", "number"),
    [*(("hydra.run.dir", n) for n in range(4)), ("hydra.sweep.dir", 0), *(("SEGSWEEP_OUTPUTS", n) for n in (0, 2))],
)
def test_a_place_where_nothing_can_be_written_is_one_line(key, number, whole, tmp_path, monkeypatch, capsys):
    folder, kind = unwritable(tmp_path)[number]
    monkeypatch.delenv(DEBUG)
    typed = [word for word in whole[1] if not word.startswith("tracking=")]
    if key == "SEGSWEEP_OUTPUTS":
        monkeypatch.setenv(key, str(folder))
    else:
        typed += [f"{key}={folder}"]
        typed += ["-m", "hydra/sweeper=optuna", "optim.lr=1e-3,1e-2"] if "sweep" in key else []
    assert train.main(typed) in (2, 7)
    said = capsys.readouterr().err
    assert "Traceback" not in said and "bug in segsweep" not in said
    assert kind is None or os.strerror(kind) in said or (kind == errno.ELOOP and "loop" in said)


def test_a_folder_that_is_deleted_under_a_run_is_one_line(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(DEBUG)
    folder, whole_epoch = tmp_path / "run", Recorder.epoch

    def deleted(self, epoch):
        shutil.rmtree(folder)
        whole_epoch(self, epoch)

    monkeypatch.setattr(Recorder, "epoch", deleted)
    assert train.main([*whole[1], f"hydra.run.dir={folder}"]) == 7
    said = capsys.readouterr().err
    assert "Traceback" not in said and os.strerror(errno.ENOENT) in said


def test_null_bytes_in_what_is_read_are_one_line(whole, tmp_path, monkeypatch, capsys):
    """As a disk leaves a file whose content was lost in a power cut."""
    monkeypatch.delenv(DEBUG)
    for name in ("metrics.jsonl", "last.pt", "best.safetensors", "split.csv", "summary.json", "val_matrices.npz"):
        folder = shutil.copytree(whole[0] / "run", tmp_path / name)
        path = folder / name
        path.write_bytes(bytes(path.stat().st_size))
        for words in (
            ["train", f"resume={folder}", "train.epochs=3"],
            ["evaluate", str(folder)],
            ["compare", str(folder), str(whole[0] / "run")],
        ):
            assert app.main(words) in (0, 2, 3), (name, words)
            assert "Traceback" not in capsys.readouterr().err


READ_ONLY = """
import ctypes, subprocess, sys
ctypes.CDLL(None).unshare(0x00020000)  # mounts of its own
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", sys.argv[1]], check=True)
if sys.argv[2] == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
sys.exit(subprocess.run([sys.executable, *sys.argv[3:]]).returncode)
"""


@pytest.mark.services
@pytest.mark.parametrize("how", ["read-only", "small"])
def test_a_real_disk_that_is_full_or_read_only_is_one_line(how, whole, tmp_path):
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("only root may mount a disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [*whole[1], "tracking=none", f"hydra.run.dir={disk / 'run'}"]
    environment = {name: value for name, value in os.environ.items() if name != DEBUG}
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(disk), how, str(ROOT / "train.py"), *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith((os.strerror(errno.EROFS) + ".", os.strerror(errno.ENOSPC) + "."))
