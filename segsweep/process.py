"""This process: its signals, stdout and stderr, and its message when it fails. Standard library only."""

import errno
import faulthandler
import io
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TextIO, cast

from segsweep.errors import ConfigError, DiskError, Terminated, of_the_disk, redacted, refused_by_system

UNFORESEEN = 70  # exit code of an error that nobody foresaw: EX_SOFTWARE of sysexits.h
DEBUG = "SEGSWEEP_DEBUG"  # a variable: where it is set, such an error is raised with its traceback
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def terminable() -> AbstractContextManager[None]:
    """Raise `Terminated` on SIGTERM and a closed terminal, while in this context."""

    def terminate(*_: object) -> None:
        raise Terminated

    return _handled(terminate)


def deaf() -> AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP pass, while in this context: what is written down is short, and then the process ends."""
    return _handled(signal.SIG_IGN)


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Handle SIGTERM and SIGHUP so, while in this context; what is ignored, as under nohup, stays so."""
    here = threading.current_thread() is threading.main_thread()  # elsewhere no signals arrive
    kinds = [kind for kind in (signal.SIGTERM, signal.SIGHUP) if here and signal.getsignal(kind) != signal.SIG_IGN]
    before = {kind: signal.signal(kind, handler) for kind in kinds}
    try:
        yield
    finally:
        for kind, earlier in before.items():
            signal.signal(kind, earlier)


class _Warnings(logging.Handler):
    """Prints what is logged as a line that a terminal may show."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(self.format(record))


WARNINGS = _Warnings(logging.WARNING)


class _Outliving:
    """A text stream that may fail, since its reader has gone or its disk is full: what cannot be written is dropped."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream  # None of a process that was started without one

    def write(self, text: str) -> int:
        try:
            if self._stream:
                self._stream.write(text)
        except UnicodeEncodeError as error:  # a file's name that is no text
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError):
            self._fail()
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream:
                self._stream.flush()
        except (OSError, ValueError):
            self._fail()

    def _fail(self) -> None:
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError, AttributeError):  # what it still holds goes nowhere, when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, cast(TextIO, stream).fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream or sys.__stderr__ or io.StringIO(), name)


@contextmanager
def ready(view: bool = False) -> Iterator[None]:
    """Make this process a command's, while in this context.

    Output that fails ends nothing; but a `view`, which only prints, ends with BrokenPipeError when nobody reads stdout.
    A fatal signal says in which line it hit, as SIGBUS where a file that is mapped has become shorter. Warnings of
    libraries, which are for their developers, are shown where they are asked for: `python -W default train.py`. Ours
    are printed as `complain` does.
    """
    logger = logging.getLogger("segsweep")
    outer = WARNINGS in logger.handlers  # one command may call another
    logger.addHandler(WARNINGS)
    for number in range(3):  # of a stream that was closed: else the next file gets it, and all that is printed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    warnings.filterwarnings("ignore", append=True)  # after what -W or pytest says
    if not faulthandler.is_enabled():  # as pytest's is
        faulthandler.enable(2)  # sys.stderr may be no file, as in a notebook
    stdout, stderr = sys.stdout, sys.stderr
    sys.stderr = cast(TextIO, _Outliving(stderr))
    if not view or stdout is None:
        sys.stdout = cast(TextIO, _Outliving(stdout))
    try:
        yield
    finally:
        if not outer:
            logger.removeHandler(WARNINGS)
        for stream in () if view else (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = stdout, stderr


def printable(text: str) -> str:
    """Return a text as a terminal may show it: what would command the terminal is escaped, passwords are left out."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), redacted(text))


def show(result: object) -> None:
    """Print a result on stdout."""
    print(printable(str(result)), flush=True)


def complain(text: str) -> None:
    """Print an error line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def failed(error: Exception) -> tuple[str, int]:
    """Return the line for an unexpected error, and the exit code.

    The traceback of one that nobody foresaw is kept in a file; where `SEGSWEEP_DEBUG` is set, the error is raised.
    """
    debugged = bool(os.environ.get(DEBUG))
    # Of `Path.resolve`, until Python 3.13.
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):
        error = OSError(errno.ELOOP, "", str(error).partition("from ")[2].strip("'"))
    if isinstance(error, RuntimeError) and str(error) == "Could not determine home directory.":
        return "~: there is no such user's folder. Type the whole path, or ~/ for your own.", ConfigError.exit_code
    if of_the_disk(error) or (isinstance(error, OSError) and error.errno is not None and not debugged):
        return refused_by_system(cast(OSError, error)), DiskError.exit_code
    if debugged:
        raise error
    kept = ""
    with suppress(OSError), tempfile.NamedTemporaryFile("w", prefix="segsweep-", suffix=".txt", delete=False) as file:
        file.write(redacted("".join(traceback.format_exception(error))))
        kept = f"Its traceback: {file.name}. "
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{line[:300]} This is a bug in segsweep. {kept}{DEBUG}=1 raises it.", UNFORESEEN
