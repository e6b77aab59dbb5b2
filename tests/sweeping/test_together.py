"""Several controllers, one study on a PostgreSQL server: each trial once, whoever dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from segsweep.runs import journal
from segsweep.runs.trial import load_all
from segsweep.sweeping import about, report
from segsweep.sweeping.storage import number
from segsweep.tracking.server import server as serving

pytestmark = pytest.mark.services
HERE = Path(__file__).parent


class Controllers:
    """Processes, each with a folder of its own; `said` is what one printed."""

    def __init__(self, place, address):
        self.place, self.address, self.running = place, address, []

    def start(self, name="shared", **settings):
        number = len(self.running)
        output = (self.place / f"{number}.log").open("wb")
        script = [sys.executable, str(HERE / "fake_controller.py"), self.address, str(self.place / name)]
        environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}:{HERE.parents[1]}"}
        process = subprocess.Popen(
            [*script, json.dumps(settings)], stdout=output, stderr=output, env=environment, cwd=self.place
        )
        output.close()
        self.running.append(process)
        return process

    def said(self, process):
        return (self.place / f"{self.running.index(process)}.log").read_text()

    def wait(self, *processes, seconds=90):
        """Exit codes, when all have ended."""
        until = time.monotonic() + seconds
        for process in processes or self.running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(self.said(process)) from None
        return [process.returncode for process in processes or self.running]

    def until(self, happened, seconds=60):
        until = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < until, [self.said(process) for process in self.running]
            time.sleep(0.05)

    def lose(self, folder):
        """Remove a killed controller's folder; a training of its that just ends may still write there."""

        def gone():
            shutil.rmtree(folder, ignore_errors=True)
            return not folder.exists()

        self.until(gone)


@pytest.fixture
def controllers(tmp_path, postgresql):
    made = Controllers(tmp_path, postgresql)
    yield made
    for process in made.running:
        process.kill()
        process.wait()


def trials(address, name="sweep"):
    """Of the study whose name begins so, the last one; the tables may not be there yet."""
    engine = {"poolclass": NullPool}  # no connection stays open
    try:
        with create_engine(address, **engine).connect() as connection:
            connection.execute(text("SELECT * FROM alembic_version")).one()  # Optuna's opening would write it
        storage = RDBStorage(address, engine, skip_compatibility_check=True, skip_table_creation=True)
        found = [each for each in optuna.get_all_study_names(storage) if each.startswith(name)]
        found = [each for each in found if ("-" in each) == ("-" in name)]
        return optuna.load_study(study_name=found[-1], storage=storage).get_trials(deepcopy=False) if found else []
    except (OptunaError, SQLAlchemyError):
        return []


def finished(address, name="sweep"):
    return [trial for trial in trials(address, name) if trial.state == TrialState.COMPLETE]


def processes_in(folder):
    """Processes whose output goes below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            found += [path] * path.readlink().is_relative_to(folder)
        except OSError:
            continue
    return found


def test_four_at_once_on_a_fresh_database(controllers, postgresql):
    for _ in range(4):
        controllers.start(n_trials=8, repeats=1)
    assert controllers.wait() == [0, 0, 0, 0]
    every = trials(postgresql)
    assert Counter(trial.state for trial in every) == {TrialState.COMPLETE: 8}
    assert len({json.dumps(trial.params) for trial in every}) == 8
    seeds = [trial for trial in every if trial.params["best"] == 0.5]
    assert {trial.params["encoder"] for trial in seeds} == {"resnet18", "resnet34"} and len(seeds) == 2
    assert len(finished(postgresql, "sweep-finalists")) == 2
    reports = [text for process in controllers.running if "model   " in (text := controllers.said(process))]
    assert len(reports) == 1


def test_forty_trials_are_forty_though_two_controllers_are_killed(controllers, postgresql, tmp_path):
    settings = {"n_trials": 40, "finalists": 0, "words": ["seconds=0.15"]}
    first = [controllers.start(str(i), **settings) for i in range(4)]
    controllers.until(lambda: len(finished(postgresql)) >= 6)
    for process in first[:2]:
        process.kill()
        process.wait()
    controllers.until(lambda: not any(processes_in(tmp_path / str(i)) for i in range(2)), 20)  # no orphan
    assert controllers.wait(*first[2:]) == [0, 0]
    every = trials(postgresql)
    done = [trial for trial in every if trial.state == TrialState.COMPLETE]
    assert len(done) == 40
    assert len({json.dumps(trial.params) for trial in done}) == 40
    assert not [trial for trial in every if trial.state == TrialState.RUNNING]
    again = [trial for trial in done if trial.user_attrs["attempts"] > 1]
    assert again  # what the dead had begun
    leader = next(process for process in first[2:] if "best   " in controllers.said(process))
    folder = tmp_path / str(first.index(leader))
    assert sum(trial.state == "complete" for trial in load_all(folder)) == 40  # its report is of all


def test_as_many_controllers_wait_as_trials_run_and_the_others_end(controllers, postgresql, tmp_path):
    settings = {"n_trials": 1, "finalists": 0, "slots": 1, "words": ["seconds=4"]}
    first = controllers.start("0", **settings)
    controllers.until(lambda: sum(trial.state == TrialState.RUNNING for trial in trials(postgresql)) == 1)
    others = [controllers.start(str(i), **settings) for i in range(1, 4)]
    controllers.until(lambda: sum(process.poll() == 0 for process in others) == 2)
    assert not finished(postgresql)
    ended = [process for process in others if process.poll() == 0]
    for process in ended:
        left = about.load(tmp_path / str(controllers.running.index(process)))
        assert left.state == "stopped" and f"{tmp_path / '0'}" in left.reason
        assert left.reason.partition("its report will be in ")[2] in controllers.said(process)
    (waiting,) = set(others) - set(ended)
    assert controllers.wait(first, waiting) == [0, 0]
    assert "this controller waits, in case another controller returns one" in controllers.said(waiting)
    assert sum("best   " in controllers.said(process) for process in (first, waiting)) == 1
    again = controllers.start("0", **settings)
    assert controllers.wait(again) == [0]
    assert "this is its result" in controllers.said(again)


def test_sigterm_gives_the_trials_back_to_whoever_is_left(controllers, postgresql):
    settings = {"n_trials": 4, "finalists": 0, "words": ["seconds=0.6"]}
    first, other = (controllers.start(**settings) for _ in range(2))
    controllers.until(lambda: sum(bool(trial.intermediate_values) for trial in trials(postgresql)) == 4)
    started = time.monotonic()
    first.send_signal(signal.SIGTERM)
    assert controllers.wait(first) == [143]
    assert time.monotonic() - started < 20
    assert "To continue, here or on another machine, type: segsweep train" in controllers.said(first)
    assert controllers.wait(other) == [0]
    done = finished(postgresql)
    assert len(done) == 4
    assert sorted(trial.user_attrs["attempts"] for trial in done) == [1, 1, 2, 2]
    assert "continues after epoch" in controllers.said(other)  # the folder is shared: from the checkpoint


def test_an_outage_longer_than_the_grace_period_takes_nothing_from_the_living(controllers, postgresql, server):
    settings = {"n_trials": 4, "finalists": 0, "words": ["seconds=2.5"]}
    for _ in range(2):
        controllers.start(**settings)
    controllers.until(lambda: sum(trial.state == TrialState.RUNNING for trial in trials(postgresql)) == 4)
    server.stop()
    time.sleep(7)  # the grace period is 4
    server.start()
    assert controllers.wait() == [0, 0]
    assert [trial.user_attrs["attempts"] for trial in finished(postgresql)] == [1] * 4
    said = [controllers.said(process) for process in controllers.running]
    assert any("does not answer; trainings continue" in text and "answers again" in text for text in said)
    assert not any("taken over" in text for text in said)


def test_a_host_where_everything_fails_asks_for_no_more(controllers, postgresql):
    sick = {"n_trials": 6, "finalists": 0, "slots": 1, "words": ["nan=1", "seconds=0.01"], "host": "a"}
    first = controllers.start("bad", **sick)
    assert controllers.wait(first) == [6]
    assert "3 trials in a row failed here before their first epoch" in controllers.said(first)
    left = [trial for trial in trials(postgresql) if trial.state == TrialState.RUNNING]
    assert len(left) == 3
    assert all(trial.user_attrs["owner"] is None for trial in left)  # given back, not failed
    other = controllers.start("bad", **sick | {"host": "b"})
    assert controllers.wait(other) == [6]
    # Those that failed on two hosts have failed; it is the trials that are at fault.
    third = controllers.start("bad", **sick | {"host": "c"})
    controllers.wait(third)
    assert [trial for trial in trials(postgresql) if trial.state == TrialState.FAIL]


def test_a_trial_that_was_taken_over_counts_once(controllers, postgresql):
    """Its controller was stopped for longer than the grace period, and then went on."""
    settings = {"n_trials": 2, "finalists": 0, "slots": 1, "words": ["seconds=1.5"]}
    first = controllers.start(**settings)
    controllers.until(lambda: sum(bool(trial.intermediate_values) for trial in trials(postgresql)) == 1)
    first.send_signal(signal.SIGSTOP)
    other = controllers.start(**settings)
    controllers.until(lambda: len(finished(postgresql)) == 2)
    first.send_signal(signal.SIGCONT)
    assert controllers.wait(first, other) == [0, 0]
    assert sorted(trial.user_attrs["attempts"] for trial in finished(postgresql)) == [1, 2]
    assert "is left to other controllers" in controllers.said(first)
    assert "is taken over and continues after epoch" in controllers.said(other)
    folder = controllers.place / "shared"
    assert sorted(trial.name for trial in load_all(folder)) == ["0.2", "1"]  # abandoned attempts are no trials


def test_where_a_folder_cannot_be_reached_a_trial_begins_again(controllers, postgresql, tmp_path):
    settings = {"n_trials": 1, "finalists": 0, "slots": 1, "words": ["seconds=0.5"]}
    first = controllers.start("a", **settings)
    controllers.until(lambda: sum(bool(trial.intermediate_values) for trial in trials(postgresql)) == 1)
    first.send_signal(signal.SIGTERM)
    controllers.wait(first)
    controllers.lose(tmp_path / "a")
    other = controllers.start("b", **settings)
    assert controllers.wait(other) == [0]
    assert "continues from the start" in controllers.said(other)
    assert "cannot be reached from here" in controllers.said(other)
    (done,) = finished(postgresql)
    assert done.user_attrs["attempts"] == 2


def test_a_server_that_starts_again_costs_the_leader_nothing(controllers, postgresql, server):
    only = controllers.start(n_trials=2, repeats=3, slots=1, words=["seconds=0.4"])
    controllers.until(lambda: len(finished(postgresql, "sweep-finalists")) >= 2)
    server.stop()
    server.start()
    assert controllers.wait(only) == [0]
    assert "finalists: the best setting" in controllers.said(only)


@pytest.mark.parametrize("phase", ["study", "begin"])
def test_a_controller_that_begins_waits_for_a_server_that_is_away(controllers, postgresql, phase):
    engine = create_engine(make_url(postgresql), poolclass=NullPool)
    waiting = text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with engine.connect() as holder:
        holder.execute(
            text("SELECT pg_advisory_lock(CAST(:key AS bigint))"), {"key": number(f"postgres/sweep/{phase}")}
        )
        process = controllers.start(n_trials=2, finalists=0)
        controllers.until(lambda: holder.scalar(waiting))
        holder.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": holder.scalar(waiting)})
        controllers.until(lambda: "server does not answer" in controllers.said(process))
    assert controllers.wait(process) == [0], controllers.said(process)
    assert len(finished(postgresql)) == 2


def test_the_leaders_death_amid_the_repeats_costs_none_of_them(controllers, postgresql, tmp_path):
    settings = {"n_trials": 4, "repeats": 4, "slots": 1, "words": ["seconds=0.25"]}
    first = controllers.start(**settings)
    other = controllers.start(**settings)
    controllers.until(lambda: len(finished(postgresql, "sweep-finalists")) >= 4)
    leader = next(p for p in (first, other) if leads(postgresql, p))
    leader.kill()
    leader.wait()
    heir = other if leader is first else first
    assert controllers.wait(heir) == [0]
    done = finished(postgresql, "sweep-finalists")
    assert sorted(trial.params["repeat"] for trial in done) == list(range(8))
    assert controllers.said(heir).count("finalists: the best setting") == 1
    assert (tmp_path / "shared" / "report.html").exists()
    counted = [run.name for result in report.results(tmp_path / "shared") for run in result.runs]
    assert len(counted) == 8  # those that the heir took over are among them, by its attempts' names
    assert any("." in name for name in counted)
    winner = controllers.said(heir).split("model   ")[1].split()[0]
    assert Path(winner).read_bytes() == b"a model"


def leads(address, process, study="sweep"):
    """Whether the process holds the study's lock `leader`."""
    key = number(f"{make_url(address).database}/{study}/leader")
    engine = create_engine(address, poolclass=NullPool)
    with engine.connect() as connection:
        query = (
            "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND ((classid::bigint << 32) | objid::bigint) = :key AND granted"
        )
        return connection.scalar(text(query), {"key": key}) == f"segsweep {process.pid}"


def test_another_sweep_other_data_or_other_weights_are_refused(controllers):
    first = controllers.start(n_trials=2, finalists=0)
    controllers.wait(first)
    for changes, said in (
        ({"n_trials": 3}, "hydra.sweeper.n_trials: 2 there, 3 here"),
        ({"identity": {"pixels": "q", "files": "g"}}, "The files differ."),
        ({"identity": {"pixels": "q", "decoders": "e"}}, "The files are the same, but are decoded differently."),
        ({"identity": {"weights of resnet34": "3"}}, "weights of resnet34: 2 there, 3 here"),
        ({"words": ["seconds=9"]}, "seconds=9: new"),
    ):
        settings = {"n_trials": 2, "finalists": 0} | changes
        other = controllers.start(**settings)
        assert controllers.wait(other) == [2]
        assert said in controllers.said(other)


def test_a_folder_that_others_do_not_see_is_refused_unless_scores_are_enough(controllers, tmp_path, postgresql):
    first = controllers.start("a", n_trials=2, repeats=1)
    controllers.wait(first)
    controllers.lose(tmp_path / "a")
    other = controllers.start("b", n_trials=2, repeats=1)
    assert controllers.wait(other) == [2]
    assert "hydra.sweeper.keep=scores" in controllers.said(other)
    third = controllers.start("b", n_trials=2, repeats=1, keep="scores")
    assert controllers.wait(third) == [0]
    assert "its model is on" in controllers.said(third)


def test_no_password_is_printed_or_kept(controllers, tmp_path):
    process = controllers.start(n_trials=2, repeats=1)
    seen = set()
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.parent.name != str(process.pid):
                    seen.add(path.read_bytes())
            except OSError:
                continue
        time.sleep(0.02)
    assert process.returncode == 0
    assert not [line for line in seen if b"secret" in line and b"fake_controller.py" not in line]
    assert "secret" not in controllers.said(process)
    for path in (tmp_path / "shared").rglob("*"):
        if path.is_file() and path.name != "environment":
            assert b"secret" not in path.read_bytes(), path


def test_a_trials_record_is_the_same_from_the_study(controllers, postgresql, tmp_path):
    controllers.wait(controllers.start(n_trials=2, finalists=0))
    for trial in finished(postgresql):
        run = journal.read(tmp_path / "shared" / str(trial.number))
        packed = journal.unpacked(trial.user_attrs["record"])
        assert packed.best.iou == run.best.iou
        begun_and_ended = run.records[: len(packed.records)]  # the winner's test comes after that
        assert [type(record) for record in packed.records] == [type(record) for record in begun_and_ended]


@pytest.fixture
def mlflow_server(tmp_path):
    """The address of a server that keeps artifacts."""
    with serving(f"sqlite:///{tmp_path / 'mlflow.db'}", port=0) as (address, _):
        yield address


def test_mlflow_brings_finalists_from_hosts_that_share_no_folder(controllers, postgresql, tmp_path, mlflow_server):
    settings = {"n_trials": 4, "repeats": 2, "slots": 1, "words": ["seconds=0.4"], "tracking": mlflow_server}
    first, other = controllers.start("a", **settings), controllers.start("b", **settings)
    controllers.until(lambda: len(finished(postgresql, "sweep-finalists")) >= 2)
    leader = next(p for p in (first, other) if leads(postgresql, p))
    leader.kill()
    leader.wait()
    controllers.lose(tmp_path / ("a" if leader is first else "b"))
    heir, folder = (other, tmp_path / "b") if leader is first else (first, tmp_path / "a")
    assert controllers.wait(heir) == [0]
    repeats = list(load_all(folder, "finalists"))
    assert [trial.state for trial in repeats] == ["complete"] * 4
    assert all((folder / trial.name / "best.safetensors").read_bytes() == b"a model" for trial in repeats)
    client = MlflowClient(tracking_uri=mlflow_server)
    experiment = client.get_experiment_by_name("shared").experiment_id
    parents = client.search_runs([experiment], "tags.`segsweep.kind` = 'sweep'")
    assert len(parents) == 1
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'")
    assert len(children) >= 8
