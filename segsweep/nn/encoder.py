"""Any timm model as an encoder: NCHW maps, finest first, one for each stride, for images of any size.

How a model is run is measured, not looked up by name: it is built on the `meta` device, where shapes cost nothing, and
asked for maps at several sizes. timm's own `feature_info.reduction()` is wrong for some models.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import padding
from timm.models import group_parameters, is_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from segsweep.errors import ConfigError, closest
from segsweep.nn import weights
from segsweep.nn.plan import Map, plan
from segsweep.nn.tiles import Size

# timm's switches for images of any size, tried in this order. A model that takes none runs at its native size.
SWITCHES: tuple[Mapping[str, Any], ...] = ({}, {"dynamic_img_size": True})

# Operators whose factors are both activations, and the share of them from which an encoder is called a transformer.
ATTENDING = ("bmm", "scaled_dot_product")
ATTENTION = 0.005

logging.getLogger("timm").setLevel(logging.ERROR)  # what it warns of here, we check


@dataclass(frozen=True)
class EncoderTraits:
    """What was measured of an architecture."""

    switches: tuple[tuple[str, Any], ...]  # timm's keyword arguments that let it take any size
    native: Size  # height and width it was built for; `fixed`: it takes no other
    fixed: bool
    kept: tuple[int, ...]  # indices of the maps that are used, finest first; `maps` describes them
    channels_last: bool  # its maps come as `b h w c`
    maps: tuple[Map, ...]
    macs: float  # multiply-adds for one pixel of the image
    kind: str = "convolutional"  # what decides its learning rate, a key of `segsweep.catalog.RATES`
    device: str = "meta"  # where it could be measured: meta, or cpu for models that look at values


class Encoder(nn.Module):
    """A timm model without its head.

    Args:
        name: timm's name, with or without a pretrained tag.
        in_channels: channels of the image; a pretrained stem is adapted.
        pretrained, weights_file: as `segsweep.nn.weights.find` has them.
        drop_path: probability of skipping a residual block in training, the deepest's; it falls towards the image
            (https://arxiv.org/abs/1603.09382).

    Attributes:
        freeze_norm: BatchNorm keeps its statistics in training; may be set at any time.
        maps: channels and stride of the maps that `forward` gives, finest first.
        macs: multiply-adds for one pixel of the image.
        weights_source: where the weights came from: file, package, cache, hub or random.
        input_size: the fixed height and width it runs at; None: the image's.

    Raises ConfigError: no such model, no weights, or weights that do not fill the encoder.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        pretrained: str | bool | weights.Weights = False,
        weights_file: str | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.name, self.freeze_norm = name, False
        measured = encoder_traits(name)
        self.maps, self.macs = measured.maps, measured.macs
        self.input_size = measured.native if measured.fixed else None
        self._kept, self._channels_last = measured.kept, measured.channels_last
        on_meta = torch.get_default_device().type == "meta"
        found = weights.RANDOM if on_meta else weights.find(name, pretrained, weights_file)
        more = {**dict(measured.switches), **({"drop_path_rate": drop_path} if drop_path else {})}
        try:
            self.timm, self.weights_source = weights.create(name, found, in_chans=in_channels, **more)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            raise ConfigError(f"encoder.drop_path={drop_path}: {name} has no drop path. Drop it.") from error

    @property
    def multiple(self) -> int:
        """The image's height and width must be multiples of this many pixels (1 for a fixed input size)."""
        return 1 if self.input_size else math.ceil(self.maps[-1].stride)

    def layers(self) -> dict[str, int]:
        """Return the layer of each parameter, from 0, nearest to the image, as timm groups them.

        timm's wrappers rename what they hold; a parameter that the bare model does not have is of the layer before it.
        """
        with torch.device("meta"):
            bare: Any = timm.create_model(self.name, pretrained=False)
        of = {_plain(key): layer for key, layer in group_parameters(bare, bare.group_matcher(), reverse=True).items()}
        found, layer = {}, 0
        for key, _ in self.named_parameters():
            layer = of.get(_plain(key.removeprefix("timm.").removeprefix("model.")), layer)
            found[key] = layer
        return {key: sorted(set(found.values())).index(layer) for key, layer in found.items()}

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """From the normalised image `b c h w` to maps `b c_i h/s_i w/s_i`, in the order of `self.maps`."""
        height, width = image.shape[-2:]
        # In an export sizes may be symbols, which cannot be compared.
        resized = self.input_size and (isinstance(height, torch.SymInt) or (height, width) != self.input_size)
        if resized:
            image = F.interpolate(image, size=self.input_size, mode="bilinear", antialias=True)
        maps = self.timm(image)
        maps = [maps[i] for i in self._kept]
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if resized:
            sizes = [(_length(height, m.stride), _length(width, m.stride)) for m in self.maps]
            maps = [F.interpolate(m, size=size, mode="bilinear") for m, size in zip(maps, sizes, strict=True)]
        return maps


@contextmanager
def whole_strides() -> Iterator[None]:
    """Have timm take each map's sides for multiples of the stride of what runs over it, while in this context.

    So they are where the image's are multiples of the deepest stride. TensorFlow's SAME padding is then a constant;
    as a formula of the size it makes torch.export think for a quarter of an hour about EfficientNets.
    """
    original = padding.get_same_padding

    def constant(_: Any, kernel_size: int, stride: int, dilation: int) -> int:
        return max(dilation * (kernel_size - 1) + 1 - stride, 0)

    padding.get_same_padding = constant  # type: ignore[assignment]
    try:
        yield
    finally:
        padding.get_same_padding = original


def _length(image: int, stride: float) -> int:
    """How long a map of this stride is; a symbol stands for a multiple of it."""
    return image // int(stride) if isinstance(image, torch.SymInt) else max(1, round(image / stride))


def _plain(name: str) -> str:
    return name.replace(".", "_")


@cache
def encoder_traits(name: str) -> EncoderTraits:
    """Measure how timm's model `name` is to be run; a fraction of a second on the `meta` device.

    Raises ConfigError: no such model.
    """
    architecture = name.partition(".")[0]
    if not is_model(architecture):
        near = closest(architecture, timm.list_models(), n=3)
        hint = f" Closest: {', '.join(near)}. Try encoder={near[0]}." if near else ""
        raise ConfigError(f"encoder={name}: not a timm model.{hint}")
    native = weights.about(name).input_size[-2:]
    fixed = None
    for switches in SWITCHES:
        try:
            measured = _measured(name, native, switches, "meta")
        except (TypeError, AssertionError):  # it does not know the switch, or takes no size with it
            continue
        except RuntimeError:  # it looks at values, which meta tensors do not have
            measured = _measured(name, native, switches, "cpu")
        if not measured.fixed:
            return measured
        fixed = fixed or measured
    assert fixed is not None
    return fixed


def decoder_width(name: str, width: str | Sequence[int] = "auto", classes: int = 1) -> list[int]:
    """Return the channels of the decoder's stages for this encoder, deepest first; `width` is as `decoder.width`.

    Raises ConfigError: no such model, or another number of widths than there are stages.
    """
    measured = encoder_traits(name)
    return [stage.width for stage in plan(measured.maps, width, measured.macs, classes).stages]


def _measured(name: str, native: Size, switches: Mapping[str, Any], device: str) -> EncoderTraits:
    with torch.device(device):
        model: Any = timm.create_model(name, pretrained=False, features_only=True, **switches).eval()
    model.requires_grad_(False)  # torch's counter stumbles over parameters that are passed on as they are
    native, shapes, operations = _at_native(model, native)
    channels = model.feature_info.channels()
    channels_last = all(s[3] == c != s[1] for s, c in zip(shapes, channels, strict=True))
    row = 1 if channels_last else 2
    found = _strides(model, native[0], [shape[row] for shape in shapes], row)
    by_stride = {stride: i for i, stride in enumerate(found)}  # of equal strides the last, deepest
    strides = sorted(by_stride)
    step = math.ceil(strides[-1])
    measured = EncoderTraits(
        switches=tuple(switches.items()),
        native=native,
        fixed=False,
        kept=tuple(by_stride[s] for s in strides),
        channels_last=channels_last,
        maps=tuple(Map(channels[by_stride[s]], s) for s in strides),
        macs=sum(operations.values()) / 2 / (native[0] * native[1]),
        kind=_kind(model, len(strides), operations),
        device=device,
    )
    takes_any = all(_runs(model, size, measured) for size in ((step, 2 * step), (5 * step, 3 * step)))
    return measured if takes_any else replace(measured, fixed=True)


def _at_native(model: nn.Module, native: Size) -> tuple[Size, list[tuple[int, ...]], dict[Any, int]]:
    """The largest size up to the native one that it takes, and its shapes there: SigLIP's 384 is no multiple of 14."""
    for less in range(31):
        size = (native[0] - less, native[1] - less)
        with suppress(AssertionError):
            return size, *_shapes(model, size)
    return native, *_shapes(model, native)


def _strides(model: nn.Module, side: int, lengths: list[int], row: int) -> list[float]:
    """How much shorter than the image each map is.

    At a side that 32 does not divide lengths are rounded: 240 / 8 is 30 and no stride. So a side that it divides is
    asked, too, and believed where it gives powers of two.
    """
    strides = [side / length for length in lengths]
    if side % 32 == 0:
        return strides
    even = 32 * math.ceil(side / 32)
    try:
        others = [even / shape[row] for shape in _shapes(model, (even, even))[0]]
    except (AssertionError, RuntimeError, ValueError):
        return strides
    return [o if math.log2(o).is_integer() else s for s, o in zip(strides, others, strict=True)]


def _shapes(model: nn.Module, size: Size, images: int = 1) -> tuple[list[tuple[int, ...]], dict[Any, int]]:
    """The maps' shapes for images of this size, and the floating-point operations by torch's operator."""
    device = next(model.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes = [tuple(m.shape) for m in model(torch.zeros(images, 3, *size, device=device))]
    return shapes, counter.get_flop_counts().get("Global", {})


def _kind(model: nn.Module, scales: int, operations: dict[Any, int]) -> str:
    """What decides its learning rate: whether it has several scales, attends, and is held by BatchNorm.

    Attention is where activations are multiplied with activations. ConvNeXt and its like, without BatchNorm, are
    trained as the hierarchical transformers are (https://arxiv.org/abs/2201.03545, appendix A).
    """
    if scales == 1:
        return "plain"
    attending = sum(count for operator, count in operations.items() if any(name in str(operator) for name in ATTENDING))
    attends = attending >= ATTENTION * sum(operations.values())
    steady = any(isinstance(module, _BatchNorm) for module in model.modules())
    return "convolutional" if steady and not attends else "hierarchical"


def _runs(model: nn.Module, size: Size, measured: EncoderTraits) -> bool:
    """Whether the model takes this size and its maps have the strides it showed at its native one."""
    row = 1 if measured.channels_last else 2
    try:
        shapes, _ = _shapes(model, size, images=2)
    except (AssertionError, RuntimeError, ValueError):
        return False
    return all(
        shapes[i][row : row + 2] == (math.ceil(size[0] / m.stride), math.ceil(size[1] / m.stride))
        for i, m in zip(measured.kept, measured.maps, strict=True)
    )
