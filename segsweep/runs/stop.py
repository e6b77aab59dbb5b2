"""`segsweep stop`: a file in a folder asks the run or sweep there to end after the epoch. Standard library only."""

import os
from pathlib import Path

NAME = "stop"


def ask(folder: Path) -> None:
    """Ask the run or sweep in this folder, on any machine, to end after the current epoch."""
    path = folder / NAME
    path.touch()
    os.utime(path)


class Sign:
    """Tells whether a run or sweep has been asked to stop since this was made; older requests are over."""

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._before = self._time()

    def is_up(self) -> bool:
        return self._time() not in (None, self._before)

    def _time(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None
