"""The U-Net decoder, built from a plan (https://arxiv.org/abs/1505.04597)."""

from collections.abc import Sequence

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from segsweep.nn.plan import DecoderPlan, Map, Stage, upsamplings


def norm(kind: str, channels: int) -> nn.Module:
    """Make a normalisation layer for `b c h w`: batch, group (of 8 channels) or layer (over the channels)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(max(1, channels // 8) if channels % 8 == 0 else 1, channels)
    return LayerNorm2d(channels)


def conv(kind: str, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Make a convolution, norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, norm(kind, outputs), nn.ReLU(inplace=True))


class Stem(nn.Module):
    """Maps at strides 1 and 2 straight from the image, of so many channels (0 leaves one out)."""

    def __init__(self, in_channels: int, channels: tuple[int, int], kind: str):
        super().__init__()
        full, half = channels
        self.first = conv(kind, in_channels, full) if full else None
        self.second = conv(kind, full or in_channels, half, stride=2) if half else None

    def forward(self, image: Tensor) -> list[Tensor]:
        """From `b c h w` to the maps there are, `b c1 h w` and `b c2 h/2 w/2`."""
        maps = []
        if self.first is not None:
            image = self.first(image)
            maps.append(image)
        if self.second is not None:
            maps.append(self.second(image))
        return maps


class Pyramid(nn.Module):
    """Several scales out of a single-scale encoder's map (ViTDet's simple pyramid, https://arxiv.org/abs/2203.16527)."""

    def __init__(self, single: Map, levels: Sequence[Map], kind: str):
        super().__init__()
        self.levels = nn.ModuleList(_level(single, level, kind) for level in levels)

    def forward(self, single: Tensor) -> list[Tensor]:
        """From `b c h w` to the levels, finest first."""
        return [level(single) for level in self.levels]


def _level(single: Map, level: Map, kind: str) -> nn.Module:
    if level.stride > single.stride:
        return nn.MaxPool2d(2, ceil_mode=True)
    layers: list[nn.Module] = []
    for inputs, outputs, _ in upsamplings(single, level):
        layers += [nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), norm(kind, outputs), nn.GELU()]
    return nn.Sequential(*layers)


class JoiningConv2d(nn.Conv2d):
    """A 3x3 convolution over a coarse map, brought to the skip's size, and the skip.

    It is computed in one of two ways, which are equal up to rounding:

    - joined: resize, concatenate, convolve. Fewer calls.
    - doubling: resizing and convolving the coarse map is one transposed convolution (`_upsampled`); the skip is
      convolved by itself and added. Fewer products and copies.

    In evaluation mode it is always the second, so that no score depends on how a training was run.

    Attributes:
        doubling: whether a training takes the second way, too.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.doubling = True

    @property
    def joins(self) -> bool:
        """Tell whether map and skip are concatenated: then autocast casts the weights as they are."""
        return self.training and not self.doubling

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """From `b c h w` and the skip `b s *size`, if any, to `b outputs *size`."""
        if self.joins:
            x = _resized(x, size)
            return F.conv2d(x if skip is None else torch.cat([x, skip], 1), self.weight, padding=1)
        if skip is None:
            return _upsampled(x, self.weight, size)
        of_map, of_skip = torch.split(self.weight, [x.shape[1], skip.shape[1]], dim=1)
        return _upsampled(x, of_map, size) + F.conv2d(skip, of_skip, padding=1)


class Block(nn.Module):
    """Upsample to the stage's size, join the skip, convolve twice."""

    def __init__(self, stage: Stage, kind: str):
        super().__init__()
        width = stage.width
        joining = JoiningConv2d(stage.inputs + stage.skip, width)
        first = nn.Sequential(joining, norm(kind, width), nn.ReLU(inplace=True))
        self.convs = nn.Sequential(first, conv(kind, width, width))
        self.has_skip = stage.skip > 0

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """From `b c h w` and the skip `b s *size`, if any, to `b width *size`."""
        joining, norm, activation = self.convs[0].children()
        result: Tensor = self.convs[1](activation(norm(joining(x, skip, size))))
        return result


def set_doubling(model: nn.Module, doubling: bool) -> None:
    """Choose how a model's decoder upsamples in training, see `JoiningConv2d`."""
    for module in model.modules():
        if isinstance(module, JoiningConv2d):
            module.doubling = doubling


def _upsampled(x: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring `x` to `size`, then convolve it by 3x3.

    Nearest doubling and the convolution are one transposed convolution with 4x4 kernels: 4 products for each pixel
    where there were 9 (https://arxiv.org/abs/1609.07009 has the equivalence).
    """
    if size == (2 * x.shape[-2], 2 * x.shape[-1]):
        return F.conv_transpose2d(x, _doubling(weight), stride=2, padding=1)
    return F.conv2d(_resized(x, size), weight, padding=1)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring `x` to `size`: nearest where that is a multiple, else bilinear."""
    height, width = x.shape[-2:]
    if size == (height, width):
        return x
    whole = size[0] % height == 0 and size[1] % width == 0
    return F.interpolate(x, size=size, mode="nearest" if whole else "bilinear")


def _doubling(weight: Tensor) -> Tensor:
    """From `o i 3 3` to the `i o 4 4` of the transposed convolution: each tap meets a pixel that was doubled."""
    wide = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    wide = wide[..., :-1] + wide[..., 1:]
    return wide[..., :-1, :] + wide[..., 1:, :]


class Decoder(nn.Module):
    """From an encoder's maps, finest first, and the image to a full-resolution map.

    Args:
        kind: batch, group or layer normalisation.
    """

    def __init__(self, plan: DecoderPlan, maps: Sequence[Map], in_channels: int, kind: str = "batch"):
        super().__init__()
        self.out_channels = plan.stages[-1].width
        self.pyramid = Pyramid(maps[0], plan.pyramid, kind) if plan.pyramid else None
        self.neck = conv(kind, plan.deepest.channels, plan.neck, kernel=1) if plan.neck else nn.Identity()
        self.stem = Stem(in_channels, plan.stem, kind) if any(plan.stem) else None
        self.strides = [stage.stride for stage in plan.stages]
        self.blocks = nn.ModuleList(Block(stage, kind) for stage in plan.stages)
        self.checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's switch: compute the blocks' activations again in the backward pass instead of keeping them."""
        self.checkpointing = enable

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """From the normalised image `b c h w` and the encoder's maps to `b out_channels h w`."""
        height, width = image.shape[-2:]
        if self.pyramid is not None:
            maps = self.pyramid(maps[0])
        skips = [*(self.stem(image) if self.stem is not None else []), *maps]
        x: Tensor = self.neck(skips.pop())
        for block, stride in zip(self.blocks, self.strides, strict=True):
            skip = skips.pop() if block.has_skip else None
            size = skip.shape[-2:] if skip is not None else (round(height / stride), round(width / stride))
            arguments = x, skip, tuple(size)
            again = self.checkpointing and self.training
            x = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
        return x
