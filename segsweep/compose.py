"""From the command line's words to a `RunConfig`: what `train.py` and the `segsweep` command share of Hydra."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep import catalog
from segsweep.config.schema import RunConfig, keys, refuse_unknown, unknown
from segsweep.errors import ConfigError, closest
from segsweep.paths import CHECKOUT, outputs, quoted
from segsweep.runs import journal

PATHS = ("data.root", "data.images", "data.masks", "data.table", "encoder.weights_file")
CONF = str(CHECKOUT / "conf")
STOCK = "hydra_plugins.hydra_optuna_sweeper"  # pip's hydra-optuna-sweeper
FAILURES = (HydraException, OmegaConfBaseException)


def register_schema() -> None:
    """Tell Hydra our schema, and have its errors raised instead of printed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    ConfigStore.instance().store("schema", RunConfig)
    OmegaConf.register_new_resolver("outputs", lambda: str(outputs()), replace=True)


def to_config(composed: DictConfig) -> RunConfig:
    """The composed configuration as checked dataclasses.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    refuse_unknown(plain)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RunConfig)
    catalog.check(config.encoder.name)
    return config


def configuration(overrides: Sequence[str]) -> RunConfig:
    """What `python train.py OVERRIDES` would train with.

    Raises:
        ConfigError: anything wrong with them, in one line.
    """
    register_schema()
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            return to_config(compose("config", list(overrides)))
    except FAILURES as error:
        raise ConfigError(explain(error, overrides)) from error


def recorded(folder: Path) -> list[str]:
    """The overrides that a run was started with.

    Raises:
        ConfigError: the folder holds no run.
    """
    path = folder / ".hydra" / "overrides.yaml"
    if not path.exists() or not journal.exists(folder):
        what = "not a run folder" if folder.is_dir() else "no such folder"
        raise ConfigError(f"{folder}: {what}. It must hold {journal.NAME} and .hydra/ of an earlier run.")
    return [str(override) for override in OmegaConf.load(path)]


def of_run(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """What the run in this folder was trained with, but for the overrides; `data=NAME` drops the run's own data.

    Raises:
        ConfigError: the folder holds no run, or anything wrong with the overrides.
    """
    given = {key_of(override) for override in overrides}
    kept = [o for o in recorded(folder) if key_of(o) not in given and not ("data" in given and _of_data(o))]
    return configuration([*kept, *overrides])


def _of_data(override: str) -> bool:
    return key_of(override).partition(".")[0] in ("data", "debug")


def absolute(composed: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Make the paths in both absolute, so that they mean the same from any working folder; returns the overrides."""
    found = {}
    for key in PATHS:
        value = OmegaConf.select(composed, key)
        if value:
            found[key] = str(Path(value).expanduser().resolve())
            OmegaConf.update(composed, key, found[key])
    return [f"{key_of(o)}={quoted(found[key_of(o)])}" if key_of(o) in found else o for o in overrides]


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def explain(error: Exception, argv: Sequence[str]) -> str:
    """Hydra's and OmegaConf's errors in one line, with the closest name where a name was wrong."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "encoder":
            try:
                catalog.check(name)
            except ConfigError as refusal:
                return str(refusal)
        near = closest(name, error.options)
        hint = f" Try {group}={near[0]}." if near else ""
        return f"{group}={name}: no such option. There are: {', '.join(error.options)}.{hint}"
    if isinstance(error, OverrideParseException):
        name, equals, value = error.override.partition("=")
        hint = f""" Quote a value with special characters twice: "{name}='{value}'".""" if equals else ""
        return f"{error.override}: cannot be read as KEY=VALUE.{hint}"
    if find_spec(STOCK) and any("sweeper" in text for text in (*argv, str(error))):
        return (
            "hydra-optuna-sweeper is installed beside segsweep's own sweeper, under the same name. "
            "Type: pip uninstall hydra-optuna-sweeper"
        )
    if unknown_setting := _unknown_setting(argv, f"{error} {error.__cause__}"):
        return unknown_setting
    known = [name for name, _, _ in keys()]
    groups = {name.partition(".")[0] for name in known}
    for override in argv:
        name = key_of(override)
        if "=" not in override or name in known or name.startswith("hydra"):
            continue
        if name not in groups and re.fullmatch(r"[\w.]+", name):
            return unknown(name)
    lines = [line.strip() for text in (str(error), str(error.__cause__ or "")) for line in text.splitlines()]
    noise = ("full_key:", "reference_type", "object_type", "Set the environment variable")
    kept = dict.fromkeys(line for line in lines if line and not line.startswith(noise))
    return " ".join(kept)


def _unknown_setting(argv: Sequence[str], text: str) -> str | None:
    """What to say of a `hydra.sweeper` key that there is not."""
    for override in argv:
        group = key_of(override)
        if group.startswith("hydra/sweeper/") and group in text:  # of the stock plugin
            return f"{override}: no such group. Type {override.lstrip('+').replace('/', '.')}."
    prefix = "hydra.sweeper."
    settings: Any = OmegaConf.load(f"{CONF}/hydra/sweeper/optuna.yaml")
    for name in map(key_of, argv):
        if name.startswith(prefix) and name.split(".")[2] not in settings and "is not in struct" in text:
            near = closest(name, [f"{prefix}{setting}" for setting in settings])
            hint = f" Closest: {near[0]}." if near else ""
            return f"{name}: no such key.{hint} All are in conf/hydra/sweeper/optuna.yaml."
    return None
