"""Which code ran, and who ran it."""

import getpass
import os
import subprocess

from segsweep.paths import INSTALLED, ROOT


def code() -> tuple[str | None, bool, str]:
    """The checkout's commit, whether anything differs from it, and how; None, False and "" where there is none."""
    if INSTALLED:  # git would tell of whatever project the environment lies in
        return None, False, ""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, timeout=20, check=True).stdout.decode(errors="replace")

    try:
        commit, changes = git("rev-parse", "HEAD").strip(), git("status", "--porcelain")
        return commit, bool(changes), git("diff", "HEAD", "--no-ext-diff")
    except (OSError, subprocess.SubprocessError):
        return None, False, ""


def user() -> str:
    """The user's name, or number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
