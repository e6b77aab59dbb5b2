"""A training from its configuration to its result: claim the folder, build, go on or begin, record, end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from torch import nn

from segsweep import console
from segsweep.config.schema import RunConfig
from segsweep.engine.scorer import Evaluation
from segsweep.errors import ConfigError, DataError
from segsweep.nn.checkpoint import LAST
from segsweep.runs import journal
from segsweep.runs.locks import FolderLock
from segsweep.runs.records import End, Run, Start
from segsweep.training.build import Training, build
from segsweep.training.loop import fit, stop_reason
from segsweep.training.recorder import SUMMARY, Outcome, Recorder, as_user_error


def run(
    asked: RunConfig, folder: Path, *, argv: Sequence[str], hydra_files: Mapping[str, str], resuming: bool = False
) -> int:
    """Train as configured, in `folder`; print the result to stdout.

    What is wrong with the configuration or the data is refused before the `start` record, and leaves no folder behind.

    Args:
        folder: the run folder; made if need be.
        argv: the command line, for the record.
        hydra_files: text of the files to keep in `.hydra/`, for people.
        resuming: go on with the run that the folder holds.

    Returns:
        the exit code: 0, 130 interrupted, 143 terminated.

    Raises:
        ConfigError: what the user can mend; `exit_code` tells the kinds apart.
    """
    with _claimed(folder, resuming) as past, _user_errors(asked):
        only_result = _refuse_complete(folder, past, asked)
        before = _resumed_from(folder, past)
        training = build(asked, before)
        _refuse_another(training, folder, past)
        with closing(Recorder(training, folder, past)) as recorder:
            if before:
                recorder.restore()
            if only_result:
                recorder.finish()
                recorder.summarize()
                return 0
            return _train(training, recorder, argv, hydra_files)


def _train(training: Training, recorder: Recorder, argv: Sequence[str], hydra_files: Mapping[str, str]) -> int:
    state, settings, names = training.state, training.settings, training.data.labels.names
    scorer, validation = training.scorer(), training.eval_batches(training.data.parts["val"])

    def validate(model: nn.Module) -> Evaluation:
        return scorer.evaluate(model, validation, training.loss, names, recorder.shown)

    recorder.start(argv, hydra_files)
    tested: dict[str, float] = {}
    try:
        batches, step = training.train_batches(), training.step()
        for epoch in fit(state, step, batches, validate, settings.train, settings.optim, watch=console.bar):
            recorder.epoch(epoch)
        tested = recorder.finish()
        outcome = Outcome("complete", stop_reason(state.progress, settings.train))
    except BaseException as error:
        outcome = Outcome.of(error, settings.train, settings.data.size)
    recorder.end(outcome, tested)
    if outcome.error:
        raise outcome.error
    return outcome.exit_code


@contextmanager
def _claimed(folder: Path, resuming: bool) -> Iterator[Run]:
    """Hold the folder's lock; what its journal says. A lock that was refused before the first record is removed.

    Raises:
        ConfigError: another process trains there, or the folder holds a run that is not to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        past = journal.read(folder)
        if past.records and not resuming:
            raise ConfigError(f"{folder}: holds a run already. Go on with it: resume={folder}; or give another folder.")
        yield past
    finally:
        if not journal.exists(folder):
            lock.path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _user_errors(asked: RunConfig) -> Iterator[None]:
    """Raise what the user can mend as a `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        told = as_user_error(error, asked.train, asked.data.size)
        if told is None:
            raise
        raise told from error


def _refuse_complete(folder: Path, past: Run, asked: RunConfig) -> bool:
    """Refuse a run with nothing left to do; whether only its result is, since it was killed while writing that.

    Raises:
        ConfigError: it is complete.
    """
    if past.end is None or past.start is None or past.end.status != "complete":
        return False
    done, epochs, before = len(past.epochs), asked.train.epoch_limit, past.start.asked.train
    if asked.train.test and not past.start.settings.train.test:
        return False  # only the test split is left to be scored
    unchanged = (before.epochs, before.time_budget) == (asked.train.epochs, asked.train.time_budget)
    if not unchanged and not (epochs and done >= epochs):
        return False
    if not _has_result(folder, past.end):
        return True
    more = "train.epochs=N" if epochs else "train.time_budget=SECONDS"
    raise ConfigError(f"resume={folder}: complete after {done} epochs. Go further with {more}.")


def _has_result(folder: Path, end: End) -> bool:
    """Whether the summary is of this end."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return all(summary.get(name) == value for name, value in {**end.metrics, "status": end.status}.items())
    except (OSError, ValueError, AttributeError):
        return False


def _resumed_from(folder: Path, past: Run) -> Start | None:
    """The record of the run to go on with; None where there is no checkpoint yet.

    Raises:
        ConfigError: the checkpoint is gone.
    """
    if past.epochs and not (folder / LAST).exists():
        raise ConfigError(f"resume={folder}: {LAST} is gone, so there is nothing to go on with. Start a new run.")
    return past.start if (folder / LAST).exists() else None


def _refuse_another(training: Training, folder: Path, past: Run) -> None:
    """Refuse what would be another training than the one that the folder's first record began.

    Raises:
        ConfigError, DataError: other weights, other data.
    """
    if not past.starts:
        return
    first = past.starts[0]
    if training.data.store.digest != first.data_digest:
        raise DataError(f"resume={folder}: the data have changed since the run began. Start a new run.")
    if training.weights_source != first.weights_source:
        raise ConfigError(
            f"resume={folder}: began with weights from {first.weights_source}, now there are those from "
            f"{training.weights_source}. Start a new run."
        )
