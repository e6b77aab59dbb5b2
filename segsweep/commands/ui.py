"""`segsweep ui`: MLflow's page, opened on the newest result."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import port

HELP = "look at runs and compare them: MLflow's page, opened on the newest result"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=port, default=5000, metavar="N", help="default: 5000; 0 takes any that is free")
    parser.add_argument("--host", default="127.0.0.1", help="who may connect (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--uri", help="MLflow's tracking URI (default: $MLFLOW_TRACKING_URI, or outputs/mlflow.db)")


def run(options: Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from segsweep.tracking.server import serve

    serve(options.port, options.host, options.uri)
    return 0
