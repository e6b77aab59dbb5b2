"""What is varied: distributions, the overrides of a trial, and what is refused."""

import itertools
import math
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.storages import InMemoryStorage

from segsweep import catalog
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.sweeping.space import Space, choice, distribution, interval, rates_by_kind, steps
from segsweep.sweeping.study import Study, grid

ENCODERS = choice("encoder", ["resnet18", "vit_tiny_patch16_224"])


def test_a_choice_keeps_its_texts_in_order_and_once():
    parameter = choice("decoder.width", ["[64,32]", "auto", "[64,32]"])
    assert parameter.distribution == CategoricalDistribution(("[64,32]", "auto"))
    assert parameter.typed("[64,32]", "resnet18") == "decoder.width=[64,32]"


def test_an_unknown_encoder_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match=r"resnt34: not a timm model\. Closest: resnet34"):
        choice("encoder", ["resnet18", "resnt34"])


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (interval("optim.lr", 1e-5, 1e-2, log=True), FloatDistribution(1e-5, 1e-2, log=True)),
        (interval("optim.momentum", 0, 0.9), FloatDistribution(0.0, 0.9)),
        (interval("optim.freeze_epochs", 0, 3), IntDistribution(0, 3)),
        (steps("data.fold", 0, 5), IntDistribution(0, 4)),
        (steps("train.epochs", 5, 21, 5), IntDistribution(5, 20, step=5)),
        (steps("optim.warmup", 0.1, 0.4, 0.1), FloatDistribution(0.1, 0.3, step=0.1)),
        (steps("optim.warmup", 0.3, 0.6, 0.1), FloatDistribution(0.3, 0.5, step=0.1)),
        (steps("optim.warmup", 0, 2.1, 0.7), FloatDistribution(0.0, 1.4, step=0.7)),
        (steps("data.fold", 4, 0, -2), IntDistribution(2, 4, step=2)),
        (steps("optim.warmup", 0.3, 0, -0.1), FloatDistribution(0.1, 0.3, step=0.1)),
    ],
)
def test_numbers_have_the_distribution_they_ask_for(made, expected):
    check_distribution_compatibility(made.distribution, expected)
    assert type(made.distribution) is type(expected)
    assert made.distribution == expected


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: interval("optim.lr", 1e-2, 1e-5), "the first number must be below the second"),
        (lambda: interval("optim.lr", 1e-2, 1e-2), "the first number must be below the second"),
        (lambda: interval("optim.lr", 0, 1e-2, log=True), "must begin above 0, as interval"),
        (lambda: steps("data.fold", 5, 0), "the range is empty"),
        (lambda: steps("data.fold", 0, 5, 0), "the range is empty"),
        (lambda: steps("optim.lr", 0, float("inf")), "the range is empty"),
        (lambda: steps("optim.lr", 0, 0.5, 0.12345678901234567), "more digits than a float can hold"),
    ],
)
def test_empty_spaces_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_the_learning_rate_by_kind_spans_each_kinds_range():
    space = Space((ENCODERS, rates_by_kind()), "resnet18")
    for encoder in space.encoders:
        rates = catalog.rates(encoder)
        for position, rate in ((0.0, rates.low), (1.0, rates.high)):
            typed = space.typed({"encoder": encoder, "optim.lr": position})
            assert typed[0] == f"encoder={encoder}"
            assert float(typed[1].removeprefix("optim.lr=")) == pytest.approx(rate)
    assert catalog.rates("resnet18") != catalog.rates("vit_tiny_patch16_224")


@pytest.mark.parametrize("lr", [rates_by_kind(), interval("optim.lr", 1e-6, 1.0, log=True)])
def test_seeds_are_each_encoder_at_its_default(lr):
    space = Space(
        (ENCODERS, lr, choice("augmentation", ["light", "strong"]), interval("optim.warmup", 0.1, 0.2)), "resnet18"
    )
    seeds = space.seeds({"encoder": "x", "optim.lr": "auto", "augmentation": "standard", "optim.warmup": 0.05})
    assert [seed["encoder"] for seed in seeds] == ["resnet18", "vit_tiny_patch16_224"]
    for seed in seeds:
        assert set(seed) == {"encoder", "optim.lr", "optim.warmup"}  # standard is no choice here
        typed = dict(text.split("=") for text in space.typed(seed))
        assert float(typed["optim.lr"]) == pytest.approx(catalog.rates(seed["encoder"]).lr)
        assert seed["optim.warmup"] == 0.1  # the closest to 0.05 that there is
        for key, value in seed.items():
            assert space.distributions[key]._contains(space.distributions[key].to_internal_repr(value))


def test_seeds_lie_on_the_steps():
    space = Space((steps("train.epochs", 5, 21, 5), steps("optim.warmup", 0.1, 0.4, 0.1)), "resnet18")
    (seed,) = space.seeds({"train.epochs": 11, "optim.warmup": 0.19})
    assert seed == {"train.epochs": 10, "optim.warmup": pytest.approx(0.2)}
    (seed,) = space.seeds({"train.epochs": None, "optim.warmup": 0.9})
    assert seed == {"optim.warmup": pytest.approx(0.3)}


def test_every_value_of_a_range_is_typed_as_one_reads_it():
    rng = random.Random(0)
    for _ in range(300):
        unit = Decimal(1).scaleb(-rng.randint(0, 6))
        first, step, count = rng.randint(-50, 50) * unit, rng.randint(1, 40) * unit, rng.randint(1, 40)
        stop = first + step * count - rng.choice([0, unit / 2])
        parameter = steps("optim.warmup", float(first), float(stop), float(step))
        space, there = Space((parameter,), "resnet18"), [first + i * step for i in range(count)]

        def typed(values, space=space):
            return Decimal(space.typed(values)[0].removeprefix("optim.warmup="))

        assert list(map(typed, grid(space))) == there
        assert distribution(space.described()["optim.warmup"]) == parameter.distribution
        for default in (*map(float, there), rng.uniform(float(first) - 1, float(stop) + 1)):
            (seed,) = space.seeds({"optim.warmup": default})
            assert min(there, key=lambda value, d=default: abs(float(value) - d)) == typed(seed)
        study = Study(Path("nowhere"), space, SweeperConfig(sampler="random"), storage=InMemoryStorage())
        assert all(typed(study.ask()[1]) in there for _ in range(3))


def test_a_value_beside_an_end_is_that_end_and_one_further_off_is_damage():
    parameter = steps("optim.warmup", 0.0, 0.8, 0.1)
    assert parameter.typed(0.7000000000000001, "resnet18") == "optim.warmup=0.7"
    for value in (0.70001, 0.75, 0.8, -0.1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="not one of the values that the sweep varies"):
            parameter.typed(value, "resnet18")


def test_without_a_choice_of_encoders_there_is_one():
    space = Space((rates_by_kind(),), "vit_tiny_patch16_224")
    assert space.encoders == ("vit_tiny_patch16_224",)
    (seed,) = space.seeds({"optim.lr": 5e-4})
    assert space.typed(seed) == ["optim.lr=0.0005"]


def test_spaces_that_differ_are_described_differently():
    spaces = [
        Space((ENCODERS, rates_by_kind()), "resnet18"),
        Space((ENCODERS, interval("optim.lr", 1e-5, 1e-2, log=True)), "resnet18"),
        Space((ENCODERS, interval("optim.lr", 1e-5, 1e-2)), "resnet18"),
        Space((choice("encoder", ["resnet18"]), rates_by_kind()), "resnet18"),
    ]
    assert len({str(space.described()) for space in spaces}) == len(spaces)


@pytest.mark.parametrize("module", ["space", "crossval"])  # the latter reads what `segsweep.data` wrote
def test_the_controller_needs_neither_torch_nor_hydra(module):
    heavy = "[m for m in ('torch', 'hydra', 'timm', 'mlflow') if m in sys.modules]"
    code = f"import sys, segsweep.sweeping.{module}; print({heavy})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_points_of_a_finite_space_are_all_combinations():
    parameters = choice("x", ["a", "b"]), steps("optim.warmup", 0.1, 0.4, 0.1), interval("n", 1, 4, log=True)
    space = Space(parameters, "resnet18")
    expected = list(itertools.product(("a", "b"), (0.1, 0.2, 0.3), (1, 2, 3, 4)))
    assert space.size == len(expected) == 24
    points = list(space.points)
    assert [tuple(point.values()) for point in points] == expected
    assert len({space.position(point) for point in points}) == 24
    assert space.position({"x": "b", "optim.warmup": 0.1 + 0.1 + 0.1, "n": 4}) == (1, 2, 3)  # beside 0.3
    assert Space((*parameters, interval("y", 0.0, 1.0)), "resnet18").size is None
    assert Space((ENCODERS, rates_by_kind()), "resnet18").size is None
