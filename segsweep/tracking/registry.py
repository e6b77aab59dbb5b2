"""MLflow's model registry: a version, its model card, and the alias champion."""

import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segsweep.errors import ConfigError, first_line
from segsweep.runs import locks
from segsweep.tracking.client import NOTE_LENGTH, connected, without_password
from segsweep.tracking.run import sync, uri_of

CHAMPION = "champion"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, the champion before it ("": none), its run, the URI without a password."""

    version: str
    before: str
    run: str
    uri: str


def register(
    folder: Path,
    uri: str | None,
    name: str,
    program: Path,
    channels: tuple[int, int],
    torch_version: str,
    card: str,
    tags: Mapping[str, str],
) -> Registered:
    """Send a run to MLflow, and put its exported program into the registry, as the newest version and champion.

    `mlflow.pytorch.load_model("models:/NAME@champion")` loads it, without code or pickle.

    Args:
        uri: MLflow's tracking URI, typed by this user; default: the run's own.
        name: of the registered model.
        program: a torch.export program from `pixels`, float32 `b c h w`, to `logits`, `b k h w`.
        channels: c and k.
        torch_version: that wrote it.
        card: what the model is, in Markdown.

    Raises:
        ConfigError: no run in the folder, or one whose own tracking URI is not this user's.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    uri = uri_of(folder, uri)
    run, client, before = sync(folder, uri, locks.alive(folder)), connected(uri), ""
    try:
        client.create_registered_model(name, tags={"segsweep": "true"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        before = str(client.get_registered_model(name).aliases.get(CHAMPION, ""))
    with tempfile.TemporaryDirectory() as made:
        place = f"registered/{name}-{time.time_ns()}"
        _write_model(Path(made), program, channels, torch_version, card)
        client.log_artifacts(run, made, place)
    source = f"{client.get_run(run).info.artifact_uri}/{place}"
    version = client.create_model_version(name, source, run, tags=dict(tags), description=card[:NOTE_LENGTH]).version
    client.set_registered_model_alias(name, CHAMPION, version)
    return Registered(str(version), before, run, without_password(uri))


def check(folder: Path, uri: str | None, name: str) -> None:
    """Check name, URI and server of `register` before the export, which takes minutes; ConfigError if one is wrong."""
    from mlflow.exceptions import MlflowException

    uri = uri_of(folder, uri)
    try:
        connected(uri).get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise ConfigError(f"{name}: not a name for a registered model: {first_line(error)}") from error
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise ConfigError(f"MLflow at {without_password(uri)} does not answer: {first_line(error)}") from error


def _write_model(folder: Path, program: Path, channels: tuple[int, int], torch_version: str, card: str) -> None:
    """Write a model folder of MLflow's by hand: `mlflow.pytorch.save_model` would trace anew, and pin sizes."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own type hints, while it is imported
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import add_to_model
        from mlflow.types import Schema, TensorSpec

    def tensor(what: str, length: int) -> Schema:
        return Schema([TensorSpec(np.dtype("float32"), (-1, length, -1, -1), what)])

    (folder / "data").mkdir()
    shutil.copy(program, folder / "data" / "model.pt2")  # the name that MLflow looks for
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "requirements.txt").write_text(f"torch=={torch_version.partition('+')[0]}\n", encoding="utf-8")
    model = Model(signature=ModelSignature(tensor("pixels", channels[0]), tensor("logits", channels[1])))
    model.add_flavor("pytorch", model_data="data", pytorch_version=torch_version, code=None)
    loaded = {"loader_module": "mlflow.pytorch", "data": "data", "model_config": {"device": None}}
    add_to_model(model, **loaded)  # type: ignore[no-untyped-call]
    model.save(str(folder / "MLmodel"))
