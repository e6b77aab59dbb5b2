"""A study has one controller, in a file, in SQLite and on a server; what is wrong with an address is one line."""

import subprocess
import sys
from contextlib import contextmanager

import optuna
import pytest
from test_run import plan

from segsweep.errors import ConfigError
from segsweep.sweeping import pinned
from segsweep.sweeping import run as multirun
from segsweep.sweeping.storage import hold, without_password


@contextmanager
def controller(storage, study="sweep"):
    """Another process that holds the study: locks on files are a process's."""
    script = (
        f"from segsweep.sweeping.storage import hold; x = hold({storage!r}, {study!r}); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        yield process
        process.kill()


def taken(storage, study="sweep"):
    """Whether another has it."""
    try:
        locks = hold(storage, study)
    except ConfigError as error:
        assert "another controller" in str(error)
        return True
    for lock in locks:
        lock.release()
    return False


def names(storage):
    return optuna.study.get_all_study_names(storage)


def refuse_weights(*_):
    raise ConfigError("an unfair comparison")


def test_a_study_file_has_one_controller_whatever_the_folder(tmp_path):
    storage = str(tmp_path / "shared" / "study.log")
    with controller(storage), pytest.raises(ConfigError, match="in use by a running sweep"):
        multirun.run(plan(tmp_path / "other", storage=storage))
    assert not (tmp_path / "other").exists()


def test_a_study_in_sqlite_has_one_controller_and_another_study_is_free(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared' / 'study.db'}"
    with controller(storage, "a"):
        with pytest.raises(ConfigError, match=r"study a is in use by another controller\. .*study_name=NAME"):
            multirun.run(plan(tmp_path / "other", storage=storage, study_name="a"))
        assert not taken(storage, "b")
        assert not (tmp_path / "shared" / "study.db").exists()  # not even opened
    assert not (tmp_path / "other").exists()
    assert not taken(storage, "a")


@pytest.mark.parametrize("address", ["{}/new/study.log", "sqlite:///{}/new/study.db"])
def test_what_is_refused_leaves_no_study(address, tmp_path, monkeypatch):
    storage = address.format(tmp_path)
    monkeypatch.setattr(pinned, "weights", refuse_weights)
    for _ in range(2):
        with pytest.raises(ConfigError, match="unfair"):
            multirun.run(plan(tmp_path / "sweep", storage=storage))
    left = [path.name for path in tmp_path.rglob("*")]
    # The database may be another sweep's by now.
    assert left == [] if "sqlite" not in address else (sorted(left) == ["new", "study.db"] and names(storage) == [])


def test_what_was_there_stays(tmp_path, monkeypatch):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=storage, study_name="mine")
    assert multirun._study(plan(tmp_path / "sweep", storage=storage, study_name="begun"), "me").n_trials == 4
    monkeypatch.setattr(pinned, "weights", refuse_weights)
    for study in ("begun", "fresh"):
        with pytest.raises(ConfigError, match="unfair"):
            multirun.run(plan(tmp_path / "sweep", storage=storage, study_name=study))
    assert sorted(names(storage)) == ["begun", "mine"]


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        (
            "oracle://me:secret@host/db",
            r"=oracle://me:\*\*\*@host/db: must be one of sqlite, postgresql, mysql, mariadb",
        ),
        ("postgres://me:secret@host/db", "Try hydra.sweeper.storage=postgresql://."),
        ("postgresql://me:x@secret@host/db", "Write @ in a password as %40"),
        ("postgresql://host:secret/db", "cannot be read as postgresql"),
        ("://secret", "cannot be read as postgresql"),
        ("postgresql+nonsense://me@host/db?password=secret", "nonsense"),
        (
            "postgresql+psycopg://me:secret@host/db",
            r"me:\*\*\*@host/db: its driver .* Type pip install 'psycopg\[binary\]'",
        ),
        ("mysql://me:secret@host/db", r"Type pip install 'pymysql', and mysql\+pymysql://... as the address"),
        ("sqlite://", "must name a file. Type hydra.sweeper.storage=sqlite:///FILE"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
def test_a_wrong_address_is_one_line_without_its_password(storage, said, tmp_path, monkeypatch):
    for driver in ("psycopg", "MySQLdb"):
        monkeypatch.setitem(sys.modules, driver, None)  # not installed
    with pytest.raises(ConfigError, match=said) as refused:
        multirun.run(plan(tmp_path / "sweep", storage=storage))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "sweep").exists()


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "study.db").write_text("no database, but more than a hundred letters" * 4)
    with pytest.raises(ConfigError, match=r"study\.db: file is not a database"):
        multirun.run(plan(tmp_path / "sweep", storage=f"sqlite:///{tmp_path / 'study.db'}"))


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("hydra.sweeper.storage=postgresql://me:x@h/d", 'hydra.sweeper.storage="postgresql://me@h/d"'),
        (
            "hydra.sweeper.storage='postgresql+psycopg://me:x@h/d'",
            'hydra.sweeper.storage="postgresql+psycopg://me@h/d"',
        ),
        ("hydra.sweeper.storage='mysql://h/d?password=x&a=1'", 'hydra.sweeper.storage="mysql://h/d?a=1"'),
        ("hydra.sweeper.storage=://x", "hydra.sweeper.storage=..."),
        ("hydra.sweeper.storage=study.log", "hydra.sweeper.storage=study.log"),
        ("data.root=a://b:c@d", "data.root=a://b:c@d"),
    ],
)
def test_a_password_is_not_kept_with_the_command(word, kept):
    assert without_password(word) == kept
