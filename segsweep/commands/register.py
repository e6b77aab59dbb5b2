"""`segsweep register`: a trained model as the champion of MLflow's registry."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import RUN, find_model, training_data

HELP = "a trained model into MLflow's registry, as its champion"


def arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("name", metavar="NAME", help="of the registered model")
    parser.add_argument("--uri", help="MLflow's tracking URI (default: the run's own, or $MLFLOW_TRACKING_URI)")


def run(options: Namespace) -> int:
    """Register the model as a new version, the champion from now on, and print which one it was before."""
    from segsweep import console
    from segsweep.inference.register import register

    found = find_model(options.run, options.uri)
    data = training_data(found.folder)
    version, done = register(found, options.name, options.uri, data, console.bar)
    print(console.registered(options.name, version, done, data is not None))
    return 0
