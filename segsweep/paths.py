"""Where things lie. Everything a run writes lies under `outputs()`, so that one variable moves it all."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def outputs() -> Path:
    """`$SEGSWEEP_OUTPUTS`, by default `outputs/` in the checkout; absolute."""
    return Path(os.environ.get("SEGSWEEP_OUTPUTS") or CHECKOUT / "outputs").resolve()


def cache() -> Path:
    """Decoded data sets and generated images; may be deleted at any time."""
    return outputs() / "cache"


def quoted(path: object) -> str:
    """As a value in Hydra's override grammar; as it is where nothing in it has a meaning there."""
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("'", "\\'") + "'"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process (or thread) at a time, by a lock file that stays; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(target: Path, marker: str, write: Callable[[Path], None]) -> Path:
    """Have `write` make the folder `target` unless it holds `marker`. Safe for many processes at once.

    It is written beside its place and moved there when whole: a killed writer leaves nothing that looks finished.
    """
    with locked(target.with_name(f"{target.name}.lock")):
        if not (target / marker).exists():
            making = target.with_name(f"{target.name}.making")
            for stale in (making, target):
                shutil.rmtree(stale, ignore_errors=True)
            making.mkdir(parents=True)
            try:
                write(making)
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
                raise
            making.rename(target)
    return target
