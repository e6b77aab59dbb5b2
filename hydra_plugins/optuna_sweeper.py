"""`hydra/sweeper=optuna`: Hydra's override grammar becomes a `segsweep.sweeping.plan.Plan`. It decides nothing.

Hydra imports this module at every start, so it imports nothing heavy.
"""

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from segsweep import catalog
from segsweep.compose import absolute, to_config
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.paths import ROOT

if TYPE_CHECKING:
    from segsweep.config.schema import RunConfig
    from segsweep.sweeping.plan import Plan
    from segsweep.sweeping.space import Parameter, Space, Value

AUTO = "auto"  # in hydra.sweeper.params: of a rate the range of each encoder's kind, of a fold all that there are
LR, FOLD = "optim.lr", "data.fold"


class Questions(SearchPathPlugin):
    """`sweeps=NAME` finds `sweeps/NAME.yaml`, beside the package or inside it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="sweeps", path=f"file://{ROOT}")


@dataclass(frozen=True)
class Schema(SweeperConfig):
    """Every `hydra.sweeper.*` key: how to search, what is varied, and what the stock plugin's users type."""

    _target_: str = "hydra_plugins.optuna_sweeper.OptunaSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    direction: str = "maximize"
    n_jobs: int | None = None


SCHEMA = OmegaConf.structured(Schema)
OmegaConf.set_readonly(SCHEMA, False)  # a frozen dataclass is read-only to OmegaConf, and could not be set at all
ConfigStore.instance().store("optuna_schema", SCHEMA, group="hydra/sweeper")


class OptunaSweeper(Sweeper):
    """Takes the keys of `Schema`."""

    hydra_context: HydraContext
    config: DictConfig

    def __init__(
        self, params: Mapping[str, Any], direction: str = "maximize", n_jobs: int | None = None, **settings: Any
    ):
        self.direction, self.params, self.settings = direction, params, settings
        if n_jobs is not None:
            self.settings["slots"] = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        from segsweep.sweeping import dry, run, storage, together

        plain: Any = OmegaConf.to_container(OmegaConf.create(self.settings))
        sweeper = SweeperConfig(**plain)
        if self.direction != "maximize":
            raise ConfigError(f"hydra.sweeper.direction={self.direction}: val/iou is better when larger. Drop it.")
        plan = self.planned(arguments, sweeper)
        if sweeper.dry:
            dry.run(plan)
        elif storage.is_shared(sweeper.storage):
            together.join(plan)
        else:
            run.run(plan)

    def planned(self, arguments: list[str], sweeper: SweeperConfig) -> "Plan":
        """Translate what was typed; ConfigError if it is refused."""
        from segsweep.sweeping import storage
        from segsweep.sweeping.plan import Plan
        from segsweep.sweeping.space import Space

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        typed = {str(o.input_line).partition("=")[0]: o for o in parser.parse_overrides(list(arguments))}
        asked: dict[str, Override] = {}  # what the file's params say, where the command line does not say it otherwise
        for key, value in self.params.items():
            if not _replaced(key, typed) and f"++{key}" not in typed:
                line = catalog.expanded(f"{key}={_typed(value)}")
                asked[key] = typed.get(key) or parser.parse_overrides([line])[0]
        # `auto` of the file is a range; typed, it is the value.
        left_open = {key for key in {LR, FOLD} & asked.keys() - typed.keys() if _line(asked[key]) == f"{key}={AUTO}"}
        chosen = asked | typed
        varied = {key: o for key, o in chosen.items() if key in left_open or o.is_sweep_override()}
        fixed = [_line(override) for key, override in chosen.items() if key not in varied]
        if not varied:
            raise ConfigError(
                "nothing is varied. Type for example encoder='choice(resnet18,resnet34)' or "
                f"{LR}='tag(log,interval(1e-5,1e-2))'."
            )
        unvaried = self._composed(fixed)
        fixed = absolute(unvaried, fixed)
        parameters: list[Parameter] = []
        for key, override in varied.items():
            if key not in left_open:
                parameters.append(_parameter(key, override))
            else:
                parameters.append(_rates_by_kind(chosen, unvaried) if key == LR else _folds(unvaried))
        space = self._whole(Space(tuple(parameters), unvaried.encoder.name), fixed)
        folder = Path(self.config.hydra.sweep.dir).expanduser().resolve()
        command = shlex.join(map(storage.without_password, sys.argv[1:]))
        defaults = _defaults(unvaried, space.distributions)
        return Plan(folder, command, space, defaults, tuple(fixed), self._base(space, fixed), sweeper)

    def _whole(self, space: "Space", fixed: Sequence[str]) -> "Space":
        """Return the space with whole numbers for keys that take no others: Hydra's `interval(4,64)` has fractions."""
        from segsweep.sweeping.space import as_whole

        parameters = []
        for parameter in space.parameters:
            if whole := as_whole(parameter):
                low = whole.ends[0]
                accepted, _ = self._accepted(space, fixed, {**space.first, parameter.key: low}, parameter.key)
                between = {**accepted, parameter.key: float(low) + 0.5}
                try:
                    fractions = self._judged([*fixed, *space.typed(between)])[0] is not None
                except (ConfigError, HydraException):  # by the key's type
                    fractions = False
                parameter = parameter if fractions else whole
            parameters.append(parameter)
        return replace(space, parameters=tuple(parameters))

    def _base(self, space: "Space", fixed: Sequence[str]) -> "RunConfig":
        """Return what trials have in common, as the first point has it that nothing is wrong with.

        A value that is refused whatever the other keys are is refused here, before the first trial: every option, and
        both ends of each interval. Values that are only refused together end the trial that has them.
        """
        from segsweep.sweeping.space import ENCODER

        point, base = space.first, None
        for parameter in space.parameters:
            ends = parameter.ends[:1] if parameter.key in ENCODER or parameter.by_kind else parameter.ends
            for end in ends:
                accepted, config = self._accepted(space, fixed, {**point, parameter.key: end}, parameter.key)
                if base is None:
                    point, base = accepted, config
        assert base
        return base

    def _accepted(
        self, space: "Space", fixed: Sequence[str], point: "dict[str, Value]", key: str
    ) -> "tuple[dict[str, Value], RunConfig]":
        """Return a point that is not refused, and its configuration: this one, or one with the same value of the key.

        Another value of one other key is looked for, or one that at least changes the reason. Raises the first reason
        if nothing helps.
        """
        config, reason = self._judged([*fixed, *space.typed(point)])
        first = reason
        for _ in space.parameters:
            if config:
                break
            near = [(other, *self._judged([*fixed, *space.typed(other)])) for other in space.beside(point, kept=key)]
            changed = [found for found in near if found[2] != reason]
            if not changed:
                break
            point, config, reason = next((found for found in changed if found[1]), changed[0])
        if not config:
            raise ConfigError(first)
        return point, config

    def _judged(self, overrides: Sequence[str]) -> "tuple[RunConfig | None, str]":
        """Return the configuration of a trial with these words, or None and why it is refused."""
        composed = self._composed(overrides)
        absolute(composed, ())
        try:
            return _checked(composed), ""
        except ConfigError as error:
            return None, str(error)

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        words = [*overrides, "hydra.mode=RUN"]
        return self.hydra_context.config_loader.load_configuration("config", words, RunMode.RUN)


def _checked(composed: DictConfig) -> "RunConfig":
    ours = composed.copy()
    with open_dict(ours):
        del ours["hydra"]
    return to_config(ours)


def _parameter(key: str, override: Override) -> "Parameter":
    from segsweep.sweeping import space

    value = override.value()
    if "log" in getattr(value, "tags", ()) and not isinstance(value, IntervalSweep):
        raise ConfigError(f"{override.input_line}: tag(log,...) is for intervals, as tag(log,interval(4,256)).")
    if isinstance(value, IntervalSweep):
        if value.start is None or value.end is None:
            raise ConfigError(f"{override.input_line}: an interval needs both ends.")
        return space.interval(key, value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        if value.start is None or value.stop is None:
            raise ConfigError(f"{override.input_line}: a range needs both ends.")
        return space.steps(key, value.start, value.stop, value.step)
    options = list(map(str, override.sweep_iterator(transformer=Transformer.encode)))
    return space.choice(key, sorted(options) if isinstance(value, ChoiceSweep) and value.shuffle else options)


def _rates_by_kind(chosen: dict[str, Override], unvaried: DictConfig) -> "Parameter":
    from segsweep.sweeping.space import rates_by_kind

    varied = any(key in ("optim", "optim.name") and "sgd" in str(o.input_line) for key, o in chosen.items())
    if varied or unvaried.optim.name == "sgd":
        raise ConfigError(
            f"optim=sgd: the ranges of learning rates by the encoder's kind are for adam and adamw. "
            f"Add {LR}='tag(log,interval(0.005,0.5))'."
        )
    return rates_by_kind()


def _folds(unvaried: DictConfig) -> "Parameter":
    from segsweep.sweeping.space import steps

    if unvaried.data.folds is None:
        raise ConfigError(f"{FOLD}={AUTO} is each of data.folds: type data.folds=5.")
    return steps(FOLD, 0, unvaried.data.folds)


def _line(override: Override | None) -> str:
    """Return an override as it was typed; empty for none."""
    return "" if override is None else str(override.input_line)


def _replaced(key: str, given: dict[str, Override]) -> bool:
    """Tell whether the command line says the same by another key."""
    twins = ({"encoder", "encoder.name"}, {"train.epochs", "train.time_budget"})
    return any(key in pair and not (pair - {key}).isdisjoint(given) for pair in twins)


def _typed(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _defaults(base: DictConfig, varied: Iterable[str]) -> "dict[str, Value]":
    """Return what trials have of the varied keys where nothing is said; of a group the option."""
    found = {}
    for key in varied:
        value = base.hydra.runtime.choices.get(key) or OmegaConf.select(base, key)
        if value is not None and not OmegaConf.is_dict(value):
            found[key] = value
    return found
