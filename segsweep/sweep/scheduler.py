"""The loop of a sweep: a free slot takes the next trial at once. `for event in drive(...): ...`; what is shown and
tracked is the caller's.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from optuna.trial import FrozenTrial, TrialState

from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import DataError, SweepError
from segsweep.runs.curve import Curve
from segsweep.runs.records import EpochRecord, Run
from segsweep.runs.trial import Trial
from segsweep.sweep.backends.base import OUTPUT, Backend, Id, Job, Report
from segsweep.sweep.finalists import MATRICES
from segsweep.sweep.pruner import FIRST_RUNG, Verdict, judge
from segsweep.sweep.space import Value
from segsweep.sweep.study import Study

TRAINING = "segsweep.commands.train"
RESULTS = (MATRICES, "best.safetensors", "last.pt", "summary.json")  # of a training, for finalists and for going on
SIZES = ("train.batch_size=", "train.accumulate=")
WAIT = 1.0  # seconds between two looks at the clock
DEATHS = 3  # times that a trial may die in the same epoch
HALVINGS = 4  # times that its micro-batch may be halved


@dataclass(frozen=True)
class Event:
    """What happened to a trial; halved: it begins again with less memory."""

    kind: Literal["started", "adopted", "continued", "halved", "epoch", "paused", "complete", "pruned", "failed"]
    trial: Trial


class TrialSource(Protocol):
    """Where a loop's trials come from, and who hears what became of them."""

    def begun(self) -> list[Trial]:
        """Return the trials that ran when the last controller ended."""

    def next(self) -> Trial | None:
        """Return a trial to start now, or a paused one to go on with; None where there is none for now."""

    def epoch(self, trial: Trial) -> Verdict | None:
        """Hear of an epoch, the last of `trial.run`; a verdict stops the trial.

        A trial that goes on, or is adopted, begins with its epochs until then: they are heard again.
        """

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        """Hear that a trial is complete, pruned or failed, or that a paused one has left its slot."""

    def paused(self) -> list[Trial]:
        """Return the trials that are paused; asked when nothing runs and `next` gave nothing, and they are pruned."""


def drive(source: TrialSource, backend: Backend, folder: Path, module: str = TRAINING) -> Iterator[Event]:
    """Run a source's trials until there is none left; on the way out none is left running.

    Args:
        folder: the sweep's.
        module: what a trial runs.

    Raises:
        DataError: a trial's data are at fault, as they would be in all.
        SweepError: raised by the source, after too many failures.
    """
    living: dict[Id, Trial] = {}
    deaths: dict[str, tuple[int, int]] = {}
    waiting = source.begun()
    try:
        for trial in waiting[:]:
            if job := backend.adopt(trial.name):
                waiting.remove(trial)
                trial.run, trial.slot = Run(), backend.where(job)  # the first report brings the records
                living[job] = trial
                yield Event("adopted", trial)
        while True:
            while backend.free() and (begins := waiting.pop(0) if waiting else source.next()):
                begins.state = "running"
                begins.save(folder)
                resume = bool(begins.run.records)
                job = backend.submit(Job(begins.name, module, () if resume else _argv(begins), resume))
                begins.run, begins.slot = Run(), backend.where(job)
                living[job] = begins
                yield Event("continued" if resume else "started", begins)
            if not living and backend.free():  # else strays of a killed controller hold the slots
                break
            for report in backend.poll(WAIT):
                if report.job not in living:
                    continue  # a stray of a killed controller, on its way out
                trial = living[report.job]
                for record in report.records:
                    trial.run.records.append(record)
                    if not isinstance(record, EpochRecord) or trial.state != "running":
                        continue
                    verdict = source.epoch(trial)
                    yield Event("epoch", trial)
                    if verdict and not report.ended:
                        trial.state, trial.reason = "pruned" if verdict.kind == "prune" else "paused", verdict.reason
                        trial.save(folder)
                        if verdict.kind == "prune":
                            source.over(trial, verdict)
                        backend.stop(report.job)
                if not report.ended:
                    continue
                del living[report.job]
                backend.fetch(report.job, RESULTS)
                kind = _ended(trial, report, deaths)
                if kind in ("continued", "halved"):
                    waiting.append(trial)
                elif kind != "pruned":  # which was told when it was decided
                    trial.save(folder)
                    source.over(trial)
                if kind != "continued":
                    yield Event(kind, trial)
        for trial in source.paused():
            trial.state = "pruned"
            trial.save(folder)
            source.over(trial, Verdict("prune", trial.reason, trial.iou or 0.0))
            yield Event("pruned", trial)
    finally:
        backend.close()


def _argv(trial: Trial) -> tuple[str, ...]:
    return (*trial.argv, "train.test=false", "tracking=none")


def _ended(
    trial: Trial, report: Report, deaths: dict[str, tuple[int, int]]
) -> Literal["complete", "pruned", "paused", "failed", "continued", "halved"]:
    """Decide what the end of its job means for a trial."""
    end = trial.run.end
    if trial.state == "pruned":
        return "pruned"
    if end and end.status == "complete":
        trial.state, trial.reason = ("complete", "") if trial.iou is not None else ("failed", "no epoch had a score")
        return trial.state
    if report.error is None and trial.state == "paused":
        return "paused"
    if report.error == "data" and not trial.run.records:
        raise DataError(report.words)
    if report.error == "out_of_memory" and (smaller := _smaller(trial)):
        trial.argv, trial.run, trial.state = smaller, Run(), "running"
        trial.halvings += 1
        return "halved"
    epochs = len(trial.run.epochs)
    if report.error is None:
        times, epoch = deaths.get(trial.name, (0, -1))
        times = times + 1 if epoch == epochs else 1
        deaths[trial.name] = times, epochs
        if times < DEATHS:
            return "continued"
    died = f"died {DEATHS} times in epoch {epochs + 1}"
    said = end.reason if end and end.status == "failed" and end.reason else report.words
    trial.state, trial.reason = "failed", said if report.error else died
    return "failed"


def _smaller(trial: Trial) -> list[str] | None:
    """Return the command with half the micro-batch, for the same batch; None where it cannot be halved."""
    start = trial.run.start
    if not start or trial.halvings >= HALVINGS or start.execution.micro_batch < 2:
        return None
    accumulate = start.settings.train.accumulate
    kept = [override for override in trial.argv if not override.startswith(SIZES)]
    batch = start.execution.micro_batch * accumulate
    return [*kept, f"{SIZES[0]}{batch}", f"{SIZES[1]}{2 * accumulate}"]


def taken_up(trial: Trial, before: Trial) -> Trial:
    """Return a trial with what an earlier start of the sweep left of it in its folder.

    The command is the plan's: of the one in the folder only the halved sizes are taken, and those are numbers.
    """
    argv = trial.argv
    if before.halvings:
        sizes = [o for o in before.argv if re.fullmatch(rf"({'|'.join(map(re.escape, SIZES))})\d+", o)]
        argv = [*(override for override in argv if not override.startswith(SIZES)), *sizes]
    left = {name: getattr(before, name) for name in ("state", "reason", "halvings", "run")}
    return replace(trial, argv=argv, **left)


class Search:
    """A `TrialSource`: trials as the sampler draws them, until enough are finished.

    Args:
        study: their memory.
        argv: a trial's whole command, from the overrides of what is varied and its encoder.
        sweeper: its `pruner`, `max_failures`, `timeout` and `finalists`, the backbones that matter at the end.
        first_rung: of the pruner "curves".
    """

    def __init__(
        self,
        study: Study,
        argv: Callable[[list[str], str], list[str]],
        sweeper: SweeperConfig,
        *,
        first_rung: float = FIRST_RUNG,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.study, self._argv, self._sweeper = study, argv, sweeper
        self._max_failures = sweeper.max_failures or max(3, study.n_trials)
        self._clock, self._until = clock, None if sweeper.timeout is None else clock() + sweeper.timeout
        self._first_rung = first_rung
        self.trials: dict[str, Trial] = {}
        self._curves: list[Curve] = []  # of complete trials
        self._reported: dict[int, int] = {}  # the last epoch that the study has heard of, by trial
        self._finished = self._failed = self._open = 0

    def restore(self, known: Mapping[str, Trial]) -> None:
        """Take up the trials that the study knows, with what their folders hold.

        Args:
            known: the folders' trials, by name.

        Raises:
            ConfigError: the study holds values that the space does not have.
        """
        for frozen in self.study.trials():
            if frozen.state == TrialState.WAITING or (
                frozen.state == TrialState.RUNNING and not self.study.owns(frozen)
            ):
                continue
            trial = self._made(frozen.number, frozen.params)
            if before := known.get(trial.name):
                trial = taken_up(trial, before)
            self._settle(trial, frozen)
            self.trials[trial.name] = trial
        states = [trial.state for trial in self.trials.values()]
        self._finished = states.count("complete") + states.count("pruned")
        self._failed, self._open = states.count("failed"), states.count("running") + states.count("paused")

    def _settle(self, trial: Trial, frozen: FrozenTrial) -> None:
        """Set a trial's state to what the study says, which decides."""
        if frozen.state == TrialState.COMPLETE:
            trial.state = "complete"
            self._curves.append(trial.curve)
        elif frozen.state == TrialState.PRUNED:
            trial.state, trial.reason = "pruned", frozen.user_attrs.get("pruned", "")
        elif frozen.state == TrialState.FAIL:
            trial.state, trial.reason = "failed", frozen.user_attrs.get("failed", "")
        else:
            if trial.state != "paused":
                trial.state, trial.reason = "running", ""
            self._reported[frozen.number] = frozen.last_step or 0

    def begun(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == "running"]

    def next(self) -> Trial | None:
        late = self._until is not None and self._clock() >= self._until
        if late or self._finished + self._open >= self.study.n_trials or self.study.exhausted():
            return None
        number, values = self.study.ask()
        trial = self.trials[str(number)] = self._made(number, values)
        self._open += 1
        return trial

    def epoch(self, trial: Trial) -> Verdict | None:
        number, point, pruner = int(trial.name), trial.run.epochs[-1], self._sweeper.pruner
        if point.epoch <= self._reported.get(number, 0):
            return None  # heard and judged before
        self._reported[number] = point.epoch
        self.study.report(number, point.epoch, point.iou)
        if pruner == "curves":
            return judge(trial.curve, self._curves, self._first_rung, self._sweeper.finalists)
        if pruner != "none" and trial.done < 1 and self.study.should_prune(number):
            return Verdict("prune", f"{pruner}: {trial.iou:.4f} after epoch {point.epoch}", trial.iou or 0.0)
        return None

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        number = int(trial.name)
        if trial.state == "paused":
            return
        self._open -= 1
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
            self.study.prune(number, verdict.reason, verdict.estimate if self._sweeper.pruner == "curves" else None)
        else:
            assert trial.iou is not None
            self._curves.append(trial.curve)
            self.study.complete(number, trial.iou)

    def paused(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == "paused"]

    def _made(self, number: int, values: Mapping[str, Value]) -> Trial:
        encoder, typed = self.study.space.encoder_of(values), self.study.space.typed(values)
        return Trial(str(number), encoder, typed, self._argv(typed, encoder), dict(values))


class Listed:
    """A `TrialSource` of given trials, each to be run to its end; a failed one is left out."""

    def __init__(self, trials: Sequence[Trial]):
        self.trials = {trial.name: trial for trial in trials}
        self._begun = [trial for trial in trials if trial.state == "running" and trial.run.records]
        self._waiting = [trial for trial in trials if trial.state == "running" and not trial.run.records]

    def begun(self) -> list[Trial]:
        return self._begun

    def next(self) -> Trial | None:
        return self._waiting.pop(0) if self._waiting else None

    def epoch(self, trial: Trial) -> Verdict | None:
        return None

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        pass

    def paused(self) -> list[Trial]:
        return []
