"""Locks of folders, which end with their process. Standard library only."""

import fcntl
import os
import struct
import sys
from pathlib import Path

from segsweep.errors import ConfigError

LOCK = "lock"


class Lock:
    """Held as long as the process lives. ConfigError `refusal` if another process holds it; a `shared` one lets others
    share it.

    `lockf` and not `flock`, which forked loader workers would go on holding after a kill. Within one process a second
    `lockf` succeeds and closing either handle lets go: take it once.
    """

    def __init__(self, path: Path, refusal: str, shared: bool = False):
        self.path = path
        while True:
            self._file = self.path.open("a+")
            try:
                fcntl.lockf(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # EAGAIN or, on some systems, EACCES
                self._file.close()
                raise ConfigError(refusal) from None
            if self.path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                return
            self._file.close()  # its last holder removed it in between

    def release(self) -> None:
        self._file.close()


class FolderLock(Lock):
    """A folder whose lock is taken belongs to a living run, a training or another thing named by `what`."""

    def __init__(self, folder: Path, what: str = "training", shared: bool = False):
        super().__init__(
            folder / LOCK,
            f"{folder}: in use by a running {what}. Wait for it, or give another folder with "
            f"hydra.{'run' if what == 'training' else 'sweep'}.dir=DIR.",
            shared,
        )


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
