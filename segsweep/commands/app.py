"""The `segsweep` command: train, search, and use the runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from shlex import quote
from typing import Protocol

from segsweep import __version__
from segsweep.commands import (
    compare,
    data,
    demo,
    encoders,
    evaluate,
    export,
    predict,
    probe,
    register,
    report,
    screen,
    stop,
    sync,
    ui,
)
from segsweep.errors import ConfigError, Terminated, suggestion
from segsweep.process import complain, failed, ready, terminable


class Command(Protocol):
    """What a module of this package holds to be a command; its name is the command's.

    Its top level imports nothing heavy (torch, timm, MLflow, Optuna, pandas, Hydra, Rich): every module is imported,
    whichever command is called. HELP is a line for `segsweep --help`, with a small letter and without a full stop.
    """

    __name__: str
    HELP: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def run(self, options: argparse.Namespace) -> int:
        """Run the command and return its exit code; what is the user's to mend is a `ConfigError`."""


# As --help lists them: before a training, then with many runs, then with one model.
ORDER: tuple[Command, ...] = (
    data,
    encoders,
    probe,
    screen,
    stop,
    ui,
    compare,
    report,
    sync,
    predict,
    evaluate,
    demo,
    export,
    register,
)
TRAIN = "train"  # takes Hydra's words, and is no `Command`
COMMANDS = {command.__name__.rpartition(".")[2]: command for command in ORDER}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: the command's, an error's own (`segsweep.errors`), or a signal's.

    130 is for Ctrl-C, 143 for SIGTERM, 141 for a reader of stdout that has gone, such as head; 70 is of
    `segsweep.process`.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == [TRAIN]:
        from segsweep.commands.train import main as train  # Hydra: half a second

        return train(given[1:])
    with ready(view=True):
        return _commanded(given)


def _commanded(given: list[str]) -> int:
    about = "Train segmentation networks, search for the best one, and use it."
    parser = argparse.ArgumentParser(prog="segsweep", description=about)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser(TRAIN, help="train a U-Net, or search encoders and learning rates; segsweep train --help")
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in COMMANDS.items():
        text = command.HELP
        parsers[name] = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.arguments(parsers[name])
        parsers[name].set_defaults(command=command)
    if not given:
        parser.print_help(sys.stderr)
        return 2
    if unknown := _unknown(given[0]):
        complain(f"segsweep: {unknown}")
        return ConfigError.exit_code
    # Options may stand between arguments, which argparse allows only without subparsers, and does not know `--` then.
    own = None if "--" in given else parsers.get(given[0])
    try:
        options = own.parse_intermixed_args(given[1:]) if own else parser.parse_args(given)
        with terminable():
            code = int(options.command.run(options))
            sys.stdout.flush()  # now and not at exit, where it would be too late to catch anything
            return code
    except ConfigError as error:
        complain(f"segsweep: {error}")
        return error.exit_code
    except (KeyboardInterrupt, Terminated) as stopped:
        what, code = ("terminated", 143) if isinstance(stopped, Terminated) else ("interrupted", 130)
        complain(f"segsweep: {what}")
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 141
    except Exception as error:
        line, code = failed(error)
        complain(f"segsweep: {line}")
        return code


def _unknown(word: str) -> str:
    """Say of a command that there is none such; empty if there is, or it is an option."""
    names = (TRAIN, *COMMANDS)
    if word in names or (word.startswith("-") and word not in ("-m", "--multirun")):
        return ""
    if "=" in word or word.startswith("-"):
        return f"{word}: no such command. To train: segsweep {TRAIN} {quote(word)}"
    return f"{word}: no such command. There are: {', '.join(names)}.{suggestion(word, names)}"
