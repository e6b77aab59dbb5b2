"""`segsweep stop`: end a run or a sweep after the current epoch, and keep everything."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from shlex import quote

from segsweep.commands.common import home
from segsweep.errors import ConfigError, first_line
from segsweep.process import show
from segsweep.runs import locks, stop

HELP = "stop a run or a sweep after the current epoch"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=home, metavar="DIR", help="folder of the run or of the sweep")


def run(options: Namespace) -> int:
    """Ask the run or sweep to stop, and print what happens next."""
    folder = options.folder.resolve()
    try:
        what = _asked(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be stopped: {first_line(error)} Ask the owner of the run.") from error
    show(f"asked to stop: {what} finished its epoch, and can be continued later")
    return 0


def _asked(folder: Path) -> str:
    """Ask whoever runs in a folder to stop; return who it is that ends when something has."""
    from segsweep.sweeping import about, screened

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give the folder of a running training or sweep.")
    if (sweep := about.sweep_of(folder) or about.screening_of(folder)) and locks.alive(sweep):
        raise ConfigError(
            f"{folder}: a trial of the sweep in {sweep}, which would start it again. Stop the sweep "
            f"instead: segsweep stop {quote(str(sweep))}"
        )
    if not locks.alive(folder):
        raise ConfigError(f"{folder}: no training and no sweep is running there.")
    stop.ask(folder)
    is_sweep = any((folder / name).exists() for name in (about.NAME, screened.NAME))
    return "the sweep ends here when each trial that runs here has" if is_sweep else "the run ends when it has"
