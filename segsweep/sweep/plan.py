"""A sweep, as it was asked for; `hydra_plugins/optuna_sweeper.py` makes it from the command line."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segsweep.config.schema import RunConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.sweep.space import Space, Value
from segsweep.sweep.study import grid


@dataclass(frozen=True)
class Plan:
    """A sweep, as it was asked for.

    Attributes:
        folder: `hydra.sweep.dir`.
        command: as it was typed, without the program.
        space: what is varied.
        defaults: what trials have of the varied keys where nothing is said, by key; of a group its option.
        fixed: the overrides that all trials have.
        base: the configuration that all trials have where nothing is varied.
        sweeper: how to search.
    """

    folder: Path
    command: str
    space: Space
    defaults: Mapping[str, Value]
    fixed: tuple[str, ...]
    base: RunConfig
    sweeper: SweeperConfig

    def __post_init__(self) -> None:
        if self.sweeper.budget == "seconds" and not self.base.train.time_budget:
            raise ConfigError(
                "hydra.sweeper.budget=seconds gives each trial the same time: say how much, as train.time_budget=300."
            )

    @property
    def tracked(self) -> bool:
        """Tell whether MLflow hears of it."""
        return self.base.tracking.name != "none"

    @property
    def seeds(self) -> list[dict[str, Value]]:
        """Return the values of the first trials."""
        return self.space.seeds(self.defaults) if self.sweeper.seed_trials else []

    @property
    def fresh_seeds(self) -> list[int]:
        """Return values of `train.seed` that the search does not have, one for each of a finalist's repeats."""
        varied = [int(end) for p in self.space.parameters if p.key == "train.seed" for end in p.ends]
        first = max([self.base.train.seed, *varied])
        return [first + 1 + i for i in range(self.sweeper.repeats)]

    @property
    def folds(self) -> list[Value]:
        """Return the folds that are varied."""
        varied = tuple(parameter for parameter in self.space.parameters if parameter.key == "data.fold")
        return [cell["data.fold"] for cell in grid(Space(varied, ""))] if varied else []

    def argv(self, sources: Mapping[str, str], typed: Sequence[str], encoder: str) -> list[str]:
        """Return a trial's command, without its folder. Weights are pinned: no trial falls back to random ones.

        Args:
            sources: where each encoder's weights come from, by name.
            typed: the overrides of what is varied.
        """
        source = sources.get(encoder)
        pinned = [] if source in (None, "file") else [f"encoder.pretrained={str(source != 'random').lower()}"]
        return [*self.fixed, *typed, *pinned]


def again(folder: Path, command: str) -> str:
    """Return what to type to go on with the sweep in this folder."""
    where = "" if "hydra.sweep.dir=" in command else f" hydra.sweep.dir={shlex.quote(str(folder))}"
    return f"python train.py {command}{where}"
