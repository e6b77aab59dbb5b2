"""`segsweep report`: a sweep's page."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from segsweep.process import show

HELP = "write a sweep's report.html anew"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the sweep's folder: hydra.sweep.dir")


def run(options: Namespace) -> int:
    """Write report.html into the sweep's folder and print its path."""
    from segsweep.sweeping.html_report import write

    show(write(options.folder))
    return 0
