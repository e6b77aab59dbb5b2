"""Every `hydra.sweeper.*` key of a screening, `hydra/sweeper=screen`. Standard library only, as Hydra reads it."""

import math
from dataclasses import dataclass, fields
from typing import Any

from segsweep.config.checks import check, is_whole
from segsweep.config.keys import key
from segsweep.config.sweeper import PREFIX, SweeperConfig


@dataclass(frozen=True)
class ScreenConfig:
    """How much a screening may cost, and how many weights continue after each of its steps."""

    parameters: float | None = key(None, "largest number of parameters of an encoder, in millions")
    memory: float | None = key(None, "largest memory of a training step with one image, in GiB, as estimated")
    minutes: float | None = key(
        None,
        "largest time of the whole screening, in minutes, as estimated; the costliest weights are left out; 60 with "
        "sweeps=screen",
    )
    one_epoch: int = key(8, "how many weights are trained for one epoch: the best by frozen features")
    short: int = key(4, "how many weights get a short training: the best by frozen features or by one epoch")
    short_epochs: int = key(5, "epochs of a short training")
    choose: int = key(2, "how many weights remain for the full sweep")
    slots: Any = key("auto", "as in a search")
    backend: str = key("local", "as in a search")
    address: str = key("auto", "as in a search")
    gpus: float = key(1.0, "as in a search")
    dry: bool = key(False, "true: print the cost of the screening; start nothing")

    def __post_init__(self) -> None:
        for name in ("one_epoch", "short", "short_epochs", "choose"):
            value = getattr(self, name)
            check(is_whole(value) and value >= 1, PREFIX + name, value, "a whole number from 1")
        for name in ("parameters", "memory", "minutes"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, PREFIX + name, value, "above 0, or null")
        check(self.choose <= self.short, f"{PREFIX}choose", self.choose, f"at most {PREFIX}short={self.short}")
        check(self.short <= self.one_epoch, f"{PREFIX}short", self.short, f"at most {PREFIX}one_epoch={self.one_epoch}")
        self.as_search()

    def as_search(self) -> SweeperConfig:
        """Return the keys that a search has, too: where jobs run. ConfigError if there is no such place."""
        shared = {item.name for item in fields(SweeperConfig)} & {item.name for item in fields(self)}
        return SweeperConfig(**{name: getattr(self, name) for name in shared})
