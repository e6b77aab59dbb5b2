"""`segsweep compare`: runs side by side."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from segsweep.commands.common import RUN, home
from segsweep.paths import outputs
from segsweep.process import complain, show
from segsweep.runs import journal

HELP = "compare runs: their settings and their scores"
FORMATS = ("text", "csv", "markdown", "latex")


def arguments(parser: ArgumentParser) -> None:
    several = f"{RUN}; or folders that contain runs. Two runs: also which images got better"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=several)
    parser.add_argument("--sweep", type=home, metavar="DIR", help="compare the trials and finalists of this sweep")
    shared = "show mean ± sd over repeats: runs with the same values of these keys, as encoder.name,optim.lr"
    parser.add_argument("--group-by", metavar="KEYS", help=shared)
    parser.add_argument("--format", choices=FORMATS, default="text")


def run(options: Namespace) -> int:
    """Print a table of the runs (default: all); for exactly two runs also which images got better and worse."""
    from segsweep.inference.find import find
    from segsweep.sweeping.compare import pair, runs, shown, table

    folders = [Path(run) if Path(run).is_dir() else find(run).run for run in options.runs]
    keys = options.group_by.split(",") if options.group_by else ()
    detailed = options.format in ("text", "markdown") and not keys and not options.sweep
    if len(folders) == 2 and detailed and all(map(journal.exists, folders)):
        show(pair(folders[0], folders[1], options.format))
    else:
        folders += [options.sweep] if options.sweep else []
        rows = table(runs(folders or [outputs()]), keys)
        show(shown(rows, options.format))
        if "data" in rows:
            complain("segsweep: the runs used different data sets, so their scores cannot be compared")
    return 0
