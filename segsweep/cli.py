"""The `segsweep` command: what one does with runs. Training is `python train.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segsweep import __version__
from segsweep.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 if something could not be sent, 2 for wrong input."""
    parser = argparse.ArgumentParser(
        prog="segsweep", description="What one does with runs. Training is: python train.py"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sync = commands.add_parser("sync", help="send to MLflow what it does not have yet")
    sync.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a run folder, or a folder with runs below it"
    )
    sync.add_argument(
        "--uri", help="MLflow's tracking URI (default: the run's own, $MLFLOW_TRACKING_URI, or outputs/mlflow.db)"
    )
    sync.set_defaults(command=_sync)
    options = parser.parse_args(argv)
    try:
        return options.command(options)
    except ConfigError as error:
        print(f"segsweep: {error}", file=sys.stderr)
        return error.exit_code


def _sync(options: argparse.Namespace) -> int:
    from segsweep import journal, tracking

    failed = 0
    for given in options.folders:
        runs = sorted(path.parent for path in given.rglob(journal.NAME) if journal.exists(path.parent))
        if not runs:
            raise ConfigError(f"{given}: no run folder: no {journal.NAME} in it or below it.")
        for folder in runs:
            records = journal.read(folder)
            if folder != given and records[0]["config"]["tracking"]["name"] == "none":
                print(f"{folder}: left out, as it ran with tracking=none; name it alone to send it")
                continue
            try:
                print(f"{folder}: run {tracking.sync(folder.resolve(), options.uri, journal.alive(folder))}")
            except Exception as error:  # one run's trouble does not keep the others back
                failed += 1
                print(f"segsweep: {folder}: not sent: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
