"""Print what pyproject.toml requires, a line each; with --lowest the lowest versions, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path


def requirements(extras: bool = False) -> list[str]:
    """Return what pyproject.toml requires; with `extras`, of those, too, but for the development's own."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"] if extras else {}
    shipped = [each for name, needed in optional.items() if name not in ("dev", "bench") for each in needed]
    return [*project["dependencies"], *shipped]


def lowest(requirement: str) -> tuple[str, str]:
    """Return the name and the lowest version of a requirement."""
    found = re.match(r"([\w-]+)(?:\[[^]]*])?(?:>=|==)([\w.]+)", requirement)
    assert found, f"{requirement}: must name its lowest version"
    return found[1], found[2]


if __name__ == "__main__":
    for each in requirements():
        print("==".join(lowest(each)) if "--lowest" in sys.argv else each)
