"""`segsweep probe`: what an encoder's frozen pretrained features are worth on some data; a screening's first step."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from segsweep.commands.common import leaving_nothing, refuse_resume

HELP = "score an encoder's frozen pretrained features on your data with a linear layer"


def arguments(parser: ArgumentParser) -> None:
    words = "the same options as for a training: encoder=resnet34 data=folder data.root=DIR"
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help=words)


def run(options: Namespace) -> int:
    """Probe the encoder that the words name, in a folder of its own."""
    from segsweep.compose import expanded, key_of, prepared, text_of  # Hydra: half a second
    from segsweep.paths import outputs

    words = expanded(options.words)
    given = [text_of(word) for word in words if key_of(word) == "hydra.run.dir"]
    folder = Path(given[-1]) if given else outputs() / f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}-probe"
    folder = folder.resolve()
    with leaving_nothing(folder, folder if folder.exists() else None):
        config, _ = prepared([word for word in words if key_of(word) not in ("hydra.run.dir", "hydra.mode")])
        refuse_resume(config, "probe")

        from segsweep.training.probe import run as probe  # torch and timm: seconds

        probe(config, folder, options.words)
    return 0


def main(argv: Sequence[str]) -> int:
    """Run a screening's job, as `segsweep.sweeping.backends.base` has it: of several processes the first alone."""
    from segsweep.commands.app import main as segsweep

    return segsweep(["probe", *argv]) if os.environ.get("RANK", "0") == "0" else 0
