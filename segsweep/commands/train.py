"""Training, the one entry point: `python train.py encoder=resnet34 optim.lr=1e-4`.

Hydra composes `conf/` and the command line into a configuration, this module checks it and hands it to
`segsweep.training.run.run`. Nothing heavy is imported before that: `--help`, `--cfg job` and completion answer at once.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from segsweep.compose import CONF, FAILURES, PATHS, absolute, explain, key_of, recorded, register_schema, to_config
from segsweep.config.schema import flat, keys
from segsweep.errors import ConfigError, Terminated, terminable
from segsweep.paths import CHECKOUT, outputs, quoted
from segsweep.runs import journal

# What `resume=DIR` may change: how long and where.
RESUMABLE = (
    *("train.epochs", "train.device", "train.workers", "train.time_budget", "train.accumulate", "train.patience"),
    "train.test",
    *PATHS,  # the data may have moved: their digest is compared
    "data.cache",
    "tracking.",
)


class Stopped(BaseException):
    """A signal ended a run; the jobs behind it in a multirun are not begun."""

    def __init__(self, code: int):
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code.

    2 command line, configuration or run folder; 3 data; 4 out of memory; 5 NaN or infinity; 130 interrupted;
    143 terminated. `SystemExit` of Hydra's own flags (`--help`) passes through.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # each of its processes would train the same run
        return _refuse(
            "a run is one process; this one was started by torchrun (TORCHELASTIC_RUN_ID is set). Type python train.py "
            "...; to use several GPUs, a sweep: python train.py -m hydra/sweeper=optuna ... runs a trial on each. In a "
            "shell that torchrun left behind: unset TORCHELASTIC_RUN_ID.",
            ConfigError.exit_code,
        )
    register_schema()
    OmegaConf.register_new_resolver("help", _help, replace=True)
    spared = _named_folder(argv)
    code = 0

    def task(composed: DictConfig) -> None:
        nonlocal code
        # Refused here and not in main: Hydra prints a line of its own for what a job raises.
        try:
            code = _train(composed, argv, resuming, spared) or code
        except ConfigError as error:
            code = _refuse(str(error), error.exit_code)
        if code >= 128:
            raise Stopped(code)

    saved = sys.argv
    try:
        if "hydra.run.dir=" in argv:
            raise ConfigError("hydra.run.dir is empty. Type hydra.run.dir=DIR.")
        overrides, resuming = _take_resume(argv)
        sys.argv = [str(CHECKOUT / "train.py"), *overrides]
        with terminable():
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(task)()
    except ConfigError as error:
        return _refuse(str(error), error.exit_code)
    except FAILURES as error:
        return _refuse(explain(error, argv), ConfigError.exit_code)
    except Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return _refuse("interrupted.", 130)
    except Terminated:
        return _refuse("terminated.", 143)
    finally:
        sys.argv = saved
    return code


def _train(composed: DictConfig, argv: list[str], resuming: bool, spared: Path | None) -> int:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    overrides = absolute(composed, list(hydra_config.overrides.task))
    try:
        config = to_config(composed)
        if config.resume:
            raise ConfigError("resume: give it on the command line, as resume=DIR; it reads the rest from DIR.")
        if resuming:
            _refuse_changes(folder, composed)

        from segsweep.training.run import run  # torch and timm: seconds

        files = {
            "config.yaml": OmegaConf.to_yaml(composed),
            "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(overrides)),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_config})),
        }
        return run(config, folder, argv=argv, hydra_files=files, resuming=resuming)
    except BaseException:
        if not journal.exists(folder):
            _remove_empty(folder, spared)
        raise


def _take_resume(argv: list[str]) -> tuple[list[str], bool]:
    """Replace `resume=DIR` by DIR's recorded overrides, before Hydra composes its defaults and makes a folder."""
    wanted = [arg for arg in argv if arg.startswith("resume=")]
    if not wanted:
        return argv, False
    folder = Path(wanted[-1].removeprefix("resume=").strip("'\"")).expanduser().resolve()
    try:
        before = recorded(folder)
    except ConfigError as error:
        raise ConfigError(f"resume={error}") from None
    extra = [arg for arg in argv if not arg.startswith("resume=")]
    given = {key_of(arg) for arg in extra}
    if "hydra.run.dir" in given:
        raise ConfigError("resume goes on in the folder it names: drop hydra.run.dir.")
    if {"-m", "--multirun"} & given:
        raise ConfigError("resume goes on with one run: drop -m.")
    kept = [arg for arg in before if key_of(arg) not in given]
    typed = [arg for arg in extra if "=" in arg and not arg.startswith("-")]
    flags = [arg for arg in extra if arg not in typed]
    return [*kept, *typed, f"hydra.run.dir={quoted(folder)}", "hydra.mode=RUN", *flags], True


def _refuse_changes(folder: Path, composed: DictConfig) -> None:
    wanted: Any = OmegaConf.to_container(composed, resolve=True)
    recorded: Any = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=True)
    # A key that came after the run had its default.
    before, now = (
        {name: default for name, default, _ in keys()} | dict(flat(recorded)),
        dict(flat(wanted)),
    )
    changed = [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(RESUMABLE)
    ]
    if changed:
        allowed = ", ".join(name.removesuffix(".") for name in RESUMABLE)
        raise ConfigError(
            f"resume={folder}: another configuration than the run's: {'; '.join(changed)}. Only {allowed} may change; "
            "start a new run for the rest."
        )


def _named_folder(argv: list[str]) -> Path | None:
    """The folder that the command line names for the run, if it is there already."""
    named = [arg.partition("=")[2].strip("'\"") for arg in argv if key_of(arg) == "hydra.run.dir"]
    folder = Path(named[-1].replace("\\'", "'")).resolve() if named else None
    return folder if folder and folder.exists() else None


def _remove_empty(folder: Path, spared: Path | None) -> None:
    """Remove the folder that Hydra made for a run that was refused, and the day's folder when it was the first."""
    ours = [folder, folder.parent] if folder.is_relative_to(outputs()) else [folder]
    for path in ours:
        if path not in (outputs(), spared):
            with suppress(OSError):  # not empty, or another process was faster
                path.rmdir()


def _refuse(message: str, code: int) -> int:
    print(f"train.py: {message}", file=sys.stderr)
    return code


def _help() -> str:
    groups = [
        ("encoder", "any timm model; <TAB> completes it"),
        *(
            (group, _options(group))
            for group in ("recipe", "optim", "augmentation", "data", "loss", "tracking", "debug")
        ),
    ]
    rows = [f"  {name:28} {text} [{_shown(default)}]" for name, default, text in keys()]
    return "\n".join(
        [
            "Train a U-Net on any timm encoder and log its IoU to MLflow.",
            "",
            "  python train.py                                        the embedded example",
            "  python train.py encoder=resnet34 optim.lr=1e-4",
            "  python train.py data=folder data.images=DIR data.masks=DIR",
            "  python train.py resume=outputs/DATE/TIME               go on where a run stopped",
            "  python train.py -m hydra/sweeper=optuna                search encoders and learning rates",
            "  python train.py sweeps=lr_by_encoder                   a search kept in sweeps/",
            "",
            "Groups (GROUP=OPTION):",
            *(f"  {name:28} {text}" for name, text in groups),
            "",
            "Keys (KEY=VALUE), with the schema's default; groups may set others, --cfg job shows the result:",
            *rows,
            f"  {'hydra.run.dir':28} the run folder [outputs/DATE/TIME]",
            f"  {'hydra.sweep.dir':28} a sweep's folder [outputs/DATE/TIME-multirun]",
            f"  {'hydra.sweeper.KEY':28} how to search: conf/hydra/sweeper/optuna.yaml",
            "",
            'Completion of groups, keys and encoder names: eval "$(python train.py -sc install=bash)"',
            "More: --cfg job (the composed configuration), --info defaults, --hydra-help (Hydra's own flags)",
        ]
    ).replace("$", "$$")


def _options(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (CHECKOUT / "conf" / group).glob("*.yaml")))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return str(value).replace(" ", "")
