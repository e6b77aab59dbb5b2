"""Shared by several commands: arguments, finding the model of RUN, loading the data of its training, refusing."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segsweep.config.checks import DEVICES, is_device
from segsweep.config.schema import PRECISIONS, VIEWS, RunConfig
from segsweep.errors import ConfigError
from segsweep.paths import outputs
from segsweep.runs import journal

if TYPE_CHECKING:
    from segsweep.data.dataset import Dataset
    from segsweep.inference.export import Exported
    from segsweep.inference.find import Found
    from segsweep.inference.predict import Predictor

MULTIRUN = "multirun.yaml"  # Hydra's own, in the folder of several runs
RUN = "a run folder, a model's file, a sweep's folder, an MLflow run id, best, or best:EXPERIMENT"


def home(text: str) -> Path:
    """Return the path of an option, with `~` for a user's folder: shells leave it in --output=~/masks."""
    return Path(text).expanduser()


def add_device(parser: ArgumentParser) -> None:
    """Add --device, which says where a model runs."""
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, mps")


def add_inference(parser: ArgumentParser) -> None:
    """Add --device, --precision, --tile and --tta: how `load_predictor` runs a model."""
    add_device(parser)
    usual = "default: as in training"
    fastest = "auto: the fastest that the hardware supports"
    parser.add_argument("--precision", choices=PRECISIONS, help=f"{usual}, if the device can; {fastest}")
    tiles = f"images with a side longer than this many pixels are processed in tiles ({usual})"
    parser.add_argument("--tile", type=tile_side, metavar="N", help=tiles)
    parser.add_argument("--tta", choices=VIEWS, help=f"average over mirrored views ({usual})")


def tile_side(text: str) -> int:
    """Read a tile's side in pixels, for argparse."""
    if not text.isdecimal() or int(text) < 32:
        raise ArgumentTypeError(f"{text}: must be a whole number of pixels from 32, as 512")
    return int(text)


def port(text: str) -> int:
    """Read the number of a port, for argparse; 0 means any free port."""
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text}: must be a whole number up to 65535")
    return int(text)


def device(text: str) -> str:
    """Read the name of a device, for argparse."""
    if not is_device(text):
        raise ArgumentTypeError(f"{text}: must be {DEVICES}")
    return text


def find_model(run: str, uri: str | None = None) -> "Found":
    """Find the model that RUN means, as `segsweep.inference.find` does, and note on stderr which one it is."""
    from segsweep import console
    from segsweep.inference.find import find

    found = find(run, uri)
    console.note(f"model           {found.why or found.model}")
    return found


def load_predictor(options: Namespace, found: "Found") -> "Predictor":
    """Load a model with the arguments of `add_inference`; print to stderr how it is run, and why."""
    from segsweep import console
    from segsweep.inference.predict import Predictor

    how = {name: getattr(options, name) for name in ("device", "precision", "tta", "tile")}
    predictor = Predictor(found.model, **how)
    console.note(f"run in          {predictor.how}")
    return predictor


def training_data(folder: Path | None) -> "Dataset | None":
    """Load the data of the training in a folder; None, and a note, where they cannot be had."""
    from segsweep import console
    from segsweep.runs import journal
    from segsweep.training.build import load

    if folder is None:
        return None
    try:
        asked = journal.started(folder).asked
        return load(asked.data, asked.train.workers)
    except ConfigError as error:
        console.note(f"no images       {error}")
        return None


def compared(done: "Exported", on_images: bool) -> list[tuple[str, str]]:
    """Return rows that compare an exported model with PyTorch, on images of the run or on random ones."""
    found = done.comparison
    what = f"{found.images} {'validation images' if on_images else 'images of random pixels'}"
    return [
        ("sizes", f"  {done.sizes}; any batch"),
        ("images", f"  {done.images}"),
        ("compared", f"  with PyTorch in fp32, as the file computes, on {what}"),
        ("difference", f"  {found.difference:.1e} at most, of a logit"),
        ("equal pixels", f"  {100 * found.equal:.4f} %"),
        ("run as scored", f"  {100 * found.as_scored:.4f} % equal pixels; {done.how}"),
    ]


def refuse_resume(config: RunConfig, command: str) -> None:
    """Refuse `resume=DIR` where nothing is continued."""
    if config.resume:
        raise ConfigError(f"resume={config.resume}: segsweep {command} continues no run. Drop it.")


@contextmanager
def leaving_nothing(folder: Path, spared: Path | None) -> Iterator[None]:
    """Remove the folder of a run that is refused, and the day's, unless they are `spared` or hold something."""
    try:
        yield
    except BaseException:
        if not journal.exists(folder):
            _remove_empty(folder, spared)
        raise


def _remove_empty(folder: Path, spared: Path | None) -> None:
    """Remove the folder that was made for a run that was refused, and those above it that hold nothing else."""
    for path in (folder, *folder.parents):
        if path == spared or not (path == folder or path.is_relative_to(outputs())) or path == outputs():
            return
        try:
            if [inside.name for inside in path.iterdir()] == [MULTIRUN]:
                (path / MULTIRUN).unlink()
            path.rmdir()
        except OSError:  # not empty, or another process was faster
            return
