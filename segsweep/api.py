"""Train, search and predict from Python, as in a notebook: `segsweep.train`, `segsweep.sweep`, `segsweep.load`.

Keys, records and checks are the same as on the command line. An error raises an exception instead of an exit code.
"""

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segsweep.commands.train import begin, launch
from segsweep.config.sweeper import PREFIX
from segsweep.errors import ConfigError, DataError, Terminated
from segsweep.paths import outputs
from segsweep.runs import journal
from segsweep.runs.records import Run
from segsweep.valuefile import typed
from segsweep.world import SINGLE

if TYPE_CHECKING:
    import pandas as pd

    from segsweep.inference.predict import Predictor


@dataclass(frozen=True)
class Varied:
    """The values of a key that a search tries, in Hydra's syntax; made by `choice` and `interval`."""

    text: str


def choice(*values: object) -> Varied:
    """Let a search try each of these values, for example `choice("resnet18", "resnet34")`."""
    return Varied(f"choice({','.join(map(_text, values))})")


def weights(*patterns: str) -> Varied:
    """Have a search try each set of pretrained weights that a pattern names: `weights("vit_small*", "*.dino")`."""
    return Varied(f"weights({','.join(patterns)})")


def interval(low: float, high: float, log: bool = False) -> Varied:
    """Let a search try numbers from `low` to `high`; with `log` on a logarithmic scale, as for learning rates."""
    found = f"interval({_text(low)},{_text(high)})"
    return Varied(f"tag(log,{found})" if log else found)


def train(keys: Mapping[str, object] | None = None, folder: str | Path | None = None) -> "TrainedRun":
    """Train one network, as `segsweep train KEY=VALUE ...` does; the key `resume` continues a run.

    This sets torch's switches for the whole process: its threads, TF32, and what `train.deterministic` says.

    Args:
        keys: the keys of the command line, for example `{"data": "folder", "data.root": "cells", "optim.lr": 1e-4}`.
        folder: folder of the run; default: outputs/DATE/TIME.

    Raises:
        segsweep.errors.ConfigError: an error in the keys, the data (`DataError`), the memory or the loss; see its
            subclasses. A training that is refused before its first epoch leaves no files.
        KeyboardInterrupt: the kernel was interrupted; `resume` continues after the last complete epoch.
    """
    words = _words(keys or {})
    if varied := [key for key, value in (keys or {}).items() if isinstance(value, Varied)]:
        raise ConfigError(
            f"{varied[0]}: has several values: segsweep.sweep tries each of them, segsweep.train takes one."
        )
    if search := [key for key in keys or {} if key.startswith("hydra") or key == "sweeps"]:
        what = "give the folder as folder=" if search[0] == "hydra.run.dir" else "segsweep.sweep takes it"
        raise ConfigError(f"{search[0]}: not a key of segsweep.train: {what}.")
    if resumed := (keys or {}).get("resume"):
        if folder is not None:
            raise ConfigError(f"folder={folder}: resume continues in the run's own folder. Drop one of the two.")
        place = Path(str(resumed)).expanduser().resolve()
        _raise_stopped(launch(words, SINGLE))
    else:
        place = _place(folder, "")
        _raise_stopped(begin(words, place))
    return TrainedRun(place)


def sweep(
    keys: Mapping[str, object] | None = None, folder: str | Path | None = None, **search: object
) -> "FinishedSweep":
    """Search for the best encoder, learning rate or other keys, as `segsweep train -m hydra/sweeper=optuna` does.

    Args:
        keys: as for `train`; the value of a key that is varied is a `choice` or an `interval`. The key "sweeps" takes
            the name of a file in sweeps/.
        folder: folder of the sweep; the same call with the same folder continues it. Default:
            outputs/DATE/TIME-multirun.
        search: keys of `hydra.sweeper`, for example `n_trials=24`.

    Raises:
        segsweep.errors.ConfigError: the sweep is refused; its subclass `SweepError`: too many trials failed.
        KeyboardInterrupt: the kernel was interrupted; the same call with the sweep's folder continues it.
    """
    given = {**(keys or {}), **{f"{PREFIX}{name}": value for name, value in search.items()}}
    if given.get(f"{PREFIX}dry"):
        raise ConfigError("dry: a dry run returns no result. Type segsweep train -m hydra/sweeper=optuna with it.")
    if other := [key for key in given if key.startswith("hydra") and not key.startswith(PREFIX)]:
        raise ConfigError(f"{other[0]}: give the folder as folder=, and keys of {PREFIX.rstrip('.')} by their names.")
    words = _words(given)
    place = _place(folder, "-multirun")
    if not any(word.startswith("sweeps=") for word in words):
        words = ["-m", "hydra/sweeper=optuna", *words]
    _raise_stopped(launch([*words, f"hydra.sweep.dir={_text(place)}"], SINGLE))
    return FinishedSweep(place)


def load(run: str | Path, device: str = "auto") -> "TrainedModel":
    """Load a trained model. This sets torch's threads and TF32 for the whole process, as in its training.

    Args:
        run: a run's folder, a sweep's folder (loads the winner), a model's file, an MLflow run id, "best", or
            "best:EXPERIMENT".
        device: as `train.device`.

    Raises ConfigError: there is no such model, or the device cannot run it.
    """
    from segsweep.inference.find import find  # torch: seconds
    from segsweep.inference.predict import Predictor

    return TrainedModel(Predictor(find(str(run)).model, device=device, option="device="))


@dataclass(frozen=True)
class TrainedRun:
    """A run: its records and its model. A notebook shows its scores and curves."""

    folder: Path

    @property
    def record(self) -> Run:
        """All records of the run: `start`, `epochs`, `end`."""
        return journal.read(self.folder)

    @property
    def metrics(self) -> dict[str, float]:
        """The scores of the best epoch by name, such as `val/iou`, and `test/iou` if the test split was scored."""
        end = self.record.end
        return {name: value for name, value in (end.metrics if end else {}).items() if value is not None}

    @property
    def epochs(self) -> "pd.DataFrame":
        """The metrics of each epoch, one row per epoch."""
        import pandas as pd

        epochs = self.record.epochs
        return pd.DataFrame([epoch.metrics for epoch in epochs], [epoch.epoch for epoch in epochs])

    def load(self, device: str = "auto") -> "TrainedModel":
        """Load the model of the best epoch."""
        return load(self.folder, device)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{v:.4f}</td></tr>" for k, v in self.metrics.items())
        figures = [self.folder / "figures" / name for name in ("training.png", "worst.png")]
        pictures = "".join(_inline(path.read_bytes()) for path in figures if path.exists())
        return f"<p>{html.escape(str(self.folder))}</p><table>{rows}</table>{pictures}"


@dataclass(frozen=True)
class FinishedSweep:
    """A sweep: its trials and its result. A notebook shows its ranking."""

    folder: Path

    @property
    def trials(self) -> "pd.DataFrame":
        """One row for each trial, best first."""
        from segsweep.runs.trial import load_all
        from segsweep.sweeping.report import table

        return table(list(load_all(self.folder)))

    @property
    def ranking(self) -> "pd.DataFrame":
        """One row for each finalist, best first: means over the runs with new seeds."""
        from segsweep.sweeping.report import ranking, results

        return ranking(results(self.folder))

    @property
    def winner(self) -> TrainedRun:
        """The run of the winner."""
        from segsweep.inference.find import find

        return TrainedRun(find(str(self.folder)).run)

    def load(self, device: str = "auto") -> "TrainedModel":
        """Load the winner's model."""
        return load(self.folder, device)

    def _repr_html_(self) -> str:
        link = html.escape(str(self.folder / "report.html"))
        rows = self.ranking if len(self.ranking) else self.trials
        return f'<p><a href="{link}">{link}</a></p>{rows.to_html(index=False, float_format="{:.4f}".format)}'


@dataclass(frozen=True)
class TrainedModel:
    """A trained model; it prepares images in the same way as its training did."""

    predictor: "Predictor"

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their indices."""
        return list(self.predictor.classes)

    def predict(self, image: "str | Path | np.ndarray") -> "Prediction":
        """Segment one image.

        Args:
            image: a file, or an array of pixels `h w` or `h w c` with the data type and scale of the training images.

        Pixels without data (NaN, infinite, or the run's `data.nodata`) get no class, as in a file.

        Raises DataError: the file cannot be read; channels or data type differ from the training images.
        """
        model = self.predictor
        if isinstance(image, (str, Path)):
            picture = model.picture(Path(image))
            pixels = picture.pixels
        else:
            pixels = np.array(image)  # a copy: what Pillow gives may not be written
            if pixels.ndim not in (2, 3):
                numeric = pixels.ndim and pixels.dtype.kind in "biuf"
                shape = " x ".join(map(str, pixels.shape)) if numeric else type(image).__name__
                raise DataError(f"image: must be a file, or the pixels h w or h w c of one image, not {shape}.")
            from segsweep.data.images import picture_of  # tifffile: half a second

            picture = picture_of(pixels[..., None] if pixels.ndim == 2 else pixels, model.info.nodata)
            pixels = model.accept(picture.pixels, "image")
        nowhere = picture.nowhere
        classes, probabilities = model.decided(pixels)
        if nowhere is not None:
            from segsweep.data.labels import VOID  # torch: seconds

            classes[nowhere], probabilities[:, nowhere] = VOID, np.nan
        return Prediction(pixels, classes, probabilities, self.classes, (model.range[0], model.range[1]))


@dataclass(frozen=True, repr=False)
class Prediction:
    """A model's prediction for an image. A notebook shows the image with the classes painted over it."""

    image: np.ndarray  # the model's input, `h w c`
    classes: np.ndarray  # class indices, uint8 `h w`; 255 where the file has no data
    probabilities: np.ndarray  # float32 `k h w`, one map for each class; two classes: the foreground's (k = 1)
    names: list[str]  # of the classes
    range: tuple[float, float]  # lowest and highest pixel value in training; drawn black and white

    def __repr__(self) -> str:
        height, width = self.classes.shape
        shares = [f"{name} {100 * float((self.classes == i).mean()):.1f} %" for i, name in enumerate(self.names)]
        return f"Prediction({height} x {width}: {', '.join(shares)})"

    def save(self, path: str | Path) -> None:
        """Write the class indices as a PNG with a palette, whatever the name says."""
        from segsweep.figures.pictures import indexed

        indexed(self.classes).save(path, "PNG")

    def _repr_png_(self) -> bytes:
        from PIL import Image

        from segsweep.figures.pictures import overlay, shown

        made = BytesIO()
        Image.fromarray(overlay(shown(self.image, *self.range), self.classes)).save(made, "PNG")
        return made.getvalue()


def _words(keys: Mapping[str, object]) -> list[str]:
    return [f"{key}={_text(value, f'{key}: ')}" for key, value in keys.items()]


def _text(value: Any, of: str = "") -> str:
    """Write a value in Hydra's grammar; an error begins with what it is `of`."""
    if isinstance(value, Varied):
        return value.text
    try:
        return typed(_plain(value))
    except TypeError as error:
        raise ConfigError(f"{of}values must be texts, numbers, lists or mappings of them, not {value!r}.") from error


def _plain(value: Any) -> Any:
    """Return a value with paths as texts, and what numpy or torch hold as numbers and lists."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _place(folder: str | Path | None, end: str) -> Path:
    if folder is not None:
        return Path(folder).expanduser().resolve()
    now = datetime.now()
    return outputs() / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}{end}"


def _raise_stopped(code: int) -> None:
    if code == 143:
        raise Terminated
    if code:
        raise KeyboardInterrupt


def _inline(png: bytes) -> str:
    return f'<img style="max-width: 100%" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
