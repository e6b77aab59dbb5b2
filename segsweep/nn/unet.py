"""A U-Net on any timm encoder, from pixels to logits."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segsweep.errors import ConfigError
from segsweep.nn.decoder import Decoder
from segsweep.nn.encoder import Encoder
from segsweep.nn.plan import macs, plan
from segsweep.nn.weights import Weights, about


class UNet(nn.Module):
    """A pretrained encoder, a decoder from scratch, and the normalisation between pixels and encoder.

    Args:
        name: any timm model, with or without a pretrained tag.
        num_classes: logits for each pixel; 1 for binary tasks.
        in_channels: channels of the image.
        pretrained: True: pretrained weights or an error; "auto": or random ones, with a warning; False: random; or what
            `segsweep.nn.weights.find` has found.
        weights_file: a timm checkpoint to take the encoder's weights from.
        width: channels of the decoder's stages, deepest first, or "auto": scaled to the encoder.
        norm: the decoder's normalisation: batch, group or layer.
        dropout: probability of dropping a channel before the head.
        drop_path: probability of skipping a residual block of the encoder in training.
        mean, std: of each channel, on the scale of the pixels; default: the encoder's own, for pixels in 0..255.
        clip: lowest and highest value of each channel; pixels beyond are set to them.

    Attributes:
        arguments: the keyword arguments that build the same architecture again, without weights.
        weights_source: where the encoder's weights came from: file, package, cache, hub or random.

    Raises:
        ConfigError: no such model, no weights, or widths that do not fit the decoder.
        ValueError: one of mean and std without the other.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int = 1,
        in_channels: int = 3,
        pretrained: str | bool | Weights = False,
        weights_file: str | None = None,
        *,
        width: str | Sequence[int] = "auto",
        norm: str = "batch",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        clip: Sequence[Sequence[float]] | None = None,
    ):
        super().__init__()
        self.encoder = Encoder(name, in_channels, pretrained, weights_file, drop_path)
        self.weights_source = self.encoder.weights_source
        try:
            self.plan = plan(self.encoder.maps, width, self.encoder.macs)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.decoder = Decoder(self.plan, self.encoder.maps, in_channels, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(self.decoder.out_channels, num_classes, 1)
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together: give both or none")
        if mean is None or std is None:
            mean, std = encoder_statistics(name, in_channels)
        self.register_buffer("mean", _per_channel(mean))
        self.register_buffer("std", _per_channel(std))
        self.clips = clip is not None
        if clip:
            self.register_buffer("low", _per_channel(clip[0]), persistent=False)
            self.register_buffer("high", _per_channel(clip[1]), persistent=False)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.arguments: dict[str, Any] = {
            "name": name,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "width": [stage.width for stage in self.plan.stages],
            "norm": norm,
            "dropout": dropout,
            "clip": [list(edge) for edge in clip] if clip else None,  # as JSON gives it back
        }

    def macs(self, size: tuple[int, int]) -> float:
        """Multiply-adds of a forward pass over an image of this height and width; training takes three times that."""
        area = size[0] * size[1]
        seen = math.prod(self.encoder.input_size) if self.encoder.input_size else area
        return self.encoder.macs * seen + macs(self.plan) * area

    def forward(self, pixels: Tensor) -> Tensor:
        """From pixels to logits.

        Args:
            pixels: `b c h w`, any height and width from 32, on the scale of the stored data type (0..255 for 8 bits).

        Returns:
            logits `b k h w`.
        """
        height, width = pixels.shape[-2:]
        if self.clips:
            pixels = pixels.clamp(self.low, self.high)
        image = (pixels - self.mean) / self.std
        step = self.encoder.multiple
        below, right = -height % step, -width % step
        if self.training and len(pixels) == 1 and height + below == width + right == step:
            right += step  # BatchNorm needs more than one value for a channel, on the deepest map, too
        if below or right:
            image = F.pad(image, (0, right, 0, below), mode="replicate")
        x = self.decoder(image, self.encoder(image))
        return self.head(self.dropout(x))[..., :height, :width]


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def encoder_statistics(name: str, in_channels: int = 3) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the encoder was trained with, for pixels in 0..255.

    For other than three channels the three's average is repeated, as timm does with the stem's weights.
    """
    config = about(name)
    mean, std = [255 * m for m in config.mean], [255 * s for s in config.std]
    if in_channels != len(mean):
        mean, std = [sum(mean) / len(mean)] * in_channels, [sum(std) / len(std)] * in_channels
    return mean, std


def predict(logits: Tensor) -> Tensor:
    """Logits `b k h w` to class indices `b h w` int64; one logit means foreground above 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
