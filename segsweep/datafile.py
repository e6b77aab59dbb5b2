"""A data set's own file: `data=FILE.yaml` holds keys of the data section, and means what they mean when they are typed.

Values alone: no interpolation, no class to call, no defaults list, no aliases. Paths are relative to the file's folder.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from segsweep.config.checks import read_value
from segsweep.config.data import SOURCES
from segsweep.config.schema import Key, keys, meant
from segsweep.errors import ConfigError, first_line, one_of, suggestion
from segsweep.paths import is_pattern, quoted

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

SUFFIXES = (".yaml", ".yml")
LIMIT = 1 << 16  # bytes; thousands of classes fit
PREFIX = "data."
CLASS = f"{PREFIX}classes."  # one of a mapping, as +data.classes.car=8
KEYS = {key.name.removeprefix(PREFIX): key for key in keys() if key.name.startswith(PREFIX)}
DEPTH = 8  # of lists and mappings in each other; colours of classes take 4
OPENING = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
REFUSED = (yaml.AliasToken, yaml.AnchorToken, yaml.TagToken, yaml.DirectiveToken)
# Plain scalars as JSON has them. YAML 1.1 reads `no` as false, 010 as 8 and 1:30 as 90.
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+([eE][-+]?[0-9]+)?")
WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


def words(path: Path, beside: Collection[str] = ()) -> list[str]:
    """Return what one would type instead of `data=FILE`, in Hydra's grammar, without the keys that are typed beside it.

    Raises ConfigError: the file is missing, too large or malformed; a key is unknown; a value is of another type; a
    single class is typed beside those of the file.
    """
    values = read(path, f"{PREFIX}root" in beside)
    single = [key for key in beside if key.startswith(CLASS)]
    if single and values.get("classes") is not None and f"{PREFIX}classes" not in beside:
        label = single[0].removeprefix(CLASS)
        raise ConfigError(
            f"{single[0]}: typed beside {path}, which has classes of its own. Add {label} to the file, or type all "
            f"classes: 'data.classes={{{label}:VALUE}}'"
        )
    name = values.pop("name", "folder")
    if values.get("classes") is not None:
        values["classes"] = json.dumps(values["classes"], ensure_ascii=False)  # Hydra cannot quote a mapping's keys
    return [f"data={name}", *(f"{PREFIX}{k}={_typed(v)}" for k, v in values.items() if f"{PREFIX}{k}" not in beside)]


def read(path: Path, rooted: bool = False) -> dict[str, Value]:
    """Read keys of the data section with their values; paths come back absolute.

    Patterns stay as they are where there is a root for them, in the file or, as `rooted` says, elsewhere.

    Raises ConfigError: the file is missing, too large or malformed; a key is unknown; a value is of another type.
    """
    try:
        tree = yaml.compose(_text(path), Loader=yaml.SafeLoader)
        found = _value(tree) if tree else None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or first_line(error)}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold keys of data with their values, a line each, as root: images/of/mine")
    values = {}
    for name, value in found.items():
        if name not in KEYS:
            raise ConfigError(_unknown(path, name))
        below_root = (rooted or "root" in found) and name in ("images", "masks") and is_pattern(value)
        values[name] = value if below_root else _checked(KEYS[name], value, path)
    if "name" in values:
        one_of("data.name", values["name"], SOURCES)
    return values


def _text(path: Path) -> str:
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        hint = suggestion(path.stem, SOURCES, "Try data=")
        raise ConfigError(f"data={path.absolute()}: {what}. Give one file with keys of data in it.{hint}")
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise ConfigError(
                f"{path}: larger than {LIMIT >> 10} KiB. Rows of files belong into a CSV: data.table=CSV."
            )
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):  # stops early: an alias unfolds, nesting takes quadratic time
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if isinstance(token, REFUSED) or depth > DEPTH:
            what = f"be nested {DEPTH} deep at most" if depth > DEPTH else "hold plain values; quote & * ! and %"
            raise ConfigError(f"{path}, line {token.start_mark.line + 1}: must {what}.")
    return text


def _value(node: Any) -> Value:
    """Return what a node of YAML says. A key that is there twice is an error: one of the two would go unseen."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Value] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in found:
                what = f"{key.value} is there twice" if isinstance(key, yaml.ScalarNode) else "a key must be a word"
                raise yaml.MarkedYAMLError(problem=f"{what}.", problem_mark=key.start_mark)
            found[key.value] = _value(value)
        return found
    text = str(node.value)
    if node.style is not None:  # quoted
        return text
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return WORDS.get(text, text)


def _checked(key: Key, value: Value, path: Path) -> Value:
    name = key.name.removeprefix(PREFIX)
    try:
        if isinstance(value, dict) and name != "classes":
            raise ConfigError(f"{name}: must be one value or a list.")
        found: Value = read_value(key.kind, value, name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error} {name}: {key.help}.") from None
    if key.role.is_path and found:
        return str((path.absolute().parent / Path(str(found)).expanduser()).resolve())
    return found


def _unknown(path: Path, name: str) -> str:
    if name == "data":
        return f"{path}: holds the keys of data alone: write them at the left margin, without data: above them."
    near = meant(PREFIX + name) or ""
    hint = f" Closest: {near.removeprefix(PREFIX)}." if near.startswith(PREFIX) else ""
    return f"{path}: {name}: no such key of data.{hint} There are: {', '.join(KEYS)}."


def _typed(value: Value) -> str:
    """Write a value in Hydra's override grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
