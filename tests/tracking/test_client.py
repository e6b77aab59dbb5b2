"""The door: whose server is contacted, and what a damaged note says."""

import json
import re
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import records

from segsweep.commands import app as cli
from segsweep.config.schema import DecoderConfig, RunConfig, TrackingConfig
from segsweep.errors import ConfigError
from segsweep.nn import UNet
from segsweep.nn.checkpoint import save_model
from segsweep.tracking import client, registry
from segsweep.tracking.client import CURSOR, Cursor, allowed, read_cursor, remember, tracking_uri, trusted, write_cursor
from segsweep.tracking.run import log_evaluation, sync


@pytest.fixture
def stranger(monkeypatch):
    """A server of somebody else's: its address, and the requests that it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers["Authorization"]))
            self.send_error(404)

        do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def foreign(folder, uri, name="run"):
    """A run folder that somebody sent, with a model and their tracking URI in its record."""
    asked = RunConfig(tracking=TrackingConfig(uri=uri))
    records.write(folder / name, records.start(asked, run=name), records.epoch(1, 0.5), records.end())
    model = UNet("test_resnet", decoder=DecoderConfig(width=[8] * 5))
    save_model(folder / name / "best.safetensors", model, classes=["a", "b"], size=[32, 32], resize="pad")
    write_cursor(folder / name, uri, Cursor("1", "f" * 32, sent=1))
    return folder / name


def test_sync_sends_nothing_to_a_server_that_only_the_folder_names(stranger, database, tmp_path, capsys):
    address, seen = stranger
    folder = foreign(tmp_path / "runs", address)
    mine = records.write(tmp_path / "runs" / "mine", records.start(run="mine"), records.epoch(1, 0.5), records.end())
    assert cli.main(["sync", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr()
    assert f"{folder}: not sent: " in said.err
    assert f"type --uri {address}" in said.err
    assert f"{mine}: run " in said.out  # the others go on
    assert not seen
    assert cli.main(["sync", str(folder), "--uri", address]) == 1  # typed: it is asked, and has no such run
    assert seen
    assert seen[0][1].startswith("Basic ")


def test_register_contacts_no_server_that_only_the_folder_names(stranger, tmp_path, capsys, monkeypatch):
    address, seen = stranger
    monkeypatch.setattr("segsweep.inference.register.export", lambda *_: pytest.fail("it takes minutes"))
    assert cli.main(["register", str(foreign(tmp_path, address)), "nuclei"]) == 2
    assert f"type --uri {address}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--uri"):
        registry.register(tmp_path / "run", None, "nuclei", tmp_path, (3, 1), "2.15", "", {})
    assert not seen


def test_evaluate_contacts_no_server_that_only_the_folder_names(stranger, trained, tmp_path, capsys):
    address, seen = stranger
    folder = tmp_path / "run"
    folder.mkdir()
    for path in trained.folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    journal = folder / "metrics.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    start = json.loads(lines[0])
    (start.get("asked") or start["config"])["tracking"]["uri"] = address
    journal.write_text(json.dumps(start) + "\n" + "".join(lines[1:]))
    write_cursor(folder, address, Cursor("1", "f" * 32, sent=1))
    assert cli.main(["evaluate", str(folder)]) == 0
    said = capsys.readouterr()
    assert "the scores were not sent to MLflow: " in said.err
    assert f"type --uri {address}" in said.err
    assert "IoU" in said.out
    assert not seen


def test_a_run_that_mlflow_does_not_have_is_nothing_to_tell(stranger, tmp_path):
    address, seen = stranger
    folder = foreign(tmp_path, address)
    (folder / CURSOR).unlink()
    log_evaluation(folder, None, "val", {"iou": 0.5}, tmp_path)
    assert not seen


def test_own_and_typed_addresses_are_trusted(outputs, monkeypatch):
    assert trusted(tracking_uri())
    assert allowed(None) == tracking_uri()
    assert allowed("http://there", "http://here") == "http://here"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@own.example/mlflow")
    assert allowed("http://own.example/mlflow") == "http://me:secret@own.example/mlflow"
    # What one library reads as a password is to another a server's name.
    for other in ("http://own.example", "http://own.example/mlflow/x", "http://evil.example\\@own.example/mlflow"):
        with pytest.raises(ConfigError, match="that you have not typed"):
            allowed(other)


def test_what_was_typed_once_is_remembered_without_its_password(outputs):
    remember("http://me:secret@lab.example")
    remember("http://lab.example")
    remember("sqlite:////data/runs.db")
    path = outputs / client.TRUSTED
    assert path.read_text().splitlines() == ["http://lab.example", "sqlite:////data/runs.db"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert allowed("http://lab.example") == "http://lab.example"
    assert not trusted("http://lab.example.evil")


def test_a_note_that_somebody_else_wrote_says_nothing(outputs, monkeypatch):
    remember("http://lab.example")
    monkeypatch.setattr(client.os, "getuid", lambda: -1)
    assert not trusted("http://lab.example")


def test_the_line_to_type_is_that_of_the_command():
    with pytest.raises(ConfigError, match=re.escape("type \"tracking.uri='http://there/a?b=c'\"")):
        allowed("http://there/a?b=c", as_key=True)
    with pytest.raises(ConfigError, match=re.escape("type --uri 'http://there/a?b=c'")):
        allowed("http://there/a?b=c")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", b"\xff", '{"URI": 1}', '{"URI": {"sent": "two"}}', '{"URI": {"pictures": {}}}']
)
def test_a_damaged_cursor_is_one_line_that_names_it(text, database, tmp_path):
    folder = records.write(tmp_path / "run", records.start(), records.epoch(1, 0.5))
    content = text if isinstance(text, bytes) else text.replace("URI", tracking_uri()).encode()
    (folder / CURSOR).write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(folder / CURSOR))}: damaged: ") as refusal:
        sync(folder)
    assert "\n" not in str(refusal.value)


def test_cursors_of_several_servers_lie_side_by_side(tmp_path):
    write_cursor(tmp_path, "http://me:secret@one", Cursor("1", "a", sent=3))
    write_cursor(tmp_path, "http://two", Cursor("2", "b"))
    assert read_cursor(tmp_path, "http://one") == Cursor("1", "a", sent=3)
    assert read_cursor(tmp_path, "http://three") == Cursor()
    assert "secret" not in (tmp_path / CURSOR).read_text()


@pytest.mark.parametrize("name", ["a%20b", "a?b", "a%b", "a#b ü"])
def test_the_database_lies_in_the_outputs_folder_whatever_that_is_called(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSWEEP_OUTPUTS", str(tmp_path / name))
    uri = client.tracking_uri()
    assert client.file_of(uri) == tmp_path / name / "mlflow.db"
    number = client.open_experiment(client.connected(uri), uri, "x")
    run = client.connected(uri).create_run(number)
    client.connected(uri).log_text(run.info.run_id, "said", "file.txt")
    assert (tmp_path / name / "mlflow.db").exists()
    assert [path.name for path in (tmp_path / name).rglob("file.txt")] == ["file.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_experiment_of_any_name_keeps_its_files_in_the_outputs_folder(database, outputs, tmp_path):
    asked = RunConfig(tracking=TrackingConfig(experiment="../../elsewhere"))
    run_id = sync(records.write(tmp_path / "run", records.start(asked)))
    mlflow = client.connected(tracking_uri())
    place = mlflow.get_run(run_id).info.artifact_uri
    assert place.startswith((outputs / "mlartifacts").as_uri())
    assert ".." not in place
