"""Print what pyproject.toml requires, a line each; with --lowest the lowest versions, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    name, version = re.match(r"([\w-]+)(?:\[[^]]*])?(?:>=|==)([\w.]+)", requirement).groups()
    print(f"{name}=={version}" if "--lowest" in sys.argv else requirement)
