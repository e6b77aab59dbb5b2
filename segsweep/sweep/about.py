"""`sweep.json`: what a sweep asks and how far it is, for reports and for MLflow. Standard library only."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from segsweep.config.checks import read
from segsweep.errors import ConfigError
from segsweep.paths import save_json
from segsweep.runs.trial import NAME as TRIAL

NAME = "sweep.json"
State = Literal["running", "complete", "stopped", "failed", "unknown"]


@dataclass(frozen=True)
class About:
    """What is written down of a sweep.

    Attributes:
        id: names it in its study, wherever its folder is moved.
        command: as it was typed, without the program.
        space: each varied key's distribution, as `segsweep.sweep.space.Space.described` has it.
        fixed: the overrides that all trials have.
        budget: what all trials get alike: epochs or seconds.
        finalists: names of the trials whose settings are trained again, best first.
        experiment: MLflow's.
        tracked: whether MLflow hears of it.
        state: running until it is over; still so of one that was killed.
        reason: why it was stopped or failed.
    """

    id: str
    command: str
    space: dict[str, str]
    fixed: list[str]
    budget: str
    finalists: list[str]
    experiment: str
    tracked: bool
    state: State
    reason: str = ""

    def save(self, folder: Path) -> None:
        save_json(folder / NAME, asdict(self))


def load(folder: Path) -> About:
    """Read what is written down of the sweep in a folder.

    Raises:
        ConfigError: no sweep lies there, or its file is damaged.
    """
    path = folder / NAME
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no sweep's folder: no {NAME} in it. Give a hydra.sweep.dir.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: damaged: {error}") from error
    if not isinstance(kept, dict):
        raise ConfigError(f"{path}: damaged: it must hold an object.")
    try:
        return read(About, upgrade(kept), "sweep")
    except ConfigError as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


def upgrade(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Bring what an older version wrote to the present form: it kept neither an id nor a state, nor MLflow's names."""
    return {"id": "", "experiment": "", "tracked": False, "state": "unknown", **kept}


def sweep_of(run: Path) -> Path | None:
    """Return the folder of the sweep that a run is a trial of, or a finalist's repeat; None of a single run."""
    if not (run / TRIAL).exists():
        return None
    return next((up for up in list(run.absolute().parents)[:2] if (up / NAME).exists()), None)
