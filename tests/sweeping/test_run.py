"""The composition root: weights found once, pinned, and compared for fairness."""

import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import fake_train
import pytest
from fake_controller import Backend

from segsweep.config.schema import DataConfig, LossConfig, RunConfig, TrackingConfig, TrainConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError, DiskError
from segsweep.paths import BEST
from segsweep.runs.journal import Journal
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import about, pinned, report
from segsweep.sweeping import run as module
from segsweep.sweeping.about import CrossValidated
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.scheduler import drive
from segsweep.sweeping.space import Space, choice, interval, rates_by_kind, steps
from segsweep.sweeping.study import Study

SPACE = Space((choice("encoder", ["resnet18", "resnet34"]), rates_by_kind()), "resnet18")


class Calls:
    """In place of a backend: knows where weights come from."""

    def __init__(self, sources):
        self.sources, self.asked = sources, []

    def call(self, function, *arguments):
        self.asked.append((function, *arguments))
        return self.sources


@pytest.fixture
def pretended(monkeypatch):
    """Trainings only pretend, and torch is not asked, which would take most of the time."""
    monkeypatch.setattr(module, "TRAINING", "fake_train")
    monkeypatch.setattr(module, "drive", partial(drive, module="fake_train"))
    monkeypatch.setattr(module, "LocalBackend", partial(Backend, preloaded=["segsweep.runs.journal"]))


def plan(tmp_path, space=SPACE, **settings):
    base = RunConfig(data=DataConfig("shapes"), train=TrainConfig(epochs=3, seed=5), tracking=TrackingConfig("none"))
    sweeper = SweeperConfig(**({"n_trials": 4} | settings))
    return Plan(tmp_path, "", space, {}, ("data=shapes",), base, sweeper)


def opened(wanted, name="sweep"):
    return Study(wanted.folder, SPACE, SweeperConfig(n_trials=4, study_name=name))


def finished(wanted, failed=0):
    """The study of four trials that are over, so many of them failed."""
    study = opened(wanted)
    for number in range(4):
        study.ask()
        study.fail(number, "no memory") if number < failed else study.complete(number, 0.5)
    return study


def test_weights_are_asked_for_once(tmp_path):
    wanted, workers = plan(tmp_path), Calls({"resnet18": "hub", "resnet34": "cache"})
    study = opened(wanted)
    assert pinned.weights(wanted, study, workers) == workers.sources
    assert workers.asked == [("segsweep.nn.weights:sources", ["resnet18", "resnet34"], "auto", None)]
    again = opened(wanted)
    assert pinned.weights(wanted, again, Calls({})) == workers.sources


@pytest.mark.parametrize("key", ("encoder.weights_file", "encoder.pretrained"))
def test_weights_that_are_varied_are_not_looked_for_and_there_have_to_be_some(tmp_path, key):
    wanted, workers = plan(tmp_path, Space((*SPACE.parameters, choice(key, ["a", "b"])), "resnet18")), Calls({})
    assert pinned.weights(wanted, opened(wanted), workers) == {}
    assert not workers.asked
    assert ("encoder.pretrained=true" in wanted.argv({}, [], [], "resnet18")) == (key == "encoder.weights_file")


@pytest.mark.parametrize("varied", ((), ("data.seed",), ("loss",)))
def test_class_weights_fade_in_all_trials_of_a_study_or_in_none(tmp_path, varied):
    wanted = plan(tmp_path, Space((*SPACE.parameters, *(choice(key, ["1", "2"]) for key in varied)), "resnet18"))
    begun = opened(wanted)
    once = [] if "data.seed" in varied else ["data.passes=6"]
    for _ in range(3):  # it is stopped and started again
        assert pinned.decided(wanted, begun, Calls([("data.passes=6", "few")])) == once
        begun.ask()
    old = opened(wanted, "old")
    old.remember("plan", [(word, "") for word in once])
    old.ask()
    for _ in range(3):
        assert pinned.decided(wanted, old, Calls([])) == [*once, "loss.class_weights=null"]
        pinned.refuse_other_data(wanted, old, Calls("digest"))
    typed = replace(wanted, base=replace(wanted.base, loss=LossConfig(ce=1, class_weights="auto")))
    assert pinned.decided(typed, old, Calls([])) == once


def test_a_sweep_does_not_go_on_with_other_data(tmp_path):
    wanted = plan(tmp_path)
    wanted = replace(wanted, base=replace(wanted.base, data=DataConfig(root="images")))
    pinned.refuse_other_data(wanted, opened(wanted), Calls("digest"))
    pinned.refuse_other_data(wanted, opened(wanted), Calls("digest"))
    with pytest.raises(ConfigError, match=r"the data have changed since the sweep began.*hydra\.sweep\.dir=DIR"):
        pinned.refuse_other_data(wanted, opened(wanted), Calls("another"))
    study = finished(wanted)
    with pytest.raises(ConfigError, match="the data have changed"):
        pinned.refuse_other_data(wanted, study, Calls("another"))  # repeats are left


@pytest.mark.parametrize(
    ("asked", "state", "over"),
    [({}, "complete", True), ({"repeats": 3}, "complete", False), ({}, "failed", False)],
    ids=["as before", "more repeats", "a repeat failed"],
)
def test_where_repeats_are_left_a_complete_sweep_does_not_go_on_with_other_data(tmp_path, asked, state, over):
    wanted = plan(tmp_path)
    study = finished(wanted)
    study.remember("pixels", "digest")
    names = [f"finalists/{trial}-{seed}" for trial in (0, 1) for seed in (6, 7)]
    for name in ("0", "1", *names):
        encoder = "resnet18" if name.startswith(("0", "finalists/0")) else "resnet34"
        Trial(name, encoder, [], [], state=state if name == names[-1] else "complete").save(tmp_path)
        with Journal(tmp_path / name) as book:
            book.write(fake_train.start(fake_train.config()))
            book.write(fake_train.epoch(1, 0.5))
    replace(module.begun(wanted), state="complete", finalists=["0", "1"], repeats=names).save(tmp_path)
    with nullcontext() if over else pytest.raises(ConfigError, match="the data have changed"):
        pinned.refuse_other_data(plan(tmp_path, **asked), study, Calls("another"))


def test_a_cross_validation_that_goes_on_is_scored_anew(tmp_path):
    wanted = plan(tmp_path)
    first = [CrossValidated([], [], 3)]
    replace(module.begun(wanted), cross_validation=first, finalists=["1"]).save(tmp_path)
    again = module.begun(wanted)
    assert (again.cross_validation, again.finalists) == ([], ["1"])


def test_seconds_are_equal_where_they_alone_end_a_trial(tmp_path):
    wanted = plan(tmp_path)
    assert module.begun(wanted).budget == "epochs"
    timed = replace(wanted, base=replace(wanted.base, train=TrainConfig(time_budget=60)))
    assert module.begun(timed).budget == "seconds"


@pytest.mark.parametrize(
    ("source", "pinned"), [("hub", ["encoder.pretrained=true"]), ("random", ["encoder.pretrained=false"]), ("file", [])]
)
def test_weights_are_pinned(tmp_path, source, pinned):
    argv = plan(tmp_path).argv({"resnet18": source}, [], ["encoder=resnet18"], "resnet18")
    assert argv == ["data=shapes", "encoder=resnet18", *pinned]


def test_pretrained_beside_random_is_refused_with_the_list(tmp_path):
    wanted, mixed = plan(tmp_path), Calls({"resnet18": "hub", "resnet34": "random"})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"1 of 2 encoders .* \(resnet18: hub; resnet34: random\)"):
            pinned.weights(plan(tmp_path), opened(wanted), mixed)
    assert len(mixed.asked) == 2  # the hub may be within reach by now
    allowed = plan(tmp_path, mixed_weights=True)
    assert pinned.weights(allowed, opened(wanted), mixed) == mixed.sources
    all_random = Calls({"resnet18": "random", "resnet34": "random"})
    study = opened(wanted, "other")
    assert pinned.weights(plan(tmp_path), study, all_random) == all_random.sources


def test_what_follows_from_the_data_is_decided_once_for_all_trials(tmp_path):
    wanted = plan(tmp_path)
    wanted = replace(wanted, base=replace(wanted.base, data=DataConfig(root="images")))
    backend = Calls([("data.resize=crop", "all are large"), ("data.passes=6", "they are few")])
    decided = pinned.decided(wanted, opened(wanted), backend)
    assert decided == ["data.resize=crop", "data.passes=6"]
    ((function, asked, varied),) = backend.asked
    assert (function, asked["data"]["root"]) == ("segsweep.training.build:decided_data", "images")
    assert varied == ["encoder", "optim.lr"]
    assert pinned.decided(wanted, opened(wanted), Calls({})) == decided  # the study knows
    assert "data.passes=6" in wanted.argv({}, decided, ["encoder=resnet18"], "resnet18")


@pytest.mark.parametrize("key", ["data.classes", "data", "recipe"])
def test_where_the_data_are_varied_each_trial_decides(tmp_path, key):
    space = Space((*SPACE.parameters, choice(key, ["a", "b"])), "resnet18")
    wanted = plan(tmp_path, space=space)
    wanted = replace(wanted, base=replace(wanted.base, data=DataConfig(root="images")))
    assert pinned.decided(wanted, opened(wanted), Calls([("data.resize=crop", "")])) == []


def test_finalists_get_seeds_that_the_search_did_not_have(tmp_path):
    assert plan(tmp_path, repeats=3).fresh_seeds() == [6, 7, 8]
    varied = Space((*SPACE.parameters, steps("train.seed", 0, 9, 4)), "resnet18")
    assert plan(tmp_path, repeats=2, space=varied).fresh_seeds() == [9, 10]
    chosen = Space((*SPACE.parameters, choice("train.seed", ["7", "6"])), "resnet18")
    assert plan(tmp_path, repeats=2, space=chosen).fresh_seeds() == [8, 9]
    longer = Trial("7", "resnet18", ["train.seed=12"], [])  # of an earlier start, which was asked for more trials
    assert plan(tmp_path, repeats=2, repeat_points="seed").fresh_seeds([longer, Trial("0", "resnet18", [], [])]) == [
        13,
        14,
    ]


def test_finalists_share_the_varied_folds(tmp_path):
    assert plan(tmp_path).folds == []
    varied = Space((*SPACE.parameters, steps("data.fold", 0, 3)), "resnet18")
    assert plan(tmp_path, space=varied).folds == [0, 1, 2]


@pytest.mark.parametrize("setting", [{"sampler": "tpee"}, {"pruner": "x"}, {"budget": "x"}, {"repeats": -1}])
def test_bad_settings_are_refused_before_anything_is_looked_up(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"hydra.sweeper.{next(iter(setting))}="):
        plan(tmp_path, **setting)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:1"])
@pytest.mark.parametrize(
    ("backend", "says"), [("local", r"Drop it, and type hydra\.sweeper\.slots=\[1\]\.$"), ("ray", r"Drop it\.$")]
)
def test_a_gpu_by_its_number_is_a_slots(tmp_path, device, backend, says):
    base = RunConfig(train=TrainConfig(device=device))
    with pytest.raises(ConfigError, match=f"^train.device=cuda:1: .*{says}") if device == "cuda:1" else nullcontext():
        replace(plan(tmp_path, backend=backend), base=base)


def test_sources_say_where_weights_come_from(monkeypatch):
    from segsweep.nn import weights

    names = ["tf_efficientnet_lite0", "test_resnet"]
    assert weights.sources(names) == {"tf_efficientnet_lite0": "package", "test_resnet": "random"}
    assert weights.sources(names, pretrained=False) == dict.fromkeys(names, "random")
    monkeypatch.setattr(weights, "_reachable", lambda url: True)
    monkeypatch.setattr(weights, "create", lambda name, found: (None, "hub"))
    assert weights.sources(["test_resnet"]) == {"test_resnet": "hub"}


def test_a_finite_space_ends_with_a_line_and_goes_on_with_other_seeds(tmp_path, pretended, capsys):
    space = Space((choice("best", ["0.5", "0.25"]), choice("refuses", ["", "2"])), "resnet18")
    settings = {"space": space, "slots": 2, "finalists": 0, "n_trials": 6, "pruner": "none"}
    line = "all 4 points of the space are done: 2 complete, 2 refused, but n_trials=6. For more "
    line += "trials, start a new sweep with a wider range"
    for _ in range(2):
        module.run(plan(tmp_path / "s", **settings))
        assert " ".join(capsys.readouterr().err.split()).count(line) == 1
    module.run(plan(tmp_path / "s", **settings, repeat_points="seed"))
    assert "points of the space are done" not in capsys.readouterr().err
    states = [trial.state for trial in load_all(tmp_path / "s")]
    assert (states.count("complete"), states.count("refused")) == (6, 2)
    seeds = {trial.varied.get("train.seed") for trial in load_all(tmp_path / "s") if trial.state == "complete"}
    assert seeds == {None, "6", "7"}  # the plan's own is 5


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_study_leaves_a_folder_with_runs_as_it_is(tmp_path, pretended):
    """Runs of Hydra's own sweeper are numbered, too; and so are those of a study of another name."""
    basic, ours = tmp_path / "basic", tmp_path / "ours"
    for number in range(4):
        (basic / str(number)).mkdir(parents=True)
        fake_train.main([f"hydra.run.dir={basic / str(number)}", "train.epochs=1"])
    (basic / "0" / "notes.txt").write_text("mine")
    space = Space((interval("best", 0.5, 1.0),), "resnet18")
    module.run(plan(ours, space=space, n_trials=1, finalists=0))
    for folder, name, shown in ((basic, "sweep", "0, 1, 2, ..."), (ours, "second", "0")):
        before = snapshot(folder)
        says = f"{folder}: has runs that study {name} does not know: {shown}. Give another folder with hydra.sweep.dir="
        with pytest.raises(ConfigError, match=re.escape(says)):
            module.run(plan(folder, space=space, n_trials=1, study_name=name))
        assert snapshot(folder) == before


@pytest.mark.parametrize("there", [True, False])
def test_a_refused_sweep_leaves_nothing(tmp_path, there):
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="infinitely many values"):
        module.run(plan(folder, space=Space((interval("best", 0.5, 1.0),), "resnet18"), sampler="grid"))
    assert list(tmp_path.rglob("*")) == ([folder.parent, folder] if there else [])


def test_a_report_that_cannot_be_written_is_told_and_the_sweep_can_be_ended_later(tmp_path, pretended, monkeypatch):
    wanted = plan(tmp_path / "s", space=Space((interval("best", 0.5, 1.0),), "resnet18"), n_trials=1, finalists=0)

    def full(folder):
        raise DiskError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write", full)
        with pytest.raises(DiskError):
            module.run(wanted)
    assert (about.load(wanted.folder).state, about.load(wanted.folder).reason) == ("failed", "no space left")
    module.run(wanted)
    assert about.load(wanted.folder).state == "complete"


def test_a_sweep_from_plan_to_winner_and_again(tmp_path, pretended, capsys):
    space = Space((choice("encoder", ["resnet18", "resnet34"]), interval("best", 0.5, 1.0)), "resnet18")
    wanted = plan(tmp_path / "s", space=space, slots=2, repeats=1, mixed_weights=True)
    first = module.run(wanted)
    text = capsys.readouterr().out
    assert [len(result.runs) for result in first] == [1, 1]
    kept = about.load(wanted.folder)
    assert (kept.state, kept.finalists) == (
        "complete",
        [r.trial.name for r in sorted(first, key=lambda r: -r.trial.iou)],
    )
    finalists = list(load_all(wanted.folder, "finalists"))
    assert all(run.argv[-1] == "train.seed=6" for run in finalists)
    every = [*load_all(wanted.folder), *finalists]
    assert [run.name for run in every if run.run.end.tested] == [first[0].winner.name]  # one, once
    written = {run.name: (wanted.folder / run.name / "metrics.jsonl").read_bytes() for run in every}

    assert [result.iou for result in module.run(wanted)] == [result.iou for result in first]
    assert capsys.readouterr().out == text
    assert {name: (wanted.folder / name / "metrics.jsonl").read_bytes() for name in written} == written
    assert about.load(wanted.folder).id == kept.id
    assert "not finished" not in (wanted.folder / report.PAGE).read_text()


def test_a_repeat_that_failed_is_trained_again_and_without_finalists_none_counts(tmp_path, pretended):
    wanted = plan(tmp_path, Space((interval("best", 0.5, 1.0),), "resnet18"), n_trials=1, finalists=1, repeats=1)
    module.run(wanted)
    (repeat,) = load_all(tmp_path, "finalists")
    replace(repeat, state="failed", reason="no memory").save(tmp_path)
    (again,) = module.run(wanted)
    assert [(run.name, run.state) for run in again.runs] == [(repeat.name, "complete")]
    (alone,) = module.run(replace(wanted, sweeper=replace(wanted.sweeper, finalists=0)))
    (told,) = report.results(tmp_path)
    assert alone.winner.name == told.winner.name == "0"
    assert f"{tmp_path / '0' / BEST}" in (tmp_path / report.PAGE).read_text()


@pytest.mark.parametrize(("n_trials", "failed", "goes_on"), [(4, 0, False), (5, 0, True), (4, 1, True)])
def test_repeats_that_outlived_their_controller_end_where_the_search_goes_on(
    tmp_path, monkeypatch, n_trials, failed, goes_on
):
    finished(plan(tmp_path), failed)
    Trial("finalists/3-6", "resnet18", [], []).save(tmp_path)
    wanted, ended = plan(tmp_path, n_trials=n_trials), []
    backend = SimpleNamespace(capacity=1, adopt=lambda name: name if "/" in name else None, stop=ended.append)
    monkeypatch.setattr(module, "_searched", lambda *_: [])
    monkeypatch.setattr(module, "concluded", lambda *_: "")
    module._run(
        wanted, Study(tmp_path, SPACE, wanted.sweeper), backend, lambda typed, _: typed, module.begun(wanted), None
    )
    assert ended == ["finalists/3-6"] * goes_on
