"""What a run is called, and what it is and gave, in words. Standard library only."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 100  # characters of a name
NAMED = ("encoder", "encoder.name", "optim.lr")  # are in every name


def name(start: Mapping[str, Any], number: int, varied: Mapping[str, str]) -> str:
    """A run's name, as `007-convnext_atto-lr3e-4`, with what else was varied.

    Args:
        start: the run's first record.
        varied: values by key, as they would be typed.
    """
    config = start["config"]
    parts = [f"{number:03d}", config["encoder"]["name"], f"lr{_rate(config['optim']['lr'])}"]
    parts += [f"{key.rpartition('.')[2]}{value}" for key, value in varied.items() if key not in NAMED]
    return "-".join(parts)[:LONGEST]


def number(name: str) -> int:
    """That a name begins with; 0 where it begins with none."""
    found = re.match(r"\d+", name)
    return int(found[0]) if found else 0


def note(records: Sequence[Mapping[str, Any]]) -> str:
    """What the run is and gave, in Markdown."""
    start, end = records[0], records[-1]
    lines = ["```", f"python train.py {start['command']}".rstrip(), "```", ""]
    lines += [f"U-Net on `{start['config']['encoder']['name']}`, weights: **{start['weights_source']}**.", ""]
    results = [(k, v) for k, v in end.items() if end["kind"] == "end" and "/" in k and isinstance(v, int | float)]
    if results:
        lines += ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in results), ""]
    if end["kind"] == "end":
        lines += [f"{end['status']}: {end['reason']}"]
    return "\n".join(lines)


def _rate(lr: float) -> str:
    mantissa, _, exponent = f"{lr:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
