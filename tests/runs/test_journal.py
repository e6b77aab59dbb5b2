"""The journal: whole lines only, whoever is killed when."""

import json
import subprocess
import sys
import time

import pytest
from records import end, epoch, start

from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.runs.journal import Journal
from segsweep.runs.records import VERSION, Run, encode

WRITER = """
import sys
from pathlib import Path
from segsweep.runs.journal import Journal
from segsweep.runs.records import EpochRecord
with Journal(Path(sys.argv[1])) as book:
    for i in range(150):
        book.write(EpochRecord(i, 0.0, {f"val/iou/{n}": 0.123456789 for n in range(700)}))
assert "torch" not in sys.modules
"""


def numbers(folder):
    return [one.epoch for one in journal.read(folder).epochs]


def test_what_was_written_is_read(tmp_path):
    written = [start(command="ä\n\u2028"), epoch(1, 0.5), end(**{"test/iou": 0.25})]
    with Journal(tmp_path) as book:
        assert [book.write(record) for record in written] == written
    run = journal.read(tmp_path)
    assert run == Run(written)
    assert (run.starts, run.epochs, run.end) == ([written[0]], [written[1]], written[2])
    assert (run.start, run.best) == (written[0], written[1])


def test_each_record_is_on_disk_at_once(tmp_path):
    with Journal(tmp_path) as book:
        for i in range(3):
            book.write(epoch(i, None))
            assert len(journal.read(tmp_path).records) == i + 1


def test_a_reopened_journal_goes_on(tmp_path):
    for i in range(3):
        with Journal(tmp_path) as book:
            book.write(start(resumed_after=i))
    assert [one.resumed_after for one in journal.read(tmp_path).starts] == [0, 1, 2]


def test_the_end_is_what_nothing_came_after(tmp_path):
    with Journal(tmp_path) as book:
        for record in (start(), epoch(1, 0.5), end(), start(), epoch(2, 0.25)):
            book.write(record)
        assert journal.read(tmp_path).end is None
        book.write(end("stopped"))
    run = journal.read(tmp_path)
    assert run.end is not None
    assert run.end.status == "stopped"
    assert [one.epoch for one in run.epochs] == [1, 2]


@pytest.mark.parametrize("tail", (b"{", b'{"kind": "epoch", "epoch": 2', b'{"kind": "end"}'), ids=repr)
def test_a_torn_tail_is_cut(tmp_path, tail):
    with Journal(tmp_path) as book:
        book.write(epoch(1, None))
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(tail)
    assert numbers(tmp_path) == [1]
    with Journal(tmp_path) as book:
        book.write(epoch(2, None))
    assert numbers(tmp_path) == [1, 2]
    assert (tmp_path / journal.NAME).read_bytes().count(b"\n") == 2


def test_a_journal_that_is_all_torn_starts_anew(tmp_path):
    (tmp_path / journal.NAME).write_bytes(b'{"kind": "sta')
    with Journal(tmp_path) as book:
        book.write(start())
    assert journal.read(tmp_path).records == [start()]


def test_numbers_that_are_none_are_null_and_read_as_none(tmp_path):
    infinite = float("inf")
    with Journal(tmp_path) as book:
        returned = book.write(epoch(1, float("nan"), a=infinite, b=-infinite, c=2))
    assert returned.metrics == {"val/iou": None, "val/loss": 0.5, "a": None, "b": None, "c": 2}
    assert journal.read(tmp_path).records == [returned]
    (line,) = (tmp_path / journal.NAME).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["val/iou"] is None


def test_what_no_reader_takes_is_not_written(tmp_path):
    with Journal(tmp_path) as book:
        book.write(start())
        with pytest.raises(ConfigError, match=r"classes\[0\]: must be a text"):
            book.write(start(classes=[0, 1]))
    assert journal.read(tmp_path).records == [start()]


def test_a_journal_of_another_format_is_refused(tmp_path):
    (tmp_path / journal.NAME).write_text(json.dumps(encode(start()) | {"version": VERSION + 1}) + "\n")
    with pytest.raises(ConfigError, match="Use the version that wrote it") as refusal:
        journal.read(tmp_path)
    assert str(tmp_path / journal.NAME) in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("\x00\x00", "a line is not valid JSON"),
        ('{"kind": "epoch", "epoch": 2', "a line is not valid JSON"),
        ('{"kind": "epoch", "epoch": 2, "time": 1.0, "val/iou": Infinity}', "Infinity is not a number in JSON"),
        ('{"kind": "epoch", "epoch": 2, "time": NaN}', "NaN is not a number in JSON"),
        (f'{{"kind": "epoch", "epoch": 2, "time": 1{"0" * 400}}}', "too large"),
        ("[" * 100_000, "nested too deep"),
        ("[1, 2]", "a line is not a start, epoch or end"),
        ('{"kind": "middle"}', "a line is not a start, epoch or end"),
        ('{"kind": "epoch", "epoch": "two", "time": 1.0}', "epoch.epoch: must be a whole number, not 'two'"),
        ('{"kind": "epoch", "epoch": 2, "time": 1.0, "val/iou": "good"}', "epoch.metrics.val/iou: must be"),
        ('{"kind": "epoch", "time": 1.0}', "epoch: lacks epoch"),
        ('{"kind": "end", "time": 1.0, "status": "done", "reason": ""}', "end.status: must be complete or"),
        ('{"kind": "start", "version": 3, "run": "1"}', "start: lacks time"),
        ('{"kind": "start", "version": 1}', "has format 1"),
        ('{"kind": "start", "version": "two"}', "has format two"),
    ],
)
def test_a_damaged_line_is_one_line_that_names_the_file(tmp_path, line, said):
    (tmp_path / journal.NAME).write_text(json.dumps(encode(start())) + f"\n{line}\n" + json.dumps(encode(end())) + "\n")
    with pytest.raises(ConfigError) as refusal:
        journal.read(tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / journal.NAME}: ")
    assert said in message
    assert "\n" not in message


def test_bytes_that_are_no_text_are_damage(tmp_path):
    (tmp_path / journal.NAME).write_bytes(b'{"kind": "\xff\xfe"}\n')
    with pytest.raises(ConfigError, match="damaged"):
        journal.read(tmp_path)


def test_exists_needs_a_whole_record(tmp_path):
    assert not journal.exists(tmp_path)
    (tmp_path / journal.NAME).write_bytes(b'{"kind": "start"')
    assert not journal.exists(tmp_path)
    with Journal(tmp_path) as book:
        assert not journal.exists(tmp_path)
        book.write(start())
        assert journal.exists(tmp_path)


def test_a_folder_without_a_journal_has_no_records(tmp_path):
    assert journal.read(tmp_path) == Run()
    assert journal.read(tmp_path / "none") == Run()
    assert not journal.exists(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a run folder"):
        journal.started(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        journal.started(tmp_path / "none")


def test_a_concurrent_reader_sees_whole_records_only(tmp_path):
    seen = [0]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
        while writer.poll() is None:
            found = numbers(tmp_path)
            assert found == list(range(len(found)))
            seen.append(len(found))
            time.sleep(0.001)
        assert writer.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, "the reader was never at work beside the writer"
    assert len(numbers(tmp_path)) == 150


def test_what_follows_is_read_from_where_the_last_reading_ended(tmp_path):
    with Journal(tmp_path) as book:
        book.write(start())
        first, seen = journal.read_from(tmp_path, 0)
        assert journal.read_from(tmp_path, seen) == ([], seen)
        book.write(epoch(1, 0.5))
        then, later = journal.read_from(tmp_path, seen)
    assert (first, then) == ([start()], [epoch(1, 0.5)])
    assert later == (tmp_path / journal.NAME).stat().st_size


def test_each_line_is_one_flat_json_object(tmp_path):
    with Journal(tmp_path) as book:
        book.write(start(command="a\nb"))
        book.write(epoch(1, 0.5))
        book.write(end(**{"test/iou": 0.25}))
    lines = [json.loads(line) for line in (tmp_path / journal.NAME).read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["start", "epoch", "end"]
    assert (lines[1]["val/iou"], lines[2]["test/iou"]) == (0.5, 0.25)


def test_a_journal_without_a_record_is_no_file(tmp_path):
    with Journal(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
