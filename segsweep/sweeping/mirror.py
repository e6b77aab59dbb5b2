"""A sweep in MLflow: sent while it runs, or later by `segsweep sync`."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from segsweep import console
from segsweep.errors import ConfigError
from segsweep.paths import program
from segsweep.runs import locks
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import about, finalists, report
from segsweep.sweeping.finalists import FinalistResult
from segsweep.sweeping.plan import Plan
from segsweep.tracking import client
from segsweep.tracking.background import Background
from segsweep.tracking.names import number
from segsweep.tracking.run import Child, attach
from segsweep.tracking.run import sync as sync_run
from segsweep.tracking.sweep import close_sweep, open_sweep


class Mirror:
    """A sweep in MLflow at `uri`, from what lies in its `folder`: one parent, a child for each trial with an epoch."""

    def __init__(self, folder: Path, uri: str | None):
        self.folder, self.uri, self._about = folder, uri, about.load(folder)
        self._note = f"```\n{program()} {self._about.command}\n```\n"
        self._parent = ""

    def open(self, since: float | None = None) -> str:
        """Make the parent, or take it up again, and return its id; `since` as in `open_sweep`."""
        kept = self._about
        params = {**kept.space, "fixed": " ".join(kept.fixed), "budget": kept.budget}
        asked = (kept.experiment, params, self._note, list(kept.space), since)
        self._parent = open_sweep(self.folder, self.uri, *asked, sweep=kept.id)
        return self._parent

    def send(self, trial: Trial, alive: bool) -> None:
        """Send a trial's new records to its run in MLflow."""
        if not self._parent:
            return  # MLflow was out of reach from the beginning, and has been complained of
        child = Child(
            self._parent,
            self._about.experiment,
            number=number(trial.name.removeprefix(f"{finalists.FOLDER}/")),
            first=trial.varied,
            tags={"trial": trial.name, "reason": trial.reason, "micro_batch_halved": str(trial.halvings)},
            pruned_at=len(trial.run.epochs) if trial.state == "pruned" else None,
        )
        sync_run(self.folder / trial.name, self.uri, alive, child)

    def close(self, status: str, text: str, results: Sequence[FinalistResult], at: float | None = None) -> None:
        """Write the result, as of now or of `at`, in seconds of the epoch."""
        metrics: dict[str, float] = {}
        if results:
            winner = results[0].winner
            metrics = {"best/val_iou": winner.iou or 0.0, "finalists/val_iou": results[0].iou}
            metrics |= winner.run.tested
        best = next(iter(about.load(self.folder).cross_validation), None)
        if best and best.iou is not None and best.mean is not None and best.sd is not None:
            metrics |= {"cv/val_iou": best.iou, "cv/fold_mean": best.mean, "cv/fold_sd": best.sd}
        note = f"{self._note}\n```\n{text}\n```"
        files = [self.folder / report.PAGE, self.folder / about.NAME]
        close_sweep(self.folder, self.uri, status, metrics, note, files, at)


class Tracking:
    """Sends a sweep to MLflow while it runs; the sweep never waits for it."""

    def __init__(self, plan: Plan, parent: Callable[[Callable[[float | None], str]], str] | None = None):
        """`parent` is called with `Mirror.open`, which makes the sweep's run or takes it up; None: that is called."""
        self._background: Background | None = None
        if plan.tracked:
            if uri := plan.base.tracking.uri:  # typed now
                client.remember(uri)
            self._background = Background(plan.base.tracking.timeout)
            self._mirror = Mirror(plan.folder, plan.base.tracking.uri)
            self._background.ask("sweep", partial(parent, self._mirror.open) if parent else self._mirror.open)

    def send(self, trial: Trial) -> None:
        """Send a trial's new records soon, in the background."""
        if self._background and trial.run.epochs:
            self._background.ask(trial.name, partial(self._mirror.send, trial, trial.state == "running"))

    def catch_up(self, trials: Iterable[Trial]) -> None:
        """Send what an earlier start of the sweep missed."""
        for trial in trials:
            if trial.state != "running":
                self.send(trial)

    def keep(self, trial: Trial, files: Sequence[Path]) -> None:
        """Send a trial's files to MLflow, to be had from anywhere, and wait for it; raises what MLflow does."""
        self._mirror.send(trial, alive=False)
        attach(self._mirror.folder / trial.name, self._mirror.uri, files)

    def leave(self, seconds: float | None = None) -> None:
        """Wait for what is on its way, at most so long; the sweep goes on, run by others."""
        if self._background and (problem := self._background.close(seconds)):
            console.note(f"MLflow: not everything was sent: {problem}")

    def end(self, status: str, text: str, results: Sequence[FinalistResult] = ()) -> str | None:
        """Write the result, wait for what is on its way, and return what went wrong, if anything did."""
        if not self._background:
            return None
        self._background.ask("end", partial(self._mirror.close, status, text, results))
        return self._background.close()


class Running(ConfigError):
    """The sweep is running, so it is not sent."""


def sync(folder: Path, uri: str | None = None) -> str:
    """Send to MLflow what it does not have yet of a sweep that no longer runs; return the id of the sweep's run.

    It goes to `uri`, typed now, or to where the sweep was tracked, if that is this user's own.

    Raises:
        Running: it runs.
        ConfigError: no sweep lies there, or one that was sent elsewhere.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    try:
        lock = locks.FolderLock(folder, "sweep")
    except ConfigError as error:
        raise Running(f"{folder}: the sweep is running. Send it again when the sweep has ended.") from error
    try:
        kept = about.load(folder)
        trials = list(load_all(folder))
        every = [trial for trial in (*trials, *load_all(folder, finalists.FOLDER)) if trial.run.epochs]
        times = [r.time for trial in every for r in trial.run.records] or [(folder / about.NAME).stat().st_mtime]
        recorded = (trial.run.start.asked.tracking.uri for trial in every if trial.run.start)
        mirror = Mirror(folder, client.allowed(next(recorded, None), uri))
        run_id = mirror.open(since=min(times))
        for trial in every:
            mirror.send(trial, locks.alive(folder / trial.name))
        if kept.shared and kept.state != "complete":
            return run_id  # another controller may have concluded the sweep, or still train
        results = report.results(folder, trials)
        state = "stopped" if kept.state == "running" else kept.state  # it was killed
        mirror.close(state, kept.reason or report.summary(trials, results, folder), results, max(times))
    finally:
        lock.release()
    return run_id
