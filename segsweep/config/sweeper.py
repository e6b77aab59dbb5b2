"""Every `hydra.sweeper.*` key: how a sweep searches. Standard library only, since Hydra reads it at every start."""

import math
from dataclasses import dataclass
from typing import Any

from segsweep.config.checks import check, is_whole
from segsweep.config.keys import key
from segsweep.errors import ConfigError, one_of

SAMPLERS = ("tpe", "gp", "random", "grid")
PRUNERS = ("curves", "median", "hyperband", "none")
BUDGETS = ("epochs", "seconds")
REPEATS = ("none", "seed")
BACKENDS = ("local", "ray")
KEEPS = ("files", "scores")
PREFIX = "hydra.sweeper."


@dataclass(frozen=True)
class SweeperConfig:
    """How a sweep searches; what it varies is `segsweep.sweeping.space.Space`."""

    n_trials: int | None = key(8, "finished trials, complete or pruned, until the search ends; null: the whole grid")
    slots: Any = key(
        "auto", "auto: one for each GPU; 4; [0,0,1]: two on the first GPU, one on the second; [[0,1],[2,3]]: two each"
    )
    sampler: str = key("tpe", "tpe, gp, random or grid")
    pruner: str = key("curves", "curves: against the trial's own backbone; median, hyperband or none")
    seed: int = key(0, "of the sampler")
    repeat_points: str = key(
        "none",
        "a finite space with fewer points than n_trials: none ends when each has run; seed runs them again, each time "
        "with the next train.seed",
    )
    seed_trials: bool = key(True, "each encoder is tried at its default first")
    budget: str = key("epochs", "what all trials get alike: epochs, or seconds (train.time_budget)")
    timeout: float | None = key(None, "seconds after which no trial begins; each start of the sweep has them anew")
    max_failures: int | None = key(None, "failed trials until the sweep gives up; default: as many as n_trials")
    finalists: int = key(2, "backbones whose best setting is trained again")
    repeats: int = key(2, "times that each finalist is trained, with fresh seeds")
    mixed_weights: bool = key(False, "pretrained and random encoders may be compared")
    backend: str = key("local", "where trials run: local, or ray: on the Ray cluster at hydra.sweeper.address")
    address: str = key("auto", "of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    gpus: float = key(1.0, "of a trial on a Ray cluster; a part of one, or several, which train it together")
    storage: str | None = key(None, "the study's file, or a database as postgresql://...; default: in hydra.sweep.dir")
    keep: str = key(
        "files",
        "of finalists' repeats, with several controllers: files (in a shared folder, or sent to MLflow) or scores",
    )
    study_name: str | None = key(None, "the study's in its storage; default: sweep")
    dry: bool = key(False, "true: print how many trainings it has and how long they take, and begin nothing")

    def __post_init__(self) -> None:
        for name, allowed in (
            ("pruner", PRUNERS),
            ("budget", BUDGETS),
            ("sampler", SAMPLERS),
            ("repeat_points", REPEATS),
            ("keep", KEEPS),
            ("backend", BACKENDS),
        ):
            one_of(PREFIX + name, getattr(self, name), allowed)
        for name, low in {"n_trials": 1, "finalists": 0, "repeats": 0, "max_failures": 1}.items():
            value = getattr(self, name)
            valid = name in ("n_trials", "max_failures") if value is None else is_whole(value) and value >= low
            check(valid, PREFIX + name, value, f"a whole number from {low}")
        check(is_whole(self.seed) and 0 <= self.seed < 2**32, f"{PREFIX}seed", self.seed, "in 0..2**32-1")
        if self.n_trials is None and self.sampler != "grid":
            raise ConfigError("hydra.sweeper.n_trials: how many trials? Type hydra.sweeper.n_trials=20.")
        check(0 <= self.gpus < math.inf, f"{PREFIX}gpus", self.gpus, "0 or more")
        if self.backend == "ray" and not (self.slots == "auto" or is_whole(self.slots)):
            raise ConfigError(f"{PREFIX}slots={self.slots}: on a Ray cluster a number, or auto. GPUs: {PREFIX}gpus=2.")
        if self.timeout is not None:
            check(0 < self.timeout < math.inf, f"{PREFIX}timeout", f"{self.timeout:g}", "seconds, above 0")
