"""How long to fuzz, and what of a process's memory and files it may take."""

import os
import resource
import time
from collections.abc import Callable, Iterator

import pytest

MEMORY = 12 << 30  # bytes of address space


@pytest.fixture
def in_time() -> Callable[[], bool]:
    """Tells whether there is time left: `SEGSWEEP_FUZZ` minutes for each test, by default one."""
    until = time.monotonic() + 60 * float(os.environ.get("SEGSWEEP_FUZZ", "1"))
    return lambda: time.monotonic() < until


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Refuse memory to whatever asks for very much of it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
