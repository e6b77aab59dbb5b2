"""A configuration becomes the objects of a training, and what is wrong with it or with the data is refused.

Nothing is written to the run folder here.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from segsweep import catalog, console
from segsweep.config.schema import DataConfig, LossConfig, RunConfig
from segsweep.data.batches import EvalBatches, TrainBatches
from segsweep.data.dataset import Dataset, open_dataset
from segsweep.data.source import Options
from segsweep.engine import device, losses
from segsweep.engine.execution import Execution, checkpoint_gradients, set_momentum
from segsweep.errors import ConfigError
from segsweep.nn import UNet, weights
from segsweep.nn.encoder import probe
from segsweep.nn.tiles import limit
from segsweep.training import loop as engine
from segsweep.training import normalization, optim
from segsweep.training.autotune import Tuned, tune

log = logging.getLogger(__name__)

SHORTEST = 180  # images that an epoch shows at least, with data.repeats=auto: as many as data=shapes has
CROPPED = 2  # data.resize=auto crops images of one to this many canvases a side
USUAL_BATCH = 16  # images that BatchNorm's momentum is meant for; fewer are averaged over more steps


@dataclass
class Prepared:
    """Everything a training needs, built and checked, with nothing written to the run folder."""

    config: RunConfig
    device: torch.device
    tuned: Tuned
    data: Dataset
    model: UNet
    loss: losses.Loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: optim.Average | None
    progress: engine.Progress
    weights_source: weights.Source

    @property
    def scored(self) -> UNet:
        """The model that is scored and kept."""
        return self.average.model if self.average else self.model  # type: ignore[return-value]

    @property
    def tile(self) -> tuple[int, int]:
        """Canvases beyond this are scored in tiles."""
        data = self.config.data
        return limit((data.size[0], data.size[1]), self.model.encoder.input_size, data.tile)

    def evaluation(self, indices: Sequence[int]) -> EvalBatches:
        data = self.config.data
        return EvalBatches(
            self.data.store,
            self.data.labels,
            indices,
            size=(data.size[0], data.size[1]),
            resize=data.resize,
            batch_size=self.tuned.batch_size,
            device=self.device,
            workers=self.config.train.workers,
        )

    def training(self) -> TrainBatches:
        data, train = self.config.data, self.config.train
        return TrainBatches(
            self.data.store,
            self.data.labels,
            self.data.parts["train"],
            repeats=data.repeats,
            rarity=self.data.rarity(data.balance) if data.balance else None,
            size=(data.size[0], data.size[1]),
            resize=data.resize,
            batch_size=self.tuned.batch_size * train.accumulate,
            seed=train.seed,
            device=self.device,
            accumulate=train.accumulate,
            augmentation=asdict(self.config.augmentation),
            foreground=data.foreground,
            workers=train.workers,
        )


def prepare(config: RunConfig, before: Mapping[str, Any]) -> Prepared:
    """Build and check everything, the cheapest checks first.

    Args:
        before: the `start` record of the run that goes on: what was chosen then is kept, and no weights are looked for.

    Raises:
        ConfigError, DataError: what the user can mend.
    """
    train = config.train
    where = device.find(train.device)
    device.set_threads()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not train.deterministic
    torch.backends.cudnn.benchmark = not train.deterministic
    torch.use_deterministic_algorithms(train.deterministic)
    probe(config.encoder.name)
    device.precision(train.precision, where)  # refused here if it is not there
    found = (
        weights.RANDOM
        if before
        else weights.find(config.encoder.name, config.encoder.pretrained, config.encoder.weights_file)
    )

    dataset = load(config.data, train.workers)
    config = _decided(config, dataset, before["weights_source"] if before else found.source, before)
    data = config.data
    images = len(dataset.parts["train"])
    shown = images * data.repeats
    if train.batch_size != "auto" and train.batch_size > shown:
        raise ConfigError(
            f"train.batch_size={train.batch_size}: larger than an epoch of {shown} images. "
            f"Try train.batch_size={_power_of_two(shown)}, or data.repeats={math.ceil(train.batch_size / images)}."
        )
    console.note(console.data_summary(dataset.summary(), data.repeats) + "\n")
    for warning in dataset.warnings():
        log.warning("data: %s", warning)
    labels, pixels = dataset.labels, dataset.store
    pixels.to(where)

    torch.manual_seed(train.seed)
    model = UNet(
        config.encoder.name,
        labels.logits,
        pixels.channels,
        found,
        width=config.decoder.width,
        norm=config.decoder.norm,
        dropout=config.decoder.dropout,
        drop_path=config.encoder.drop_path,
        **normalization.choose(
            data.normalize, pixels, dataset.parts["train"], config.encoder.name, found.source != "random", data.window
        ),
    ).to(where)
    model.encoder.freeze_norm = config.encoder.freeze_norm
    if train.bn_momentum != "auto":
        set_momentum(model, lambda _: train.bn_momentum)
    if train.checkpointing and not checkpoint_gradients(model, torch.zeros(2, pixels.channels, 64, 64, device=where)):
        log.warning("train.checkpointing: the encoder has no switch for it, so only the decoder saves memory.")
    tuned = _tuned(config, model, pixels.channels, shown, where, before)
    if train.bn_momentum == "auto":
        share = min(1.0, tuned.batch_size / USUAL_BATCH)
        set_momentum(model, lambda own: 1 - (1 - own) ** share)
    optimizer = optim.build(
        config.optim.name,
        model,
        lr=config.optim.lr,
        encoder_lr_scale=config.optim.encoder_lr_scale,
        layer_decay=config.optim.layer_decay,
        layers={f"encoder.{name}": layer for name, layer in model.encoder.layers().items()}
        if config.optim.layer_decay != 1
        else None,
        weight_decay=config.optim.weight_decay,
        momentum=config.optim.momentum,
    )
    return Prepared(
        config=config,
        device=where,
        tuned=tuned,
        data=dataset,
        model=model,
        loss=_loss(config.loss, dataset),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(where.type, enabled=tuned.execution.precision == torch.float16),
        average=optim.Average(model, train.ema) if train.ema else None,
        progress=engine.Progress(),
        weights_source=before["weights_source"] if before else model.weights_source,
    )


def _decided(config: RunConfig, dataset: Dataset, weights_source: str, before: Mapping[str, Any]) -> RunConfig:
    """The configuration with a value wherever it says auto and the encoder or the data decide; as recorded before."""
    rates = catalog.RATES[probe(config.encoder.name).kind]
    lr, scale = rates.lr, 1.0 if weights_source == "random" else rates.encoder_lr_scale
    resize = _resize(dataset, config.data.size)
    repeats = _repeats(dataset, config.data.folds)
    if before:
        lr, scale = (before["config"]["optim"][name] for name in ("lr", "encoder_lr_scale"))
        resize = before["config"]["data"]["resize"]
        # Of a run from before there was the key.
        repeats = before["config"]["data"].get("repeats", 10 if config.data.overfit else 1)
    steps, data = config.optim, config.data
    steps = replace(steps, lr=lr) if steps.lr == "auto" else steps
    steps = replace(steps, encoder_lr_scale=scale) if steps.encoder_lr_scale == "auto" else steps
    data = replace(data, resize=resize) if data.resize == "auto" else data
    data = replace(data, repeats=repeats) if data.repeats == "auto" else data
    return replace(config, optim=steps, data=data, tracking=replace(config.tracking, experiment=config.experiment))


def _resize(dataset: Dataset, canvas: Sequence[int]) -> str:
    """Crop where the typical image is one to two canvases a side: nothing is shrunk, and a crop sees much of it."""
    sizes = [(row.height, row.width) for row in (dataset.store.rows[i] for i in dataset.parts["train"])]
    sides = median(max(height / canvas[0], width / canvas[1]) for height, width in sizes)
    return "crop" if 1 <= sides <= CROPPED else "pad"


def _repeats(dataset: Dataset, folds: int | None) -> int:
    """How often an epoch shows each image, so that it has enough of them; the same in all folds."""
    images = len(dataset.parts["train"])
    if folds:
        images = (images + len(dataset.parts["val"])) * (folds - 1) // folds
    return math.ceil(SHORTEST / images)


def _tuned(
    config: RunConfig, model: UNet, channels: int, shown: int, where: torch.device, before: Mapping[str, Any]
) -> Tuned:
    """How the model is run, with epochs of `shown` images: as the record before says, else by a probe."""
    train, data = config.train, config.data
    asked = None if train.batch_size == "auto" else train.batch_size // train.accumulate
    if before and torch.device(before["device"].partition(" ")[0]).type == where.type:
        # What was chosen once stays: another precision is another training.
        kind, layout = getattr(torch, before["precision_used"]), before.get("channels_last", True)
        execution = Execution(kind, layout, before.get("compiled", False))
        batch_size = asked or before["micro_batch"]
        return Tuned(execution, batch_size, before.get("probed", {}), before.get("convolution_peak", 0.0))
    epochs = train.epoch_limit
    return tune(
        model,
        [config.encoder.name.partition(".")[0], model.arguments["width"], config.decoder.norm, train.checkpointing],
        size=(data.size[0], data.size[1]),
        channels=channels,
        where=where,
        precision=train.precision,
        compile=train.compile,
        batch_size=asked,
        images=shown,
        expected_images=epochs * shown if epochs else math.inf,
        time_budget=train.time_budget,
        deterministic=train.deterministic,
    )


def load(data: DataConfig, workers: int | None = None) -> Dataset:
    """The data set that `data.*` names, with a progress bar while it is decoded.

    Raises:
        ConfigError: what `open_dataset` raises.
    """
    options = Options(
        data.root, data.images, data.masks, data.mask_suffix, data.table, data.seed, data.count, data.download
    )
    return open_dataset(
        data.name,
        options,
        classes=data.classes,
        ignore_index=data.ignore_index,
        binarize=data.binarize,
        shares=data.split,
        seed=data.seed,
        group=data.group,
        folds=data.folds,
        fold=data.fold,
        overfit=data.overfit,
        cache=data.cache,
        workers=workers,
        progress=console.bar,
    )


def _loss(loss: LossConfig, data: Dataset) -> losses.Loss:
    weights = losses.class_weights(data.labels.names, data.counts("train")[:-1], loss.class_weights, loss.pos_weight)
    terms = {name: getattr(loss, name) for name in losses.TERMS}
    return losses.build(terms, weights, loss.gamma, loss.label_smoothing)


def _power_of_two(largest: int) -> int:
    return 1 << (largest.bit_length() - 1)
