"""What a run is called, and what it is and gave, in words. Standard library only."""

import re
from collections.abc import Mapping

from segsweep.paths import program
from segsweep.runs.records import Run, Start

LONGEST = 100  # characters of a name
NAMED = ("encoder", "encoder.name", "optim.lr")  # are in every name


def name(start: Start, number: int, varied: Mapping[str, str]) -> str:
    """Return a run's name, as `007-convnext_atto-lr3e-4`, with what else was varied: typed values by key."""
    mantissa, _, exponent = f"{start.settings.optim.lr:.1e}".partition("e")
    parts = [f"{number:03d}", start.settings.encoder.name, f"lr{mantissa.removesuffix('.0')}e{int(exponent)}"]
    parts += [f"{key.rpartition('.')[2]}{value}" for key, value in varied.items() if key not in NAMED]
    return "-".join(parts)[:LONGEST]


def number(name: str) -> int:
    """Return the number that a name begins with; 0 where it begins with none."""
    found = re.match(r"\d+", name)
    return int(found[0]) if found else 0


def note(run: Run) -> str:
    """Return what a run is and gave, in Markdown; it has begun at least."""
    start, end = run.starts[0], run.end
    lines = ["```", f"{program()} {start.command}".rstrip(), "```", ""]
    lines += [f"U-Net on `{start.settings.encoder.name}`, weights: **{start.weights_source}**.", ""]
    if end:
        results = [(name, v) for name, v in end.metrics.items() if "/" in name and v is not None]
        if results:
            lines += ["| metric | value |", "|---|---|", *(f"| {name} | {v:.4g} |" for name, v in results), ""]
        lines.append(f"{end.status}: {end.reason}")
    return "\n".join(lines)
