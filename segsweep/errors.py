"""Errors that the user can fix. Each has an exit code of `train.py`, and is printed without a traceback."""

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

# A password after a user's name, or a token in that place, and options that are called like secrets.
SECRETS = re.compile(
    r"(?<=://)(?P<user>[^\s/:@'\"]*):[^\s'\"]*@|(?<=://)[\w.~-]{20,}@"
    r"|(?P<option>[?&;][\w.-]*(?:passw|pwd|token|secret|api[_-]?key|access[_-]?key|signature|credential)[\w.-]*=)[^&;\s'\"#]+",
    re.IGNORECASE,
)
Failure = Literal["config", "data", "out_of_memory", "non_finite", "disk", "crash"]
# What the system says where there is no room, and where nothing can be written, whatever it is.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK = FULL | {errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM}


class ConfigError(Exception):
    """An error that the user can fix: what must hold, what came, what to type."""

    exit_code = 2  # command line, configuration, a folder in use or holding a journal
    failure: Failure = "config"  # as records name it


class DataError(ConfigError):
    exit_code, failure = 3, "data"  # anything that is wrong with the data


class OutOfMemoryError(ConfigError):
    exit_code, failure = 4, "out_of_memory"  # the device's memory is too small for the batch


class NonFiniteError(ConfigError):
    exit_code, failure = 5, "non_finite"  # NaN or infinity in the loss


class SweepError(ConfigError):
    exit_code = 6  # too many trials of a sweep failed


class DiskError(ConfigError):
    exit_code, failure = 7, "disk"  # the file system refuses: a full disk, a folder that may not be written


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; like `KeyboardInterrupt`, it is not caught by `except Exception`."""


class Asked(BaseException):
    """`segsweep stop` asks a run or sweep to end. Like `Terminated`, it is not caught by `except Exception`."""

    def __str__(self) -> str:
        return "asked to (segsweep stop)"


def closest(word: str, known: Iterable[str], *, n: int = 1) -> list[str]:
    """Return the `n` known words that are most similar to `word`, best first, ignoring case; empty if none is close."""
    by_lower = {name.lower(): name for name in known}
    return [by_lower[match] for match in get_close_matches(word.lower(), by_lower, n=n, cutoff=0.6)]


def suggestion(word: str, known: Iterable[str], before: str = "Closest: ", *, n: int = 1) -> str:
    """Return the sentence at an error's end that names the closest known words; empty if none is close."""
    near = closest(word, known, n=n)
    return f" {before}{', '.join(near)}." if near else ""


def one_of(name: str, value: Any, allowed: Collection[str], shown: str = "") -> None:
    """Raise ConfigError, with the closest allowed value, if a key's value is not allowed."""
    if value not in allowed:
        hint = suggestion(str(value), allowed, f"Try {name}=")
        raise ConfigError(f"{name}={value}: must be one of {shown or ', '.join(allowed)}.{hint}")


def unwritable(place: Path, error: OSError, other: str) -> ConfigError:
    """Say that an output cannot be written, and what to give instead: another FILE or DIR."""
    return ConfigError(f"-o {place}: cannot be written: {first_line(error)} Give another -o {other}.")


def of_the_disk(error: BaseException) -> bool:
    """Tell whether the file system refuses to write anything (full, read-only, quota)."""
    return isinstance(error, OSError) and error.errno in DISK


def refused_by_system(error: OSError) -> str:
    """Return one sentence: which file the system refuses, and why."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{os.strerror(error.errno or 0)}."


def as_disk_error(error: BaseException) -> BaseException:
    """Return a DiskError if the file system refused to write, and any other error unchanged."""
    return DiskError(refused_by_system(error)) if isinstance(error, OSError) and of_the_disk(error) else error


@contextmanager
def named_by(path: Path) -> Iterator[None]:
    """Add this file's name to a system error that names no file, such as one from an open file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


def unloaded(error: BaseException) -> str:
    """Return why torch did not load a file, without torch's advice to let the file run code."""
    if isinstance(error, UnpicklingError):
        return "it is damaged, or it holds more than tensors and plain values. segsweep never runs code from a file."
    return first_line(error)


def redacted(text: str) -> str:
    """Return a text without the passwords and tokens that are in its URIs."""

    def hidden(found: re.Match[str]) -> str:
        if found["option"]:
            return f"{found['option']}***"
        return f"{found['user']}:***@" if found["user"] is not None else "***@"

    return SECRETS.sub(hidden, text)


def first_line(error: BaseException) -> str:
    """Return the first sentence of another library's error, without passwords; its type if it has no text."""
    lines = redacted(str(error).strip() or type(error).__name__).splitlines()
    line = next((line for line in lines if not line.startswith("(raised as a result of")), lines[0])  # SQLAlchemy's
    return line if line.endswith(".") else f"{line}."


def short(error: BaseException) -> str:
    """Return another library's error in at most 200 characters."""
    line = first_line(error)
    return line if len(line) < 200 else f"{line[:200]}..."
