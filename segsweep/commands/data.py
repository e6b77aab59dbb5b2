"""`segsweep data`: check a data set: its contents, its problems, the plan, a sheet of its pictures."""

import hashlib
from argparse import ArgumentParser, Namespace

from segsweep.commands.common import home, refuse_resume
from segsweep.errors import unwritable
from segsweep.paths import outputs
from segsweep.process import show

HELP = "check a data set: contents, problems, the plan, a sheet of pictures"
SHEET = 24  # pairs on the sheet of pictures


def arguments(parser: ArgumentParser) -> None:
    words = "the same options as for train.py: data=folder data.root=DIR, or data=FILE.yaml (default: shapes)"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=words)
    sheet = "file of the sheet (default: outputs/data/NAME-DIGEST-CLASSES.png)"
    parser.add_argument("-o", "--output", type=home, metavar="PNG", help=sheet)


def run(options: Namespace) -> int:
    """Print the data set's summary and warnings, and save the sheet."""
    from PIL import Image

    from segsweep.compose import configuration
    from segsweep.config.settings import Settings
    from segsweep.data.dataset import evenly_spaced
    from segsweep.data.fingerprint import fingerprint
    from segsweep.data.summary import table
    from segsweep.figures import pictures
    from segsweep.training.build import load
    from segsweep.training.plan import plan_data

    config = configuration(options.overrides)
    refuse_resume(config, "data")
    dataset = load(config.data, config.train.workers)
    show(table(dataset))
    found = fingerprint(dataset)
    show(found.table())
    if plan := plan_data(Settings.of(config), found).table():
        show(plan)
    for note in dataset.notes:
        show(f"note            {note}")
    for warning in dataset.warnings():
        show(f"warning         {warning}")
    for parts in found.classes:
        if not parts.parts:
            show(
                f"warning         {parts.name}: no training mask has this class. Check data.classes, or drop the class"
            )
    pairs = []
    for part, indices in dataset.parts.items():
        share = max(1, round(SHEET * len(indices) / sum(map(len, dataset.parts.values()))))
        empty = set(dataset.empty(part))
        telling = [i for i in indices if i not in empty]
        for i in evenly_spaced(telling if len(telling) >= share else indices, share):
            image, mask = dataset.store.pair(i)
            key = dataset.samples[i].key.removeprefix(f"{part}/")
            pairs.append((f"{part}: {key}", image.numpy(), dataset.labels.table[mask.numpy()]))
    named = hashlib.sha256(repr((dataset.labels.names, dataset.labels.groups)).encode()).hexdigest()[:6]
    path = options.output or outputs() / "data" / f"{config.data.name}-{dataset.store.digest}-{named}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.suffix.lower() in Image.registered_extensions()
        pictures.contact_sheet(pairs, dataset.labels.names).save(path, None if known else "PNG")
    except OSError as error:
        if not options.output:
            raise
        raise unwritable(path, error, "PNG") from error
    show(f"pictures        {path}")
    return 0
