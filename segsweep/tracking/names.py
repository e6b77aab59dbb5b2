"""The name of a run in MLflow, and a description with its result. Standard library only."""

import re
import shlex
from collections.abc import Mapping

from segsweep.config.schema import places
from segsweep.paths import program
from segsweep.runs.records import Run, Start

LONGEST = 100  # characters of a name
NAMED = ("encoder", "encoder.name", "optim.lr")  # are in every name
# Say where things lie and what they run on; the data are the experiment's name.
UNSAID = places() | {"data", "resume", *NAMED}


def name(start: Start, number: int, varied: Mapping[str, str]) -> str:
    """Return a run's name, as `007-convnext_atto-lr3e-4-focal-epochs40`: what was typed beside encoder and rate, too.

    Args:
        varied: of a sweep's trial, what takes the place of that: typed values by key.
    """
    mantissa, _, exponent = f"{start.settings.optim.lr:.1e}".partition("e")
    parts = [f"{number:03d}", start.settings.encoder.name, f"lr{mantissa.removesuffix('.0')}e{int(exponent)}"]
    said = varied or dict(word.partition("=")[::2] for word in shlex.split(start.command) if "=" in word)
    for key, value in said.items():
        group, _, last = key.lstrip("+~").rpartition(".")
        if key.lstrip("+~") not in UNSAID and not key.startswith("hydra"):
            parts.append(f"{last if group else ''}{value}")
    return "-".join(parts)[:LONGEST]


def number(name: str) -> int:
    """Return the number that a name begins with; 0 where it begins with none."""
    found = re.match(r"\d+", name)
    return int(found[0]) if found else 0


def note(run: Run) -> str:
    """Return a description of a started run and its result, in Markdown."""
    start, end = run.starts[0], run.end
    lines = ["```", f"{program()} {start.command}".rstrip(), "```", ""]
    lines += [f"U-Net on `{start.settings.encoder.name}`, weights: **{start.weights_source}**.", ""]
    if end:
        results = [(name, v) for name, v in end.metrics.items() if "/" in name and v is not None]
        if results:
            lines += ["| metric | value |", "|---|---|", *(f"| {name} | {v:.4g} |" for name, v in results), ""]
        lines.append(f"{end.status}: {end.reason}")
    return "\n".join(lines)
