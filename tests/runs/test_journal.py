"""The journal: whole lines only, whoever is killed when; a lock that dies with its holder."""

import json
import math
import subprocess
import sys
import time

import pytest

from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.runs.journal import FolderLock, Journal

WRITER = """
import sys
from pathlib import Path
from segsweep.runs.journal import Journal
with Journal(Path(sys.argv[1])) as log:
    for i in range(150):
        log.write("epoch", epoch=i, text="x" * 20_000)
assert "torch" not in sys.modules
"""

HOLDER = """
import sys
from pathlib import Path
from segsweep.errors import ConfigError
from segsweep.runs.journal import FolderLock
try:
    lock = FolderLock(Path(sys.argv[1]))
except ConfigError as error:
    print("refused", error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


def start(script: str, folder: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_was_written_is_read(tmp_path):
    with Journal(tmp_path) as log:
        log.write("start", version=journal.VERSION, config={"a": [1, 2]})
        log.write("epoch", epoch=1, **{"val/iou": 0.5})
        log.write("end", status="complete", reason="ä\n\u2028")
    assert journal.read(tmp_path) == [
        {"kind": "start", "version": journal.VERSION, "config": {"a": [1, 2]}},
        {"kind": "epoch", "epoch": 1, "val/iou": 0.5},
        {"kind": "end", "status": "complete", "reason": "ä\n\u2028"},
    ]


def test_each_record_is_on_disk_at_once(tmp_path):
    with Journal(tmp_path) as log:
        for i in range(3):
            log.write("epoch", epoch=i)
            assert len(journal.read(tmp_path)) == i + 1


def test_a_reopened_journal_goes_on(tmp_path):
    for i in range(3):
        with Journal(tmp_path) as log:
            log.write("start", number=i)
    assert [record["number"] for record in journal.read(tmp_path)] == [0, 1, 2]


def test_epochs_are_the_epoch_records(tmp_path):
    with Journal(tmp_path) as log:
        for kind in ("start", "epoch", "start", "epoch", "end"):
            log.write(kind)
    assert [record["kind"] for record in journal.epochs(journal.read(tmp_path))] == ["epoch", "epoch"]


@pytest.mark.parametrize("tail", (b"{", b'{"kind": "epoch", "epoch": 2', b'{"kind": "end"}'), ids=repr)
def test_a_torn_tail_is_cut(tmp_path, tail):
    with Journal(tmp_path) as log:
        log.write("epoch", epoch=1)
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(tail)
    assert [record["epoch"] for record in journal.read(tmp_path)] == [1]
    with Journal(tmp_path) as log:
        log.write("epoch", epoch=2)
    assert [record["epoch"] for record in journal.read(tmp_path)] == [1, 2]
    assert (tmp_path / journal.NAME).read_bytes().count(b"\n") == 2


def test_a_journal_that_is_all_torn_starts_anew(tmp_path):
    (tmp_path / journal.NAME).write_bytes(b'{"kind": "sta')
    with Journal(tmp_path) as log:
        log.write("start")
    assert journal.read(tmp_path) == [{"kind": "start"}]


def test_numbers_that_are_none_are_null(tmp_path):
    with Journal(tmp_path) as log:
        returned = log.write("epoch", a=math.nan, b=[math.inf, 1.0], c={"d": -math.inf, "e": (math.nan,)}, f=2)
    expected = {"kind": "epoch", "a": None, "b": [None, 1.0], "c": {"d": None, "e": [None]}, "f": 2}
    assert returned == expected
    assert journal.read(tmp_path) == [expected]
    assert b"NaN" not in (tmp_path / journal.NAME).read_bytes()


def test_a_journal_of_a_later_format_is_refused(tmp_path):
    with Journal(tmp_path) as log:
        log.write("start", version=journal.VERSION + 1)
    with pytest.raises(ConfigError, match="Update segsweep"):
        journal.read(tmp_path)


def test_exists_needs_a_whole_record(tmp_path):
    assert not journal.exists(tmp_path)
    (tmp_path / journal.NAME).write_bytes(b'{"kind": "start"')
    assert not journal.exists(tmp_path)
    with Journal(tmp_path) as log:
        assert not journal.exists(tmp_path)
        log.write("start")
        assert journal.exists(tmp_path)


def test_a_folder_without_a_journal_has_no_records(tmp_path):
    assert journal.read(tmp_path) == []
    assert journal.read(tmp_path / "none") == []
    assert not journal.exists(tmp_path / "none")


def test_a_concurrent_reader_sees_whole_records_only(tmp_path):
    seen = [0]
    with start(WRITER, tmp_path) as writer:
        while writer.poll() is None:
            records = journal.read(tmp_path)
            assert [record["epoch"] for record in records] == list(range(len(records)))
            seen.append(len(records))
            time.sleep(0.001)
        assert writer.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, "the reader was never at work beside the writer"
    assert len(journal.read(tmp_path)) == 150


def test_each_line_is_one_json_object(tmp_path):
    with Journal(tmp_path) as log:
        log.write("start", text="a\nb")
        log.write("end")
    lines = (tmp_path / journal.NAME).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["start", "end"]


def test_a_held_lock_refuses_another_process_until_released(tmp_path):
    lock = FolderLock(tmp_path)
    with start(HOLDER, tmp_path) as other:
        said, _ = other.communicate()
    assert said.startswith("refused")
    assert str(tmp_path) in said
    assert "hydra.run.dir=DIR" in said
    lock.release()
    with start(HOLDER, tmp_path) as other:
        assert other.stdout.readline() == "held\n"


def test_a_lock_is_free_once_its_holder_was_killed(tmp_path):
    with start(HOLDER, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="in use by a running training"):
            FolderLock(tmp_path)
        holder.kill()
    FolderLock(tmp_path).release()
