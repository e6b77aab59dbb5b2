"""What a run leaves to load: `best.safetensors`, the model, and `last.pt`, the training to go on with.

Both are written beside their place and moved there, so a killed run leaves whole files. No file ever runs a pickle.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from segsweep.errors import ConfigError, unloaded
from segsweep.nn import UNet
from segsweep.paths import atomically

VERSION = 1
BEST, LAST = "best.safetensors", "last.pt"


def save_model(
    path: Path, model: UNet, *, classes: Sequence[str], size: Sequence[int], resize: str, **more: Any
) -> None:
    """Write the weights and all that is needed to use them.

    Args:
        classes: names, in the order of their indices.
        size, resize: the canvas the model was trained on.
        more: further JSON values to keep.
    """
    about = {
        "version": VERSION,
        "model": model.arguments,
        "classes": list(classes),
        "size": list(size),
        "resize": resize,
        "weights_source": model.weights_source,
        **more,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    atomically(path, lambda target: save_file(tensors, target, metadata={"segsweep": json.dumps(about)}))


def describe(path: str | Path) -> dict[str, Any]:
    """What `save_model` kept beside the weights.

    Raises:
        ConfigError: not a segsweep model, or of a later format.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file. A run's model is its best.safetensors.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{path}: not a safetensors file ({error}). A run's model is its best.safetensors."
        ) from error
    if "segsweep" not in metadata:
        raise ConfigError(
            f"{path}: a safetensors file, but not a segsweep model. A run's model is its best.safetensors."
        )
    about = json.loads(metadata["segsweep"])
    if about["version"] > VERSION:
        raise ConfigError(
            f"{path}: of format {about['version']}, this segsweep reads up to {VERSION}. Update segsweep."
        )
    return about


def load_model(path: str | Path, device: str | torch.device = "cpu") -> UNet:
    """A trained model, ready to run: `load_model(path)(pixels)` gives logits.

    Raises:
        ConfigError: not a segsweep model.
    """
    about = describe(path)
    model = UNet(**about["model"])
    load_weights(path, model)
    return model.to(device).eval()


def load_weights(path: str | Path, model: UNet) -> None:
    """Fill an existing model of the same architecture."""
    with safe_open(path, framework="pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state: tensors, numbers, strings and containers of them."""
    atomically(path, lambda target: torch.save({"version": VERSION, **state}, target))


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a training's state.

    Raises:
        ConfigError: damaged, or of a later format.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # on noise, torch's safe unpickler raises nearly anything
        raise ConfigError(f"{path}: not a checkpoint that can be read: {unloaded(error)}") from error
    if not isinstance(state, dict) or "version" not in state:
        raise ConfigError(f"{path}: not a segsweep checkpoint. A run's is its last.pt.")
    if state["version"] > VERSION:
        raise ConfigError(
            f"{path}: of format {state['version']}, this segsweep reads up to {VERSION}. Update segsweep."
        )
    return state
