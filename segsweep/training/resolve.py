"""Replace every `auto` by its value. Pure: all facts about encoder and data come as `Facts`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segsweep import catalog
from segsweep.config.settings import Settings
from segsweep.data.fingerprint import Fingerprint
from segsweep.engine import losses
from segsweep.training.plan import TrainingPlan, plan_data, tiles, weigh


@dataclass(frozen=True)
class Facts:
    """The facts about encoder and data from which an experiment is decided."""

    kind: str  # of the encoder, a key of `segsweep.catalog.RATES`
    pretrained: bool
    input_size: tuple[int, int] | None  # the fixed height and width that the encoder runs at; None: any
    width: Sequence[int]  # channels of the decoder's stages, deepest first, that suit the encoder
    data: Fingerprint
    classes: Sequence[str]  # names, by index
    pixels: Sequence[int]  # of each class in the training split
    cut: int | None = None  # where grey masks are cut that were smoothed or saved with loss


def resolve(wanted: Settings, facts: Facts) -> TrainingPlan:
    """Decide every `auto` except those measured or counted later: normalization and micro-batch.

    Keys with a value keep it, so settings that were already decided are returned unchanged.

    Raises ConfigError: weights of classes that do not fit the data.
    """
    rates = catalog.RATES[facts.kind]
    plan = plan_data(wanted, facts.data)
    plan = tiles(plan, facts.input_size, facts.data)
    why = "costs at most about as much as the encoder, and has enough channels for the classes"
    plan = plan.deciding("decoder.width", list(facts.width), why)
    source = f"for {facts.kind} encoders, as {rates.source}"
    plan = plan.deciding("optim.lr", rates.lr, f"highest rate, with Adam or AdamW, {source}")
    if facts.pretrained:
        share = (
            "pretrained weights learn at the full rate"
            if rates.encoder_lr_scale == 1
            else "pretrained weights learn more slowly"
        )
        plan = plan.deciding("optim.encoder_lr_scale", rates.encoder_lr_scale, f"{share}, {source}")
    else:
        plan = plan.deciding("optim.encoder_lr_scale", 1.0, "random weights learn as fast as the decoder")
    plan = weigh(plan, facts.classes, facts.pixels)
    photographs = facts.data.channels == 3 and (facts.data.lowest, facts.data.highest) == (0, 255)
    if wanted.data.window:
        plan = plan.deciding("data.normalize", "window", "data.window is given")
    elif photographs and facts.pretrained:
        plan = plan.deciding(
            "data.normalize", "encoder", "8-bit images read as colour, as the pretrained weights expect"
        )
    else:
        kind = "grey" if facts.data.channels == 1 else "not 8-bit colour"
        what = f"pixels are {kind}" if facts.pretrained else "random weights expect no special range"
        plan = plan.deciding("data.normalize", "dataset", f"mean and standard deviation of the training images: {what}")
    return replace(plan, settings=_plain(plan.settings, facts))


def _plain(settings: Settings, facts: Facts) -> Settings:
    """Decide what needs no words: it follows from other values, or was said when the data were read."""
    data, loss, train = settings.data, settings.loss, settings.train
    weights = losses.class_weights(facts.classes, facts.pixels, loss.class_weights, loss.pos_weight)
    if data.threshold == "auto":
        data = replace(data, threshold=facts.cut)
    if data.nodata == "auto":
        data = replace(data, nodata="tag")
    if loss.class_weights == "auto":
        loss = replace(loss, class_weights=weights)
    if loss.pos_weight == "auto":
        loss = replace(loss, pos_weight=weights and weights[1])
    if train.bn_momentum == "auto":
        train = replace(train, bn_momentum="scaled")
    encoder = replace(settings.encoder, pretrained=facts.pretrained)
    return replace(settings, encoder=encoder, data=data, loss=loss, train=replace(train, epochs=train.epoch_limit))
