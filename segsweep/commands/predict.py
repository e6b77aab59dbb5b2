"""`segsweep predict`: masks for images."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from segsweep.commands.common import RUN, add_inference, find_model, home, load_predictor
from segsweep.errors import ConfigError, DataError
from segsweep.paths import outputs
from segsweep.process import complain, show

HELP = "predict masks for images with a trained model"
VALUES = ("classes", "original")


def arguments(parser: ArgumentParser) -> None:
    add_inference(parser)
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="files, folders, or patterns in quotes")
    where = "folder for the masks; images in it are not predicted (default: outputs/predictions/RUN)"
    parser.add_argument("-o", "--output", type=home, metavar="DIR", help=where)
    values = "class indices with a palette (default), or the values or colours of the training masks"
    parser.add_argument("--values", choices=VALUES, default="classes", help=values)
    parser.add_argument(
        "--overlay", action="store_true", help="also write pictures of the masks over the images, into DIR/overlays"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write probabilities as float32 TIFFs, into DIR/probabilities"
    )


def run(options: Namespace) -> int:
    """Write a mask for each image; return `DataError`'s exit code if one could not be read."""
    from segsweep import console
    from segsweep.inference.output import INDICES, OVERLAYS, PROBABILITIES, MaskForm
    from segsweep.inference.predict import find_images, predict
    from segsweep.nn.checkpoint import describe

    if not options.images:
        raise ConfigError("no images given. Type segsweep predict RUN IMAGES.")
    found = find_model(options.run)
    form = MaskForm.original(describe(found.model)) if options.values == "original" else INDICES
    folder = options.output or outputs() / "predictions" / _named(found.model)
    images = find_images(options.images, folder, form.suffix)
    predictor = load_predictor(options, found)
    started, problems, lacking, grey = time.perf_counter(), 0, 0, 0
    overlay, probabilities = options.overlay, options.probabilities
    for outcome in predict(
        predictor, images, folder, form=form, overlay=overlay, probabilities=probabilities, watch=console.bar
    ):
        lacking += outcome.lacking
        grey += outcome.grey
        if outcome.problem:
            problems += 1
            complain(f"segsweep: {outcome.problem}")
    done = len(images) - problems
    if grey:
        show(f"note            {console.counted(grey, 'image')} of {len(images)} grey; the model was trained on colour")
    if not done:
        return DataError.exit_code
    show(f"masks           {done} in {folder}, {done / (time.perf_counter() - started):.1f} images/s")
    for name in [OVERLAYS] * overlay + [PROBABILITIES] * probabilities:
        show(f"{name:16}{folder / name}")
    values = zip(form.values(len(predictor.classes)), predictor.classes, strict=True)
    show(f"classes         {', '.join(f'{value} {name}' for value, name in values)}")
    if lacking:
        show(
            f"no data         {lacking} of the images' pixels have no data; they are {form.void} in the masks, which "
            f"is no class"
        )
    if problems:
        show(f"not done        {problems} of {len(images)}")
    return DataError.exit_code if problems else 0


def _named(model: Path) -> str:
    """Return a name for a model's predictions: where its run lies below outputs/, else the last two folders."""
    folder = model.resolve().parent
    parts = folder.relative_to(outputs()).parts if folder.is_relative_to(outputs()) else folder.parts[-2:]
    return "-".join(part for part in parts if part != folder.anchor) or model.stem
