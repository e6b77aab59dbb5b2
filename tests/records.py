"""Records of a journal, made by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from segsweep.config.checks import flat
from segsweep.config.schema import RunConfig
from segsweep.config.settings import Normalization, Settings
from segsweep.runs.journal import Journal
from segsweep.runs.records import End, EpochRecord, ExecutionRecord, Record, Start
from segsweep.sweeping.about import About


def undecided(settings: Settings) -> list[str]:
    """Return the keys that still say `auto`."""
    return [name for name, value in flat(settings.recorded()) if value == "auto"]


def start(asked: RunConfig | None = None, **changes: Any) -> Start:
    """Return the start of a run on two classes; `changes` are fields of it."""
    asked = asked or RunConfig()
    given: dict[str, Any] = {
        "run": "0123",
        "time": 1.0,
        "asked": asked,
        "settings": decided(asked),
        "execution": ExecutionRecord("cpu", 1, "fp32", channels_last=True, compiled=False, micro_batch=4),
        "weights_source": "random",
        "parameters": 1000,
        "input_size": (32, 32),
        "classes": ["background", "foreground"],
        "data_digest": "0123456789abcdef",
        "images": {"train": 8, "val": 2, "test": 0},
    }
    return Start(**given | changes)


def decided(asked: RunConfig) -> Settings:
    """Return settings without the `auto` of what names and curves say."""
    settings, optim, data = Settings.of(asked), asked.optim, asked.data
    optim = replace(optim, lr=1e-3 if optim.lr == "auto" else optim.lr, encoder_lr_scale=1.0)
    data = replace(settings.data, passes=1, resize="pad" if data.resize == "auto" else data.resize)
    return replace(settings, optim=optim, data=data, normalization=Normalization((0.0,), (1.0,)))


def epoch(number: int, iou: float | None, **metrics: float) -> EpochRecord:
    """Return the record of an epoch."""
    return EpochRecord(number, 1.0 + number, {"val/iou": iou, "val/loss": 0.5, **metrics})


def end(status: Any = "complete", **metrics: float) -> End:
    """Return the end of a run."""
    return End(100.0, status, "it is over", metrics=metrics)


def write(folder: Path, *records: Record) -> Path:
    """Write a journal, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder) as book:
        for record in records:
            book.write(record)
    return folder


def write_about(folder: Path, **changes: Any) -> About:
    """Write a sweep's `sweep.json`, complete and tracked unless it is said otherwise."""
    kept = About("-m hydra/sweeper=optuna", {}, [], "epochs", [], "data", True, "complete", id="x")
    kept = replace(kept, **changes)
    kept.save(folder)
    return kept
