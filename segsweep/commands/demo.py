"""`segsweep demo`: a page in the browser that shows an image's mask."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import RUN, add_inference, find_model, load_predictor, port

HELP = "a web page: drop an image, see the mask (extra: demo)"


def arguments(parser: ArgumentParser) -> None:
    add_inference(parser)
    parser.add_argument("run", nargs="?", default="best", metavar="RUN", help=f"{RUN} (default: best)")
    parser.add_argument("--port", type=port, default=7860, metavar="N", help="default: 7860; 0: any free port")


def run(options: Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from segsweep.inference.demo import serve

    found = find_model(options.run)
    serve(load_predictor(options, found), found, options.port)
    return 0
