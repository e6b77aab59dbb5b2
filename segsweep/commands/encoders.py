"""`segsweep encoders`: timm's encoders, what they cost and how they are run."""

import csv
import sys
from argparse import ArgumentParser, Namespace

from segsweep.process import show

HELP = "list timm's encoders: size, cost, strides, weights, how they are run"
COLUMNS = ("encoder", "parameters", "gflop", "decoder_share", "strides", "channels", "input_size")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="as 'convnext*' (default: all)")
    parser.add_argument("--csv", action="store_true", help="as CSV")


def run(options: Namespace) -> int:
    """Print the encoders that match the pattern; what the installed timm has beyond the census is measured."""
    from segsweep import catalog, console

    names = catalog.matching(options.pattern)
    counted = catalog.counted()
    missing = [name for name in names if name not in counted]
    if missing:
        from segsweep.nn.survey import survey  # torch and timm: seconds

        for name in console.bar(missing, len(missing), "measuring"):
            counted[name] = {key: str(value) for key, value in vars(survey(name)).items()}
    rows = [{**counted[name], "pretrained": " ".join(catalog.tags(name))} for name in names]
    if options.csv:
        writer = csv.DictWriter(sys.stdout, [*COLUMNS, "pretrained"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        show(console.encoder_table(rows))
    return 0
