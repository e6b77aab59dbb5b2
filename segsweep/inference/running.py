"""Decide how a trained model is run: in the same way as when it was scored, if the device can."""

import torch

from segsweep.data.geometry import Canvas
from segsweep.data.images import WIDEST
from segsweep.engine import device as devices
from segsweep.engine.execution import Execution
from segsweep.errors import ConfigError, DataError
from segsweep.nn.checkpoint import ModelInfo


def refuse_far(name: object, low: float, high: float, trained: tuple[float, float]) -> None:
    """Refuse pixels between these values if all logits would be NaN: a float's lowest value that no tag names.

    `trained` is the range of the training's pixels. Raises DataError, which begins with the `name`.
    """
    if max(-low, high) > WIDEST:
        raise DataError(
            f"{name}: pixels from {low:g} to {high:g}: this range is too large to compute with; the model was trained "
            f"on "
            f"{trained[0]:g} to {trained[1]:g}. If one of these values means no data, replace it by NaN."
        )


def canvas(info: ModelInfo) -> Canvas:
    """Return how a model's training laid images on canvases."""
    return Canvas(info.size, info.resize, info.zoom, info.filled)


def without_views(info: ModelInfo) -> str:
    """Say that a model's scores are of mirrored views, which the network alone does not compute; empty if not."""
    if info.tta == "none":
        return ""
    return f"scores are means over mirrored views (train.tta={info.tta}), and this model computes one view"


def execution(info: ModelInfo, device: torch.device, asked: str | None = None) -> tuple[Execution, str]:
    """Decide how a model is run on a device, and say it and why in a line.

    Precision and memory layout are the training's own, so that predictions are those that were scored; where the
    processor dies of that precision it is fp32, and where no training is known what the device does fastest.

    Args:
        asked: a precision as `train.precision`, taken instead.

    Raises ConfigError: the processor dies of what was asked for.
    """
    own = info.precision
    if asked:
        precision = devices.precision(asked, device, "--precision ")
        other = own not in (None, devices.named(precision))
        why = f"as --precision {asked} says" + (
            f"; the model was trained and scored in {own}, so results may differ slightly" * other
        )
    elif own is None:
        precision = devices.precision("auto", device)
        why = "the fastest here, because the model's file does not record the precision of its training"
    else:
        try:
            precision, why = devices.precision(own, device), "as in training"
        except ConfigError:
            precision = torch.float32
            why = f"this processor crashes with {own}, the precision of its training, so results may differ slightly"
    channels_last = info.channels_last is not False
    layout = "channels last" if channels_last else "channels first"
    return Execution(precision, channels_last), f"{devices.named(precision)}, {layout}: {why}"
