"""A run in MLflow, which is a view of its journal: `sync(folder)` brings it level, now or later, once or again.

The folder's cursor is written before and after each sending: a killed sync asks the server what had arrived.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from segsweep.errors import ConfigError, closest, first_line
from segsweep.paths import locked
from segsweep.runs import journal
from segsweep.runs.records import PRECISIONS, End, EpochRecord, Record, Run, Start
from segsweep.tracking import names, views
from segsweep.tracking.client import (
    CURSOR,
    NOTE_LENGTH,
    PARAM_LENGTH,
    STATUS,
    Cursor,
    allowed,
    alone,
    connected,
    is_there,
    mlflow_name,
    open_experiment,
    picture_key,
    read_cursor,
    tracking_uri,
    without_password,
    write_cursor,
)

ATTACHED = (
    *("summary.json", "split.csv", "code.diff", ".hydra/config.yaml", ".hydra/overrides.yaml"),
    *("figures/worst.png", "figures/training.png"),
)
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
PRECISION_NAMES = {short: name for name, short in PRECISIONS.items()}  # in MLflow as they always were


def run_id(folder: Path, uri: str | None = None) -> str | None:
    """Return the run's id at that URI; None where it has not been sent there."""
    return read_cursor(folder, tracking_uri(uri)).run_id or None


def folder_of(run_id: str, uri: str | None = None) -> Path:
    """Return the folder of the run with this id.

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
    """Return the folders of an experiment's runs.

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
        known = [each.name for each in client.search_experiments()]
        near = closest(experiment, known)
        hint = f" Closest: {near[0]}." if near else f" There are: {', '.join(known[:8])}."
        raise ConfigError(f"{experiment}: no such folder, and no such experiment at {without_password(uri)}.{hint}")
    folders, token = [], None
    while True:
        page = client.search_runs([found.experiment_id], page_token=token)
        folders += [Path(run.data.tags["segsweep.folder"]) for run in page if "segsweep.folder" in run.data.tags]
        token = page.token
        if not token:
            return folders


def uri_of(folder: Path, typed: str | None = None) -> str:
    """Return the tracking URI that a run is sent to: the one typed now, or its own.

    Raises:
        ConfigError: no run lies there, or its own URI is not this user's, as `client.allowed` has it.
    """
    return allowed(journal.started(folder).asked.tracking.uri, typed)


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

    Metrics, pictures and files are sent once, whoever asks how often, and when two ask at once.

    Args:
        folder: a run folder.
        uri: MLflow's tracking URI, typed by this user; default: that of `uri_of`.
        alive: whether the run may still go on; one that cannot, and has no end, is marked as killed.
        child: of a sweep's run.

    Raises:
        ConfigError: the folder holds no run, or its own URI is not this user's, or the run was deleted in MLflow.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    with locked(folder / f".{CURSOR}.lock"):
        run = journal.started(folder)
        return _Sync(folder, allowed(run.asked.tracking.uri, uri), run, child).send(alive)


def log_evaluation(folder: Path, uri: str | None, name: str, metrics: Mapping[str, float], files: Path) -> str | None:
    """Add an evaluation to the run of this folder, as `evaluate/NAME/...`.

    Args:
        uri: as for `sync`.
        files: a folder to attach.

    Returns:
        the run's id; None where it has not been sent to MLflow.

    Raises:
        ConfigError: the run's own URI is not this user's.
    """
    from mlflow.entities import Metric

    recorded = journal.started(folder).asked.tracking.uri
    run = read_cursor(folder, tracking_uri(uri or recorded)).run_id
    if not run:
        return None
    client, now = connected(allowed(recorded, uri)), int(time.time() * 1000)
    rows = [Metric(mlflow_name(f"evaluate/{name}/{k}"), v, now, 0) for k, v in metrics.items() if math.isfinite(v)]
    client.log_batch(run, metrics=rows)
    client.log_artifacts(run, str(files), f"evaluations/{name}")
    return run


class _Sync:
    """One sending of a run; `cursor` is written down after each step."""

    def __init__(self, folder: Path, uri: str, run: Run, child: Child | None = None):
        self.folder, self.uri, self.run, self.child = folder, uri, run, child
        self.first = run.starts[0]
        self.cursor = read_cursor(folder, uri)
        self.client = connected(uri)

    def send(self, alive: bool) -> str:
        cursor, records = self.cursor, self.run.records
        if cursor.run_id and not is_there(self.client, cursor.run_id, self.folder):
            cursor = self.cursor = Cursor()  # another database than the one it was sent to
        if not cursor.run_id:
            self._create()
        if self.child and cursor.parent != self.child.parent:
            self._adopt(self.child)
        if cursor.sent < len(records) or cursor.sending:
            arrived = self._arrived() if cursor.sending else set()
            cursor.sending = True
            self._save()
            self._send_records(records[cursor.sent :], arrived)
            cursor.sent, cursor.sending = len(records), False
            self._save()
        self._send_pictures()
        end = self.run.end
        if end and cursor.ended != len(records):
            self._send_end(end)
            self._send_best_pictures()
            if not self.child:  # the sweep has a view of its own
                self._save_view()
            cursor.ended = len(records)
            self._save()
        elif not end and not alive:
            self.client.set_terminated(cursor.run_id, "KILLED", end_time=_milliseconds(records[-1]))
            cursor.ended = len(records)
            self._save()
        elif not end and cursor.ended:
            self.client.update_run(cursor.run_id, status="RUNNING")  # resumed
            cursor.ended = None
            self._save()
        return cursor.run_id

    def _adopt(self, child: Child) -> None:
        """Lay a run below its sweep's: it may have been sent alone, or below one that is gone."""
        tags = {"segsweep.kind": "trial", "mlflow.parentRunId": child.parent, **child.tags}
        for name, value in tags.items():
            self.client.set_tag(self.cursor.run_id, name, value)
        self.cursor.parent = child.parent
        self._save()

    def _create(self) -> None:
        """Make the run, or find what a killed sync has made."""
        start, child, cursor = self.first, self.child, self.cursor
        name = child.experiment if child else start.asked.experiment
        cursor.experiment_id = open_experiment(self.client, self.uri, name)
        cursor.sent, cursor.sending, cursor.pictures = 0, True, []
        # A sync that was killed after create_run left a run with this tag: go on with that.
        mine = f"tags.`segsweep.run` = '{start.run}'"
        found = self.client.search_runs([cursor.experiment_id], mine, max_results=1)
        if found:
            cursor.run_id = found[0].info.run_id
            self._save()
            return
        number, varied = (child.number, child.first) if child else (self._number(cursor.experiment_id), {})
        run = self.client.create_run(
            cursor.experiment_id,
            start_time=_milliseconds(start),
            run_name=names.name(start, number, varied),
            tags={
                "segsweep.run": start.run,
                "segsweep.folder": str(self.folder),
                "segsweep.kind": "trial" if child else "run",
                "mlflow.source.type": "LOCAL",
                "mlflow.source.name": "train.py",
                "mlflow.user": start.user,
                "mlflow.note.content": names.note(self.run)[:NOTE_LENGTH],
                **({"mlflow.source.git.commit": start.commit} if start.commit else {}),
                "dirty": str(start.dirty).lower(),
                "weights_source": start.weights_source,
                "data_digest": start.data_digest,
                **({"mlflow.parentRunId": child.parent, **child.tags} if child else {}),
            },
        )
        cursor.run_id, cursor.parent = run.info.run_id, child.parent if child else None
        self._save()

    def _number(self, experiment_id: str) -> int:
        """Return one more than the last single run's."""
        last = self.client.search_runs([experiment_id], "tags.`segsweep.kind` = 'run'", max_results=1)
        return names.number(last[0].info.run_name) + 1 if last else 1

    def _arrived(self) -> set[int]:
        """Return the epochs that a killed sync had sent."""
        history = self.client.get_metric_history(self.cursor.run_id, "val/loss")
        return {metric.step for metric in history}

    def _send_records(self, records: Sequence[Record], arrived: set[int]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id = self.cursor.run_id
        if records and records[0] is self.run.records[0]:
            rows = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in self._params().items()]
            for first in range(0, len(rows), PARAMS_PER_CALL):
                self.client.log_batch(run_id, params=rows[first : first + PARAMS_PER_CALL])
            self._send_data_set()
        for record in records:
            if isinstance(record, Start) and record is not self.first:
                tag = RunTag("resumed_after_epoch", str(record.resumed_after))
                self.client.log_batch(run_id, tags=[tag])
        metrics = [
            Metric(mlflow_name(name), value, _milliseconds(record), record.epoch)
            for record in records
            if isinstance(record, EpochRecord) and record.epoch not in arrived
            # MLflow's page of compared runs begins with what was logged first.
            for name, value in sorted(record.metrics.items(), key=lambda item: item[0] != views.SCORE)
            if value is not None
        ]
        for first in range(0, len(metrics), METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[first : first + METRICS_PER_CALL])

    def _params(self) -> dict[str, object]:
        """Return what was decided, and how it ran; what a sweep varied stands first."""
        start = self.first
        params: dict[str, object] = {k: v for k, v in start.keys().items() if not k.startswith("tracking.")}
        params |= {
            "weights_source": start.weights_source,
            "parameters": start.parameters,
            "device": start.execution.device,
            "precision_used": PRECISION_NAMES[start.execution.precision],
        }
        varied = self.child.first if self.child else {}
        return {**{name: params.get(name, value) for name, value in varied.items()}, **params}

    def _send_data_set(self) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        start, data = self.first, self.first.asked.data
        source = {"images": data.images or data.root, "masks": data.masks or data.root}
        dataset = Dataset(
            name=data.name,
            digest=start.data_digest,
            source_type="local",
            source=json.dumps(source),
            profile=json.dumps({part: start.images.get(part, 0) for part in ("train", "val", "test")}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        with alone():  # two processes that log the same new data set at once: MLflow refuses one
            self.client.log_inputs(self.cursor.run_id, datasets=[DatasetInput(dataset, tags)])

    def _send_pictures(self) -> None:
        """Send the files predictions/NAME/EPOCH.png, as images with steps."""
        for path in sorted((self.folder / "predictions").glob("*/*.png")):
            name = path.relative_to(self.folder).as_posix()
            if name not in self.cursor.pictures:
                self._send_picture(path, int(path.stem))
                self.cursor.pictures = sorted([*self.cursor.pictures, name])
                self._save()

    def _send_best_pictures(self) -> None:
        """Send the last picture of each image, which is the best epoch's, at a step that all runs have."""
        last = {path.parent: path for path in sorted((self.folder / "predictions").glob("*/*.png"))}
        for path in last.values():
            self._send_picture(path, views.BEST)

    def _send_picture(self, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self.client.log_image(self.cursor.run_id, image.copy(), key=picture_key(path.parent), step=step)

    def _save_view(self) -> None:
        """Save the view of the experiment's single runs, and note its key."""
        self.cursor.view = views.save(
            self.client,
            self.cursor.experiment_id,
            key="segsweep-runs",
            name=f"Runs: {self.first.asked.experiment}",
            search="tags.`segsweep.kind` = 'run'",
            swept=("encoder.name", "optim.lr"),
            pictures=[picture_key(path) for path in sorted((self.folder / "predictions").glob("*/"))],
        )

    def _send_end(self, end: End) -> None:
        from mlflow.entities import Metric

        run_id, when = self.cursor.run_id, _milliseconds(end)
        step = int(end.metrics.get("best/epoch") or 0)
        if tested := [Metric(mlflow_name(name), value, when, step) for name, value in end.tested.items()]:
            self.client.log_batch(run_id, metrics=tested)
        for name in ATTACHED:
            if (self.folder / name).exists():
                inside = name.rpartition("/")[0].lstrip(".")
                self.client.log_artifact(run_id, str(self.folder / name), inside or None)
        self.client.set_tag(run_id, "mlflow.note.content", names.note(self.run)[:NOTE_LENGTH])
        if self.child and self.child.pruned_at is not None:
            self.client.set_tag(run_id, "pruned_at", self.child.pruned_at)
            for name, value in self.child.tags.items():
                self.client.set_tag(run_id, name, value)
        self.client.set_terminated(run_id, STATUS[end.status], end_time=when)

    def _save(self) -> None:
        write_cursor(self.folder, self.uri, self.cursor)


def _milliseconds(record: Record) -> int:
    return int(record.time * 1000)
