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
from segsweep.config.checks import DEVICES, check, flat, is_count, is_device, is_number, is_positive, is_share
from segsweep.config.data import DataConfig as DataConfig  # for those who ask for a section
from segsweep.config.keys import EXTENT, MACHINE, PATH, PLACE, Role, key, normal
from segsweep.errors import ConfigError, closest, one_of, redacted
from segsweep.paths import program

LOSSES = ("ce", "dice", "jaccard", "lovasz", "focal")  # segsweep/engine/losses.py
SCHEDULES = ("cosine", "onecycle", "constant")  # segsweep/training/optim.py
VIEWS = {"none": 1, "hflip": 2, "flips": 4}  # that scoring averages over: segsweep/engine/scorer.py
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FADING = "fading"  # of loss.class_weights
EPOCHS = 10  # without train.epochs and train.time_budget


@dataclass(frozen=True)
class EncoderConfig:
    name: str = key("tf_efficientnet_lite0", "any timm model, with or without its pretrained tag")
    pretrained: Any = key(
        "auto", "true: pretrained weights, or an error; auto: random if there are none; false: random"
    )
    weights_file: str | None = key(
        None,
        "a timm checkpoint file (.safetensors, or .pth without code), or a folder of them, each named after its model",
        PATH,
    )
    drop_path: float = key(0.0, "probability of skipping a residual block in training (stochastic depth)")
    freeze_norm: bool = key(False, "true: the encoder's BatchNorm keeps its pretrained statistics")

    def __post_init__(self) -> None:
        if not isinstance(self.pretrained, bool):  # 0 and 1 equal False and True, and are neither
            one_of("encoder.pretrained", self.pretrained, ("auto",), shown="auto, true, false")
        if self.weights_file and self.pretrained is False:
            raise ConfigError("encoder.weights_file is given but encoder.pretrained=false. Drop one of the two.")
        check(0 <= self.drop_path < 1, "encoder.drop_path", self.drop_path, "in [0, 1)")


@dataclass(frozen=True)
class DecoderConfig:
    width: Any = key(
        "auto",
        "channels of each stage, deepest first, as [256,128,64,32,16]; auto: from the encoder's cost and the number of "
        "classes",
    )
    norm: str = key("batch", "normalization layers: batch, group or layer")
    dropout: float = key(0.0, "probability of dropping a channel before the head")

    def __post_init__(self) -> None:
        if self.width != "auto":
            valid = isinstance(self.width, list) and self.width and all(is_count(w) for w in self.width)
            check(bool(valid), "decoder.width", self.width, "auto or a list of channels, as [256,128,64,32,16]")
        one_of("decoder.norm", self.norm, ("batch", "group", "layer"))
        check(0 <= self.dropout < 1, "decoder.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True)
class OptimConfig:
    name: str = key("adamw", "optimizer: adam, adamw or sgd")
    lr: Any = key(
        "auto",
        "peak learning rate of the decoder; auto: depends on the kind of encoder, 3e-3 for convolutional ones with "
        "BatchNorm",
    )
    encoder_lr_scale: Any = key(
        "auto",
        "encoder's learning rate = optim.lr x this; 0 freezes the encoder; auto: depends on its kind, 1 for random "
        "weights",
    )
    layer_decay: float = key(
        1.0, "factor between the learning rates of neighbouring encoder layers, lower near the image; 1: all the same"
    )
    freeze_epochs: int = key(0, "number of first epochs in which the encoder is frozen")
    weight_decay: float = key(0.01, "weight decay; biases and norm layers have none")
    momentum: float = key(0.9, "momentum of SGD, beta1 of Adam")
    schedule: str = key("cosine", f"learning-rate schedule: {', '.join(SCHEDULES)}")
    warmup: float = key(0.05, "share of the training in which the learning rate rises to optim.lr (cosine, constant)")

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
    transpose: float = key(0.0, "probability of swapping rows and columns; with both flips: all 8 symmetries")
    rotate: float = key(0.0, "largest rotation, in degrees, in both directions")
    scale: Any = key(
        0.0, "random zoom between 1/(1+scale) and 1+scale; auto: depends on how much the objects differ in scale"
    )
    shear: float = key(0.0, "largest shear, in degrees, in both directions")
    translate: Any = key(0.0, "largest shift, as a share of the canvas; auto: chosen together with augmentation.scale")
    brightness: float = key(0.0, "b: random brightness factor between 1-b and 1+b")
    contrast: float = key(0.0, "c: random contrast factor between 1-c and 1+c")
    saturation: float = key(0.0, "s: random saturation factor between 1-s and 1+s (colour images)")
    hue: float = key(0.0, "largest rotation of the hue, as a share of the colour circle (colour images)")
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
    """Weights of the terms of the loss. A group in conf/loss/ sets several at once."""

    ce: float = key(0.0, "weight of the cross-entropy (two classes: BCE with logits)")
    dice: float = key(0.0, "weight of the soft Dice loss")
    jaccard: float = key(0.0, "weight of the soft Jaccard (IoU) loss")
    lovasz: float = key(0.0, "weight of the Lovász-softmax loss, a surrogate of the IoU")
    focal: float = key(0.0, "weight of the focal loss: cross-entropy with a smaller weight for easy pixels")
    gamma: float = key(2.0, "focal loss: exponent gamma; larger values give easy pixels less weight")
    label_smoothing: float = key(0.0, "ce: share of each pixel's target that is spread evenly over all classes")
    class_weights: Any = key(
        FADING,
        "ce, focal: one weight for each class, as [1,5,2]; auto: median frequency balancing; fading: with 3 classes or "
        "more, like auto at first and equal at the end of training; null: equal",
    )
    pos_weight: Any = key(
        None, "ce, focal with two classes: weight of the foreground; auto: background pixels / foreground pixels"
    )

    def __post_init__(self) -> None:
        for name in (*LOSSES, "gamma"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"loss.{name}", value, "0 or more")
        check(0 <= self.label_smoothing < 1, "loss.label_smoothing", self.label_smoothing, "in [0, 1)")
        chosen_weights = None if self.class_weights == FADING else self.class_weights
        if chosen_weights not in (None, "auto"):
            valid = isinstance(chosen_weights, list) and all(is_positive(w) for w in chosen_weights)
            told = "fading, auto, null or one number for each class, as [1,5,2]"
            check(valid, "loss.class_weights", chosen_weights, told)
        if self.pos_weight not in (None, "auto"):
            check(is_positive(self.pos_weight), "loss.pos_weight", self.pos_weight, "auto or a number above 0")
        if chosen_weights is not None and self.pos_weight is not None:
            raise ConfigError("loss.class_weights and loss.pos_weight say the same thing twice: drop one of the two.")
        chosen = [name for name in LOSSES if getattr(self, name)]
        for name, users in (("class_weights", "ce focal"), ("pos_weight", "ce focal"), ("label_smoothing", "ce")):
            value, wanted = chosen_weights if name == "class_weights" else getattr(self, name), users.split()
            if value and chosen and not set(chosen) & set(wanted):
                what = f"applies to {' and '.join(wanted)}, but the loss is {' and '.join(chosen)}"
                raise ConfigError(f"loss.{name}={value} {what}. Add loss.ce=1, or remove it.")


@dataclass(frozen=True)
class TrackingConfig:
    name: str = key("mlflow", "mlflow or none", PLACE)
    uri: str | None = key(None, "MLflow's tracking URI; default: $MLFLOW_TRACKING_URI, or outputs/mlflow.db", PLACE)
    experiment: str | None = key(
        None, "MLflow's experiment; default: named after the data folder and data.classes", PLACE
    )
    timeout: float = key(60.0, "seconds to wait for MLflow at a run's end; segsweep sync sends the rest later", PLACE)
    system: bool = key(False, "true: also log the use of CPU, memory and GPU (extra: system)", PLACE)

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
        None,
        "number of epochs; default: 10, or fewer if 10 take more than eight minutes (not with deterministic); with "
        "time_budget: as many as fit",
        EXTENT,
    )
    time_budget: float | None = key(
        None, "seconds of training and validation; with train.epochs, the limit that is reached first counts", EXTENT
    )
    batch_size: Any = key(
        "auto", "images in one optimizer step, over all devices and micro-batches; auto: depends on the data"
    )
    grad_accum: Any = key(
        "auto",
        "number of micro-batches that a batch is cut into, to save memory; auto: as few as fit a GPU's memory, 1 on a "
        "CPU",
        EXTENT,
    )
    precision: str = key("auto", "fp32, bf16 or fp16; auto: the fastest that the hardware supports", MACHINE)
    seed: int = key(0, "random seed of the decoder's initial weights, the order of images and the augmentation")
    device: str = key("auto", "cpu, cuda, cuda:1, mps; auto: the first GPU if there is one", PLACE)
    workers: int | None = key(None, "number of threads that decode files; default: number of cores", PLACE)
    grad_clip: float = key(1.0, "largest norm of the gradient; 0: no clipping")
    ema: float = key(
        0.0, "decay per step of an exponential moving average of the weights, as 0.99; it is scored and saved; 0: none"
    )
    bn_momentum: Any = key(
        "auto",
        "momentum of BatchNorm: a number; scaled (auto): the layer's default, less if a micro-batch has fewer than 16 "
        "images",
    )
    tta: str = key("none", "test-time augmentation for all scores: none, hflip (2 views) or flips (4 views)")
    test: bool = key(
        True, "score the test split once, at the end; false: not now (later: resume=DIR train.test=true)", EXTENT
    )
    patience: int | None = key(
        None, "early stopping: stop after this many epochs without a better val/iou; default: never", EXTENT
    )
    compile: str = key(
        "auto",
        "torch.compile: true, false; auto: for trainings of 10 minutes or more on one GPU, or of 2 (untested) if "
        "a similar one was compiled before; graphs: with CUDA graphs, if a short measurement finds them faster "
        "(untested)",
        MACHINE,
    )
    side_stream: bool = key(
        False,
        "true: the GPU prepares the next batch while it trains on the present one, in a CUDA stream (untested)",
        MACHINE,
    )
    checkpointing: bool = key(False, "activation checkpointing: needs less memory, is slower")
    deterministic: bool = key(False, "true: only deterministic algorithms and no probe; slower")

    def __post_init__(self) -> None:
        object.__setattr__(self, "compile", normal("train.compile", self.compile))
        one_of("train.compile", self.compile, ("auto", "true", "false", "graphs"))
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
        check(is_device(self.device), "train.device", self.device, DEVICES)

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches in a batch, as typed; 1 with grad_accum=auto."""
        return 1 if self.grad_accum == "auto" else self.grad_accum

    @property
    def open_ended(self) -> bool:
        """Tell whether neither a number of epochs nor a time was asked for."""
        return not (self.epochs or self.time_budget)

    @property
    def epoch_limit(self) -> int | None:
        """The number of epochs to train; None if only the time budget decides."""
        return EPOCHS if self.open_ended else self.epochs


@dataclass(frozen=True)
class RunConfig:
    """The configuration of one training run, as it was typed."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resume: str | None = key(None, "folder of the run to continue", MACHINE)

    @property
    def experiment(self) -> str:
        """MLflow's experiment: as typed, or MLFLOW_EXPERIMENT_NAME, else named after data set and chosen classes."""
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
    """The keys for places and devices, which may differ between machines."""
    return {key.name for key in keys() if key.role.resumable and not key.role.portable}


def unknown_keys(composed: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys of a configuration that no schema has, with their values: Hydra lets `+train.epoch=3` pass."""
    known = {key.name for key in keys()}
    for name, value in flat(composed):
        if name not in known and not name.startswith("data.classes."):
            yield name, value


def meant(name: str) -> str | None:
    """Return the key or group that was probably meant by an unknown one; None if none is close.

    The last part counts more than the group: `train.lr` means `optim.lr`.
    """
    known = [known.name for known in keys()]
    return peers.meant(name, known) or next(iter(closest(name, known)), None)


def unknown(name: str, line: str = "") -> str:
    """Return the error for an unknown key, with the line to type instead or the closest key."""
    near = meant(name)
    hint = f" Try {line}." if line else f" Closest: {near}." if near else ""
    return f"{name}: no such key.{hint} List all with: {program()} --help"
