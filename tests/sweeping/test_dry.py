"""`hydra.sweeper.dry=true`: what a sweep would take, and nothing begun."""

from types import SimpleNamespace

import pytest
from conftest import TINY

import train
from segsweep.config.schema import RunConfig, TrainConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.sweeping import dry
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.space import Space, choice, interval, rates_by_kind

TWO = choice("encoder", ["resnet18", "resnet34"])


ANSWERS = {
    "resnet18": {"images_per_s": 20.0, "seconds": 100.0},
    "resnet34": {"images_per_s": 7.0, "seconds": 300.0},
}


def told(tmp_path, *parameters, **settings):
    """What is said where a training with resnet18 takes 100 s, with resnet34 300 s, and two run at once."""

    def call(function, asked, encoders):
        return {name: ANSWERS[name] for name in encoders}

    backend = SimpleNamespace(capacity=2, call=call)
    plan = Plan(tmp_path, "", Space((TWO, *parameters), "resnet18"), {}, (), RunConfig(), SweeperConfig(**settings))
    return dry.told(plan, backend)


def test_all_trainings_are_counted(tmp_path):
    said = told(tmp_path, rates_by_kind(), n_trials=20, finalists=2, repeats=3)
    assert "26 in all: 20 trials, 2 x 3 repeats of finalists; 2 at once" in said
    assert "resnet18      20.0 images/s  2 min" in said
    assert "about 43 min; less where trials are pruned" in said  # 26 x 200 s / 2
    assert "timed with" not in said


def test_a_finite_space_has_no_more_trials_than_points_unless_they_run_again(tmp_path):
    ema = choice("train.ema", ["0", "0.9"])
    assert "4 in all: 4 trials; 2 at once" in told(tmp_path, ema, n_trials=20, finalists=0, pruner="none")
    assert "20 in all: 20 trials" in told(tmp_path, ema, n_trials=20, finalists=0, repeat_points="seed")
    assert "4 in all: 4 trials" in told(tmp_path, ema, n_trials=None, finalists=0, sampler="grid")
    assert "timed with      train.ema=0; trials with other values may take another time" in told(
        tmp_path, ema, n_trials=4
    )
    with pytest.raises(ConfigError, match="infinitely many values"):
        told(tmp_path, interval("train.ema", 0.1, 0.9), n_trials=None, sampler="grid")


def test_the_epochs_that_trials_have_are_timed(tmp_path):
    asked = []
    backend = SimpleNamespace(capacity=1, call=lambda function, *given: asked.append(given[0]) or ANSWERS)
    for train_config in (TrainConfig(), TrainConfig(time_budget=60)):
        base = RunConfig(train=train_config)
        plan = Plan(tmp_path, "", Space((TWO,), "resnet18"), {}, (), base, SweeperConfig())
        dry.told(plan, backend)
        assert (plan.argv({}, [], [], "resnet18") == ["train.epochs=10"]) == (train_config.time_budget is None)
    assert [one["train"]["epochs"] for one in asked] == [10, None]


def test_real_steps_are_timed_and_nothing_is_begun(pairs, tmp_path, capsys):
    words = [word for word in TINY if not word.startswith("encoder=")]
    words += ["data=folder", f"data.root={pairs()}", "data.size=[32,32]", "train.batch_size=4", "train.epochs=3"]
    words += ["-m", "hydra/sweeper=optuna", "encoder=choice(test_resnet,test_vit)", "hydra.sweeper.dry=true"]
    assert train.main([*words, "hydra.sweeper.slots=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 0
    said = capsys.readouterr().out
    assert "12 in all: 8 trials, 2 x 2 repeats of finalists; 1 at once" in said
    assert "test_vit" in said and "images/s" in said
    assert not (tmp_path / "sweep").exists()
