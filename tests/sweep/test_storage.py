"""A study has one controller, in a file, in SQLite and on a server; what is wrong with an address is one line."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from test_run import plan

from segsweep.errors import ConfigError
from segsweep.sweep import run as multirun
from segsweep.sweep.storage import hold


@contextmanager
def controller(storage, study="sweep"):
    """Another process that holds the study: locks on files are a process's."""
    script = f"from segsweep.sweep.storage import hold; x = hold({storage!r}, {study!r}); print(1, flush=True); input()"
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
        with pytest.raises(ConfigError, match=r"study a is run by another controller\. .*study_name=NAME"):
            multirun.run(plan(tmp_path / "other", storage=storage, study_name="a"))
        assert not taken(storage, "b")
        assert not (tmp_path / "shared" / "study.db").exists()  # not even opened
    assert not (tmp_path / "other").exists()
    assert not taken(storage, "a")


@pytest.mark.parametrize("address", ["{}/new/study.log", "sqlite:///{}/new/study.db"])
def test_what_is_refused_leaves_no_study(address, tmp_path, monkeypatch):
    storage = address.format(tmp_path)
    monkeypatch.setattr(multirun, "_weights", refuse_weights)
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
    monkeypatch.setattr(multirun, "_weights", refuse_weights)
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
        ("postgres://me:secret@host/db", "must be one of sqlite, postgresql"),
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


@pytest.fixture
def postgresql():
    """The address of a server of its own."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
    found = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    if not any(found):
        pytest.skip("needs PostgreSQL's initdb")
    programs = Path(next(filter(None, found))).resolve().parent
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for a socket, and closed to another user
        if user:
            shutil.chown(folder, user)

        def call(program, *argv):
            subprocess.run(
                [programs / program, "-D", f"{folder}/db", *argv], user=user, cwd=folder, check=True, **quiet
            )

        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        call("initdb", "-U", "me", "-A", "trust")
        call("pg_ctl", "-w", "-o", f"-k {folder} -c listen_addresses=''", "start")
        try:
            yield f"postgresql+psycopg://me:secret@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")


@pytest.mark.services
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # Optuna's own connections
def test_a_study_in_postgresql_has_one_controller_until_it_ends_or_is_killed(postgresql, tmp_path, monkeypatch):
    with controller(postgresql) as first:
        with pytest.raises(ConfigError, match=r"study sweep is run by another controller\. .*NAME") as refused:
            multirun.run(plan(tmp_path / "sweep", storage=postgresql))
        assert "secret" not in str(refused.value)
        assert not taken(postgresql, "other")
        first.kill()
        first.wait()
        end = time.monotonic() + 10
        while taken(postgresql) and time.monotonic() < end:
            time.sleep(0.05)
    assert not taken(postgresql)
    monkeypatch.setattr(multirun, "_weights", refuse_weights)
    with pytest.raises(ConfigError, match="unfair"):
        multirun.run(plan(tmp_path / "sweep", storage=postgresql))
    assert names(postgresql) == []
    assert not taken(postgresql)
    with pytest.raises(ConfigError, match="Check the server and the address"):
        hold(postgresql.replace("/postgres?", "/missing?"), "sweep")
    assert not (tmp_path / "sweep").exists()
    gc.collect()  # while the warning is let pass
