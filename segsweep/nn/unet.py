"""A U-Net on any timm encoder, from pixels to logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from segsweep.config.schema import DecoderConfig
from segsweep.config.settings import Normalization
from segsweep.nn.decoder import Decoder, JoiningConv2d
from segsweep.nn.encoder import Encoder
from segsweep.nn.plan import macs, plan
from segsweep.nn.weights import Weights, about


@dataclass(frozen=True)
class Architecture:
    """The arguments of `UNet` that build the same model again, without weights."""

    name: str
    num_classes: int
    in_channels: int
    decoder: DecoderConfig
    normalization: Normalization


class UNet(nn.Module):
    """A pretrained encoder, a decoder from scratch, and the normalisation between pixels and encoder.

    Args:
        name: any timm model, with or without a pretrained tag.
        num_classes: logits for each pixel; 1 for binary tasks.
        pretrained: True: pretrained weights or an error; "auto": or random ones, with a warning; False: random; or what
            `segsweep.nn.weights.find` has found.
        weights_file: a timm checkpoint to take the encoder's weights from.
        drop_path: probability of skipping a residual block of the encoder in training.
        normalization: of the pixels; default: the encoder's own, for pixels in 0..255.

    Attributes:
        architecture: the arguments that build it again: `UNet(**vars(architecture))`.
        weights_source: where the encoder's weights came from: file, package, cache, hub or random.

    Raises ConfigError: no such model, no weights, or widths that do not fit the decoder.
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
        decoder: DecoderConfig = DecoderConfig(),  # noqa: B008
        drop_path: float = 0.0,
        normalization: Normalization | None = None,
    ):
        super().__init__()
        self.encoder = Encoder(name, in_channels, pretrained, weights_file, drop_path)
        self.weights_source: str = self.encoder.weights_source
        self.plan = plan(self.encoder.maps, decoder.width, self.encoder.macs, num_classes)
        self.decoder = Decoder(self.plan, self.encoder.maps, in_channels, decoder.norm)
        self.dropout = nn.Dropout2d(decoder.dropout)
        self.head = nn.Conv2d(self.decoder.out_channels, num_classes, 1)
        pixels = normalization or Normalization(*encoder_statistics(name, in_channels))
        self.register_buffer("mean", _per_channel(pixels.mean))
        self.register_buffer("std", _per_channel(pixels.std))
        self.clips = pixels.clip is not None
        if pixels.clip:
            self.register_buffer("low", _per_channel(pixels.clip[0]), persistent=False)
            self.register_buffer("high", _per_channel(pixels.clip[1]), persistent=False)
        self.num_classes, self.in_channels = num_classes, in_channels
        decided = replace(decoder, width=[stage.width for stage in self.plan.stages])
        self.architecture = Architecture(name, num_classes, in_channels, decided, pixels)

    def macs(self, size: tuple[int, int]) -> float:
        """Count multiply-adds of a forward pass over an image of this height and width; training takes thrice that."""
        area = size[0] * size[1]
        seen = math.prod(self.encoder.input_size) if self.encoder.input_size else area
        return self.encoder.macs * seen + macs(self.plan) * area

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels to logits `b k h w`.

        Args:
            pixels: `b c h w`, any height and width from 32, on the scale of the stored data type (0..255 for 8 bits).
        """
        height, width = pixels.shape[-2:]
        image = self.prepared(pixels)
        logits: Tensor = self.head(self.dropout(self.decoder(image, self.encoder(image))))
        return logits[..., :height, :width]

    def prepared(self, pixels: Tensor) -> Tensor:
        """Return what the encoder sees: normalised, and padded below and on the right to a multiple of its strides."""
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
        return image


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def encoder_statistics(name: str, in_channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that the encoder was trained with, for pixels in 0..255.

    For other than three channels the three's average is repeated, as timm does with the stem's weights.
    """
    config = about(name)
    mean, std = (tuple(255 * value for value in values) for values in (config.mean, config.std))
    if in_channels != len(mean):
        mean, std = ((sum(values) / len(values),) * in_channels for values in (mean, std))
    return mean, std


def casts_weights(layer: nn.Module) -> bool:
    """Tell whether autocast casts a layer's weights, as they are, before it uses them.

    Subclasses may compute with their weights first, as standardised convolutions do: of them only those known here.
    """
    known = (nn.Conv2d, Conv2dSame, nn.ConvTranspose2d, nn.Linear)
    return type(layer) in known or (isinstance(layer, JoiningConv2d) and layer.joins)


def predict(logits: Tensor) -> Tensor:
    """Turn logits `b k h w` into class indices `b h w` int64; one logit means foreground above 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
