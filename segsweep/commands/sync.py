"""`segsweep sync`: runs and sweeps that MLflow does not have yet."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from segsweep.commands.common import home
from segsweep.process import complain, show
from segsweep.runs import journal, locks

HELP = "send missing records to MLflow"


def arguments(parser: ArgumentParser) -> None:
    place = "a run folder, or a folder that contains runs"
    parser.add_argument("folders", nargs="+", type=home, metavar="DIR", help=place)
    uri = "MLflow's tracking URI (default: the run's own, $MLFLOW_TRACKING_URI, or outputs/mlflow.db)"
    parser.add_argument("--uri", help=uri)


def run(options: Namespace) -> int:
    """Send each run, and each sweep as a whole, once; return 1 if one could not be sent."""
    from segsweep.sweeping import about
    from segsweep.tracking.run import sync

    done, failed = set[Path](), 0
    for given in map(Path.absolute, options.folders):
        runs = journal.some_below(given)
        for folder in dict.fromkeys(about.sweep_of(run) or run for run in runs):
            if folder in done:
                continue
            sweep, named = folder not in runs, folder in (given, about.sweep_of(given))
            try:
                if not named and (why := _untracked(folder, sweep)):
                    show(f"{folder}: left out, {why}; to send it, name only this folder")
                    continue
                done.add(folder)
                if sweep:
                    _send_sweep(folder, options.uri)
                else:
                    show(f"{folder}: run {sync(folder.resolve(), options.uri, locks.alive(folder))}")
            except Exception as error:  # one run's trouble does not keep the others back
                failed += 1
                complain(f"segsweep: {folder}: not sent: {error}")
    return 1 if failed else 0


def _untracked(folder: Path, sweep: bool) -> str:
    """Say why MLflow was not to hear of a run or sweep; empty if it was."""
    from segsweep.sweeping import about

    tracked = about.load(folder).tracked if sweep else journal.started(folder).asked.tracking.name != "none"
    return "" if tracked else "because it ran with tracking=none"


def _send_sweep(folder: Path, uri: str | None) -> None:
    from segsweep.sweeping import mirror  # brings Optuna

    try:
        show(f"{folder}: sweep {mirror.sync(folder.resolve(), uri)}")
    except mirror.Running as error:
        show(error)
