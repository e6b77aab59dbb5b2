"""Record which code ran, and which user ran it."""

import getpass
import os
import re
import subprocess

from segsweep.paths import INSTALLED, ROOT

# Names of files that hold secrets.
SECRET = re.compile(
    r"(^|/)(\.env[^/]*|\.netrc|\.pgpass|\.npmrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)[^/]*)$"
    r"|\.(env|pem|key|p12|pfx|jks|kdbx?|gpg)$|[^/]*(secret|credential|passw|token|api_?key)[^/]*$",
    re.IGNORECASE,
)


def code() -> tuple[str | None, bool, str]:
    """The checkout's commit, whether anything differs from it, and how; None, False and "" where there is none.

    Files that look as if they held secrets are left out of the difference, which says so.
    """
    if INSTALLED:  # git would tell of whatever project the environment lies in
        return None, False, ""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, timeout=20, check=True).stdout.decode(errors="replace")

    try:
        commit, changes = git("rev-parse", "HEAD").strip(), git("status", "--porcelain")
        secret = [name for name in git("diff", "HEAD", "--name-only", "-z").split("\0") if SECRET.search(name)]
        apart = [f":(exclude,top,literal){name}" for name in secret]
        said = f"# left out, because their names look like names of secrets: {', '.join(secret)}\n" if secret else ""
        return commit, bool(changes), said + git("diff", "HEAD", "--no-ext-diff", "--", ":(top)", *apart)
    except (OSError, subprocess.SubprocessError):
        return None, False, ""


def user() -> str:
    """The user's name, or number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
