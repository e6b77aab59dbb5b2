"""The composition root of a sweep: from a plan to study, backend, search, finalists and winner."""

import math
import shlex
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from optuna.pruners import BasePruner

from segsweep import catalog, console
from segsweep.config.schema import EPOCHS
from segsweep.errors import Asked, DiskError, Terminated
from segsweep.process import show
from segsweep.runs import journal, locks
from segsweep.runs.records import GpuNeed
from segsweep.runs.stop import Sign
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import about, crossval, finalists, pinned, report, storage
from segsweep.sweeping.about import About
from segsweep.sweeping.backends.base import Backend, Job
from segsweep.sweeping.backends.local import LocalBackend
from segsweep.sweeping.backends.slots import PACKED, slots
from segsweep.sweeping.finalists import FinalistResult
from segsweep.sweeping.html_report import write
from segsweep.sweeping.live import Board
from segsweep.sweeping.mirror import Tracking
from segsweep.sweeping.packing import per_gpu
from segsweep.sweeping.plan import Plan, again
from segsweep.sweeping.scheduler import TRAINING, WAIT, Search, TrialSource, drive, taken_up, tried_again
from segsweep.sweeping.study import JOURNAL, Study, optuna_pruner, trials_of
from segsweep.tracking import client
from segsweep.world import cores

NEEDS = "segsweep.training.estimate:needs"
MEASURED = 8  # encoders, the costliest ones: what needs most of a GPU is among them


def run(plan: Plan) -> list[FinalistResult]:
    """Run the sweep, or continue the one in the folder; print the result to stdout."""
    made = storage.missing(plan.folder / locks.LOCK)
    sign = Sign(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    folder_lock, held = locks.FolderLock(plan.folder, "sweep"), []
    study = backend = None
    made = [*storage.missing(plan.folder / JOURNAL), *made]
    try:
        held = storage.hold(plan.sweeper.storage, plan.sweeper.study_name or "sweep")
        # Slots first: they need nothing written.
        backend = backend_for(plan)
        kept = begun(plan)
        study = _study(plan, kept.id)
        sources = pinned.weights(plan, study, backend)
        decided = pinned.decided(plan, study, backend)
        pinned.refuse_other_data(plan, study, backend)
    except BaseException:
        if backend:
            backend.close()
        if study:
            study.discard()
        for lock in held:
            lock.discard()
        storage.remove(made)
        folder_lock.release()
        raise
    try:
        with storage.full_disk_told():
            return _run(plan, study, backend, partial(plan.argv, sources, decided), kept, sign)
    except (KeyboardInterrupt, Terminated, Asked, DiskError, OSError):
        console.note(f"\nstopped; nothing is lost. To continue, type: {again(plan.folder, plan.command)}")
        raise
    finally:
        backend.close()
        for lock in held:
            lock.release()
        folder_lock.release()


def backend_of(plan: Plan, outlive: bool = True) -> Backend:
    """Return what runs the trials; on this machine they may `outlive` the controller. ConfigError: it cannot be had."""
    asked = plan.sweeper
    if asked.backend == "ray":
        from segsweep.sweeping.backends.ray import RayBackend

        return RayBackend(plan.folder, asked.address, None if asked.slots == "auto" else asked.slots, asked.gpus)
    on_cpu = plan.base.train.device == "cpu"
    return LocalBackend(plan.folder, slots(asked.slots, on_cpu), outlive=outlive)


def backend_for(plan: Plan, outlive: bool = True) -> Backend:
    """Return what runs a sweep's trials; with slots=packed several of them on each GPU. Otherwise as `backend_of`."""
    trials = trials_of(plan.space, plan.sweeper)  # which may be refused: then nothing is held
    return packed(plan, backend_of(plan, outlive), plan.space.encoders, trials)


def packed(plan: Plan, backend: Backend, encoders: Sequence[str], trials: int) -> Backend:
    """Return what runs so many trials with these encoders: with slots=packed several of them on each GPU."""
    if plan.sweeper.slots != PACKED or not isinstance(backend, LocalBackend):
        return backend
    number, why = _per_gpu(plan, backend, encoders, trials)
    console.note(f"packed: {console.counted(number, 'trial')} on each GPU, not more: {why}")
    return backend.on(slots(PACKED, plan.base.train.device == "cpu", number))


def _per_gpu(plan: Plan, backend: LocalBackend, encoders: Sequence[str], trials: int) -> tuple[int, str]:
    """Decide how many trials share each GPU, and why not more, from what trainings with the costliest encoders need."""
    if plan.base.train.time_budget or "train.time_budget" in plan.space.distributions:
        return 1, "train.time_budget counts seconds, and trials that share a GPU do less in them"
    known = catalog.counted()
    gflop = {name: float(known.get(name.partition(".")[0], {}).get("gflop", math.inf)) for name in encoders}
    costliest = sorted(gflop, key=gflop.__getitem__, reverse=True)[:MEASURED]
    console.note(f"measuring what a training takes of its GPU: {', '.join(costliest)}")
    found = backend.call(NEEDS, asdict(plan.timed), costliest)
    return per_gpu([GpuNeed(**need) for need in found.values()], backend.capacity, cores(), trials)


def begun(plan: Plan) -> About:
    """Return what is to be written down of the sweep: anew, but for what an earlier start has chosen."""
    before, train = about.load(plan.folder) if (plan.folder / about.NAME).exists() else None, plan.base.train
    return About(
        id=(before and before.id) or uuid.uuid4().hex,
        command=plan.command,
        space=plan.space.described(),
        fixed=list(plan.fixed),
        budget="seconds" if train.time_budget and not train.epochs else plan.sweeper.budget,
        finalists=before.finalists if before else [],
        repeats=before.repeats if before else None,
        experiment=(before and before.experiment) or plan.base.experiment,
        tracked=plan.tracked,
        cross_validates=plan.cross_validates,
        state="running",
    )


def _study(plan: Plan, owner: str) -> Study:
    pruner = pruner_of(plan)
    return Study(plan.folder, plan.space, plan.sweeper, seeds=plan.seeds, pruner=pruner, fixed=plan.fixed, owner=owner)


def pruner_of(plan: Plan) -> BasePruner | None:
    """Return the pruner of Optuna's that is asked for; None for our own, or none."""
    return optuna_pruner(plan.sweeper.pruner, plan.base.train.epochs or EPOCHS)


def _run(
    plan: Plan, study: Study, backend: Backend, argv: Callable[[list[str], str], list[str]], kept: About, sign: Sign
) -> list[FinalistResult]:
    search = Search(study, argv, plan.sweeper, seed=plan.base.train.seed)
    search.restore({trial.name: trial for trial in load_all(plan.folder)})
    # Its end was known when the last controller was killed; its job may not have heard. And where the search goes on,
    # no slot is left for the repeats of earlier finalists.
    over = [trial for trial in search.trials.values() if trial.state != "running"]
    finished = sum(trial.state in ("complete", "pruned") for trial in over)
    searching = not study.exhausted and finished < study.n_trials
    for trial in [*over, *(load_all(plan.folder, finalists.FOLDER) if searching else ())]:
        if job := backend.adopt(trial.name):
            backend.stop(job)
    kept.save(plan.folder)
    announce(plan, study, backend)
    track = Tracking(plan)
    track.catch_up(search.trials.values())
    try:
        results = _searched(plan, search, backend, track, kept, sign)
        text = concluded(plan, list(search.trials.values()), results)
    except BaseException as error:
        track.end(*stopped(plan, error))
        raise
    sent(plan, track, text, results)
    return results


def announce(plan: Plan, study: Study, backend: Backend) -> None:
    """Print the plan and the size of the sweep that begins."""
    encoders = plan.space.encoders
    for word, why in study.remembered("plan") or []:
        console.note(f"plan: {word}  {why}")
    console.note(
        f"sweep of {console.counted(study.n_trials, 'trial')} over {', '.join(plan.space.distributions)}; "
        f"{console.counted(len(encoders), 'encoder')}; {backend.capacity} at once; {plan.folder}"
    )


def stopped(plan: Plan, error: BaseException) -> tuple[about.State, str]:
    """Write down why the sweep stops; return its state and the reason."""
    state: about.State = "failed" if isinstance(error, Exception) else "stopped"
    reason = str(error) or type(error).__name__
    with suppress(OSError):  # a full disk must not hide why
        replace(about.load(plan.folder), state=state, reason=reason).save(plan.folder)
    return state, reason


def concluded(plan: Plan, trials: Sequence[Trial], results: Sequence[FinalistResult]) -> str:
    """Print the result, and write the page; return what was printed."""
    crossed = crossval.results(plan.folder, trials)
    replace(about.load(plan.folder), cross_validation=crossed, state="complete").save(plan.folder)
    text = report.summary(trials, results, plan.folder)
    show(text)
    write(plan.folder)
    return text


def sent(plan: Plan, track: Tracking, text: str, results: Sequence[FinalistResult]) -> None:
    """Send the result to MLflow, and say where it can be seen."""
    if problem := track.end("complete", text, results):
        console.note(f"MLflow: not everything was sent: {problem} Later: segsweep sync {shlex.quote(str(plan.folder))}")
    elif plan.tracked:
        show(f"{'compare':16}{client.show_command(plan.folder, plan.base.tracking.uri)}")


def _searched(
    plan: Plan, search: Search, backend: Backend, track: Tracking, kept: About, sign: Sign
) -> list[FinalistResult]:
    """Search, train the finalists, score the winner; nothing but the search where it is a cross-validation."""
    if "data.fold" in plan.space.distributions and not plan.cross_validates:
        console.note(
            "data.fold is varied: folds differ in difficulty, so the rank of a trial also depends on its fold. To "
            "score each setting on every fold: sweeps=cv"
        )
    watch(search, search.study.n_trials, backend, plan.folder, track, sign)
    if ended := exhausted(search, plan.sweeper.n_trials):
        console.note(ended)
    if plan.cross_validates:
        return []
    chosen = finalists.best_of_each(search.trials.values(), plan.sweeper.finalists)
    best = chosen or finalists.best_of_each(search.trials.values(), 1)
    seeds = plan.fresh_seeds(search.trials.values())
    planned = [run for trial in chosen for run in finalists.repeats(trial, seeds, plan.folds)]
    replace(kept, finalists=[trial.name for trial in best], repeats=[run.name for run in planned]).save(plan.folder)
    before = {run.name: run for run in load_all(plan.folder, finalists.FOLDER)}
    repeats = [taken_up(run, tried_again(before.get(run.name, run))) for run in planned]
    track.catch_up(repeats)
    if any(run.state == "running" for run in repeats):
        console.note(f"finalists: {', '.join(t.weights for t in chosen)}, {plan.sweeper.repeats} new seeds each")
        watch(TrialSource(repeats), len(repeats), backend, plan.folder, track, sign)
    results = finalists.ranked(plan.folder, best, repeats)
    if results:
        score(plan.folder, results[0].winner, backend)
        track.send(results[0].winner)
    return results


def exhausted(search: Search, asked: int | None) -> str:
    """Say that a finite space has no more points although more trials were asked for; else empty."""
    states = Counter(trial.state for trial in search.trials.values())
    size = search.study.space.size
    if not search.study.exhausted or states["complete"] + states["pruned"] >= (asked or size or 0):
        return ""
    counted = [f"{states[state]} {state}" for state in ("complete", "pruned", "failed", "refused") if states[state]]
    done = f"all {size} points of the space are done: {', '.join(counted)}"
    if asked is None:
        return f"{done}."
    return (
        f"{done}, but n_trials={asked}. For more trials, start a new sweep with a wider range or choice, or run these "
        "points again with other seeds: hydra.sweeper.repeat_points=seed."
    )


def watch(source: TrialSource, wanted: int, backend: Backend, folder: Path, track: Tracking, sign: Sign) -> None:
    with Board(source.trials, wanted, backend.capacity) as board:
        for event in drive(source, backend, folder, sign=sign):
            board.show(event)
            if event.trial.name in source.trials:  # else it is another controller's by now, and so is its run in MLflow
                track.send(event.trial)


def score(folder: Path, winner: Trial, backend: Backend) -> None:
    """Score the winner's best run on the test split, once."""
    start = winner.run.start
    if winner.run.tested or not start or not start.images.get("test"):
        return
    while not backend.free():
        time.sleep(WAIT)
    job = backend.submit(Job(winner.name, TRAINING, ("train.test=true", *winner.placed), resume=True))
    while not (ended := [update for update in backend.poll(WAIT) if update.job == job and update.ended]):
        pass
    if ended[0].error == "disk":
        raise DiskError(f"the winner cannot write its folder: {ended[0].words}")
    backend.fetch(job)
    winner.run = journal.read(folder / winner.name)
    if not winner.run.tested:
        console.note(f"the winner could not be scored on the test split: see {shlex.quote(str(folder / winner.name))}")
