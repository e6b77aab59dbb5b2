"""The journal of a run: one record of `segsweep.runs.records` per line. All other records can be made from it."""

import base64
import json
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from segsweep.errors import ConfigError, named_by
from segsweep.paths import atomically, load_json, nan_to_none
from segsweep.runs.records import EpochRecord, Record, Run, decode, encode

NAME = "metrics.jsonl"
PACKED = ("train/loss", "val/loss", "val/iou", "perf/seconds", "perf/images_per_s")  # of an epoch, in short


class Journal:
    """Appends records to `<folder>/metrics.jsonl`, cutting a torn last line first. The caller holds its lock.

    Without a record there is no file.
    """

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._file: BinaryIO | None = None
        cut_torn_line(self._path)

    def write(self, record: Record) -> Record:
        """Append one record, synced to disk, and return it as `read` does; an invalid record is not written."""
        line = _line(record)
        seen = decode(json.loads(line), self._path)
        self._file = self._file or self._path.open("ab")
        with named_by(self._path):
            self._file.write(line.encode() + b"\n")  # readers take lines up to the last newline
            self._file.flush()
            os.fsync(self._file.fileno())
        return seen

    def close(self) -> None:
        if self._file:
            with named_by(self._path):
                self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cut_torn_line(path: Path) -> None:
    """Cut a file of lines back to its last newline: a killed writer may have left half a line."""
    if path.exists():
        os.truncate(path, len(_whole_lines(path)))


def below(folder: Path) -> list[Path]:
    """List the folders in or below a folder that have a journal, empty ones included."""
    return sorted(path.parent for path in folder.rglob(NAME))


def some_below(folder: Path) -> list[Path]:
    """List the folders of the runs in or below a folder; ConfigError if there are none."""
    found = list(filter(exists, below(folder)))
    if not found:
        raise ConfigError(f"{folder}: contains no run: there is no {NAME} in it or below it.")
    return found


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


def size(folder: Path) -> int:
    """Return how many bytes of whole records a folder's journal has; 0 where there is none."""
    return len(_whole_lines(folder / NAME))


def read_from(folder: Path, seen: int) -> tuple[list[Record], int]:
    """Read the whole records after the first `seen` bytes, and return how many bytes have then been seen.

    ConfigError if one of them is damaged, or of another format.
    """
    path = folder / NAME
    whole, records = _whole_lines(path, seen), []
    for line in whole.splitlines():
        try:
            plain = load_json(line)
        except ValueError as error:
            raise ConfigError(f"{path}: damaged: a line is not valid JSON: {error}") from error
        records.append(decode(plain, path))
    return records, seen + len(whole)


def restore(folder: Path, run: Run) -> None:
    """Write a run's records into a folder that has no journal."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{_line(record)}\n" for record in run.records)
    atomically(folder / NAME, lambda target: target.write_text(text, encoding="utf-8"))


def packed(run: Run) -> str:
    """Return as a short text what reports need of a run, for where its folder cannot be reached."""
    records = [
        replace(r, metrics={n: r.metrics.get(n) for n in PACKED}) if isinstance(r, EpochRecord) else r
        for r in run.records
    ]
    lines = "\n".join(map(_line, records))
    return base64.b64encode(zlib.compress(lines.encode(), 9)).decode()


def unpacked(text: str) -> Run:
    """Return what `packed` gave; ConfigError: it is damaged, or of another format."""
    try:
        lines = zlib.decompress(base64.b64decode(text)).decode().splitlines()
        return Run([decode(load_json(line.encode()), Path("study")) for line in lines])
    except (ValueError, zlib.error) as error:
        raise ConfigError(f"the study: a trial's record is damaged: {error}") from error


def _line(record: Record) -> str:
    return json.dumps(nan_to_none(encode(record)), allow_nan=False)


def _whole_lines(path: Path, seen: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(seen)
            data = file.read()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]
