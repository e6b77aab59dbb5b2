"""`segsweep sync`: runs and sweeps that MLflow does not have yet."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from segsweep.errors import ConfigError
from segsweep.runs import journal

HELP = "send to MLflow what it does not have yet"


def arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a run folder, or a folder with runs below it"
    )
    parser.add_argument(
        "--uri", help="MLflow's tracking URI (default: the run's own, $MLFLOW_TRACKING_URI, or outputs/mlflow.db)"
    )


def run(options: Namespace) -> int:
    """Send each run, and each sweep as a whole, once; return 1 if one could not be sent."""
    from segsweep.sweep import report
    from segsweep.tracking import run as tracking

    done: set[Path] = set()
    failed = 0
    for given in map(Path.absolute, options.folders):
        runs = sorted(path.parent for path in given.rglob(journal.NAME) if journal.exists(path.parent))
        if not runs:
            raise ConfigError(f"{given}: no run folder: no {journal.NAME} in it or below it.")
        for folder in dict.fromkeys(report.sweep_of(run) or run for run in runs):
            if folder in done:
                continue
            sweep, named = folder not in runs, folder in (given, report.sweep_of(given))
            try:
                if not named and (why := _untracked(folder, sweep)):
                    print(f"{folder}: left out, {why}; name it alone to send it")
                    continue
                done.add(folder)
                if not sweep:
                    print(f"{folder}: run {tracking.sync(folder.resolve(), options.uri, journal.alive(folder))}")
                    continue
                from segsweep.sweep import run as multirun  # brings Optuna

                try:
                    print(f"{folder}: sweep {multirun.sync(folder.resolve(), options.uri)}")
                except multirun.Running as error:
                    print(error)
            except Exception as error:  # one run's trouble does not keep the others back
                failed += 1
                print(f"segsweep: {folder}: not sent: {error}", file=sys.stderr)
    return 1 if failed else 0


def _untracked(folder: Path, sweep: bool) -> str:
    """Say why MLflow was not to hear of a run or sweep; empty if it was."""
    from segsweep.sweep import report

    if not sweep:
        tracked = journal.read(folder)[0]["config"]["tracking"]["name"] != "none"
    else:
        about = report.about(folder)
        if "state" not in about:
            return "a sweep of an older segsweep"
        tracked = about["tracked"]
    return "" if tracked else "as it ran with tracking=none"
