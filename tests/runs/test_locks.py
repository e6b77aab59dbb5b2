"""A lock dies with its holder."""

import subprocess
import sys

import pytest

from segsweep.errors import ConfigError
from segsweep.runs.locks import FolderLock, alive

HOLDER = """
import sys
from pathlib import Path
from segsweep.errors import ConfigError
from segsweep.runs.locks import FolderLock
try:
    lock = FolderLock(Path(sys.argv[1]))
except ConfigError as error:
    print("refused", error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


def start(folder: object) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_held_lock_refuses_another_process_until_released(tmp_path):
    lock = FolderLock(tmp_path)
    with start(tmp_path) as other:
        said, _ = other.communicate()
    assert said.startswith("refused")
    assert str(tmp_path) in said
    assert "hydra.run.dir=DIR" in said
    lock.release()
    with start(tmp_path) as other:
        assert other.stdout.readline() == "held\n"


def test_a_lock_is_free_once_its_holder_was_killed(tmp_path):
    with start(tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="in use by a running training"):
            FolderLock(tmp_path)
        assert alive(tmp_path)
        holder.kill()
    assert not alive(tmp_path)
    FolderLock(tmp_path).release()
