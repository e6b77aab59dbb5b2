"""Build the parts of a training from its configuration; refuse wrong configurations and wrong data.

Nothing is written to the run folder here.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from PIL.Image import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from segsweep import console
from segsweep.config.checks import read
from segsweep.config.keys import named
from segsweep.config.schema import FADING, DataConfig, LossConfig, RunConfig, TrainConfig
from segsweep.config.settings import Settings
from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches, as_it_is
from segsweep.data.dataset import Dataset, evenly_spaced, open_dataset
from segsweep.data.fingerprint import Fingerprint, fingerprint
from segsweep.data.geometry import Canvas
from segsweep.data.images import WIDEST
from segsweep.data.raster import decoders
from segsweep.data.summary import table
from segsweep.engine import device as devices
from segsweep.engine import losses
from segsweep.engine.execution import Execution, checkpoint_gradients, set_momentum
from segsweep.engine.scorer import Evaluation, Scorer
from segsweep.engine.step import TrainStep
from segsweep.errors import ConfigError, DataError
from segsweep.figures import pictures
from segsweep.nn import UNet, weights
from segsweep.nn.encoder import decoder_width, encoder_traits
from segsweep.nn.tiles import limit
from segsweep.runs.records import Start
from segsweep.training import normalization, optim
from segsweep.training.autotune import Tuned, Workload, tune
from segsweep.training.plan import Decision, length, plan_data, weigh
from segsweep.training.resolve import Facts, resolve
from segsweep.training.state import TrainState
from segsweep.world import SINGLE, World

log = logging.getLogger(__name__)

SHOWN = 4  # validation images whose predictions are kept as pictures
AUGMENTED = 16  # images of the first batch that are kept as a picture
USUAL_BATCH = 16  # images that BatchNorm's momentum is meant for; fewer are averaged over more steps


@dataclass(frozen=True)
class Training:
    """All parts of a training: the typed configuration, the decided settings, and how this machine runs it."""

    asked: RunConfig
    settings: Settings
    decisions: tuple[Decision, ...]
    data: Dataset
    fingerprint: Fingerprint
    state: TrainState
    loss: losses.Loss  # as validation computes it, the same in all epochs
    train_loss: losses.Loss
    tuned: Tuned
    world: World = SINGLE  # the processes that train together

    @property
    def model(self) -> UNet:
        assert isinstance(self.state.model, UNet)
        return self.state.model

    @property
    def canvas(self) -> Canvas:
        data = self.settings.data
        return Canvas((data.size[0], data.size[1]), data.resize, data.zoom, self.model.encoder.input_size is not None)

    @property
    def shown(self) -> list[int]:
        """Validation samples whose predictions are kept as pictures."""
        return evenly_spaced(self.data.parts["val"], SHOWN)

    @property
    def scores_test(self) -> bool:
        """Whether the test split is scored at the end."""
        return "test" in self.data.parts and self.settings.train.test

    def step(self) -> TrainStep:
        tuned = self.tuned
        return TrainStep(tuned.execution, self.train_loss, self.settings.train.grad_clip, self.world, tuned.kind)

    def train_batches(self) -> TrainBatches:
        data, train = self.settings.data, self.settings.train
        sampling = Sampling(
            batch_size=train.batch_size,
            seed=train.seed,
            grad_accum=train.grad_accum,
            passes=data.passes,
            rarity=self.data.rarity(data.balance) if data.balance else None,
            foreground=data.foreground,
            counts=self.data.counts("train")[:-1],
        )
        indices = self.data.parts["train"]
        # What makes batches is compiled only where it was asked for: no GPU has measured it yet.
        compiled = as_it_is if self.asked.train.compile == "auto" else self.tuned.execution.making
        made = self.canvas, sampling, self.settings.augmentation, self.world, compiled
        side_stream = self.asked.train.side_stream and self.state.device.type == "cuda"
        return TrainBatches(self._pixels, indices, *made, side_stream)

    def sheet(self) -> Image:
        """Draw some images of the first batch as the network sees them: cropped and augmented."""
        batches = replace(self.train_batches(), compiled=as_it_is)
        steps = iter(batches.epoch(1))  # by name: it has to live while a batch is made
        batch = next(iter(next(steps)))
        pairs = []
        for i, index in enumerate(batch.indices[:AUGMENTED]):
            image = batch.image[i].permute(1, 2, 0).cpu().numpy()
            if self.data.store.dtype == np.uint8:
                image = image.clip(0, 255).astype(np.uint8)
            pairs.append((self.data.samples[index].key, image, batch.mask[i].cpu().numpy()))
        return pictures.contact_sheet(pairs, self.data.labels.names)

    def evaluate(
        self, model: nn.Module, indices: Sequence[int], show: Sequence[int] = (), world: World = SINGLE
    ) -> Evaluation:
        """Score a model on some samples, with a progress bar; the predictions of those in `show` are kept.

        `world`: the processes that score together; each has to call it.
        """
        tile = limit(self.canvas.size, self.model.encoder.input_size, self.settings.data.tile)
        scorer = Scorer(self.tuned.execution, self.settings.train.tta, tile, console.bar)
        batches = EvalBatches(self._pixels, indices, self.canvas, self.tuned.micro_batch, world)
        return scorer.evaluate(model, batches, self.loss, self.data.labels.names, show)

    @cached_property
    def _pixels(self) -> Pixels:
        return Pixels(self.data.store, self.data.labels, self.state.device, self.asked.train.workers)


def build(
    asked: RunConfig, before: Start | None = None, world: World = SINGLE, classes: Sequence[str] = ()
) -> Training:
    """Build and check everything, the cheapest checks first.

    Args:
        before: the record of the run that goes on: what was decided then stays, and no weights are looked for.
        world: the processes that train together; each builds its own, and all must have the same data and weights.
        classes: in the order in which the run that goes on began with them; empty: it begins.

    Raises ConfigError, DataError: what the user can mend.
    """
    encoder, train = asked.encoder, asked.train
    device = devices.find(train.device, local=world.local)
    devices.set_up(train.deterministic)
    encoder_traits(encoder.name)
    devices.precision(train.precision, device)  # refused here if it is not there
    _refuse_graphs(asked, before, device, world)
    if train.side_stream and device.type != "cuda":
        log.warning("train.side_stream: works only on a GPU, so it changes nothing here.")
    found = weights.RANDOM if before else weights.find(encoder.name, encoder.pretrained, encoder.weights_file)
    data = _loaded(asked, world)
    data = data.ordered(classes)
    source = before.weights_source if before else found.source
    wanted = before.settings.extended(asked) if before else Settings.of(asked)
    if before and train.open_ended and before.asked.train.open_ended:  # the number that was decided then stays
        wanted = replace(wanted, train=replace(wanted.train, epochs=before.settings.train.epochs))
    seen = fingerprint(data)
    facts = _facts(wanted, data, seen, source != "random")
    plan = resolve(wanted, facts)
    own = {"device": device.type, "data": data.store.digest, "weights of the encoder": source}
    _refuse_unlike(world, {**own, "plan": repr(plan.settings)})
    settings = plan.settings
    images = len(data.parts["train"])
    shown = images * settings.data.passes
    kept = _kept_micro_batches(asked, before)
    _refuse_batch(settings.train, kept, shown, images, world)
    _refuse_other_order(asked, facts.classes)
    console.note(table(data) + "\n")
    say(data)
    _refuse_range(*data.store.range)
    decisions = () if before else plan.decisions  # made once, and told then
    if decisions:
        console.note(plan.table() + "\n")
    if settings.normalization is None:
        how, window = settings.data.normalize, settings.data.window
        chosen = normalization.choose(how, data.store, data.parts["train"], encoder.name, window)
        settings = replace(settings, normalization=chosen)
    data.store.to(device)

    model = _model(settings, data, found, device, world)
    if before:
        model.weights_source = before.weights_source
    loss, train_loss = _losses(settings.loss, facts, device)
    tuned = _tuned(settings, asked, model, train_loss, shown, before, world)
    if train.open_ended and not before and tuned.rates:
        longer = length(plan, seen, max(tuned.rates.values()) * world.size)
        if further := longer.decisions[len(decisions) :]:
            console.note(replace(longer, decisions=further).table() + "\n")
        decisions = longer.decisions
        settings = replace(settings, train=replace(settings.train, epochs=longer.settings.train.epochs))
    grad_accum = _grad_accum(settings.train, kept, tuned.micro_batch, world)
    tuned = replace(tuned, micro_batch=math.ceil(settings.train.batch_size / (grad_accum * world.size)))
    settings = replace(settings, train=replace(settings.train, grad_accum=grad_accum))
    _say_share(model, tuned.micro_batch, world)
    if settings.train.bn_momentum == "scaled":
        share = min(1.0, tuned.micro_batch * world.size / USUAL_BATCH)  # the processes' statistics are averaged
        set_momentum(model, lambda own: 1 - (1 - own) ** share)
    layers = model.encoder.layers() if settings.optim.layer_decay != 1 else {}
    optimizer = optim.build(settings.optim, model, {f"encoder.{name}": layer for name, layer in layers.items()})
    scaler = torch.amp.GradScaler(device.type, enabled=tuned.execution.precision == torch.float16)
    average = optim.Average(model, settings.train.ema) if settings.train.ema else None
    asked = replace(asked, tracking=replace(asked.tracking, experiment=asked.experiment))
    state = TrainState(model, optimizer, scaler, average)
    return Training(asked, settings, decisions, data, seen, state, loss, train_loss, tuned, world)


def _model(settings: Settings, data: Dataset, found: weights.Weights, device: torch.device, world: World) -> UNet:
    """Build the network on its device, the same in all processes, as it is trained."""
    torch.manual_seed(settings.train.seed)
    model = UNet(
        settings.encoder.name,
        data.labels.logits,
        data.store.channels,
        found,
        decoder=settings.decoder,
        drop_path=settings.encoder.drop_path,
        normalization=settings.normalization,
    ).to(device)
    if world.size > 1:
        weights_of_first = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        model.load_state_dict(world.agreed(weights_of_first if world.rank == 0 else {}))
    model.encoder.freeze_norm = settings.encoder.freeze_norm
    momentum = settings.train.bn_momentum
    if momentum != "scaled":  # that one depends on the micro-batch, which is decided later
        set_momentum(model, lambda _: momentum)
    tried = torch.zeros(2, data.store.channels, 64, 64, device=device)
    if settings.train.checkpointing and checkpoint_gradients(model, tried).isdisjoint(model.encoder.modules()):
        log.warning("train.checkpointing: this encoder does not support it, so only the decoder saves memory.")
    return model


def load(data: DataConfig, workers: int | None = None) -> Dataset:
    """Open the data set that `data.*` names, as `open_dataset` does, with a progress bar while it is decoded."""
    return open_dataset(data, workers=workers, progress=console.bar)


def say(data: Dataset) -> None:
    """Print what was decided about a data set, and warn about problems that make scores too high."""
    if data.parts["train"] == data.parts["val"]:
        keys = ", ".join(data.samples[index].key for index in data.parts["train"])
        console.note(f"note: training and validation both use only {keys}")
    elif not data.folds and not any(sample.split for sample in data.samples):
        held = len(data.parts["val"])
        chosen = "with their share of every class" if data.stratified else "chosen by a hash of their names"
        console.note(f"note: the data have no split: {held} images, {chosen}, are used for validation (data.split)")
    for line in data.notes:
        console.note(f"note: {line}")
    for warning in data.warnings():
        log.warning("data: %s", warning)


def decided_data(asked: Mapping[str, object], varied: Sequence[str]) -> list[tuple[str, str]]:
    """Decide the `auto` keys that depend only on the data, for all trials of a sweep.

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
    if not named("loss.class_weights", varied):
        plan = weigh(plan, opened.labels.names, opened.counts("train")[:-1])
    return [(str(decision), decision.why) for decision in plan.decisions]


def pixels(asked: Mapping[str, object]) -> str:
    """Hash a sweep's decoded data with their split. Arguments and errors as of `decided_data`."""
    config = read(RunConfig, asked, "asked")
    return load(config.data, config.train.workers).store.digest


def identity(asked: Mapping[str, object], encoders: Sequence[str]) -> dict[str, str]:
    """Say what the trainings of a sweep are made from, so that two machines can compare it.

    Args:
        asked: a `RunConfig` as JSON has it.
        encoders: whose weights count; none where each trial says which it starts from.

    Returns:
        hashes of the data's `files`, of their decoded `pixels` with the split, and of each encoder's weights, and the
        `decoders`.

    Raises ConfigError, DataError: what `load` and `weights.find` raise.
    """
    config = read(RunConfig, asked, "asked")
    opened = load(config.data, config.train.workers)
    given = config.encoder
    found = {f"weights of {name}": weights.digest(name, given.pretrained, given.weights_file) for name in encoders}
    return {"files": opened.contents(), "pixels": opened.store.digest, "decoders": decoders(), **found}


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
        cut=data.store.reading.cut,
    )


def _refuse_graphs(asked: RunConfig, before: Start | None, device: torch.device, world: World) -> None:
    """Refuse CUDA graphs where nobody has tried them, or where they overwrite what is still needed."""
    if asked.train.compile != "graphs" or before:
        return
    others = {
        f"train.device={device.type}": device.type != "cuda",
        f"{world.size} processes": world.size > 1,
        f"optim.freeze_epochs={asked.optim.freeze_epochs}": asked.optim.freeze_epochs,
        f"train.grad_accum={asked.train.grad_accum}": asked.train.grad_accum != 1,
        "train.deterministic=true": asked.train.deterministic,
    }
    if unfit := [other for other, there in others.items() if there]:
        told = "CUDA graphs need one GPU, train.grad_accum=1, no frozen epochs and no train.deterministic"
        raise ConfigError(f"train.compile=graphs: {told}; here: {', '.join(unfit)}. Try train.compile=auto.")


def _refuse_other_order(asked: RunConfig, names: Sequence[str]) -> None:
    """Refuse a list of weights whose order is another than the classes'."""
    typed = [name for name in asked.data.classes or () if name in names]
    if isinstance(asked.loss.class_weights, list) and typed != [name for name in names if name in typed]:
        raise ConfigError(
            f"loss.class_weights: the order of the classes is {', '.join(names)}. Type data.classes with their values "
            f"in this order, as {{{names[0]}:VALUE,...}}, and the weights in the same order."
        )


def _refuse_unlike(world: World, own: Mapping[str, str]) -> None:
    """Refuse processes that would not train the same."""
    for name, first in world.agreed(dict(own)).items():
        if own[name] != first:
            told = f"the {name} differ from those of rank 0 ({own[name][:200]} here, {first[:200]} there)"
            raise ConfigError(f"{told}. All processes of a training need the same files.")


def _loaded(asked: RunConfig, world: World) -> Dataset:
    """Open the data; of several processes on a machine the first one decodes them, and the others wait."""
    if world.local:
        world.any(False)
    data = load(asked.data, asked.train.workers)
    if not world.local:
        world.any(False)
    return data


def _kept_micro_batches(asked: RunConfig, before: Start | None) -> int | None:
    """Return into how many micro-batches all processes together cut a batch before; None: it is decided anew."""
    if before and asked.train.grad_accum in ("auto", before.asked.train.grad_accum):
        return int(before.settings.train.grad_accum) * before.execution.ranks
    return None


def _grad_accum(train: TrainConfig, kept: int | None, micro_batch: int, world: World) -> int:
    """Micro-batches of each process: as many as before, as were asked for, or as it takes to fit the memory."""
    found: int
    if kept:
        found = math.ceil(kept / world.size)
    elif train.grad_accum != "auto":
        found = train.grad_accum
    else:
        found = math.ceil(train.batch_size / (micro_batch * world.size))
    share: int = train.batch_size // world.size
    return max(1, min(found, share))  # none is empty


def _refuse_range(low: float, high: float) -> None:
    """Refuse pixels so far apart that they are no measured values."""
    if high - low > WIDEST:
        end = low if -low > high else high
        raise DataError(
            f"data: pixels are between {low:g} and {high:g}: this range is too large to compute with. If {end:g} "
            f"means no data, type data.nodata={end!r}."
        )


def _refuse_batch(train: TrainConfig, kept: int | None, shown: int, images: int, world: World) -> None:
    """Refuse a batch with more images than an epoch shows, or with fewer than there are micro-batches."""
    batch, each = train.batch_size, 1 if kept else train.micro_batches
    least = world.size * each
    if batch < least:
        came = f"{world.size} processes" + f" with train.grad_accum={train.grad_accum} each" * (each > 1)
        raise ConfigError(f"train.batch_size={batch}: too few for {came}. Try train.batch_size={least}.")
    if batch > shown:
        smaller = 1 << (shown.bit_length() - 1)  # a power of two
        raise ConfigError(
            f"train.batch_size={batch}: larger than an epoch of {shown} images. "
            f"Try train.batch_size={smaller}, or data.passes={math.ceil(batch / images)}."
        )


def _tuned(
    settings: Settings,
    asked: RunConfig,
    model: UNet,
    loss: losses.Loss,
    shown: int,
    before: Start | None,
    world: World,
) -> Tuned:
    """Choose how the model is run, with epochs of `shown` images: as the record before says, else by a probe."""
    train, device = settings.train, next(model.parameters()).device
    wanted = math.ceil(train.batch_size / (train.micro_batches * world.size))
    if before and torch.device(before.execution.device.partition(" ")[0]).type == device.type:
        # What was chosen once stays: another precision is another training.
        ran = before.execution
        graphs = ran.graphs and train.micro_batches == 1 and world.size == 1
        try:
            precision = devices.precision(ran.precision, device)
        except ConfigError as error:
            told = f"resume: the run computes in {ran.precision}, which this processor cannot"
            raise ConfigError(f"{told}. Continue it on a machine like the first one.") from error
        execution = Execution(precision, ran.channels_last, ran.compiled, ran.doubling, graphs)
        return Tuned(execution, ran.micro_batch if _kept_micro_batches(asked, before) else wanted, ran.rates, ran.peak)
    expected_images = train.epochs * shown if train.epochs else math.inf
    height, width = settings.data.size
    seconds = train.time_budget or math.inf
    workload = Workload((height, width), model.in_channels, wanted, expected_images, seconds, loss)
    architecture = asked.encoder.name.partition(".")[0]
    key = [architecture, model.num_classes, settings.decoder.width, settings.decoder.norm]
    key += [train.checkpointing, train.ema > 0, asdict(settings.loss)]
    how = asked.train
    if before and how.compile == "graphs":  # of another kind of device; the run cannot change what was typed
        how = replace(how, compile="auto")
    return tune(model, key, workload, how, device, world)


def _say_share(model: UNet, images: int, world: World) -> None:
    """Say how many images of a batch a process trains on at a time, if there are several or that is too few."""
    if world.size > 1:
        each = console.counted(images, "image")
        console.note(f"{world.size} processes train together, each {each} of a batch at a time\n")
    if images == 1 and any(isinstance(module, _BatchNorm) and module.training for module in model.train().modules()):
        log.warning(
            "BatchNorm gets its statistics from one image at a time, and they are unreliable. Type a larger "
            "train.batch_size, or decoder.norm=group; if the encoder has BatchNorm, also type encoder.freeze_norm=true."
        )


def _losses(loss: LossConfig, facts: Facts, device: torch.device) -> tuple[losses.Loss, losses.Loss]:
    """Return the losses of validation and of training."""
    weights = losses.class_weights(facts.classes, facts.pixels, loss.class_weights, loss.pos_weight)
    terms = {name: getattr(loss, name) for name in losses.TERMS}
    how = loss.gamma, loss.label_smoothing, device
    if loss.class_weights == FADING and weights:
        return losses.build(terms, None, *how), losses.FadingLoss(terms, weights, *how)
    plain = losses.build(terms, weights, *how)
    return plain, plain
