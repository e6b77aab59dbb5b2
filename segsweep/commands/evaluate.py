"""`segsweep evaluate`: every score of a trained model."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import RUN, add_device, find_model
from segsweep.config.schema import VIEWS
from segsweep.errors import first_line
from segsweep.process import complain, show

HELP = "score a trained model: every metric, by image and by class"


def arguments(parser: ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="other data: data=folder data.root=DIR, or data=FILE.yaml"
    )
    usual = "default: val; for other data that have no split: all"
    parser.add_argument("--split", help=f"val, test, train, or all: every image ({usual})")
    parser.add_argument("--tta", choices=VIEWS, help="average over mirrored views (default: as the run's train.tta)")
    parser.add_argument("--name", help="name of the folder in RUN/evaluations (default: from split, data and views)")
    parser.add_argument("--uri", help="MLflow's tracking URI (default: the run's own, or $MLFLOW_TRACKING_URI)")


def run(options: Namespace) -> int:
    """Print the scores, write them into a folder of the run's and tell MLflow."""
    from segsweep import console
    from segsweep.compose import with_data
    from segsweep.inference.evaluate import evaluate
    from segsweep.runs import journal
    from segsweep.tracking.run import log_evaluation
    from segsweep.training.build import load, say

    found = find_model(options.run, options.uri)
    config = with_data(journal.started(found.run).asked, options.overrides)
    data = load(config.data, config.train.workers)
    say(data)
    how = {"title": config.data.title, "device": options.device, "tta": options.tta}
    result = evaluate(found, data, options.split, options.name, **how, watch=console.bar)
    console.note(f"run in          {result.how}")
    show(console.evaluation(result.split, result.images, result.metrics, result.intervals, result.folder, result.looks))
    try:
        log_evaluation(found.run, options.uri, result.folder.name, result.metrics, result.folder)
    except Exception as error:  # the files are written, whatever a server does
        complain(f"segsweep: the scores were not sent to MLflow: {first_line(error)}")
    return 0
