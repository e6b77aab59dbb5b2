"""A sweep, as it was asked for; `hydra_plugins/optuna_sweeper.py` makes it from the command line."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segsweep.config.data import LAID
from segsweep.config.keys import named
from segsweep.config.schema import EPOCHS, RunConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.paths import override, program
from segsweep.runs.trial import Trial
from segsweep.sweeping.scheduler import DATA
from segsweep.sweeping.space import Space, Value

LENGTH = {"train.epochs", "train.time_budget"}
# Keys of data that say how they are shown to the network, and not which they are.
SHOWN = {f"data.{name}" for name in (*LAID, "fold", "balance", "normalize", "window")}


@dataclass(frozen=True)
class Plan:
    """A sweep, as it was asked for."""

    folder: Path  # `hydra.sweep.dir`
    command: str  # as it was typed, without the program
    space: Space
    defaults: Mapping[str, Value]  # what trials have of the varied keys where nothing is said; of a group its option
    fixed: tuple[str, ...]  # the overrides that all trials have
    base: RunConfig  # what all trials have where nothing is varied
    sweeper: SweeperConfig

    def __post_init__(self) -> None:
        if self.base.tracking.system:
            raise ConfigError(
                "tracking.system=true: works only for a single training; in a sweep, the sweep logs its "
                "trials to MLflow. Drop it."
            )
        device = self.base.train.device
        if device.startswith("cuda:") and device != "cuda:0":  # a slot's process sees its own GPU alone
            slot = f", and type hydra.sweeper.slots=[{device.removeprefix('cuda:')}]"
            told = "Drop it" + slot * (self.sweeper.backend == "local")
            raise ConfigError(f"train.device={device}: in a sweep the slots choose the GPU. {told}.")
        if self.sweeper.budget == "seconds" and not self.base.train.time_budget:
            raise ConfigError(
                "hydra.sweeper.budget=seconds gives each trial the same time. Type how much, as train.time_budget=300."
            )
        if self.sweeper.repeat_points == "seed" and "train.seed" in self.space.distributions:
            raise ConfigError(
                "hydra.sweeper.repeat_points=seed varies train.seed, and so does the sweep itself: drop one of the two."
            )

    @property
    def tracked(self) -> bool:
        """Tell whether the sweep is sent to MLflow."""
        return self.base.tracking.name != "none"

    @property
    def seeds(self) -> list[dict[str, Value]]:
        return self.space.seeds(self.defaults) if self.sweeper.seed_trials else []

    def fresh_seeds(self, trials: Iterable[Trial] = ()) -> list[int]:
        """Return values of `train.seed` that the search does not have, one for each of a finalist's repeats.

        `trials`: of the search, of any start: an earlier one may have been asked for more of them.
        """
        had = [int(seed) for trial in trials if (seed := trial.varied.get("train.seed"))]
        varied = [int(end) for p in self.space.parameters if p.key == "train.seed" for end in p.ends]
        if self.sweeper.repeat_points == "seed":
            varied.append(self.base.train.seed + (self.sweeper.n_trials or 0))
        first = max([self.base.train.seed, *varied, *had]) + 1
        return list(range(first, first + self.sweeper.repeats))

    @property
    def folds(self) -> list[Value]:
        """Return the folds that are varied."""
        return [p.value(i) for p in self.space.parameters if p.key == "data.fold" for i in range(p.count or 0)]

    @property
    def cross_validates(self) -> bool:
        """Tell whether every setting runs on every fold, without finalists: `sweeps=cv`."""
        folds = self.base.data.folds is not None and "data.fold" in self.space.distributions
        return folds and self.sweeper.sampler == "grid" and self.sweeper.finalists == 0

    @property
    def plans_once(self) -> bool:
        """Tell whether all trials have the same data, so that what follows from them is decided once."""
        return not any(named(key, DATA) for key in self.space.distributions if key not in SHOWN)

    @property
    def weights_varied(self) -> bool:
        """Tell whether trials differ in where their encoders' weights come from."""
        return bool({"encoder.pretrained", "encoder.weights_file"} & self.space.distributions.keys())

    @property
    def open_ended(self) -> bool:
        """Tell whether nobody says how long trials train: by itself each would decide by its own encoder's speed."""
        train = self.base.train
        return not (train.epochs or train.time_budget or LENGTH & {*self.space.distributions})

    @property
    def timed(self) -> RunConfig:
        """Return the configuration of which a few steps are looked at beforehand."""
        return replace(self.base, train=replace(self.base.train, epochs=EPOCHS)) if self.open_ended else self.base

    def argv(self, sources: Mapping[str, str], decided: Sequence[str], typed: Sequence[str], encoder: str) -> list[str]:
        """Return a trial's command, without its folder, from the overrides of what is varied.

        Weights are pinned to the encoders' `sources`: no trial falls back to random ones. So is what was `decided`.
        """
        length = [f"train.epochs={EPOCHS}"] if self.open_ended else []
        return [*self.fixed, *decided, *length, *typed, *self._pinned(sources.get(encoder))]

    def _pinned(self, source: str | None) -> list[str]:
        """Return what says whether a trial's encoder is pretrained, by where its weights come from."""
        if not self.weights_varied:
            return [] if source in (None, "file") else [f"encoder.pretrained={str(source != 'random').lower()}"]
        said = "encoder.pretrained" in self.space.distributions or self.base.encoder.pretrained != "auto"
        # Each trial finds its own weights, and is refused where there are none.
        return [] if said or self.sweeper.mixed_weights else ["encoder.pretrained=true"]


def again(folder: Path, command: str) -> str:
    """Return the command that continues the sweep in this folder."""
    named = any(word.startswith("hydra.sweep.dir=") for word in shlex.split(command))
    where = "" if named else f" {override('hydra.sweep.dir', folder)}"
    return f"{program()} {command}{where}"
