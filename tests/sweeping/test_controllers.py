"""What a controller takes over from those before it; several of them on a server are in test_together.py."""

import fake_train
import pytest
from conftest import no_file_is_longer
from optuna.trial import TrialState, create_trial

from segsweep.errors import DiskError
from segsweep.runs.journal import Journal
from segsweep.runs.trial import Trial
from segsweep.sweeping.controllers import Shared, copied
from segsweep.sweeping.sharing import LAST, OWNER, Claim, Owner


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
