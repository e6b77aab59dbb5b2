"""`segsweep ui`: MLflow's server on the project's database, lean and on loopback, opened on the newest saved view."""

import ipaddress
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any
from urllib import request

from segsweep import console
from segsweep.errors import ConfigError, Terminated, first_line
from segsweep.paths import outputs
from segsweep.ports import available
from segsweep.process import show, terminable
from segsweep.tracking import views
from segsweep.tracking.client import connected, file_of, tracking_uri, without_password

HOST = "127.0.0.1"
START = 120.0  # seconds that a server may take to answer; usually five
STOP = 10.0  # seconds between SIGTERM and SIGKILL
# Defaults are four workers and a queue for evaluating language models: 15 processes.
# Begins the server, and ends it and all that it has begun when whoever began this has gone, however it went.
GUARD = """
import os, signal, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def gone():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=gone, daemon=True).start()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends when the server has
sys.exit(server.wait())
"""
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def serve(port: int, host: str, uri: str | None) -> None:
    """Show MLflow's page until Ctrl-C or SIGTERM; if the URI is a running server, only print its address."""
    uri = tracking_uri(uri)
    if uri.startswith("http"):
        show(front_page(without_password(uri)))
        return
    try:
        with terminable(), server(uri, host, port) as (address, process):
            if not _loopback(host):
                console.note(_without_a_lock(uri, host, port))
            console.note("Ctrl-C stops it")
            show(front_page(address))  # last: who waits for it may stop us then
            code = process.wait()
    except (KeyboardInterrupt, Terminated):
        return
    raise ConfigError(f"MLflow's server ended by itself, with code {code}.")


@contextmanager
def server(uri: str, host: str = HOST, port: int = 0) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run MLflow's server on a database, at port 0 on any that is free; yield its address and process when it answers.

    A port that is taken and a server that does not start are a `ConfigError`.
    """
    port = available(host, port, "segsweep ui")
    if (database := file_of(uri)) and not database.exists():
        connected(uri)  # makes it, while no other process does
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    command += ["--artifacts-destination", str(outputs() / "mlartifacts"), "--uvicorn-opts", "--log-level warning"]
    env = {**os.environ, **LEAN, "MLFLOW_BACKEND_STORE_URI": uri}
    address = f"http://{HOST if host == '0.0.0.0' else f'[{host}]' if ':' in host else host}:{port}"
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C is for us alone, and a signal to the group reaches all of the server.
        guarded = [sys.executable, "-c", GUARD, *command]
        process = subprocess.Popen(
            guarded, env=env, stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True
        )
        try:
            _wait(address, process, said)
            yield address, process
        finally:
            _stop(process)
            if process.stdin:
                process.stdin.close()


def front_page(address: str) -> str:
    """Return the address of the newest saved view on a server, else of the experiment that was written to last."""
    try:
        experiments = _ask(f"{address}/api/2.0/mlflow/experiments/search", {"max_results": 1000})["experiments"]
        found = []
        for experiment in experiments:
            key, written = views.newest({tag["key"]: tag["value"] for tag in experiment.get("tags", [])})
            found.append((written, experiment["last_update_time"], experiment["experiment_id"], key))
        _, _, experiment_id, key = max(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        console.note(f"{address}: no saved view was found: {first_line(error)}")
        experiment_id, key = "0", ""
    return f"{address.rstrip('/')}/{views.page(experiment_id, key)}"


def _wait(address: str, process: "subprocess.Popen[bytes]", said: IO[bytes]) -> None:
    until = time.monotonic() + START
    while True:
        with suppress(OSError, ValueError):
            if _ask(f"{address}/health") == "OK":
                return
        if process.poll() is not None or time.monotonic() > until:
            said.seek(0)
            lines = said.read().decode(errors="replace").split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), f"code {process.poll()}")
            raise ConfigError(f"MLflow's server did not start: {reason}")
        time.sleep(0.1)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server and what it started, whatever happens meanwhile."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOP)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _without_a_lock(uri: str, host: str, port: int) -> str:
    return (
        f"warning: --host {host}: everyone who can reach this machine can read, change and delete runs: MLflow asks "
        f"for no\n"
        "password. To start MLflow with a password, after pip install 'mlflow[auth]':\n"
        "  MLFLOW_AUTH_ADMIN_PASSWORD=AT_LEAST_12_CHARACTERS MLFLOW_FLASK_SERVER_SECRET_KEY=ANYTHING_SECRET \\\n"
        f"  mlflow server --app-name basic-auth --backend-store-uri {shlex.quote(without_password(uri))} "
        f"--host {host} --port {port}"
    )


def _ask(address: str, question: Any = None) -> Any:
    """Return what the server answers: text, or JSON to a question in JSON. Proxies are for other machines."""
    data = None if question is None else json.dumps(question).encode()
    asked = request.Request(address, data, {"Content-Type": "application/json"})
    with request.build_opener(request.ProxyHandler({})).open(asked, timeout=10) as answer:
        text = answer.read().decode()
    return text if question is None else json.loads(text)
