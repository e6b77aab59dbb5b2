"""`segsweep encoders`: timm's encoders, what they cost, how they are run, and how their weights were made."""

import csv
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from segsweep.errors import ConfigError
from segsweep.process import show

if TYPE_CHECKING:
    from segsweep.catalog import Pretraining

HELP = "list timm's encoders: size, cost, strides, and how their pretrained weights were made"
COLUMNS = ("encoder", "parameters", "gflop", "decoder_share", "strides", "channels", "input_size")


def arguments(parser: ArgumentParser) -> None:
    named = "a pattern such as 'convnext*', or of weights '*.dino*' (default: all)"
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=named)
    parser.add_argument("--weights", action="store_true", help="the weights alone, a line each")
    parser.add_argument("--csv", action="store_true", help="as CSV")


def run(options: Namespace) -> int:
    """Print the encoders that match the pattern, and their weights; what timm has beyond the census is measured."""
    from segsweep import catalog, console

    names = catalog.matching(options.pattern)
    weights = _weights(options.pattern, names)
    if options.weights and options.csv:
        _write(list(vars(catalog.Pretraining(""))), [vars(made) for made in weights])
        return 0
    told = _told(weights)
    if options.weights:
        show(told)
        return 0
    counted = catalog.counted()
    missing = [name for name in names if name not in counted]
    if missing:
        from segsweep.nn.survey import surveys  # torch and timm: seconds

        for name in console.bar(missing, len(missing), "measuring"):
            counted |= surveys([name])  # nothing of one that the installed timm lacks
    rows = [{**counted[name], "pretrained": " ".join(catalog.tags(name))} for name in names if name in counted]
    if not rows:
        raise ConfigError(f"{options.pattern}: the installed timm has none of {', '.join(names[:3])}. Update timm.")
    if options.csv:
        _write([*COLUMNS, "pretrained"], rows)
        return 0
    shown = [
        {
            "encoder": row["encoder"],
            "params/M": f"{float(row['parameters']):8.1f}",
            "GFLOP": f"{float(row['gflop']):6.1f}",
            "decoder": f"{100 * float(row['decoder_share']):4.0f} %",
            "runs at": row["input_size"],
            "strides": row["strides"],
        }
        for row in rows
    ]
    about = "GFLOP: forward pass of the U-Net at 256x256 pixels; decoder: its share of the GFLOP."
    show(f"{console.columns(shown)}\n\n{about}\n\n{told}")
    return 0


def _weights(pattern: str, names: Sequence[str]) -> "list[Pretraining]":
    """Return the sets of weights that the pattern names, or else all of the encoders'."""
    from segsweep import catalog

    wanted, of = pattern.lower(), set(names)
    every = [made for made in catalog.pretrainings().values() if made.weights.partition(".")[0] in of]
    return [made for made in every if "." in wanted and fnmatchcase(made.weights, wanted)] or every


def _told(weights: "Sequence[Pretraining]") -> str:
    from segsweep import console

    rows = [{"pretrained weights": f"{made.weights}{' *' * bool(made.default)}", **made.columns} for made in weights]
    if not rows:
        return "timm has no pretrained weights for it"
    about = (
        "*: used if you type the name without a tag; gated: the hub requires you to accept the licence; unpublished: "
        "not in timm."
    )
    return f"{console.columns(rows)}\n\n{about}"


def _write(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
