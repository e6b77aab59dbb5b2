"""From what was asked for to what is done: every `auto` gets its value. Pure: what is known comes as `Facts`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from segsweep import catalog
from segsweep.config.schema import EPOCHS, DataConfig, LossConfig, OptimConfig, TrainConfig
from segsweep.config.settings import Settings
from segsweep.engine import losses

SHORTEST = 180  # images that an epoch shows at least, with data.repeats=auto: as many as data=shapes has
CROPPED = 2  # data.resize=auto crops images of one to this many canvases a side


@dataclass(frozen=True)
class Facts:
    """What is known of encoder and data when an experiment is decided.

    Attributes:
        kind: of the encoder, a key of `segsweep.catalog.RATES`.
        pretrained: the encoder starts from pretrained weights.
        width: channels of the decoder's stages, deepest first, that suit the encoder.
        sizes: height and width of each training image, in pixels.
        validation: number of validation images.
        photographs: pixels are 8-bit colour, as the encoders were trained on.
        classes: names, by index.
        pixels: of each class in the training split.
    """

    kind: str
    pretrained: bool
    width: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    validation: int
    photographs: bool
    classes: Sequence[str]
    pixels: Sequence[int]


def resolve(wanted: Settings, facts: Facts) -> Settings:
    """Decide all that says `auto`, but for what is measured or counted later: the normalization and the batch size.

    What has a value keeps it, so settings that were decided before come back as they are.

    Raises:
        ConfigError: weights of classes that do not fit the data.
    """
    return replace(
        wanted,
        encoder=replace(wanted.encoder, pretrained=facts.pretrained),
        decoder=replace(wanted.decoder, width=list(facts.width)) if wanted.decoder.width == "auto" else wanted.decoder,
        optim=_optim(wanted.optim, facts),
        data=_data(wanted.data, facts),
        loss=_loss(wanted.loss, facts),
        train=_train(wanted.train),
    )


def _optim(optim: OptimConfig, facts: Facts) -> OptimConfig:
    rates = catalog.RATES[facts.kind]
    scale = rates.encoder_lr_scale if facts.pretrained else 1.0  # random weights learn as fast as the decoder
    return replace(
        optim,
        lr=rates.lr if optim.lr == "auto" else optim.lr,
        encoder_lr_scale=scale if optim.encoder_lr_scale == "auto" else optim.encoder_lr_scale,
    )


def _data(data: DataConfig, facts: Facts) -> DataConfig:
    usual = "encoder" if facts.photographs and facts.pretrained else "dataset"
    resize = "crop" if data.foreground or data.tile else _resize(facts.sizes, data.size)
    repeats = _repeats(len(facts.sizes), facts.validation, data.folds)
    return replace(
        data,
        resize=resize if data.resize == "auto" else data.resize,
        normalize=("window" if data.window else usual) if data.normalize == "auto" else data.normalize,
        repeats=repeats if data.repeats == "auto" else data.repeats,
    )


def _resize(sizes: Sequence[tuple[int, int]], canvas: Sequence[int]) -> str:
    """Crop where the typical image is one to two canvases a side: nothing is shrunk, and a crop sees much of it."""
    sides = median(max(height / canvas[0], width / canvas[1]) for height, width in sizes)
    return "crop" if 1 <= sides <= CROPPED else "pad"


def _repeats(training: int, validation: int, folds: int | None) -> int:
    """How often an epoch shows each image, so that it has enough of them; the same in all folds."""
    images = (training + validation) * (folds - 1) // folds if folds else training
    return math.ceil(SHORTEST / images)


def _loss(loss: LossConfig, facts: Facts) -> LossConfig:
    weights = losses.class_weights(facts.classes, facts.pixels, loss.class_weights, loss.pos_weight)
    return replace(
        loss,
        class_weights=weights if loss.class_weights == "auto" else loss.class_weights,
        pos_weight=weights[1] if weights and loss.pos_weight == "auto" else loss.pos_weight,
    )


def _train(train: TrainConfig) -> TrainConfig:
    return replace(
        train,
        epochs=train.epochs or (None if train.time_budget else EPOCHS),
        bn_momentum="scaled" if train.bn_momentum == "auto" else train.bn_momentum,
    )
