"""The `segsweep` command: what one does with runs. Training is `python train.py`."""

import argparse
import csv
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segsweep import __version__
from segsweep.errors import ConfigError, DataError, Terminated, first_line, terminable

if TYPE_CHECKING:
    from segsweep.data.dataset import Dataset
    from segsweep.inference.find import Found
    from segsweep.inference.predict import Predictor

COLUMNS = ("encoder", "parameters", "gflop", "decoder_share", "strides", "channels", "input_size")
FORMATS = ("text", "csv", "markdown", "latex")
SHEET = 24  # pairs on the sheet of pictures
RUN = "a run folder, a model's file, a sweep's folder, an MLflow run id, best, or best:EXPERIMENT"
EXPORTS = ("onnx", "pt2")
VIEWS, PRECISIONS = ("none", "hflip", "flips"), ("auto", "fp32", "bf16", "fp16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0; 1 if something could not be sent; an error's own (`segsweep.errors`), also where one image of several is broken;
    130 after Ctrl-C, 143 after SIGTERM.
    """
    parser, given = _parser(), sys.argv[1:] if argv is None else argv
    if not given:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(given)
    try:
        with terminable():
            return options.command(options)
    except ConfigError as error:
        print(f"segsweep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("segsweep: interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("segsweep: terminated", file=sys.stderr)
        return 143


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segsweep", description="What one does with runs. Training is: python train.py"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str,
        does: Callable[[argparse.Namespace], int],
        help: str,
        parents: Sequence[argparse.ArgumentParser] = (),
    ) -> Callable[..., argparse.Action]:
        made = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=parents)
        made.set_defaults(command=does)
        return made.add_argument

    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    running = argparse.ArgumentParser(add_help=False, parents=[device])
    running.add_argument("--precision", choices=PRECISIONS, default="auto")
    running.add_argument("--tile", type=_side, metavar="N", help="pixels a side beyond which images are run in tiles")
    running.add_argument("--tta", choices=VIEWS, default="none", help="average over mirrored views")

    add = command("data", _data, "look at a data set: what is in it, what is wrong, a sheet of pictures")
    add(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py: data=folder data.root=DIR (default: shapes)"
    )
    add("-o", "--output", type=Path, metavar="PNG", help="the sheet (default: outputs/data/NAME-DIGEST.png)")
    add = command("encoders", _encoders, "list timm's encoders: size, cost, strides, weights, how they are run")
    add("pattern", nargs="?", default="*", metavar="PATTERN", help="as 'convnext*' (default: all)")
    add("--csv", action="store_true", help="as CSV")

    add = command("ui", _ui, "look at runs and compare them: MLflow's page, opened on the newest result")
    add("--port", type=_port, default=5000, metavar="N", help="default: 5000; 0 takes any that is free")
    add("--host", default="127.0.0.1", help="who may connect (default: 127.0.0.1, this machine alone)")
    add("--uri", help="MLflow's tracking URI (default: $MLFLOW_TRACKING_URI, or outputs/mlflow.db)")
    add = command("compare", _compare, "runs side by side: what differs, and how well they did")
    add("runs", nargs="*", metavar="RUN", help=f"{RUN}; or folders with runs below them; two runs: what got better")
    add("--sweep", type=Path, metavar="DIR", help="the trials and finalists of a sweep")
    add("--group-by", metavar="KEYS", help="mean ± sd over the runs that share these, as encoder.name,optim.lr")
    add("--format", choices=FORMATS, default="text")
    add = command("report", _report, "write a sweep's report.html anew")
    add("folder", type=Path, metavar="DIR", help="the sweep's folder: hydra.sweep.dir")
    add = command("sync", _sync, "send to MLflow what it does not have yet")
    add("folders", nargs="+", type=Path, metavar="DIR", help="a run folder, or a folder with runs below it")
    add("--uri", help="MLflow's tracking URI (default: the run's own, $MLFLOW_TRACKING_URI, or outputs/mlflow.db)")

    add = command("predict", _predict, "masks for images, by a trained model", [running])
    add("run", metavar="RUN", help=RUN)
    add("images", nargs="+", metavar="IMAGES", help="files, folders, or patterns in quotes")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="where the masks go; not searched for images")
    add("--overlay", action="store_true", help="also painted over the image, in DIR/overlays")
    add("--probabilities", action="store_true", help="also float32 TIFFs, in DIR/probabilities")
    add = command("evaluate", _evaluate, "score a trained model: every metric, by image and by class", [device])
    add("run", metavar="RUN", help=RUN)
    add("overrides", nargs="*", metavar="KEY=VALUE", help="other data: data=folder data.root=DIR")
    add("--split", default="val", help="val (default), test or train")
    add("--tta", choices=VIEWS, help="average over mirrored views (default: as the run's train.tta)")
    add("--name", help="of the folder in RUN/evaluations (default: from split, data and views)")
    add = command("demo", _demo, "a page in the browser: drop an image, see the mask (extra: demo)", [running])
    add("run", nargs="?", default="best", metavar="RUN", help=f"{RUN} (default: best)")
    add("--port", type=_port, default=7860, metavar="N", help="default: 7860; 0 takes any that is free")
    add = command("export", _export, "a trained model as one file that needs no segsweep (extra: export)")
    add("run", metavar="RUN", help=RUN)
    add("--format", choices=EXPORTS, required=True, help="ONNX, or PyTorch's exported program")
    add("-o", "--output", type=Path, metavar="FILE", help="default: model.FORMAT beside the model")
    add = command("register", _register, "a trained model into MLflow's registry, as its champion")
    add("run", metavar="RUN", help=RUN)
    add("name", metavar="NAME", help="of the registered model")
    add("--uri", help="MLflow's tracking URI (default: the run's own, or $MLFLOW_TRACKING_URI)")
    return parser


def _side(text: str) -> int:
    """A tile's side."""
    if not text.isdecimal() or int(text) < 32:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of pixels from 32, as 512")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number up to 65535")
    return int(text)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text}: must be auto, cpu, cuda, cuda:N or mps")
    return text


def _data(options: argparse.Namespace) -> int:
    from segsweep import console
    from segsweep.compose import configuration
    from segsweep.data.dataset import spread
    from segsweep.figures import pictures
    from segsweep.paths import outputs
    from segsweep.training.build import load

    config = configuration(options.overrides)
    dataset = load(config.data, config.train.workers)
    print(console.data_summary(dataset.summary()))
    for warning in dataset.warnings():
        print(f"warning         {warning}")
    pairs = []
    for part, indices in dataset.parts.items():
        share = max(1, round(SHEET * len(indices) / sum(map(len, dataset.parts.values()))))
        for i in spread(indices, share):
            classes = dataset.labels.table[dataset.store.mask(i).numpy()]
            pairs.append((f"{part}: {dataset.samples[i].key}", dataset.store.image(i).numpy(), classes))
    path = options.output or outputs() / "data" / f"{config.data.name}-{dataset.store.digest}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.contact_sheet(pairs, dataset.labels.names).save(path)
    print(f"pictures        {path}")
    return 0


def _encoders(options: argparse.Namespace) -> int:
    from segsweep import catalog, console

    names = catalog.matching(options.pattern)
    counted = catalog.counted()
    missing = [name for name in names if name not in counted]
    if missing:
        from segsweep.nn.survey import survey  # torch and timm: seconds

        for name in console.bar(missing, len(missing), "measuring"):
            counted[name] = {key: str(value) for key, value in vars(survey(name)).items()}
    rows = [{**counted[name], "pretrained": " ".join(catalog.tags(name))} for name in names]
    if options.csv:
        writer = csv.DictWriter(sys.stdout, [*COLUMNS, "pretrained"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print(console.encoder_table(rows))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from segsweep.inference.find import find
    from segsweep.paths import outputs
    from segsweep.runs import journal
    from segsweep.sweep.compare import pair, runs, shown, table

    folders = [Path(run) if Path(run).is_dir() else find(run).run for run in options.runs]
    keys = options.group_by.split(",") if options.group_by else ()
    detailed = options.format in ("text", "markdown") and not keys and not options.sweep
    if len(folders) == 2 and detailed and all(map(journal.exists, folders)):
        print(pair(folders[0], folders[1], options.format))
        return 0
    folders += [options.sweep] if options.sweep else []
    print(shown(table(runs(folders or [outputs()]), keys), options.format))
    return 0


def _report(options: argparse.Namespace) -> int:
    from segsweep.sweep.html_report import write

    print(write(options.folder))
    return 0


def _predict(options: argparse.Namespace) -> int:
    from segsweep import console
    from segsweep.inference.predict import OVERLAYS, PROBABILITIES, find_images, predict

    found = _found(options.run)
    images = find_images(options.images, options.output)
    predictor = _predictor(options, found)
    started, done, problems = time.perf_counter(), 0, 0
    for outcome in predict(
        predictor,
        images,
        options.output,
        overlay=options.overlay,
        probabilities=options.probabilities,
        watch=console.bar,
    ):
        if outcome.problem:
            problems += 1
            print(f"segsweep: {outcome.problem}", file=sys.stderr)
        else:
            done += 1
    rate = done / (time.perf_counter() - started)
    print(f"masks           {done} in {options.output}, {rate:.1f} images/s")
    for name in [OVERLAYS] * options.overlay + [PROBABILITIES] * options.probabilities:
        print(f"{name:16}{options.output / name}")
    print(f"classes         {', '.join(f'{i} {name}' for i, name in enumerate(predictor.classes))}")
    if problems:
        print(f"not done        {problems} of {len(images)}")
    return DataError.exit_code if problems else 0


def _demo(options: argparse.Namespace) -> int:
    from segsweep.inference.demo import serve

    found = _found(options.run)
    serve(_predictor(options, found), found, options.port)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from segsweep import console
    from segsweep.compose import of_run
    from segsweep.inference.evaluate import evaluate
    from segsweep.tracking import run as tracking
    from segsweep.training.build import load

    found = _found(options.run)
    config = of_run(found.run, options.overrides)
    data = load(config.data, config.train.workers)
    result = evaluate(
        found,
        data,
        options.split,
        options.name,
        title=config.data.title,
        device=options.device,
        tta=options.tta,
        watch=console.bar,
    )
    print(console.evaluation(options.split, result.metrics, result.intervals, result.folder, result.looks))
    try:
        tracking.log_evaluation(found.run, config.tracking.uri, result.folder.name, result.metrics, result.folder)
    except Exception as error:  # the files are written, whatever a server does
        print(f"segsweep: MLflow was not told: {first_line(error)}", file=sys.stderr)
    return 0


def _ui(options: argparse.Namespace) -> int:
    from segsweep.tracking.server import serve

    serve(options.port, options.host, options.uri)
    return 0


def _export(options: argparse.Namespace) -> int:
    from segsweep import console
    from segsweep.inference.export import export, needs

    needs(options.format)
    found = _found(options.run)
    path = options.output or found.model.with_name(f"model.{options.format}")
    data = _own_data(found.folder)
    done = export(found.model, path, options.format, data, console.bar)
    print(
        console.exported(
            options.format, done.path, str(done.sizes), done.images, vars(done.comparison), data is not None
        )
    )
    return 0


def _register(options: argparse.Namespace) -> int:
    from segsweep import console
    from segsweep.inference.register import register

    found = _found(options.run, options.uri)
    data = _own_data(found.folder)
    done = register(found, options.name, options.uri, data, console.bar)
    print(
        console.registered(
            options.name,
            done.version,
            done.run,
            done.uri,
            str(done.sizes),
            done.images,
            vars(done.comparison),
            data is not None,
            done.before,
        )
    )
    return 0


def _found(run: str, uri: str | None = None) -> "Found":
    """The model that RUN means; which one it is is noted."""
    from segsweep import console
    from segsweep.inference.find import find

    found = find(run, uri)
    console.note(f"model           {found.why or found.model}")
    return found


def _predictor(options: argparse.Namespace, found: "Found") -> "Predictor":
    from segsweep.inference.predict import Predictor

    return Predictor(
        found.model, device=options.device, precision=options.precision, tta=options.tta, tile=options.tile
    )


def _own_data(folder: Path | None) -> "Dataset | None":
    """The data that a run was trained on; None, and a note, where they cannot be had."""
    from segsweep import console
    from segsweep.compose import of_run
    from segsweep.training.build import load

    if folder is None:
        return None
    try:
        config = of_run(folder)
        return load(config.data, config.train.workers)
    except ConfigError as error:
        console.note(f"no images       {error}")
        return None


def _sync(options: argparse.Namespace) -> int:
    from segsweep.runs import journal
    from segsweep.sweep import report
    from segsweep.tracking import run as tracking

    done: set[Path] = set()
    failed = 0
    for given in map(Path.absolute, options.folders):
        runs = sorted(path.parent for path in given.rglob(journal.NAME) if journal.exists(path.parent))
        if not runs:
            raise ConfigError(f"{given}: no run folder: no {journal.NAME} in it or below it.")
        for folder in dict.fromkeys(report.sweep_of(run) or run for run in runs):
            if folder in done:
                continue
            sweep, named = folder not in runs, folder in (given, report.sweep_of(given))
            try:
                if not named and (why := _untracked(folder, sweep)):
                    print(f"{folder}: left out, {why}; name it alone to send it")
                    continue
                done.add(folder)
                if not sweep:
                    print(f"{folder}: run {tracking.sync(folder.resolve(), options.uri, journal.alive(folder))}")
                    continue
                from segsweep.sweep import run as multirun  # brings Optuna

                try:
                    print(f"{folder}: sweep {multirun.sync(folder.resolve(), options.uri)}")
                except multirun.Running as error:
                    print(error)
            except Exception as error:  # one run's trouble does not keep the others back
                failed += 1
                print(f"segsweep: {folder}: not sent: {error}", file=sys.stderr)
    return 1 if failed else 0


def _untracked(folder: Path, sweep: bool) -> str:
    """Why MLflow was not to hear of a run or sweep; empty if it was."""
    from segsweep.runs import journal
    from segsweep.sweep import report

    if not sweep:
        tracked = journal.read(folder)[0]["config"]["tracking"]["name"] != "none"
    else:
        about = report.about(folder)
        if "state" not in about:
            return "a sweep of an older segsweep"
        tracked = about["tracked"]
    return "" if tracked else "as it ran with tracking=none"


if __name__ == "__main__":
    sys.exit(main())
