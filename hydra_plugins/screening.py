"""`hydra/sweeper=screen`: many pretrained weights, cheaply, to the few that are worth a full sweep.

Hydra imports this module at every start, so it imports nothing heavy.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from hydra_plugins.optuna_sweeper import OptunaSweeper
from segsweep.config.screen import ScreenConfig
from segsweep.errors import ConfigError


@dataclass(frozen=True)
class Schema(ScreenConfig):
    """Every `hydra.sweeper.*` key, and what is varied: the encoder's weights."""

    _target_: str = "hydra_plugins.screening.Screening"
    params: dict[str, Any] = field(default_factory=dict)


SCHEMA = OmegaConf.structured(Schema)
OmegaConf.set_readonly(SCHEMA, False)  # a frozen dataclass is read-only to OmegaConf, and could not be set at all
ConfigStore.instance().store("screen_schema", SCHEMA, group="hydra/sweeper")


class Screening(OptunaSweeper):
    """Takes the keys of `Schema`."""

    def sweep(self, arguments: list[str]) -> Any:
        from segsweep.sweeping import screening
        from segsweep.sweeping.space import ENCODER

        plain: Any = OmegaConf.to_container(OmegaConf.create(self.settings))
        asked = ScreenConfig(**plain)
        plan = self.planned(arguments, asked.as_search())
        if others := [key for key in plan.space.distributions if key not in ENCODER]:
            raise ConfigError(
                f"{others[0]}: a screening compares weights alone. Give it one value; the full sweep varies the rest."
            )
        screening.run(plan, asked)
