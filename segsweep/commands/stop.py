"""`segsweep stop`: a run or a sweep ends after the epoch, and keeps everything."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from segsweep.errors import ConfigError, first_line
from segsweep.process import show
from segsweep.runs import locks, stop

HELP = "have a run or a sweep end after the epoch"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the run, or of the sweep")


def run(options: Namespace) -> int:
    """Ask, and say what happens next."""
    folder = options.folder.expanduser().resolve()
    try:
        what = _asked(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: not yours to stop: {first_line(error)} Ask whose it is.") from error
    show(f"asked: {what} finished its epoch, and can go on later")
    return 0


def _asked(folder: Path) -> str:
    """Ask whoever runs in a folder to stop; return who it is that ends when something has."""
    from segsweep.sweeping import about, screened

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give the folder of a run or a sweep that runs.")
    if (sweep := about.sweep_of(folder)) and locks.alive(sweep):
        raise ConfigError(f"{folder}: a trial of the sweep in {sweep}, which would start it again. Stop that one.")
    if not locks.alive(folder):
        raise ConfigError(f"{folder}: nothing runs there.")
    stop.ask(folder)
    is_sweep = any((folder / name).exists() for name in (about.NAME, screened.NAME))
    return "the sweep ends here when each trial that runs here has" if is_sweep else "the run ends when it has"
