"""Print every difference between two recordings of one machine; exit with 1 if there is one.

    python tests/goldens/compare.py A.json B.json

Scores may differ by 1e-12, since sums may be taken in another order. Losses, hashes of weights and everything that was
decided must be equal. `record.py` says how the files are made.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 1e-12
MISSING = "(not there)"


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """A line for each value that is not the same in both."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from differences(before.get(name, MISSING), after.get(name, MISSING), f"{where} > {name}".strip(" >"))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{where}[{i}]")
    elif not same(before, after, where):
        yield f"{where}: {json.dumps(before)} -> {json.dumps(after)}"


def same(before: Any, after: Any, where: str) -> bool:
    """Whether two values are equal; scores, which are floats that are no losses, within `TOLERANCE`."""
    if isinstance(before, float) and isinstance(after, float) and "loss" not in where.rpartition(" > ")[2]:
        return abs(before - after) <= TOLERANCE
    return type(before) is type(after) and before == after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    options = parser.parse_args()
    found = list(differences(*(json.loads(path.read_text(encoding="utf-8")) for path in vars(options).values())))
    print("\n".join(found) if found else "no difference")
    sys.exit(bool(found))
