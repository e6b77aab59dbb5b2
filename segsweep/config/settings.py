"""The settings of a training on any machine: every portable key with its value, no `auto`. Standard library only."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from segsweep.config import schema
from segsweep.config.keys import EXTENT
from segsweep.config.schema import RunConfig

SECTIONS = ("encoder", "decoder", "optim", "augmentation", "data", "loss", "train")


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, and optional clipping, on the scale of the pixels in the files."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # lowest and highest value of each channel


@dataclass(frozen=True)
class Settings:
    """The settings of an experiment: two machines with equal settings do the same.

    Keys that are not portable (paths, device, tracking) have their defaults here; their values are in `RunConfig`.
    """

    encoder: schema.EncoderConfig
    decoder: schema.DecoderConfig
    optim: schema.OptimConfig
    augmentation: schema.AugmentationConfig
    data: schema.DataConfig
    loss: schema.LossConfig
    train: schema.TrainConfig
    normalization: Normalization | None = None  # None until the data have been looked at

    @classmethod
    def of(cls, config: RunConfig) -> "Settings":
        """Take the portable keys of a configuration; `auto` is still in them."""
        return cls(**{name: _portable(getattr(config, name)) for name in SECTIONS})

    def extended(self, config: RunConfig) -> "Settings":
        """Take the keys that may change when a run is resumed: length of training, kind of scoring."""
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
