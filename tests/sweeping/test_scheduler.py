"""The loop, with trainings that only pretend: filled slots, pruning, failures, restarts after kills."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import Asked, ConfigError, DataError, DiskError, SweepError
from segsweep.runs import journal, locks, stop
from segsweep.runs.trial import Trial, load, load_all
from segsweep.sweeping.backends.local import CLAIM, LocalBackend
from segsweep.sweeping.backends.slots import Slot
from segsweep.sweeping.scheduler import Search, TrialSource, drive, taken_up
from segsweep.sweeping.space import Space, choice, interval, steps
from segsweep.sweeping.study import Study

FAKE = "fake_train"
SPACE = Space((choice("encoder", ["resnet18", "resnet34"]), interval("best", 0.0, 1.0)), "resnet18")


def local(folder, slots=2):
    return LocalBackend(folder, [Slot(i) for i in range(slots)], preloaded=["segsweep.runs.journal"])


def began(folder, slots=2, argv=(), seeds=(), space=SPACE, owner="", **settings):
    """A search over fake trainings, as `segsweep.sweeping.run` sets one up."""
    own = {name: settings.pop(name) for name in ("clock", "seed") if name in settings}
    sweeper = SweeperConfig(**({"n_trials": 6} | settings))
    study = Study(folder, space, sweeper, seeds=seeds, owner=owner)
    search = Search(study, lambda typed, encoder: [*argv, *typed], sweeper, **own)
    search.restore({trial.name: trial for trial in load_all(folder)})
    return study, search, local(folder, slots)


def ran(folder, **settings):
    study, search, backend = began(folder, **settings)
    return study, search, list(drive(search, backend, folder, FAKE))


def states(study):
    return [trial.state.name for trial in study.trials()]


def test_a_search_ends_with_its_target_and_every_value_is_the_journals(tmp_path):
    study, search, events = ran(tmp_path, pruner="none")
    assert states(study) == ["COMPLETE"] * 6
    for trial in study.trials():
        assert trial.value == journal.read(tmp_path / str(trial.number)).best.iou
        assert trial.intermediate_values.keys() == {1, 2, 3, 4}
    assert [event.kind for event in events].count("started") == 6
    assert all(trial.state == "complete" for trial in search.trials.values())


def test_a_free_slot_takes_the_next_trial_at_once(tmp_path):
    """One long trial does not keep the other slot waiting."""
    seeds = [{"encoder": "resnet18", "best": 0.5 + i / 100} for i in range(6)]
    study, search, backend = began(tmp_path, seeds=seeds, pruner="none")
    made = search._argv
    search._argv = lambda typed, encoder: [*made(typed, encoder), *(["seconds=0.5"] if "best=0.5" in typed else [])]
    order = [event.trial.name for event in drive(search, backend, tmp_path, FAKE) if event.kind == "complete"]
    assert order[-1] == "0"
    assert states(study) == ["COMPLETE"] * 6


def test_a_hopeless_trial_is_pruned_and_its_process_gone(tmp_path):
    seeds = [{"encoder": "resnet18", "best": best} for best in (0.9, 0.91, 0.1)]
    study, search, events = ran(tmp_path, n_trials=3, slots=1, seeds=seeds, argv=["train.epochs=10", "seconds=0.1"])
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED"]
    pruned = study.trials()[2]
    assert "of resnet18.a1_in1k" in pruned.user_attrs["pruned"]
    assert 0 < pruned.user_attrs["estimate"] < 0.5
    assert load(tmp_path, "2").state == "pruned"
    assert len(search.trials["2"].run.epochs) < 10
    assert not locks.holder(tmp_path / "2" / CLAIM)
    assert events[-1].kind == "pruned"


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_optunas_pruners_are_asked(tmp_path, pruner):
    from segsweep.sweeping.study import optuna_pruner

    seeds = [{"encoder": "resnet18", "best": 0.9}] * 6 + [{"encoder": "resnet18", "best": 0.1}]
    seeds = [seed | {"best": seed["best"] - i / 1000} for i, seed in enumerate(seeds)]
    sweeper = SweeperConfig(n_trials=7, pruner=pruner)
    study = Study(tmp_path, SPACE, sweeper, seeds=seeds, pruner=optuna_pruner(pruner, 10))
    search = Search(study, lambda typed, encoder: ["train.epochs=10", "seconds=0.05", *typed], sweeper)
    list(drive(search, local(tmp_path, 1), tmp_path, FAKE))
    found = states(study)
    assert len(found) == 7
    assert set(found) <= {"COMPLETE", "PRUNED"}
    if pruner == "median":
        assert found[-1] == "PRUNED"
        assert study.trials()[-1].user_attrs["pruned"].startswith("median: ")


def test_a_full_disk_stops_a_sweep_and_costs_it_no_trial(tmp_path):
    study, search, backend = began(tmp_path, argv=["full=3"], pruner="none", n_trials=4)
    with pytest.raises(DiskError, match=r"last\.pt: No space left on device"):
        list(drive(search, backend, tmp_path, FAKE))
    assert set(states(study)) == {"RUNNING"}
    study, search, backend = began(tmp_path, argv=[], pruner="none", n_trials=4)
    events = list(drive(search, backend, tmp_path, FAKE))
    assert "continued" in [event.kind for event in events]
    assert states(study) == ["COMPLETE"] * 4
    for trial in study.trials():
        assert [epoch.epoch for epoch in journal.read(tmp_path / str(trial.number)).epochs] == [1, 2, 3, 4]


def test_a_sweep_that_is_asked_to_stop_lets_each_trial_finish_its_epoch(tmp_path):
    stop.ask(tmp_path)  # an earlier request is over
    study, search, backend = began(tmp_path, argv=["seconds=0.2", "train.epochs=20"], pruner="none", n_trials=4)
    with pytest.raises(Asked):
        for event in drive(search, backend, tmp_path, FAKE, stop.Sign(tmp_path)):
            if event.kind == "epoch":
                stop.ask(tmp_path)
    assert states(study) == ["RUNNING"] * 2
    epochs = [len(journal.read(tmp_path / str(i)).epochs) for i in range(2)]
    assert all(0 < done < 20 for done in epochs)
    assert [journal.read(tmp_path / str(i)).end.reason for i in range(2)] == ["asked to (segsweep stop)"] * 2
    study, search, backend = began(tmp_path, pruner="none", n_trials=2)
    events = list(drive(search, backend, tmp_path, FAKE, stop.Sign(tmp_path)))
    assert [event.kind for event in events].count("continued") == 2
    assert states(study) == ["COMPLETE"] * 2


def test_a_trial_whose_files_are_gone_with_its_host_begins_again(tmp_path):
    class Fragile(LocalBackend):
        """Tells once that a job is complete, and never brings its model."""

        keeps, gone = False, False

        def fetch(self, job):
            if self.gone:
                return True
            self.gone = True
            (self.folder / job / "best.safetensors").unlink()
            return False

    study, search, _ = began(tmp_path, pruner="none", n_trials=2)
    backend = Fragile(tmp_path, [Slot(0)], preloaded=["segsweep.runs.journal"])
    events = [(event.kind, event.trial.name) for event in drive(search, backend, tmp_path, FAKE)]
    assert events.count(("started", "0")) == 2
    assert states(study) == ["COMPLETE"] * 2
    for name in ("0", "1"):
        assert len(journal.read(tmp_path / name).epochs) == 4
        assert (tmp_path / name / "best.safetensors").exists()


def test_failures_do_not_count_and_are_told(tmp_path):
    seeds = [{"encoder": "resnet18", "best": 0.5}, {"encoder": "resnet34", "best": 0.25}]
    study, search, backend = began(tmp_path, n_trials=3, seeds=seeds, pruner="none")
    made = search._argv
    search._argv = lambda typed, encoder: [*made(typed, encoder), *(["nan=2"] if "best=0.5" in typed else [])]
    list(drive(search, backend, tmp_path, FAKE))
    assert states(study).count("FAIL") == 1
    assert states(study).count("COMPLETE") == 3
    assert study.trials(TrialState.FAIL)[0].user_attrs["failed"] == "NaN in the loss."


def test_a_cell_of_a_grid_that_failed_is_not_run_again(tmp_path):
    cells = Space((choice("best", ["0.5", "0.25", "0.75"]), choice("nan", ["2", "9"])), "resnet18")
    for _ in range(2):
        study, search, _ = ran(tmp_path, n_trials=None, space=cells, sampler="grid", pruner="none")
        assert sorted(states(study)) == ["COMPLETE"] * 3 + ["FAIL"] * 3
        assert len({tuple(trial.params.values()) for trial in study.trials()}) == 6
    assert {trial.values["nan"] for trial in search.trials.values() if trial.state == "failed"} == {"2"}


def test_a_grid_may_follow_another_sampler(tmp_path):
    cells = Space((choice("best", ["0.5", "0.25", "0.75"]),), "resnet18")
    ran(tmp_path, n_trials=1, space=cells, sampler="random")
    study, _, _ = ran(tmp_path, n_trials=None, space=cells, sampler="grid", pruner="none")
    assert sorted(trial.params["best"] for trial in study.trials()) == ["0.25", "0.5", "0.75"]


def test_too_many_failures_end_the_sweep_and_leave_nothing_running(tmp_path):
    study, search, backend = began(tmp_path, argv=["nan=1"], max_failures=3)
    with pytest.raises(SweepError, match=r"3 trials failed, as many as .*max_failures allows. The last: NaN"):
        list(drive(search, backend, tmp_path, FAKE))
    assert states(study).count("FAIL") == 3
    assert not any(locks.holder(tmp_path / str(i) / CLAIM) for i in range(4))


PAIRS = Space((choice("best", ["0.5", "0.25", "0.75"]), choice("refuses", ["", "2"])), "resnet18")


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_values_that_do_not_go_together_end_their_trials_alone(tmp_path, sampler):
    """Three of six points are refused, more than failures may be; a restart knows them and runs nothing again."""
    for started in (6, 0):
        study, search, events = ran(
            tmp_path, n_trials=10, space=PAIRS, sampler=sampler, pruner="none", max_failures=1, slots=2
        )
        assert [event.kind for event in events].count("started") == started
        assert sorted(trial.state for trial in search.trials.values()) == ["complete"] * 3 + ["refused"] * 3
        refused = [trial for trial in search.trials.values() if trial.state == "refused"]
        assert {trial.reason for trial in refused} == {"masks: no such folder."}
        assert {trial.values["refuses"] for trial in refused} == {"2"}
    assert study.exhausted


def test_where_everything_is_refused_the_sweep_says_so(tmp_path):
    for space, number in ((SPACE, 10), (Space((choice("best", ["0.5", "0.25"]),), "resnet18"), 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, search, backend = began(folder, n_trials=4, space=space, argv=["refuses=2"])
        with pytest.raises(SweepError, match=rf"{number} trials were refused and 0 were not.*The last: masks: no such"):
            list(drive(search, backend, folder, FAKE))


def test_data_that_only_some_trials_have_end_those_alone(tmp_path):
    """What is wrong with fold 1 is not wrong with the others."""
    space = Space((steps("data.fold", 0, 3),), "resnet18")
    _, search, backend = began(tmp_path, n_trials=None, space=space, sampler="grid", pruner="none")
    made = search._argv
    search._argv = lambda typed, encoder: [*made(typed, encoder), *(["refuses=3"] if "data.fold=1" in typed else [])]
    list(drive(search, backend, tmp_path, FAKE))
    found = {trial.varied["data.fold"]: trial.state for trial in search.trials.values()}
    assert found == {"0": "complete", "1": "refused", "2": "complete"}


def test_points_that_run_again_have_the_next_seed(tmp_path):
    space = Space((choice("best", ["0.5", "0.25"]),), "resnet18")
    for n_trials in (3, 5):
        study, search, _ = ran(tmp_path, n_trials=n_trials, space=space, pruner="none", repeat_points="seed", seed=7)
    seeds = {"0.5": [], "0.25": []}
    for trial in search.trials.values():
        seeds[trial.varied["best"]].append(trial.varied.get("train.seed"))
    assert sorted(seeds.values(), key=len) == [[None, "8"], [None, "8", "9"]]
    assert states(study) == ["COMPLETE"] * 5
    _, again, _ = began(tmp_path, n_trials=2, space=space, seed=7)  # without repeats from now on
    assert [trial.typed for trial in again.trials.values()] == [trial.typed for trial in search.trials.values()]


def test_out_of_memory_begins_again_with_half_the_micro_batch(tmp_path):
    study, _, events = ran(tmp_path, n_trials=1, slots=1, argv=["fits=4"])
    assert [event.kind for event in events if event.kind != "epoch"] == [
        "started",
        "halved",
        "started",
        "halved",
        "started",
        "complete",
    ]
    trial = load(tmp_path, "0")
    assert trial.halvings == 2
    assert trial.argv[-2:] == ["train.batch_size=16", "train.grad_accum=4"]
    assert trial.run.start.execution.micro_batch == 4
    assert states(study) == ["COMPLETE"]


def test_memory_that_is_too_small_for_one_image_is_a_failure(tmp_path):
    study, search, backend = began(tmp_path, n_trials=1, slots=1, argv=["fits=0"], max_failures=1)
    with pytest.raises(SweepError):
        list(drive(search, backend, tmp_path, FAKE))
    failed = study.trials(TrialState.FAIL)[0]
    assert failed.user_attrs["failed"] == "the memory is too small for train.batch_size=16."


def test_a_trial_that_dies_goes_on_until_it_dies_too_often(tmp_path):
    _, search, backend = began(tmp_path, n_trials=1, slots=1, argv=["dies=3"], max_failures=1)
    events = []
    with pytest.raises(SweepError, match=r"died 3 times in epoch 3, signal 9 \(SIGKILL\): most likely the system's"):
        for event in drive(search, backend, tmp_path, FAKE):
            events.append((event.kind, event.words.partition(":")[0]))
    assert [event for event in events if event[0] != "epoch"] == [
        *(("started", ""), ("continued", "signal 9 (SIGKILL)"), ("continued", "signal 9 (SIGKILL)"))
    ]
    assert len(journal.read(tmp_path / "0").epochs) == 2


def test_bad_data_end_the_sweep_at_once(tmp_path):
    _, search, backend = began(tmp_path, argv=["refuses=3"])
    with pytest.raises(DataError, match=r"^masks: no such folder\.$"):
        list(drive(search, backend, tmp_path, FAKE))


def test_the_timeout_lets_running_trials_finish(tmp_path):
    clock = iter([0.0, *[1.0] * 2, *[100.0] * 1000])
    study, _, _ = ran(tmp_path, n_trials=50, slots=2, timeout=50.0, clock=lambda: next(clock))
    assert states(study) == ["COMPLETE"] * 2


def test_finalists_are_run_to_their_ends(tmp_path):
    trials = [Trial(f"finalists/{i}-1", "a", [], [f"best={0.1 * i}"]) for i in range(3)]
    trials[1].argv.append("nan=1")
    source = TrialSource(trials)
    backend = local(tmp_path)
    list(drive(source, backend, tmp_path, FAKE))
    assert [trial.state for trial in trials] == ["complete", "failed", "complete"]
    assert [t.state for t in load_all(tmp_path, "finalists")] == ["complete", "failed", "complete"]


def test_a_folder_does_not_say_what_is_run(tmp_path):
    planned = Trial("0", "a", ["best=0.5"], ["x=1", "best=0.5"])
    kept = Trial("0", "b", ["best=9"], ["+hydra.callbacks.d={_target_: x}", "best=9", "train.batch_size=4"])
    assert taken_up(planned, kept).argv == planned.argv
    kept.halvings, kept.state = 1, "failed"
    kept.argv.append("train.grad_accum=2,hydra.x=1")
    again = taken_up(planned, kept)
    assert (again.argv, again.state, again.encoder) == (["x=1", "best=0.5", "train.batch_size=4"], "failed", "a")


def test_values_that_the_space_does_not_have_are_refused(tmp_path):
    _, search, _ = began(tmp_path)
    search.next()
    text = (tmp_path / "optuna-journal.log").read_text()
    number = re.compile(r'("param_name": ?"best", ?"param_value_internal": ?)[\d.e-]+')
    assert number.search(text)
    (tmp_path / "optuna-journal.log").write_text(number.sub(r"\g<1>7.5", text))
    with pytest.raises(ConfigError, match=r"best=7\.5: not one of the values that the sweep varies"):
        began(tmp_path)
    study, search, _ = began(tmp_path)  # once said, it is over with that trial
    assert states(study) == ["FAIL"]
    study.ask = lambda ask=study.ask: (ask()[0], {"encoder": "resnet18", "best": 7.5})
    with pytest.raises(ConfigError, match=r"best=7\.5: not one of the values that the sweep varies"):
        search.next()
    assert states(study) == ["FAIL", "FAIL"]


def test_a_running_trial_of_another_sweep_is_left_alone(tmp_path):
    study, search, _ = began(tmp_path, owner="ours")
    search.next()
    assert study.trials()[0].user_attrs["owner"]["sweep"] == "ours"
    assert [t.name for t in began(tmp_path, owner="ours")[1].in_state("running")] == ["0"]
    assert began(tmp_path, owner="theirs")[1].in_state("running") == []
    nobodys = tmp_path / "nobodys"
    nobodys.mkdir()
    began(nobodys)[1].next()
    assert len(began(nobodys, owner="ours")[1].in_state("running")) == 1


CONTROLLER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_scheduler import FAKE, began, drive
folder = Path(sys.argv[1])
from segsweep.runs.locks import FolderLock
lock = FolderLock(folder, "sweep")
study, search, backend = began(folder, n_trials=8, slots=3, argv=["seconds=0.05", "train.epochs=6"], pruner="none")
for trial in search.trials.values():
    if trial.state != "running" and (job := backend.adopt(trial.name)):
        backend.stop(job)
for event in drive(search, backend, folder, FAKE):
    pass
"""


def test_kills_lose_no_finished_trial_and_run_none_twice(tmp_path):
    """The controller, trials and both are killed at random moments; `make soak` does it for as long as one likes."""
    rng = random.Random(0)
    command = [sys.executable, "-c", CONTROLLER, str(tmp_path), str(Path(__file__).parent)]
    finished = {}
    for round in range(8):
        controller = subprocess.Popen(command)
        time.sleep(rng.uniform(0.7, 1.6))
        if round % 3 != 0:
            for path in list(tmp_path.glob(f"*/{CLAIM}"))[-2:]:
                kill(path)
        if round % 3 != 1:
            controller.kill()
        else:
            controller.wait(60)
        controller.wait()
        for number, value in values(tmp_path).items():
            assert finished.setdefault(number, value) == value
        assert finished.keys() <= values(tmp_path).keys()
    subprocess.run(command, check=True, timeout=60)
    study = Study(tmp_path, SPACE, SweeperConfig())
    assert states(study) == ["COMPLETE"] * 8
    for trial in study.trials():
        run = journal.read(tmp_path / str(trial.number))
        assert [epoch.epoch for epoch in run.epochs] == list(range(1, 7))  # none lost, none twice
        assert run.end.status == "complete"


def kill(claim):
    try:
        if pid := locks.holder(claim):
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def values(folder):
    if not list(folder.glob("*journal*")):
        return {}
    copy = folder.parent / "copy"
    copy.mkdir(exist_ok=True)
    for path in folder.glob("optuna-journal.log"):
        shutil.copy(path, copy / path.name)
    study = Study(copy, SPACE, SweeperConfig())
    return {trial.number: trial.value for trial in study.trials(TrialState.COMPLETE)}
