"""MLflow's client: which server, whether it may be contacted, its experiments, what it has received of a folder."""

import json
import logging
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from segsweep.config.checks import read
from segsweep.errors import ConfigError, redacted
from segsweep.paths import atomically, locked, outputs, override, save_json
from segsweep.tracking import views

log = logging.getLogger(__name__)

CURSOR = "tracking.json"
TRUSTED = "tracking-uris"
SQLITE = "sqlite:///"
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PARAM_LENGTH, NOTE_LENGTH = 6000, 8000  # letters that MLflow takes


@dataclass
class Cursor:
    """How much of a run or sweep folder was sent to one tracking URI; `tracking.json` has one for each URI."""

    experiment_id: str = ""  # empty until it is made, as the others
    run_id: str = ""
    view: str = ""  # key of the saved view that shows it
    sent: int = 0  # records that have arrived
    sending: bool = False  # more of them are on their way; a killed sync leaves it so
    ended: int | None = None  # records that there were when the run's end was sent; None while it goes on
    pictures: list[str] = field(default_factory=list)  # that have arrived, by their paths in the folder
    drawing: bool = False  # more of them are on their way; a killed sync leaves it so
    parent: str | None = None  # run id of the sweep that a trial lies below
    swept: list[str] = field(default_factory=list)  # keys that a sweep varies
    closed: str = ""  # hash of the result that a sweep was closed with; empty while it goes on
    folder: str = ""  # where it lay when it was last sent
    model: str = ""  # id of the logged model that stands for the run's best checkpoint


def read_cursor(folder: Path, uri: str) -> Cursor:
    """Read what has been sent of a folder to a URI, an empty cursor where nothing was; a damaged one is refused."""
    return _read(folder, without_password(uri))[0]


def write_cursor(folder: Path, uri: str, cursor: Cursor) -> None:
    """Write down what has been sent of a folder to a URI, beside what was sent to others."""
    name = without_password(uri)
    save_json(folder / CURSOR, {**_read(folder, name)[1], name: asdict(cursor)})


def _read(folder: Path, name: str) -> tuple[Cursor, Mapping[str, object]]:
    """Return the cursor of this name, and what the file holds of all."""
    path = folder / CURSOR
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ConfigError("no object.")
        return read(Cursor, found.get(name, {}), name), found
    except FileNotFoundError:
        return Cursor(), {}
    except (ConfigError, ValueError) as error:  # no JSON, or no text
        raise ConfigError(
            f"{path}: damaged: {error} Remove it: segsweep will find out again what MLflow has."
        ) from error


def tracking_uri(uri: str | None = None) -> str:
    """Return `uri`, else `$MLFLOW_TRACKING_URI`, else an SQLite file in the outputs folder, as an absolute URI."""
    path = re.sub(r"%(?=[0-9a-fA-F]{2})|\?", lambda found: f"%{ord(found[0]):X}", str(outputs() / "mlflow.db"))
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{path}"


def file_of(uri: str) -> Path | None:
    """Return the file of an SQLite database's URI; None of another."""
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def without_password(uri: str) -> str:
    """Return the URI without its password, to print and record it."""
    parts = urlsplit(uri)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
    return redacted(bare)


def remember(uri: str) -> None:
    """Note that this user typed a tracking URI: folders that name it may be sent there from now on."""
    path = outputs() / TRUSTED
    with suppress(OSError), locked(path.with_name(f"{TRUSTED}.lock")):  # where it fails, it has to be typed again
        known = _remembered()
        if (uri := without_password(uri)) not in known:
            atomically(path, lambda target: _write_private(target, "".join(f"{u}\n" for u in [*known, uri])))


def trusted(uri: str) -> bool:
    """Tell whether a URI is this user's own: the default, the environment's, or one that they typed before."""
    own = tracking_uri()
    return uri in (own, without_password(own), *_remembered())  # as texts: two libraries may read an odd URI as two


def allowed(recorded: str | None, typed: str | None = None, *, as_key: bool = False) -> str:
    """Return the URI to send a folder to: the one typed now, else the one recorded, if it is this user's own.

    Another is anybody's and never contacted: MLflow's client sends this user's password or token to whatever server it
    talks to. It is refused; it is typed as --uri, `as_key` as tracking.uri.
    """
    if not typed and recorded and not trusted(recorded):
        option = override("tracking.uri", recorded) if as_key else f"--uri {shlex.quote(recorded)}"
        raise ConfigError(
            f"its record names a tracking.uri that you have not typed, and your MLflow password would be sent there. "
            f"If you trust this server, type {option}"
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
    # Read when mlflow is imported or called; what the user set stays.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient

    # It logs with a traceback what it raises, too.
    for chatty, level in (("mlflow", logging.CRITICAL), ("alembic", logging.WARNING)):
        logging.getLogger(chatty).setLevel(level)
    outputs().mkdir(parents=True, exist_ok=True)
    with alone():
        client = MlflowClient(tracking_uri=uri)
        if not uri.startswith("http"):
            client.search_experiments(max_results=1)  # creates the file
            if (database := file_of(uri)) and (written := Path(uri.removeprefix(SQLITE))) != database:
                with suppress(OSError):  # MLflow makes the folder as it is written, too
                    written.parent.rmdir()
    return client


def alone() -> AbstractContextManager[None]:
    """Let one process at a time through: several at a fresh SQLite file break it."""
    return locked(outputs() / "mlflow.db.lock")


def open_experiment(client: Any, uri: str, name: str) -> str:
    """Return an experiment's id; one that is not there is made, a deleted one is restored, and that is said."""
    from mlflow.utils import mlflow_tags as tags

    kind = {
        "mlflow.experimentKind": "custom_model_development",  # has no constant; else MLflow asks on the first visit
        tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME: views.SCORE,
        tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER: "true",
    }
    with alone():
        experiment = client.get_experiment_by_name(name)
        if experiment and experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            log.warning("MLflow: experiment %s was deleted; it is restored with all its runs.", name)
        # Absolute, whatever the working folder is. A record may name anything: no name leads out of the folder.
        local = None if uri.startswith("http") else (outputs() / "mlartifacts" / mlflow_name(name)).as_uri()
        made = None if experiment else client.create_experiment(name, artifact_location=local, tags=kind)
        return str(made or experiment.experiment_id)


def is_there(client: Any, run_id: str, folder: Path) -> bool:
    """Tell whether MLflow has the run, which another database than before has not; refuse one deleted there."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if run.info.lifecycle_stage == "deleted":
        raise ConfigError(
            f"{folder}: its run was deleted in MLflow. Restore it there, or remove {CURSOR} to send it again."
        )
    return True


def mlflow_name(text: str) -> str:
    """Return a name of letters, digits and `_-. /`, as MLflow takes it; a hash keeps names apart that were changed.

    No part of it is empty, `.` or `..`.
    """
    parts = re.sub(r"[^A-Za-z0-9_\-. /]", "_", text).split("/")
    cleaned = "/".join(part for part in parts if part not in ("", ".", ".."))
    return cleaned if cleaned == text else f"{cleaned}-{sha256(text.encode()).hexdigest()[:4]}"


def picture_key(folder: Path) -> str:
    """Return the key of the images that a folder predictions/NAME holds."""
    return mlflow_name(f"predictions/{folder.name}")
