"""Paths, atomic writing, and quoting for the shell. Everything that a run writes is below `outputs()`."""

import fcntl
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segsweep.errors import named_by

PACKAGE = Path(__file__).resolve().parent
# What lies beside the package in a checkout lies inside it once it is installed from a wheel.
INSTALLED = (PACKAGE / "conf").is_dir()
ROOT = PACKAGE if INSTALLED else PACKAGE.parent  # of conf/, sweeps/ and docs/
BEST = "best.safetensors"  # in a run's folder: the model of its best epoch


def outputs() -> Path:
    """`$SEGSWEEP_OUTPUTS`, by default `outputs/` in the working folder; absolute."""
    return Path(os.environ.get("SEGSWEEP_OUTPUTS") or "outputs").resolve()


def program() -> str:
    """Return the command that trains here: `python train.py` in a checkout, else the installed command."""
    return "segsweep train" if INSTALLED or Path.cwd() != ROOT else "python train.py"


def speaker() -> str:
    """Return the name that errors of `program()` begin with."""
    return "train.py" if program().endswith(".py") else "segsweep"


def extra(name: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'segsweep[{name}]'" if INSTALLED else f"pip install -e '.[{name}]'"


def cache() -> Path:
    """Return the folder of decoded data sets and generated images; it may be deleted at any time."""
    return outputs() / "cache"


def is_pattern(path: object) -> bool:
    """Tell whether a path contains stars or question marks, and is not an existing file or folder."""
    return bool(set("*?") & set(str(path))) and not Path(str(path)).expanduser().exists()


def quoted(value: object) -> str:
    """Return a text as a value of Hydra's override grammar that is read as this very text.

    As it is where the grammar gives nothing in it a meaning. Else in quotes: `${` is no interpolation then, a comma no
    sweep, `null`, `1e3` and an empty text stay texts, and letters beyond ASCII, which the grammar has not, pass.
    """
    text = str(value)
    if re.fullmatch(r"(?!(true|false|null|inf|nan)$)([a-z_]|\.{0,2}/)[\w./:-]*", text, re.ASCII | re.IGNORECASE):
        return text
    text = literal(text)
    # Only backslashes before a quote are read as escapes, the closing quote's among them.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def literal(text: str) -> str:
    """Return a text as OmegaConf keeps it: what looks like an interpolation is none."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def for_shell(word: str) -> str:
    """Quote a word for a POSIX shell; in double quotes where it has single ones and nothing that means more there."""
    return f'"{word}"' if "'" in word and not re.search(r"[$`\"!]|\\(?!')", word) else shlex.quote(word)


def override(key: str, value: object) -> str:
    """Return `KEY=VALUE` as one types it in a shell: quoted for Hydra's grammar, then for the shell."""
    return for_shell(f"{key}={quoted(value)}")


def beside(path: Path) -> Path:
    """Make an empty file beside `path`, to be written and moved there; a link in its place is removed, not followed."""
    target = path.with_name(f"{path.name}.writing")
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return target


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a file beside `path`, and move it there when it is written: readers see the old or the new one, whole."""
    target = beside(path)
    try:
        with named_by(path):
            yield target
            sync(target)
        target.replace(path)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file, which is then moved to `path`, whole."""
    with aside(path) as target:
        write(target)


def nan_to_none(value: Any) -> Any:
    """Replace numbers that are not finite by None, however deep: JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: nan_to_none(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(item) for item in value]
    return value


def save_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def save_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically: NaN becomes null."""
    save_text(path, json.dumps(nan_to_none(value), indent=1, allow_nan=False) + "\n")


def load_json(text: str | bytes) -> Any:
    """Parse JSON that `save_json` may have written.

    Raises ValueError: it is none, is nested too deep, or holds NaN or Infinity.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deep.") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number in JSON.")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process (or thread) at a time, by a lock file that stays; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_once(target: Path, whole: Callable[[Path], bool], write: Callable[[Path], None]) -> Path:
    """Have `write` make the folder `target` unless it is there and `whole`. Safe for many processes at once.

    It is written beside its place and moved there when done: a killed writer leaves nothing that looks finished.
    """
    with locked(target.with_name(f"{target.name}.lock")):
        if not whole(target):
            making = target.with_name(f"{target.name}.making")
            for stale in (making, target):
                shutil.rmtree(stale, ignore_errors=True)
            making.mkdir(parents=True)
            try:
                write(making)
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
                raise
            sync(making)
            making.rename(target)
            sync(target.parent)
    return target


def reserve(path: Path) -> None:
    """Have the system set the whole file's room aside; OSError where there is none.

    Writing into a map of a file with holes would kill the process on a full disk.
    """
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to disk now: a power cut leaves it whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
