"""Servers of a test's own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class PostgreSQL:
    """Started and stopped at will; `address` is what a sweep is told, with the password `secret`."""

    def __init__(self, folder: str, programs: Path, user: str | None):
        self.folder, self._programs, self._user = folder, programs, user
        self.address = f"postgresql+psycopg://me:secret@/postgres?host={folder}"
        self._call("initdb", "-U", "me", "-A", "trust")

    def start(self) -> None:
        self._call("pg_ctl", "-w", "-o", f"-k {self.folder} -c listen_addresses=''", "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def _call(self, program: str, *argv: str) -> None:
        command = [self._programs / program, "-D", f"{self.folder}/db", *argv]
        quiet = subprocess.DEVNULL
        subprocess.run(command, user=self._user, cwd=self.folder, check=True, stdout=quiet, stderr=quiet)


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Run a server of PostgreSQL, if there is one to be had."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
    found = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    if not any(found):
        pytest.skip("needs PostgreSQL's initdb")
    programs = Path(next(filter(None, found))).resolve().parent
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for a socket, and closed to another user
        if user:
            shutil.chown(folder, user)
        made = PostgreSQL(folder, programs, user)
        made.start()
        try:
            yield made
        finally:
            made.stop()
