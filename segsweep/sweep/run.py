"""The composition root of a sweep: a plan becomes a study, slots and a search, then finalists and one winner.

`hydra_plugins/optuna_sweeper.py` makes the plan from the command line. What is wrong is refused before the first trial.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from segsweep import console
from segsweep.errors import ConfigError, Terminated, one_of
from segsweep.paths import quoted
from segsweep.runs import journal
from segsweep.runs.trial import Trial, load, load_all
from segsweep.sweep import finalists, report, storage
from segsweep.sweep.backends.local import LocalWorkers, slots
from segsweep.sweep.finalists import Place
from segsweep.sweep.html_report import write
from segsweep.sweep.live import Board
from segsweep.sweep.scheduler import Event, Listed, Search, drive
from segsweep.sweep.space import Space
from segsweep.sweep.study import JOURNAL, SAMPLERS, Study, grid, optuna_pruner
from segsweep.tracking import run as tracking
from segsweep.tracking.background import Background
from segsweep.tracking.names import number

PRUNERS = ("curves", "median", "hyperband", "none")
BUDGETS = ("epochs", "seconds")
EPOCHS = 10  # of a trial that says nothing else


@dataclass(frozen=True)
class Plan:
    """A sweep, as it was asked for.

    Attributes:
        folder: `hydra.sweep.dir`.
        command: as it was typed, without the program.
        space: what is varied.
        defaults: of the varied keys, by key.
        fixed: the overrides that all trials have.
        train: the `train.*` values that all trials have.
        pretrained, weights_file: `encoder.*`, or None where it is varied.
        tracking: `tracking.*`; `name` is "none" for a sweep that MLflow does not hear of.
        settings: `hydra.sweeper.*`.
    """

    folder: Path
    command: str
    space: Space
    defaults: Mapping[str, Any]
    fixed: tuple[str, ...]
    train: Mapping[str, Any]
    pretrained: Any = "auto"
    weights_file: str | None = None
    tracking: Mapping[str, Any] = field(default_factory=dict)
    n_trials: int | None = None
    slots: Any = "auto"
    sampler: str = "tpe"
    pruner: str = "curves"
    storage: str | None = None
    study_name: str | None = None
    seed: int = 0
    seed_trials: bool = True
    timeout: float | None = None
    max_failures: int | None = None
    finalists: int = 3
    repeats: int = 3
    budget: str = "epochs"
    mixed_weights: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("pruner", PRUNERS), ("budget", BUDGETS), ("sampler", SAMPLERS)):
            one_of(f"hydra.sweeper.{name}", getattr(self, name), allowed)
        least: dict[str, Any] = {"n_trials": 1, "finalists": 0, "repeats": 0, "max_failures": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise ConfigError(f"hydra.sweeper.{name}={value}: must be a whole number from {low}.")
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigError(f"hydra.sweeper.timeout={self.timeout}: must be seconds, above 0.")
        if self.budget == "seconds" and not self.train.get("time_budget"):
            raise ConfigError(
                "hydra.sweeper.budget=seconds gives each trial the same time: say how much, as train.time_budget=300."
            )

    @property
    def study(self) -> str:
        """The study's name."""
        return self.study_name or "sweep"


def run(plan: Plan) -> list[Place]:
    """Run the sweep, or go on with the one that the folder holds; print the result to stdout.

    Raises:
        ConfigError: what the user can mend; `exit_code` tells the kinds apart.
    """
    there = plan.folder.exists()
    plan.folder.mkdir(parents=True, exist_ok=True)
    folder_lock, locks, study = journal.FolderLock(plan.folder, "sweep"), [], None
    try:
        locks = storage.hold(plan.storage, plan.study)
        # Slots first: they need nothing written.
        workers = LocalWorkers(plan.folder, slots(plan.slots, on_cpu=plan.train.get("device") == "cpu"))
        study = _study(plan)
        sources = _weights(plan, study, workers)
    except BaseException:
        if study:
            study.discard()
        for lock in locks:
            lock.discard()
        folder_lock.release()
        if not there:  # what is refused leaves nothing
            for name in (journal.LOCK, JOURNAL):
                (plan.folder / name).unlink(missing_ok=True)
            for empty in (plan.folder, plan.folder.parent):
                with suppress(OSError):
                    empty.rmdir()
        raise
    try:
        return _run(plan, study, workers, sources)
    except (KeyboardInterrupt, Terminated):
        console.note(f"\nstopped; nothing is lost. Go on: {_again(plan.folder, plan.command)}")
        raise
    finally:
        workers.close()
        for lock in locks:
            lock.release()
        folder_lock.release()


def _again(folder: Path, command: str) -> str:
    """What goes on with the sweep in this folder."""
    where = "" if "hydra.sweep.dir=" in command else f" hydra.sweep.dir={shlex.quote(str(folder))}"
    return f"python train.py {command}{where}"


def _study(plan: Plan) -> Study:
    return Study(
        plan.folder,
        plan.space,
        seeds=plan.space.seeds(plan.defaults) if plan.seed_trials else (),
        n_trials=plan.n_trials,
        sampler=plan.sampler,
        pruner=optuna_pruner(plan.pruner, plan.train.get("epochs") or EPOCHS),
        seed=plan.seed,
        storage=plan.storage,
        name=plan.study,
        fixed=plan.fixed,
    )


def _run(plan: Plan, study: Study, workers: LocalWorkers, sources: Mapping[str, str]) -> list[Place]:
    search = Search(
        study,
        partial(_argv, plan, sources),
        pruner=plan.pruner,
        max_failures=plan.max_failures,
        timeout=plan.timeout,
        top=plan.finalists or 1,
    )
    search.restore({trial.name: trial for trial in load_all(plan.folder)})
    for trial in search.trials.values():
        # Its end was known when the last controller was killed; its process may not have heard.
        if trial.state != "running" and workers.adopt(trial.name):
            workers.stop(trial.name)
    _keep(plan)
    encoders = plan.space.encoders
    console.note(
        f"sweep of {study.n_trials} trials over {', '.join(plan.space.distributions)}; "
        f"{len(encoders)} encoder{'s' if len(encoders) > 1 else ''}; {len(workers.slots)} at once; {plan.folder}"
    )
    track = Tracking(plan)
    for trial in search.trials.values():
        if trial.state != "running":
            track.send(trial)  # what an earlier start missed
    try:
        places = _searched(plan, study, search, workers, track)
    except BaseException as error:
        state, reason = "failed" if isinstance(error, Exception) else "stopped", str(error) or type(error).__name__
        _keep(plan, state=state, reason=reason)
        track.end(state, reason)
        raise
    text = report.result(list(search.trials.values()), places, plan.folder)
    print(text, flush=True)
    write(plan.folder)
    _keep(plan, state="complete")
    if problem := track.end("complete", text, places):
        console.note(f"MLflow: not everything was sent: {problem} Later: segsweep sync {shlex.quote(str(plan.folder))}")
    elif plan.tracking["name"] != "none":
        print(f"{'compare':16}{tracking.show_command(plan.folder, plan.tracking.get('uri'))}")
    return places


def _searched(plan: Plan, study: Study, search: Search, workers: LocalWorkers, track: "Tracking") -> list[Place]:
    """Search, train the finalists, score the winner."""
    if "data.fold" in plan.space.distributions:
        console.note(
            "data.fold is varied: folds are unlike, so a trial's rank tells of its fold, too. Means over the folds: "
            f"segsweep compare --sweep {shlex.quote(str(plan.folder))} --group-by encoder.name"
        )
    _watch(search.trials, study.n_trials, drive(search, workers, plan.folder), workers, track)

    chosen = finalists.best_of_each(search.trials.values(), plan.finalists)
    best = chosen or finalists.best_of_each(search.trials.values(), 1)
    _keep(plan, best)
    repeats = [run for trial in chosen for run in finalists.repeats(trial, _seeds(plan), _folds(plan))]
    repeats = [_known(plan.folder, run) for run in repeats]
    for run in repeats:
        if run.state != "running":
            track.send(run)
    if any(run.state == "running" for run in repeats):
        console.note(f"finalists: {', '.join(t.encoder for t in chosen)}, {plan.repeats} fresh seeds each")
        source = Listed(repeats)
        _watch(source.trials, len(repeats), drive(source, workers, plan.folder), workers, track)
    places = finalists.ranked(plan.folder, best, repeats)
    if places:
        _test(plan.folder, places[0], workers)
        track.send(places[0].winner)
    return places


def _keep(plan: Plan, best: Sequence[Trial] | None = None, state: str = "running", reason: str = "") -> None:
    """For reports; without finalists those of an earlier start stay."""
    try:
        before = report.about(plan.folder)["finalists"]
    except ConfigError:
        before = []
    report.keep(
        plan.folder,
        command=plan.command,
        space=plan.space.described(),
        fixed=plan.fixed,
        budget=plan.budget,
        finalists=before if best is None else [trial.name for trial in best],
        experiment=plan.tracking["experiment"],
        tracked=plan.tracking["name"] != "none",
        state=state,
        reason=reason,
    )


def _watch(
    trials: dict[str, Trial], wanted: int, events: Iterator[Event], workers: LocalWorkers, track: "Tracking"
) -> None:
    with Board(trials, wanted, len(workers.slots)) as board:
        for event in events:
            board.show(event)
            track.send(event.trial)


class Mirror:
    """A sweep in MLflow, from what lies in its folder: one parent, and a child for each trial that has an epoch."""

    def __init__(self, folder: Path, uri: str | None):
        self._folder, self._uri, self._about = folder, uri, report.about(folder)
        self._note = f"```\npython train.py {self._about['command']}\n```\n"
        self._parent = ""

    def open(self, since: float | None = None) -> str:
        """Make the parent, or take it up again; its id.

        Args:
            since: of a sweep that no longer runs: when it began, in seconds of the epoch.
        """
        space, fixed = self._about["space"], " ".join(self._about["fixed"])
        params = {**space, "fixed": fixed, "budget": self._about["budget"]}
        self._parent = tracking.open_sweep(
            self._folder, self._uri, self._about["experiment"], params, self._note, list(space), since
        )
        return self._parent

    def send(self, trial: Trial, alive: bool) -> None:
        """Bring a trial's run level with its journal."""
        if not self._parent:
            return  # MLflow was out of reach from the beginning, and has been complained of
        child = tracking.Child(
            self._parent,
            self._about["experiment"],
            number=number(trial.name.removeprefix(f"{finalists.FOLDER}/")),
            first=dict(override.split("=", 1) for override in trial.typed),
            tags={"trial": trial.name, "reason": trial.reason, "halvings": str(trial.halvings)},
            pruned_at=len(trial.epochs) if trial.state == "pruned" else None,
        )
        tracking.sync(self._folder / trial.name, self._uri, alive, child)

    def close(self, status: str, text: str, places: Sequence[Place], at: float | None = None) -> None:
        """Write the result, as of now or of `at`."""
        metrics = {}
        if places:
            winner = places[0].winner
            metrics = {"best/val_iou": winner.iou or 0.0, "finalists/val_iou": places[0].iou}
            metrics |= {
                name: value for name, value in winner.end.items() if name.startswith("test/") and value is not None
            }
        note = f"{self._note}\n```\n{text}\n```"
        files = [self._folder / report.PAGE, self._folder / report.ABOUT]
        tracking.close_sweep(self._folder, self._uri, status, metrics, note, files, at)


class Tracking:
    """Keeps the mirror level while the sweep runs; the sweep never waits for it."""

    def __init__(self, plan: Plan):
        self._background: Background | None = None
        if plan.tracking["name"] != "none":
            self._background = Background(plan.tracking["timeout"])
            self._mirror = Mirror(plan.folder, plan.tracking.get("uri"))
            self._background.ask("sweep", self._mirror.open)

    def send(self, trial: Trial) -> None:
        """Bring its run level with its journal, some time soon."""
        if self._background and trial.epochs:
            self._background.ask(trial.name, partial(self._mirror.send, trial, trial.state == "running"))

    def end(self, status: str, text: str, places: Sequence[Place] = ()) -> str | None:
        """Write the result, wait for what is on its way, and return what went wrong, if anything did."""
        if not self._background:
            return None
        self._background.ask("end", partial(self._mirror.close, status, text, places))
        return self._background.close()


class Running(ConfigError):
    """A sweep that runs is left alone."""


def sync(folder: Path, uri: str | None = None) -> str:
    """Send to MLflow what it does not have yet of a sweep that no longer runs; the id of the sweep's run.

    Raises:
        Running: it runs.
        ConfigError: no sweep lies there, or one of an older version.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    try:
        lock = journal.FolderLock(folder, "sweep")
    except ConfigError as error:
        raise Running(f"{folder}: the sweep runs; what MLflow lacks when it is over can be sent then.") from error
    try:
        about = report.about(folder)
        if "state" not in about:
            raise ConfigError(f"{folder}: an older sweep. Its command sends it: {_again(folder, about['command'])}")
        trials = list(load_all(folder))
        every = [trial for trial in (*trials, *load_all(folder, finalists.FOLDER)) if trial.epochs]
        times = [r["time"] for trial in every for r in trial.records] or [(folder / report.ABOUT).stat().st_mtime]
        own = (trial.start["config"]["tracking"]["uri"] for trial in every)
        mirror = Mirror(folder, uri or next(own, None))
        run_id = mirror.open(since=min(times))
        for trial in every:
            mirror.send(trial, journal.alive(folder / trial.name))
        places = report.places(folder)
        state = "stopped" if about["state"] == "running" else about["state"]  # it was killed
        mirror.close(state, about["reason"] or report.result(trials, places, folder), places, max(times))
    finally:
        lock.release()
    return run_id


def _weights(plan: Plan, study: Study, workers: LocalWorkers) -> dict[str, str]:
    """Where each encoder's weights come from, found once for all trials.

    Raises:
        ConfigError: some encoders would start from pretrained weights and some from random ones.
    """
    known = study.remembered("weights")
    if known is None:
        if plan.pretrained is None:
            known = {}
        else:
            arguments = (list(plan.space.encoders), plan.pretrained, plan.weights_file)
            known = workers.call("segsweep.nn.weights:sources", *arguments)
    random = [name for name, source in known.items() if source == "random"]
    if random and len(random) < len(known) and not plan.mixed_weights:
        rows = "; ".join(f"{name}: {source}" for name, source in known.items())
        raise ConfigError(
            f"an unfair comparison: {len(random)} of {len(known)} encoders would start from random weights ({rows}). "
            "Drop them, run once where the hub can be reached, or accept it with hydra.sweeper.mixed_weights=true."
        )
    study.remember("weights", known)  # what was refused is looked up again
    return known


def _argv(plan: Plan, sources: Mapping[str, str], typed: list[str], encoder: str) -> list[str]:
    """A trial's command. The weights are pinned: no trial falls back to random ones on its own."""
    source = sources.get(encoder)
    pinned = [] if source in (None, "file") else [f"encoder.pretrained={str(source != 'random').lower()}"]
    return [*plan.fixed, *typed, *pinned]


def _seeds(plan: Plan) -> list[int]:
    """Seeds that the search did not have."""
    varied = [
        int(end) for parameter in plan.space.parameters if parameter.key == "train.seed" for end in parameter.ends
    ]
    first = max([int(plan.train.get("seed", 0)), *varied])
    return [first + 1 + i for i in range(plan.repeats)]


def _folds(plan: Plan) -> list[Any]:
    """The folds that are varied."""
    varied = tuple(parameter for parameter in plan.space.parameters if parameter.key == "data.fold")
    return [cell["data.fold"] for cell in grid(Space(varied, ""))] if varied else []


def _known(folder: Path, run: Trial) -> Trial:
    """The repeat as an earlier start left it."""
    try:
        return load(folder, run.name)
    except FileNotFoundError:
        return run


def _test(folder: Path, first: Place, workers: LocalWorkers) -> None:
    """Score the winner on the test split: its best run, and that once."""
    winner = first.winner
    if any(name.startswith("test/") for name in winner.end) or not winner.start.get("data/test"):
        return
    workers.start(winner.name, [f"resume={quoted(folder / winner.name)}", "train.test=true"], workers.free()[0])
    while not any(report.ended for report in workers.wait(1.0)):
        pass
    winner.records = journal.read(folder / winner.name)
    if not any(name.startswith("test/") for name in winner.end):
        console.note(f"the winner could not be scored on the test split: see {shlex.quote(str(folder / winner.name))}")
