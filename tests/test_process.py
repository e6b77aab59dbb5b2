"""A command's output may fail, and so may the command: what is said, kept and hidden then."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from functools import partial
from pathlib import Path

import pytest
from conftest import TINY

from segsweep.commands import app, train
from segsweep.errors import redacted
from segsweep.process import DEBUG, failed, printable
from segsweep.runs import journal

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://me:pass@host/db", "postgresql://me:***@host/db"),
        ("http://me:p@ss/w?rd@host:80/x, refused", "http://me:***@host:80/x, refused"),
        ("https://0123456789abcdefABCDEF@host/", "https://***@host/"),
        ("https://git@host/", "https://git@host/"),
        ("http://host/?a=1&token=abc&b=2", "http://host/?a=1&token=***&b=2"),
        ("'postgresql://host/db?user=me&password=abc'", "'postgresql://host/db?user=me&password=***'"),
        ("http://host/?x-api-key=abc#d", "http://host/?x-api-key=***#d"),
        ("data.root=/a:b@c train.seed=1", "data.root=/a:b@c train.seed=1"),
    ],
)
def test_passwords_are_left_out_of_any_text(text, said):
    assert redacted(text) == said


def test_nothing_that_is_printed_commands_the_terminal():
    assert printable("a\x1b[2Jb\tc\nd\re\x9b\u202ef\udcfc") == r"a\x1b[2Jb" + "\tc\nd" + r"\re\x9b\u202ef\udcfc"
    assert printable("Gebäude, 東京, שלום") == "Gebäude, 東京, שלום"


@pytest.mark.parametrize("main", [app, train])
def test_what_nobody_foresaw_is_one_line_and_its_traceback_a_file(main, monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise KeyError("at http://me:" + "word@host")

    monkeypatch.delenv(DEBUG)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(train, "launch", fail)
    monkeypatch.setattr("segsweep.commands.report.run", fail)
    assert main.main(["report", "x"] if main is app else []) == 70
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"\S+: KeyError: 'at http://me:\*\*\*@host' This is a bug in segsweep\. Its traceback: .*\n", said
    )
    (kept,) = tmp_path.glob("segsweep-*.txt")
    assert "Traceback" in kept.read_text() and "me:word" not in kept.read_text()
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(KeyError):
        main.main(["report", "x"] if main is app else [])


def test_what_the_file_system_refuses_is_one_line(monkeypatch):
    monkeypatch.delenv(DEBUG)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b")
    assert failed(full) == ("/a/b: No space left on device.", 7)


@pytest.mark.parametrize("debugged", [False, True])
def test_a_home_of_nobody_is_one_line_of_the_users(debugged, monkeypatch):
    if not debugged:
        monkeypatch.delenv(DEBUG)
    with pytest.raises(RuntimeError) as raised:
        Path("~nobody-at-all/x").expanduser()
    assert failed(raised.value) == (
        "~: there is no such user's folder. Type the whole path, or ~/ for your own.",
        2,
    )


@pytest.mark.parametrize("output", ["| head -1", ">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_output_that_fails_ends_no_training(pairs, tmp_path, output):
    typed = [*TINY, "data=folder", f"data.root={pairs()}", "data.size=[32,32]", "train.batch_size=4", "train.epochs=2"]
    run = tmp_path / "run"
    words = " ".join(f"'{word}'" for word in [*typed, "tracking=none", f"hydra.run.dir={run}"])
    script = f"set -o pipefail; {sys.executable} train.py {words} {output}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert journal.read(run).end.status == "complete"


@pytest.mark.services
@pytest.mark.parametrize("begun", ["lock", ".hydra", "metrics.jsonl"])
def test_ctrl_c_twice_early_is_one_line_and_leaves_no_empty_journal(begun, pairs, tmp_path):
    """As soon as the folder is claimed, while the first files are written, and right behind the first record."""
    run, environment = tmp_path / "run", {name: value for name, value in os.environ.items() if name != DEBUG}
    typed = [*TINY, "data=folder", f"data.root={pairs()}", "data.size=[32,32]", "train.batch_size=4", "train.epochs=50"]
    command = [sys.executable, "train.py", *typed, "tracking=none", f"hydra.run.dir={run}"]
    # Where tests run in the background SIGINT is ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=heed, **pipes)
    until = time.monotonic() + 60
    while not (run / begun).exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), said  # the latter in Python's own end; a shell says 130 of both
    assert "Traceback" not in said
    assert not (run / journal.NAME).exists() or journal.exists(run)


@pytest.mark.services
def test_a_password_is_in_no_file_no_output_and_no_command_line(pairs, tmp_path, outputs, trained):
    """MLflow does not answer, so that its client's errors, which name the server, are shown and kept, too."""
    word, seen, over = uuid.uuid4().hex, set(), threading.Event()
    env = os.environ | {"MLFLOW_TRACKING_URI": f"http://me:{word}@127.0.0.1:9/x?token={word}", "PYTHONPATH": str(ROOT)}

    def watch():
        while not over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    continue

    watching = threading.Thread(target=watch)
    watching.start()
    typed = [*TINY, "data=folder", f"data.root={pairs()}", "data.size=[32,32]", "train.batch_size=4", "train.epochs=1"]
    search = [
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=1",
        "hydra.sweeper.finalists=0",
        "optim.lr=1e-3,1e-2",
    ]
    said = ""
    for words in (
        ["train", *typed, "tracking.timeout=2"],
        ["train", *typed, "tracking.timeout=2", "optim.lr=1e-3,1e-2", *search],
        ["train", *typed, f"tracking.uri=http://host/?token={word}"],
        ["sync", str(outputs)],
        ["predict", "best:cells", str(pairs())],
        ["register", str(trained.folder), "name"],
        ["ui"],
    ):
        command = [sys.executable, "-m", "segsweep", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr, done.stderr
        said += done.stdout + done.stderr
    over.set()
    watching.join()
    assert "127.0.0.1:9" in said
    assert word not in said
    assert not [path for path in outputs.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
    own = b"?token="  # what this test itself has typed
    assert not [line for line in seen if word.encode() in line and own not in line]
