"""The loop of a sweep: a free slot takes the next trial at once. `for event in drive(...): ...`; what is shown and
tracked is the caller's.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from segsweep.config.keys import named
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import Asked, ConfigError, DataError, DiskError, SweepError
from segsweep.runs.records import EpochRecord, Run
from segsweep.runs.stop import Sign
from segsweep.runs.trial import State, Trial
from segsweep.sweeping.backends.base import OUTPUT, Backend, Id, Job, JobUpdate
from segsweep.sweeping.points import REFUSED
from segsweep.sweeping.pruner import Complete, Verdict, judge
from segsweep.sweeping.space import Value
from segsweep.sweeping.study import Study, repetition_of

TRAINING = "segsweep.commands.train"
SIZES = ("train.batch_size=", "train.grad_accum=")
DATA = ("data", "debug", "recipe")  # groups whose keys decide what the data are
WAIT = 1.0  # seconds between two looks at the clock
DEATHS = 3  # times that a trial may die in the same epoch
REFUSALS = 10  # trials, at least, that may be refused for each one that is not, and one time more
HALVINGS = 4  # times that its micro-batch may be halved


Kind = Literal[
    "started", "adopted", "continued", "thinned", "halved", "epoch", "complete", "pruned", "failed", "refused"
]


@dataclass(frozen=True)
class Event:
    """What happened to a trial.

    Thinned: it goes on when fewer trials share its GPU. Halved: it begins again with half the micro-batch.
    """

    kind: Kind
    trial: Trial
    words: str = ""  # of one that goes on or starts again: what had ended it, or what follows


class TrialSource:
    """Where a loop's trials come from, and who hears what became of them; by itself, each of `trials` to its end."""

    def __init__(self, trials: Iterable[Trial] = ()):
        self.trials = {trial.name: trial for trial in trials}

    def in_state(self, state: State) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == state]

    def next(self) -> Trial | None:
        """Return a trial to start now; None if there is none now."""
        return None

    def waits(self) -> bool:
        """Tell, where nothing runs and there is no trial for now, whether one may still come."""
        return False

    def epoch(self, trial: Trial) -> Verdict | None:
        """Hear of an epoch, the last of `trial.run`, once more if it goes on or is adopted; a verdict stops it."""
        return None

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        """Hear that a trial is complete, pruned, failed or refused; a pruned one still runs for a moment."""


def drive(
    source: TrialSource, backend: Backend, folder: Path, module: str = TRAINING, sign: Sign | None = None
) -> Iterator[Event]:
    """Run a source's trials until there is none left; on the way out none is left running.

    When the `sign` is up none begins any more, and the running ones end after their epoch.

    The running ones go on first.

    Raises:
        DataError: a trial's data are at fault, as they would be in all.
        DiskError: a trial could not write, as none could; it goes on with the sweep.
        SweepError: raised by the source, after too many failures or refusals.
        Asked: the sign was up; each trial's epochs are recorded.
    """
    living: dict[Id, Trial] = {}
    deaths: dict[str, tuple[int, int]] = {}
    killed: dict[str, str] = {}  # by which signal, by the trial's name
    lost: set[str] = set()  # names of trials whose folder is gone
    waiting = source.in_state("running")
    if not backend.keeps:  # a controller that was killed had fetched nothing of them
        lost |= {trial.name for trial in waiting}
        for trial in waiting:
            trial.run = Run()
    try:
        for trial in waiting[:]:
            if job := backend.adopt(trial.name):
                waiting.remove(trial)
                trial.run, trial.slot = Run(), backend.where(job)  # the first update brings the records
                living[job] = trial
                yield Event("adopted", trial)
        while True:
            stopping = sign is not None and sign.is_up()
            if stopping and not living:
                raise Asked
            for job in living if stopping else ():
                backend.finish(job)
            while not stopping and backend.free() and (begins := waiting.pop(0) if waiting else source.next()):
                begins.state = "running"
                begins.save(folder)
                resume = bool(begins.run.records)
                argv = tuple(begins.placed) if resume else (*begins.argv, "train.test=false", "tracking=none")
                anew = not resume and (begins.halvings > 0 or begins.name in lost)
                job = backend.submit(Job(begins.name, module, argv, resume, anew))
                begins.run, begins.slot = Run(), backend.where(job)
                living[job] = begins
                yield Event("continued" if resume else "started", begins, killed.pop(begins.name, ""))
            if not living and backend.free():  # else strays of a killed controller hold the slots
                if not source.waits():
                    break
                time.sleep(WAIT)
                continue
            for update in backend.poll(WAIT):
                if update.job not in living:
                    continue  # a stray of a killed controller, on its way out
                trial = living[update.job]
                for record in update.records:
                    trial.run.records.append(record)
                    if not isinstance(record, EpochRecord) or trial.state != "running":
                        continue
                    verdict = source.epoch(trial)
                    yield Event("epoch", trial)
                    if verdict and not update.ended:
                        trial.state, trial.reason = "pruned", verdict.reason
                        trial.save(folder)
                        source.over(trial, verdict)
                        backend.stop(update.job)
                if not update.ended:
                    continue
                del living[update.job]
                fetched = backend.fetch(update.job)
                kind = _ended(trial, update, fetched, deaths)
                words = ""
                if kind == "thinned":
                    backend.thin(update.shared - 1)
                    words = f"out of memory with {update.shared} trials on its GPU: {update.shared - 1} from now on"
                if not fetched and kind == "continued":
                    trial.run = Run()
                    lost.add(trial.name)
                if kind in ("continued", "thinned", "halved"):
                    waiting.append(trial)
                    killed[trial.name] = update.words if kind == "continued" else ""
                elif kind != "pruned":  # which was told when it was decided
                    trial.save(folder)
                    source.over(trial)
                if kind != "continued":
                    yield Event(kind, trial, words)
    finally:
        backend.close()


def _ended(trial: Trial, update: JobUpdate, fetched: bool, deaths: dict[str, tuple[int, int]]) -> Kind:
    """Decide what the end of its job means for a trial; one that is complete without its files is not."""
    end = trial.run.end
    if trial.state == "pruned":
        return "pruned"
    if end and end.status == "complete" and fetched:
        trial.state, trial.reason = ("complete", "") if trial.iou is not None else ("failed", "no epoch had a score")
        return trial.state
    said = end.reason if end and end.status == "failed" and end.reason else update.words
    if update.error == "disk":
        raise DiskError(f"trial {trial.name} cannot write its folder: {said}")
    if update.error in ("config", "data") and not trial.run.records:
        if update.error == "data" and not any(named(key, DATA) for key in trial.varied):
            raise DataError(update.words)
        trial.state, trial.reason = "refused", update.words
        return "refused"
    if update.error == "out_of_memory" and update.shared > 1:
        return "thinned"
    if update.error == "out_of_memory" and (smaller := _smaller(trial)):
        trial.argv, trial.run, trial.state = smaller, Run(), "running"
        trial.halvings += 1
        return "halved"
    epochs = len(trial.run.epochs)
    if update.error is None:
        times, epoch = deaths.get(trial.name, (0, -1))
        times = times + 1 if epoch == epochs else 1
        deaths[trial.name] = times, epochs
        if times < DEATHS:
            return "continued"
    died = f"died {DEATHS} times in epoch {epochs + 1}{f', {update.words}' if update.words else ''}"
    trial.state, trial.reason = "failed", said if update.error else died
    return "failed"


def _smaller(trial: Trial) -> list[str] | None:
    """Return the command with half the micro-batch, for the same batch; None where it cannot be halved."""
    start = trial.run.start
    if not start or trial.halvings >= HALVINGS or start.execution.micro_batch < 2:
        return None
    batch, grad_accum = start.settings.train.batch_size, start.settings.train.grad_accum
    finer = next((n for n in range(2 * grad_accum, batch + 1) if batch % n == 0), None)
    if finer is None:
        return None
    kept = [override for override in trial.argv if not override.startswith(SIZES)]
    return [*kept, f"{SIZES[0]}{batch}", f"{SIZES[1]}{finer}"]


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


def tried_again(before: Trial) -> Trial:
    """Return a job as it goes on: one that failed is tried once more, since the memory may be free by now."""
    failed = before.state in ("failed", "refused")
    return replace(before, state="running", reason="", halvings=0) if failed else before


def ended_as(frozen: FrozenTrial) -> State:
    """Return the state of the sweep's trial for a finished trial of the study."""
    if frozen.state == TrialState.COMPLETE:
        return "complete"
    if frozen.state == TrialState.PRUNED:
        return "pruned"
    return "refused" if REFUSED in frozen.user_attrs else "failed"


class Search(TrialSource):
    """Trials as the sampler draws them, until enough are finished.

    Args:
        argv: a trial's whole command, from the overrides of what is varied and its encoder.
        seed: `train.seed` of the trials; a point's next one where it runs again.
    """

    def __init__(
        self,
        study: Study,
        argv: Callable[[list[str], str], list[str]],
        sweeper: SweeperConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ):
        super().__init__()
        self.study, self._argv, self._sweeper = study, argv, sweeper
        self._seed = seed
        self._clock, self._until = clock, math.inf if sweeper.timeout is None else clock() + sweeper.timeout
        self._curves = Complete()
        self._reported: dict[int, int] = {}  # the last epoch that the study has heard of, by trial

    def restore(self, known: Mapping[str, Trial]) -> None:
        """Take up the trials that the study knows, with what is known of their folders; its word on states counts."""
        for frozen in self.study.trials():
            running = frozen.state == TrialState.RUNNING
            if frozen.state == TrialState.WAITING or (running and not self.study.owns(frozen)):
                continue
            try:
                values = self.study.values(frozen.number) if running else frozen.params
                trial = self._made(frozen.number, values, repetition_of(frozen))
            except ConfigError as error:
                if frozen.state == TrialState.FAIL:
                    continue  # it was said before
                if running:
                    self.study.fail(frozen.number, str(error))
                raise
            if before := known.get(trial.name):
                trial = taken_up(trial, before)
            self.trials[trial.name] = trial
            if frozen.state == TrialState.COMPLETE:
                trial.state = "complete"
                self._curves.add(trial.curve)
            elif not running:
                trial.state = ended_as(frozen)
                trial.reason = frozen.user_attrs.get(trial.state, "")
            else:
                trial.state, trial.reason = "running", ""
                self._reported[frozen.number] = frozen.last_step or 0

    def next(self) -> Trial | None:
        promised = len(self.trials) - len(self.in_state("failed")) - len(self.in_state("refused"))
        if self._clock() >= self._until or promised >= self.study.n_trials or self.study.exhausted:
            return None
        number, values = self.study.ask()
        try:
            trial = self.trials[str(number)] = self._made(number, values)
        except ConfigError as error:
            self.study.fail(number, str(error))
            raise
        return trial

    def epoch(self, trial: Trial) -> Verdict | None:
        number, point, pruner = trial.number, trial.run.epochs[-1], self._sweeper.pruner
        if point.epoch <= self._reported.get(number, 0):
            return None  # heard and judged before
        self._reported[number] = point.epoch
        self.study.report(number, point.epoch, point.iou)
        if pruner == "curves":
            return judge(trial.curve, self._curves, self._sweeper.finalists)
        if pruner != "none" and trial.done < 1 and self.study.should_prune(number):
            return Verdict(f"{pruner}: {trial.iou:.4f} after epoch {point.epoch}")
        return None

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        number = trial.number
        if trial.state == "refused":
            self.study.refuse(number, trial.reason)
            refused = len(self.in_state("refused"))
            accepted = sum(bool(other.run.records) for other in self.trials.values())
            if refused >= max(REFUSALS, self.study.n_trials) * (1 + accepted) or refused == self.study.space.size:
                raise SweepError(
                    f"{refused} trials were refused and {accepted} were not, because their values contradict each "
                    f"other. The last: {trial.reason} Vary fewer keys, or change what all trials have in common."
                )
        elif trial.state == "failed":
            self.study.fail(number, trial.reason)
            failed = len(self.in_state("failed"))
            if failed >= (self._sweeper.max_failures or max(3, self.study.n_trials)):
                raise SweepError(
                    f"{failed} trials failed, as many as hydra.sweeper.max_failures allows. The last: {trial.reason} "
                    f"Their messages are in {OUTPUT} of each trial."
                )
        elif verdict:
            self.study.prune(number, verdict.reason, verdict.estimate)
        elif trial.state == "complete":
            assert trial.iou is not None
            self._curves.add(trial.curve)
            self.study.complete(number, trial.iou)

    def _made(self, number: int, values: Mapping[str, Value], again: int | None = None) -> Trial:
        """Make a trial; `again` says how many had its point before, and is asked of the study if need be."""
        encoder, typed = self.study.space.encoder_of(values), self.study.space.typed(values)
        if again := self.study.repetition(number) if again is None else again:
            typed.append(f"train.seed={self._seed + again}")
        return Trial(str(number), encoder, typed, self._argv(typed, encoder), dict(values))
