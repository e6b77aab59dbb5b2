"""A sweep from the command line: what is refused, and one that is run, killed and gone on with."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import train
from segsweep.config.sweeper import SweeperConfig
from segsweep.runs import journal
from segsweep.runs.trial import load_all
from segsweep.sweeping import run as multirun
from segsweep.sweeping import screening
from segsweep.sweeping.space import Space
from segsweep.sweeping.study import grid
from segsweep.tracking.client import connected

ROOT = Path(__file__).parents[2]
SWEEP = ["-m", "hydra/sweeper=optuna"]
TINY = ["encoder=choice(test_resnet,test_efficientnet)", "encoder.pretrained=false", "train.device=cpu"]


@pytest.fixture
def planned(monkeypatch):
    """Sweeps are planned and not run; the plans."""
    plans = []
    monkeypatch.setattr(multirun, "run", plans.append)
    monkeypatch.setattr(screening, "run", lambda plan, asked: plans.append(plan))
    return plans


def plan(planned, *argv):
    assert train.main([*SWEEP, *argv]) == 0
    return planned[-1]


def test_the_default_sweep_is_encoders_with_weights_by_learning_rate(planned):
    found = plan(planned)
    assert found.space.encoders == ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
    assert list(found.space.distributions) == ["encoder", "optim.lr"]
    assert found.fixed == ("train.epochs=5",)
    assert found.sweeper == SweeperConfig()
    assert found.base.experiment == "shapes"


def test_any_key_of_any_group_in_hydras_grammar(planned):
    found = plan(
        planned,
        "encoder=choice(resnet18,convnext_atto)",
        "optim.lr=tag(log,interval(1e-5,1e-2))",
        "augmentation=choice(light,strong)",
        "data.folds=5",
        "data.fold=range(0,5)",
        "decoder.width=choice(auto,[64,32,16,16,16])",
        "encoder.pretrained=choice(true,false)",
    )
    assert found.space.described().keys() == {
        *("encoder", "optim.lr", "augmentation", "data.fold", "decoder.width", "encoder.pretrained")
    }
    assert set(found.fixed) == {"train.epochs=5", "data.folds=5"}
    assert found.defaults["augmentation"] == "standard"
    values = {"decoder.width": "[64,32,16,16,16]", "encoder.pretrained": "False", "encoder": "resnet18"}
    typed = found.space.typed(values)
    assert typed == ["encoder=resnet18", "decoder.width=[64,32,16,16,16]", "encoder.pretrained=False"]


def test_weights_are_named_by_patterns_and_each_is_one_backbone(planned):
    found = plan(planned, "encoder=weights(test_vit,resnet18.fb_s*l*)", "optim.lr=1e-3")
    assert found.space.encoders == (
        *("test_vit.r160_in1k", "resnet18.fb_ssl_yfcc100m_ft_in1k", "resnet18.fb_swsl_ig1b_ft_in1k"),
    )
    kept = plan(planned, "hydra.sweeper.params={encoder:'weights(test_vit*.r160*)',optim.lr:auto}")
    assert [name.partition(".")[0] for name in kept.space.encoders] == ["test_vit", "test_vit2", "test_vit3"]


def test_the_same_weights_by_two_names_are_refused(planned, capsys):
    assert train.main([*SWEEP, "encoder=choice(resnet34,resnet34.a1_in1k)"]) == 2
    assert "resnet34 and resnet34.a1_in1k are the same weights" in capsys.readouterr().err


def test_a_range_has_the_values_that_one_reads(planned):
    (warmup,) = plan(planned, "encoder=resnet18", "optim.lr=1e-3", "optim.warmup=range(0.3,0.6,0.1)").space.parameters
    assert [warmup.typed(cell["optim.warmup"], "") for cell in grid(Space((warmup,), ""))] == [
        *("optim.warmup=0.3", "optim.warmup=0.4", "optim.warmup=0.5")
    ]


def test_an_interval_has_whole_numbers_where_a_key_takes_no_others(planned):
    typed = [
        "train.batch_size=tag(log,interval(4,64))",
        "optim.freeze_epochs=interval(0,3)",
        "optim.warmup=interval(0,0.5)",
    ]
    found = plan(planned, "encoder=resnet18", "optim.lr=interval(1,2)", *typed)
    assert found.space.distributions == {
        "optim.lr": FloatDistribution(1, 2),
        "train.batch_size": IntDistribution(4, 64, log=True),
        "optim.freeze_epochs": IntDistribution(0, 3),
        "optim.warmup": FloatDistribution(0, 0.5),
    }


def test_a_tilde_is_the_home_folder(planned, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan(planned, "hydra.sweep.dir=~/sweeps/x").folder == tmp_path / "sweeps" / "x"


def test_a_plain_value_fixes_a_key_of_params(planned):
    found = plan(planned, "encoder=resnet34", "train.epochs=20")
    assert list(found.space.distributions) == ["optim.lr"]
    assert set(found.fixed) == {"encoder=resnet34", "train.epochs=20"}
    assert found.space.encoders == ("resnet34",)


@pytest.mark.parametrize("word", ["optim.lr=1e-3", "++optim.lr=1e-3", "optim.lr=auto"])
def test_a_searched_rate_is_fixed_by_a_value_however_it_is_typed(planned, word):
    found = plan(planned, word)
    assert list(found.space.distributions) == ["encoder"]
    assert word in found.fixed
    assert found.base.optim.lr == ("auto" if word.endswith("auto") else 1e-3)


def test_a_time_budget_replaces_the_files_epochs(planned):
    found = plan(planned, "train.time_budget=30", "hydra.sweeper.budget=seconds")
    assert found.fixed == ("train.time_budget=30",)
    assert found.base.train.time_budget == 30


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("n_trials=3", "n_trials", 3),
        ("n_jobs=2", "slots", 2),
        ("slots=[0,0,1]", "slots", [0, 0, 1]),
        ("sampler=random", "sampler", "random"),
        ("pruner=none", "pruner", "none"),
        ("storage=x.log", "storage", "x.log"),
        ("study_name=mine", "study_name", "mine"),
        ("finalists=0", "finalists", 0),
        ("timeout=60", "timeout", 60),
        ("params={optim.lr:auto}", "n_trials", 8),
    ],
)
def test_the_sweepers_keys(planned, typed, name, value):
    assert getattr(plan(planned, f"hydra.sweeper.{typed}").sweeper, name) == value


def test_a_grid_is_whole_unless_a_number_is_typed_or_written(planned):
    grid = ["hydra.sweeper.sampler=grid", "optim.lr=choice(1e-3,1e-4)"]
    assert plan(planned, *grid).sweeper.n_trials is None
    assert plan(planned, *grid, "hydra.sweeper.n_trials=4").sweeper.n_trials == 4
    assert train.main(["sweeps=lr_by_encoder", *grid]) == 0
    assert planned[-1].sweeper.n_trials == 24  # of sweeps/lr_by_encoder.yaml


def test_a_question_needs_no_flag(planned):
    assert train.main(["sweeps=lr_by_encoder", "encoder=choice(resnet18,resnet34)"]) == 0
    found = planned[-1]
    assert found.sweeper.n_trials == 24
    assert found.folder.name == "lr_by_encoder-shapes"
    assert found.space.encoders == ("resnet18", "resnet34")
    assert "sweeps=lr_by_encoder" in found.fixed


@pytest.mark.parametrize(
    "argv",
    [
        ["optim.name=sgd", "optim.lr=choice(0.1,0.01)"],  # refused without a rate
        ["data.folds=choice(3,5)", "data.fold=range(0,5)", "optim.lr=1e-3"],  # fold 4 of 5, never of 3
        ["optim.name=choice(sgd,adamw)", "optim.lr=choice(auto,0.01)"],  # the first point itself is refused
        # In the first point two things are wrong that have nothing to do with each other.
        [
            *("optim.name=choice(sgd,adamw)", "optim.lr=choice(auto,0.1)"),
            *("data.foreground=choice(0.5,0)", "data.resize=choice(pad,crop)"),
        ],
        ["train.time_budget=choice(30,60)", "hydra.sweeper.budget=seconds"],
    ],
)
def test_nothing_is_refused_for_what_searched_keys_are_without_their_values(planned, argv):
    plan(planned, "encoder=choice(resnet18,resnet34)", *argv)


def test_what_all_trials_have_is_what_the_first_accepted_point_has(planned):
    found = plan(planned, "encoder=resnet18", "optim.name=choice(sgd,adamw)", "optim.lr=choice(auto,0.01)")
    assert (found.base.optim.name, found.base.optim.lr) != ("sgd", "auto")
    assert found.defaults == {"optim.name": "adamw", "optim.lr": "auto"}


def test_cross_validation_is_every_setting_on_every_fold_and_nobody_is_chosen(planned):
    assert train.main(["sweeps=cv", "data.folds=4", "encoder=choice(resnet18,resnet34)"]) == 0
    found = planned[-1]
    assert found.cross_validates
    assert found.space.size == 8
    assert [cell["data.fold"] for cell in grid(found.space)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (found.sweeper.n_trials, found.sweeper.pruner, found.sweeper.finalists) == (None, "none", 0)
    assert train.main(["sweeps=cv"]) == 0
    assert planned[-1].space.size == 5
    assert train.main(["sweeps=lr_by_encoder", "data.folds=4", "data.fold=range(0,4)"]) == 0
    assert not planned[-1].cross_validates


def test_the_plans_question_is_six_points_in_equal_time(planned):
    assert train.main(["sweeps=plan"]) == 0
    found = planned[-1]
    assert (found.space.size, found.sweeper.budget, found.base.train.time_budget) == (6, "seconds", 300)
    assert found.plans_once
    assert {"data.size", "data.zoom"} == found.space.distributions.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_question_can_be_asked_from_anywhere(planned, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([f"sweeps={path.stem}"]) == 0
    assert planned[-1].space.parameters
    header = path.read_text().partition("defaults:")[0]
    assert all(word in header for word in ("Question:", "Hypothesis:", "Budget:", "Type:", "Result:"))
    assert path.stem in (ROOT / "sweeps" / "README.md").read_text()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["encoder=choice(resnet18,resnt34)"], "encoder=resnt34: not a timm model. Closest: resnet34"),
        (["encoder=resnet18", "optim.lr=1e-3"], "nothing is varied. Type"),
        (["optim.lr=interval(1e-2,1e-5)"], "the first number must be below the second"),
        (["optim.lr=tag(log,interval(0,1e-2))"], "a logarithmic interval must begin above 0"),
        (["optim.warmup=range(0.5,0.1,0.1)"], "optim.warmup=range(0.5,0.1,0.1): the range is empty"),
        (["optim.lrr=choice(1,2)"], "optim.lrr: no such key. Closest: optim.lr"),
        (["augmentation=choice(light,strng)"], "augmentation=strng: no such option. There are: light"),
        (["data.folds=5", "data.fold=range(0,6)"], "data.fold=5: must be in 0..4"),
        (["optim=choice(adamw,sgd)"], "are for adam and adamw. Add optim.lr="),
        (["optim=sgd"], "are for adam and adamw. Add optim.lr="),
        (["+hydra.sweeper.params.optim=sgd"], "are for adam and adamw. Add optim.lr="),
        (["hydra.sweeper.prunr=none"], "hydra.sweeper.prunr: no such key. Closest: hydra.sweeper.pruner"),
        (["hydra.sweeper.pruner=medan"], "hydra.sweeper.pruner=medan: must be one of"),
        (["hydra.sweeper.sampler=tpee"], "hydra.sweeper.sampler=tpee: must be one of"),
        (["hydra/sweeper/sampler=grid"], "hydra/sweeper/sampler=grid: no such group. Type hydra.sweeper.sampler=grid."),
        (["hydra.sweeper.n_trials=many"], "hydra.sweeper.n_trials=many"),
        (["hydra.sweeper.seed_trials=2.5"], "hydra.sweeper.seed_trials=2.5"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be a whole number from 1"),
        (["hydra.sweeper.finalists=-1"], "hydra.sweeper.finalists=-1: must be a whole number from 0"),
        (["hydra.sweeper.seed=-1"], "hydra.sweeper.seed=-1: must be in 0..2**32-1"),
        (["hydra.sweeper.seed=4294967296"], "hydra.sweeper.seed=4294967296: must be in 0..2**32-1"),
        (["hydra.sweeper.timeout=0"], "hydra.sweeper.timeout=0: must be seconds, above 0"),
        (["hydra.sweeper.budget=seconds"], "as train.time_budget=300"),
        (["hydra.sweeper.budget=steps"], "must be one of epochs, seconds"),
        (["hydra.sweeper.direction=minimize"], "val/iou is better when larger"),
        (["hydra.sweeper.slots=[7]", "train.device=cpu"], "no GPU 7; 0 GPUs are visible"),
        (["hydra.sweeper.sampler=grid"], "optim.lr has infinitely many values"),
        (["hydra/sweeper=cv"], "data.fold=auto is each of data.folds: type data.folds=5."),
        (["encoder=resnet18", "optim.lr=choice(auto,0.1)", "optim.name=sgd"], "add optim.lr=0.05"),
        (["train.batch_size=tag(log,range(4,256,4))"], "tag(log,...) is for intervals"),
        (["hydra.sweep.dir="], "hydra.sweep.dir is empty. Type hydra.sweep.dir=DIR."),
        (["optim.momentum=choice(0.9,1.5)"], "optim.momentum=1.5: must be in [0, 1)"),
        (["optim.momentum=interval(0.5,1.5)"], "optim.momentum=1.5: must be in [0, 1)"),
        (["hydra.sweeper.repeat_points=seeds"], "must be one of none, seed. Try hydra.sweeper.repeat_points=seed"),
        (["hydra.sweeper.repeat_points=seed", "train.seed=range(0,3)"], "varies train.seed, and so does the sweep"),
    ],
)
def test_what_is_wrong_is_refused_before_the_first_trial(argv, says, outputs, capsys):
    assert train.main([*SWEEP, *argv]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert not [path for path in outputs.rglob("*") if path.is_file()]


def test_the_stock_plugin_beside_ours_is_named(monkeypatch, capsys):
    from segsweep import compose

    monkeypatch.setattr(compose, "find_spec", lambda name: object() if name == compose.STOCK else None)
    assert train.main([*SWEEP, "hydra.sweeper.nonsense=1"]) == 2
    assert "pip uninstall hydra-optuna-sweeper" in capsys.readouterr().err


@pytest.fixture
def sweep():
    """`sweep(*argv)` starts one; none outlives the test."""
    started = []

    def start(*argv):
        command = [sys.executable, str(ROOT / "train.py"), *SWEEP, *TINY, *argv]
        # Where tests run in the background SIGINT is ignored, and children inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        signal.signal(signal.SIGINT, before)
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def test_a_sweep_is_killed_gone_on_with_and_ends(sweep, pairs, tmp_path, database):
    """From the command line to the report; the controller and a trial are killed on the way."""
    root, folder = pairs(16, ("train", "val", "test")), tmp_path / "study"
    argv = [
        *("data=folder", f"data.root={root}", "data.size=[32,32]", "train.epochs=3", "train.precision=fp32"),
        *("train.batch_size=8", "hydra.sweeper.n_trials=3", "hydra.sweeper.finalists=2", "hydra.sweeper.repeats=1"),
        *("hydra.sweeper.slots=1", f"hydra.sweep.dir={folder}"),
    ]
    first = sweep(*argv)
    while not (folder / "1" / "metrics.jsonl").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    first.kill()
    first.communicate()
    second = sweep(*argv)
    begun = second.stdout.readline()
    third = sweep(*argv)  # a second controller on the same study
    assert third.wait(60) == 2
    assert "in use by a running sweep" in third.communicate()[0]
    text, _ = second.communicate(timeout=240)
    assert second.returncode == 0, begun + text

    study = optuna.load_study(
        study_name="sweep", storage=JournalStorage(JournalFileBackend(str(next(folder.glob("*journal*")))))
    )
    assert len(study.trials) == 3
    assert all(t.state.is_finished() for t in study.trials)
    assert {t.params["encoder"] for t in study.trials[:2]} == {"test_resnet", "test_efficientnet"}
    trials = {trial.name: trial for trial in load_all(folder)}
    for frozen in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        assert frozen.value == trials[str(frozen.number)].iou
        assert [epoch.epoch for epoch in trials[str(frozen.number)].run.epochs] == [1, 2, 3]
    finalists = list(load_all(folder, "finalists"))
    assert sorted(run.encoder for run in finalists) == ["test_efficientnet", "test_resnet"]
    assert all(run.run.start.settings.train.seed == 1 for run in finalists)
    tested = [run for run in [*trials.values(), *finalists] if run.run.end and run.run.end.tested]
    assert len(tested) == 1  # the winner, once
    assert tested[0].iou == max(run.iou for run in finalists)
    assert f"{tested[0].run.end.tested['test/iou']:.4f}, scored once" in text
    assert "<svg" in (folder / "report.html").read_text()

    client = connected(f"sqlite:///{database}")
    runs = client.search_runs([client.get_experiment_by_name(f"{tmp_path.name}-data").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert len(runs) == 1 + 3 + 2
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}

    # The same command again runs nothing and says the same; the best command gives the same IoU.
    again, _ = sweep(*argv).communicate(timeout=120)
    assert "begins" not in again
    assert again[again.index("search\n") :] == text[text.index("search\n") :]
    command = text[text.index("command") :].splitlines()[0].split("python train.py ")[1]
    assert train.main([*shlex.split(command), "tracking=none", f"hydra.run.dir={tmp_path / 'best'}"]) == 0
    summary = json.loads((tmp_path / "best" / "summary.json").read_text())
    assert summary["best/val_iou"] == tested[0].iou


def test_an_interrupted_sweep_says_how_to_go_on(sweep, pairs, tmp_path):
    root, folder = pairs(16), tmp_path / "study"
    argv = [
        *("data=folder", f"data.root={root}", "data.size=[32,32]", "train.epochs=500", "train.batch_size=8"),
        *("hydra.sweeper.slots=1", "tracking=none", f"hydra.sweep.dir={folder}"),
    ]
    process = sweep(*argv)
    while not journal.read(folder / "0").epochs:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing is lost. To continue, type: python train.py -m hydra/sweeper=optuna" in text
    (trial,) = load_all(folder)
    assert trial.state == "running"
    assert trial.run.end.status == "stopped"
