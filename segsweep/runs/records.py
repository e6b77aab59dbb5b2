"""What a run's journal holds, as types; one reader, which checks them.

On disk a record is one flat JSON object: metrics stand beside `kind`, `epoch` and `time`, so that any tool reads them.
Numbers that are not finite are `null` there and None here. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from segsweep.config.checks import flat, read
from segsweep.config.schema import RunConfig
from segsweep.config.settings import Settings
from segsweep.errors import ConfigError, Failure

VERSION = 3

Precision = Literal["fp32", "bf16", "fp16"]
Status = Literal["complete", "stopped", "failed"]
Metrics = Mapping[str, int | float | None]


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

    ConfigError if it is not a record, or of another format.
    """
    kind = plain.get("kind") if isinstance(plain, dict) else None
    try:
        if kind == "start":
            if (version := plain.get("version")) != VERSION:
                told = f"has format {version}, and this segsweep reads format {VERSION}"
                raise ConfigError(f"{told}. Use the version that wrote it.")
            return read(Start, plain, kind)
        if kind == "epoch":
            return read(EpochRecord, _metrics_apart(plain, EpochRecord), kind)
        if kind == "end":
            return read(End, _metrics_apart(plain, End), kind)
        raise ConfigError("a line is not a start, epoch or end record.")
    except (ConfigError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: damaged, or not a journal: {error}") from error


def _metrics_apart(plain: Mapping[str, Any], kind: type[Record]) -> dict[str, Any]:
    named = {item.name for item in fields(kind)}
    return {**plain, "metrics": {name: value for name, value in plain.items() if name not in {"kind", *named}}}
