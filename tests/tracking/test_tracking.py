"""MLflow is a view: whatever happens on the way, it ends level with the journal, once."""

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
import records
from conftest import TINY, train_once, unpacked, write_pairs
from mlflow import MlflowClient
from mlflow.exceptions import ErrorCode, MlflowException

import train
from segsweep.commands import app as cli
from segsweep.config.schema import DataConfig, RunConfig
from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.runs.trial import Trial
from segsweep.tracking import client as mlflow_client
from segsweep.tracking import names
from segsweep.tracking import sweep as sweeps
from segsweep.tracking import views as saved_view
from segsweep.tracking.background import Background
from segsweep.tracking.client import CURSOR, show_command, tracking_uri
from segsweep.tracking.run import Child, folder_of, run_id, sync


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    """A finished run, to be read only."""
    place = tmp_path_factory.mktemp("three-epochs")
    return train_once(place, write_pairs(place)(12), "data.size=[32,32]", "train.epochs=3")


@pytest.fixture
def folder(three_epochs, tmp_path):
    """A finished run that MLflow has not seen."""
    return shutil.copytree(three_epochs, tmp_path / "run")


def runs():
    client = MlflowClient(tracking_uri=tracking_uri())
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    return client, client.search_runs(experiments)


def steps(client, run, name="val/iou"):
    return sorted(m.step for m in client.get_metric_history(run.info.run_id, name))


def test_sync_sends_everything_once(folder, database):
    first = sync(folder)
    assert sync(folder) == first
    client, (run,) = runs()
    assert run.info.run_id == first == run_id(folder)
    assert run.info.status == "FINISHED"
    assert steps(client, run) == [1, 2, 3]
    end = journal.read(folder).end
    assert run.data.metrics["best/val_iou"] == end.metrics["val/iou"]


def test_records_are_sent_as_they_come(folder, database):
    lines = (folder / journal.NAME).read_bytes().splitlines(keepends=True)
    for n, status in ((2, "RUNNING"), (3, "RUNNING"), (len(lines), "FINISHED")):
        (folder / journal.NAME).write_bytes(b"".join(lines[:n]))
        sync(folder)
        client, (run,) = runs()
        assert run.info.status == status
        assert steps(client, run) == list(range(1, min(n, 4)))


def test_the_best_checkpoint_is_a_model_that_mlflow_compares(folder, database):
    for _ in range(2):
        sync(folder)
    client, (run,) = runs()
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.source_run_id, model.status, model.model_type) == (run.info.run_id, "READY", "segmentation")
    assert model.tags["segsweep.model"] == str(folder / "best.safetensors")
    best = journal.read(folder).best
    found = {metric.key: metric for metric in model.metrics}
    assert found["model/val/iou"].value == best.iou
    assert found["model/val/iou"].dataset_digest == journal.read(folder).start.data_digest
    assert model.params["encoder.name"] == "test_resnet"


@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "ENDPOINT_NOT_FOUND"])
def test_a_model_that_was_not_taken_is_sent_later_if_there_is_a_place_for_it(folder, database, monkeypatch, code):
    def refuse(*_, **__):
        raise MlflowException("no", error_code=ErrorCode.Value(code))

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_logged_model", refuse)
        with nullcontext() if code == "ENDPOINT_NOT_FOUND" else pytest.raises(MlflowException):
            sync(folder)
    sync(folder)
    client, (run,) = runs()
    assert run.info.status == "FINISHED"
    assert len(client.search_logged_models([run.info.experiment_id])) == (code == "INTERNAL_ERROR")


def test_an_epoch_whose_metrics_arrived_by_half_is_sent_again(folder, database, monkeypatch):
    monkeypatch.setattr("segsweep.tracking.run.METRICS_PER_CALL", 7)
    sent, whole = [], MlflowClient.log_batch

    def breaks(self, *arguments, metrics=(), **named):
        sent.append(metrics)
        if metrics and len([batch for batch in sent if batch]) == 4:  # amid an epoch
            raise MlflowException("gone", error_code=ErrorCode.Value("INTERNAL_ERROR"))
        return whole(self, *arguments, metrics=metrics, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", breaks)
        with pytest.raises(MlflowException):
            sync(folder)
    sync(folder)
    client, (run,) = runs()
    for name in journal.read(folder).epochs[0].metrics:
        assert steps(client, run, mlflow_client.mlflow_name(name)) == [1, 2, 3], name


def test_eight_runs_at_once_get_eight_numbers(database, tmp_path):
    asked = RunConfig(data=DataConfig("folder", root="/x/data"))
    begun = [records.start(asked, run=f"{i}" * 4) for i in range(8)]
    folders = [records.write(tmp_path / str(i), start, records.epoch(1, 0.5)) for i, start in enumerate(begun)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, folders))
    _, found = runs()
    assert sorted(names.number(run.info.run_name) for run in found) == list(range(1, 9))


def test_the_machine_is_shown_beside_the_run(pairs, outputs, database, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    words = [*TINY, "data=folder", f"data.root={pairs()}", "data.size=[32,32]", "train.batch_size=4", "train.epochs=15"]
    assert train.main([*words, "tracking.system=true", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    _, (run,) = runs()
    assert run.info.status == "FINISHED"
    assert any(name.startswith("system/cpu") for name in run.data.metrics)
    monkeypatch.setattr("segsweep.tracking.system.find_spec", lambda name: None)
    assert train.main([*words, "tracking.system=true", f"hydra.run.dir={tmp_path / 'other'}"]) == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"root": "/one/cells"}, "one-cells"),
        ({"root": "/two/cells"}, "two-cells"),
        ({"root": "/one/cells", "classes": ["car"]}, "one-cells-car"),
        ({"table": "/lists/a.csv", "root": "/one/cells"}, "lists-a"),
        ({"table": "/lists/b.csv", "root": "/one/cells"}, "lists-b"),
        ({"images": "/one/images", "masks": "/one/masks"}, "one-images"),
        ({"images": "/one/*/x.png", "masks": "/one/*/y.png"}, "folder"),
    ],
)
def test_two_data_sets_have_experiments_of_their_own(data, name, monkeypatch):
    asked = RunConfig(data=DataConfig("folder", **data))
    assert asked.experiment == name
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert asked.experiment == "mine"


@pytest.mark.parametrize("lost", ["after", "before"])
def test_a_sync_killed_while_sending_is_made_good(folder, database, lost):
    lines = (folder / journal.NAME).read_bytes().splitlines(keepends=True)
    (folder / journal.NAME).write_bytes(b"".join(lines[:3]))
    sync(folder)
    cursors = json.loads((folder / CURSOR).read_text())
    (cursor,) = cursors.values()
    if lost == "after":  # all was sent, the note that it was is missing
        cursor |= {"sent": 2, "sending": True}
    else:  # nothing of the last batch was sent
        (folder / journal.NAME).write_bytes(b"".join(lines[:4]))
        cursor |= {"sending": True}
    (folder / CURSOR).write_text(json.dumps(cursors))
    sync(folder)
    client, (run,) = runs()
    assert steps(client, run) == ([1, 2] if lost == "after" else [1, 2, 3])


def everything(client, run):
    """All that MLflow has of a run, without ids and times of its own."""
    metrics = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    files = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    pictures = sorted(re.sub(r"\+[0-9a-f-]{36}", "", path) for path in files)
    tags = {name: value for name, value in run.data.tags.items() if name != "segsweep.folder"}
    return metrics, pictures, run.data.params, tags, run.info.status


def test_wherever_a_sync_is_killed_one_more_makes_all_level(folder, tmp_path, database, monkeypatch):
    """Killed before and after each of its calls: what MLflow has then is what one sync gives, every value once."""
    names = ("create_run", "log_batch", "log_image", "log_artifact", "log_inputs", "set_tag", "set_terminated")
    names += ("create_logged_model", "finalize_logged_model")
    calls, whole = [], {name: getattr(MlflowClient, name) for name in names}

    def counted(name, stop=None):
        def call(self, *arguments, **named):
            own = len(calls)
            calls.append(name)
            if stop == (own, "before"):
                raise KeyboardInterrupt
            result = whole[name](self, *arguments, **named)
            if stop == (own, "after"):
                raise KeyboardInterrupt
            return result

        return call

    def synced(where, stop=None):
        calls.clear()
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(MlflowClient, name, counted(name, stop))
            return sync(where)

    monkeypatch.setattr("segsweep.tracking.run.METRICS_PER_CALL", 20)
    synced(folder)
    client, (first,) = runs()
    expected, number = everything(client, first), len(calls)
    assert number > 20
    client.delete_run(first.info.run_id)
    ends = {name: i for i, name in enumerate(calls)}  # the first and the last call of each kind
    chosen = sorted({*ends.values(), *(calls.index(name) for name in ends)})
    for at in chosen:
        for moment in ("before", "after"):
            cut = shutil.copytree(folder, tmp_path / f"{at}-{moment}")
            (cut / CURSOR).unlink()
            with pytest.raises(KeyboardInterrupt):
                synced(cut, (at, moment))
            number = sync(cut)
            found = client.get_run(number)
            torn = calls[at] == "log_artifact"  # of the two files that a picture is: it is sent again
            level = everything(client, found)
            if torn:
                level[1][:] = sorted(set(level[1]))
            assert level == expected, (at, moment)
            assert len(client.search_logged_models([found.info.experiment_id], f"source_run_id = '{number}'")) == 1
            client.delete_run(number)
            shutil.rmtree(cut)


def test_a_lost_cursor_finds_its_run_again(folder, database):
    first = sync(folder)
    (folder / CURSOR).unlink()
    assert sync(folder) == first
    client, (run,) = runs()
    assert steps(client, run) == [1, 2, 3]


def test_resuming_reopens_the_run(folder, database):
    first = sync(folder)
    assert train.main([f"resume={folder}", "train.epochs=4", "tracking=mlflow"]) == 0
    client, (run,) = runs()
    assert run.info.run_id == first
    assert run.info.status == "FINISHED"
    assert steps(client, run) == [1, 2, 3, 4]
    assert run.data.tags["resumed_after_epoch"] == "3"


def test_a_run_that_was_moved_is_found_where_it_lies_now(folder, database, tmp_path):
    first = sync(folder)
    assert folder_of(first) == folder
    moved = folder.rename(tmp_path / "moved")
    assert sync(moved) == first
    assert folder_of(first) == moved


def test_a_list_of_files_is_the_data_sets_source_and_later_differences_of_the_code_are_attached(database, tmp_path):
    asked = RunConfig(data=DataConfig("folder", table="/x/list.csv", root="/x"))
    folder = records.write(tmp_path / "run", records.start(asked), records.epoch(1, 0.5), records.end())
    for name in ("code.diff", "code-2.diff", "code-10.diff"):
        (folder / name).write_text(name)
    sync(folder)
    client, (run,) = runs()
    (given,) = run.inputs.dataset_inputs
    assert json.loads(given.dataset.source) == {"images": "/x/list.csv", "masks": "/x/list.csv"}
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"code.diff", "code-2.diff", "code-10.diff"} <= kept


def test_pictures_have_steps(folder, database):
    sync(folder)
    client, (run,) = runs()
    images = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    before = len(images)
    assert before
    sync(folder)
    assert len(client.list_artifacts(run.info.run_id, "images")) == before


def test_the_best_pictures_lie_at_a_step_that_all_runs_have(folder, database):
    sent = sync(folder)
    images = [f.path for f in runs()[0].list_artifacts(sent, "images") if f.path.endswith(".png")]
    names = {path.name for path in (folder / "predictions").iterdir()}
    at_best = [path for path in images if f"+step+{saved_view.BEST}+" in path]
    assert len(at_best) == len(names)
    assert len(images) == len(at_best) + len(list((folder / "predictions").glob("*/*.png")))


def views(client):
    (tags,) = (e.tags for e in client.search_experiments() if e.name != "Default")
    return {name.removeprefix(saved_view.TAG): tag for name, tag in tags.items() if name.startswith(saved_view.TAG)}


def test_an_experiment_has_one_view_of_its_single_runs(folder, database):
    sync(folder)
    client, (run,) = runs()
    (key,) = views(client)
    state = unpacked(views(client)[key])
    pictures = [card["imageKeys"] for card in state["compareRunCharts"] if card["type"] == "IMAGE"]
    assert pictures == [[f"predictions/{path.name}"] for path in sorted((folder / "predictions").iterdir())]
    assert client.search_runs([run.info.experiment_id], state["searchFilter"])[0].info.run_id == run.info.run_id
    assert show_command(folder).startswith("segsweep ui   then http://127.0.0.1:5000/#/experiments/1/runs?")
    assert show_command(folder).endswith(f"viewStateShareKey={key}")
    assert "segsweep ui --uri sqlite:////else/where.db " in show_command(folder, "sqlite:////else/where.db")
    (folder / CURSOR).unlink()
    sync(folder)
    assert list(views(client)) == [key]


def test_without_a_view_everything_goes_on(folder, database, monkeypatch):
    def refuses(*_, **__):
        raise ValueError("another format")

    monkeypatch.setattr(saved_view, "text", refuses)
    sync(folder)
    client, (run,) = runs()
    assert run.info.status == "FINISHED"
    assert not views(client)
    assert show_command(folder).endswith("/runs?workflowType=machine_learning")


def test_a_dead_server_neither_stops_nor_delays_training(pairs, outputs, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    data = ("data=folder", f"data.root={pairs(12)}", "data.size=[32,32]", f"hydra.run.dir={tmp_path / 'run'}")
    began = time.monotonic()
    assert train.main([*TINY, *data, "train.epochs=1", "train.batch_size=4", "tracking.timeout=30"]) == 0
    assert time.monotonic() - began < 60
    printed = capsys.readouterr()
    assert "segsweep sync" in printed.out


def test_what_a_server_missed_is_sent_later(pairs, outputs, database, monkeypatch, tmp_path):
    data = ("data=folder", f"data.root={pairs(12)}", "data.size=[32,32]", f"hydra.run.dir={tmp_path / 'run'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert train.main([*TINY, *data, "train.epochs=1", "train.batch_size=4"]) == 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert cli.main(["sync", str(tmp_path)]) == 0
    client, (run,) = runs()
    assert steps(client, run) == [1]


def test_sync_of_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="not a run folder"):
        sync(tmp_path)
    assert cli.main(["sync", str(tmp_path)]) == 2
    assert "contains no run" in capsys.readouterr().err


def test_passwords_are_not_written_down(folder):
    cursor = mlflow_client.without_password("https://me:secret@server.example/path")
    assert cursor == "https://server.example/path"


def test_several_processes_share_a_fresh_database(folder, outputs):
    """Without a guard most of them crash in MLflow's migrations."""
    import shutil

    folders = [folder.with_name(f"run{i}") for i in range(3)]
    for i, target in enumerate(folders):
        shutil.copytree(folder, target)
        journal_file = target / journal.NAME
        records = [json.loads(line) for line in journal_file.read_text().splitlines()]
        records[0]["run"] = f"run{i}"
        journal_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=sync, args=(target,)) for target in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    client, found = runs()
    assert len(found) == 3
    assert all(steps(client, run) == [1, 2, 3] for run in found)


def test_a_database_that_is_gone_is_filled_anew(folder, database, mlflow_database):
    import shutil

    first = sync(folder)
    shutil.copy(mlflow_database, database)
    assert sync(folder) != first
    client, (run,) = runs()
    assert steps(client, run) == [1, 2, 3]
    assert run.info.status == "FINISHED"


def test_a_deleted_experiment_is_restored_and_a_deleted_run_is_said(folder, database):
    sync(folder)
    client, (run,) = runs()
    client.delete_experiment(run.info.experiment_id)
    (folder / CURSOR).unlink()
    sync(folder)
    client, (run,) = runs()
    assert client.get_experiment(run.info.experiment_id).lifecycle_stage == "active"
    client.delete_run(run.info.run_id)
    with pytest.raises(ConfigError, match="deleted in MLflow"):
        sync(folder)


def test_a_run_that_was_killed_is_marked_by_sync(folder, database):
    lines = (folder / journal.NAME).read_bytes().splitlines(keepends=True)
    (folder / journal.NAME).write_bytes(b"".join(lines[:3]))
    sync(folder)
    assert runs()[1][0].info.status == "RUNNING"
    assert cli.main(["sync", str(folder)]) == 0
    assert runs()[1][0].info.status == "KILLED"
    assert train.main([f"resume={folder}", "tracking=mlflow"]) == 0
    client, (run,) = runs()
    assert run.info.status == "FINISHED"
    assert steps(client, run) == [1, 2, 3]


def test_names_that_mlflow_refuses_do_not_stop_it(pairs, outputs, database, tmp_path):
    root = pairs(8, ("train", "val"))
    for kind in ("images", "masks"):
        for number, path in enumerate(sorted((root / kind / "val").iterdir())):
            path.rename(path.with_name(f"é img ({number}) + b.png"))
    typed = [*TINY, "data=folder", f"data.root={root}", "data.size=[32,32]", "train.epochs=1", "train.batch_size=4"]
    classes = '{"ground": 0, "car (moving)": 1}'
    typed += [f"hydra.run.dir={tmp_path / 'run'}", f"data.classes='{classes}'"]
    assert train.main(typed) == 0
    client, (run,) = runs()
    assert run.info.status == "FINISHED"
    assert any(name.startswith("val/iou/car _moving_-") for name in run.data.metrics)
    named = {name.rpartition("-")[0] or name for name in run.data.params if name.startswith("data.classes.")}
    assert named == {"data.classes.ground", "data.classes.car _moving_"}
    assert client.list_artifacts(run.info.run_id, "images")
    assert "summary.json" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_cleaned_names_stay_apart():
    names = ["a", "a+b", "a&b", "a b", "x//y", "x/y", "../x", "é"]
    assert len({mlflow_client.mlflow_name(name) for name in names}) == len(names)
    assert mlflow_client.mlflow_name("val/iou/road-1.2_x") == "val/iou/road-1.2_x"


def child(parent, **more):
    return Child(parent, "data", 7, {"optim.lr": "0.001", "encoder": "test_resnet"}, **more)


def test_a_sweep_is_one_run_with_its_trials_below_it(folder, database, tmp_path):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    parent = sweeps.open_sweep(sweep, None, "data", {"optim.lr": "auto"}, "note", ["optim.lr"])
    assert sweeps.open_sweep(sweep, None, "data", {"optim.lr": "auto"}, "note") == parent  # taken up again
    sent = sync(folder, child=child(parent, tags={"trial": "3", "reason": ""}))
    client, found = runs()
    assert {run.info.run_id for run in found} == {parent, sent}
    run = client.get_run(sent)
    assert run.info.run_name == "007-test_resnet-lr3e-3"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["trial"] == "3"
    assert run.info.status == "FINISHED"
    assert {"optim.lr", "encoder", "encoder.name", "weights_source"} <= set(run.data.params)
    (sweep / "report.html").write_text("page")
    sweeps.close_sweep(sweep, None, "complete", {"best/val_iou": 0.5}, "result", [sweep / "report.html"])
    closed = client.get_run(parent)
    assert (closed.info.status, closed.data.metrics) == ("FINISHED", {"best/val_iou": 0.5})
    assert closed.data.tags["mlflow.note.content"] == "result"
    assert [file.path for file in client.list_artifacts(parent)] == ["report.html"]
    (key,) = views(client)  # one for the sweep; its trials belong to no other
    state = unpacked(views(client)[key])
    assert [r.info.run_id for r in client.search_runs([run.info.experiment_id], state["searchFilter"])] == [sent]
    assert "params.`optim.lr`" in state["selectedColumns"]
    assert show_command(sweep).endswith(f"viewStateShareKey={key}")


@pytest.mark.parametrize("named", ["", "0", "finalists/0-1"])
def test_a_sweep_that_a_server_missed_is_sent_whole(folder, database, tmp_path, capsys, named):
    """Whichever of its folders is named: a trial on its own would be lost to the sweep."""
    sweep = tmp_path / "sweeps" / "one"
    trials = [
        Trial(name, "test_resnet", ["optim.lr=1e-3"], ["optim.lr=1e-3"], state="complete")
        for name in ("0", "finalists/0-1")
    ]
    run = journal.read(folder).start.run
    for trial in trials:
        shutil.copytree(folder, sweep / trial.name)
        book = sweep / trial.name / journal.NAME
        book.write_text(book.read_text().replace(run, f"{run[:-5]}-{trial.name.replace('/', '-')}"))
        trial.save(sweep)
    records.write_about(sweep, space={"optim.lr": "choice"}, finalists=["0"], tracked=False)
    assert cli.main(["sync", str(sweep.parent)]) == 0
    assert capsys.readouterr().out.count("left out") == 1  # of the sweep, not of each trial
    sync(sweep / "0")  # as `segsweep register` did
    for _ in range(2):
        assert cli.main(["sync", str(sweep), str(sweep / named)]) == 0
    client, found = runs()
    (parent,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in found if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {r.data.tags["trial"] for r in children} == {"0", "finalists/0-1"}
    assert len(found) == 3 and all(r.info.status == "FINISHED" for r in found)
    assert all(r.data.tags["segsweep.kind"] == "trial" for r in children)
    assert parent.info.run_id in capsys.readouterr().out
    assert len(client.get_metric_history(parent.info.run_id, "best/val_iou")) == 1  # nothing is sent twice
    times = [record.time for record in journal.read(folder).records]
    assert (parent.info.start_time, parent.info.end_time) == (int(times[0] * 1000), int(times[-1] * 1000))


def test_sync_leaves_out_sweeps_that_run(folder, database, tmp_path, capsys):
    sweep = tmp_path / "sweeps" / "one"
    shutil.copytree(folder, sweep / "0")
    Trial("0", "test_resnet", [], []).save(sweep)
    records.write_about(sweep, state="running")
    hold = f"import pathlib; from segsweep.runs.locks import *; l = FolderLock(pathlib.Path({str(sweep)!r}), 'sweep')"
    typed = [sys.executable, "-c", f"{hold}; print(1, flush=True); input()"]
    with subprocess.Popen(typed, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as controller:
        controller.stdout.readline()
        assert cli.main(["sync", str(sweep.parent)]) == 0
        controller.communicate(b"\n")
    assert "the sweep is running" in capsys.readouterr().out
    assert runs()[1] == []
    assert cli.main(["sync", str(sweep.parent)]) == 0  # its controller was killed
    assert sorted(r.info.status for r in runs()[1]) == ["FINISHED", "KILLED"]


def test_a_sweep_is_sent_anew_to_a_database_that_was_lost(folder, database, tmp_path, mlflow_database):
    (tmp_path / "sweep").mkdir()
    first = sweeps.open_sweep(tmp_path / "sweep", None, "data", {}, "")
    shutil.copy(mlflow_database, tracking_uri().removeprefix("sqlite:///"))
    second = sweeps.open_sweep(tmp_path / "sweep", None, "data", {}, "", since=5.0)
    assert first != second
    client, (run,) = runs()
    assert (run.info.run_id, run.info.start_time) == (second, 5000)
    client.delete_run(second)
    with pytest.raises(ConfigError, match="deleted in MLflow"):
        sweeps.open_sweep(tmp_path / "sweep", None, "data", {}, "")


def test_a_sweeps_run_that_a_killed_start_has_made_is_found_again(database, tmp_path):
    (tmp_path / "sweep").mkdir()
    first = sweeps.open_sweep(tmp_path / "sweep", None, "data", {"optim.lr": "auto"}, "note", sweep="one")
    (tmp_path / "sweep" / mlflow_client.CURSOR).unlink()
    assert sweeps.open_sweep(tmp_path / "sweep", None, "data", {"optim.lr": "auto"}, "note", sweep="one") == first
    assert sweeps.open_sweep(tmp_path, None, "data", {}, "note", sweep="two") != first


def test_parameters_of_a_sweep_that_a_kill_has_lost_are_sent_later(database, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "sweep").mkdir()
    given = {"optim.lr": "auto", "data.classes.c++": "1"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "log_batch", killed)
        sweeps.open_sweep(tmp_path / "sweep", None, "data", given, "note", sweep="one")
    opened = sweeps.open_sweep(tmp_path / "sweep", None, "data", given, "note", sweep="one")
    _, (run,) = runs()
    assert run.info.run_id == opened
    assert run.data.params == {mlflow_client.mlflow_name(name): value for name, value in given.items()}


def test_a_sweep_that_was_moved_is_known_by_its_new_folder(database, tmp_path):
    (tmp_path / "sweep").mkdir()
    opened = sweeps.open_sweep(tmp_path / "sweep", None, "data", {"optim.lr": "auto"}, "note", sweep="one")
    moved = (tmp_path / "sweep").rename(tmp_path / "moved")
    assert sweeps.open_sweep(moved, None, "data", {"optim.lr": "auto"}, "note", sweep="one") == opened
    assert runs()[0].get_run(opened).data.tags["segsweep.folder"] == str(moved)


def test_the_run_of_an_attempt_that_began_anew_is_ended(folder, database, tmp_path):
    (tmp_path / "sweep").mkdir()
    below = child(sweeps.open_sweep(tmp_path / "sweep", None, "folder", {}, ""), tags={"trial": "3"})
    lines = (folder / journal.NAME).read_text().splitlines(keepends=True)
    (folder / journal.NAME).write_text("".join(lines[:3]))
    first = sync(folder, child=below)
    (folder / mlflow_client.CURSOR).unlink()
    (folder / journal.NAME).write_text("".join(lines[:3]).replace(journal.started(folder).starts[0].run, "another"))
    second = sync(folder, child=replace(below, tags={"trial": "3.2"}))  # a second attempt, by another controller
    client, _ = runs()
    assert first != second
    assert [client.get_run(run).info.status for run in (first, second)] == ["KILLED", "RUNNING"]


@pytest.mark.parametrize(
    ("ended", "tags", "status"),
    [("stopped", {"pruned_at": "2", "reason": "too low"}, "KILLED"), ("failed", {"reason": "NaN"}, "FAILED")],
)
def test_a_trial_that_was_pruned_or_failed_says_why(folder, database, tmp_path, ended, tags, status):
    (tmp_path / "sweep").mkdir()
    parent = sweeps.open_sweep(tmp_path / "sweep", None, "folder", {}, "")
    lines = (folder / journal.NAME).read_text().splitlines(keepends=True)
    (folder / journal.NAME).write_text("".join(lines[:3]))
    sent = sync(folder, child=child(parent, tags={"reason": ""}))
    client, _ = runs()
    assert client.get_run(sent).info.status == "RUNNING"
    end = json.dumps({"kind": "end", "time": time.time(), "status": ended, "reason": "terminated"})
    (folder / journal.NAME).write_text("".join(lines[:3]) + end + "\n")
    pruned_at = 2 if ended == "stopped" else None
    sync(folder, alive=False, child=child(parent, tags={"reason": tags["reason"]}, pruned_at=pruned_at))
    run = client.get_run(sent)
    assert run.info.status == status
    assert {name: run.data.tags[name] for name in ("pruned_at", "reason") if name in run.data.tags} == tags


def test_what_is_asked_for_twice_is_sent_once():
    sent, go_on = [], threading.Event()
    background = Background(timeout=10.0)
    background.ask("first", go_on.wait)
    for i in range(5):
        background.ask("trial", lambda i=i: sent.append(i))
    go_on.set()
    assert background.close() is None
    assert sent == [4]


def test_one_trial_that_cannot_be_sent_keeps_no_other_back(caplog):
    sent = []
    background = Background(timeout=10.0)

    def fails():
        raise OSError("no server")

    background.ask("a", fails)
    background.ask("b", lambda: sent.append("b"))
    assert background.close() == "no server."
    assert sent == ["b"]
