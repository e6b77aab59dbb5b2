"""Work that nobody waits for: one thread sends what MLflow is to have."""

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
        """Have the job done, and return at once; one that waits under the same name is replaced."""
        with self._wanted:
            self._jobs[what] = job
            self._wanted.notify()

    def close(self, seconds: float | None = None) -> str | None:
        """Send the rest, wait for it but once, and return what went wrong, if anything did.

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
                    log.warning("MLflow: %s Training goes on; what is missing is sent later.", short(error))
                failed[what] = short(error)
            self.error = next(iter(failed.values()), None)
