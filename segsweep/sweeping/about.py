"""`sweep.json`: what a sweep asks and how far it is, for reports and for MLflow. Standard library only."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from segsweep.config.checks import read_file
from segsweep.errors import ConfigError
from segsweep.paths import locked, save_json
from segsweep.runs.trial import NAME as TRIAL
from segsweep.sweeping import screened

NAME = "sweep.json"
State = Literal["running", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class CrossValidated:
    """A setting that was trained on each fold; `segsweep.sweeping.crossval` makes it."""

    setting: list[str]  # the overrides of what was varied, without the fold
    trials: list[str]  # names, in the order of their folds
    folds: int
    problem: str = ""  # why there is no score
    images: int = 0  # predicted, each once
    groups: int = 0  # that the bootstrap draws; as many as images where there are none
    iou: float | None = None  # of all out-of-fold predictions together
    interval: tuple[float, float] | None = None  # 95 % of `iou`, by a bootstrap over groups
    behind: tuple[float, float] | None = None  # 95 % of how far it is behind the best, on the same groups
    mean: float | None = None  # of the folds' own IoU
    sd: float | None = None  # of the folds' own IoU: their spread, and no interval


@dataclass(frozen=True)
class About:
    """What is written down of a sweep. Older versions did not write what has a default."""

    command: str  # as it was typed, without the program
    space: dict[str, str]  # `segsweep.sweeping.space.Space.described`
    fixed: list[str]  # the overrides that all trials have
    budget: str
    finalists: list[str]  # names of the trials whose settings are trained again, best first
    experiment: str = ""  # MLflow's
    tracked: bool = False  # whether MLflow hears of it
    state: State = "running"  # until it is over; still so of one that was killed
    reason: str = ""  # why it was stopped or failed
    cross_validates: bool = False  # every setting is run on every fold, and nobody is chosen
    cross_validation: list[CrossValidated] = field(default_factory=list)  # its settings, best first, once it is over
    id: str = ""  # names it in its study, wherever its folder is moved
    repeats: list[str] | None = None  # names of the finalists' trainings that count; None: none were chosen yet
    shared: bool = False  # other controllers may take part

    def save(self, folder: Path) -> None:
        with locked(folder / f".{NAME}.lock"):  # of several controllers that share the folder
            save_json(folder / NAME, asdict(self))


def load(folder: Path) -> About:
    """Read what is written down of the sweep in a folder; ConfigError if none lies there, or its file is damaged."""
    try:
        return read_file(About, folder / NAME, "sweep")
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: not the folder of a sweep: it has no {NAME}. Give the folder of hydra.sweep.dir."
        ) from None


def sweep_of(run: Path) -> Path | None:
    """Return the folder of the sweep that a run is a trial of, or a finalist's repeat; None of a single run."""
    return _above(run, NAME)


def screening_of(run: Path) -> Path | None:
    """Return the folder of the screening that a run is a job of; None of any other."""
    return _above(run, screened.NAME)


def _above(run: Path, name: str) -> Path | None:
    if not (run / TRIAL).exists():
        return None
    return next((up for up in list(run.absolute().parents)[:2] if (up / name).exists()), None)
