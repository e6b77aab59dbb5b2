"""Training, the one entry point: `python train.py encoder=resnet34 optim.lr=1e-4`.

Nothing heavy is imported before a configuration has been checked: `--help`, `--cfg job` and completion answer at once.
"""

import io
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from segsweep.commands.common import leaving_nothing
from segsweep.compose import (
    CONF,
    FOLDERS,
    KEYS,
    changed,
    checked,
    expanded,
    explain,
    is_hydras,
    key_of,
    passed_over,
    prepared,
    refuse_flags,
    refuse_jobs,
    register_schema,
    text_of,
)
from segsweep.config.schema import Key, RunConfig, keys
from segsweep.config.screen import ScreenConfig
from segsweep.config.sweeper import PREFIX, SweeperConfig
from segsweep.errors import Asked, ConfigError, Terminated
from segsweep.paths import ROOT, program, speaker
from segsweep.process import complain, failed, ready, show, terminable
from segsweep.runs import journal
from segsweep.tracking import client
from segsweep.valuefile import own_options
from segsweep.world import MEETING, SINGLE, World, end_with_parent, together

if TYPE_CHECKING:
    from segsweep.engine.ranks import Ranks


log = logging.getLogger(__name__)

SEARCHED = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")  # flags that say where options are
VALUED = (*SEARCHED, "--cfg", "-c", "--package", "-p", "--experimental-rerun")  # flags that take the next word


class Stopped(BaseException):
    """A signal, or an error that was already printed, ended a run; later jobs of the multirun are not started."""

    def __init__(self, code: int, error: Exception | None = None):
        self.code, self.error = code, error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code, as `segsweep.errors` has them.

    130 is for Ctrl-C, 143 for SIGTERM; 70 is of `segsweep.process`. `SystemExit` of Hydra's own flags (`--help`)
    passes through.
    """
    with ready():
        return _commanded(list(sys.argv[1:] if argv is None else argv))


def _commanded(words: list[str]) -> int:
    words = _ordered(words)
    if {"-sc", "--shell-completion"} & set(words) and any(word.startswith("query=") for word in words):
        with redirect_stdout(io.StringIO()) as said:
            code = _main(words, SINGLE)
        print(" ".join(_completions(said.getvalue().split())))
        return code
    if not together():
        return _main(words, SINGLE)
    if MEETING not in os.environ:
        end_with_parent()  # at once: torchrun may end while torch is loaded
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are of what is meant to be so
    from segsweep.engine import ranks  # torch: seconds

    try:
        with ranks.joined() as world:
            if world.rank:
                return _follow(world)
            code = 1
            try:
                code = _main(words, world)
                return code
            except SystemExit as left:  # of Hydra's own flags
                code = left.code if isinstance(left.code, int) else 0
                raise
            finally:
                world.leave(code)
    except ConfigError as error:
        return _refuse(str(error), error.exit_code)


def _ordered(words: Sequence[str]) -> list[str]:
    """Put -m first, then all keys, then other flags with their values: argparse takes keys in one place alone."""
    keys: list[str] = []
    flags: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        own = "=" not in before  # else the flag has its value
        of_flag = own and (_is_flag(before, VALUED) or (_is_flag(before, ("--info", "-i")) and "=" not in word))
        several = word.startswith("--m") and "--multirun".startswith(word)
        (flags if of_flag or word.startswith("-") else keys).append("-m" if several else word)
    return [*["-m"] * ("-m" in flags), *keys, *(flag for flag in flags if flag != "-m")]


def _is_flag(word: str, flags: Sequence[str]) -> bool:
    """Tell whether a word is one of these flags of Hydra's; long ones may be cut short."""
    long = word.startswith("--") and len(word) > 2 and any(flag.startswith(word) for flag in flags)
    return long or word.partition("=")[0] in flags


def _completions(found: Iterable[str]) -> Iterator[str]:
    """Yield what completes a word: Hydra takes a list for a section, and its places for keys."""
    for word in found:
        key = word.rstrip(".")
        if word.endswith(".") and key in KEYS:
            yield f"{key}="
        elif word.count("=") < 2:
            yield word


def _follow(world: "Ranks") -> int:
    """Train beside the first process, which alone speaks, but for a crash here."""
    from segsweep.training.run import follow

    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            with terminable():
                follow(world)
            return 0
        except ConfigError as error:
            return error.exit_code
        except Asked:
            return 0
        except Terminated:
            return 143
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            left = world.left()
            if left is None and world.first is error:
                traceback.print_exc(file=sys.__stderr__)
            return 1 if left is None else left


def _main(words: list[str], world: World) -> int:
    try:
        return launch(words, world)
    except ConfigError as error:
        return _refuse(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _refuse("interrupted.", 130)
    except Terminated:
        return _refuse("terminated.", 143)
    except Exception as error:
        return _refuse(*failed(error))


def launch(words: list[str], world: World) -> int:
    """Train, or search, as the words say; return the exit code, which is not 0 where a training was refused or stopped.

    Raises:
        ConfigError: what the user can mend, but for a training's own refusal, which is printed.
        KeyboardInterrupt, Terminated: a sweep was stopped.
        SystemExit: of Hydra's own flags (`--help`).
    """
    register_schema()
    OmegaConf.register_new_resolver("help", _help, replace=True)
    spared: Path | None = None
    code = 0

    def task(composed: DictConfig) -> None:
        nonlocal code
        # Refused here and not in main: Hydra prints a line of its own for what a job raises.
        try:
            code = _train(composed, words, spared, world) or code
        except ConfigError as error:
            code = _refuse(str(error), error.exit_code)
        except Exception as error:
            raise Stopped(1, error) from error
        if code >= 128:
            raise Stopped(code)

    saved = sys.argv
    try:
        if empty := [name for name in FOLDERS if f"{name}=" in words]:
            raise ConfigError(f"{empty[0]} is empty. Type {empty[0]}=DIR.")
        refuse_flags(words)
        if passed := passed_over(words):
            log.warning(
                "%s: is already an option of segsweep; your file in conf/ is ignored. Give it another name.", passed[0]
            )
        _refuse_misplaced(words)
        words = expanded(words)
        spared = _named_folder(words)
        search = [word for word in words if word.startswith("hydra/sweeper=")]
        if search and not any(word.startswith(("-", "hydra.mode=", "sweeps=")) for word in words):
            raise ConfigError(f"{search[0]}: a search needs -m. Type {program()} -m {shlex.join(words)}")
        with terminable():
            if any(word.startswith("resume=") for word in words) and not {"--help", "-h"} & set(words):
                return _resume(words, world)
            if world.size > 1 and any(word.startswith(("-m", "hydra.mode=M", "sweeps=")) for word in words):
                raise ConfigError(
                    f"torchrun is for one training; a sweep starts its trials itself. Type {program()} "
                    f"{shlex.join(words)}; of a search with hydra/sweeper=optuna, 'hydra.sweeper.slots=[[0,1]]' trains "
                    "each trial on two GPUs."
                )
            flags = {word for word in words if word.startswith("-")}
            if flags == {"-m"} and not any(w.startswith(("hydra/", "hydra.mode=", "sweeps=")) for w in words):
                refuse_jobs(words)
            sys.argv = [str(ROOT / "train.py"), *words]
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(task)()
    except Stopped as stopped:
        if stopped.error and is_hydras(stopped.error):  # what was composed is resolved in the run
            raise ConfigError(explain(stopped.error, words)) from stopped.error
        if stopped.error:
            raise stopped.error from None
        return stopped.code
    except Asked:  # a sweep was
        return 0
    except Exception as error:
        if not is_hydras(error):
            raise
        raise ConfigError(explain(error, words)) from error
    finally:
        sys.argv = saved
    return code


def _train(composed: DictConfig, argv: list[str], spared: Path | None, world: World) -> int:
    hydra_config = HydraConfig.get()
    runtime: Any = OmegaConf.to_container(hydra_config.runtime, resolve=False)  # a folder may be called ${x}
    folder = Path(runtime["output_dir"])
    with leaving_nothing(folder, spared):
        config, files = checked(composed, list(hydra_config.overrides.task))
        return _begun(config, folder, argv, files, world)


def begin(words: list[str], folder: Path) -> int:
    """Train one network as the words say, in this folder; return the exit code of a run that was stopped, or 0.

    Raises ConfigError: it is refused, and leaves nothing, or fails.
    """
    with terminable(), leaving_nothing(folder, folder if folder.exists() else None):
        words = expanded(words)  # which reads files: once
        config, files = prepared(words)
        return _begun(config, folder, words, files, SINGLE)


def _begun(config: RunConfig, folder: Path, argv: list[str], files: Mapping[str, str], world: World) -> int:
    if config.resume:
        raise ConfigError(
            "resume: must be typed on the command line, as resume=DIR; all other settings are read from DIR."
        )
    if config.tracking.uri:
        client.remember(config.tracking.uri)

    from segsweep.training.run import run  # torch and timm: seconds

    return run(config, folder, argv=argv, hydra_files=files, world=world)


def _resume(argv: list[str], world: World) -> int:
    """Go on with the run that `resume=DIR` names, as its journal says: nothing else of the folder is composed."""
    folder = Path(text_of([word for word in argv if word.startswith("resume=")][-1])).expanduser().resolve()
    words = [word for word in argv if not word.startswith("resume=")]
    if "-m" in words:
        raise ConfigError("resume continues one run, and -m starts several: drop -m.")
    asking = [i for i, word in enumerate(words) if word in ("--cfg", "-c") and words[i + 1 : i + 2] == ["job"]]
    for i in reversed(asking):
        del words[i : i + 2]
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"resume={folder}: {' '.join(flags)}: only --cfg job works with resume. Drop it.")
    try:
        asked = changed(journal.started(folder).asked, words)
        typed = asked.tracking.uri if "tracking.uri" in map(key_of, words) else None
        if asked.tracking.name != "none":
            client.allowed(asked.tracking.uri, typed, as_key=True)
    except ConfigError as error:
        raise ConfigError(f"resume={folder}: {str(error).removeprefix(f'{folder}: ')}") from None
    if asking:
        show(OmegaConf.to_yaml(OmegaConf.create(asdict(asked))).rstrip())
        return 0
    if typed:
        client.remember(typed)
    from segsweep.training.run import run  # torch and timm: seconds

    return run(asked, folder, argv=argv, hydra_files={}, resuming=True, world=world)


def _refuse_misplaced(words: Sequence[str]) -> None:
    """Refuse what Hydra takes, and what would then be ignored, or taken by a part of the trainings alone."""
    modes = [word.partition("=")[2] for word in words if word.startswith("hydra.mode=")]
    asked = any(word.startswith("sweeps=") for word in words)
    several = "-m" in words or (modes[-1] == "MULTIRUN" if modes else asked)
    search = asked or any(word.startswith("hydra/sweeper=") for word in words)
    (ignored, used), kind = (FOLDERS, "several runs") if several else (FOLDERS[::-1], "a single run")
    for word in words:
        if key_of(word) == ignored:
            raise ConfigError(f"{word}: not the folder of {kind}. Type {used}=DIR.")
        if key_of(word) == "hydra.job.chdir":
            raise ConfigError(f"{word}: paths would mean something else in each run's folder. Drop it.")
        if several and search and _is_flag(word, SEARCHED):
            raise ConfigError(
                f"{word}: trials would not find these options. Put them into conf/ of the working folder."
            )


def _named_folder(argv: list[str]) -> Path | None:
    """Return the folder that the command line names for the run, if it is there already."""
    named = [text_of(arg) for arg in argv if key_of(arg) == "hydra.run.dir"]
    folder = Path(named[-1]).resolve() if named else None
    return folder if folder and folder.exists() else None


def _refuse(message: str, code: int) -> int:
    complain(f"{speaker()}: {message}")
    return code


HELP = """\
Train a U-Net on any timm encoder and log its IoU to MLflow.

  {program:15}                                        generated images, as an example
  {program:15} encoder=resnet34 optim.lr=1e-4
  {program:15} data=folder data.images=DIR data.masks=DIR
  {program:15} data=my.yaml                           the keys of data come from a file of your own
  {program:15} resume=outputs/DATE/TIME               continue a run that stopped
  {program:15} -m hydra/sweeper=optuna                search encoders and learning rates
  {program:15} sweeps=lr_by_encoder                   a search from a file in sweeps/
  {program:15} sweeps=screen                          which pretrained weights are worth a search

Groups (GROUP=OPTION):
  encoder                      any timm model; <TAB> completes its name
{groups}

Keys (KEY=VALUE) [default]. A group may set other values; --cfg job shows the result:
{keys}
  hydra.run.dir                folder of the run [outputs/DATE/TIME]

Keys of a search (-m hydra/sweeper=optuna; files in sweeps/ and hydra/sweeper=grid have other defaults):
{search}
  hydra.sweep.dir              folder of the sweep [outputs/DATE/TIME-multirun]

Keys of a screening (sweeps=screen); slots, backend, address and gpus: the same as in a search:
{screening}

{completion}More: --cfg job (the composed configuration), --info defaults, --hydra-help (Hydra's own flags)"""


def _help() -> str:
    groups = []
    for group in ("recipe", "optim", "augmentation", "data", "loss", "tracking", "debug"):
        options = sorted([*(path.stem for path in Path(CONF, group).glob("*.yaml")), *own_options(group)])
        groups.append(f"  {group:28} {', '.join(options)}")
    typed, of_search = program(), {key.name for key in keys(SweeperConfig, PREFIX)}
    in_checkout = f'Completion of groups, keys and encoder names: eval "$({typed} -sc install=bash)"\n'
    shown = {
        "program": typed,
        "groups": "\n".join(groups),
        "keys": _rows(keys()),
        "search": _rows(keys(SweeperConfig, PREFIX)),
        "screening": _rows(key for key in keys(ScreenConfig, PREFIX) if key.name not in of_search),
        "completion": in_checkout if typed.startswith("python ") else "",
    }
    return HELP.format(**shown).replace("$", "$$")


def _rows(known: Iterable[Key]) -> str:
    return "\n".join(f"  {key.name:28} {key.help} [{_shown(key.default)}]" for key in known)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value).replace(" ", "")
