"""The journal: what a run did, one JSON object a line in `metrics.jsonl`. It is the truth; all else is a view.

Three kinds of record, each flat but for `start`'s `config`:

- `start`: format version, configuration, command, commit, and everything that was chosen by timing or memory;
- `epoch`: `epoch` (from 1) and the metrics by name;
- `end`: `status` (complete | stopped | failed) and `reason`.

A resumed run appends another `start`. Non-finite numbers are `null`. Standard library only.
"""

import fcntl
import json
import math
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from segsweep.errors import ConfigError

VERSION = 1
NAME = "metrics.jsonl"
LOCK = "lock"


class Journal:
    """Appends records to `<folder>/metrics.jsonl`.

    Opening cuts a torn last line, which a killed writer may have left. The caller holds the folder's lock.
    """

    def __init__(self, folder: Path):
        cut_torn_line(folder / NAME)
        self._file = (folder / NAME).open("ab")

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one record, durably, and return it as a reader would see it."""
        line = json.dumps(finite({"kind": kind, **fields}), allow_nan=False)
        self._file.write(line.encode() + b"\n")  # readers take lines up to the last newline
        self._file.flush()
        os.fsync(self._file.fileno())
        return json.loads(line)

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
    """Whether the folder holds a journal with at least one whole record."""
    return bool(_whole_lines(folder / NAME))


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole records of the folder's journal, oldest first; empty where there is none.

    Raises:
        ConfigError: of a later format.
    """
    records, _ = read_from(folder, 0)
    version = records[0].get("version", VERSION) if records else VERSION
    if version > VERSION:
        raise ConfigError(
            f"{folder / NAME}: of format {version}, this segsweep reads up to {VERSION}. Update segsweep."
        )
    return records


def read_from(folder: Path, seen: int) -> tuple[list[dict[str, Any]], int]:
    """The whole records after the first `seen` bytes, and how many bytes have then been seen."""
    try:
        with (folder / NAME).open("rb") as file:
            file.seek(seen)
            data = file.read()
    except FileNotFoundError:
        return [], seen
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], seen + len(whole)


def alive(folder: Path) -> bool:
    """Whether another process trains in this folder. Never ask within that process: asking would free its lock."""
    return holder(folder / LOCK) is not None


def holder(path: Path) -> int | None:
    """The other process that has locked the file with `lockf`; None if none has, or there is no such file."""
    darwin = sys.platform == "darwin"
    kinds = "qqihh" if darwin else "hhqqi"  # struct flock: start, length, process, type, whence; or type, whence first
    asked = (0, 0, 0, fcntl.F_WRLCK, 0) if darwin else (fcntl.F_WRLCK, 0, 0, 0, 0)
    try:
        with path.open("rb") as file:
            answer = struct.unpack(kinds, fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(kinds, *asked)))
    except FileNotFoundError:
        return None
    kind, process = (answer[3], answer[2]) if darwin else (answer[0], answer[4])
    return None if kind == fcntl.F_UNLCK else process


def epochs(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `epoch` records, oldest first."""
    return [record for record in records if record["kind"] == "epoch"]


def last_start(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The latest `start` record; empty without records."""
    return next((record for record in reversed(records) if record["kind"] == "start"), {})


def usual(epochs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The median over the epochs after the first, which warms up; None where nothing is known."""
    values = [record[name] for record in epochs if record.get(name) is not None]
    return median(values[1:] or values) if values else None


def _whole_lines(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def finite(value: Any) -> Any:
    """Non-finite numbers become None, however deep."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


class Lock:
    """Held as long as the process lives.

    `lockf` and not `flock`, which forked loader workers would go on holding after a kill. Within one process a second
    `lockf` succeeds and closing either handle lets go: take it once.

    Args:
        path: in a folder that is there.
        refusal: what to say when another process holds it.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, path: Path, refusal: str):
        self.path = path
        while True:
            self._file = self.path.open("a")
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # EAGAIN or, on some systems, EACCES
                self._file.close()
                raise ConfigError(refusal) from None
            if self.path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                return
            self._file.close()  # its last holder removed it in between

    def release(self) -> None:
        self._file.close()


class FolderLock(Lock):
    """A folder whose lock is taken belongs to a living run.

    Args:
        folder: there must be one.
        what: lives in it, for the error.
    """

    def __init__(self, folder: Path, what: str = "training"):
        super().__init__(
            folder / LOCK,
            f"{folder}: in use by a running {what}. Wait for it, or give another folder with "
            f"hydra.{'run' if what == 'training' else 'sweep'}.dir=DIR.",
        )
