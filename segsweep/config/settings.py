"""What a training is, wherever it runs: every portable key with its value, no `auto` left. Standard library only."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from segsweep.config import schema
from segsweep.config.keys import EXTENT
from segsweep.config.schema import RunConfig

SECTIONS = ("encoder", "decoder", "optim", "augmentation", "data", "loss", "train")


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from each channel of the pixels, and what they are divided by, on the scale of the files."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # lowest and highest value of each channel


@dataclass(frozen=True)
class Settings:
    """An experiment: what two machines must share to do the same.

    Keys that are not portable (paths, device, tracking) have their defaults here: they are asked of `RunConfig`.
    """

    encoder: schema.EncoderConfig
    decoder: schema.DecoderConfig
    optim: schema.OptimConfig
    augmentation: schema.AugmentationConfig
    data: schema.DataConfig
    loss: schema.LossConfig
    train: schema.TrainConfig
    normalization: Normalization | None = None  # None in old runs' records; their checkpoint has it

    @classmethod
    def of(cls, config: RunConfig) -> "Settings":
        """Take the portable keys of a configuration; `auto` is still in them."""
        return cls(**{name: _portable(getattr(config, name)) for name in SECTIONS})

    def extended(self, config: RunConfig) -> "Settings":
        """Take from the configuration of a run that goes on what may change: how long it trains, how it is scored."""
        changed = {}
        for name in SECTIONS:
            section, asked = getattr(self, name), getattr(config, name)
            extent = [item.name for item in fields(section) if item.metadata["role"] == EXTENT]
            changed[name] = replace(section, **{key: getattr(asked, key) for key in extent})
        return replace(self, **changed)

    def recorded(self) -> dict[str, object]:
        """Return the portable keys by section, and the normalization, as JSON has them; `checks.read` reads them."""
        kept: dict[str, object] = {}
        for name in SECTIONS:
            section = getattr(self, name)
            portable = [item.name for item in fields(section) if item.metadata["role"].portable]
            kept[name] = {key: value for key, value in asdict(section).items() if key in portable}
        return {**kept, "normalization": asdict(self.normalization) if self.normalization else None}


def _portable(section: Any) -> Any:
    default = type(section)()
    placed = {item.name: getattr(default, item.name) for item in fields(section) if not item.metadata["role"].portable}
    return replace(section, **placed)
