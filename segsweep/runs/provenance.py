"""Record which code ran, and which user ran it."""

import getpass
import os
import re
import subprocess

from segsweep.paths import INSTALLED, ROOT

NAMED = 20  # new files at most that are named
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
        new = [
            name for name in git("ls-files", "--others", "--exclude-standard", "--directory", "-z").split("\0") if name
        ]
        shown = ", ".join(new[:NAMED]) + (", ..." if len(new) > NAMED else "")
        said = f"# new files, which are not recorded here: {shown}\n" if new else ""
        if secret:
            said += f"# left out, because their names look like names of secrets: {', '.join(secret)}\n"
        return commit, bool(changes), said + git("diff", "HEAD", "--no-ext-diff", "--", ":(top)", *apart)
    except (OSError, subprocess.SubprocessError):
        return None, False, ""


def user() -> str:
    """The user's name, or number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
