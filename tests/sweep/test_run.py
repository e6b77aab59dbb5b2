"""The composition root: weights found once, pinned, and compared for fairness."""

import pytest

from segsweep.errors import ConfigError
from segsweep.sweep import run as multirun
from segsweep.sweep.run import Plan
from segsweep.sweep.space import Space, choice, rates_by_kind, steps
from segsweep.sweep.study import Study

SPACE = Space((choice("encoder", ["resnet18", "resnet34"]), rates_by_kind()), "resnet18")


class Calls:
    """In place of workers: knows where weights come from."""

    def __init__(self, sources):
        self.sources, self.asked = sources, []

    def call(self, function, *arguments):
        self.asked.append((function, *arguments))
        return self.sources


def plan(tmp_path, **settings):
    train = {"epochs": 3, "seed": 5, "time_budget": None}
    tracking = {"name": "none", "experiment": "x", "uri": None, "timeout": 1.0}
    settings = {"n_trials": 4, "space": SPACE} | settings
    return Plan(tmp_path, "", defaults={}, fixed=("data=shapes",), train=train, tracking=tracking, **settings)


def test_weights_are_asked_for_once(tmp_path):
    wanted, workers = plan(tmp_path), Calls({"resnet18": "hub", "resnet34": "cache"})
    study = Study(tmp_path, SPACE, n_trials=4)
    assert multirun._weights(wanted, study, workers) == workers.sources
    assert workers.asked == [("segsweep.nn.weights:sources", ["resnet18", "resnet34"], "auto", None)]
    again = Study(tmp_path, SPACE, n_trials=4)
    assert multirun._weights(wanted, again, Calls({})) == workers.sources


@pytest.mark.parametrize(
    ("source", "pinned"), [("hub", ["encoder.pretrained=true"]), ("random", ["encoder.pretrained=false"]), ("file", [])]
)
def test_weights_are_pinned(tmp_path, source, pinned):
    argv = multirun._argv(plan(tmp_path), {"resnet18": source}, ["encoder=resnet18"], "resnet18")
    assert argv == ["data=shapes", "encoder=resnet18", *pinned]


def test_pretrained_beside_random_is_refused_with_the_list(tmp_path):
    mixed = Calls({"resnet18": "hub", "resnet34": "random"})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"1 of 2 encoders .* \(resnet18: hub; resnet34: random\)"):
            multirun._weights(plan(tmp_path), Study(tmp_path, SPACE, n_trials=4), mixed)
    assert len(mixed.asked) == 2  # the hub may be within reach by now
    allowed = plan(tmp_path, mixed_weights=True)
    assert multirun._weights(allowed, Study(tmp_path, SPACE, n_trials=4), mixed) == mixed.sources
    all_random = Calls({"resnet18": "random", "resnet34": "random"})
    study = Study(tmp_path, SPACE, n_trials=4, name="other")
    assert multirun._weights(plan(tmp_path), study, all_random) == all_random.sources


def test_finalists_get_seeds_that_the_search_did_not_have(tmp_path):
    assert multirun._seeds(plan(tmp_path, repeats=3)) == [6, 7, 8]
    varied = Space((*SPACE.parameters, steps("train.seed", [0, 4, 8])), "resnet18")
    assert multirun._seeds(plan(tmp_path, repeats=2, space=varied)) == [9, 10]
    chosen = Space((*SPACE.parameters, choice("train.seed", ["7", "6"])), "resnet18")
    assert multirun._seeds(plan(tmp_path, repeats=2, space=chosen)) == [8, 9]


def test_finalists_share_the_varied_folds(tmp_path):
    assert multirun._folds(plan(tmp_path)) == []
    varied = Space((*SPACE.parameters, steps("data.fold", [0, 1, 2])), "resnet18")
    assert multirun._folds(plan(tmp_path, space=varied)) == [0, 1, 2]


@pytest.mark.parametrize("setting", [{"sampler": "tpee"}, {"pruner": "x"}, {"budget": "x"}, {"repeats": -1}])
def test_bad_settings_are_refused_before_anything_is_looked_up(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"hydra.sweeper.{next(iter(setting))}="):
        plan(tmp_path, **setting)


def test_sources_say_where_weights_come_from(monkeypatch):
    from segsweep.nn import weights

    names = ["tf_efficientnet_lite0", "test_resnet"]
    assert weights.sources(names) == {"tf_efficientnet_lite0": "package", "test_resnet": "random"}
    assert weights.sources(names, pretrained=False) == dict.fromkeys(names, "random")
    monkeypatch.setattr(weights, "_reachable", lambda url: True)
    monkeypatch.setattr(weights, "create", lambda name, found: (None, "hub"))
    assert weights.sources(["test_resnet"]) == {"test_resnet": "hub"}
