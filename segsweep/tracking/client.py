"""MLflow itself: which server, whether it may be asked, its experiments, and what it has of a folder.

A cursor in the folder (`tracking.json`) says for each tracking URI what has been sent. Only `registry`, `run` and
`sweep` know mlflow, too.
"""

import json
import logging
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from segsweep.config.checks import read
from segsweep.errors import ConfigError
from segsweep.paths import atomically, locked, outputs, save_json
from segsweep.tracking import views

CURSOR = "tracking.json"
TRUSTED = "tracking-uris"
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PARAM_LENGTH, NOTE_LENGTH = 6000, 8000  # letters that MLflow takes


@dataclass
class Cursor:
    """What has been sent of a run or sweep folder to one tracking URI.

    Attributes:
        experiment_id, run_id: in MLflow; empty until they are made.
        view: key of the saved view that shows it; empty without one.
        sent: records that have arrived.
        sending: more records are on their way; a killed sync leaves it so.
        ended: records that there were when the run's end was sent; None while it goes on.
        pictures: that have arrived, by their paths in the folder.
        parent: run id of the sweep that a trial lies below.
        swept: keys that a sweep varies.
        closed: hash of the result that a sweep was closed with; empty while it goes on.
    """

    experiment_id: str = ""
    run_id: str = ""
    view: str = ""
    sent: int = 0
    sending: bool = False
    ended: int | None = None
    pictures: list[str] = field(default_factory=list)
    parent: str | None = None
    swept: list[str] = field(default_factory=list)
    closed: str = ""


def read_cursor(folder: Path, uri: str) -> Cursor:
    """Read what has been sent of a folder to a URI; an empty cursor where nothing was.

    Raises:
        ConfigError: the file is damaged.
    """
    cursors, name = _read_cursors(folder), without_password(uri)
    try:
        return read(Cursor, cursors.get(name, {}), name)
    except ConfigError as error:
        raise _damaged(folder, error) from error


def write_cursor(folder: Path, uri: str, cursor: Cursor) -> None:
    """Write down what has been sent of a folder to a URI, beside what was sent to others."""
    save_json(folder / CURSOR, {**_read_cursors(folder), without_password(uri): asdict(cursor)})


def _read_cursors(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / CURSOR).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # no JSON, or no text
        raise _damaged(folder, error) from error
    if not isinstance(found, dict):
        raise _damaged(folder, "no object.")
    return found


def _damaged(folder: Path, why: object) -> ConfigError:
    return ConfigError(f"{folder / CURSOR}: damaged: {why} Remove it: what MLflow has of a run is found again.")


def tracking_uri(uri: str | None = None) -> str:
    """Return `uri`, else `$MLFLOW_TRACKING_URI`, else an SQLite file in the outputs folder, as an absolute URI."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs() / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """Return the URI as it may be printed and written down."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def remember(uri: str) -> None:
    """Note that this user typed a tracking URI: folders that name it may be sent there from now on.

    Where the note cannot be written, it has to be typed again.
    """
    path = outputs() / TRUSTED
    try:
        with locked(path.with_name(f"{TRUSTED}.lock")):
            known = _remembered()
            if (uri := without_password(uri)) not in known:
                atomically(path, lambda target: _write_private(target, "".join(f"{u}\n" for u in [*known, uri])))
    except OSError:
        pass


def trusted(uri: str) -> bool:
    """Tell whether a URI is this user's own: the default, that of the environment, or one that they typed before."""
    own = tracking_uri()
    return uri in (own, without_password(own), *_remembered())  # as texts: two libraries may read an odd URI as two


def allowed(recorded: str | None, typed: str | None = None, option: str = "--uri ") -> str:
    """Return the URI to send a folder to; one that only the folder names may be anybody's and is never contacted.

    MLflow's client sends this user's password or token to whatever server it talks to.

    Args:
        recorded: `tracking.uri` in the folder's records.
        typed: by this user, now.
        option: what a person types before the URI, for the error.

    Raises:
        ConfigError: the recorded one is not this user's own, and none was typed.
    """
    if not typed and recorded and not trusted(recorded):
        raise ConfigError(
            f"its record names a tracking.uri that you have not typed, and your MLflow password would be sent there. "
            f"If the server is yours, type {option}{shlex.quote(recorded)}"
        )
    own = tracking_uri()  # with the password, which a record leaves out
    return typed or (own if recorded in (None, "", without_password(own)) else str(recorded))


def _remembered() -> list[str]:
    """Read the URIs that this user typed; a file that somebody else wrote says nothing."""
    path = outputs() / TRUSTED
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.stat().st_uid == os.getuid() else []
    except (OSError, ValueError):
        return []


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # its mode would stay
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")


def show_command(folder: Path, uri: str | None = None) -> str:
    """Return the command, and the address below it, that shows a run or sweep, in its saved view if it has one."""
    uri = tracking_uri(uri)
    cursor = read_cursor(folder, uri)
    page = views.page(cursor.experiment_id or "0", cursor.view)
    if uri.startswith("http"):
        return f"{without_password(uri).rstrip('/')}/{page}"
    other = "" if uri == tracking_uri() else f" --uri {shlex.quote(uri)}"
    return f"segsweep ui{other}   then http://127.0.0.1:5000/{page}"


def connected(uri: str) -> Any:
    """Return MLflow's client for this URI, which does not wait for ever; a database's file is made if need be."""
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
    with alone():
        client = MlflowClient(tracking_uri=uri)
        if not uri.startswith("http"):
            client.search_experiments(max_results=1)  # creates the file
    return client


def make_database(uri: str) -> None:
    """Have MLflow make its database where there is none yet, while no other process does."""
    connected(uri)


def alone() -> AbstractContextManager[None]:
    """Let one process at a time through: several at a fresh SQLite file break it."""
    return locked(outputs() / "mlflow.db.lock")


def open_experiment(client: Any, uri: str, name: str) -> str:
    """Return an experiment's id.

    One that is not there is made, with a folder for files that no working folder moves; a deleted one is restored.
    """
    with alone():
        experiment = client.get_experiment_by_name(name)
        if experiment and experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        # A record may name anything: no name leads out of the folder.
        local = None if uri.startswith("http") else (outputs() / "mlartifacts" / mlflow_name(name)).as_uri()
        made = None if experiment else client.create_experiment(name, artifact_location=local)
        return str(made or experiment.experiment_id)


def is_there(client: Any, run_id: str, folder: Path) -> bool:
    """Tell whether MLflow has the run; it has not in another database than the one the run was sent to.

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


def mlflow_name(text: str) -> str:
    """Return a name that MLflow takes: letters, digits and `_-. /`.

    Others are replaced, and a hash keeps the names apart. No part of it is empty, `.` or `..`.
    """
    parts = [part for part in re.sub(r"[^A-Za-z0-9_\-. /]", "_", text).split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts)
    return cleaned if cleaned == text else f"{cleaned}-{sha256(text.encode()).hexdigest()[:4]}"


def picture_key(folder: Path) -> str:
    """Return the key of the images that a folder predictions/NAME holds."""
    return mlflow_name(f"predictions/{folder.name}")
