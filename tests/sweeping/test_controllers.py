"""What a controller takes over from those before it, and leaves; several of them on a server: test_together.py."""

import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import fake_train
import pytest
from conftest import no_file_is_longer
from fake_controller import Backend
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial
from test_run import plan

from segsweep.config.schema import TrackingConfig
from segsweep.errors import ConfigError, DiskError
from segsweep.runs.journal import Journal
from segsweep.runs.stop import Sign
from segsweep.runs.trial import Trial
from segsweep.sweeping import about, run, together
from segsweep.sweeping.backends.slots import Slot
from segsweep.sweeping.controllers import SICK, Shared, SharedSource, copied
from segsweep.sweeping.scheduler import drive
from segsweep.sweeping.sharing import LAST, OWNER, Claim, Owner
from segsweep.sweeping.space import Space, choice, interval
from segsweep.tracking import client

SPACE = Space((choice("encoder", ["resnet18", "resnet34"]), interval("best", 0.5, 1.0)), "resnet18")


def ran(sweep, name, epochs):
    """A run folder of a trial that was killed after some epochs."""
    trial = Trial(name, "resnet18", [], ["train.epochs=9"])
    trial.save(sweep)
    with Journal(sweep / name) as book:
        book.write(fake_train.start(fake_train.config(epochs=9)))
        for number in range(1, epochs + 1):
            book.write(fake_train.epoch(number, 0.1 * number))
    (sweep / name / "last.pt").write_bytes(b"a state" * 1000)


def owner(name, attempt, folder):
    return Owner(name, name, "sweep", attempt, str(folder))


def test_an_attempt_that_died_before_it_had_the_files_costs_no_epoch(tmp_path, capsys):
    ran(tmp_path / "a", "3", 2)
    (tmp_path / "b" / "3.2").mkdir(parents=True)
    before = (owner("second", 2, tmp_path / "b"), owner("first", 1, tmp_path / "a"))
    trial = Trial("3", "resnet18", [], ["train.epochs=9"])
    Shared(None, None, tmp_path / "c").begin(trial, Claim(3, {}, 3, before))
    assert trial.name == "3.3"
    assert [epoch.epoch for epoch in trial.run.epochs] == [1, 2]
    assert (tmp_path / "c" / "3.3" / "last.pt").exists()
    assert "trial 3 of second is taken over and continues after epoch 2" in capsys.readouterr().err


def test_who_ran_a_trial_is_known_however_often_it_changed_hands(tmp_path):
    first, second = owner("first", 1, tmp_path), owner("second", 2, tmp_path)
    attrs = {OWNER: vars(second), LAST: [vars(first)]}
    trial = create_trial(state=TrialState.RUNNING, user_attrs=attrs)
    assert Owner.earlier(trial) == (second, first)
    assert Owner.earlier(create_trial(state=TrialState.RUNNING)) == ()


def test_no_room_for_the_files_is_told_and_a_folder_that_cannot_be_reached_is_not_an_error(tmp_path):
    ran(tmp_path / "a", "3", 2)
    with no_file_is_longer(1000), pytest.raises(DiskError, match=r"last\.pt: File too large"):
        copied(tmp_path / "a" / "3", tmp_path / "b" / "3.2")
    assert copied(tmp_path / "a" / "3", tmp_path / "b" / "3.2")
    assert not copied(tmp_path / "nowhere", tmp_path / "b" / "3.3")


def test_a_folder_that_is_its_own_source_stays_as_it_is(tmp_path):
    ran(tmp_path / "a", "3", 2)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert not copied(tmp_path / "link" / "3", tmp_path / "a" / "3")
    assert (tmp_path / "a" / "3" / "last.pt").exists()


class Here:
    """A server, and its signs of life, for controllers in this process; `silent` are the trials without one."""

    trusts_after = 0.0

    def __init__(self):
        self.storage, self.beats, self.silent, self.held = InMemoryStorage(), self, [], set()

    def alone(self, *_, **__):
        return nullcontext()

    def until_answered(self, ask):
        return ask()

    def hold(self, what):
        self.held.add(what)
        return True

    def is_held(self, what):
        return what in self.held

    def release(self, what):
        self.held.discard(what)

    def add(self, trial_id):
        pass

    def drop(self, trial_id):
        pass

    def _get_stale_trial_ids(self, study_id):
        return self.silent


@pytest.fixture
def joined(monkeypatch):
    """`joined(server, folder, **settings)` is a controller whose trainings only pretend."""
    monkeypatch.setattr(run, "TRAINING", "fake_train")
    monkeypatch.setattr(run, "drive", partial(drive, module="fake_train"))
    backends = []

    def join(server, folder, **settings):
        folder.mkdir(exist_ok=True)
        backends.append(Backend(folder, [Slot(0)], preloaded=["segsweep.runs.journal"], outlive=False))
        asked = plan(folder, SPACE, **({"n_trials": 2, "finalists": 0, "pruner": "none"} | settings))
        return together._Controller(asked, server, server, backends[-1], Sign(folder))

    yield join
    for backend in backends:
        backend.close()


def test_a_controller_that_comes_after_the_end_leaves_the_sweep_as_it_ended(joined, tmp_path, monkeypatch):
    server, states, ended = Here(), [], []
    first = joined(server, tmp_path)
    monkeypatch.setattr(together, "announce", lambda plan, *_: states.append(about.load(plan.folder).state))
    monkeypatch.setattr(together, "sent", lambda *_: ended.append(first.study.remembered("ended")))
    results = first.run()
    assert ended[0]["by"] == asdict(first.study.me)  # all know before MLflow is waited for
    late = joined(server, tmp_path)
    assert [result.winner.name for result in late.run()] == [result.winner.name for result in results]
    assert states == ["running", "complete"]
    assert about.load(tmp_path).state == "complete"


@pytest.mark.parametrize("over", [False, True])
def test_the_run_in_mlflow_of_a_sweep_that_is_over_does_not_run_again(joined, tmp_path, over):
    controller, made, uri = joined(Here(), tmp_path), [], "http://127.0.0.1:9"
    tracked = replace(controller.plan.base, tracking=TrackingConfig("mlflow", uri=uri))
    controller.plan = replace(controller.plan, base=tracked)
    controller.study.remember("mlflow", {"run_id": "theirs", "experiment_id": "1", "view": ""})
    controller.concluded_before = {"by": {}, "time": 0.0} if over else None
    assert controller._parent(lambda since: made.append(since) or "theirs") == "theirs"
    assert made == [0.0 if over else None]  # with a time its run is left as it is
    assert client.read_cursor(tmp_path, uri).run_id == "theirs"


def test_a_leader_that_is_not_needed_any_more_names_another(joined, tmp_path):
    server = Here()
    leader, other = joined(server, tmp_path / "a"), joined(server, tmp_path / "b")
    run.begun(leader.plan).save(tmp_path / "a")
    leader.study.remember("leader", asdict(leader.study.me))
    other.study.claim()
    leader._leave_to_others()
    kept = about.load(tmp_path / "a")
    assert (kept.state, kept.reason.rpartition(" ")[2]) == ("stopped", str(other.study.me))


def test_controllers_run_points_again_alike(joined, tmp_path):
    server = Here()
    study = joined(server, tmp_path).study
    begun = study.remembered("begun")
    del begun["with"]["hydra.sweeper.repeat_points"]  # as 0.1.0, which knew only one way
    study.remember("begun", begun)
    joined(server, tmp_path)
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.repeat_points: none there, seed here"):
        joined(server, tmp_path, repeat_points="seed")


def test_while_a_server_is_not_trusted_nobody_counts_as_dead(joined, tmp_path):
    server = Here()
    first, other = joined(server, tmp_path / "a"), joined(server, tmp_path / "b")
    other.study.claim()
    server.silent = [trial._trial_id for trial in other.study.trials(TrialState.RUNNING)]
    for trusts_after, living in ((math.inf, 1), (0.0, 0)):
        server.trusts_after = trusts_after
        assert first.study.claims.living() == living


class Told(SharedSource):
    """Trials by hand; `told` are those whose end the study has heard of."""

    def __init__(self, shared):
        super().__init__()
        self.shared, self.told = shared, []

    def _tell(self, trial, verdict=None):
        self.told.append(trial.name)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_third_failure_in_a_row_gives_back_what_nobody_was_told_of(tmp_path, elsewhere):
    """Also if that one, by itself, is told: it had failed elsewhere, too."""
    given = {}
    claims = SimpleNamespace(me=owner("here", 1, tmp_path), give_back=given.__setitem__)
    source = Told(Shared(claims, None, tmp_path))
    for number in range(SICK):
        last = number == SICK - 1
        trial = Trial(str(number), "resnet18", [], [], state="failed", reason="no GPU")
        source.trials[trial.name] = trial
        source.shared.claimed[trial.name] = Claim(number, {}, unstarted=("there",) * (last and elsewhere))
        source.over(trial)
        assert bool(source.shared.sick) == last
    assert given == {number: {"here"} for number in range(SICK - elsewhere)}
    assert list(source.trials) == source.told == [str(SICK - 1)] * elsewhere
    assert source.shared.held_back == []
