"""`segsweep ui`: one real server; everything else without."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib import request

import pytest

from segsweep.commands import app as cli
from segsweep.errors import ConfigError
from segsweep.ports import available
from segsweep.tracking import server as ui
from segsweep.tracking import views as saved_view


def test_it_answers_says_where_and_leaves_nothing(database):
    command = [sys.executable, "-m", "segsweep", "ui", "--port", "0"]
    # Where tests run in the background SIGINT is ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as process:
        page = process.stdout.readline().strip()
        address = page.partition("/#")[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#/experiments/0/runs\?workflowType=machine_learning", page)
        with request.urlopen(address) as answer:
            assert "MLflow" in answer.read().decode()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (group,) = map(int, children.read_text().split()) if children.exists() else (0,)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == "Ctrl-C stops it\n"
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0
    if group:
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)


def _answers(port):
    with socket.socket() as door:
        return door.connect_ex(("127.0.0.1", port)) == 0


def test_no_server_is_left_when_the_command_is_killed(database):
    command = [sys.executable, "-m", "segsweep", "ui", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        page = process.stdout.readline()
        process.kill()
    port = int(page.partition("/#")[0].rpartition(":")[2])
    until = time.monotonic() + 20
    while _answers(port):
        assert time.monotonic() < until, "it still answers"
        time.sleep(0.2)


def test_a_taken_port_is_one_line_with_another_to_type(outputs, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["ui", "--port", str(port)]) == 2
    said = capsys.readouterr()
    (free,) = re.findall(
        rf"^segsweep: --port {port}: in use by another program\. Try: segsweep ui --port (\d+)\n$", said.err
    )
    assert int(free) != port
    assert said.out == ""
    assert available("127.0.0.1", int(free), "") == int(free)


def test_an_address_that_is_not_ours_is_refused(outputs, capsys):
    assert cli.main(["ui", "--host", "192.0.2.1"]) == 2
    assert capsys.readouterr().err.startswith("segsweep: --host 192.0.2.1 --port 5000: cannot listen there: ")


@pytest.fixture
def remote():
    """A tracking server that knows what `.experiments` says."""
    known = SimpleNamespace(experiments=[])

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            known.asked = self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"experiments": known.experiments}).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        known.uri = f"http://127.0.0.1:{running.server_port}"
        yield known
        running.shutdown()
        thread.join()


def experiment(number, updated, **views):
    tags = [{"key": saved_view.TAG + k, "value": saved_view.text("", "", (), (), at)} for k, at in views.items()]
    return {"experiment_id": number, "last_update_time": updated, **({"tags": tags} if tags else {})}


def test_a_server_elsewhere_is_named_and_no_other_started(remote, outputs, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", remote.uri)
    remote.experiments = [experiment("1", 5, a=10.0), experiment("2", 9, b=30.0, c=20.0), experiment("3", 99)]
    assert cli.main(["ui"]) == 0
    assert capsys.readouterr().out == f"{remote.uri}/{saved_view.page('2', 'b')}\n"
    assert remote.asked[0] == "/api/2.0/mlflow/experiments/search"


def test_without_a_view_the_last_experiment_is_shown(remote):
    remote.experiments = [experiment("1", 5), experiment("7", 9), experiment("0", 1)]
    assert ui.front_page(remote.uri) == f"{remote.uri}/{saved_view.page('7')}"


def test_a_view_of_another_format_or_no_answer_is_no_trouble(remote, capsys):
    remote.experiments = [
        {"experiment_id": "1", "last_update_time": 1, "tags": [{"key": saved_view.TAG, "value": "?"}]}
    ]
    assert ui.front_page(remote.uri).startswith(f"{remote.uri}/#/experiments/")
    assert ui.front_page("http://127.0.0.1:9") == f"http://127.0.0.1:9/{saved_view.page('0')}"
    assert capsys.readouterr().err.count("no saved view was found") == 2


def test_passwords_in_an_address_are_not_printed(outputs, capsys):
    assert cli.main(["ui", "--uri", "http://me:secret@127.0.0.1:9"]) == 0
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err


@pytest.mark.parametrize(("host", "open_to_others"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)])
def test_a_door_that_is_open_to_others_is_warned_of_and_sigterm_closes_it(monkeypatch, capsys, host, open_to_others):
    closed = []

    @contextmanager
    def server(uri, host, port):
        try:
            yield (
                "http://127.0.0.1:9",
                SimpleNamespace(wait=lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9)),
            )
        finally:
            closed.append(host)

    monkeypatch.setattr(ui, "server", server)
    before = signal.getsignal(signal.SIGTERM)
    ui.serve(5000, host, "sqlite:////some/where.db")
    said = capsys.readouterr()
    assert closed == [host]
    assert signal.getsignal(signal.SIGTERM) == before
    assert ("MLFLOW_AUTH_ADMIN_PASSWORD" in said.err) == open_to_others
    assert ("--app-name basic-auth --backend-store-uri sqlite:////some/where.db" in said.err) == open_to_others


def test_a_server_that_does_not_start_says_why(tmp_path):
    program = "import sys; print('the reason'); print(); sys.exit(3)"
    with (tmp_path / "said").open("w+b") as said:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=said)
        with pytest.raises(ConfigError, match=r"did not start: the reason$"):
            ui._wait("http://127.0.0.1:9", process, said)
