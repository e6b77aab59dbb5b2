"""Say which known security holes what is installed has, and what pyproject.toml allows; exit code 1 if there are any.

    python .ci/audit.py     # make audit

`pip-audit`, where it is installed and its service answers, knows all that is published. Without it `advisories.csv`
counts: holes of our dependencies, by affected versions, as they were known on 2026-11-29. Each is described at
https://osv.dev/vulnerability/ID.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from requirements import lowest, requirements

KNOWN = Path(__file__).with_name("advisories.csv")


def holes(name: str, version: str) -> Iterator[str]:
    """Yield the known holes of a package in a version."""
    with KNOWN.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["package"] != canonicalize_name(name):
                continue
            if SpecifierSet(row["affected"]).contains(version, prereleases=True):
                yield f"{name} {version}: {row['id']} ({row['published']}), {row['affected']}: {row['what']}"


def allowed() -> list[str]:
    """Return the holes of the lowest versions that pyproject.toml allows."""
    return [hole for each in requirements(extras=True) for hole in holes(*lowest(each))]


def installed() -> list[str]:
    """Return the holes of what is installed here, as the list knows them."""
    return [hole for each in distributions() for hole in holes(each.metadata["Name"], each.version)]


def published() -> list[str] | None:
    """Return the holes of what is installed here that are published; None where nobody can be asked."""
    if find_spec("pip_audit") is None:
        return None
    options = ["--local", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True, check=False)
    try:
        found = [each for each in json.loads(done.stdout)["dependencies"] if "skip_reason" not in each]
    except (ValueError, KeyError):
        return None
    if not found:  # a service that knows none of them says that there are no holes
        return None
    return [f"{each['name']} {each['version']}: {hole['id']}" for each in found for hole in each.get("vulns", [])]


def main() -> int:
    asked = published()
    found = [*allowed(), *(installed() if asked is None else asked)]
    source = "was not asked: the list counts for what is installed, too" if asked is None else "says what is installed"
    print("\n".join([*found, f"{len(found)} known holes; pip-audit {source}"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
