"""Several trials on one GPU: how many, and what happens when their memory does not suffice. No GPU is there."""

from collections import Counter
from dataclasses import asdict, replace

import pytest

import train
from segsweep.compose import configuration
from segsweep.config.schema import RunConfig, TrainConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.runs.records import GpuNeed
from segsweep.runs.trial import load_all
from segsweep.sweeping import finalists, run
from segsweep.sweeping.backends.local import LocalBackend
from segsweep.sweeping.backends.slots import PACKED, slots
from segsweep.sweeping.live import line
from segsweep.sweeping.packing import GIB, MOST, per_gpu
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.scheduler import Search, TrialSource, drive
from segsweep.sweeping.space import Space, choice, interval, steps
from segsweep.sweeping.study import Study
from segsweep.training.estimate import needs
from segsweep.world import NEIGHBOURS

FAKE = "fake_train"
SMALL = GpuNeed(memory=4 * GIB, total=140 * GIB, busy=0.1)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


def backend(folder, per_gpu):
    return LocalBackend(folder, slots(PACKED, per_gpu=per_gpu), preloaded=["segsweep.runs.journal"])


def search(folder, seconds=0.05, crowded=()):
    """Eight trials; the crowded ones find too little memory when they first begin."""
    space = Space((interval("best", 0.0, 1.0),), "resnet18")
    sweeper = SweeperConfig(n_trials=8, pruner="none")
    seeds = [{"best": i / 8} for i in range(8)]

    def argv(typed, encoder):
        more = ["crowded=yes"] if any(f"best={i / 8:g}" in typed for i in crowded) else []
        return [f"seconds={seconds}", *typed, *more]

    return Search(Study(folder, space, sweeper, seeds=seeds), argv, sweeper)


def most_at_once(folder, part="", neighbours=True):
    """Of each GPU, the most trials that ran on it at the same time, by their journals; they knew of `neighbours`."""
    moments = []
    for trial in load_all(folder, part):
        environment = (folder / trial.name / "environment").read_text()  # which variables, not their values
        assert "CUDA_VISIBLE_DEVICES" in environment
        assert (NEIGHBOURS in environment) == neighbours
        moments += [(trial.run.records[0].time, 1, trial.slot), (trial.run.end.time, -1, trial.slot)]
    now, most = Counter(), Counter()
    for _, step, slot in sorted(moments):
        now[slot] += step
        most[slot] = max(most[slot], now[slot])
    return most


@pytest.mark.parametrize(
    ("changes", "gpus", "cores", "trials", "expected", "why"),
    (
        ({}, 1, 64, 100, MOST, "the most that is tried"),
        ({"memory": 50 * GIB}, 1, 64, 100, 2, "one takes up to 50.0 of 140 GiB"),
        ({"memory": 139 * GIB}, 1, 64, 100, 1, "one takes up to 139.0 of 140 GiB"),
        ({"busy": 0.3}, 1, 64, 100, 3, "one keeps the GPU busy for up to 30 % of the time"),
        ({"busy": 1.0}, 1, 64, 100, 1, "one keeps the GPU busy for up to 100 % of the time"),
        ({}, 2, 16, 100, 4, "each needs 2 of 16 cores"),
        ({}, 8, 4, 100, 1, "each needs 2 of 4 cores"),
        ({}, 2, 64, 5, 3, "the sweep has 5"),
    ),
)
def test_the_scarcest_thing_decides_how_many_share_a_gpu(changes, gpus, cores, trials, expected, why):
    needs = [SMALL, replace(SMALL, **changes)]
    assert per_gpu(needs, gpus, cores, trials) == (expected, why)
    assert per_gpu(needs[::-1], gpus, cores, trials) == (expected, why)


@pytest.mark.parametrize("seconds", (0.4, pytest.param(3.75, marks=pytest.mark.services)))  # of each of four epochs
def test_eight_trainings_packed_on_two_gpus_and_finalists_likewise(tmp_path, two_gpus, seconds):
    packed = backend(tmp_path, 2)
    assert packed.capacity == packed.free() == 4
    source = search(tmp_path, seconds)
    events = list(drive(source, packed, tmp_path, FAKE))
    assert [event.kind for event in events].count("complete") == 8
    assert most_at_once(tmp_path) == {"GPU 0": 2, "GPU 1": 2}
    records = [record for trial in source.trials.values() for record in trial.run.records]
    alone = 8 / 2 * 4 * seconds  # what eight trainings would take, one on each of two GPUs
    assert max(record.time for record in records) - min(record.time for record in records) < 0.8 * alone
    repeats = [again for trial in load_all(tmp_path) for again in finalists.repeats(trial, [8])]
    assert {event.kind for event in drive(TrialSource(repeats), packed, tmp_path, FAKE)} == {
        "started",
        "epoch",
        "complete",
    }
    assert most_at_once(tmp_path, finalists.FOLDER) == {"GPU 0": 2, "GPU 1": 2}


def test_a_trial_alone_on_its_gpu_has_no_neighbours(tmp_path, two_gpus):
    list(drive(search(tmp_path), backend(tmp_path, 1), tmp_path, FAKE))
    assert most_at_once(tmp_path, neighbours=False) == {"GPU 0": 1, "GPU 1": 1}


def test_too_little_memory_thins_out_the_gpus_and_nothing_is_lost(tmp_path, two_gpus):
    packed = backend(tmp_path, 3)
    source = search(tmp_path, crowded=(2,))
    events = list(drive(source, packed, tmp_path, FAKE))
    (thinned,) = (event for event in events if event.kind == "thinned")
    assert line(thinned) == "trial   2  out of memory with 3 trials on its GPU: 2 from now on"
    assert packed.capacity == 4
    trial = source.trials["2"]
    assert [event.kind for event in events if event.trial is trial and event.kind != "epoch"] == [
        "started",
        "thinned",
        "continued",
        "complete",
    ]
    assert (trial.halvings, trial.run.start.execution.micro_batch) == (0, 16)
    assert {trial.state for trial in source.trials.values()} == {"complete"}
    assert len(source.trials) == 8


def test_trials_that_fail_together_thin_out_once(tmp_path, two_gpus):
    packed = backend(tmp_path, 3)
    events = list(drive(search(tmp_path, crowded=(0, 1, 2, 3)), packed, tmp_path, FAKE))
    assert [event.kind for event in events].count("thinned") == 4
    assert packed.capacity == 4


def test_alone_on_its_gpu_a_trial_halves_its_micro_batch(tmp_path, two_gpus):
    typed = LocalBackend(tmp_path, slots([0, 0, 1]), preloaded=["segsweep.runs.journal"])
    source = search(tmp_path, crowded=(2,))  # the third slot's
    events = list(drive(source, typed, tmp_path, FAKE))
    assert [event.kind for event in events if event.trial.name == "2" and event.kind != "epoch"][:2] == [
        "started",
        "halved",
    ]
    assert typed.capacity == 3


def plan(folder, slots=PACKED, **train):
    space = Space((choice("encoder", ["resnet18", "resnet34"]), interval("optim.lr", 1e-4, 1e-2)), "resnet18")
    return Plan(
        folder, "", space, {}, (), RunConfig(train=TrainConfig(**train)), SweeperConfig(slots=slots, n_trials=20)
    )


def packed(plan):
    return run.packed(plan, run.backend_of(plan), plan.space.encoders, plan.sweeper.n_trials)


def test_what_trainings_need_is_measured_and_said(tmp_path, two_gpus, monkeypatch, capsys):
    asked = []

    def call(self, function, config, encoders):
        asked.append((function, encoders))
        return {name: asdict(replace(SMALL, busy=0.3)) for name in encoders}

    monkeypatch.setattr(LocalBackend, "call", call)
    monkeypatch.setattr(run, "cores", lambda: 64)
    assert packed(plan(tmp_path)).capacity == 6
    assert asked == [("segsweep.training.estimate:needs", ["resnet34", "resnet18"])]
    said = capsys.readouterr().err
    assert "packed: 3 trials on each GPU, not more: one keeps the GPU busy for up to 30 % of the time" in said


def test_all_points_of_a_grid_are_packed(tmp_path, two_gpus, monkeypatch, capsys):
    monkeypatch.setattr(LocalBackend, "call", lambda *_: {"resnet18": asdict(replace(SMALL, busy=0.2))})
    monkeypatch.setattr(run, "cores", lambda: 64)
    space = Space((choice("train.ema", ["0", "0.9", "0.99"]), steps("data.fold", 0, 5, 1)), "resnet18")
    grid = replace(plan(tmp_path), space=space, sweeper=SweeperConfig(slots=PACKED, sampler="grid"))
    assert run.backend_for(grid).capacity == 10
    assert "packed: 5 trials on each GPU" in capsys.readouterr().err


def test_where_seconds_are_the_budget_a_trial_has_its_gpu_to_itself(tmp_path, two_gpus, capsys):
    assert packed(plan(tmp_path, time_budget=60.0)).capacity == 2
    assert "packed: 1 trial on each GPU, not more: train.time_budget counts seconds" in capsys.readouterr().err


def test_without_a_gpu_nothing_can_be_packed(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"there is no GPU to share. Try hydra.sweeper.slots=auto."):
        packed(plan(tmp_path))


@pytest.mark.gpu
def test_what_a_training_needs_of_a_gpu():
    asked = configuration(["data=shapes", "data.count=60", "encoder.pretrained=false", "train.epochs=1"])
    (need,) = needs(asdict(asked), ["resnet18"]).values()
    assert 0 < need["memory"] < need["total"]
    assert 0 < need["busy"] <= 1


@pytest.mark.gpu
def test_real_trainings_share_a_gpu(tmp_path, capfd):
    data = ("data=shapes", "data.count=60", "data.size=64", "encoder=test_resnet", "encoder.pretrained=false")
    asked = ("n_trials=4", "slots=packed", "pruner=none", "finalists=0")
    sweep = ["-m", "hydra/sweeper=optuna", *(f"hydra.sweeper.{word}" for word in asked)]
    end = ("train.epochs=2", "tracking=none", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert train.main([*sweep, *data, *end]) == 0
    assert [trial.state for trial in load_all(tmp_path / "sweep")] == ["complete"] * 4
    assert "on each GPU, not more: " in capfd.readouterr().err
