"""Every `hydra.sweeper.*` key of a screening, `hydra/sweeper=screen`. Standard library only, as Hydra reads it."""

import math
from dataclasses import dataclass, fields
from typing import Any

from segsweep.config.checks import check, is_whole
from segsweep.config.keys import key
from segsweep.config.sweeper import PREFIX, SweeperConfig


@dataclass(frozen=True)
class ScreenConfig:
    """What a screening may cost, and how many weights go on after each of its steps."""

    parameters: float | None = key(None, "of an encoder in millions, at most")
    memory: float | None = key(None, "GiB that a training with one image at a time may take, as counted")
    minutes: float | None = key(None, "of the whole screening, as estimated; the costliest weights are left out")
    one_epoch: int = key(8, "weights, the best by frozen features, that are trained for one epoch")
    short: int = key(4, "weights, the best by frozen features or by one epoch, that have a short training")
    short_epochs: int = key(5, "of a short training")
    choose: int = key(2, "weights that are left for the full sweep")
    slots: Any = key("auto", "as of a search")
    backend: str = key("local", "as of a search")
    address: str = key("auto", "as of a search")
    gpus: float = key(1.0, "as of a search")
    dry: bool = key(False, "true: print what it would cost, and begin nothing")

    def __post_init__(self) -> None:
        for name in ("one_epoch", "short", "short_epochs", "choose"):
            value = getattr(self, name)
            check(is_whole(value) and value >= 1, PREFIX + name, value, "a whole number from 1")
        for name in ("parameters", "memory", "minutes"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, PREFIX + name, value, "above 0, or null")
        check(self.choose <= self.short, f"{PREFIX}choose", self.choose, f"at most {PREFIX}short={self.short}")
        check(self.short <= self.one_epoch, f"{PREFIX}short", self.short, f"at most {PREFIX}one_epoch={self.one_epoch}")
        self.places()

    def places(self) -> SweeperConfig:
        """Return where its jobs run, as a search has it; ConfigError if there is no such place."""
        shared = {item.name for item in fields(SweeperConfig)} & {item.name for item in fields(self)}
        return SweeperConfig(**{name: getattr(self, name) for name in shared})
