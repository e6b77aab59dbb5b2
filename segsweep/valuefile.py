"""A user's own files: `data=FILE.yaml`, and `GROUP=NAME` for `conf/GROUP/NAME.yaml` in the working folder.

They mean what their keys mean when they are typed. Values alone: no interpolation, no class to call, no defaults list,
no aliases, nothing of Hydra's own. An option of the working folder, which may come from elsewhere, also names no file
of Hydra's, no server and no machine: it says what is trained. Paths are relative to the file's folder.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from segsweep import catalog
from segsweep.config.checks import read_value
from segsweep.config.data import SOURCES
from segsweep.config.schema import Key, keys, meant
from segsweep.config.sweeper import PREFIX as SWEEPER
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError, first_line, one_of, suggestion
from segsweep.paths import ROOT, is_pattern, quoted

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

SUFFIXES = (".yaml", ".yml")
LIMIT = 1 << 16  # bytes; thousands of classes fit
PREFIX = "data."
CLASS = f"{PREFIX}classes."  # one of a mapping, as +data.classes.car=8
KEYS = {key.name: key for key in (*keys(), *keys(SweeperConfig, SWEEPER))}
# Groups that a working folder may add options to; the last two hold sections, as train: with its keys below.
GROUPS = ("encoder", "optim", "augmentation", "data", "loss", "recipe", "sweeps")
SECTIONED = ("recipe", "sweeps")
SECTIONS = tuple(dict.fromkeys(key.name.partition(".")[0] for key in keys() if "." in key.name))
SWEEPERS = ("optuna", "grid", "cv")
# What an option may set: what the experiment is, and where its data and weights are.
OWN = {key.name for key in keys() if key.role.portable or key.role.is_path}
MACHINES = ("storage", "address", "backend", "slots", "gpus")  # of a sweep
OWN |= {key.name for key in keys(SweeperConfig, SWEEPER)} - {f"{SWEEPER}{name}" for name in MACHINES}
NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # of an option or an encoder
TRIED = re.compile(r"[\w.,()\[\] *?+-]*")  # values that a group is searched over: names of options, and no paths
FOLDER = "hydra.sweep.dir"
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


def own_option(group: str, name: str) -> Path | None:
    """Return the file of an option that the working folder's conf/ adds to a group; None if there is none."""
    path = Path("conf", group, f"{name}.yaml")
    if group not in GROUPS or not NAME.fullmatch(name) or Path.cwd() == ROOT or not path.is_file():
        return None
    return path


def own_options(group: str) -> list[str]:
    """Return the names of the options that the working folder's conf/ adds to a group."""
    found = sorted(path.stem for path in Path("conf", group).glob("*.yaml"))
    return [name for name in found if own_option(group, name)]


def group_words(group: str, path: Path, beside: Collection[str] = ()) -> list[str]:
    """Return the words that mean the same as `GROUP=NAME`, without keys that are also on the command line.

    Raises ConfigError: the file is too large or malformed; a key is unknown; a value is of another type.
    """
    if group == "data":
        return words(path, beside, OWN)
    found = _tree(path, f"the keys of {group}")
    if group not in SECTIONED:
        values = _values(path, found, f"{group}.", OWN)
        if group == "encoder":
            name = str(values.pop("encoder.name", ""))
            if not name:
                raise ConfigError(f"{path}: must name the encoder, as name: resnet34")
            if not NAME.fullmatch(name):  # another timm than the listed one may know any name, but no path
                raise ConfigError(f"{path}: encoder={name}: not a timm model.")
            catalog.check(name)
            return [f"encoder={quoted(name)}", *_assigned(values, beside)]
        return [f"~{group}", *_assigned(values, beside)]
    search = found.pop("sweeper", {}) if group == "sweeps" else {}
    values = {}
    for section, inside in found.items():
        if section not in SECTIONS:
            there = ", ".join((*SECTIONS, *["sweeper"] * (group == "sweeps")))
            raise ConfigError(f"{path}: {section}: no such section. There are: {there}.")
        if not isinstance(inside, dict):
            raise ConfigError(f"{path}: {section}: must be a section with its keys below, as train: and epochs: 12")
        if section == "data":
            read_data = _data(path, inside, f"{PREFIX}root" in beside, OWN)
            values |= {f"{PREFIX}{name}": value for name, value in read_data.items()}
        else:
            values |= _values(path, inside, f"{section}.", OWN)
    if group == "recipe":
        return ["~recipe", *_assigned(values, beside)]
    return [*_search(path, search, beside), *_assigned(values, beside)]


def _search(path: Path, search: Value, beside: Collection[str]) -> Iterator[str]:
    """Yield what makes a search of a training, from the section `sweeper` of a question."""
    if not isinstance(search, dict):
        raise ConfigError(f"{path}: sweeper: must be a section with its keys below, as n_trials: 24")
    name, params = search.pop("name", "optuna"), search.pop("params", {})
    if not isinstance(params, dict):
        raise ConfigError(f"{path}: params: must contain keys and the values to try, as optim.lr: auto")
    one_of("sweeper.name", name, SWEEPERS)
    for key, value in params.items():
        plain = key in OWN and not (KEYS[key].role.is_path or "${" in str(value) or isinstance(value, dict))
        if not (plain or (key in GROUPS and TRIED.fullmatch(str(value)))) or key.startswith(SWEEPER):
            raise ConfigError(
                f"{path}: {key}: must be a key with the values to try, as encoder: choice(resnet18,resnet34)"
            )
    yield "hydra.mode=MULTIRUN"
    yield f"hydra/sweeper={name}"
    if FOLDER not in beside:
        yield f"{FOLDER}=${{outputs:}}/sweeps/{path.stem}-${{hydra.runtime.choices.data}}"
    if params:
        yield f"+{SWEEPER}params={{{','.join(f'{key}:{typed(value)}' for key, value in params.items())}}}"
    yield from _assigned(_values(path, search, SWEEPER, OWN), beside)


def words(path: Path, beside: Collection[str] = (), allowed: Collection[str] = KEYS) -> list[str]:
    """Return the words that mean the same as `data=FILE`, in Hydra's syntax, without keys on the command line.

    Raises ConfigError: the file is missing, too large or malformed; a key is unknown; a value is of another type; a
    single class is typed beside those of the file.
    """
    expected = "keys of data with their values, one on each line, as root: images/of/mine"
    values = _data(path, _tree(path, expected), f"{PREFIX}root" in beside, allowed)
    single = [key for key in beside if key.startswith(CLASS)]
    if single and values.get("classes") is not None and f"{PREFIX}classes" not in beside:
        label = single[0].removeprefix(CLASS)
        raise ConfigError(
            f"{single[0]}: was typed, but {path} has its own classes. Add {label} to the file, or type all classes: "
            f"'data.classes={{{label}:VALUE}}'"
        )
    name = values.pop("name", "folder")
    return [f"data={name}", *_assigned({f"{PREFIX}{key}": value for key, value in values.items()}, beside)]


def _data(path: Path, found: dict[str, Value], rooted: bool, allowed: Collection[str]) -> dict[str, Value]:
    """Check keys of the data section; paths come back absolute.

    Patterns stay as they are where there is a root for them, in the file or, as `rooted` says, elsewhere.
    """
    rooted = rooted or "root" in found
    patterns = {name: found.pop(name) for name in ("images", "masks") if rooted and is_pattern(found.get(name, ""))}
    values = {
        key.removeprefix(PREFIX): value for key, value in _values(path, found, PREFIX, allowed).items()
    } | patterns
    if "name" in values:
        one_of("data.name", values["name"], SOURCES)
    return values


def _tree(path: Path, expected: str) -> dict[str, Value]:
    """Read a file's YAML."""
    try:
        tree = yaml.compose(_text(path), Loader=yaml.SafeLoader)
        found = _value(tree) if tree else None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or first_line(error)}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold {expected}")
    return found


def _values(path: Path, found: Mapping[str, Value], prefix: str, allowed: Collection[str] = KEYS) -> dict[str, Value]:
    """Check a section's values, and return them by their keys."""
    for name in found:
        if prefix + name not in KEYS:
            raise ConfigError(_unknown(path, prefix, name))
        if prefix + name not in allowed:
            raise ConfigError(
                f"{path}: {name}: this key is about the machine, not about the experiment, so a file "
                f"must not set it. Type it on the command line."
            )
    return {prefix + name: _checked(KEYS[prefix + name], value, path) for name, value in found.items()}


def _assigned(values: Mapping[str, Value], beside: Collection[str]) -> list[str]:
    """Return values as one types them, but for the keys that are typed beside them."""
    classes = f"{PREFIX}classes"  # as JSON in any form: Hydra cannot quote a mapping's keys
    shown = {
        key: json.dumps(v, ensure_ascii=False) if key == classes and v is not None else v for key, v in values.items()
    }
    return [f"{key}={typed(value)}" for key, value in shown.items() if key not in beside]


def _text(path: Path) -> str:
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        hint = suggestion(path.stem, SOURCES, "Try data=")
        raise ConfigError(f"data={path.absolute()}: {what}. Give one file with keys of data in it.{hint}")
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise ConfigError(f"{path}: larger than {LIMIT >> 10} KiB. To list files, use a CSV: data.table=CSV.")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):  # stops early: an alias unfolds, nesting takes quadratic time
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if isinstance(token, REFUSED) or depth > DEPTH:
            plain = "contain plain values; put & * ! and % in quotes"
            what = f"be nested at most {DEPTH} levels deep" if depth > DEPTH else plain
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
    name = key.name.rpartition(".")[2]
    try:
        if isinstance(value, dict) and name != "classes":
            raise ConfigError(f"{name}: must be one value or a list.")
        found: Value = read_value(key.kind, value, name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error} {name}: {key.help}.") from None
    if key.role.is_path and found:
        return str((path.absolute().parent / Path(str(found)).expanduser()).resolve())
    return found


def _unknown(path: Path, prefix: str, name: str) -> str:
    section, there = prefix.rstrip("."), [key.removeprefix(prefix) for key in KEYS if key.startswith(prefix)]
    if name == section:
        return f"{path}: may contain only keys of {name}: write them at the left margin, without {name}: above them."
    near = meant(prefix + name) or ""
    hint = f" Closest: {near.removeprefix(prefix)}." if near.startswith(prefix) else ""
    return f"{path}: {name}: no such key of {section}.{hint} There are: {', '.join(there)}."


def typed(value: Value) -> str:
    """Write a value in Hydra's override grammar; a mapping as JSON, since Hydra cannot quote the keys of one."""
    if isinstance(value, dict):
        return quoted(json.dumps(value, ensure_ascii=False))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(typed, value))}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
