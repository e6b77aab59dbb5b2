"""What a sweep varies: parameters with Optuna's distributions, and a trial's values as typed overrides."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from segsweep import catalog, valuefile
from segsweep.errors import ConfigError

ENCODER = ("encoder", "encoder.name")
LR = "optim.lr"
BY_KIND = "by kind"

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Value = str | float  # of a varied key: a text in Hydra's grammar for a choice, else a number, whole or not


@dataclass(frozen=True)
class Parameter:
    """One key that is varied."""

    key: str  # a group or a dotted key, as on the command line
    distribution: Distribution
    by_kind: bool = False  # a value is a position, 0 to 1, in the logarithmic range of rates of the encoder's kind

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return every option of a choice; the smallest and the largest number."""
        if isinstance(self.distribution, CategoricalDistribution):
            return tuple(map(str, self.distribution.choices))
        return self.distribution.low, self.distribution.high

    @property
    def count(self) -> int | None:
        """Return how many values it has; None for infinitely many."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return len(kind.choices)
        return round((kind.high - kind.low) / kind.step) + 1 if kind.step else None

    def value(self, i: int) -> Value:
        """Return one of its `count` values, from the first option or the smallest number."""
        kind = self.distribution
        return str(kind.choices[i]) if isinstance(kind, CategoricalDistribution) else nth(kind, i)

    def position(self, value: Value) -> int:
        """Return the `i` of which `value(i)` is nearest to a value."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return list(map(str, kind.choices)).index(str(value))
        assert kind.step and isinstance(value, (int, float))
        return round((value - kind.low) / kind.step)

    def neighbours(self, i: int) -> Iterable[int]:
        """Return which of its values are one step from the value at `i`: numbers beside it, any other option."""
        assert self.count is not None
        if isinstance(self.distribution, CategoricalDistribution):
            return (j for j in range(self.count) if j != i)
        return (j for j in (i - 1, i + 1) if 0 <= j < self.count)

    def nearest(self, default: Value, encoder: str) -> Value | None:
        """Return the value closest to a default ("auto": the rate of the encoder's kind); None if there is none."""
        rates = catalog.rates(encoder)
        if self.key == LR and default == "auto":
            default = rates.lr
        if self.by_kind:
            assert isinstance(default, (int, float))
            return min(1.0, max(0.0, rates.position(default)))
        if isinstance(self.distribution, CategoricalDistribution):
            return next((option for option in self.distribution.choices if str(option) == str(default)), None)
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            return None
        low, high, step = self.distribution.low, self.distribution.high, self.distribution.step
        clipped = min(high, max(low, default))
        return nth(self.distribution, round((clipped - low) / step)) if step else clipped

    def typed(self, value: Value, encoder: str) -> str:
        """Return the override that gives it this value; ConfigError where it has no such value (a damaged study)."""
        kind: BaseDistribution = self.distribution
        digits = 5
        if isinstance(kind, FloatDistribution) and kind.step and isinstance(value, float) and math.isfinite(value):
            meant, digits = nth(kind, round((value - kind.low) / kind.step)), 15
            # A sum of steps lies beside what one reads, even beyond an end, by its rounding error.
            value = meant if abs(value - meant) <= 1e-9 * kind.step else value
        try:
            valid = kind._contains(kind.to_internal_repr(value))
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ConfigError(
                f"{self.key}={value}: not one of the values that the sweep varies. The study may be damaged."
            )
        if self.by_kind:
            assert isinstance(value, (int, float))
            value = catalog.rates(encoder).at(value)
        return f"{self.key}={value:.{digits}g}" if isinstance(value, float) else f"{self.key}={value}"


def distribution(described: str) -> Distribution:
    """Return a parameter's distribution from its text in `Space.described`; ConfigError if it is none."""
    if described == BY_KIND:
        return rates_by_kind().distribution
    try:
        found = json_to_distribution(described)
        assert isinstance(found, Distribution)
        return found
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{described[:80]!r}: not a range or choice: the study or sweep.json is damaged.") from error


def spoken(described: str | None) -> str:
    """Return a text of `Space.described` as the user types it; None means that the key is not varied."""
    if described is None:
        return "not varied"
    if described == BY_KIND:
        return "auto"
    found = distribution(described)
    if isinstance(found, CategoricalDistribution):
        return f"choice({','.join(map(str, found.choices))})"
    if found.step and not found.log and (found.step != 1 or isinstance(found, FloatDistribution)):
        return f"range({found.low:g},{found.high + found.step:g},{found.step:g})"
    return f"{'tag(log,' if found.log else ''}interval({found.low:g},{found.high:g}){')' if found.log else ''}"


def choice(key: str, options: Sequence[str]) -> Parameter:
    """Make a key that has one of several values, each as it would be typed.

    Raises ConfigError: an unknown encoder, or the same weights by two names.
    """
    if key in ENCODER:
        named: dict[str, str] = {}
        for option in options:
            if valuefile.own_option("encoder", option) and option.partition(".")[0] not in catalog.architectures():
                raise ConfigError(f"{key}={option}: an option from your conf/ cannot be varied. Vary its keys instead.")
            catalog.check(option)
            if (twin := named.setdefault(catalog.tagged(option), option)) != option:
                raise ConfigError(f"{key}: {twin} and {option} are the same weights. Drop one of the two.")
    return Parameter(key, CategoricalDistribution(tuple(dict.fromkeys(options))))


def interval(key: str, low: float, high: float, log: bool = False) -> Parameter:
    """Make a key that has a number from `low` to `high`, both included; a whole one where both are."""
    shown = f"{key}={'tag(log,' if log else ''}interval({low},{high}){')' if log else ''}"
    if low >= high:
        raise ConfigError(f"{shown}: the first number must be below the second.")
    if log and low <= 0:
        raise ConfigError(f"{shown}: a logarithmic interval must begin above 0, as interval(1e-5,{high}).")
    if isinstance(low, int) and isinstance(high, int):
        return Parameter(key, IntDistribution(low, high, log=log))
    return Parameter(key, FloatDistribution(float(low), float(high), log=log))


def as_whole(parameter: Parameter) -> Parameter | None:
    """Return an interval's whole numbers; None where its ends are none, or it is no interval."""
    found = parameter.distribution
    if parameter.by_kind or not isinstance(found, FloatDistribution) or found.step:
        return None
    if not (found.low.is_integer() and found.high.is_integer()):
        return None
    return interval(parameter.key, int(found.low), int(found.high), found.log)


def steps(key: str, start: float, stop: float, step: float = 1) -> Parameter:
    """Make a key that has one of several numbers at equal distances, from `start` and without `stop`.

    They are counted in decimals, as typed: in binary 0.3 + 3 * 0.1 is not 0.6.
    """
    shown = f"{key}=range({start},{stop},{step})"
    if not all(map(math.isfinite, (start, stop, step))) or step == 0 or (stop - start) / step <= 0:
        raise ConfigError(f"{shown}: the range is empty. range(START,STOP,STEP) leaves STOP out, as range(0,5).")
    first, end, distance = (Decimal(str(number)) for number in (start, stop, step))
    low, high = sorted((first, first + (math.ceil((end - first) / distance) - 1) * distance))
    if all(isinstance(number, int) for number in (start, stop, step)):
        return Parameter(key, IntDistribution(int(low), int(high), step=int(abs(distance))))
    if Decimal(str(float(high))) != high or Decimal(str(float(low))) != low:
        raise ConfigError(f"{shown}: its numbers have more digits than a float can hold. Type fewer digits.")
    return Parameter(key, FloatDistribution(float(low), float(high), step=float(abs(distance))))


def nth(distribution: IntDistribution | FloatDistribution, i: int) -> float:
    """Return the value after `i` steps, as one reads it: the sum is of decimals."""
    if isinstance(distribution, IntDistribution):
        return distribution.low + i * distribution.step
    step = Decimal(str(distribution.step or 0.0))
    return min(distribution.high, float(Decimal(str(distribution.low)) + i * step))


def rates_by_kind() -> Parameter:
    """Make the learning rate, in the range of each encoder's kind (`segsweep.catalog.RATES`).

    A position in the range and not the rate: what is learnt from one kind of encoder helps with another.
    """
    return Parameter(LR, FloatDistribution(0.0, 1.0), by_kind=True)


@dataclass(frozen=True)
class Space:
    """All that a sweep varies."""

    parameters: tuple[Parameter, ...]
    encoder: str  # of trials, where no parameter says it

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {parameter.key: parameter.distribution for parameter in self.parameters}

    @property
    def size(self) -> int | None:
        """Return how many points it has: combinations of values; None for infinitely many."""
        counts = [count for parameter in self.parameters if (count := parameter.count) is not None]
        return math.prod(counts) if len(counts) == len(self.parameters) else None

    @property
    def points(self) -> Iterator[dict[str, Value]]:
        """Yield each of the `size` points; the last parameter's value changes first."""
        return map(self.point, itertools.product(*(range(parameter.count or 0) for parameter in self.parameters)))

    def point(self, position: Sequence[int]) -> dict[str, Value]:
        """Return the point at a position, as `position` returns it."""
        return {p.key: p.value(i) for p, i in zip(self.parameters, position, strict=True)}

    def position(self, values: Mapping[str, Value]) -> tuple[int, ...]:
        """Return which of its `count` values each key has in a point of a finite space."""
        return tuple(parameter.position(values[parameter.key]) for parameter in self.parameters)

    @property
    def first(self) -> dict[str, Value]:
        """Return a point: each key's first option or smallest number."""
        return {parameter.key: parameter.ends[0] for parameter in self.parameters}

    def beside(self, point: Mapping[str, Value], kept: str) -> Iterator[dict[str, Value]]:
        """Yield the points that differ from one in a single key, but for the one that is kept and the encoder."""
        for parameter in self.parameters:
            if parameter.key not in (kept, *ENCODER):
                yield from ({**point, parameter.key: end} for end in parameter.ends if end != point[parameter.key])

    @property
    def encoders(self) -> tuple[str, ...]:
        for key in ENCODER:
            if isinstance(found := self.distributions.get(key), CategoricalDistribution):
                return tuple(map(str, found.choices))
        return (self.encoder,)

    def encoder_of(self, values: Mapping[str, Value]) -> str:
        return str(next((values[key] for key in ENCODER if key in values), self.encoder))

    def typed(self, values: Mapping[str, Value]) -> list[str]:
        """Return a trial's overrides, in the order of the parameters. Keys without a value keep their defaults."""
        encoder = self.encoder_of(values)
        return [p.typed(values[p.key], encoder) for p in self.parameters if p.key in values]

    def seeds(self, defaults: Mapping[str, Value]) -> list[dict[str, Value]]:
        """Return the values to try first: each encoder, and of `defaults` what the space has; a rate may be "auto"."""
        key = [key for key in ENCODER if key in self.distributions][:1]
        found = []
        for encoder in self.encoders:
            values = {p.key: p.nearest(defaults[p.key], encoder) for p in self.parameters if p.key in defaults}
            values |= dict.fromkeys(key, encoder)
            found.append({name: value for name, value in values.items() if value is not None})
        return found

    def described(self) -> dict[str, str]:
        """Return each key's distribution as text, to be kept with a study and compared with on the next start."""
        return {p.key: BY_KIND if p.by_kind else distribution_to_json(p.distribution) for p in self.parameters}
