"""What a run leaves to load: `best.safetensors`, the model, and `last.pt`, the training to go on with.

Both are written whole, by `atomically`. No file ever runs a pickle.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import IO, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import nn

from segsweep import catalog
from segsweep.config.checks import check, is_color, is_whole, read
from segsweep.config.data import ZOOMS, is_zoom
from segsweep.config.schema import VIEWS
from segsweep.errors import ConfigError, first_line, one_of, unloaded
from segsweep.nn import UNet
from segsweep.nn.unet import Architecture
from segsweep.paths import BEST, atomically, load_json

VERSION = 1
LAST = "last.pt"
_HINT = f"A run's model is its {BEST}."


@dataclass(frozen=True)
class ModelInfo:
    """What a model's file says beside the weights; what has a default may be missing."""

    model: Architecture
    classes: list[str]  # names, by index
    size: tuple[int, int]  # the canvas in training, height and width
    resize: str  # how images were brought to it
    weights_source: str = "random"
    range: tuple[float, float] = (0.0, 255.0)  # lowest and highest value of the pixels in training
    dtype: str = "uint8"  # of these pixels
    epoch: int | None = None  # after which epoch it was kept; None where it comes from no run
    val_iou: float | None = None  # the score then
    # How it was run for that score; precision and layout are None where it comes from no run.
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    channels_last: bool | None = None  # the memory layout
    tta: str = "none"  # as `train.tta`
    tile: tuple[int, int] | None = None  # as `data.tile`
    values: list[int | list[int]] | None = None  # the mask value or colour that stands for each class
    nodata: Any = "auto"  # as `data.nodata`
    zoom: float = 1.0  # as `data.zoom`
    filled: bool = False  # as `segsweep.data.geometry.Canvas.filled`

    def __post_init__(self) -> None:
        one_of("resize", self.resize, ("pad", "squash", "crop"))
        one_of("tta", self.tta, VIEWS)
        check(is_zoom(self.zoom), "zoom", self.zoom, f"in {ZOOMS}")
        if self.tile is not None:
            check(min(self.tile) >= 32, "tile", self.tile, "32 pixels or more each")
        if self.values is not None:
            sound = len(self.values) == len(self.classes) and all(is_whole(v) or is_color(v) for v in self.values)
            check(sound, "values", self.values, "a whole number or a colour for each class")

    @property
    def resamples(self) -> bool:
        """Tell whether the model was shown images in another size than their own."""
        return self.resize != "crop" or self.zoom != 1

    @property
    def encoder(self) -> str:
        return self.model.name


def save_model(
    path: Path, model: UNet, *, classes: Sequence[str], size: Sequence[int], resize: str, **more: Any
) -> None:
    """Write the weights and all that is needed to use them; `more` are further fields of `ModelInfo`."""
    info = ModelInfo(model.architecture, list(classes), (size[0], size[1]), resize, model.weights_source, **more)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"segsweep": json.dumps({"version": VERSION, **asdict(info)})}
    # Written by Python, since what safetensors raises of a full disk is no OSError.
    atomically(path, lambda target: target.write_bytes(save(tensors, metadata)))


def describe(path: str | Path) -> ModelInfo:
    """Read what `save_model` kept beside the weights.

    Raises ConfigError: not a segsweep model, of a later format, or damaged.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file. {_HINT}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: not a safetensors file ({error}). {_HINT}") from error
    if "segsweep" not in metadata:
        raise ConfigError(f"{path}: a safetensors file, but not a segsweep model. {_HINT}")
    try:
        plain = load_json(metadata["segsweep"])
        version = plain.get("version") if isinstance(plain, dict) else None
        if isinstance(version, int):
            _refuse_later(version)
        info = read(ModelInfo, plain, "segsweep")
        catalog.check(info.encoder)
        return info
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a model: {first_line(error)}") from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> UNet:
    """Return a trained model, ready to run: `load_model(path)(pixels)` gives logits.

    Raises ConfigError: not a segsweep model, or weights that are not those of the architecture it names.
    """
    model = UNet(**vars(describe(path).model))
    try:
        load_weights(path, model)
    except RuntimeError as error:  # other names or shapes
        raise ConfigError(f"{path}: damaged: the weights are not those of its architecture.") from error
    return model.to(device).eval()


def load_weights(source: str | Path | bytes, model: nn.Module) -> None:
    """Fill an existing model of the same architecture from a file, or from its bytes."""
    model.load_state_dict(load(source) if isinstance(source, bytes) else load_file(source))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state: tensors, numbers, strings and containers of them."""
    atomically(path, partial(_save, {"version": VERSION, **state}))


class _Written(FileIO):
    """Remembers why the system refused to write: what torch raises then says nothing of it."""

    refused: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.refused = error
            raise


def _save(state: object, path: Path) -> None:
    file = _Written(path, "wb")
    try:
        with BufferedWriter(file) as whole:  # which goes on where a write was short: torch does not look
            torch.save(state, whole)
    except RuntimeError as error:
        raise file.refused or error from error


def load_state(path: Path | IO[bytes], device: torch.device) -> dict[str, Any]:
    """Read a training's state. Raises ConfigError: damaged, or of a later format."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # on noise, torch's safe unpickler raises nearly anything
        raise ConfigError(f"{path}: not a checkpoint that can be read: {unloaded(error)}") from error
    if not isinstance(state, dict) or "version" not in state:
        raise ConfigError(f"{path}: not a segsweep checkpoint. A run's is its {LAST}.")
    _refuse_later(state["version"], f"{path}: ")
    return state


def _refuse_later(version: int, where: str = "") -> None:
    if version > VERSION:
        raise ConfigError(
            f"{where}has format {version}, and this segsweep reads formats up to {VERSION}. Update segsweep."
        )
