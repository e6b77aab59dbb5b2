"""MLflow is a view of the journal: `sync(folder)` brings it level, now or later, once or again.

A cursor in the run folder (`tracking.json`) says for each tracking URI which records have been sent. It is written
before and after each sending: a killed sync asks the server what had arrived. Only `registry` knows mlflow, too.
"""

import hashlib
import json
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from PIL import Image

from segsweep.config.schema import flat
from segsweep.errors import ConfigError, closest, first_line, short
from segsweep.paths import locked, outputs, save_json
from segsweep.runs import journal
from segsweep.tracking import names as summary
from segsweep.tracking import views as saved_view

log = logging.getLogger(__name__)

CURSOR = "tracking.json"
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
ATTACHED = (
    *("summary.json", "split.csv", "code.diff", ".hydra/config.yaml", ".hydra/overrides.yaml"),
    *("figures/worst.png", "figures/training.png"),
)
METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_LENGTH, NOTE_LENGTH = 1000, 100, 6000, 8000


def tracking_uri(uri: str | None = None) -> str:
    """`uri`, else `$MLFLOW_TRACKING_URI`, else an SQLite file in the outputs folder, as an absolute URI."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs() / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """The URI as it may be printed and written down."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def show_command(folder: Path, uri: str | None = None) -> str:
    """The command, and the address below it, that shows the run or sweep in MLflow, in its saved view if it has one."""
    uri = tracking_uri(uri)
    cursor = _read_cursor(folder, uri)
    page = saved_view.page(cursor.get("experiment_id", "0"), cursor.get("view", ""))
    if uri.startswith("http"):
        return f"{without_password(uri).rstrip('/')}/{page}"
    other = "" if uri == tracking_uri() else f" --uri {shlex.quote(uri)}"
    return f"segsweep ui{other}   then http://127.0.0.1:5000/{page}"


def make_database(uri: str) -> None:
    """Have MLflow make its database where there is none yet, while no other process does."""
    connected(uri)


def run_id(folder: Path, uri: str | None = None) -> str | None:
    """The run's id at that URI, if it has been sent there."""
    return _read_cursor(folder, tracking_uri(uri)).get("run_id")


def folder_of(run_id: str, uri: str | None = None) -> Path:
    """The folder of the run with this id.

    Raises:
        ConfigError: MLflow does not know it, or its folder is not on this machine.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    try:
        run = connected(uri).get_run(run_id)
    except MlflowException as error:
        raise ConfigError(f"{run_id}: no run of this id at {without_password(uri)}: {first_line(error)}") from error
    folder = Path(run.data.tags.get("segsweep.folder", ""))
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(f"{run_id}: its folder is not on this machine: {folder}. Copy it here and name it.")
    return folder


def folders_of(experiment: str, uri: str | None = None) -> list[Path]:
    """The folders of an experiment's runs.

    Raises:
        ConfigError: no such experiment.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(uri)
    try:
        client = connected(uri)
        found = client.get_experiment_by_name(experiment)
    except MlflowException as error:
        raise ConfigError(
            f"{experiment}: MLflow at {without_password(uri)} does not answer: {first_line(error)}"
        ) from error
    if found is None:
        names = [known.name for known in client.search_experiments()]
        near = closest(experiment, names)
        hint = f" Closest: {near[0]}." if near else f" There are: {', '.join(names[:8])}."
        raise ConfigError(f"{experiment}: no such folder, and no such experiment at {without_password(uri)}.{hint}")
    folders, token = [], None
    while True:
        page = client.search_runs([found.experiment_id], page_token=token)
        folders += [Path(run.data.tags["segsweep.folder"]) for run in page if "segsweep.folder" in run.data.tags]
        token = page.token
        if not token:
            return folders


@dataclass(frozen=True)
class Child:
    """What a sweep says of one of its runs.

    Attributes:
        parent: id of the sweep's run.
        experiment: that the sweep's run is in.
        number: of the trial.
        first: what was varied, by key, logged before all other parameters.
        tags: more of them.
        pruned_at: the epoch after which it was stopped; None if it was not.
    """

    parent: str
    experiment: str
    number: int
    first: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    pruned_at: int | None = None


def sync(folder: Path, uri: str | None = None, alive: bool = True, child: Child | None = None) -> str:
    """Send what MLflow does not have yet, and return the run's id.

    Idempotent: metrics, pictures and files are sent once, whoever asks how often. Sends nothing twice when two ask at
    once.

    Args:
        folder: a run folder.
        uri: MLflow's tracking URI; default: the run's own `tracking.uri`, or `tracking_uri()`.
        alive: whether the run may still go on; one that cannot, and has no end, is marked as killed.
        child: of a sweep's run.

    Raises:
        ConfigError: the folder holds no journal, or the run was deleted in MLflow.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    with locked(folder / f".{CURSOR}.lock"):
        records = journal.read(folder)
        if not records:
            raise ConfigError(f"{folder}: not a run folder: no {journal.NAME} in it.")
        uri = tracking_uri(uri or records[0]["config"]["tracking"]["uri"])
        return _Sync(folder, uri, records, child).send(alive)


def open_sweep(
    folder: Path,
    uri: str | None,
    experiment: str,
    params: Mapping[str, str],
    note: str,
    swept: Sequence[str] = (),
    since: float | None = None,
) -> str:
    """The run under which a sweep's runs lie, made or taken up again; its id.

    Args:
        swept: the keys that are varied, for the saved view of its runs.
        since: of a sweep that no longer runs: when it began, in seconds of the epoch. One that MLflow has is left as it
            is.

    Raises:
        ConfigError: the run was deleted in MLflow.
    """
    from mlflow.entities import Param

    uri = tracking_uri(uri)
    client = connected(uri)
    cursor = _read_cursor(folder, uri)
    if "run_id" in cursor and _is_there(client, cursor["run_id"], folder):
        if since is None:
            client.update_run(cursor["run_id"], status="RUNNING")
            _write_cursor(folder, uri, cursor | {"closed": ""})
        return cursor["run_id"]
    experiment_id = _experiment(client, uri, experiment)
    tags = {"segsweep.folder": str(folder), "segsweep.kind": "sweep", "mlflow.note.content": note[:NOTE_LENGTH]}
    began = None if since is None else int(since * 1000)
    run_id = client.create_run(experiment_id, began, run_name=folder.name, tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(name, value[:PARAM_LENGTH]) for name, value in params.items()])
    cursor = {"experiment_id": experiment_id, "run_id": run_id, "swept": list(swept)}
    _write_cursor(folder, uri, cursor | _view_of_sweep(client, folder, cursor))
    return run_id


def close_sweep(
    folder: Path,
    uri: str | None,
    status: str,
    metrics: Mapping[str, float],
    note: str,
    files: Iterable[Path],
    at: float | None = None,
) -> None:
    """Write a sweep's result to its run, once.

    Args:
        status: complete, stopped or failed.
        files: to be attached.
        at: when it ended, in seconds of the epoch; default: now.
    """
    uri = tracking_uri(uri)
    client, cursor = connected(uri), _read_cursor(folder, uri)
    run_id = cursor["run_id"]
    result = hashlib.sha256(json.dumps([status, metrics, note]).encode()).hexdigest()
    if cursor.get("closed") == result:
        return
    for name, value in metrics.items():
        client.log_metric(run_id, _name(name), value)
    client.set_tag(run_id, "mlflow.note.content", note[:NOTE_LENGTH])
    for path in files:
        if path.exists():
            client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, STATUS[status], None if at is None else int(at * 1000))
    _write_cursor(folder, uri, cursor | _view_of_sweep(client, folder, cursor) | {"closed": result})


def log_evaluation(folder: Path, uri: str | None, name: str, metrics: Mapping[str, float], files: Path) -> str | None:
    """Add an evaluation to the run of this folder, as `evaluate/NAME/...`; the run's id, None where it has none there.

    Args:
        files: a folder to attach.
    """
    from mlflow.entities import Metric

    uri = tracking_uri(uri)
    run = _read_cursor(folder, uri).get("run_id")
    if run:
        client, now = connected(uri), int(time.time() * 1000)
        rows = [Metric(_name(f"evaluate/{name}/{k}"), v, now, 0) for k, v in metrics.items() if math.isfinite(v)]
        client.log_batch(run, metrics=rows)
        client.log_artifacts(run, str(files), f"evaluations/{name}")
    return run


class _Sync:
    def __init__(self, folder: Path, uri: str, records: list[dict[str, Any]], child: Child | None = None):
        self.folder, self.uri, self.records, self.child = folder, uri, records, child
        self.cursor = _read_cursor(folder, uri)
        self.client = connected(uri)

    def send(self, alive: bool) -> str:
        if "run_id" in self.cursor and not _is_there(self.client, self.cursor["run_id"], self.folder):
            self.cursor = {}  # another database than the one it was sent to
        if "run_id" not in self.cursor:
            self._create()
        if self.child and self.cursor.get("parent") != self.child.parent:
            self._adopt(self.child)
        sent = self.cursor["sent"]
        if sent < len(self.records) or self.cursor.get("sending"):
            arrived = self._arrived() if self.cursor.get("sending") else set()
            self._save(sending=True)
            self._send_records(self.records[sent:], arrived)
            self._save(sent=len(self.records), sending=False)
        run_id, end = self.cursor["run_id"], self.records[-1]
        self._send_pictures()
        if end["kind"] == "end" and self.cursor.get("ended") != len(self.records):
            self._send_end(end)
            self._send_best_pictures()
            self._save(ended=len(self.records), **self._view())
        elif end["kind"] != "end" and not alive:
            self.client.set_terminated(run_id, "KILLED", end_time=int(end["time"] * 1000))
            self._save(ended=len(self.records))
        elif end["kind"] != "end" and self.cursor.get("ended"):
            self.client.update_run(run_id, status="RUNNING")  # resumed
            self._save(ended=None)
        return run_id

    def _adopt(self, child: Child) -> None:
        """Lay a run below its sweep's: it may have been sent alone, or below one that is gone."""
        tags = {"segsweep.kind": "trial", "mlflow.parentRunId": child.parent, **child.tags}
        for name, value in tags.items():
            self.client.set_tag(self.cursor["run_id"], name, value)
        self._save(parent=child.parent)

    def _create(self) -> None:
        start = self.records[0]
        child = self.child
        experiment_id = _experiment(self.client, self.uri, child.experiment if child else self._experiment_name())
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
            run_name=summary.name(
                start, child.number if child else self._number(experiment_id), child.first if child else {}
            ),
            tags={
                "segsweep.run": start["run"],
                "segsweep.folder": str(self.folder),
                "segsweep.kind": "trial" if child else "run",
                "mlflow.source.type": "LOCAL",
                "mlflow.source.name": "train.py",
                "mlflow.user": start["user"],
                "mlflow.note.content": summary.note(self.records)[:NOTE_LENGTH],
                **({"mlflow.source.git.commit": start["commit"]} if start["commit"] else {}),
                "dirty": str(start["dirty"]).lower(),
                "weights_source": start["weights_source"],
                "data_digest": start["data_digest"],
                **({"mlflow.parentRunId": child.parent, **child.tags} if child else {}),
            },
        )
        self._save(run_id=run.info.run_id, sent=0, sending=True, pictures=[], parent=child.parent if child else None)

    def _experiment_name(self) -> str:
        config = self.records[0]["config"]
        return config["tracking"]["experiment"] or config["data"]["name"]  # early journals have none

    def _number(self, experiment_id: str) -> int:
        """One more than the last single run's."""
        last = self.client.search_runs([experiment_id], "tags.`segsweep.kind` = 'run'", max_results=1)
        return summary.number(last[0].info.run_name) + 1 if last else 1

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
                    # MLflow's page of compared runs begins with what was logged first.
                    for name, value in sorted(record.items(), key=lambda item: item[0] != saved_view.SCORE)
                    if _is_metric(name, value)
                ]
        if records and records[0] is self.records[0]:
            start = records[0]
            params = {name: value for name, value in flat(start["config"]) if not name.startswith("tracking.")}
            params |= {name: start[name] for name in ("weights_source", "parameters", "device", "precision_used")}
            if self.child:
                params = {**{name: params.get(name, value) for name, value in self.child.first.items()}, **params}
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
        with _alone():  # two processes that log the same new data set at once: MLflow refuses one
            self.client.log_inputs(self.cursor["run_id"], datasets=[DatasetInput(dataset, tags)])

    def _send_pictures(self) -> None:
        """Files predictions/NAME/EPOCH.png, as images with steps."""
        sent = set(self.cursor["pictures"])
        for path in sorted((self.folder / "predictions").glob("*/*.png")):
            name = path.relative_to(self.folder).as_posix()
            if name not in sent:
                self._send_picture(path, int(path.stem))
                sent.add(name)
                self._save(pictures=sorted(sent))

    def _send_best_pictures(self) -> None:
        """The last picture of each image, which is the best epoch's, at a step that all runs have."""
        last = {path.parent: path for path in sorted((self.folder / "predictions").glob("*/*.png"))}
        for path in last.values():
            self._send_picture(path, saved_view.BEST)

    def _send_picture(self, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self.client.log_image(self.cursor["run_id"], image.copy(), key=_picture(path.parent), step=step)

    def _view(self) -> dict[str, str]:
        """Save the view of the experiment's single runs; what the cursor keeps of it."""
        if self.child:
            return {}  # the sweep has one
        return _save_view(
            self.client,
            self.cursor["experiment_id"],
            key="segsweep-runs",
            name=f"Runs: {self._experiment_name()}",
            search="tags.`segsweep.kind` = 'run'",
            swept=("encoder.name", "optim.lr"),
            pictures=[_picture(path) for path in sorted((self.folder / "predictions").glob("*/"))],
        )

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
                inside = name.rpartition("/")[0].lstrip(".")
                self.client.log_artifact(run_id, str(self.folder / name), inside or None)
        self.client.set_tag(run_id, "mlflow.note.content", summary.note(self.records)[:NOTE_LENGTH])
        if self.child and self.child.pruned_at is not None:
            self.client.set_tag(run_id, "pruned_at", self.child.pruned_at)
            for name, value in self.child.tags.items():
                self.client.set_tag(run_id, name, value)
        self.client.set_terminated(run_id, STATUS[end["status"]], end_time=when)

    def _save(self, **changes: Any) -> None:
        self.cursor |= changes
        _write_cursor(self.folder, self.uri, self.cursor)


def _is_there(client: Any, run_id: str, folder: Path) -> bool:
    """Whether MLflow has the run; not so in another database than the one it was sent to.

    Raises:
        ConfigError: it was deleted there.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if run.info.lifecycle_stage == "deleted":
        raise ConfigError(
            f"{folder}: its run was deleted in MLflow. Restore it there, or remove {CURSOR} to send it anew."
        )
    return True


def connected(uri: str) -> Any:
    """MLflow's client for this URI, which does not wait for ever; a database's file is made if need be."""
    # Bounded waiting, no telemetry, no addresses on stdout: read when mlflow is imported or called. What the user
    # set stays.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    outputs().mkdir(parents=True, exist_ok=True)
    with _alone():
        client = MlflowClient(tracking_uri=uri)
        if not uri.startswith("http"):
            client.search_experiments(max_results=1)  # creates the file
    return client


def _alone() -> AbstractContextManager[None]:
    """One process at a time: several at a fresh SQLite file break it."""
    return locked(outputs() / "mlflow.db.lock")


def _experiment(client: Any, uri: str, name: str) -> str:
    """The experiment's id; made or restored if need be, with a folder for files that no working folder moves."""
    with _alone():
        experiment = client.get_experiment_by_name(name)
        if experiment and experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        local = None if uri.startswith("http") else (outputs() / "mlartifacts" / name).as_uri()
        return experiment.experiment_id if experiment else client.create_experiment(name, artifact_location=local)


def _view_of_sweep(client: Any, folder: Path, cursor: Mapping[str, Any]) -> dict[str, str]:
    """Save the view of a sweep's runs; what the cursor keeps of it."""
    return _save_view(
        client,
        cursor["experiment_id"],
        key=f"segsweep-{cursor['run_id']}",
        name=f"Sweep: {folder.name}",
        search=f"tags.`mlflow.parentRunId` = '{cursor['run_id']}'",
        swept=cursor.get("swept", ()),
        pictures=sorted({_picture(path) for path in folder.glob("*/predictions/*/")}),
    )


def _save_view(client: Any, experiment_id: str, key: str, **view: Any) -> dict[str, str]:
    """Save a view in its experiment. Nothing depends on it: where MLflow refuses, the pages open without."""
    try:
        client.set_experiment_tag(experiment_id, saved_view.TAG + key, saved_view.text(**view, time=time.time()))
    except Exception as error:
        log.debug("MLflow: no view was saved: %s", short(error))
        return {}
    return {"view": key}


def _picture(folder: Path) -> str:
    """The key of the images that a folder predictions/NAME holds."""
    return _name(f"predictions/{folder.name}")


def _is_metric(name: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and name not in ("epoch", "time")


def _read_cursors(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CURSOR).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _write_cursor(folder: Path, uri: str, cursor: dict[str, Any]) -> None:
    save_json(folder / CURSOR, _read_cursors(folder) | {without_password(uri): cursor})


def _read_cursor(folder: Path, uri: str) -> dict[str, Any]:
    return _read_cursors(folder).get(without_password(uri), {})


def _name(text: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. /`; others are replaced, and a hash keeps the names apart."""
    parts = [part for part in re.sub(r"[^A-Za-z0-9_\-. /]", "_", text).split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts)
    return cleaned if cleaned == text else f"{cleaned}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"
