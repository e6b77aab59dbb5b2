"""`segsweep predict`: masks for images."""

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from segsweep.commands.common import RUN, add_inference, find_model, load_predictor
from segsweep.errors import DataError

HELP = "masks for images, by a trained model"


def arguments(parser: ArgumentParser) -> None:
    add_inference(parser)
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, or patterns in quotes")
    where = "where the masks go; not searched for images"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help=where)
    parser.add_argument("--overlay", action="store_true", help="also painted over the image, in DIR/overlays")
    parser.add_argument("--probabilities", action="store_true", help="also float32 TIFFs, in DIR/probabilities")


def run(options: Namespace) -> int:
    """Write a mask for each image; return `DataError`'s exit code if one could not be read."""
    from segsweep import console
    from segsweep.inference.predict import OVERLAYS, PROBABILITIES, find_images, predict

    found = find_model(options.run)
    images = find_images(options.images, options.output)
    predictor = load_predictor(options, found)
    started, problems = time.perf_counter(), 0
    overlay, probabilities = options.overlay, options.probabilities
    for outcome in predict(
        predictor, images, options.output, overlay=overlay, probabilities=probabilities, watch=console.bar
    ):
        if outcome.problem:
            problems += 1
            print(f"segsweep: {outcome.problem}", file=sys.stderr)
    done = len(images) - problems
    print(f"masks           {done} in {options.output}, {done / (time.perf_counter() - started):.1f} images/s")
    for name in [OVERLAYS] * overlay + [PROBABILITIES] * probabilities:
        print(f"{name:16}{options.output / name}")
    print(f"classes         {', '.join(f'{i} {name}' for i, name in enumerate(predictor.classes))}")
    if problems:
        print(f"not done        {problems} of {len(images)}")
    return DataError.exit_code if problems else 0
