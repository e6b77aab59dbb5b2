"""A sweep in MLflow: the parent run of its trials' runs."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segsweep.tracking import client, views

SWEEP = "segsweep.sweep"  # a tag: the id of a sweep


def open_sweep(
    folder: Path,
    uri: str | None,
    experiment: str,
    params: Mapping[str, str],
    note: str,
    swept: Sequence[str] = (),
    since: float | None = None,
    sweep: str = "",
) -> str:
    """Make the run under which a sweep's runs lie, or take it up again; return its id.

    Args:
        uri: MLflow's tracking URI, contacted as it is: one that was read from a folder is for `client.allowed`.
        swept: the keys that are varied, for the saved view of its runs.
        sweep: names the sweep: a run that a killed start has made is found by it.
        since: when a sweep that no longer runs began, in seconds of the epoch; one that MLflow has is left as it is.
    """
    from mlflow.entities import Param

    uri = client.tracking_uri(uri)
    server, cursor = client.connected(uri), client.read_cursor(folder, uri)
    if cursor.run_id and client.is_there(server, cursor.run_id, folder):
        if since is None:
            server.update_run(cursor.run_id, status="RUNNING")
            cursor.closed = ""
        if cursor.folder != str(folder):  # it was moved
            server.set_tag(cursor.run_id, "segsweep.folder", str(folder))
            cursor.folder = str(folder)
        client.write_cursor(folder, uri, cursor)
        return cursor.run_id
    experiment_id = client.open_experiment(server, uri, experiment)
    tags = {"segsweep.folder": str(folder), "segsweep.kind": "sweep", "mlflow.note.content": note[: client.NOTE_LENGTH]}
    made = server.search_runs([experiment_id], f"tags.`{SWEEP}` = '{sweep}'", max_results=1) if sweep else []
    if made:
        run_id = made[0].info.run_id
        if since is None:
            server.update_run(run_id, status="RUNNING")
    else:
        began, tags = None if since is None else int(since * 1000), tags | ({SWEEP: sweep} if sweep else {})
        run_id = server.create_run(experiment_id, began, run_name=folder.name, tags=tags).info.run_id
    if not made or not made[0].data.params:  # a kill may have come between
        rows = [Param(client.mlflow_name(name), value[: client.PARAM_LENGTH]) for name, value in params.items()]
        server.log_batch(run_id, params=rows)
    cursor = client.Cursor(experiment_id, run_id, swept=list(swept), folder=str(folder))
    _save_view(server, folder, cursor)
    client.write_cursor(folder, uri, cursor)
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
    """Write a sweep's result to its run, once; it ended `at` seconds of the epoch, by default now."""
    uri = client.tracking_uri(uri)
    server, cursor = client.connected(uri), client.read_cursor(folder, uri)
    run_id = cursor.run_id
    result = hashlib.sha256(json.dumps([status, metrics, note]).encode()).hexdigest()
    if cursor.closed == result:
        return
    for name, value in metrics.items():
        server.log_metric(run_id, client.mlflow_name(name), value)
    server.set_tag(run_id, "mlflow.note.content", note[: client.NOTE_LENGTH])
    for path in files:
        if path.exists():
            server.log_artifact(run_id, str(path))
    server.set_terminated(run_id, client.STATUS[status], None if at is None else int(at * 1000))
    _save_view(server, folder, cursor)
    cursor.closed = result
    client.write_cursor(folder, uri, cursor)


def _save_view(server: Any, folder: Path, cursor: client.Cursor) -> None:
    pictures = sorted({client.picture_key(path) for path in folder.glob("*/predictions/*/")})
    search = f"tags.`mlflow.parentRunId` = '{cursor.run_id}'"
    key, name = f"segsweep-{cursor.run_id}", f"Sweep: {folder.name}"
    cursor.view = views.save(server, cursor.experiment_id, key, name, search, cursor.swept, pictures)
