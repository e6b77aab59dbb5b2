"""The composition root of a sweep: a plan becomes a study, a backend and a search, then finalists and one winner.

What is wrong is refused before the first trial.
"""

import shlex
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from segsweep import console
from segsweep.config.schema import EPOCHS
from segsweep.errors import ConfigError, Terminated
from segsweep.runs import locks
from segsweep.runs.records import Record, Run
from segsweep.runs.trial import Trial, load, load_all
from segsweep.sweep import about, finalists, report, storage
from segsweep.sweep.about import About
from segsweep.sweep.backends.base import Backend, Job
from segsweep.sweep.backends.local import LocalBackend, slots
from segsweep.sweep.finalists import FinalistResult
from segsweep.sweep.html_report import write
from segsweep.sweep.live import Board
from segsweep.sweep.mirror import Tracking
from segsweep.sweep.plan import Plan, again
from segsweep.sweep.scheduler import RESULTS, TRAINING, WAIT, Event, Listed, Search, drive, taken_up
from segsweep.sweep.study import JOURNAL, Study, optuna_pruner
from segsweep.tracking import client


def run(plan: Plan) -> list[FinalistResult]:
    """Run the sweep, or go on with the one that the folder holds; print the result to stdout.

    Raises:
        ConfigError: what the user can mend; `exit_code` tells the kinds apart.
    """
    there = plan.folder.exists()
    plan.folder.mkdir(parents=True, exist_ok=True)
    folder_lock, held, study = locks.FolderLock(plan.folder, "sweep"), [], None
    try:
        held = storage.hold(plan.sweeper.storage, plan.sweeper.study_name or "sweep")
        # Slots first: they need nothing written.
        backend = LocalBackend(plan.folder, slots(plan.sweeper.slots, on_cpu=plan.base.train.device == "cpu"))
        kept = _begin(plan)
        study = _study(plan, kept.id)
        sources = _weights(plan, study, backend)
    except BaseException:
        if study:
            study.discard()
        for lock in held:
            lock.discard()
        folder_lock.release()
        if not there:  # what is refused leaves nothing
            for name in (locks.LOCK, JOURNAL):
                (plan.folder / name).unlink(missing_ok=True)
            for empty in (plan.folder, plan.folder.parent):
                with suppress(OSError):
                    empty.rmdir()
        raise
    try:
        return _run(plan, study, backend, sources, kept)
    except (KeyboardInterrupt, Terminated):
        console.note(f"\nstopped; nothing is lost. Go on: {again(plan.folder, plan.command)}")
        raise
    finally:
        backend.close()
        for lock in held:
            lock.release()
        folder_lock.release()


def _begin(plan: Plan) -> About:
    """Return what is to be written down of the sweep: anew, but for what an earlier start has chosen.

    Raises:
        ConfigError: what an earlier start wrote is damaged.
    """
    before = about.load(plan.folder) if (plan.folder / about.NAME).exists() else None
    return About(
        id=(before and before.id) or uuid.uuid4().hex,
        command=plan.command,
        space=plan.space.described(),
        fixed=list(plan.fixed),
        budget=plan.sweeper.budget,
        finalists=before.finalists if before else [],
        experiment=plan.base.experiment,
        tracked=plan.tracked,
        state="running",
    )


def _study(plan: Plan, owner: str) -> Study:
    return Study(
        plan.folder,
        plan.space,
        plan.sweeper,
        seeds=plan.seeds,
        pruner=optuna_pruner(plan.sweeper.pruner, plan.base.train.epochs or EPOCHS),
        fixed=plan.fixed,
        owner=owner,
    )


def _weights(plan: Plan, study: Study, backend: Backend) -> dict[str, str]:
    """Find where each encoder's weights come from, once for all trials; empty where that is varied.

    Raises:
        ConfigError: some encoders would start from pretrained weights and some from random ones.
    """
    known: dict[str, str] | None = study.remembered("weights")
    if known is None:
        encoder, varied = plan.base.encoder, plan.space.distributions
        arguments = encoder.pretrained, None if "encoder.weights_file" in varied else encoder.weights_file
        known = {}
        if "encoder.pretrained" not in varied:
            known = backend.call("segsweep.nn.weights:sources", list(plan.space.encoders), *arguments)
    random = [name for name, source in known.items() if source == "random"]
    if random and len(random) < len(known) and not plan.sweeper.mixed_weights:
        rows = "; ".join(f"{name}: {source}" for name, source in known.items())
        raise ConfigError(
            f"an unfair comparison: {len(random)} of {len(known)} encoders would start from random weights ({rows}). "
            "Drop them, run once where the hub can be reached, or accept it with hydra.sweeper.mixed_weights=true."
        )
    study.remember("weights", known)  # what was refused is looked up again
    return known


def _run(plan: Plan, study: Study, backend: Backend, sources: Mapping[str, str], kept: About) -> list[FinalistResult]:
    search = Search(study, partial(plan.argv, sources), plan.sweeper)
    search.restore({trial.name: trial for trial in load_all(plan.folder)})
    for trial in search.trials.values():
        # Its end was known when the last controller was killed; its job may not have heard.
        if trial.state != "running" and (job := backend.adopt(trial.name)):
            backend.stop(job)
    kept.save(plan.folder)
    encoders = plan.space.encoders
    console.note(
        f"sweep of {study.n_trials} trials over {', '.join(plan.space.distributions)}; "
        f"{len(encoders)} encoder{'s' if len(encoders) > 1 else ''}; {backend.capacity} at once; {plan.folder}"
    )
    track = Tracking(plan)
    for trial in search.trials.values():
        if trial.state != "running":
            track.send(trial)  # what an earlier start missed
    try:
        results = _searched(plan, search, backend, track, kept)
    except BaseException as error:
        state: about.State = "failed" if isinstance(error, Exception) else "stopped"
        reason = str(error) or type(error).__name__
        replace(about.load(plan.folder), state=state, reason=reason).save(plan.folder)
        track.end(state, reason)
        raise
    text = report.summary(list(search.trials.values()), results, plan.folder)
    print(text, flush=True)
    write(plan.folder)
    replace(about.load(plan.folder), state="complete").save(plan.folder)
    if problem := track.end("complete", text, results):
        console.note(f"MLflow: not everything was sent: {problem} Later: segsweep sync {shlex.quote(str(plan.folder))}")
    elif plan.tracked:
        print(f"{'compare':16}{client.show_command(plan.folder, plan.base.tracking.uri)}")
    return results


def _searched(plan: Plan, search: Search, backend: Backend, track: Tracking, kept: About) -> list[FinalistResult]:
    """Search, train the finalists, score the winner."""
    if "data.fold" in plan.space.distributions:
        console.note(
            "data.fold is varied: folds are unlike, so a trial's rank tells of its fold, too. Means over the folds: "
            f"segsweep compare --sweep {shlex.quote(str(plan.folder))} --group-by encoder.name"
        )
    wanted = search.study.n_trials
    _watch(search.trials, wanted, drive(search, backend, plan.folder), backend.capacity, track)

    chosen = finalists.best_of_each(search.trials.values(), plan.sweeper.finalists)
    best = chosen or finalists.best_of_each(search.trials.values(), 1)
    replace(kept, finalists=[trial.name for trial in best]).save(plan.folder)
    repeats = [run for trial in chosen for run in finalists.repeats(trial, plan.fresh_seeds, plan.folds)]
    repeats = [_known(plan.folder, run) for run in repeats]
    for run in repeats:
        if run.state != "running":
            track.send(run)
    if any(run.state == "running" for run in repeats):
        console.note(f"finalists: {', '.join(t.encoder for t in chosen)}, {plan.sweeper.repeats} fresh seeds each")
        source = Listed(repeats)
        _watch(source.trials, len(repeats), drive(source, backend, plan.folder), backend.capacity, track)
    results = finalists.ranked(plan.folder, best, repeats)
    if results:
        _test(plan.folder, results[0].winner, backend)
        track.send(results[0].winner)
    return results


def _watch(trials: dict[str, Trial], wanted: int, events: Iterator[Event], slots: int, track: Tracking) -> None:
    with Board(trials, wanted, slots) as board:
        for event in events:
            board.show(event)
            track.send(event.trial)


def _known(folder: Path, run: Trial) -> Trial:
    """Return the repeat as an earlier start left it."""
    try:
        return taken_up(run, load(folder, run.name))
    except FileNotFoundError:
        return run


def _test(folder: Path, winner: Trial, backend: Backend) -> None:
    """Score the winner on the test split: its best run, and that once."""
    end, start = winner.run.end, winner.run.start
    if (end and end.tested) or not start or not start.images.get("test"):
        return
    job = backend.submit(Job(winner.name, TRAINING, ("train.test=true",), resume=True))
    records: list[Record] = []
    ended = False
    while not ended:
        for news in backend.poll(WAIT):
            if news.job == job:
                records += news.records
                ended = news.ended
    backend.fetch(job, RESULTS)
    winner.run = Run(records)
    if not (winner.run.end and winner.run.end.tested):
        console.note(f"the winner could not be scored on the test split: see {shlex.quote(str(folder / winner.name))}")
