"""The study: asked, told, killed, opened again."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.sweeping.space import Space, choice, interval, rates_by_kind, steps
from segsweep.sweeping.study import JOURNAL, Study, grid

SPACE = Space((choice("encoder", ["resnet18", "resnet34"]), interval("optim.lr", 1e-5, 1e-2, log=True)), "resnet18")


def opened(folder, space=SPACE, seeds=(), fixed=(), **settings):
    return Study(folder, space, SweeperConfig(**({"n_trials": 20} | settings)), seeds=seeds, fixed=fixed)


def test_seeds_come_first_and_once(tmp_path):
    seeds = [{"encoder": "resnet18", "optim.lr": 1e-3}, {"encoder": "resnet34", "optim.lr": 1e-3}]
    assert opened(tmp_path, seeds=seeds).ask() == (0, seeds[0])
    again = opened(tmp_path, seeds=seeds)
    assert again.ask() == (1, seeds[1])
    assert again.ask()[0] == 2
    assert len(again.trials()) == 3


def test_all_is_there_again(tmp_path):
    study = opened(tmp_path)
    for _ in range(4):
        study.ask()
    study.report(0, 1, 0.3)
    study.complete(0, 0.5)
    study.report(1, 1, 0.1)
    study.report(1, 2, None)
    study.prune(1, "hopeless", 0.2)
    study.fail(2, "NaN")
    study.note(3, "x", [1, 2])
    study.remember("weights", {"resnet18": "hub"})
    again = opened(tmp_path)
    assert [t.state.name for t in again.trials()] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert len(again.trials(TrialState.COMPLETE, TrialState.PRUNED)) == 2
    assert again.trials()[1].user_attrs == {"pruned": "hopeless", "estimate": 0.2}
    assert again.trials()[2].user_attrs == {"failed": "NaN"}
    assert again.remembered("weights") == {"resnet18": "hub"}
    again.report(3, 5, 0.7)
    again.complete(3, 0.7)
    assert opened(tmp_path).trials(TrialState.COMPLETE)[1].value == 0.7


@pytest.mark.parametrize("seeds", [(), [{"encoder": "resnet34", "optim.lr": 2e-3}]])
def test_values_that_a_killed_start_had_not_drawn_are_drawn(seeds, tmp_path):
    """Optuna makes a trial first, and writes down its values one by one."""
    opened(tmp_path, seeds=seeds)._study.ask()
    assert opened(tmp_path).trials(TrialState.RUNNING)[0].params == {}
    values = opened(tmp_path).values(0)
    assert values.keys() == SPACE.distributions.keys()
    assert values == (seeds[0] if seeds else values)
    assert opened(tmp_path).values(0) == values


@pytest.mark.parametrize("storage", ["{}/apart.log", "sqlite:///{}/apart.db"])
def test_a_study_whose_trials_are_of_a_sweep_in_another_folder_is_refused(storage, tmp_path):
    def started(folder, owner, fixed=()):
        settings = SweeperConfig(n_trials=2, storage=storage.format(tmp_path))
        return Study(tmp_path / folder, SPACE, settings, owner=owner, fixed=fixed)

    number, _ = started("a", "one").ask()
    with pytest.raises(ConfigError, match=r"type its folder, .*; for another one type hydra\.sweeper\.study_name=NAME"):
        started("b", "two")
    with pytest.raises(ConfigError, match=r"start a new study with hydra\.sweeper\.study_name=NAME"):
        started("a", "one", fixed=["train.epochs=5"])
    started("a", "one").complete(number, 0.5)


def test_a_sweep_is_given_more_encoders_and_goes_on(tmp_path, capsys):
    def seeds(*encoders):
        return [{"encoder": encoder, "optim.lr": 1e-3} for encoder in encoders]

    def space(*encoders):
        return Space((choice("encoder", encoders), SPACE.parameters[1]), encoders[0])

    study = opened(tmp_path, seeds=seeds("resnet18", "resnet34"), n_trials=3)
    for i in range(3):
        study.ask()
        study.report(i, 1, 0.1 * i)
        study.complete(i, 0.2 + 0.1 * i)
    study.remember("weights", {"resnet18": "hub", "resnet34": "hub"})
    study.ask()  # one that runs
    before = [(t.number, t.state, t.value, t.params, t.intermediate_values) for t in study.trials()]
    kept = (tmp_path / JOURNAL).read_bytes()
    more = space("convnext_atto", "resnet18", "resnet34")
    with pytest.raises(
        ConfigError, match=r"3 trials are finished, so convnext_atto .* Type hydra.sweeper.n_trials=7\."
    ):
        opened(tmp_path, more, seeds("convnext_atto", "resnet18", "resnet34"), n_trials=3)
    assert (tmp_path / JOURNAL).read_bytes() == kept  # what is refused changes nothing
    again = opened(tmp_path, more, seeds("convnext_atto", "resnet18", "resnet34"), n_trials=7)
    assert "continues with convnext_atto" in capsys.readouterr().err
    found = again.trials()
    assert [(t.number, t.state, t.value, t.params, t.intermediate_values) for t in found[:4]] == before
    assert again.remembered("weights") == {"resnet18": "hub", "resnet34": "hub"}
    again.complete(3, 0.9)
    assert again.ask() == (
        4,
        {"encoder": "convnext_atto", "optim.lr": 1e-3},
    )  # its default first, the others' not again
    assert again.ask()[1]["encoder"] in more.encoders
    for other in (SPACE, space("resnet18", "convnext_atto"), Space((choice("encoder", ["resnet18"]),), "resnet18")):
        with pytest.raises(ConfigError, match="was begun with another command"):
            opened(tmp_path, other, n_trials=9)
    assert len(opened(tmp_path, more, n_trials=7).trials()) == 6


@pytest.mark.parametrize("tail", [b'{"op_code": 4, "stu', b"\xff", b'{"op_code": 8'])
def test_a_torn_last_line_costs_that_line_only(tmp_path, tail):
    study = opened(tmp_path)
    study.ask()
    study.complete(0, 0.5)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(tail)
    again = opened(tmp_path)
    again.ask()
    again.complete(1, 0.6)
    assert [t.value for t in opened(tmp_path).trials()] == [0.5, 0.6]


def test_a_killed_controller_leaves_no_lock(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from test_study import opened; s = opened(Path(sys.argv[1])); s.ask(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], check=False)
    study = opened(tmp_path)  # Optuna's own lock would make this wait for 30 seconds
    assert [t.state.name for t in study.trials()] == ["RUNNING"]


@pytest.mark.parametrize(
    ("space", "fixed", "says"),
    [
        (Space((choice("encoder", ["resnet18"]), SPACE.parameters[1]), "resnet18"), [], "encoder: .*resnet34.* -> "),
        (Space((SPACE.parameters[0], rates_by_kind()), "resnet18"), [], "optim.lr: .* -> auto"),
        (Space((SPACE.parameters[0],), "resnet18"), [], "optim.lr: .* -> not varied"),
        (SPACE, ["train.epochs=5"], "train.epochs=5: new"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(tmp_path, space, fixed, says):
    opened(tmp_path).ask()
    with pytest.raises(ConfigError, match=says):
        opened(tmp_path, space, fixed=fixed)
    with pytest.raises(ConfigError, match=r"train\.epochs=5: gone"):
        opened(tmp_path / "elsewhere", storage=str(tmp_path / "other.log"), fixed=["train.epochs=5"])
        opened(tmp_path / "elsewhere", storage=str(tmp_path / "other.log"))


def test_the_target_may_be_raised_and_the_sampler_changed(tmp_path):
    opened(tmp_path, n_trials=2).ask()
    assert opened(tmp_path, n_trials=50, sampler="random", seed=7).n_trials == 50


def test_the_largest_seed_lasts_for_a_restart(tmp_path):
    for _ in range(2):
        opened(tmp_path, seed=2**32 - 1).ask()


def test_a_grid_is_all_combinations(tmp_path):
    space = Space((choice("encoder", ["resnet18", "resnet34"]), steps("data.fold", 0, 3)), "resnet18")
    study = opened(tmp_path, space, sampler="grid", n_trials=None)
    assert study.n_trials == 6
    asked = [tuple(study.ask()[1].values()) for _ in range(6)]
    assert sorted(asked) == sorted((e, f) for e in ("resnet18", "resnet34") for f in range(3))
    assert opened(tmp_path, space, sampler="grid", n_trials=4).n_trials == 4


def test_a_grid_of_numbers_with_steps(tmp_path):
    assert grid(Space((steps("optim.warmup", 0.1, 0.4, 0.1),), "resnet18")) == [
        {"optim.warmup": pytest.approx(value)} for value in (0.1, 0.2, 0.3)
    ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sampler": "grid"}, r"optim\.lr has infinitely many values"),
        ({"sampler": "tpee"}, r"hydra\.sweeper\.sampler=tpee: must be one of .* Try hydra\.sweeper\.sampler=tpe"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, says):
    with pytest.raises(ConfigError, match=says):
        opened(tmp_path, **settings)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_samplers_draw_within_the_space(tmp_path, sampler):
    study = opened(tmp_path, sampler=sampler, n_trials=6)
    for number in range(6):
        _, values = study.ask()
        assert values["encoder"] in ("resnet18", "resnet34")
        assert 1e-5 <= values["optim.lr"] <= 1e-2
        study.complete(number, 0.5 if values["encoder"] == "resnet34" else 0.1)


X = Space((interval("x", 0.0, 1.0),), "resnet18")


def test_tpe_learns_from_failures(tmp_path):
    """Everything below 0.5 failed: it is drawn less often than by chance, where Optuna would not know."""
    seeds = [{"x": 0.02 + 0.04 * i} for i in range(25)]
    study = opened(tmp_path, X, seeds=seeds, n_trials=100)
    for number in range(25):
        _, values = study.ask()
        if values["x"] < 0.5:
            study.fail(number, "NaN")
        else:
            study.complete(number, 0.7)
    low = 0
    for number in range(25, 65):
        _, values = study.ask()
        low += values["x"] < 0.5
        study.fail(number, "NaN") if values["x"] < 0.5 else study.complete(number, 0.7)
    assert low <= 12  # of 40; 20 by chance


def test_a_pruned_trial_counts_by_its_estimate(tmp_path):
    """Good trials that were pruned late count more than bad ones that were completed."""
    seeds = [{"x": 0.02 + 0.04 * i} for i in range(25)]
    study = opened(tmp_path, X, seeds=seeds, n_trials=100)
    for number in range(25):
        _, values = study.ask()
        if values["x"] < 0.5:
            study.report(number, 1, 0.5)
            study.prune(number, "below its backbone's best", estimate=0.8 - values["x"] / 100)
        else:
            study.complete(number, 0.3)
    low = sum(study.ask()[1]["x"] < 0.5 for _ in range(30))
    assert low >= 24


SIX = Space((choice("a", ["x", "y"]), steps("b", 0, 3)), "resnet18")


def points(study):
    return [tuple(trial.params.values()) for trial in study.trials() if trial.params]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "grid"])
def test_no_point_of_a_finite_space_is_asked_for_twice(tmp_path, sampler):
    """With restarts, while others run, and whatever becomes of a trial: a running point is taken, too."""
    seeds = [{"a": "x"}, {"a": "y"}]
    running = []
    for _ in range(3):
        study = opened(tmp_path, SIX, seeds, sampler=sampler, n_trials=10)
        assert study.n_trials == 6
        for _ in range(2):
            assert not study.exhausted
            running.append(study.ask()[0])
        if len(running) > 3:
            study.complete(running.pop(0), 0.5)
            study.fail(running.pop(0), "NaN")
    assert study.exhausted
    assert sorted(points(study)) == [(a, b) for a in "xy" for b in range(3)]
    assert opened(tmp_path, SIX, seeds, sampler=sampler, n_trials=10).exhausted


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_a_sampler_that_insists_on_one_point_gets_the_others(tmp_path, sampler):
    """Of 15 points some are by far the best: each is still drawn once."""
    space = Space((steps("a", 0, 5), steps("b", 0, 3)), "resnet18")
    study = opened(tmp_path, space, sampler=sampler, n_trials=100)
    for number in range(15):
        _, values = study.ask()
        study.complete(number, float(values["a"] == 0))
    assert study.exhausted
    assert len(set(points(study))) == 15


def test_a_grid_behind_another_sampler_asks_for_no_point_twice(tmp_path):
    opened(tmp_path, SIX, [{"a": "x"}, {"a": "y"}], sampler="random", n_trials=2).ask()  # one still waits, half said
    study = opened(tmp_path, SIX, sampler="grid", n_trials=None)
    while not study.exhausted:
        study.ask()
    assert len(points(study)) == len(set(points(study))) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_points_run_again_in_turn_where_that_is_asked_for(tmp_path, sampler):
    for _ in range(2):
        study = opened(tmp_path, SIX, sampler=sampler, n_trials=15, repeat_points="seed")
        for _ in range(8):
            number, values = study.ask()
            before = [point for point in points(study)[:-1] if point == tuple(values.values())]
            assert study.repetition(number) == len(before)
            if values == {"a": "y", "b": 2}:
                study.refuse(number, "never")
            else:
                study.complete(number, 0.1)
    assert study.n_trials == 15
    times = Counter(points(study))
    assert times.pop(("y", 2)) == 1  # refused: no other seed helps
    assert sorted(times.values()) == [3, 3, 3, 3, 3]
    assert not study.exhausted


def test_where_all_points_are_refused_none_runs_again(tmp_path):
    study = opened(tmp_path, SIX, n_trials=20, repeat_points="seed")
    for number in range(6):
        study.ask()
        study.refuse(number, "never")
    assert study.exhausted


@pytest.mark.parametrize(("sampler", "drawn", "most"), [("tpe", 40, 12), ("gp", 8, 2)])
def test_samplers_learn_from_refusals(tmp_path, sampler, drawn, most):
    """Everything below 0.5 is refused: it is drawn less often than by chance."""
    seeds = [{"x": 0.02 + 0.04 * i} for i in range(25)]
    study = opened(tmp_path, X, seeds=seeds, sampler=sampler, n_trials=100)
    for number in range(25 + drawn):
        _, values = study.ask()
        study.refuse(number, "no") if values["x"] < 0.5 else study.complete(number, values["x"])
    assert sum(trial.params["x"] < 0.5 for trial in study.trials()[25:]) <= most
    assert [trial.user_attrs.get("refused") for trial in study.trials()[:2]] == ["no", "no"]


def test_optuna_can_read_the_study(tmp_path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = opened(tmp_path)
    study.ask()
    study.complete(0, 0.5)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
    assert optuna.load_study(study_name="sweep", storage=storage).best_value == 0.5
