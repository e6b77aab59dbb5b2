"""`sweep.json`: what a sweep asks and how far it is, for reports and for MLflow. Standard library only."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from segsweep.config.checks import read_file
from segsweep.errors import ConfigError
from segsweep.paths import save_json
from segsweep.runs.trial import NAME as TRIAL

NAME = "sweep.json"
State = Literal["running", "complete", "stopped", "failed", "unknown"]


@dataclass(frozen=True)
class About:
    """What is written down of a sweep. Older versions did not write what has a default."""

    command: str  # as it was typed, without the program
    space: dict[str, str]  # `segsweep.sweep.space.Space.described`
    fixed: list[str]  # the overrides that all trials have
    budget: str
    finalists: list[str]  # names of the trials whose settings are trained again, best first
    experiment: str = ""  # MLflow's
    tracked: bool = False  # whether MLflow hears of it
    state: State = "unknown"  # running until it is over; still so of one that was killed
    reason: str = ""  # why it was stopped or failed
    id: str = ""  # names it in its study, wherever its folder is moved

    def save(self, folder: Path) -> None:
        save_json(folder / NAME, asdict(self))


def load(folder: Path) -> About:
    """Read what is written down of the sweep in a folder; ConfigError if none lies there, or its file is damaged."""
    try:
        return read_file(About, folder / NAME, "sweep")
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no sweep's folder: no {NAME} in it. Give a hydra.sweep.dir.") from None


def sweep_of(run: Path) -> Path | None:
    """Return the folder of the sweep that a run is a trial of, or a finalist's repeat; None of a single run."""
    if not (run / TRIAL).exists():
        return None
    return next((up for up in list(run.absolute().parents)[:2] if (up / NAME).exists()), None)
