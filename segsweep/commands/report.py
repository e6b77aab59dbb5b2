"""`segsweep report`: a sweep's page."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import home
from segsweep.process import show

HELP = "write a sweep's report.html again, or a screening's table and picture"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=home, metavar="DIR", help="the sweep's folder: hydra.sweep.dir")


def run(options: Namespace) -> int:
    """Write report.html into the sweep's folder and print its path; of a screening print its table."""
    from segsweep.sweeping import screened

    if (options.folder / screened.NAME).exists():
        from segsweep.sweeping.screen_report import written

        show(written(options.folder))
        return 0
    from segsweep.sweeping.html_report import write

    show(write(options.folder))
    return 0
