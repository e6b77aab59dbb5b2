"""What a sweep varies: parameters with Optuna's distributions, and a trial's values as one would type them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from segsweep import catalog
from segsweep.errors import ConfigError

ENCODER = ("encoder", "encoder.name")
LR = "optim.lr"
BY_KIND = "by kind"


@dataclass(frozen=True)
class Parameter:
    """One key that is varied.

    Attributes:
        key: a group or a dotted key, as on the command line.
        distribution: of its values; texts in Hydra's grammar for choices.
        by_kind: the value is a position, 0 to 1, in the logarithmic range of learning rates of the encoder's kind.
    """

    key: str
    distribution: BaseDistribution
    by_kind: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every option of a choice; the smallest and the largest number."""
        if isinstance(self.distribution, CategoricalDistribution):
            return tuple(self.distribution.choices)
        assert isinstance(self.distribution, (FloatDistribution, IntDistribution))
        return self.distribution.low, self.distribution.high

    def nearest(self, default: Any, encoder: str) -> Any:
        """The value closest to a default ("auto": the learning rate of the encoder's kind); None if there is none."""
        rates = catalog.rates(encoder)
        if self.key == LR and default == "auto":
            default = rates.lr
        if self.by_kind:
            return min(1.0, max(0.0, math.log(default / rates.low) / math.log(rates.high / rates.low)))
        if isinstance(self.distribution, CategoricalDistribution):
            return next((option for option in self.distribution.choices if str(option) == str(default)), None)
        assert isinstance(self.distribution, (FloatDistribution, IntDistribution))
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            return None
        low, high, step = self.distribution.low, self.distribution.high, self.distribution.step
        clipped = min(high, max(low, default))
        return low + round((clipped - low) / step) * step if step else clipped

    def typed(self, value: Any, encoder: str) -> str:
        """The override that gives it this value in a trial of this encoder."""
        if self.by_kind:
            rates = catalog.rates(encoder)
            value = rates.low * (rates.high / rates.low) ** value
        return f"{self.key}={value:.5g}" if isinstance(value, float) else f"{self.key}={value}"


def distribution(described: str) -> BaseDistribution:
    """A parameter's distribution from its text in `Space.described`."""
    return rates_by_kind().distribution if described == BY_KIND else json_to_distribution(described)


def spoken(described: str) -> str:
    """A text of `Space.described` as a person would type it."""
    if described == BY_KIND:
        return "auto"
    found = json_to_distribution(described)
    if isinstance(found, CategoricalDistribution):
        return f"choice({','.join(map(str, found.choices))})"
    assert isinstance(found, (FloatDistribution, IntDistribution))
    if found.step and not found.log and (found.step != 1 or isinstance(found, FloatDistribution)):
        return f"range({found.low:g},{found.high + found.step:g},{found.step:g})"
    return f"{'tag(log,' if found.log else ''}interval({found.low:g},{found.high:g}){')' if found.log else ''}"


def choice(key: str, options: Sequence[str]) -> Parameter:
    """One of several values, each as it would be typed.

    Raises:
        ConfigError: an unknown encoder among them.
    """
    if key in ENCODER:
        for option in options:
            catalog.check(option)
    return Parameter(key, CategoricalDistribution(tuple(dict.fromkeys(options))))


def interval(key: str, low: float, high: float, log: bool = False) -> Parameter:
    """A number from `low` to `high`, both included; a whole one where both are.

    Raises:
        ConfigError: the interval is empty, or reaches 0 on a logarithmic scale.
    """
    shown = f"{key}={'tag(log,' if log else ''}interval({low},{high}){')' if log else ''}"
    if low >= high:
        raise ConfigError(f"{shown}: the first number must be below the second.")
    if log and low <= 0:
        raise ConfigError(f"{shown}: a logarithmic interval must begin above 0, as interval(1e-5,{high}).")
    if isinstance(low, int) and isinstance(high, int):
        return Parameter(key, IntDistribution(low, high, log=log))
    return Parameter(key, FloatDistribution(float(low), float(high), log=log))


def steps(key: str, values: Sequence[float]) -> Parameter:
    """Numbers at equal distances, in rising order.

    Raises:
        ConfigError: there is none.
    """
    if not values:
        raise ConfigError(f"{key}: the range is empty. range(START,STOP,STEP) leaves STOP out, as range(0,5).")
    first, last = values[0], values[-1]
    step = values[1] - first if len(values) > 1 else 1
    if all(isinstance(value, int) for value in values):
        return Parameter(key, IntDistribution(int(first), int(last), step=int(step)))
    return Parameter(key, FloatDistribution(float(first), float(last), step=float(step)))


def rates_by_kind() -> Parameter:
    """The learning rate, in the range of each encoder's kind (`segsweep.catalog.RATES`).

    A position in the range and not the rate: what is learnt from one kind of encoder helps with another.
    """
    return Parameter(LR, FloatDistribution(0.0, 1.0), by_kind=True)


@dataclass(frozen=True)
class Space:
    """All that a sweep varies.

    Args:
        parameters: by key, one for each.
        encoder: of trials, where no parameter says it.
    """

    parameters: tuple[Parameter, ...]
    encoder: str

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's, by key."""
        return {parameter.key: parameter.distribution for parameter in self.parameters}

    @property
    def encoders(self) -> tuple[str, ...]:
        """Those that are compared."""
        for key in ENCODER:
            if isinstance(found := self.distributions.get(key), CategoricalDistribution):
                return tuple(str(option) for option in found.choices)
        return (self.encoder,)

    def encoder_of(self, values: Mapping[str, Any]) -> str:
        """The encoder of a trial with these values."""
        return str(next((values[key] for key in ENCODER if key in values), self.encoder))

    def typed(self, values: Mapping[str, Any]) -> list[str]:
        """A trial's overrides, in the order of the parameters. Keys without a value keep their defaults."""
        encoder = self.encoder_of(values)
        return [p.typed(values[p.key], encoder) for p in self.parameters if p.key in values]

    def seeds(self, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The values to try first: each encoder, with everything else at its default where the space has it.

        Args:
            defaults: what trials have of the varied keys where nothing is said; learning rates may be "auto".
        """
        key = next((key for key in ENCODER if key in self.distributions), None)
        found = []
        for encoder in self.encoders:
            values = {p.key: p.nearest(defaults[p.key], encoder) for p in self.parameters if p.key in defaults}
            found.append(
                {name: value for name, value in values.items() if value is not None} | ({key: encoder} if key else {})
            )
        return found

    def described(self) -> dict[str, str]:
        """Each key's distribution as text, to be kept with a study and compared with on the next start."""
        return {p.key: BY_KIND if p.by_kind else distribution_to_json(p.distribution) for p in self.parameters}
