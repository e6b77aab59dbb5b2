"""From an encoder's measured maps to the decoder's stages: arithmetic only, no torch.

Strides are total downsamplings and may be fractions (patch 14 gives 14, 7 and 3.5). A decoder runs from the deepest map
up to stride 1, about doubling the resolution at each stage, and takes a skip wherever there is one.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from segsweep.errors import ConfigError

# Channels at stride 1; each halving of the resolution doubles them: 256, 128, 64, 32, 16 for strides 16, 8, 4, 2, 1.
BASE_WIDTH = 16
WIDEST = 256
HEAD = 32  # channels that the last stages need at most, however many the classes
SEVERAL = 24  # that they have at least where classes compete
# A single-scale encoder's map is brought to these multiples of its stride (ViTDet, https://arxiv.org/abs/2203.16527).
PYRAMID = (1 / 4, 1 / 2, 1, 2)


@dataclass(frozen=True)
class Map:
    """One feature map: its channels and its stride."""

    channels: int
    stride: float


@dataclass(frozen=True)
class Stage:
    """One decoder stage: bring `inputs` channels to `stride`, join `skip` channels (0: no skip), give `width`."""

    stride: float
    inputs: int
    skip: int
    width: int


@dataclass(frozen=True)
class DecoderPlan:
    """What the decoder is built from.

    Attributes:
        pyramid: the levels made out of a single map, finest first; empty where the encoder has several scales.
        neck: channels that a 1x1 convolution brings the deepest map to, where it is much wider than the first stage, as
            MobileNetV3's 960 channels are (0: it is taken as it is).
        stem: channels of the stem's maps at strides 1 and 2 (0: not needed).
        stages: deepest first; the last one has stride 1.
    """

    pyramid: tuple[Map, ...]
    deepest: Map
    neck: int
    stem: tuple[int, int]
    stages: tuple[Stage, ...]


def plan(
    maps: Sequence[Map], width: str | Sequence[int] = "auto", encoder_macs: float = math.inf, classes: int = 1
) -> DecoderPlan:
    """Plan the decoder of an encoder with these maps, finest first, one for each stride.

    Args:
        width: the stages' channels, deepest first; `auto` scales 256, 128, 64, 32, 16 down until the decoder costs no
            more than the encoder, half of the whole; to an eighth at most. Then, where classes compete, no stage has
            less than `SEVERAL` channels, nor than two a class, up to `HEAD`: in fewer a rare class is lost with some
            seeds (MicroNet ebc2, CamVid, docs/log.md).
        encoder_macs: the encoder's multiply-adds for one pixel of the image.
        classes: logits of the head, a linear map of the last stage's channels.

    Raises ConfigError: `width` has another length than there are stages.
    """
    pyramid = _pyramid(maps[0]) if len(maps) == 1 else ()
    levels = list(pyramid or maps)
    own = {level.stride for level in levels}
    # Of two strides that are nearer than half a doubling the one serves for the other.
    finer = {fine for fine in (1.0, 2.0) if all(abs(math.log2(fine / stride)) >= 0.5 for stride in own)}
    strides = _ladder(sorted(own | finer))
    if width != "auto":
        if len(width) != len(strides):
            raise ConfigError(
                f"decoder.width={list(width)}: this encoder's decoder has {len(strides)} stages (strides "
                f"{', '.join(f'{stride:g}' for stride in strides)}), so it takes {len(strides)} widths, deepest first."
            )
        return _build(levels, pyramid, strides, [int(w) for w in width])
    scaled = [[_scaled(stride, eighths / 8) for stride in strides] for eighths in range(8, 0, -1)]
    affordable = (widths for widths in scaled if macs(_build(levels, pyramid, strides, widths)) <= encoder_macs)
    widths = next(affordable, scaled[-1])
    least = 8 if classes == 1 else min(HEAD, max(SEVERAL, 8 * math.ceil(2 * classes / 8)))
    return _build(levels, pyramid, strides, [max(least, width) for width in widths])


def macs(plan: DecoderPlan) -> float:
    """Count multiply-adds of the decoder's convolutions, for one pixel of the image."""
    total = 0.0
    for level in plan.pyramid:
        single = plan.pyramid[-2]  # the encoder's own map: PYRAMID ends in 1, 2
        for inputs, outputs, stride in upsamplings(single, level):
            total += inputs * outputs / stride**2
    coarser = plan.deepest.stride
    for stage in plan.stages:
        upsampled = 4 if coarser == 2 * stage.stride else 9  # products for each pixel: see segsweep.nn.decoder
        total += (upsampled * stage.inputs + 9 * (stage.skip + stage.width)) * stage.width / stage.stride**2
        coarser = stage.stride
    if plan.neck:
        total += plan.deepest.channels * plan.neck / plan.deepest.stride**2
    first, second = plan.stem
    return total + 9 * 3 * first + 9 * (first or 3) * second / 4


def upsamplings(single: Map, level: Map) -> list[tuple[int, int, float]]:
    """List the doublings from a single map to a finer level: inputs, outputs and the stride reached by each."""
    steps = []
    channels, stride = single.channels, single.stride
    while stride > level.stride:
        inputs, channels, stride = channels, max(level.channels, channels // 2), stride / 2
        steps.append((inputs, channels, stride))
    return steps


def _pyramid(single: Map) -> tuple[Map, ...]:
    levels = (Map(max(8, int(single.channels * min(1, f))), single.stride * f) for f in PYRAMID)
    return tuple(level for level in levels if level.stride >= 2)


def _ladder(strides: list[float]) -> list[float]:
    """From the maps' strides, ascending, to the stages', deepest first, with steps of about 2 where there is a gap."""
    ladder: list[float] = []
    for fine, coarse in reversed(list(itertools.pairwise(strides))):
        # A gap is a ratio: 16 to 1 are four doublings. Rounding their number and making them equal lets any ratio end
        # on the map's own stride, where its skip lies: 14 to 3.5 is 7, 3.5, and 32 to 5 is 17.2, 9.3, 5.
        steps = max(1, round(math.log2(coarse / fine)))
        ladder += [coarse * (fine / coarse) ** (i / steps) for i in range(1, steps)]
        ladder.append(fine)  # as it is and not computed: skips are looked up by it
    return ladder


def _scaled(stride: float, factor: float) -> int:
    width = min(WIDEST, BASE_WIDTH * stride) * factor
    return max(8, 8 * round(width / 8))


def _build(levels: list[Map], pyramid: tuple[Map, ...], strides: list[float], widths: list[int]) -> DecoderPlan:
    skips = {level.stride: level.channels for level in levels}
    stem = [0, 0]
    for stride, width in zip(strides, widths, strict=True):
        if stride in (1.0, 2.0) and stride not in skips:
            stem[int(stride) - 1] = skips[stride] = width
    deepest = max(levels, key=lambda level: level.stride)
    neck = 4 * widths[0] if deepest.channels > 8 * widths[0] else 0
    stages, inputs = [], neck or deepest.channels
    for stride, width in zip(strides, widths, strict=True):
        stages.append(Stage(stride, inputs, skips.get(stride, 0), width))
        inputs = width
    return DecoderPlan(pyramid, deepest, neck, (stem[0], stem[1]), tuple(stages))
