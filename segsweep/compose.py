"""From the command line's words to a `RunConfig`: what `train.py` and the `segsweep` command share of Hydra."""

import os
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import reduce
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from segsweep import catalog, valuefile
from segsweep.config.checks import read, spoken
from segsweep.config.keys import normal
from segsweep.config.schema import DataConfig, RunConfig, keys, meant, unknown, unknown_keys
from segsweep.config.screen import ScreenConfig
from segsweep.config.sweeper import PREFIX, SweeperConfig
from segsweep.errors import ConfigError, suggestion
from segsweep.paths import ROOT, for_shell, is_pattern, literal, outputs, override, program, quoted

T = TypeVar("T")
CONF = str(ROOT / "conf")
STOCK = "hydra_plugins.hydra_optuna_sweeper"  # pip's hydra-optuna-sweeper
KEYS = {key.name: key for key in (*keys(), *keys(ScreenConfig, PREFIX), *keys(SweeperConfig, PREFIX))}
PATHS = tuple(key.name for key in keys() if key.role.is_path)
VALUES = 20  # of a key, looked at before a multirun begins
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
TEXTS = (*FOLDERS, *(key.name for key in KEYS.values() if key.kind in (str, str | None)))
GROUPS = ("sweeps", *(path.name for path in Path(CONF).iterdir() if path.is_dir()))
# Hydra's, which may be cut short.
FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)
PATTERNS = ("data.images", "data.masks")  # may be patterns, below data.root
PLAIN = re.compile(r"""(?!['"\s])([^][(){},$]|\$(?!\{))+""")  # it asks for no quotes, list, function or interpolation
PARSER = OverridesParser.create()


def register_schema() -> None:
    """Register our schema with Hydra, and let Hydra raise its errors instead of printing them."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    schema = OmegaConf.structured(RunConfig)
    for node in (schema, *(schema[name] for name in schema if OmegaConf.is_dict(schema[name]))):
        OmegaConf.set_readonly(node, False)  # frozen dataclasses are, and could not be set at all
    ConfigStore.instance().store("schema", schema)
    OmegaConf.register_new_resolver("outputs", lambda: str(outputs()), replace=True)


def to_config(composed: DictConfig) -> RunConfig:
    """Turn the composed configuration into checked dataclasses."""
    config = read(RunConfig, _plain(composed), "the configuration")
    catalog.check(config.encoder.name)
    return config


def configuration(overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of `python train.py OVERRIDES`; an error in them is one line."""
    return _composed(expanded(overrides), to_config)


def refuse_jobs(words: Sequence[str]) -> None:
    """Refuse a plain multirun one of whose values is wrong, before its first training and not when its turn comes.

    Each value is composed once, beside the first ones of the other keys; of a key with many, the first `VALUES`.
    """
    parsed = {word: _parsed(word) for word in words if not word.startswith("-")}
    choices: list[list[str]] = []
    for word, found in parsed.items():
        if found is None or found.value_type in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP):
            return  # which Hydra refuses, or knows alone what it stands for
        values = islice(found.sweep_string_iterator(), VALUES) if found.is_sweep_override() else ()
        choices.append([f"{word.partition('=')[0]}={value}" for value in values] or [word])
    first = [alternatives[0] for alternatives in choices]
    _composed(first, to_config)
    for i, alternatives in enumerate(choices):
        for other in alternatives[1:]:
            _composed([*first[:i], other, *first[i + 1 :]], to_config)


def prepared(words: Sequence[str]) -> tuple[RunConfig, dict[str, str]]:
    """Return what `expanded` words train with, as `checked` does."""
    return _composed(words, lambda composed: checked(composed, words))


def checked(composed: DictConfig, words: Sequence[str]) -> tuple[RunConfig, dict[str, str]]:
    """Return what is trained, with absolute paths, and the text of the files of `.hydra/`, for people, by name."""
    overrides = OmegaConf.create(absolute(composed, words))
    files = {"config.yaml": OmegaConf.to_yaml(composed), "overrides.yaml": OmegaConf.to_yaml(overrides)}
    return to_config(composed), files


def expanded(words: Sequence[str]) -> list[str]:
    """Translate what was typed into Hydra's syntax.

    `data=FILE.yaml` becomes what the file says, as one would type it, and so does an option of the working folder's
    own; what is typed beside it wins. `encoder=weights(PATTERN,...)` becomes a choice among the weights that it names.
    `~` is the user's folder, of runs and sweeps, too. A text that the grammar cannot read and that can be nothing else,
    such as a path with letters beyond ASCII, gets its quotes.

    Raises ConfigError: what `segsweep.valuefile` refuses, or a pattern that names no weights.
    """
    beside = list(map(key_of, words))
    found: list[str] = []
    for word in map(catalog.expanded, words):
        name, _, text = word.partition("=")
        if name == "data" and text_of(word).endswith(valuefile.SUFFIXES):
            found += valuefile.words(Path(text_of(word)).expanduser(), beside)
        elif (own := valuefile.own_option(name, text)) and not _is_option(name, text):
            found += valuefile.group_words(name, own, beside)
        elif name in FOLDERS and text.startswith("~/") and "${" in text:  # the grammar knows no ~
            found.append(f"{name}='{Path.home()}{text[1:]}'")
        elif name in FOLDERS and text_of(word).startswith("~") and "${" not in text:
            found.append(f"{name}={quoted(_resolved(name, text_of(word)))}")
        elif name in TEXTS and PLAIN.fullmatch(text) and not _kept(word, text):
            found.append(f"{name}={quoted(text)}")
        else:
            found.append(word)
    return found


def _kept(word: str, text: str) -> bool:
    """Tell whether Hydra can read a word, and leaves its text as it is: 2026_11_30 would become 20261130."""
    value = parsed.value() if (parsed := _parsed(word)) else None
    return parsed is not None and not (isinstance(value, (int, float)) and str(value) != text)


def refuse_flags(words: Sequence[str]) -> None:
    """Refuse a word that looks like a flag but is not one of Hydra's; name the key that was meant."""
    for word in words:
        flag, _, text = word.partition("=")
        if flag.startswith("--") and len(flag) > 2 and not any(known.startswith(flag) for known in FLAGS):
            key = flag.lstrip("-").replace("-", "_")
            known = _is_known(key) and (not key.startswith("hydra") or key.startswith(("hydra.", "hydra/")))
            without = "Keys have no dashes: " + for_shell(f"{key}={text or 'VALUE'}")
            raise ConfigError(f"{flag}: no such flag. {without if known else _no_such_key(key, text)}")


def passed_over(words: Sequence[str]) -> list[str]:
    """Return words that name an option of segsweep, if the working folder also has a file of that name."""
    pairs = {word: word.partition("=")[::2] for word in words}
    return [word for word, (name, text) in pairs.items() if valuefile.own_option(name, text) and _is_option(name, text)]


def _options(group: str) -> list[str]:
    """List the options that have files of segsweep's own."""
    above = ROOT if group == "sweeps" else Path(CONF)
    return sorted(path.stem for path in (above / group).glob("*.yaml"))


def _is_option(group: str, name: str) -> bool:
    """Tell whether a group of segsweep's own has an option."""
    if group == "encoder" and name.partition(".")[0] in catalog.architectures():
        return True
    return name in _options(group)


def with_data(asked: RunConfig, words: Sequence[str]) -> RunConfig:
    """Return a run's configuration, as its record has it, with the data that somebody typed.

    Only the words are composed, and nothing of the run: `data=NAME` takes the place of all the run's data but a value
    of `data.nodata`; else each `data.KEY=VALUE` of its own key, and of the places that would go before one that was
    typed. `train.workers` may be there, too.
    """
    words = expanded(words)
    typed = [key_of(word) for word in words]
    for word, name in zip(words, typed, strict=True):
        if name.partition(".")[0] != "data" and name != "train.workers":
            if not _is_known(name) and (meant(name) or "").startswith("data."):
                raise ConfigError(_no_such_key(name, word.partition("=")[2]))
            raise ConfigError(f"{word}: must be a key of data, as data.root=DIR, or train.workers. Drop it.")
    composed, train = _composed(words, _plain), asked.train
    if "data" in typed:  # another data set, whole
        data = composed["data"]
        if "data.nodata" not in typed and asked.data.nodata not in ("auto", "tag"):
            data["nodata"] = asked.data.nodata  # which images the model has seen so
    else:  # the run's, with what was typed
        chosen = {name.split(".")[1] for name in typed if name.startswith("data.")}
        changes = {name: value for name, value in composed["data"].items() if name in chosen}
        dropped = _superseded(asked.data, {name for name, value in changes.items() if value is not None})
        data = asdict(asked.data) | dict.fromkeys(dropped) | changes
    if "train.workers" in typed:
        train = replace(train, workers=composed["train"]["workers"])
    return replace(asked, data=read(DataConfig, data, "data"), train=train)


def _superseded(data: DataConfig, chosen: Collection[str]) -> set[str]:
    """Name the places of a run's data that would go before those that were typed."""
    pairs = {"images", "masks"}
    if "table" in chosen:
        return pairs - set(chosen)
    if {*pairs, "annotations"} & set(chosen):
        return {"table"}
    if "root" not in chosen:
        return set()
    absolute_ones = {name for name in pairs if Path(getattr(data, name) or "").is_absolute()}  # others are below it
    return absolute_ones | ({"annotations"} if data.images or not data.root else set())


def changed(asked: RunConfig, words: Sequence[str]) -> RunConfig:
    """Change a run's configuration by words that are typed when it goes on; they are composed by themselves.

    ConfigError if anything is wrong with the words, or one would make another training of it.
    """
    own = {f"~{name}" for name, _, text in (word.partition("=") for word in words) if valuefile.own_option(name, text)}
    words = [word for word in expanded(words) if word not in own]
    for word in words:
        if word.startswith("~") or key_of(word).startswith("hydra"):
            raise ConfigError(f"with resume, only KEY=VALUE can be typed: drop {word}.")
    now = _values(words)
    before = {name: reduce(getattr, name.split("."), asked) for name in now}
    resumable = [key.name for key in keys() if key.role.resumable]
    changes = {name: now[name] for name in _typed(words, now) if now[name] != before[name]}
    if other := [f"{name}: {before[name]} -> {now[name]}" for name in changes if name not in resumable]:
        raise ConfigError(
            f"differs from the run's configuration: {'; '.join(other)}. Only {', '.join(resumable)} may change when a "
            f"run is continued. For other changes start a new run."
        )
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return replace(asked, **{name: replace(getattr(asked, name), **given) for name, given in sections.items()})


def _typed(words: Sequence[str], now: Mapping[str, Any]) -> list[str]:
    """The keys that the words set: those that they name, and those that a named group's option sets."""
    named = {key_of(word) for word in words}
    groups = named - now.keys()
    # What an option sets is what differs without it. Of data, the default's size is no measure.
    usual = _values(["data=folder"] if "data" in groups else []) if groups else now

    def always(name: str) -> bool:
        """Tell whether every option of a named group sets this key: its name, or of losses, which have none, any."""
        group = name.partition(".")[0]
        return group in groups and (name == f"{group}.name" or f"{group}.name" not in now)

    return [name for name, value in now.items() if name in named or always(name) or value != usual[name]]


def _values(words: Sequence[str]) -> dict[str, object]:
    """Every key's value as the words alone compose it, with absolute paths.

    Whether values fit each other is not asked: they are to be laid over a run's.
    """
    plain = _composed(words, _plain)
    found = {key.name: reduce(lambda tree, part: tree[part], key.name.split("."), plain) for key in keys()}
    found |= _absolute({name: found[name] for name in PATHS if found[name]})
    return {name: normal(name, value) for name, value in found.items()}


def _composed(words: Sequence[str], of: Callable[[DictConfig], T]) -> T:
    """What `of` makes of the configuration that the words compose; what is wrong with them is one line."""
    register_schema()
    around = get_gh_backup()  # Hydra, which composes one configuration at a time, where it has called us
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            return of(compose("config", list(words)))
    except Exception as error:
        if not is_hydras(error):
            raise
        raise ConfigError(explain(error, words)) from error
    finally:
        restore_gh_from_backup(around)


def _plain(composed: DictConfig) -> Any:
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    for name, value in unknown_keys(plain):
        raise ConfigError(_no_such_key(name, str(value)))
    return plain


def absolute(composed: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Make the paths in both absolute, so that they mean the same from any working folder; returns the overrides."""
    given = {key: OmegaConf.select(composed, key) for key in PATHS}
    found = _absolute({key: value for key, value in given.items() if value})
    for key, value in found.items():
        OmegaConf.update(composed, key, literal(value))
    return [f"{key_of(o)}={quoted(found[key_of(o)])}" if key_of(o) in found else o for o in overrides]


def _absolute(paths: Mapping[str, Any]) -> dict[str, str]:
    """Make paths absolute, by key; a pattern beside `data.root` is below that, from wherever, and stays as it is."""
    rooted = {key for key in PATTERNS if "data.root" in paths and is_pattern(paths.get(key, ""))}
    return {key: str(path) if key in rooted else _resolved(key, path) for key, path in paths.items()}


def _resolved(key: str, path: Any) -> str:
    try:
        return str(Path(path).expanduser().resolve())
    except (ValueError, RuntimeError, OSError) as error:  # a null byte, a home of nobody, a loop of links
        raise ConfigError(f"{key}={path}: cannot be a path: {str(error).rstrip('.')}.") from error


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def is_hydras(error: BaseException) -> bool:
    """Tell whether an error comes from Hydra or OmegaConf: then the typed words are wrong, whatever its type is."""
    if isinstance(error, ConfigError):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    by = str(frames[-1].f_globals.get("__name__")).partition(".")[0] if frames else ""
    return isinstance(error, (HydraException, OmegaConfBaseException)) or by in ("hydra", "omegaconf", "antlr4")


def explain(error: Exception, argv: Sequence[str]) -> str:
    """Hydra's and OmegaConf's errors in one line, with the closest name where a name was wrong."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _no_such_option(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    for name, _, text in (word.lstrip("+~").partition("=") for word in argv if "=" in word):
        if re.fullmatch(r"[\w.]+", name) and not _is_known(name):
            return _no_such_key(name, text)
    if wrong_option := next(filter(None, map(_no_name, argv)), None):
        return wrong_option
    if "--multirun" in str(error) and (swept := [word for word in argv if _is_sweep(word)]):
        return _needs_multirun(swept[0])
    if find_spec(STOCK) and any("sweeper" in text for text in (*argv, str(error))):
        what = "hydra-optuna-sweeper is installed, and has the same name as segsweep's own sweeper"
        return f"{what}. Type: pip uninstall hydra-optuna-sweeper"
    if unknown_setting := _unknown_setting(argv, f"{error} {error.__cause__}"):
        return unknown_setting
    if wrong_type := _wrong_type(str(error)):
        return wrong_type
    if isinstance(error, InterpolationResolutionError) and (found := [word for word in argv if "${" in word]):
        return _interpolated(found[0])
    lines = [line.strip() for text in (str(error), str(error.__cause__ or "")) for line in text.splitlines()]
    noise = ("full_key:", "reference_type", "object_type", "Set the environment variable")
    kept = dict.fromkeys(line for line in lines if line and not line.startswith(noise))
    said = " ".join(kept) or type(error).__name__
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return said
    own = [word for word in argv if word.startswith(("-", "~", "hydra"))] or argv
    return f"{' '.join(own)}: Hydra refuses this: {said}"


def _no_name(word: str) -> str | None:
    """Say of a group that it is given by an option's name, where its value is something else."""
    group = key_of(word)
    parsed = _parsed(word)
    value = parsed.value() if parsed and not parsed.is_sweep_override() else ""
    off = "=" not in word or word.startswith("~") or (value is None and group in ("debug", "sweeps"))
    if isinstance(value, str) or off or not (group in GROUPS or "/" in group):
        return None
    options = _options(group)
    known = f" There are: {', '.join(options)}." if options and group != "encoder" else ""
    return f"{word}: must be {group}=NAME.{known}"


def _no_such_option(file: str, options: Sequence[str]) -> str:
    """Say of a file, as `data/camvid` or `hydra/sweeper/optuna`, that its group has no such option."""
    parts = 2 if file.startswith("hydra/") else 1  # of the group
    group, name = "/".join(file.split("/")[:parts]), "/".join(file.split("/")[parts:])
    if group == "encoder":
        try:
            catalog.check(name)
        except ConfigError as refusal:
            return str(refusal)
    hint = suggestion(name, options, f"Try {group}=")
    if valuefile.own_option(group, name):
        return f"{group}={name}: an option from your conf/ cannot be varied. Vary its keys instead."
    if group == "data" and Path(name).expanduser().is_dir():
        hint = f" Try data=folder {override('data.root', name)}"
    return f"{group}={name}: no such option. There are: {', '.join(options)}.{hint}"


def _is_known(name: str) -> bool:
    """Tell whether there is such a key, section or group; all of Hydra's own are taken for known."""
    sections = {key.rpartition(".")[0] for key in KEYS}
    return name in {*KEYS, *GROUPS, *sections} or name.startswith(("hydra", "data.classes."))


def _parsed(word: str) -> Override | None:
    """Return what Hydra reads in a word; None if it cannot."""
    try:
        return PARSER.parse_override(word)
    except HydraException:
        return None


def text_of(word: str) -> str:
    """Return the text that `KEY=TEXT` gives its key, as Hydra reads it; what stands there if it reads none."""
    parsed = _parsed(word)
    value = parsed.value() if parsed else None
    with suppress(OmegaConfBaseException):
        if isinstance(found := OmegaConf.create({"text": value}).text if isinstance(value, str) else None, str):
            return found
    return word.partition("=")[2]


def _is_sweep(word: str) -> bool:
    parsed = _parsed(word)
    return parsed is not None and parsed.is_sweep_override()


def _unreadable(word: str) -> str:
    """Say of a word that Hydra cannot read it, and how to quote it where it is meant as a text."""
    name, equals, text = word.partition("=")
    said = f"{word}: cannot be read as KEY=VALUE."
    if not equals:
        path = Path(word).expanduser()
        if path.suffix in valuefile.SUFFIXES and path.is_file():
            return f"{said} Try {override('data', word)}"
        return f"{said} Try data=folder {override('data.root', word)}" if path.is_dir() else said
    key = name.lstrip("+")
    if _parsed(f"{name}=x") and not _is_known(key):
        return _no_such_key(key, text)
    if key in ("data", *TEXTS):
        inner = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
        return f"{said} Quote it twice, once for Hydra and once for the shell: {override(name, inner)}"
    leaves = re.sub(r"[^][{}:,]+", lambda leaf: leaf[0] if _parsed(f"x={leaf[0]}") else quoted(leaf[0]), text)
    if _parsed(f"{name}={leaves}"):
        return f"{said} Quote it twice, once for Hydra and once for the shell: {for_shell(f'{name}={leaves}')}"
    elsewhere = " Put names with other than ASCII letters into a file: data=FILE.yaml." if key == "data.classes" else ""
    return f"{said} Close each bracket and quote.{elsewhere}"


def _needs_multirun(word: str) -> str:
    """Say of several values for one training what to type for one value, and for a training with each."""
    name, _, text = word.partition("=")
    one = ""
    if name in TEXTS and "(" not in text:
        one = f" As one text: {override(name, text)}"
    elif name in KEYS and (KEYS[name].kind is Any or "list" in str(KEYS[name].kind)):
        one = f" As a list: {for_shell(f'{name}=[{text}]')}"
    return f"{word}: several values. To train with each of them, type {program()} -m hydra/sweeper=optuna ...{one}"


def _wrong_type(said: str) -> str | None:
    """Say what a key's value must be, where Hydra could not give it the one that was typed."""
    name, _, value = said.removeprefix("Error merging override ").lstrip("+").partition("=")
    if name not in KEYS or not said.startswith("Error merging override "):
        return None
    if "${" in value:
        return _interpolated(f"{name}={value}")
    key = KEYS[name]
    kind = "one value or a list" if key.kind is Any else spoken(key.kind)
    split = f" To score that part: --split {value}." if name == "data.split" and value.isalpha() else ""
    return f"{name}={value}: must be {kind}. {name}: {key.help}.{split}"


def _interpolated(word: str) -> str:
    """Say of an interpolation that it stands for nothing, and how to type it as a text."""
    parsed, (name, _, text) = _parsed(word), word.partition("=")
    value = parsed.value() if parsed else text
    literally = override(name, value if isinstance(value, str) else text)
    return f"{word}: inside ${{}} there must be a key, or a resolver as oc.env. As text: {literally}"


def _no_such_key(name: str, text: str) -> str:
    """Say of a key that does not exist, with the line to type where that one composes."""
    target = meant(name)
    for value in dict.fromkeys((text, text.lower())) if target and text else ():
        with suppress(ConfigError):
            configuration(["data=folder", f"{target}={value}"])
            return unknown(name, for_shell(f"{target}={value}"))
    return unknown(name)


def _unknown_setting(argv: Sequence[str], text: str) -> str | None:
    """What to say of a `hydra.sweeper` key that there is not."""
    for word in argv:
        group = key_of(word)
        if group.startswith("hydra/sweeper/") and group in text:  # of the stock plugin
            return f"{word}: no such group. Type {word.lstrip('+').replace('/', '.')}."
        if group.startswith(PREFIX) and "BasicSweeperConf" in text:
            return f"{word}: is a key of a search. Add -m hydra/sweeper=optuna."
    settings = [*(item.name for kind in (SweeperConfig, ScreenConfig) for item in fields(kind))]
    settings += ["params", "direction", "n_jobs"]
    for name in map(key_of, argv):
        if name.startswith(PREFIX) and name.split(".")[2] not in settings and name in text:
            hint = suggestion(name, [f"{PREFIX}{setting}" for setting in settings])
            return f"{name}: no such key.{hint} All keys are in docs/reference.md."
        if name.startswith(PREFIX) and f"'{name.split('.')[2]}' not in 'Schema'" in text:
            return f"{name}: not a key of this sweeper. The keys of each are in docs/reference.md."
    return None
