"""MLflow is a view of the journal: `sync(folder)` brings it level, now or later, once or again.

A cursor in the run folder (`tracking.json`) says for each tracking URI which records have been sent. It is written
before and after each sending: a killed sync asks the server what had arrived. The only importer of mlflow.
"""

import hashlib
import json
import logging
import os
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from PIL import Image

from segsweep import journal
from segsweep.errors import ConfigError, first_line
from segsweep.paths import locked, outputs

log = logging.getLogger(__name__)

CURSOR = "tracking.json"
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
ATTACHED = ("summary.json", "split.csv", "code.diff", ".hydra/config.yaml", ".hydra/overrides.yaml")
METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_LENGTH, NOTE_LENGTH = 1000, 100, 6000, 8000


def tracking_uri(uri: str | None = None) -> str:
    """`uri`, else `$MLFLOW_TRACKING_URI`, else an SQLite file in the outputs folder, as an absolute URI."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs() / 'mlflow.db'}"


def show_command(folder: Path, uri: str | None = None) -> str:
    """The command, and the address below it, that shows the run in MLflow."""
    uri = tracking_uri(uri)
    page = f"#/experiments/{_read_cursor(folder, uri).get('experiment_id', 0)}/runs?workflowType=machine_learning"
    if uri.startswith("http"):
        return f"{_without_password(uri).rstrip('/')}/{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}   then http://127.0.0.1:5000/{page}"


def run_id(folder: Path, uri: str | None = None) -> str | None:
    """The run's id at that URI, if it has been sent there."""
    return _read_cursor(folder, tracking_uri(uri)).get("run_id")


def sync(folder: Path, uri: str | None = None, alive: bool = True) -> str:
    """Send what MLflow does not have yet, and return the run's id.

    Idempotent: metrics, pictures and files are sent once, whoever asks how often. Sends nothing twice when two ask at
    once.

    Args:
        folder: a run folder.
        uri: MLflow's tracking URI; default: the run's own `tracking.uri`, or `tracking_uri()`.
        alive: whether the run may still go on; one that cannot, and has no end, is marked as killed.

    Raises:
        ConfigError: the folder holds no journal, or the run was deleted in MLflow.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    with locked(folder / f".{CURSOR}.lock"):
        records = journal.read(folder)
        if not records:
            raise ConfigError(f"{folder}: not a run folder: no {journal.NAME} in it.")
        uri = tracking_uri(uri or records[0]["config"]["tracking"]["uri"])
        return _Sync(folder, uri, records).send(alive)


class Background:
    """Calls `sync` in one thread, so that training never waits for a server.

    Args:
        timeout: seconds that `close` waits at most.
    """

    def __init__(self, folder: Path, uri: str | None = None, timeout: float = 60.0):
        self._folder, self._uri, self._timeout = folder, uri, timeout
        self._wanted, self._closing = threading.Event(), threading.Event()
        self.error: str | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def sync(self) -> None:
        """Ask for a sync; returns at once."""
        self._wanted.set()

    def close(self) -> str | None:
        """Send the rest, wait for it within bounds, and return what went wrong, if anything did."""
        self._closing.set()
        self._wanted.set()
        self._thread.join(self._timeout)
        if self._thread.is_alive():
            return f"MLflow took longer than tracking.timeout={self._timeout:g} s."
        return self.error

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            last = self._closing.is_set()
            try:
                sync(self._folder, self._uri)
                self.error = None
            except Exception as error:  # whatever a server does, training goes on and the journal has it all
                if self.error is None:
                    log.warning("MLflow: %s Training goes on; what is missing is sent later.", _short(error))
                self.error = _short(error)
            if last:
                return


class _Sync:
    def __init__(self, folder: Path, uri: str, records: list[dict[str, Any]]):
        self.folder, self.uri, self.records = folder, uri, records
        self.cursor = _read_cursor(folder, uri)
        self.client = _client(uri)

    def send(self, alive: bool) -> str:
        if "run_id" in self.cursor and not self._is_there():
            self.cursor = {}  # another database than the one it was sent to
        if "run_id" not in self.cursor:
            self._create()
        sent = self.cursor["sent"]
        if sent < len(self.records) or self.cursor.get("sending"):
            arrived = self._arrived() if self.cursor.get("sending") else set()
            self._save(sending=True)
            self._send_records(self.records[sent:], arrived)
            self._save(sent=len(self.records), sending=False)
        run_id, end = self.cursor["run_id"], self.records[-1]
        if end["kind"] == "end" and self.cursor.get("ended") != len(self.records):
            self._send_end(end)
            self._save(ended=len(self.records))
        elif end["kind"] != "end" and not alive:
            self.client.set_terminated(run_id, "KILLED", end_time=int(end["time"] * 1000))
            self._save(ended=len(self.records))
        elif end["kind"] != "end" and self.cursor.get("ended"):
            self.client.update_run(run_id, status="RUNNING")  # resumed
            self._save(ended=None)
        self._send_pictures()
        return run_id

    def _is_there(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(self.cursor["run_id"])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage == "deleted":
            raise ConfigError(
                f"{self.folder}: its run was deleted in MLflow. Restore it there, or remove {CURSOR} to send it anew."
            )
        return True

    def _create(self) -> None:
        start = self.records[0]
        name = start["config"]["tracking"]["experiment"] or start["config"]["data"]["name"]
        with locked(outputs() / "mlflow.db.lock"):  # several processes at a fresh SQLite file break it
            experiment = self.client.get_experiment_by_name(name)
            if experiment and experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(experiment.experiment_id)
            local = None if self.uri.startswith("http") else (outputs() / "mlartifacts" / name).as_uri()
            experiment_id = (
                experiment.experiment_id if experiment else self.client.create_experiment(name, artifact_location=local)
            )
        self._save(experiment_id=experiment_id)
        # A sync that was killed after create_run left a run with this tag: go on with that.
        mine = f"tags.`segsweep.run` = '{start['run']}'"
        found = self.client.search_runs([experiment_id], mine, max_results=1)
        if found:
            self._save(run_id=found[0].info.run_id, sent=0, sending=True, pictures=[])
            return
        run = self.client.create_run(
            experiment_id,
            start_time=int(start["time"] * 1000),
            run_name=f"{start['config']['encoder']['name']}-lr{start['config']['optim']['lr']:g}",
            tags={
                "segsweep.run": start["run"],
                "segsweep.folder": str(self.folder),
                "mlflow.source.type": "LOCAL",
                "mlflow.source.name": "train.py",
                "mlflow.user": start["user"],
                "mlflow.note.content": _note(self.records),
                **({"mlflow.source.git.commit": start["commit"]} if start["commit"] else {}),
                "dirty": str(start["dirty"]).lower(),
                "weights_source": start["weights_source"],
                "data_digest": start["data_digest"],
            },
        )
        self._save(run_id=run.info.run_id, sent=0, sending=True, pictures=[])

    def _arrived(self) -> set[int]:
        """Epochs that a killed sync had sent."""
        history = self.client.get_metric_history(self.cursor["run_id"], "val/loss")
        return {metric.step for metric in history}

    def _send_records(self, records: list[dict[str, Any]], arrived: set[int]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id = self.cursor["run_id"]
        metrics = []
        for record in records:
            if record["kind"] == "epoch" and record["epoch"] not in arrived:
                metrics += [
                    Metric(_name(name), value, int(record["time"] * 1000), record["epoch"])
                    for name, value in record.items()
                    if _is_metric(name, value)
                ]
        if records and records[0] is self.records[0]:
            start = records[0]
            params = {name: value for name, value in _flat(start["config"]) if not name.startswith("tracking.")}
            params |= {name: start[name] for name in ("weights_source", "parameters", "device", "precision_used")}
            rows = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in params.items()]
            for first in range(0, len(rows), PARAMS_PER_CALL):
                self.client.log_batch(run_id, params=rows[first : first + PARAMS_PER_CALL])
            self._send_data_set(start)
        for record in records:
            if record["kind"] == "start" and record is not self.records[0]:
                tag = RunTag("resumed_after_epoch", str(record["resumed_after"]))
                self.client.log_batch(run_id, tags=[tag])
        for first in range(0, len(metrics), METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[first : first + METRICS_PER_CALL])

    def _send_data_set(self, start: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = start["config"]["data"]
        source = {"images": data["images"] or data["root"], "masks": data["masks"] or data["root"]}
        dataset = Dataset(
            name=data["name"],
            digest=start["data_digest"],
            source_type="local",
            source=json.dumps(source),
            profile=json.dumps({part: start[f"data/{part}"] for part in ("train", "val", "test")}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(self.cursor["run_id"], datasets=[DatasetInput(dataset, tags)])

    def _send_pictures(self) -> None:
        """Files predictions/NAME/EPOCH.png, as images with steps."""
        sent = set(self.cursor["pictures"])
        for path in sorted((self.folder / "predictions").glob("*/*.png")):
            name = path.relative_to(self.folder).as_posix()
            if name not in sent:
                with Image.open(path) as image:
                    key = _name(f"predictions/{path.parent.name}")
                    self.client.log_image(self.cursor["run_id"], image.copy(), key=key, step=int(path.stem))
                sent.add(name)
                self._save(pictures=sorted(sent))

    def _send_end(self, end: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        run_id = self.cursor["run_id"]
        when = int(end["time"] * 1000)
        step = end.get("best/epoch") or 0
        tested = [Metric(_name(k), v, when, step) for k, v in end.items() if k.startswith("test/") and _is_metric(k, v)]
        if tested:
            self.client.log_batch(run_id, metrics=tested)
        for name in ATTACHED:
            if (self.folder / name).exists():
                self.client.log_artifact(run_id, str(self.folder / name), "hydra" if "/" in name else None)
        self.client.set_tag(run_id, "mlflow.note.content", _note(self.records))
        self.client.set_terminated(run_id, STATUS[end["status"]], end_time=when)

    def _save(self, **changes: Any) -> None:
        self.cursor |= changes
        cursors = _read_cursors(self.folder) | {_without_password(self.uri): self.cursor}
        writing = self.folder / f"{CURSOR}.writing"
        writing.write_text(json.dumps(cursors, indent=1), encoding="utf-8")
        writing.replace(self.folder / CURSOR)


def _client(uri: str) -> Any:
    # Bounded waiting, no telemetry: both are read when mlflow is imported or called; what the user set stays.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    outputs().mkdir(parents=True, exist_ok=True)
    with locked(outputs() / "mlflow.db.lock"):
        client = MlflowClient(tracking_uri=uri)
        if not uri.startswith("http"):
            client.search_experiments(max_results=1)  # creates the file
    return client


def _note(records: list[dict[str, Any]]) -> str:
    """What the run is and gave, in Markdown."""
    start, end = records[0], records[-1]
    lines = ["```", f"python train.py {start['command']}".rstrip(), "```", ""]
    lines += [f"U-Net on `{start['config']['encoder']['name']}`, weights: **{start['weights_source']}**.", ""]
    results = [(k, v) for k, v in end.items() if end["kind"] == "end" and "/" in k and isinstance(v, int | float)]
    if results:
        lines += ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in results), ""]
    if end["kind"] == "end":
        lines += [f"{end['status']}: {end['reason']}"]
    return "\n".join(lines)[:NOTE_LENGTH]


def _is_metric(name: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and name not in ("epoch", "time")


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_cursors(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CURSOR).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _read_cursor(folder: Path, uri: str) -> dict[str, Any]:
    return _read_cursors(folder).get(_without_password(uri), {})


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _name(text: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. /`; others are replaced, and a hash keeps the names apart."""
    parts = [part for part in re.sub(r"[^A-Za-z0-9_\-. /]", "_", text).split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts)
    return cleaned if cleaned == text else f"{cleaned}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


def _short(error: Exception) -> str:
    line = first_line(error)
    return line if len(line) < 200 else f"{line[:200]}..."
