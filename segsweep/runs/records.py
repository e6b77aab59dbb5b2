"""What a run's journal holds, as types; one reader, which checks them, and one upgrade for what older versions wrote.

On disk a record is one flat JSON object: metrics stand beside `kind`, `epoch` and `time`, so that any tool reads them.
Numbers that are not finite are `null` there and None here. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from segsweep import catalog
from segsweep.config.checks import flat, read
from segsweep.config.renamed import renewed_sections
from segsweep.config.schema import RunConfig, keys
from segsweep.config.settings import Settings
from segsweep.errors import ConfigError, Failure

VERSION = 3
KEYED = ("config", "asked", "settings")  # what of a start holds keys by section

Precision = Literal["fp32", "bf16", "fp16"]
Status = Literal["complete", "stopped", "failed"]
Metrics = Mapping[str, int | float | None]

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # as the first version wrote them


@dataclass(frozen=True)
class ExecutionRecord:
    """How a machine ran a training."""

    device: str  # its name, as "cuda:0 (NVIDIA H200)"
    threads: int  # that a CPU computes on
    precision: Precision
    channels_last: bool  # the memory layout of images and weights
    compiled: bool  # by torch.compile
    micro_batch: int  # images of one forward pass
    rates: dict[str, float] = field(default_factory=dict)  # images/s of the ways tried, by name
    peak: float = 0.0  # FLOP/s of the fastest convolution there; 0 where it was not measured
    ranks: int = 1  # processes that trained together
    doubling: bool = True  # the decoder's upsampling was joined with its convolution, in training
    graphs: bool = False  # what was compiled was replayed as CUDA graphs


@dataclass(frozen=True)
class GpuNeed:
    """What a training was measured to need of its GPU, before a sweep packs trials."""

    memory: float  # bytes that it takes at most
    total: float  # bytes that the GPU has
    busy: float  # share of the time in which the GPU works for it, 0 to 1


@dataclass(frozen=True)
class Start:
    """A training begins or is resumed."""

    run: str  # names it, over all resumptions
    time: float  # seconds of the epoch
    asked: RunConfig  # the configuration, as it was asked for
    settings: Settings  # what was decided
    execution: ExecutionRecord  # how it is run here
    weights_source: str  # of the pretrained encoder: file, package, cache, hub or random
    parameters: int  # of the model
    input_size: tuple[int, int]  # height and width that the encoder sees
    classes: list[str]  # names, by index
    data_digest: str  # of the images and masks
    images: dict[str, int]  # number of them, by split
    command: str = ""  # the words after `train.py`, quoted for a shell
    commit: str | None = None  # of the checkout; None where there is none
    dirty: bool = False
    segsweep: str = ""
    torch: str = ""
    python: str = ""
    host: str = ""
    user: str = ""
    resumed_after: int = 0  # epochs that were done before

    def keys(self) -> dict[str, Any]:
        """Return every key with its value: what is portable as it was decided, the rest as it was asked for."""
        decided = flat(replace(self.settings, normalization=None).recorded())
        return dict(flat(asdict(self.asked))) | {name: v for name, v in decided if name != "normalization"}


@dataclass(frozen=True)
class EpochRecord:
    """An epoch after its validation; `epoch` counts from 1."""

    epoch: int
    time: float
    metrics: Metrics

    @property
    def iou(self) -> float | None:
        """The validation IoU."""
        return self.metrics.get("val/iou")


@dataclass(frozen=True)
class End:
    """A training ends; it may be resumed later."""

    time: float
    status: Status  # stopped: by a person or the system
    reason: str  # for a person
    error: Failure | None = None  # the kind of a failure; None for others
    metrics: Metrics = field(default_factory=dict)  # of the best epoch, of the test split, and speed

    @property
    def tested(self) -> dict[str, float]:
        """The scores of the test split; empty if it was not scored."""
        return {name: v for name, v in self.metrics.items() if name.startswith("test/") and v is not None}


Record = Start | EpochRecord | End


@dataclass
class Run:
    """All records of a journal, oldest first."""

    records: list[Record] = field(default_factory=list)

    @property
    def starts(self) -> list[Start]:
        return [record for record in self.records if isinstance(record, Start)]

    @property
    def start(self) -> Start | None:
        """The latest start."""
        return next((record for record in reversed(self.records) if isinstance(record, Start)), None)

    @property
    def asked(self) -> RunConfig:
        """The configuration of the latest start, to go by again; ask of a run that has begun.

        Its `data.download` is false: a record may be anybody's, and nothing is written where it says.
        """
        assert self.start is not None
        return replace(self.start.asked, data=replace(self.start.asked.data, download=False))

    @property
    def epochs(self) -> list[EpochRecord]:
        return [record for record in self.records if isinstance(record, EpochRecord)]

    @property
    def end(self) -> End | None:
        """The end, if nothing came after it."""
        last = self.records[-1] if self.records else None
        return last if isinstance(last, End) else None

    @property
    def tested(self) -> dict[str, float]:
        """The scores of the test split; empty if it was not scored."""
        return self.end.tested if self.end else {}

    @property
    def probed(self) -> bool:
        """Whether it is no training, but a look at frozen features: `segsweep probe`."""
        return any("probe/features" in epoch.metrics for epoch in self.epochs)

    @property
    def best(self) -> EpochRecord | None:
        """The first epoch with the best validation IoU; None where none has one."""
        scored = [epoch for epoch in self.epochs if epoch.iou is not None]
        return max(scored, key=lambda epoch: epoch.iou or 0.0, default=None)

    @property
    def seconds(self) -> float:
        """Of training and validation so far."""
        return (self.epochs[-1].metrics.get("perf/seconds") or 0.0) if self.epochs else 0.0

    def steady_median(self, name: str) -> float | None:
        """Return the median of a metric over the epochs after the first, which warms up; None where it is not known."""
        values = [value for epoch in self.epochs if (value := epoch.metrics.get(name)) is not None]
        return median(values[1:] or values) if values else None


def encode(record: Record) -> dict[str, Any]:
    """Return a record as the JSON object that `decode` reads."""
    if isinstance(record, Start):
        return {"kind": "start", "version": VERSION, **asdict(record), "settings": record.settings.recorded()}
    plain = asdict(record)
    metrics = plain.pop("metrics")  # beside the rest
    return {"kind": "epoch" if isinstance(record, EpochRecord) else "end", **plain, **metrics}


def decode(plain: Any, where: Path) -> Record:
    """Read a record from what `json.loads` made of its line; `where` is the journal, for the error.

    ConfigError if it is not a record, or of a later version.
    """
    kind = plain.get("kind") if isinstance(plain, dict) else None
    try:
        if kind == "start":
            return read(Start, upgrade(plain), kind)
        if kind == "epoch":
            return read(EpochRecord, _metrics_apart(plain, EpochRecord), kind)
        if kind == "end":
            if "error" not in plain and plain.get("status") == "failed" and "out of memory" in str(plain.get("reason")):
                plain = {**plain, "error": "out_of_memory"}  # the first version did not write the kind
            return read(End, _metrics_apart(plain, End), kind)
        raise ConfigError("a line is not a start, epoch or end record.")
    except (ConfigError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: damaged, or not a journal: {error}") from error


def upgrade(start: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bring a `start` that an older version wrote to the present form; ConfigError if its version is a later one."""
    version = start.get("version", 1)
    if not isinstance(version, int) or version > VERSION:
        raise ConfigError(f"has format {version}, and this segsweep reads formats up to {VERSION}. Update segsweep.")
    newer = start
    if version < VERSION:
        newer = {**start, **{of: renewed_sections(start[of]) for of in KEYED if of in start}}
    if version == 1:
        newer = _from_first(newer)
    settings = newer.get("settings")
    if not isinstance(settings, dict) or not isinstance(data := settings.get("data"), dict):
        return newer  # refused by its types
    # Before there were these keys masks were never cut, no value of a file was passed over, nothing was zoomed, no crop
    # was laid over a class, and tiles were as the canvas has them.
    before = {"threshold": None, "nodata": "none", "zoom": 1.0, "foreground": 0.0, "tile": None}
    return {**newer, "settings": {**settings, "data": {**before, **data}}}


def _from_first(start: Mapping[str, Any]) -> dict[str, Any]:
    """The first version had one configuration, with `auto` replaced in places, and flat fields beside it."""
    if not isinstance(config := start.get("config"), dict):
        raise ConfigError("start: lacks config.")
    known = [key.name.partition(".") for key in keys()]
    asked: dict[str, Any] = {section: {} for section, _, name in known if name}
    for section, kept in asked.items():
        if not isinstance(values := config.get(section, {}), dict):
            raise ConfigError(f"start.config.{section}: must be an object, not {str(values)[:80]!r}.")
        kept.update({name: values[name] for of, _, name in known if of == section and name in values})
    # Where a run says nothing of it, the key did not exist, and images were repeated in debug=overfit alone.
    data, train, optim = asked["data"], asked["train"], asked["optim"]
    data.setdefault("passes", 10 if data.get("overfit") else 1)
    settings = {name: dict(value) for name, value in asked.items() if name != "tracking"}
    batch = start.get("micro_batch", 1)
    if train.get("batch_size") == "auto":
        settings["train"]["batch_size"] = batch * train.get("grad_accum", 1)
    if train.get("time_budget") is None and train.get("epochs") is None:
        settings["train"]["epochs"] = start.get("epochs")
    if train.get("bn_momentum", "auto") == "auto":
        settings["train"]["bn_momentum"] = "scaled"
    rates = catalog.rates(str(asked["encoder"].get("name")))
    random = start.get("weights_source") == "random"
    for name, value in (("lr", rates.lr), ("encoder_lr_scale", 1.0 if random else rates.encoder_lr_scale)):
        if optim.get(name, "auto") == "auto":
            settings["optim"][name] = value
    if "decoder_width" in start:
        settings["decoder"]["width"] = start["decoder_width"]
    precision = start.get("precision_used", "float32")
    usual = {"threads": 1, "channels_last": True, "compiled": False, "micro_batch": 1, "device": "cpu"}
    execution = {
        **usual,
        **start,
        "precision": PRECISIONS.get(precision, precision),
        "rates": start.get("probed", {}),
        "peak": start.get("convolution_peak", 0.0),
    }
    images = {part: start.get(f"data/{part}", 0) for part in ("train", "val", "test")}
    size = list(start.get("input_size") or data.get("size", [256, 256]))
    new = {"asked": asked, "settings": settings, "execution": execution, "images": images, "input_size": size}
    return {**start, **new}


def _metrics_apart(plain: Mapping[str, Any], kind: type[Record]) -> dict[str, Any]:
    named = {item.name for item in fields(kind)}
    return {**plain, "metrics": {name: value for name, value in plain.items() if name not in {"kind", *named}}}
