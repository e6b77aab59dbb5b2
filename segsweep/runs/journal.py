"""The journal: what a run did, one record of `segsweep.runs.records` a line. It is the truth; all else is a view."""

import json
import os
from pathlib import Path

from segsweep.errors import ConfigError
from segsweep.paths import load_json, nan_to_none
from segsweep.runs.records import Record, Run, decode, encode

NAME = "metrics.jsonl"


class Journal:
    """Appends records to `<folder>/metrics.jsonl`, cutting a torn last line first. The caller holds its lock."""

    def __init__(self, folder: Path):
        self._path = folder / NAME
        cut_torn_line(self._path)
        self._file = self._path.open("ab")

    def write(self, record: Record) -> Record:
        """Append one record, durably, and return it as a reader will see it; what no reader takes is not written."""
        line = json.dumps(nan_to_none(encode(record)), allow_nan=False)
        seen = decode(json.loads(line), self._path)
        self._file.write(line.encode() + b"\n")  # readers take lines up to the last newline
        self._file.flush()
        os.fsync(self._file.fileno())
        return seen

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cut_torn_line(path: Path) -> None:
    """Cut a file of lines back to its last newline: a killed writer may have left half a line."""
    if path.exists():
        os.truncate(path, len(_whole_lines(path)))


def exists(folder: Path) -> bool:
    """Tell whether the folder holds a journal with at least one whole record."""
    return bool(_whole_lines(folder / NAME))


def read(folder: Path) -> Run:
    """Read all whole records of the folder's journal; a run without records where there is none."""
    return Run(read_from(folder, 0)[0])


def started(folder: Path) -> Run:
    """Read the journal of a run that has at least begun; ConfigError if there is none."""
    run = read(folder)
    if run.start is None:
        what = "not a run folder" if folder.is_dir() else "no such folder"
        raise ConfigError(f"{folder}: {what}. It must hold {NAME} of an earlier run.")
    return run


def read_from(folder: Path, seen: int) -> tuple[list[Record], int]:
    """Read the whole records after the first `seen` bytes, and return how many bytes have then been seen.

    ConfigError if one of them is damaged, or of a later format.
    """
    path = folder / NAME
    whole, records = _whole_lines(path, seen), []
    for line in whole.splitlines():
        try:
            plain = load_json(line)
        except ValueError as error:
            raise ConfigError(f"{path}: damaged: a line is no JSON: {error}") from error
        records.append(decode(plain, path))
    return records, seen + len(whole)


def _whole_lines(path: Path, seen: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(seen)
            data = file.read()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]
