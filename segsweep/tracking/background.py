"""One background thread that sends records to MLflow."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from segsweep.errors import short

log = logging.getLogger(__name__)


class Background:
    """Sends to MLflow in one thread, so that training never waits; `timeout`, in seconds, bounds `close`."""

    def __init__(self, timeout: float = 60.0):
        self._timeout = timeout
        self._jobs: dict[Any, Callable[[], Any]] = {}
        self._wanted = threading.Condition()
        self._closing = False
        self.error: str | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def ask(self, what: Any, job: Callable[[], Any]) -> None:
        """Queue the job and return at once; it replaces a waiting job of the same name."""
        with self._wanted:
            self._jobs[what] = job
            self._wanted.notify()

    def close(self, seconds: float | None = None) -> str | None:
        """Send the rest, wait for it only once, and return the error, if there was one.

        `seconds` bounds the wait instead of `timeout`.
        """
        longest = self._timeout if seconds is None else seconds
        with self._wanted:
            waited, self._closing = self._closing, True
            self._wanted.notify()
        if not waited:
            self._thread.join(longest)
        if self._thread.is_alive():
            key = "tracking.timeout=" if seconds is None else ""
            return f"MLflow took longer than {key}{longest:g} s."
        return self.error

    def _work(self) -> None:
        failed: dict[Any, str] = {}
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                what = next(iter(self._jobs))
                job = self._jobs.pop(what)
            try:
                job()
                failed.pop(what, None)
            except Exception as error:  # whatever a server does, training goes on and the journal has it all
                if not failed:
                    log.warning("MLflow: %s Training continues; segsweep sync sends the rest later.", short(error))
                failed[what] = short(error)
            self.error = next(iter(failed.values()), None)
