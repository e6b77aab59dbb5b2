"""A sweep in MLflow: the run under which those of its trials lie."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segsweep.tracking import views
from segsweep.tracking.client import (
    NOTE_LENGTH,
    PARAM_LENGTH,
    STATUS,
    Cursor,
    connected,
    is_there,
    mlflow_name,
    open_experiment,
    picture_key,
    read_cursor,
    tracking_uri,
    write_cursor,
)


def open_sweep(
    folder: Path,
    uri: str | None,
    experiment: str,
    params: Mapping[str, str],
    note: str,
    swept: Sequence[str] = (),
    since: float | None = None,
) -> str:
    """Make the run under which a sweep's runs lie, or take it up again; return its id.

    Args:
        uri: MLflow's tracking URI, which is contacted as it is; `client.allowed` says whether one that was read from a
            folder may be.
        swept: the keys that are varied, for the saved view of its runs.
        since: of a sweep that no longer runs: when it began, in seconds of the epoch. One that MLflow has is left as it
            is.

    Raises:
        ConfigError: the run was deleted in MLflow.
    """
    from mlflow.entities import Param

    uri = tracking_uri(uri)
    client = connected(uri)
    cursor = read_cursor(folder, uri)
    if cursor.run_id and is_there(client, cursor.run_id, folder):
        if since is None:
            client.update_run(cursor.run_id, status="RUNNING")
            cursor.closed = ""
            write_cursor(folder, uri, cursor)
        return cursor.run_id
    experiment_id = open_experiment(client, uri, experiment)
    tags = {"segsweep.folder": str(folder), "segsweep.kind": "sweep", "mlflow.note.content": note[:NOTE_LENGTH]}
    began = None if since is None else int(since * 1000)
    run_id = client.create_run(experiment_id, began, run_name=folder.name, tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(name, value[:PARAM_LENGTH]) for name, value in params.items()])
    cursor = Cursor(experiment_id, run_id, swept=list(swept))
    _save_view(client, folder, cursor)
    write_cursor(folder, uri, cursor)
    return str(run_id)


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
        uri: as for `open_sweep`.
        status: complete, stopped or failed.
        files: to be attached.
        at: when it ended, in seconds of the epoch; default: now.
    """
    uri = tracking_uri(uri)
    client, cursor = connected(uri), read_cursor(folder, uri)
    run_id = cursor.run_id
    result = hashlib.sha256(json.dumps([status, metrics, note]).encode()).hexdigest()
    if cursor.closed == result:
        return
    for name, value in metrics.items():
        client.log_metric(run_id, mlflow_name(name), value)
    client.set_tag(run_id, "mlflow.note.content", note[:NOTE_LENGTH])
    for path in files:
        if path.exists():
            client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, STATUS[status], None if at is None else int(at * 1000))
    _save_view(client, folder, cursor)
    cursor.closed = result
    write_cursor(folder, uri, cursor)


def _save_view(client: Any, folder: Path, cursor: Cursor) -> None:
    """Save the view of a sweep's runs, and note its key."""
    cursor.view = views.save(
        client,
        cursor.experiment_id,
        key=f"segsweep-{cursor.run_id}",
        name=f"Sweep: {folder.name}",
        search=f"tags.`mlflow.parentRunId` = '{cursor.run_id}'",
        swept=cursor.swept,
        pictures=sorted({picture_key(path) for path in folder.glob("*/predictions/*/")}),
    )
