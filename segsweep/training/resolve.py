"""From what was asked for to what is done: every `auto` gets its value. Pure: what is known comes as `Facts`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, TypeVar

from segsweep import catalog
from segsweep.config.schema import DataConfig, DecoderConfig, LossConfig, OptimConfig, TrainConfig
from segsweep.config.settings import Settings
from segsweep.engine import losses

Section = TypeVar("Section", DataConfig, DecoderConfig, LossConfig, OptimConfig, TrainConfig)

SHORTEST = 180  # images that an epoch shows at least, with data.repeats=auto: as many as data=shapes has
CROPPED = 5  # data.resize=auto crops images of one to this many canvases a side


@dataclass(frozen=True)
class Facts:
    """What is known of encoder and data when an experiment is decided."""

    kind: str  # of the encoder, a key of `segsweep.catalog.RATES`
    pretrained: bool
    width: Sequence[int]  # channels of the decoder's stages, deepest first, that suit the encoder
    sizes: Sequence[tuple[int, int]]  # height and width of each training image, in pixels
    validation: int  # number of validation images
    photographs: bool  # pixels are 8-bit colour, as the encoders were trained on
    classes: Sequence[str]  # names, by index
    pixels: Sequence[int]  # of each class in the training split
    cut: int | None = None  # where grey masks are cut that were smoothed or saved with loss


def resolve(wanted: Settings, facts: Facts) -> Settings:
    """Decide all that says `auto`, but for what is measured or counted later: the normalization and the batch size.

    What has a value keeps it, so settings that were decided before come back as they are.

    Raises ConfigError: weights of classes that do not fit the data.
    """
    data, rates = wanted.data, catalog.RATES[facts.kind]
    scale = rates.encoder_lr_scale if facts.pretrained else 1.0  # random weights learn as fast as the decoder
    usual = "encoder" if facts.photographs and facts.pretrained else "dataset"
    weights = losses.class_weights(facts.classes, facts.pixels, wanted.loss.class_weights, wanted.loss.pos_weight)
    return replace(
        wanted,
        encoder=replace(wanted.encoder, pretrained=facts.pretrained),
        decoder=_decided(wanted.decoder, width=list(facts.width)),
        optim=_decided(wanted.optim, lr=rates.lr, encoder_lr_scale=scale),
        data=_decided(
            decided_layout(data, facts.sizes, facts.validation),
            normalize="window" if data.window else usual,
            threshold=facts.cut,
            nodata="tag",
        ),
        loss=_decided(wanted.loss, class_weights=weights, pos_weight=weights and weights[1]),
        train=replace(_decided(wanted.train, bn_momentum="scaled"), epochs=wanted.train.epoch_limit),
    )


def decided_layout(data: DataConfig, sizes: Sequence[tuple[int, int]], validation: int) -> DataConfig:
    """Decide what follows from the images alone; `sizes` and `validation` are those of `Facts`."""
    return _decided(
        data,
        resize="crop" if data.of_crops else _resize(sizes, data.size),
        zoom=1.0,
        repeats=_repeats(len(sizes), validation, data.folds),
    )


def _decided(section: Section, **values: Any) -> Section:
    """The section with these values where it says `auto`."""
    return replace(section, **{name: value for name, value in values.items() if getattr(section, name) == "auto"})


def _resize(sizes: Sequence[tuple[int, int]], canvas: Sequence[int]) -> str:
    """Crop where the typical image is one to five canvases a side: what is small is not shrunk away."""
    sides = median(max(height / canvas[0], width / canvas[1]) for height, width in sizes)
    return "crop" if 1 <= sides <= CROPPED else "pad"


def _repeats(training: int, validation: int, folds: int | None) -> int:
    """How often an epoch shows each image, so that it has enough of them; the same in all folds."""
    images = (training + validation) * (folds - 1) // folds if folds else training
    return math.ceil(SHORTEST / images)
