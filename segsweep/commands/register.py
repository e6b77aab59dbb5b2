"""`segsweep register`: a trained model as the champion of MLflow's registry."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import RUN, compared, find_model, training_data
from segsweep.process import show

HELP = "register a trained model in MLflow, with the alias champion"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("name", metavar="NAME", help="name of the registered model")
    parser.add_argument("--uri", help="MLflow's tracking URI (default: the run's own, or $MLFLOW_TRACKING_URI)")


def run(options: Namespace) -> int:
    """Register the model as a new version, make it the champion, and print the champion before it."""
    from segsweep import console
    from segsweep.inference.register import register

    found = find_model(options.run, options.uri)
    data = training_data(found.folder)
    version, done = register(found, options.name, options.uri, data, console.bar)
    instead = f" instead of version {version.before}" if version.before else ""
    rows = [("registered", f"  {options.name}, version {version.version}, champion{instead}; run {version.run}")]
    rows += [*compared(done, data is not None), ("load", "  import mlflow")]
    rows.append(("", f'  mlflow.set_tracking_uri("{version.uri}")'))
    rows.append(("", f'  mlflow.pytorch.load_model("models:/{options.name}@champion")'))
    show(console.table(rows))
    return 0
