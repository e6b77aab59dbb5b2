"""The parts of a training are built from its configuration; what is wrong with it or with the data is refused.

Nothing is written to the run folder here.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from segsweep import console
from segsweep.config.checks import read
from segsweep.config.schema import DataConfig, LossConfig, RunConfig
from segsweep.config.settings import Settings
from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches
from segsweep.data.dataset import Dataset, open_dataset
from segsweep.data.fingerprint import Fingerprint, fingerprint
from segsweep.data.geometry import Canvas
from segsweep.engine import device as devices
from segsweep.engine import losses
from segsweep.engine.execution import Execution, checkpoint_gradients, set_momentum
from segsweep.engine.scorer import Evaluation, Scorer
from segsweep.engine.step import TrainStep
from segsweep.errors import ConfigError
from segsweep.nn import UNet, weights
from segsweep.nn.encoder import decoder_width, encoder_traits
from segsweep.nn.tiles import limit
from segsweep.runs.records import Start
from segsweep.training import normalization, optim
from segsweep.training.autotune import Tuned, Workload, tune
from segsweep.training.plan import Decision, plan_data
from segsweep.training.resolve import Facts, resolve
from segsweep.training.state import TrainState
from segsweep.world import SINGLE, World

log = logging.getLogger(__name__)

USUAL_BATCH = 16  # images that BatchNorm's momentum is meant for; fewer are averaged over more steps


@dataclass(frozen=True)
class Training:
    """Everything a training needs: what was asked for, what was decided, and how it is run here."""

    asked: RunConfig
    settings: Settings
    decisions: tuple[Decision, ...]
    data: Dataset
    fingerprint: Fingerprint
    state: TrainState
    loss: losses.Loss
    tuned: Tuned

    @property
    def model(self) -> UNet:
        assert isinstance(self.state.model, UNet)
        return self.state.model

    @property
    def canvas(self) -> Canvas:
        return _canvas(self.settings.data)

    def step(self) -> TrainStep:
        return TrainStep(self.tuned.execution, self.loss, self.settings.train.clip)

    def train_batches(self, world: World = SINGLE) -> TrainBatches:
        data, train = self.settings.data, self.settings.train
        sampling = Sampling(
            batch_size=train.batch_size,
            seed=train.seed,
            accumulate=train.accumulate,
            repeats=data.repeats,
            rarity=self.data.rarity(data.balance) if data.balance else None,
            foreground=data.foreground,
        )
        indices = self.data.parts["train"]
        return TrainBatches(self._pixels, indices, self.canvas, sampling, self.settings.augmentation, world)

    def evaluate(self, model: nn.Module, indices: Sequence[int], show: Sequence[int] = ()) -> Evaluation:
        """Score a model on some samples, with a progress bar; the predictions of those in `show` are kept."""
        tile = limit(self.canvas.size, self.model.encoder.input_size, self.settings.data.tile)
        scorer = Scorer(self.tuned.execution, self.settings.train.tta, tile, console.bar)
        batches = EvalBatches(self._pixels, indices, self.canvas, self.tuned.micro_batch)
        return scorer.evaluate(model, batches, self.loss, self.data.labels.names, show)

    @cached_property
    def _pixels(self) -> Pixels:
        return Pixels(self.data.store, self.data.labels, self.state.device, self.asked.train.workers)


def build(asked: RunConfig, before: Start | None = None, world: World = SINGLE) -> Training:
    """Build and check everything, the cheapest checks first.

    Args:
        before: the record of the run that goes on: what was decided then stays, and no weights are looked for.

    Raises ConfigError, DataError: what the user can mend.
    """
    encoder, train = asked.encoder, asked.train
    device = devices.find(train.device)
    devices.set_threads()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not train.deterministic
    torch.backends.cudnn.benchmark = not train.deterministic
    torch.use_deterministic_algorithms(train.deterministic)
    encoder_traits(encoder.name)
    devices.precision(train.precision, device)  # refused here if it is not there
    found = weights.RANDOM if before else weights.find(encoder.name, encoder.pretrained, encoder.weights_file)
    data = load(asked.data, train.workers)
    source = before.weights_source if before else found.source
    wanted = before.settings.extended(asked) if before else Settings.of(asked)
    print_of_data = fingerprint(data)
    facts = _facts(wanted, data, print_of_data, source != "random")
    plan = resolve(wanted, facts)
    settings = plan.settings
    images = len(data.parts["train"])
    shown = images * settings.data.repeats
    _refuse_large_batch(settings.train.batch_size, shown, images)
    console.note(data.summary().table() + "\n")
    say(data)
    decisions = () if before else plan.decisions  # made once, and told then
    if decisions:
        console.note(plan.table() + "\n")
    data.store.to(device)
    if settings.normalization is None:
        how, window = settings.data.normalize, settings.data.window
        chosen = normalization.choose(how, data.store, data.parts["train"], encoder.name, window)
        settings = replace(settings, normalization=chosen)

    torch.manual_seed(train.seed)
    model = UNet(
        encoder.name,
        data.labels.logits,
        data.store.channels,
        found,
        decoder=settings.decoder,
        drop_path=settings.encoder.drop_path,
        normalization=settings.normalization,
    ).to(device)
    if before:
        model.weights_source = before.weights_source
    model.encoder.freeze_norm = settings.encoder.freeze_norm
    momentum = settings.train.bn_momentum
    if momentum != "scaled":
        set_momentum(model, lambda _: momentum)
    tried = torch.zeros(2, data.store.channels, 64, 64, device=device)
    if settings.train.checkpointing and not checkpoint_gradients(model, tried):
        log.warning("train.checkpointing: the encoder has no switch for it, so only the decoder saves memory.")
    tuned = _tuned(settings, asked, model, shown, before, world)
    accumulate = settings.train.batch_size // tuned.micro_batch
    settings = replace(settings, train=replace(settings.train, accumulate=accumulate))
    if momentum == "scaled":
        share = min(1.0, tuned.micro_batch / USUAL_BATCH)
        set_momentum(model, lambda own: 1 - (1 - own) ** share)
    layers = model.encoder.layers() if settings.optim.layer_decay != 1 else {}
    optimizer = optim.build(settings.optim, model, {f"encoder.{name}": layer for name, layer in layers.items()})
    scaler = torch.amp.GradScaler(device.type, enabled=tuned.execution.precision == torch.float16)
    average = optim.Average(model, settings.train.ema) if settings.train.ema else None
    asked = replace(asked, tracking=replace(asked.tracking, experiment=asked.experiment))
    state = TrainState(model, optimizer, scaler, average)
    return Training(asked, settings, decisions, data, print_of_data, state, _loss(settings.loss, facts), tuned)


def load(data: DataConfig, workers: int | None = None) -> Dataset:
    """Open the data set that `data.*` names, as `open_dataset` does, with a progress bar while it is decoded."""
    return open_dataset(data, workers=workers, progress=console.bar)


def say(data: Dataset) -> None:
    """Print what was decided about a data set, and warn of what makes its scores look better than they are."""
    for line in data.notes:
        console.note(f"note: {line}")
    for warning in data.warnings():
        log.warning("data: %s", warning)


def decided_data(asked: Mapping[str, object], varied: Sequence[str]) -> list[tuple[str, str]]:
    """Decide the keys that say auto and follow from the data alone, for all trials of a sweep.

    Args:
        asked: a `RunConfig` as JSON has it.
        varied: keys and groups that the trials differ in.

    Returns:
        what to type for each, and why.

    Raises ConfigError, DataError: what `load` raises.
    """
    config = read(RunConfig, asked, "asked")
    opened = load(config.data, config.train.workers)
    say(opened)
    plan = plan_data(Settings.of(config), fingerprint(opened), varied)
    return [(str(decision), decision.why) for decision in plan.decisions]


def _facts(wanted: Settings, data: Dataset, found: Fingerprint, pretrained: bool) -> Facts:
    traits = encoder_traits(wanted.encoder.name)
    return Facts(
        kind=traits.kind,
        pretrained=pretrained,
        input_size=traits.native if traits.fixed else None,
        width=decoder_width(wanted.encoder.name, wanted.decoder.width, data.labels.logits),
        data=found,
        classes=data.labels.names,
        pixels=data.counts("train")[:-1],
        cut=data.store.cut,
    )


def _refuse_large_batch(batch: int | str, shown: int, images: int) -> None:
    if isinstance(batch, int) and batch > shown:
        smaller = 1 << (shown.bit_length() - 1)  # a power of two
        raise ConfigError(
            f"train.batch_size={batch}: larger than an epoch of {shown} images. "
            f"Try train.batch_size={smaller}, or data.repeats={math.ceil(batch / images)}."
        )


def _tuned(settings: Settings, asked: RunConfig, model: UNet, shown: int, before: Start | None, world: World) -> Tuned:
    """Choose how the model is run, with epochs of `shown` images: as the record before says, else by a probe."""
    train, device = settings.train, next(model.parameters()).device
    wanted = train.batch_size // train.micro_batches
    if before and torch.device(before.execution.device.partition(" ")[0]).type == device.type:
        # What was chosen once stays: another precision is another training.
        ran = before.execution
        execution = Execution(devices.PRECISIONS[ran.precision], ran.channels_last, ran.compiled)
        micro_batch = ran.micro_batch if train.accumulate == "auto" else wanted
        return Tuned(execution, micro_batch, ran.rates, ran.peak)
    expected_images = train.epochs * shown if train.epochs else math.inf
    size, seconds = _canvas(settings.data).size, train.time_budget or math.inf
    workload = Workload(size, model.in_channels, wanted, expected_images, seconds)
    architecture = asked.encoder.name.partition(".")[0]
    key = [architecture, settings.decoder.width, settings.decoder.norm, train.checkpointing, train.ema > 0]
    return tune(model, key, workload, asked.train, device, world)


def _canvas(data: DataConfig) -> Canvas:
    return Canvas((data.size[0], data.size[1]), data.resize, data.zoom)


def _loss(loss: LossConfig, facts: Facts) -> losses.Loss:
    weights = losses.class_weights(facts.classes, facts.pixels, loss.class_weights, loss.pos_weight)
    terms = {name: getattr(loss, name) for name in losses.TERMS}
    return losses.build(terms, weights, loss.gamma, loss.label_smoothing)
