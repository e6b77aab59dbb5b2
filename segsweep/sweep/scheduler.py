"""The loop of a sweep: a free slot takes the next trial at once. `for event in search(): ...`; what is shown and
tracked is the caller's.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from optuna.trial import TrialState

from segsweep.errors import DataError, OutOfMemoryError, SweepError
from segsweep.paths import quoted
from segsweep.runs import journal
from segsweep.runs.curve import Curve
from segsweep.runs.trial import Trial
from segsweep.sweep.backends.local import OUTPUT, Report, Slot
from segsweep.sweep.pruner import FIRST_RUNG, TOP, Verdict, judge
from segsweep.sweep.study import Study

WAIT = 1.0  # seconds between two looks at the clock
DEATHS = 3  # times that a trial may die in the same epoch
HALVINGS = 4  # times that its micro-batch may be halved


class Workers(Protocol):
    """Where trials run; `segsweep.sweep.backends.local.LocalWorkers` says what each does."""

    def free(self) -> list[Slot]: ...
    def start(self, name: str, argv: Sequence[str], slot: Slot) -> None: ...
    def adopt(self, name: str) -> bool: ...
    def stop(self, name: str) -> None: ...
    def wait(self, seconds: float) -> list[Report]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Event:
    """What happened to a trial; halved: it begins again with less memory."""

    kind: Literal["started", "adopted", "continued", "halved", "epoch", "complete", "pruned", "failed"]
    trial: Trial


class Source(Protocol):
    """Where a loop's trials come from, and who hears what became of them."""

    def begun(self) -> list[Trial]:
        """Trials that ran when the last controller ended."""

    def next(self) -> Trial | None:
        """One to start now, or None."""

    def epoch(self, trial: Trial) -> Verdict | None:
        """After each epoch; a verdict stops the trial."""

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        """It is complete, pruned or failed."""


def drive(source: Source, workers: Workers, folder: Path) -> Iterator[Event]:
    """Run a source's trials on the workers' slots until there is none left; on the way out none is left running.

    Args:
        folder: the sweep's.

    Raises:
        DataError: a trial's data are at fault, as they would be in all.
        SweepError: raised by the source, after too many failures.
    """
    living: dict[str, Trial] = {}
    deaths: dict[str, tuple[int, int]] = {}
    waiting = source.begun()
    try:
        for trial in waiting[:]:
            if workers.adopt(trial.name):
                waiting.remove(trial)
                living[trial.name], trial.records = trial, []  # which the first report brings
                yield Event("adopted", trial)
        while True:
            for slot in workers.free():
                trial = waiting.pop(0) if waiting else source.next()  # type: ignore[assignment]
                if trial is None:
                    break
                trial.slot = str(slot)
                goes_on = bool(trial.records)
                trial.save(folder)
                workers.start(trial.name, _argv(trial, folder), slot)
                trial.records = []
                living[trial.name] = trial
                yield Event("continued" if goes_on else "started", trial)
            if not living:
                return
            for report in workers.wait(WAIT):
                if report.name not in living:
                    continue  # a stray of a killed controller, on its way out
                trial = living[report.name]
                for record in report.records:
                    trial.records.append(record)
                    if record["kind"] != "epoch" or trial.state != "running":
                        continue
                    verdict = source.epoch(trial)
                    yield Event("epoch", trial)
                    if verdict and not report.ended:
                        trial.state, trial.reason = "pruned", verdict.reason
                        trial.save(folder)
                        source.over(trial, verdict)
                        workers.stop(trial.name)
                if not report.ended:
                    continue
                del living[trial.name]
                if trial.state == "pruned":
                    yield Event("pruned", trial)
                    continue
                kind = _ended(trial, report.exit_code, folder, deaths)
                if kind in ("continued", "halved"):
                    waiting.append(trial)
                else:
                    trial.save(folder)
                    source.over(trial)
                if kind != "continued":
                    yield Event(kind, trial)
    finally:
        workers.close()


def _argv(trial: Trial, folder: Path) -> list[str]:
    """The command that begins the trial, or goes on with it."""
    here = folder / trial.name
    if trial.records:
        return [f"resume={quoted(here)}"]
    return [*trial.argv, "train.test=false", "tracking=none", f"hydra.run.dir={quoted(here)}", "hydra.mode=RUN"]


def _ended(
    trial: Trial, exit_code: int | None, folder: Path, deaths: dict[str, tuple[int, int]]
) -> Literal["complete", "failed", "continued", "halved"]:
    """What the end of its process means for a trial."""
    end = trial.end
    if end.get("status") == "complete":
        if trial.iou is None:
            trial.state, trial.reason = "failed", "no epoch had a score"
            return "failed"
        trial.state = "complete"
        return "complete"
    if exit_code == DataError.exit_code and not trial.records:
        raise DataError(_last_words(folder / trial.name))
    if exit_code == OutOfMemoryError.exit_code or "out of memory" in end.get("reason", ""):
        if smaller := _smaller(trial):
            trial.argv, trial.records = smaller, []
            trial.halvings += 1
            _clear(folder / trial.name)
            return "halved"
    elif end.get("status") != "failed" and (exit_code is None or exit_code < 0 or exit_code > 128):
        times, epoch = deaths.get(trial.name, (0, -1))
        times = times + 1 if epoch == len(trial.epochs) else 1
        deaths[trial.name] = times, len(trial.epochs)
        if times < DEATHS:
            return "continued"
        trial.state, trial.reason = "failed", f"died {times} times in epoch {len(trial.epochs) + 1}"
        return "failed"
    trial.state, trial.reason = "failed", end.get("reason") or _last_words(folder / trial.name)
    return "failed"


def _smaller(trial: Trial) -> list[str] | None:
    """The command with half the micro-batch, for the same batch; None where it cannot be halved."""
    start = trial.start
    if not start or trial.halvings >= HALVINGS or start["micro_batch"] < 2:
        return None
    accumulate = start["config"]["train"]["accumulate"]
    ours = ("train.batch_size=", "train.accumulate=")
    kept = [override for override in trial.argv if not override.startswith(ours)]
    return [*kept, f"train.batch_size={start['micro_batch'] * accumulate}", f"train.accumulate={2 * accumulate}"]


def _clear(folder: Path) -> None:
    """Remove what a training left, but for what it said."""
    (folder / journal.NAME).unlink(missing_ok=True)  # first: what is left without it is no run
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != OUTPUT:
            path.unlink()


def _last_words(folder: Path) -> str:
    """The last line that a process wrote."""
    try:
        lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1].removeprefix("train.py: ") if lines else "it died without a word"


class Search:
    """A `Source`: trials as the sampler draws them, until enough are finished.

    Args:
        study: their memory.
        argv: a trial's whole command, from the overrides of what is varied and its encoder.
        pruner: "curves": `segsweep.sweep.pruner`; "none"; any other: Optuna's, by the study.
        max_failures: failed trials until the sweep gives up.
        timeout: seconds after which no trial begins.
        first_rung, top: of the pruner "curves".
    """

    def __init__(
        self,
        study: Study,
        argv: Callable[[list[str], str], list[str]],
        *,
        pruner: str = "curves",
        max_failures: int | None = None,
        timeout: float | None = None,
        first_rung: float = FIRST_RUNG,
        top: int = TOP,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.study, self._argv, self._pruner = study, argv, pruner
        self._max_failures = max(3, study.n_trials) if max_failures is None else max_failures
        self._clock, self._until = clock, None if timeout is None else clock() + timeout
        self._first_rung, self._top = first_rung, top
        self.trials: dict[str, Trial] = {}
        self._curves: list[Curve] = []  # of complete trials
        self._reported: dict[int, int] = {}  # the last epoch that the study has heard of, by trial
        self._finished = self._failed = self._running = 0

    def restore(self, known: Mapping[str, Trial]) -> None:
        """Take up the trials that the study knows, with what their folders hold."""
        for frozen in self.study.trials():
            if frozen.state == TrialState.WAITING:
                continue
            name = str(frozen.number)
            trial = known.get(name) or self._made(frozen.number, frozen.params)
            trial.values = frozen.params
            self.trials[name] = trial
            if frozen.state == TrialState.COMPLETE:
                trial.state = "complete"
                self._curves.append(trial.curve)
            elif frozen.state == TrialState.PRUNED:
                trial.state, trial.reason = "pruned", frozen.user_attrs.get("pruned", "")
            elif frozen.state == TrialState.FAIL:
                trial.state, trial.reason = "failed", frozen.user_attrs.get("failed", "")
            else:
                trial.state, trial.reason = "running", ""
                self._reported[frozen.number] = frozen.last_step or 0
        states = [trial.state for trial in self.trials.values()]
        self._finished = states.count("complete") + states.count("pruned")
        self._failed, self._running = states.count("failed"), states.count("running")

    def begun(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == "running"]

    def next(self) -> Trial | None:
        late = self._until is not None and self._clock() >= self._until
        if late or self._finished + self._running >= self.study.n_trials or self.study.exhausted():
            return None
        number, values = self.study.ask()
        trial = self.trials[str(number)] = self._made(number, values)
        self._running += 1
        return trial

    def epoch(self, trial: Trial) -> Verdict | None:
        number, point = int(trial.name), trial.records[-1]
        if point["epoch"] <= self._reported.get(number, 0):
            return None  # heard and judged before
        self._reported[number] = point["epoch"]
        self.study.report(number, point["epoch"], point.get("val/iou"))
        if self._pruner == "curves":
            return judge(trial.curve, self._curves, self._first_rung, self._top)
        if self._pruner != "none" and trial.done < 1 and self.study.should_prune(number):
            return Verdict(f"{self._pruner}: {trial.iou:.4f} after epoch {point['epoch']}", trial.iou or 0.0)
        return None

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        number = int(trial.name)
        self._running -= 1
        if trial.state == "failed":
            self._failed += 1
            self.study.fail(number, trial.reason)
            if self._failed >= self._max_failures:
                raise SweepError(
                    f"{self._failed} trials failed, as many as hydra.sweeper.max_failures allows; the last: "
                    f"{trial.reason} What each said is in its {OUTPUT}."
                )
            return
        self._finished += 1
        if verdict:
            self.study.prune(number, verdict.reason, verdict.estimate if self._pruner == "curves" else None)
        else:
            assert trial.iou is not None
            self._curves.append(trial.curve)
            self.study.complete(number, trial.iou)

    def _made(self, number: int, values: Mapping[str, Any]) -> Trial:
        encoder, typed = self.study.space.encoder_of(values), self.study.space.typed(values)
        return Trial(str(number), encoder, typed, self._argv(typed, encoder), dict(values))


class Listed:
    """A `Source` of given trials, each to be run to its end; a failed one is left out."""

    def __init__(self, trials: Sequence[Trial]):
        self.trials = {trial.name: trial for trial in trials}
        self._begun = [trial for trial in trials if trial.state == "running" and trial.records]
        self._waiting = [trial for trial in trials if trial.state == "running" and not trial.records]

    def begun(self) -> list[Trial]:
        return self._begun

    def next(self) -> Trial | None:
        return self._waiting.pop(0) if self._waiting else None

    def epoch(self, trial: Trial) -> Verdict | None:
        return None

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        pass
