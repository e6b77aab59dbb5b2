"""Checks of the values of keys, and JSON read as typed values. Standard library only."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from segsweep.errors import ConfigError, first_line
from segsweep.paths import load_json

T = TypeVar("T")
UNIONS = (UnionType, Union)  # X | None of a Literal is the older kind


def check(holds: bool, name: str, value: Any, must: str) -> None:
    """Refuse a key's value with `ConfigError` unless it holds."""
    if not holds:
        raise ConfigError(f"{name}={value}: must be {must}.")


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return is_whole(value) and value >= 1


def is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_whole(v) and 0 <= v <= 255 for v in value)


def is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


DEVICES = "auto, cpu, cuda, cuda:N or mps"


def is_device(value: str) -> bool:
    """Tell whether a text is one of `DEVICES`."""
    return re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) is not None


def is_share(value: float) -> bool:
    return 0 <= value <= 1


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of the leaves; an empty dict is one."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read(kind: type[T], value: Any, name: str) -> T:
    """Read a value of JSON as a dataclass, with all nested ones; `name` is its name in errors.

    Ignore unknown fields, because a later version may have more. ConfigError: a field is missing or has another type.
    """
    try:
        found = read_value(kind, value, name)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # of a section's own checks, on noise
        raise ConfigError(f"{name}: {error}") from error
    assert isinstance(found, kind)
    return found


def read_file(kind: type[T], path: Path, name: str, advice: str = "") -> T:
    """Read a file of JSON as `read` reads its value; `advice` ends the error.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it is damaged.
    """
    try:
        return read(kind, load_json(path.read_text(encoding="utf-8")), name)
    except (ValueError, ConfigError) as error:  # no text, no JSON, or other types
        raise ConfigError(f"{path}: damaged: {first_line(error)}{advice}") from error


def read_value(kind: Any, value: Any, name: str) -> Any:
    """Read a value of JSON, named so in errors, as any type that a dataclass has; ConfigError if it is of another."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (kind is NoneType and value is None):
        return value
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if missing := [f.name for f in fields(kind) if f.name in needed - value.keys()]:
            raise ConfigError(f"{name}: lacks {', '.join(missing)}.")
        given = [f.name for f in fields(kind) if f.name in value]
        return kind(**{g: read_value(hints[g], value[g], f"{name}.{g}") for g in given})  # type: ignore[operator]
    if origin in UNIONS:
        for option in inner:
            try:
                return read_value(option, value, name)
            except ConfigError:
                continue
    elif origin is Literal and value in inner:
        return value
    elif origin in (list, Sequence) and isinstance(value, (list, tuple)):
        return [read_value(inner[0], item, f"{name}[{i}]") for i, item in enumerate(value)]
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(
                read_value(k, item, f"{name}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {key: read_value(inner[1], item, f"{name}.{key}") for key, item in value.items()}
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ConfigError(f"{name}: must be {spoken(kind)}, not {str(value)[:80]!r}.")


def spoken(kind: Any) -> str:
    """Return the name of a type for an error message."""
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    plural = {str: "texts", int: "whole numbers", float: "numbers"}
    if get_origin(kind) in UNIONS:
        return " or ".join(map(spoken, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    outer = get_origin(kind) or kind
    if outer in (list, tuple, Sequence):
        items = get_args(kind)[:1]
        return f"a list of {plural[items[0]]}" if items and items[0] in plural else "a list"
    return names.get(outer, "an object")
