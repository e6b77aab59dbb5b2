"""`segsweep export`: write a trained model as one file that runs without segsweep."""

from argparse import ArgumentParser, Namespace

from segsweep.commands.common import RUN, compared, find_model, home, training_data
from segsweep.process import show

HELP = "write a trained model as one file that runs without segsweep (extra: export)"
FORMATS = ("onnx", "pt2")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--format", choices=FORMATS, required=True, help="ONNX, or PyTorch's exported program")
    parser.add_argument("-o", "--output", type=home, metavar="FILE", help="default: model.FORMAT beside the model")


def run(options: Namespace) -> int:
    """Write the file and print how closely it agrees with the model in PyTorch."""
    from segsweep import console
    from segsweep.inference.export import export, needs

    needs(options.format)
    found = find_model(options.run)
    path = options.output or found.model.with_name(f"model.{options.format}")
    data = training_data(found.folder)
    console.note(
        "export          writes the file and compares it with PyTorch; this takes a minute, more for large models"
    )
    done = export(found.model, path, options.format, data, console.bar)
    ours, theirs = done.comparison.rates
    runtime = {"onnx": "onnxruntime", "pt2": "torch.export"}[options.format]
    speed = f"  {runtime} {theirs:.1f} images/s, PyTorch {ours:.1f}: {theirs / ours:.2f}x"
    show(console.table([("file", f"  {done.path}"), *compared(done, data is not None), ("speed", speed)]))
    return 0
