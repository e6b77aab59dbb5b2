"""A run in MLflow, a view of its journal: `sync(folder)` sends what is missing, at any time and any number of times."""

import json
import logging
import math
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from segsweep.errors import ConfigError, first_line, short, suggestion
from segsweep.paths import BEST, locked
from segsweep.runs import journal
from segsweep.runs.records import End, EpochRecord, Record, Run, Start
from segsweep.tracking import client, names, views

log = logging.getLogger(__name__)

ATTACHED = (
    *("summary.json", "plan.json", "split.csv", "code.diff", ".hydra/config.yaml", ".hydra/overrides.yaml"),
    *("figures/worst.png", "figures/training.png", "figures/augmented.png"),
)
FILES_OF_PICTURE = 2  # that MLflow makes: one is small
ARRIVED = "val/loss"  # an epoch's last metric to be sent: where it is, all are
KEPT = "kept"  # folder of the files that go from one host to another
SCORES = ("val/", "test/")  # of the best epoch, that a model is compared by
NO_MODELS = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")  # says a server without a page of models, as before MLflow 3
LATEST = 50  # runs of which one has the highest number
SINGLE_RUNS = "tags.`segsweep.kind` = 'run'"
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100


def run_id(folder: Path, uri: str | None = None) -> str | None:
    """Return the run's id at that URI; None where it has not been sent there."""
    return client.read_cursor(folder, client.tracking_uri(uri)).run_id or None


def folder_of(run_id: str, uri: str | None = None) -> Path:
    """Return the folder of the run with this id; one that is not on this machine is a `ConfigError`."""
    from mlflow.exceptions import MlflowException

    uri = client.tracking_uri(uri)
    where = client.without_password(uri)
    try:
        run = client.connected(uri).get_run(run_id)
    except MlflowException as error:
        raise ConfigError(f"{run_id}: no run of this id at {where}: {first_line(error)}") from error
    folder = Path(run.data.tags.get("segsweep.folder", ""))
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(
            f"{run_id}: its folder is not on this machine: {folder}. Copy the folder to this machine, "
            f"and give its path."
        )
    return folder


def folders_of(experiment: str, uri: str | None = None) -> list[Path]:
    """Return the folders of an experiment's runs; one that is not there is a `ConfigError`."""
    from mlflow.exceptions import MlflowException

    uri = client.tracking_uri(uri)
    where = client.without_password(uri)
    try:
        server = client.connected(uri)
        found = server.get_experiment_by_name(experiment)
    except MlflowException as error:
        raise ConfigError(f"{experiment}: MLflow at {where} does not answer: {first_line(error)}") from error
    if found is None:
        known = [each.name for each in server.search_experiments()]
        hint = suggestion(experiment, known) or f" There are: {', '.join(known[:8])}."
        raise ConfigError(f"{experiment}: no such folder, and no such experiment at {where}.{hint}")
    folders, token = [], None
    while True:
        page = server.search_runs([found.experiment_id], page_token=token)
        folders += [Path(run.data.tags["segsweep.folder"]) for run in page if "segsweep.folder" in run.data.tags]
        token = page.token
        if not token:
            return folders


def _trial(tags: Mapping[str, str]) -> str:
    """Name a trial without the number of its attempt."""
    return re.sub(r"\.\d+$", "", tags.get("trial", ""))


def uri_of(folder: Path, typed: str | None = None) -> str:
    """Return the tracking URI that a run is sent to: the one typed now, or its own, as `client.allowed` has it."""
    return client.allowed(journal.started(folder).asked.tracking.uri, typed)


@dataclass(frozen=True)
class Child:
    """The information of a sweep about one of its runs."""

    parent: str  # id of the sweep's run
    experiment: str  # that it is in
    number: int  # of the trial
    first: Mapping[str, str] = field(default_factory=dict)  # what was varied, by key: before all other parameters
    tags: Mapping[str, str] = field(default_factory=dict)
    pruned_at: int | None = None  # the epoch after which it was stopped


def sync(folder: Path, uri: str | None = None, alive: bool = True, child: Child | None = None) -> str:
    """Send what MLflow does not have yet of a run's folder, once whoever asks how often, and return the run's id.

    Args:
        uri: MLflow's tracking URI, typed by this user; default: that of `uri_of`.
        alive: whether the run may still go on; one that cannot, and has no end, is marked as killed.
        child: of a sweep's run.

    Raises:
        ConfigError: the folder holds no run, or its own URI is not this user's, or the run was deleted in MLflow.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    with locked(folder / f".{client.CURSOR}.lock"):
        run = journal.started(folder)
        return _Sync(folder, client.allowed(run.asked.tracking.uri, uri), run, child).send(alive)


def log_evaluation(folder: Path, uri: str | None, name: str, metrics: Mapping[str, float], files: Path) -> None:
    """Add an evaluation and its files to a run that MLflow has, as `evaluate/NAME/...`; `uri` is as for `sync`."""
    from mlflow.entities import Metric

    recorded = journal.started(folder).asked.tracking.uri
    run = client.read_cursor(folder, client.tracking_uri(uri or recorded)).run_id
    if not run:
        return
    server, now = client.connected(client.allowed(recorded, uri)), int(time.time() * 1000)
    known = {f"evaluate/{name}/{k}": value for k, value in metrics.items() if math.isfinite(value)}
    server.log_batch(run, metrics=[Metric(client.mlflow_name(k), value, now, 0) for k, value in known.items()])
    server.log_artifacts(run, str(files), f"evaluations/{name}")


def attach(folder: Path, uri: str | None, files: Sequence[Path]) -> None:
    """Send files of a run that MLflow has, to be had again by `fetch`; `uri` is one that may be contacted."""
    uri = client.tracking_uri(uri)
    server, run = client.connected(uri), client.read_cursor(folder, uri).run_id
    for path in files:
        if path.exists():
            server.log_artifact(run, str(path), KEPT)


def fetch(run: str, experiment: str, folder: Path, uri: str | None) -> None:
    """Bring the files of a run that `attach` sent into a folder; the run is named by its first record.

    Raises ConfigError: MLflow has no such run.
    """
    server = client.connected(client.tracking_uri(uri))
    found = server.get_experiment_by_name(experiment)
    runs = server.search_runs([found.experiment_id], f"tags.`segsweep.run` = '{run}'", max_results=1) if found else []
    if not runs:
        raise ConfigError(f"{folder}: MLflow does not have its run.")
    with tempfile.TemporaryDirectory() as place:
        came = Path(server.download_artifacts(runs[0].info.run_id, KEPT, place))
        folder.mkdir(parents=True, exist_ok=True)
        for path in came.iterdir():
            shutil.copy2(path, folder / path.name)


class _Sync:
    """One sending of a run; `cursor` is written before and after each step: a killed one asks what had arrived."""

    def __init__(self, folder: Path, uri: str, run: Run, child: Child | None):
        self.folder, self.uri, self.run, self.child, self.first = folder, uri, run, child, run.starts[0]
        self.cursor, self.server = client.read_cursor(folder, uri), client.connected(uri)
        self.drawn: set[str] = set()  # what arrived of a sync that was killed
        self.pictures = sorted((folder / "predictions").glob("*/*.png"))  # predictions/NAME/EPOCH.png
        self.child_tags = {"segsweep.kind": "trial", "mlflow.parentRunId": child.parent, **child.tags} if child else {}

    def send(self, alive: bool) -> str:
        cursor, records = self.cursor, self.run.records
        if cursor.run_id and not client.is_there(self.server, cursor.run_id, self.folder):
            cursor = self.cursor = client.Cursor()  # another database than the one it was sent to
        if not cursor.run_id:
            self._create()
        if cursor.folder != str(self.folder):  # it was moved
            self._tag({"segsweep.folder": self.folder})
            cursor.folder = str(self.folder)
            self._save()
        if self.child and cursor.parent != self.child.parent:  # it was sent alone, or below one that is gone
            self._tag(self.child_tags)
            cursor.parent = self.child.parent
            self._save()
        if cursor.sent < len(records) or cursor.sending:
            history = self.server.get_metric_history(cursor.run_id, ARRIVED) if cursor.sending else ()
            arrived = {metric.step for metric in history}
            cursor.sending = True
            self._save()
            self._send_records(records[cursor.sent :], arrived)
            cursor.sent, cursor.sending = len(records), False
            self._save()
        end = self.run.end
        ends = end if cursor.ended != len(records) else None
        unsent = [path for path in self.pictures if path.relative_to(self.folder).as_posix() not in cursor.pictures]
        if unsent or ends:
            if cursor.drawing:
                self.drawn = {Path(file.path).name for file in self.server.list_artifacts(cursor.run_id, "images")}
            cursor.drawing = True
            self._save()
        for path in unsent:
            self._send_picture(path, int(path.stem))
            cursor.pictures = sorted([*cursor.pictures, path.relative_to(self.folder).as_posix()])
            self._save()
        if ends:
            self._send_end(ends)
            if not self.child:  # the sweep has a view of its own
                self._save_view()
            cursor.ended = len(records)
        if cursor.drawing:
            cursor.drawing = False
            self._save()
        if not end and not alive:
            self.server.set_terminated(cursor.run_id, "KILLED", end_time=_milliseconds(records[-1]))
            cursor.ended = len(records)
            self._save()
        elif not end and cursor.ended:
            self.server.update_run(cursor.run_id, status="RUNNING")  # resumed
            cursor.ended = None
            self._save()
        return cursor.run_id

    def _create(self) -> None:
        """Make the run, or find what a killed sync has made."""
        start, child, cursor = self.first, self.child, self.cursor
        name = child.experiment if child else start.asked.experiment
        cursor.experiment_id = client.open_experiment(self.server, self.uri, name)
        cursor.sent, cursor.sending, cursor.pictures, cursor.drawing = 0, True, [], False
        # A sync that was killed after create_run left a run with this tag: go on with that.
        mine = f"tags.`segsweep.run` = '{start.run}'"
        found = self.server.search_runs([cursor.experiment_id], mine, max_results=1)
        if found:
            cursor.run_id, cursor.drawing = found[0].info.run_id, True
            self._save()
            return
        if child:
            self._end_earlier(child)
        tags = {
            "segsweep.run": start.run,
            "segsweep.folder": str(self.folder),
            "segsweep.kind": "run",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "train.py",
            "mlflow.user": start.user,
            "mlflow.note.content": names.note(self.run)[: client.NOTE_LENGTH],
            **({"mlflow.source.git.commit": start.commit} if start.commit else {}),
            "dirty": str(start.dirty).lower(),
            "weights_source": start.weights_source,
            "data_digest": start.data_digest,
            **self.child_tags,
        }
        with client.alone():  # each run that begins on this machine gets a number of its own
            number, varied = (child.number, child.first) if child else (self._number(), {})
            called = names.name(start, number, varied)
            run = self.server.create_run(cursor.experiment_id, _milliseconds(start), tags, called)
        cursor.run_id, cursor.parent = run.info.run_id, child.parent if child else None
        cursor.folder = str(self.folder)
        self._save()

    def _end_earlier(self, child: Child) -> None:
        """End the runs of earlier attempts at this trial, which has begun anew: nothing more will come of them."""
        running = f"tags.`mlflow.parentRunId` = '{child.parent}' and attributes.status = 'RUNNING'"
        for run in self.server.search_runs([self.cursor.experiment_id], running):
            if _trial(run.data.tags) == _trial(child.tags):
                self.server.set_terminated(run.info.run_id, "KILLED")

    def _number(self) -> int:
        """Return one more than the highest of the latest single runs; they may have begun in another order."""
        latest = self.server.search_runs([self.cursor.experiment_id], SINGLE_RUNS, max_results=LATEST)
        return max((names.number(run.info.run_name) for run in latest), default=0) + 1

    def _send_records(self, records: Sequence[Record], arrived: set[int]) -> None:
        """Send records, but for the epochs that a killed sync had sent."""
        from mlflow.entities import Metric, Param

        run_id = self.cursor.run_id
        if records and records[0] is self.run.records[0]:
            rows = [
                Param(client.mlflow_name(name), str(value)[: client.PARAM_LENGTH])
                for name, value in self._params().items()
            ]
            for first in range(0, len(rows), PARAMS_PER_CALL):
                self.server.log_batch(run_id, params=rows[first : first + PARAMS_PER_CALL])
            self._send_data_set()
        for record in records:
            if isinstance(record, Start) and record is not self.first:
                self._tag({"resumed_after_epoch": record.resumed_after})
        metrics = [
            Metric(client.mlflow_name(name), value, _milliseconds(record), record.epoch)
            for record in records
            if isinstance(record, EpochRecord) and record.epoch not in arrived
            for name, value in sorted(record.metrics.items(), key=_order)
            if value is not None
        ]
        for first in range(0, len(metrics), METRICS_PER_CALL):
            self.server.log_batch(run_id, metrics=metrics[first : first + METRICS_PER_CALL])

    def _params(self) -> dict[str, object]:
        """Return what was decided, and how it ran; what a sweep varied stands first."""
        start = self.first
        params: dict[str, object] = {k: v for k, v in start.keys().items() if not k.startswith("tracking.")}
        params |= {
            "weights_source": start.weights_source,
            "parameters": start.parameters,
            "device": start.execution.device,
            "precision_used": start.execution.precision,
        }
        varied = self.child.first if self.child else {}
        return {**{name: params.get(name, value) for name, value in varied.items()}, **params}

    def _send_data_set(self) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        start, data = self.first, self.first.asked.data
        source = {
            "images": data.table or data.images or data.root,
            "masks": data.table or data.annotations or data.masks or data.root,
        }
        profile = {part: start.images.get(part, 0) for part in ("train", "val", "test")}
        dataset = Dataset(data.name, start.data_digest, "local", json.dumps(source), profile=json.dumps(profile))
        tags = [InputTag("mlflow.data.context", "training")]
        with client.alone():  # two processes that log the same new data set at once: MLflow refuses one
            self.server.log_inputs(self.cursor.run_id, datasets=[DatasetInput(dataset, tags)])

    def _send_picture(self, path: Path, step: int) -> None:
        """Send a picture that has not arrived, by MLflow's names of files; of a damaged one, say so."""
        key, when = client.picture_key(path.parent), path.stat().st_mtime_ns // 1_000_000
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{when}+"
        if sum(file.startswith(name) for file in self.drawn) >= FILES_OF_PICTURE:
            return
        try:
            with Image.open(path) as opened:
                image = opened.copy()
        except (OSError, ValueError) as error:
            log.warning("MLflow: %s is left out: %s", path, short(error))
            return
        self.server.log_image(self.cursor.run_id, image, key=key, step=step, timestamp=when)

    def _save_view(self) -> None:
        pictures = list(dict.fromkeys(client.picture_key(path.parent) for path in self.pictures))
        name, swept = f"Runs: {self.first.asked.experiment}", ("encoder.name", "optim.lr")
        self.cursor.view = views.save(
            self.server, self.cursor.experiment_id, "segsweep-runs", name, SINGLE_RUNS, swept, pictures
        )

    def _send_end(self, end: End) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        run_id, when = self.cursor.run_id, _milliseconds(end)
        step = int(end.metrics.get("best/epoch") or 0)
        if tested := [Metric(client.mlflow_name(name), value, when, step) for name, value in end.tested.items()]:
            self.server.log_batch(run_id, metrics=tested)
        later = sorted(path.name for path in self.folder.glob("code-*.diff"))  # of later starts
        for name in (*ATTACHED, *later):
            if (self.folder / name).exists():
                inside = name.rpartition("/")[0].lstrip(".")
                self.server.log_artifact(run_id, str(self.folder / name), inside or None)
        self._tag({"mlflow.note.content": names.note(self.run)[: client.NOTE_LENGTH]})
        if self.child:  # why it ended is known by now
            pruned_at = {} if self.child.pruned_at is None else {"pruned_at": self.child.pruned_at}
            self._tag({**self.child.tags, **pruned_at})
        self.server.set_terminated(run_id, client.STATUS[end.status], end_time=when)
        for path in {path.parent: path for path in self.pictures}.values():  # each image's last, of the best epoch
            self._send_picture(path, views.BEST)
        try:
            self._send_model(end)
        except MlflowException as error:
            if error.error_code not in NO_MODELS:
                raise
            log.warning("MLflow: the model of %s was not added to the page Models: %s", self.folder, short(error))

    def _send_model(self, end: End) -> None:
        """Have the best checkpoint among MLflow's models, with its scores, so that they can be compared there."""
        from mlflow.entities import LoggedModelStatus, Metric
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        best, path = self.run.best, self.folder / BEST
        if best is None or not path.exists():
            return
        cursor, start = self.cursor, self.first
        if not cursor.model:
            found = self.server.search_logged_models([cursor.experiment_id], f"source_run_id = '{cursor.run_id}'")
            cursor.model = found[0].model_id if found else ""
        if not cursor.model:
            called = re.sub(r"[^\w-]", "_", start.settings.encoder.name)  # MLflow takes no dots here
            varied = {key: str(start.keys()[key]) for key in ("encoder.name", "optim.lr", "data.size")}
            made = self.server.create_logged_model(
                cursor.experiment_id,
                called,
                cursor.run_id,
                tags={MLFLOW_MODEL_IS_EXTERNAL: "true", "segsweep.model": str(path)},
                params={**varied, "weights_source": start.weights_source, "parameters": str(start.parameters)},
                model_type="segmentation",
            )
            cursor.model = made.model_id
        self._save()
        self.server.finalize_logged_model(cursor.model, LoggedModelStatus.READY)
        scores = {name: value for name, value in {**best.metrics, **end.tested}.items() if name.startswith(SCORES)}
        data = {"dataset_name": start.asked.data.name, "dataset_digest": start.data_digest}
        when = _milliseconds(end)
        metrics = [
            Metric(client.mlflow_name(f"model/{name}"), value, when, best.epoch, cursor.model, **data)
            for name, value in scores.items()
            if value is not None
        ]
        self.server.log_batch(cursor.run_id, metrics=metrics)

    def _tag(self, tags: Mapping[str, object]) -> None:
        for name, value in tags.items():
            self.server.set_tag(self.cursor.run_id, name, value)

    def _save(self) -> None:
        client.write_cursor(self.folder, self.uri, self.cursor)


def _order(metric: tuple[str, object]) -> tuple[bool, bool]:
    """First what MLflow's page of compared runs is to begin with, last what tells of arrival."""
    return metric[0] == ARRIVED, metric[0] != views.SCORE


def _milliseconds(record: Record) -> int:
    return int(record.time * 1000)
