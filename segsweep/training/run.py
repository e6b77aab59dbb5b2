"""A training from its configuration to its result: claim the folder, build, begin or resume, record, end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import partial
from io import BytesIO
from operator import attrgetter
from pathlib import Path

from segsweep import console
from segsweep.config.schema import RunConfig, TrainConfig
from segsweep.data.split import SPLIT, read_split
from segsweep.engine.device import fitting
from segsweep.errors import Asked, ConfigError, DataError, DiskError, Terminated, as_disk_error
from segsweep.nn.checkpoint import LAST, load_state, load_weights
from segsweep.paths import BEST, override, program
from segsweep.process import deaf
from segsweep.runs import journal, stop
from segsweep.runs.locks import FolderLock
from segsweep.runs.records import End, Run, Start
from segsweep.tracking.system import needs
from segsweep.training.build import Training, build
from segsweep.training.classes import ClassWatch
from segsweep.training.loop import Epoch, fit, out_of_patience, share_done, stop_reason
from segsweep.training.recorder import SUMMARY, Outcome, Recorder
from segsweep.world import SINGLE, World

LIMITS = attrgetter("epochs", "time_budget", "patience")  # of a training, by which it ends


def run(
    asked: RunConfig,
    folder: Path,
    *,
    argv: Sequence[str],
    hydra_files: Mapping[str, str],
    resuming: bool = False,
    world: World = SINGLE,
) -> int:
    """Train as configured, in `folder`; print the result; return the exit code: 0, 130 (Ctrl-C) or 143 (SIGTERM).

    What is wrong with the configuration or the data is refused before the `start` record, and leaves no folder behind.

    Args:
        folder: made if need be.
        argv: the command line, for the record.
        hydra_files: text of the files to keep in `.hydra/`, for people.
        resuming: go on with the run that the folder holds.
        world: the processes that train together; this is the first of them, and the others call `follow`.

    Raises ConfigError: what the user can mend; `exit_code` tells the kinds apart. With several processes it is the
    first error of all.
    """
    sign = stop.Sign(folder)
    with _told(world), claimed(folder, resuming) as past, _fitting(asked.train, asked.data.size):
        only_result = _lacks_only_result(folder, past, asked)
        before = _resumed_from(folder, past, asked)
        classes = past.starts[0].classes if past.starts else []
        world.agreed(None if only_result else (asked, before, classes))
        if asked.tracking.system and asked.tracking.name != "none" and not only_result:
            needs()
        training = build(asked, before, SINGLE if only_result else world, classes)
        _refuse_another(training, folder, past)
        with closing(Recorder(training, folder, past)) as recorder:
            if before:
                recorder.restore()
            if only_result:
                recorder.draw()
                recorder.summarize()
                return 0
            world.any(False)  # all have come so far: nothing is recorded of a training that one of them refuses
            recorder.start(argv, hydra_files)
            try:
                return _train(training, recorder, sign, resumed=bool(before))
            except (DiskError, OSError) as error:
                if not isinstance(as_disk_error(error), DiskError):
                    raise
                again = f"{program()} {override('resume', folder)}"
                console.note(f"\nstopped. When the folder can be written again, type: {again}")
                raise


def follow(world: World) -> None:
    """Train as one of several processes, but the first: do as that one says, and record nothing.

    Raises what `run` raises, and what went wrong in another process first.
    """
    with _told(world):
        task: tuple[RunConfig, Start | None, list[str]] | None = world.agreed(None)
        if task is None:
            return
        asked, before, classes = task
        with _fitting(asked.train, asked.data.size):
            training = build(asked, before, world, classes)
            world.any(False)
            if before:
                training.state.progress, last = world.agreed((training.state.progress, b""))
                if last:
                    training.state.load_state_dict(load_state(BytesIO(last), training.state.device))
            with _fitting(training.settings.train, training.settings.data.size):
                for _ in _epochs(training):
                    pass
                if training.scores_test:
                    load_weights(world.agreed(b""), training.state.scored)
                    training.evaluate(training.state.scored, training.data.parts["test"], world=world)


def _train(training: Training, recorder: Recorder, sign: stop.Sign, resumed: bool) -> int:
    state, settings, world = training.state, training.settings, training.world
    tested: dict[str, float] = {}
    try:  # the start is recorded, so from here on the end is, too
        if resumed and world.size > 1:
            last = recorder.folder / LAST
            world.agreed((state.progress, last.read_bytes() if last.exists() else b""))
        recorder.draw_batch()
        classes = ClassWatch(training.data.labels.names, training.data.counts("train")[:-1], recorder.run.epochs)
        with _fitting(settings.train, settings.data.size):
            for epoch in _epochs(training):
                recorder.epoch(epoch)
                classes.epoch(epoch.validation.matrices.values(), share_done(state.progress, settings.train))
                if sign.is_up() and not stop_reason(state.progress, settings.train):
                    recorder.draw()
                    raise Asked
            tested = recorder.finish()
        outcome = Outcome("complete", stop_reason(state.progress, settings.train))
    except BaseException as error:
        try:
            outcome = Outcome.of(training.world.cause(error))
        except (Terminated, KeyboardInterrupt) as later:  # right behind another process's end
            outcome = Outcome.of(training.world.cause(later))
    # A second SIGTERM comes of torchrun, which has seen that another process failed, or of a queue's impatience.
    with nullcontext() if outcome.status == "complete" else deaf():
        try:
            recorder.end(outcome, tested)
        except BaseException as later:
            raise later from outcome.error  # a full disk must not hide why the training failed
    if outcome.error:
        raise outcome.error
    return outcome.exit_code


def _epochs(training: Training) -> Iterator[Epoch]:
    """Train, and yield each epoch."""
    world, settings = training.world, training.settings
    validate = partial(training.evaluate, indices=training.data.parts["val"], show=training.shown, world=world)
    batches, step, sections = training.train_batches(), training.step(), (settings.train, settings.optim)
    yield from fit(training.state, step, batches, validate, *sections, watch=console.bar, world=world)


@contextmanager
def _told(world: World) -> Iterator[None]:
    """Tell the other processes what goes wrong here; raise what went wrong first in any."""
    try:
        yield
    except BaseException as error:
        first = world.cause(error)
        if first is error:
            raise
        raise first from error


@contextmanager
def claimed(folder: Path, resuming: bool) -> Iterator[Run]:
    """Hold the folder's lock; yield what its journal says. Where nothing was recorded, the lock's file is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        past = journal.read(folder)
        if past.records and not resuming:
            go_on = override("resume", folder)
            raise ConfigError(f"{folder}: holds a run already. To continue it: {go_on}; or give another folder.")
        yield past
    finally:
        if not journal.exists(folder):
            lock.path.unlink(missing_ok=True)
        lock.release()


def _fitting(train: TrainConfig, size: Sequence[int] | str) -> AbstractContextManager[None]:
    """Tell what to change where a training does not fit the memory."""
    finer = 2 * train.micro_batches
    divides = train.batch_size == "auto" or train.batch_size % finer == 0
    other = "Try a smaller train.batch_size or data.size, or train.checkpointing=true."
    advice = f"Try train.grad_accum={finer}: smaller micro-batches." if divides else other
    tried = f"train.batch_size={train.batch_size} train.grad_accum={train.grad_accum} data.size={size}"
    return fitting(advice, f" with {tried}")


def _lacks_only_result(folder: Path, past: Run, asked: RunConfig) -> bool:
    """Tell whether a run is complete but for its result, because it was killed while it wrote that.

    Raises ConfigError: it is complete and has its result, so nothing is left to do.
    """
    if past.end is None or past.start is None or past.end.status != "complete":
        return False
    before, now = past.start.asked.train, asked.train
    if now.test and not past.start.settings.train.test:
        return False  # the test split is left to be scored
    done, best = len(past.epochs), past.best.epoch if past.best else 0
    ended_by_patience = out_of_patience(done, best, before.patience)
    same_limits = (before.epochs, before.time_budget) == (now.epochs, now.time_budget)
    same_limits &= before.patience == now.patience or not ended_by_patience
    enough = bool(now.epoch_limit and done >= now.epoch_limit)
    waited = out_of_patience(done, best, now.patience)
    if not (same_limits or enough or waited):
        return False  # it is to be trained longer
    if not _has_result(folder, past.end):
        return True
    more = "train.epochs=N" if now.epoch_limit else "train.time_budget=SECONDS"
    if waited and not enough:
        more = f"train.patience=N, more than {now.patience}"
    raise ConfigError(f"resume={folder}: complete after {done} epochs. To train longer: {more}.")


def _has_result(folder: Path, end: End) -> bool:
    """Whether the summary is of this end."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return all(summary.get(name) == value for name, value in {**end.metrics, "status": end.status}.items())
    except (OSError, ValueError, AttributeError):
        return False


def _resumed_from(folder: Path, past: Run, asked: RunConfig) -> Start | None:
    """The record of the run to go on with; None where there is no checkpoint yet."""
    if (folder / LAST).exists() or _only_scored(folder, past, asked):
        return past.start
    if past.epochs:
        raise ConfigError(f"resume={folder}: {LAST} is missing, so the run cannot be continued. Start a new run.")
    return None


def _only_scored(folder: Path, past: Run, asked: RunConfig) -> bool:
    """Whether only the test split is left to be scored: the best model is enough for that."""
    if past.end is None or past.start is None or past.end.status != "complete" or not (folder / BEST).exists():
        return False
    same = LIMITS(past.start.asked.train) == LIMITS(asked.train)
    return same and asked.train.test and not past.start.settings.train.test


def _refuse_another(training: Training, folder: Path, past: Run) -> None:
    """Refuse what would be another training than the one that the folder's first record began."""
    if not past.starts:
        return
    first = past.starts[0]
    if training.data.store.digest != first.data_digest:
        raise DataError(f"resume={folder}: the data have changed since the run began. Start a new run.")
    began: list[tuple[str, str]] = []
    with suppress(ConfigError, OSError):  # damaged, or not there: it is written anew
        began = sorted((row["split"], row["key"]) for row in read_split(folder))
    parts, samples = training.data.parts, training.data.samples
    split = sorted((part, samples[index].key) for part, indices in parts.items() for index in indices)
    if began and began != split:
        moved = len(set(began) - set(split))
        typed = f" For the same split, add data.table={folder / SPLIT} data.root=DIR."
        again = typed if training.settings.data.name == "folder" else ""
        raise DataError(
            f"resume={folder}: {moved} of {len(began)} images would lie in another part of the split than when the run "
            f"began. Start a new run.{again}"
        )
    if (classes := list(training.data.labels.names)) != first.classes:
        differ = f"the run began with the classes {', '.join(first.classes)}, and now they are {', '.join(classes)}"
        raise ConfigError(f"resume={folder}: {differ}. Start a new run.")
    before, now = first.weights_source, training.model.weights_source
    if before != now:
        came = f"the run began with weights from {before}, and now they come from {now}"
        raise ConfigError(f"resume={folder}: {came}. Start a new run.")
