"""`segsweep ui`: MLflow's page, and the address of the newest result on it."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import port

HELP = "start MLflow, and print the address of the newest result"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=port, default=5000, metavar="N", help="default: 5000; 0: any free port")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1: only this machine can connect)"
    )
    parser.add_argument("--uri", help="MLflow's tracking URI (default: $MLFLOW_TRACKING_URI, or outputs/mlflow.db)")


def run(options: Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from segsweep.tracking.server import serve

    serve(options.port, options.host, options.uri)
    return 0
