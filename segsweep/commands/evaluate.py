"""`segsweep evaluate`: every score of a trained model."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace

from segsweep.commands.common import RUN, add_device, find_model
from segsweep.config.schema import VIEWS
from segsweep.errors import DataError, first_line
from segsweep.process import complain, show

PART = ("data.folds", "data.fold", "data.overfit")  # keys by which a run takes a part of its data
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
    from segsweep.compose import PATHS, expanded, key_of, with_data
    from segsweep.inference.evaluate import evaluate
    from segsweep.runs import journal
    from segsweep.tracking.run import log_evaluation
    from segsweep.training.build import load, say

    found = find_model(options.run, options.uri)
    start = journal.started(found.run)
    config = with_data(start.asked, options.overrides)
    typed = {key_of(word) for word in expanded(options.overrides)}
    takes_part = config.data.folds or config.data.overfit  # a fold, or the images of debug=overfit
    # By the run's own choice, of data that may be others: they are scored as a whole.
    left_over = takes_part and typed.isdisjoint(PART) and not typed.isdisjoint(PATHS)
    data = None
    try:
        data = load(config.data, config.train.workers)
    except DataError:
        if not left_over:
            raise
    if data is None or (left_over and data.store.digest != start.starts[-1].data_digest):
        config = replace(config, data=replace(config.data, folds=None, fold=0, overfit=None))
        data = load(config.data, config.train.workers)
    say(data)
    how = {"title": config.data.title, "device": options.device, "tta": options.tta}
    result = evaluate(found, data, options.split, options.name, **how, watch=console.bar)
    console.note(f"run in          {result.how}")
    show(console.evaluation(result.split, result.drawn, result.metrics, result.intervals, result.folder, result.looks))
    try:
        log_evaluation(found.run, options.uri, result.folder.name, result.metrics, result.folder)
    except Exception as error:  # the files are written, whatever a server does
        complain(f"segsweep: the scores were not sent to MLflow: {first_line(error)}")
    return 0
