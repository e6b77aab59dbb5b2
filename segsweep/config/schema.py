"""Every key that can be set, with its type, its default and one line of help. Standard library only.

`segsweep.compose` makes Hydra's schema of these dataclasses and turns what Hydra composed into one `RunConfig`. A
component takes its own section. OmegaConf has neither `Literal` nor unions with containers, so such keys are typed
`Any` and checked in `__post_init__`.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

from segsweep.config import peers
from segsweep.config.checks import check, flat, is_count, is_number, is_positive, is_share
from segsweep.config.data import DataConfig as DataConfig  # for those who ask for a section
from segsweep.config.keys import EXTENT, MACHINE, PATH, PLACE, Role, key, normal
from segsweep.config.renamed import RENAMED
from segsweep.errors import ConfigError, closest, one_of, redacted
from segsweep.paths import program

LOSSES = ("ce", "dice", "jaccard", "lovasz", "focal")  # segsweep/engine/losses.py
SCHEDULES = ("cosine", "onecycle", "constant")  # segsweep/training/optim.py
VIEWS = {"none": 1, "hflip": 2, "flips": 4}  # that scoring averages over: segsweep/engine/scorer.py
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
EPOCHS = 10  # without train.epochs and train.time_budget


@dataclass(frozen=True)
class EncoderConfig:
    name: str = key("tf_efficientnet_lite0", "any timm model, with or without its pretrained tag")
    pretrained: Any = key("auto", "auto: pretrained weights if they can be had; true: or else an error; false: random")
    weights_file: str | None = key(
        None,
        "a timm checkpoint (.safetensors, or .pth without code in it), or a folder of such, each called as its model",
        PATH,
    )
    drop_path: float = key(0.0, "probability of skipping a residual block in training (stochastic depth)")
    freeze_norm: bool = key(False, "BatchNorm of the encoder keeps its pretrained statistics")

    def __post_init__(self) -> None:
        if not isinstance(self.pretrained, bool):  # 0 and 1 equal False and True, and are neither
            one_of("encoder.pretrained", self.pretrained, ("auto",), shown="auto, true, false")
        if self.weights_file and self.pretrained is False:
            raise ConfigError("encoder.weights_file is given but encoder.pretrained=false. Drop one of the two.")
        check(0 <= self.drop_path < 1, "encoder.drop_path", self.drop_path, "in [0, 1)")


@dataclass(frozen=True)
class DecoderConfig:
    width: Any = key("auto", "channels of the stages, deepest first, as [256,128,64,32,16]; auto: by cost and classes")
    norm: str = key("batch", "batch, group or layer")
    dropout: float = key(0.0, "probability of dropping a channel before the head")

    def __post_init__(self) -> None:
        if self.width != "auto":
            valid = isinstance(self.width, list) and self.width and all(is_count(w) for w in self.width)
            check(bool(valid), "decoder.width", self.width, "auto or a list of channels, as [256,128,64,32,16]")
        one_of("decoder.norm", self.norm, ("batch", "group", "layer"))
        check(0 <= self.dropout < 1, "decoder.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True)
class OptimConfig:
    name: str = key("adamw", "adam, adamw or sgd")
    lr: Any = key("auto", "peak learning rate of the decoder; auto: by the encoder's kind, 3e-3 for convolutional ones")
    encoder_lr_scale: Any = key("auto", "the encoder's rate / lr; 0 freezes it; auto: by kind, 1 for random weights")
    layer_decay: float = key(1.0, "the encoder's learning rate falls by this factor with each layer towards the image")
    freeze_epochs: int = key(0, "the encoder is frozen for this many epochs, then trained with the rest")
    weight_decay: float = key(0.01, "on weights of two and more dimensions only")
    momentum: float = key(0.9, "SGD's momentum, Adam's first beta")
    schedule: str = key("cosine", ", ".join(SCHEDULES))
    warmup: float = key(0.05, "share of the training over which the learning rate rises (cosine, constant)")

    def __post_init__(self) -> None:
        one_of("optim.name", self.name, ("adam", "adamw", "sgd"))
        one_of("optim.schedule", self.schedule, SCHEDULES)
        check(self.lr == "auto" or is_positive(self.lr), "optim.lr", self.lr, "auto or above 0, as 1e-3")
        if self.name == "sgd" and self.lr == "auto":
            raise ConfigError(
                "optim.lr=auto is for adam and adamw: add optim.lr=0.05, or type optim=sgd, which has it."
            )
        scale = self.encoder_lr_scale
        valid = scale == "auto" or is_positive(scale) or (scale == 0 and not isinstance(scale, bool))
        check(valid, "optim.encoder_lr_scale", scale, "auto, or 0 or more")
        check(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "above 0 and at most 1, as 0.75")
        check(self.freeze_epochs >= 0, "optim.freeze_epochs", self.freeze_epochs, "0 or more")
        check(0 <= self.weight_decay < math.inf, "optim.weight_decay", self.weight_decay, "0 or more")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        check(0 <= self.warmup < 1, "optim.warmup", self.warmup, "in [0, 1)")


@dataclass(frozen=True)
class AugmentationConfig:
    hflip: float = key(0.0, "probability of a left-right flip")
    vflip: float = key(0.0, "probability of a top-bottom flip")
    transpose: float = key(0.0, "probability of swapping rows and columns; with both flips, all 8 symmetries")
    rotate: float = key(0.0, "rotation by up to ± this many degrees")
    scale: Any = key(0.0, "zoom between 1/(1+scale) and 1+scale; auto: by how unlike in scale the data's objects are")
    shear: float = key(0.0, "shear by up to ± this many degrees")
    translate: Any = key(0.0, "shift by up to ± this share of the canvas; auto: goes with scale")
    brightness: float = key(0.0, "brightness factor between 1-b and 1+b")
    contrast: float = key(0.0, "contrast factor between 1-c and 1+c")
    saturation: float = key(0.0, "saturation factor between 1-s and 1+s (colour images)")
    hue: float = key(0.0, "rotation of the hue by up to ± this share of the circle (colour images)")
    blur: float = key(0.0, "largest standard deviation of a Gaussian blur, in pixels")
    noise: float = key(0.0, "largest standard deviation of Gaussian noise, as a share of the value range")

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "transpose", "brightness", "contrast", "saturation"):
            value = getattr(self, name)
            check(is_share(value), f"augmentation.{name}", value, "in [0, 1]")
        for name in ("blur", "noise"):
            value = getattr(self, name)
            check(0 <= value <= 100, f"augmentation.{name}", value, "in [0, 100]")
        scale, shift = self.scale, self.translate
        valid = scale == "auto" or (is_number(scale) and 0 <= scale <= 100)
        check(valid, "augmentation.scale", scale, "auto, or in [0, 100]")
        valid = shift == "auto" or (is_number(shift) and is_share(shift))
        check(valid, "augmentation.translate", shift, "auto, or in [0, 1]")
        check(0 <= self.rotate <= 180, "augmentation.rotate", self.rotate, "in [0, 180]")
        check(0 <= self.shear <= 60, "augmentation.shear", self.shear, "in [0, 60]")
        check(0 <= self.hue <= 0.5, "augmentation.hue", self.hue, "in [0, 0.5]")


@dataclass(frozen=True)
class LossConfig:
    """A weighted sum: the terms that a group in conf/loss/ sets may be set one by one."""

    ce: float = key(0.0, "weight of the cross-entropy (two classes: BCE with logits)")
    dice: float = key(0.0, "weight of the soft Dice loss")
    jaccard: float = key(0.0, "weight of the soft Jaccard (IoU) loss")
    lovasz: float = key(0.0, "weight of the Lovász-softmax loss, which follows the IoU itself")
    focal: float = key(0.0, "weight of the focal loss: cross-entropy that looks away from easy pixels")
    gamma: float = key(2.0, "how far the focal loss looks away")
    label_smoothing: float = key(0.0, "of ce: share of each pixel's target that is spread over all classes")
    class_weights: Any = key(None, "of ce and focal: one a class, as [1,5,2]; auto: median frequency; default: equal")
    pos_weight: Any = key(None, "two classes: foreground's weight in ce and focal, or auto: background/foreground")

    def __post_init__(self) -> None:
        for name in (*LOSSES, "gamma"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"loss.{name}", value, "0 or more")
        check(0 <= self.label_smoothing < 1, "loss.label_smoothing", self.label_smoothing, "in [0, 1)")
        if self.class_weights not in (None, "auto"):
            valid = isinstance(self.class_weights, list) and all(is_positive(w) for w in self.class_weights)
            check(valid, "loss.class_weights", self.class_weights, "auto or one number for each class, as [1,5,2]")
        if self.pos_weight not in (None, "auto"):
            check(is_positive(self.pos_weight), "loss.pos_weight", self.pos_weight, "auto or a number above 0")
        if self.class_weights is not None and self.pos_weight is not None:
            raise ConfigError("loss.class_weights and loss.pos_weight say the same thing twice: drop one of the two.")
        chosen = [name for name in LOSSES if getattr(self, name)]
        for name, users in (("class_weights", "ce focal"), ("pos_weight", "ce focal"), ("label_smoothing", "ce")):
            value, wanted = getattr(self, name), users.split()
            if value and chosen and not set(chosen) & set(wanted):
                what = f"is of {' and '.join(wanted)}, and the loss is {' and '.join(chosen)}"
                raise ConfigError(f"loss.{name}={value}: {what}. Add loss.ce=1, or drop it.")


@dataclass(frozen=True)
class TrackingConfig:
    name: str = key("mlflow", "mlflow or none", PLACE)
    uri: str | None = key(None, "MLflow's tracking URI; default: $MLFLOW_TRACKING_URI, or outputs/mlflow.db", PLACE)
    experiment: str | None = key(None, "MLflow's experiment; default: by the data's folders and chosen classes", PLACE)
    timeout: float = key(60.0, "seconds to wait for MLflow at a run's end; what is missed is sent later", PLACE)
    system: bool = key(False, "MLflow also shows the machine's CPU, memory and GPU (extra: system)", PLACE)

    def __post_init__(self) -> None:
        one_of("tracking.name", self.name, ("mlflow", "none"))
        if self.uri and ("@" in urlsplit(self.uri).netloc or redacted(self.uri) != self.uri):
            raise ConfigError(
                "tracking.uri: holds a password or a token, which every record of the run would keep. Drop it, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; of a database, "
                "MLFLOW_TRACKING_URI."
            )
        check(0 <= self.timeout < math.inf, "tracking.timeout", self.timeout, "0 or more")


@dataclass(frozen=True)
class TrainConfig:
    epochs: int | None = key(
        None, "to train; default: 10, fewer where these take over eight minutes, or what time_budget allows", EXTENT
    )
    time_budget: float | None = key(None, "seconds of training and validation; with epochs, the first ends it", EXTENT)
    batch_size: Any = key("auto", "images of a step, over all devices and micro-batches; auto: by the data")
    grad_accum: Any = key(
        "auto", "micro-batches a batch is cut into, to save memory; auto: as few as fit a GPU's, else 1", EXTENT
    )
    precision: str = key("auto", "fp32, bf16 or fp16; auto: the fastest that the device has in hardware", MACHINE)
    seed: int = key(0, "of the decoder's initial weights, the order and the augmentation")
    device: str = key("auto", "cpu, cuda, cuda:1, mps; auto: the first GPU if there is one", PLACE)
    workers: int | None = key(None, "threads that decode files; default: as many as cores", PLACE)
    grad_clip: float = key(1.0, "largest norm of the gradient; 0 does not clip")
    ema: float = key(0.0, "decay a step of an average of the weights, as 0.99, which is scored and kept; 0: none")
    bn_momentum: Any = key("auto", "of BatchNorm: a number, or scaled (auto): its own, less for micro-batches below 16")
    tta: str = key("none", "scoring averages over flips: none, hflip (2 views) or flips (4 views)")
    test: bool = key(True, "score the test split at the end, once; resume=DIR train.test=true does it later", EXTENT)
    patience: int | None = key(None, "stop after this many epochs without a better val/iou; default: never", EXTENT)
    compile: str = key("auto", "true, false; auto: where the training is long enough to pay (GPU, 10 minutes)", MACHINE)
    checkpointing: bool = key(False, "compute activations again instead of keeping them: less memory, slower")
    deterministic: bool = key(False, "only deterministic algorithms, and nothing chosen by a probe, at some speed")

    def __post_init__(self) -> None:
        object.__setattr__(self, "compile", normal("train.compile", self.compile))
        one_of("train.compile", self.compile, ("auto", "true", "false"))
        for name in ("epochs", "workers", "patience"):
            value = getattr(self, name)
            check(is_count(value) or value is None, f"train.{name}", value, "1 or more")
        check((self.workers or 1) <= 1024, "train.workers", self.workers, "at most 1024")
        valid = is_count(self.grad_accum) or self.grad_accum == "auto"
        check(valid, "train.grad_accum", self.grad_accum, "auto, or 1 or more")
        valid = is_count(self.batch_size) or self.batch_size == "auto"
        check(valid, "train.batch_size", self.batch_size, "auto, or 1 or more")
        valid = self.time_budget is None or 0 < self.time_budget < math.inf
        check(valid, "train.time_budget", self.time_budget, "above 0")
        if "auto" not in (self.batch_size, self.grad_accum):
            expected = f"a divisor of train.batch_size={self.batch_size}"
            check(self.batch_size % self.grad_accum == 0, "train.grad_accum", self.grad_accum, expected)
        check(0 <= self.seed < 2**32, "train.seed", self.seed, "in 0..2**32-1")
        check(0 <= self.grad_clip < math.inf, "train.grad_clip", self.grad_clip, "0 or more")
        check(0 <= self.ema < 1, "train.ema", self.ema, "in [0, 1)")
        valid = self.bn_momentum in ("auto", "scaled") or (is_positive(self.bn_momentum) and self.bn_momentum <= 1)
        check(valid, "train.bn_momentum", self.bn_momentum, "auto, scaled, or above 0 and at most 1")
        one_of("train.tta", self.tta, VIEWS)
        one_of("train.precision", self.precision, PRECISIONS)
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            valid = self.device.startswith("cuda:") and self.device[5:].isdigit()
            check(valid, "train.device", self.device, "auto, cpu, cuda, cuda:N or mps")

    @property
    def micro_batches(self) -> int:
        """How many a batch is cut into as far as that was asked for: 1 with grad_accum=auto."""
        return 1 if self.grad_accum == "auto" else self.grad_accum

    @property
    def epoch_limit(self) -> int | None:
        """How many epochs to train; None where the time budget alone decides."""
        return self.epochs or (None if self.time_budget else EPOCHS)


@dataclass(frozen=True)
class RunConfig:
    """One training run, as it was asked for."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resume: str | None = key(None, "a run folder to go on with", MACHINE)

    @property
    def experiment(self) -> str:
        """MLflow's: what was asked for, by MLFLOW_EXPERIMENT_NAME, too; else the data set, and classes if chosen."""
        if asked := self.tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            return asked
        chosen = list(self.data.classes or [])
        parts = [self.data.long_title, *(map(str, chosen) if len(chosen) <= 3 else [f"{len(chosen)}classes"])]
        return re.sub(r"[^\w.+-]+", "_", "-".join(parts))  # its files get a folder of this name


class Key(NamedTuple):
    """One key of the command line."""

    name: str
    default: Any
    help: str
    role: Role
    kind: Any  # its type


def keys(schema: Any = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every key, in the order of the schema."""
    instance, kinds = schema(), get_type_hints(schema)
    for item in fields(schema):
        value = getattr(instance, item.name)
        if is_dataclass(value):
            yield from keys(type(value), f"{prefix}{item.name}.")
        else:
            yield Key(f"{prefix}{item.name}", value, **item.metadata, kind=kinds[item.name])


def places() -> set[str]:
    """The keys that say where things lie and what they run on, and may differ between machines."""
    return {key.name for key in keys() if key.role.resumable and not key.role.portable}


def unknown_keys(composed: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys of a configuration that no schema has, with their values: Hydra lets `+train.epoch=3` pass."""
    known = {key.name for key in keys()}
    for name, value in flat(composed):
        if name not in known and not name.startswith("data.classes."):
            yield name, value


def meant(name: str) -> str | None:
    """Return the key, or group of options, that was meant by one that does not exist; None if nothing is near.

    The right word matters more than the right group: lr is optim.lr.
    """
    known = [known.name for known in keys()]
    return peers.meant(name, known) or next(iter(closest(name, known)), None)


def unknown(name: str, line: str = "") -> str:
    """Say of a key that it does not exist: with the line to type instead, else with the closest key."""
    near = meant(name)
    hint = f" Try {line}." if line else f" Closest: {near}." if near else ""
    if name in RENAMED:
        return f"{name}: is called {RENAMED[name]} now.{hint}"
    return f"{name}: no such key.{hint} List all with: {program()} --help"
