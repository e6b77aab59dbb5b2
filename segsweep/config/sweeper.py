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
N_TRIALS = 8


@dataclass(frozen=True)
class SweeperConfig:
    """How a sweep searches; what it varies is `segsweep.sweeping.space.Space`."""

    n_trials: int | None = key(
        None,
        f"number of finished trials, complete or pruned, after which the search ends; default: {N_TRIALS}, with "
        "sampler=grid the whole grid",
    )
    slots: Any = key(
        "auto",
        "trials that run at once: auto: one on each GPU; packed: as many on each as its memory and time allow "
        "(untried: not measured on a GPU yet); 4: four; [0,0,1]: two on the first GPU, one on the second; "
        "[[0,1],[2,3]]: each trial on two GPUs",
    )
    sampler: str = key("tpe", "tpe, gp, random or grid")
    pruner: str = key("curves", "curves: compare with trials of the same backbone; median, hyperband or none")
    seed: int = key(0, "random seed of the sampler")
    repeat_points: str = key(
        "none",
        "if all combinations of a finite space have run before n_trials is reached: none: the search ends; seed: they "
        "run again with the next train.seed",
    )
    seed_trials: bool = key(True, "true: the first trial of each encoder uses its default learning rate")
    budget: str = key("epochs", "what is equal for all trials: epochs, or seconds (train.time_budget)")
    timeout: float | None = key(
        None, "seconds after which no new trial starts; counted again each time the sweep is started"
    )
    max_failures: int | None = key(
        None, "number of failed trials after which the sweep ends with an error; default: n_trials, at least 3"
    )
    finalists: int = key(2, "number of backbones whose best setting is trained again")
    repeats: int = key(2, "how often each finalist is trained, each time with a new seed")
    mixed_weights: bool = key(False, "true: allow encoders with pretrained and with random weights in one sweep")
    backend: str = key("local", "where trials run: local, or ray: on the Ray cluster at hydra.sweeper.address")
    address: str = key("auto", "address of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    gpus: float = key(1.0, "Ray: GPUs of each trial; 0.5: two trials share a GPU; 2: two GPUs train one trial")
    storage: str | None = key(None, "the study's file, or a database as postgresql://...; default: in hydra.sweep.dir")
    keep: str = key(
        "files",
        "with several controllers: files: finalists' models go to a shared folder or MLflow; scores: they stay where "
        "they were trained",
    )
    study_name: str | None = key(None, "name of the study in its storage; default: sweep")
    dry: bool = key(False, "true: print how many trainings the sweep has and how long they take; start none")

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
            object.__setattr__(self, "n_trials", N_TRIALS)
        check(0 <= self.gpus < math.inf, f"{PREFIX}gpus", self.gpus, "0 or more")
        if self.backend == "ray" and not (self.slots == "auto" or is_whole(self.slots)):
            raise ConfigError(f"{PREFIX}slots={self.slots}: on a Ray cluster a number, or auto. GPUs: {PREFIX}gpus=2.")
        if self.timeout is not None:
            check(0 < self.timeout < math.inf, f"{PREFIX}timeout", f"{self.timeout:g}", "seconds, above 0")
