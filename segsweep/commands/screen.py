"""`segsweep screen`: the same as `segsweep train sweeps=screen`."""

from argparse import ArgumentParser, Namespace

HELP = "find the pretrained weights that are worth a full sweep on your data"


def arguments(parser: ArgumentParser) -> None:
    words = "the same options as for a sweep: data=folder data.root=DIR encoder='weights(vit_small*,convnext_tiny*)'"
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help=words)


def run(options: Namespace) -> int:
    """Screen as the words say."""
    from segsweep.commands.train import main  # Hydra: half a second

    return main(["sweeps=screen", *options.words])
