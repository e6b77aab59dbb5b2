"""Every key that can be set, with its type, its default and one line of help. Standard library only.

The dataclasses are Hydra's schema; `train.py` turns the composed configuration into one `RunConfig`, and `run.py` turns
that into keyword arguments: below it nothing knows of configuration. OmegaConf has neither `Literal` nor unions with
containers, so such keys are typed `Any` and checked in `__post_init__`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

from segsweep.errors import ConfigError, closest


def key(default: Any, help: str) -> Any:  # typed Any, as dataclasses.field is
    """A dataclass field with its line of help; a list or dict default is copied for each instance."""
    metadata = {"help": help}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _check(holds: bool, name: str, value: Any, must: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value}: must be {must}.")


def _one_of(name: str, value: Any, allowed: tuple[str, ...], shown: str = "") -> None:
    if value not in allowed:
        near = closest(str(value), allowed)
        hint = f" Try {name}={near[0]}." if near else ""
        raise ConfigError(f"{name}={value}: must be one of {shown or ', '.join(allowed)}.{hint}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


@dataclass
class EncoderConfig:
    name: str = key("tf_efficientnet_lite0", "any timm model, with or without its pretrained tag")
    pretrained: Any = key("auto", "auto: pretrained weights if they can be had; true: or else an error; false: random")
    weights_file: str | None = key(None, "a timm checkpoint (.safetensors, or .pth without code in it)")

    def __post_init__(self) -> None:
        if not isinstance(self.pretrained, bool):  # 0 and 1 equal False and True, and are neither
            _one_of("encoder.pretrained", self.pretrained, ("auto",), shown="auto, true, false")
        if self.weights_file and self.pretrained is False:
            raise ConfigError("encoder.weights_file is given but encoder.pretrained=false. Drop one of the two.")


@dataclass
class DecoderConfig:
    width: Any = key(
        "auto", "channels of the stages, deepest first, as [256,128,64,32,16]; auto: scaled to the encoder"
    )
    norm: str = key("batch", "batch, group or layer")
    dropout: float = key(0.0, "probability of dropping a channel before the head")

    def __post_init__(self) -> None:
        if self.width != "auto":
            valid = isinstance(self.width, list) and self.width and all(_is_count(w) for w in self.width)
            _check(bool(valid), "decoder.width", self.width, "auto or a list of channels, as [256,128,64,32,16]")
        _one_of("decoder.norm", self.norm, ("batch", "group", "layer"))
        _check(0 <= self.dropout < 1, "decoder.dropout", self.dropout, "in [0, 1)")


@dataclass
class OptimConfig:
    name: str = key("adamw", "adam, adamw or sgd")
    lr: float = key(1e-3, "peak learning rate of the decoder")
    encoder_lr_scale: float = key(1.0, "the encoder's learning rate as a multiple of lr; 0 freezes it")
    weight_decay: float = key(0.01, "on weights of two and more dimensions only")
    momentum: float = key(0.9, "SGD's momentum, Adam's first beta")
    schedule: str = key("cosine", "cosine, onecycle or constant")
    warmup: float = key(0.05, "share of the training over which the learning rate rises (cosine, constant)")

    def __post_init__(self) -> None:
        _one_of("optim.name", self.name, ("adam", "adamw", "sgd"))
        _one_of("optim.schedule", self.schedule, ("cosine", "onecycle", "constant"))
        _check(0 < self.lr < math.inf, "optim.lr", self.lr, "above 0, as 1e-3")
        _check(0 <= self.encoder_lr_scale < math.inf, "optim.encoder_lr_scale", self.encoder_lr_scale, "0 or more")
        _check(0 <= self.weight_decay < math.inf, "optim.weight_decay", self.weight_decay, "0 or more")
        _check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        _check(0 <= self.warmup < 1, "optim.warmup", self.warmup, "in [0, 1)")


@dataclass
class AugmentationConfig:
    hflip: float = key(0.0, "probability of a left-right flip")
    vflip: float = key(0.0, "probability of a top-bottom flip")
    transpose: float = key(0.0, "probability of swapping rows and columns; with both flips, all 8 symmetries")
    rotate: float = key(0.0, "rotation by up to ± this many degrees")
    scale: float = key(0.0, "zoom between 1/(1+scale) and 1+scale")
    shear: float = key(0.0, "shear by up to ± this many degrees")
    translate: float = key(0.0, "shift by up to ± this share of the canvas")
    brightness: float = key(0.0, "brightness factor between 1-b and 1+b")
    contrast: float = key(0.0, "contrast factor between 1-c and 1+c")
    saturation: float = key(0.0, "saturation factor between 1-s and 1+s (colour images)")
    hue: float = key(0.0, "rotation of the hue by up to ± this share of the circle (colour images)")
    blur: float = key(0.0, "largest standard deviation of a Gaussian blur, in pixels")
    noise: float = key(0.0, "largest standard deviation of Gaussian noise, as a share of the value range")

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "transpose", "translate", "brightness", "contrast", "saturation"):
            value = getattr(self, name)
            _check(_is_share(value), f"augmentation.{name}", value, "in [0, 1]")
        for name in ("scale", "blur", "noise"):
            value = getattr(self, name)
            _check(0 <= value < math.inf, f"augmentation.{name}", value, "0 or more")
        _check(0 <= self.rotate <= 180, "augmentation.rotate", self.rotate, "in [0, 180]")
        _check(0 <= self.shear <= 60, "augmentation.shear", self.shear, "in [0, 60]")
        _check(0 <= self.hue <= 0.5, "augmentation.hue", self.hue, "in [0, 0.5]")


@dataclass
class DataConfig:
    name: str = key("folder", "where the pairs come from: folder, camvid or shapes")
    root: str | None = key(None, "folder with images/ and masks/ in it")
    images: str | None = key(None, "folder of images; train/, val/ and test/ in it are taken as the split")
    masks: str | None = key(None, "folder of masks, paired with the images by stem")
    size: list[int] = key([256, 256], "height and width of the training canvas, in pixels")
    resize: str = key("pad", "pad: fit, keep the aspect; squash: stretch; crop: no resizing, train on crops")
    mask_suffix: str = key("", "what masks' stems have beyond their images', as _mask")
    table: str | None = key(
        None, "a CSV with the columns image and mask, optionally split, group, fold; paths below it"
    )
    split: list[float] = key(
        [0.8, 0.2], "shares of train and val, or train, val and test, where the data have no split"
    )
    group: str | None = key(None, "regular expression that finds an image's group in its stem; groups stay together")
    folds: int | None = key(None, "cross-validation: cut train and val into this many folds")
    fold: int = key(0, "cross-validation: the fold to validate on, from 0")
    classes: Any = key(
        None, "names of the values 0, 1, ..., as [ground,road]; or names with values, as {car:8}; default: binary"
    )
    ignore_index: int = key(255, "mask value of void pixels, which never count")
    normalize: str = key("auto", "encoder: the pretrained weights' mean and std; dataset: the training split's; auto")
    seed: int = key(0, "of the hashed split and of generated data")
    count: int = key(300, "shapes: number of generated images")

    def __post_init__(self) -> None:
        _check(
            len(self.size) == 2 and all(_is_count(s) and s >= 32 for s in self.size),
            "data.size",
            self.size,
            "[height,width], 32 pixels or more each, as [256,256]",
        )
        _one_of("data.name", self.name, ("folder", "camvid", "shapes"))
        given = [name for name in ("root", "images", "masks", "table") if getattr(self, name)]
        if self.name == "shapes" and given:
            raise ConfigError(
                f"data.{given[0]} is given, but data=shapes generates its images. Add data=folder to train on your own."
            )
        _one_of("data.resize", self.resize, ("pad", "squash", "crop"))
        _one_of("data.normalize", self.normalize, ("auto", "encoder", "dataset"))
        _check(
            len(self.split) in (2, 3) and all(s > 0 for s in self.split) and math.isclose(sum(self.split), 1),
            "data.split",
            self.split,
            "two or three positive shares that sum to 1, as [0.8,0.2]",
        )
        _check(self.folds is None or self.folds >= 2, "data.folds", self.folds, "2 or more")
        _check(
            0 <= self.fold < (self.folds or 1), "data.fold", self.fold, f"in 0..{(self.folds or 1) - 1} (data.folds)"
        )
        _check(0 <= self.ignore_index <= 255, "data.ignore_index", self.ignore_index, "in 0..255")
        if self.classes is not None:
            self._check_classes()
        _check(0 <= self.seed < 2**32, "data.seed", self.seed, "in 0..2**32-1")
        _check(self.count >= 10, "data.count", self.count, "10 or more")

    def _check_classes(self) -> None:
        form = "names, as [ground,road,car], or names with their values, as {road:[3,4],car:8}"
        if isinstance(self.classes, dict):
            values = [v if isinstance(v, list) else [v] for v in self.classes.values()]
            flat = [value for group in values for value in group]
            valid = bool(flat) and all(isinstance(v, int) and 0 <= v <= 255 for v in flat)
            _check(valid, "data.classes", self.classes, form)
            _check(len(set(flat)) == len(flat), "data.classes", self.classes, "distinct values")
        else:
            valid = isinstance(self.classes, list) and bool(self.classes)
            _check(valid and all(isinstance(c, str) for c in self.classes), "data.classes", self.classes, form)
            _check(len(set(self.classes)) == len(self.classes), "data.classes", self.classes, "distinct names")


@dataclass
class LossConfig:
    name: str = key("ce_dice", "ce (binary: the same as bce), dice, ce_dice, bce or bce_dice")
    dice_weight: float = key(0.5, "share of the Dice term in ce_dice and bce_dice")

    def __post_init__(self) -> None:
        _one_of("loss.name", self.name, ("ce", "dice", "ce_dice", "bce", "bce_dice"))
        _check(_is_share(self.dice_weight), "loss.dice_weight", self.dice_weight, "in [0, 1]")


@dataclass
class TrackingConfig:
    name: str = key("mlflow", "mlflow or none")
    uri: str | None = key(None, "MLflow's tracking URI; default: $MLFLOW_TRACKING_URI, or outputs/mlflow.db")
    experiment: str | None = key(None, "MLflow's experiment; default: data.name")
    timeout: float = key(60.0, "longest wait for MLflow at the end of a run, in seconds; what is missed is sent later")

    def __post_init__(self) -> None:
        _one_of("tracking.name", self.name, ("mlflow", "none"))
        if self.uri and "@" in urlsplit(self.uri).netloc:
            raise ConfigError(
                "tracking.uri: holds a password, which every record of the run would keep. Drop it, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        _check(0 <= self.timeout < math.inf, "tracking.timeout", self.timeout, "0 or more")


@dataclass
class TrainConfig:
    epochs: int | None = key(None, "passes over the training split; default: 10, or as many as time_budget allows")
    time_budget: float | None = key(
        None, "seconds for training and validation; with epochs too, the first reached ends"
    )
    batch_size: int = key(16, "images for one optimizer step, over all devices and micro-batches")
    accumulate: int = key(1, "micro-batches a batch is cut into, to save memory")
    precision: str = key("auto", "fp32, bf16 or fp16; auto: the fastest that the device has in hardware")
    seed: int = key(0, "of the decoder's initial weights, the order and the augmentation")
    device: str = key("auto", "cpu, cuda, cuda:1, mps; auto: the first GPU if there is one")
    workers: int | None = key(None, "threads that decode files; default: as many as cores")
    clip: float = key(1.0, "largest norm of the gradient; 0 does not clip")
    patience: int | None = key(None, "stop after this many epochs without a better val/iou; default: never")
    deterministic: bool = key(False, "only deterministic algorithms, at some speed")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "workers", "patience"):
            value = getattr(self, name)
            optional = name in ("epochs", "workers", "patience")
            _check(_is_count(value) or (optional and value is None), f"train.{name}", value, "1 or more")
        _check(self.time_budget is None or self.time_budget > 0, "train.time_budget", self.time_budget, "above 0")
        _check(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"a divisor of train.batch_size={self.batch_size}",
        )
        _check(0 <= self.seed < 2**32, "train.seed", self.seed, "in 0..2**32-1")
        _check(0 <= self.clip < math.inf, "train.clip", self.clip, "0 or more")
        _one_of("train.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            valid = self.device.startswith("cuda:") and self.device[5:].isdigit()
            _check(valid, "train.device", self.device, "auto, cpu, cuda, cuda:N or mps")


@dataclass
class RunConfig:
    """One training run.

    The mutable defaults are Hydra's need: frozen schemas do not compose.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resume: str | None = key(None, "a run folder to go on with")


def keys(schema: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every key as (dotted name, default, help), in the order of the schema."""
    instance = schema()
    for item in fields(schema):
        value = getattr(instance, item.name)
        if is_dataclass(value):
            yield from keys(type(value), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, item.metadata["help"]


def refuse_unknown(composed: dict[str, Any]) -> None:
    """Refuse keys that no schema has: Hydra lets `+train.epoch=3` pass.

    Args:
        composed: the whole composed configuration as plain containers.

    Raises:
        ConfigError: with the closest known key.
    """
    known = [name for name, _, _ in keys()]
    for name, _ in flat(composed):
        if name in known or name.startswith("data.classes."):
            continue
        raise ConfigError(unknown(name))


def unknown(name: str) -> str:
    """What to say of a key that does not exist."""
    known = [key for key, _, _ in keys()]
    # The right word matters more than the right group: lr is optim.lr.
    near = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]] or closest(name, known)
    hint = f" Closest: {near[0]}." if near else ""
    return f"{name}: no such key.{hint} List all with: python train.py --help"


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the leaves; an empty dict is one."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
