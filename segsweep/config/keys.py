"""Keys: fields of frozen dataclasses with one line of help and a role."""

from collections.abc import Container
from contextlib import suppress
from dataclasses import field
from typing import Any, NamedTuple

from segsweep.config.checks import is_whole
from segsweep.paths import load_json


class Role(NamedTuple):
    """What kind of setting a key is."""

    portable: bool  # what the experiment is, and not where things lie or how a machine runs them: part of `Settings`
    resumable: bool  # it may change when a run goes on
    is_path: bool = False  # of a file or folder: made absolute, so that it means the same from anywhere


EXPERIMENT, EXTENT = Role(portable=True, resumable=False), Role(portable=True, resumable=True)
PLACE, MACHINE = Role(portable=False, resumable=True), Role(portable=False, resumable=False)
PATH = PLACE._replace(is_path=True)


def key(default: Any, help: str, role: Role = EXPERIMENT) -> Any:
    """Make a dataclass field with its line of help; a list or dict default is copied for each instance."""
    metadata = {"help": help, "role": role}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def named(key: str, names: Container[str]) -> bool:
    """Tell whether a dotted key, or the group that it is in, is among these names."""
    return key in names or key.partition(".")[0] in names


def normal(name: str, value: Any) -> Any:
    """Return a key's value as its section stores it: 256 becomes [256,256], JSON text becomes its value."""
    if name in ("data.size", "data.tile") and is_whole(value):
        return [value, value]
    if name == "train.compile":
        return str(value).lower()
    if name == "data.classes" and isinstance(value, str):
        with suppress(ValueError):
            return load_json(value)
    return value
