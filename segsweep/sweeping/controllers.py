"""Several controllers of one study: where each gets its trials from, and what it tells of them.

All are alike. Each takes trials from the study until enough are finished. A trial's record goes into the study when it
ends, so everybody knows all of them.
"""

import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as OptunaTrial

from segsweep import console
from segsweep.errors import ConfigError, DiskError, named_by, refused_by_system
from segsweep.runs import journal, locks
from segsweep.runs.records import Run
from segsweep.runs.trial import NAME, Trial, load
from segsweep.sweeping.backends.base import OUTPUT
from segsweep.sweeping.pruner import Verdict
from segsweep.sweeping.scheduler import Search, TrialSource, ended_as, taken_up
from segsweep.sweeping.sharing import ATTEMPTS, Beats, Claim, Claims, Gone, Owner, Server
from segsweep.sweeping.study import Study, repetition_of

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
LEADER, SEAT = "leader", "seat"  # locks: of who concludes the sweep, and of those who wait while others run trials
RECORD, REPEAT = "record", "repeat"  # a trial's attribute; the one parameter of a finalist's repeat
FRESH = 10.0  # seconds after which the others' ends are looked at again
SICK = 3  # trials in a row that end before their first epoch until a host asks for no more
OWN = (locks.LOCK, OUTPUT, NAME, "process", "exit.json")  # files of an attempt that another attempt does not take over
TAKEN = Verdict("another controller has taken it over")


class Superfluous(Exception):
    """This controller is not needed: others run the remaining trials, and enough others wait in case one dies."""


class SharedStudy(Study):
    """The study of several controllers."""

    anew = "hydra.sweeper.study_name=NAME"

    def __init__(self, server: Server, beats: Beats, folder: Path, *arguments: Any, **named: Any):
        self._server = server
        with server.alone("study"):
            super().__init__(folder, *arguments, storage=server.storage, **named)
            self.id: str = self.remembered("id") or uuid.uuid4().hex
            self.remember("id", self.id)
        self.me = Owner.here(self.id, folder)
        self.claims = Claims(self._study, server, beats, self.space.distributions, self.me)

    def claim(self) -> Claim | None:
        """Take a trial to run now; None if there is none."""
        return self.claims.take(self._fresh)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._server.until_answered(lambda: Study.trials(self, *states))

    def repetition(self, number: int) -> int:
        return self._server.until_answered(lambda: Study.repetition(self, number))

    def note(self, number: int, name: str, value: Any) -> None:
        self.claims.note(number, name, value)

    def report(self, number: int, step: int, value: float | None) -> None:
        if value is not None:
            self.claims.report(number, step, value)

    def should_prune(self, number: int) -> bool:
        return self.claims.should_prune(number)

    def remember(self, name: str, value: Any) -> None:
        self._server.until_answered(lambda: Study.remember(self, name, value))

    def remembered(self, name: str) -> Any:
        return self._server.until_answered(lambda: Study.remembered(self, name))

    def discard(self) -> None:
        """Take the study out of its storage if this start began it and nobody has a trial of it."""
        with suppress(Exception), self._server.alone("study"):  # the server itself may be why
            if self._new and all(trial.state == TrialState.WAITING for trial in Study.trials(self)):
                optuna.delete_study(study_name=self.name, storage=self._server.storage)

    def _fresh(self) -> OptunaTrial | None:
        promised = sum(trial.state in (*FINISHED, TrialState.RUNNING) for trial in Study.trials(self))
        return None if promised >= self.n_trials or self.exhausted else self._asked()

    def _end(self, number: int, state: TrialState, value: float | None = None, **notes: Any) -> None:
        self.claims.tell(number, state, value, **notes)

    def _salt(self) -> int:
        return uuid.uuid4().int

    def _refuse_foreign(self, *_: object, apart: bool = False) -> None:
        """Leave it to the folder's `sweep.json`, which says which sweep it is of."""


@dataclass
class Shared:
    """The trials that a controller claims, of the search or of the finalists."""

    claims: Claims
    server: Server
    folder: Path
    placed: Sequence[str] = ()  # words that say where data and the like are on this host
    seat: int | None = None
    owners: dict[str, Owner] = field(default_factory=dict)  # of finished trials, by name
    claimed: dict[str, Claim] = field(default_factory=dict)  # by name
    epochs: dict[str, int] = field(default_factory=dict)  # that a trial had when it was claimed, by name
    held_back: list[Trial] = field(default_factory=list)  # that failed before their first epoch, and are not told yet
    streak: int = 0  # of such failures
    works: bool = False  # this host has trained an epoch
    sick: str = ""  # why this host asks for no more trials

    def begin(self, trial: Trial, claim: Claim) -> None:
        """Name the attempt's folder, and take over the files of an earlier attempt if they can be reached."""
        self.leave_seat()
        name = trial.name
        trial.name = attempt_name(name, claim.attempt)
        self.claimed[trial.name] = claim
        self.epochs[trial.name] = 0
        if not claim.before:
            return
        trial.placed = list(self.placed)
        left = [(Path(owner.folder), attempt_name(name, owner.attempt)) for owner in claim.before]
        # An attempt may have ended before it had taken over an earlier one's files.
        if before := next((one for one in left if copied(one[0] / one[1], self.folder / trial.name)), None):
            with suppress(FileNotFoundError, ConfigError):
                taken = taken_up(trial, load(*before))
                trial.argv, trial.halvings = taken.argv, taken.halvings
            trial.run = journal.read(self.folder / trial.name)
        self.epochs[trial.name] = len(trial.run.epochs)
        done = f"after epoch {len(trial.run.epochs)}" if trial.run.epochs else "from the start"
        where = "" if trial.run.records else f": {Path(*left[0])} cannot be reached from here"
        console.note(f"trial {name} of {claim.before[0].host} is taken over and continues {done}{where}")

    def filled(self, trial: Trial, frozen: FrozenTrial) -> Trial:
        """Fill a trial with what the study recorded about its end."""
        attrs, owner = frozen.user_attrs, Owner.of(frozen)
        trial.name = attempt_name(trial.name, owner.attempt if owner else int(attrs.get(ATTEMPTS, 1)))
        trial.state = ended_as(frozen)
        trial.reason = str(attrs.get(trial.state, ""))
        if owner:
            trial.slot = owner.host
            self.owners[trial.name] = owner
        own = self.folder / trial.name
        if journal.exists(own):
            trial.run = journal.read(own)
        elif RECORD in attrs:
            trial.run = journal.unpacked(attrs[RECORD])
        return trial

    def trained(self, trial: Trial) -> bool:
        """Tell whether a trial has trained an epoch here; if so this host is well."""
        if len(trial.run.epochs) <= self.epochs.get(trial.name, 0):
            return False
        self.works, self.streak = True, 0
        return True

    def began_nothing(self, trial: Trial) -> bool:
        """Tell whether a trial ended here before its first epoch, so that this host may be why."""
        unstarted = len(trial.run.epochs) <= self.epochs.get(trial.name, 0)
        return unstarted and (trial.state == "failed" or (trial.state == "refused" and not self.works))

    def failed_elsewhere(self, trial: Trial) -> bool:
        """Tell whether another host could not begin it either."""
        return bool({*self.claimed[trial.name].unstarted} - {self.claims.me.host})

    def give_up(self, reason: str) -> list[Trial]:
        """Take no more trials here; give back those whose failure nobody has been told of, and return them."""
        given, self.held_back = self.held_back, []
        for trial in given:
            claim = self.claimed[trial.name]
            self.claims.give_back(claim.number, {*claim.unstarted, self.claims.me.host})
        self.sick = (
            f"{SICK} trials in a row failed here before their first epoch, so this host takes no more trials; "
            f"other hosts will run these. The last error: {reason}"
        )
        console.note(self.sick)
        return given

    def waits(self) -> bool:
        """Tell whether to wait for the ends of trials that others run; as many controllers do as there are such trials.

        Raises Superfluous: enough of them wait.
        """
        running = len(self.claims.elsewhere())
        if not running:
            return True  # somebody gave one back at this moment
        if self.seat is not None and self.seat < running and self.server.hold(f"{SEAT} {self.seat}"):
            return True
        said = self.seat is not None
        self.leave_seat()
        for number in range(running):
            if self.server.hold(f"{SEAT} {number}"):
                self.seat = number
                if not said:
                    console.note(
                        "no trial is left to start; this controller waits, in case another controller returns one"
                    )
                return True
        raise Superfluous

    def leave_seat(self) -> None:
        """Release the waiting seat, because there is a trial to run."""
        if self.seat is not None:
            self.server.release(f"{SEAT} {self.seat}")
            self.seat = None

    def left(self, trial: Trial, why: Gone | None) -> None:
        """Print that a trial now belongs to another controller, and `why`; its folder here is no longer a trial's."""
        if why:
            console.note(f"trial {trial.name} is left to other controllers: {why}")
        (self.folder / trial.name / NAME).unlink(missing_ok=True)


class SharedSource(TrialSource, ABC):
    """Trials that are claimed from a study, and told to it when they end; a failure that may be this host's waits."""

    shared: Shared

    @abstractmethod
    def _tell(self, trial: Trial, verdict: Verdict | None = None) -> None:
        """Tell the study of a trial's end, unless it is another's by now."""

    def over(self, trial: Trial, verdict: Verdict | None = None) -> None:
        shared = self.shared
        if verdict is TAKEN:
            self._leave(trial, Gone(TAKEN.reason))
        elif not shared.began_nothing(trial):
            self._tell(trial, verdict)
        else:
            shared.streak += 1
            if not (elsewhere := shared.failed_elsewhere(trial)):
                shared.held_back.append(trial)
            if shared.streak >= SICK:
                for given in shared.give_up(trial.reason):
                    self.trials.pop(given.name, None)
            if elsewhere:
                self._tell(trial, verdict)

    def _tell_held_back(self) -> None:
        waiting, self.shared.held_back = self.shared.held_back, []
        for trial in waiting:
            self._tell(trial)

    def _is_taken(self, trial: Trial) -> bool:
        """Hear of an epoch; tell whether the trial is another controller's by now, and leave it then."""
        if not self.shared.claims.mine(self.shared.claimed[trial.name].number):
            self._leave(trial, Gone(TAKEN.reason))
            return True
        if self.shared.trained(trial):
            self._tell_held_back()
        return False

    def _leave(self, trial: Trial, why: Gone) -> None:
        self.shared.left(trial, why if self.trials.pop(trial.name, None) else None)


class SharedSearch(SharedSource, Search):
    """A search that several controllers share."""

    study: SharedStudy

    def __init__(self, study: SharedStudy, shared: Shared, *arguments: Any, **named: Any):
        super().__init__(study, *arguments, **named)
        self.shared = shared
        self._known: set[int] = set()  # finished trials that are among `trials`
        self._looked = 0.0

    def restore(self, known: Mapping[str, Trial] | None = None) -> None:
        """Take up what the study knows; of the trials that run, none is this controller's yet."""
        self.refresh()

    def refresh(self) -> None:
        """Read the trials that other controllers have finished."""
        self._looked = time.monotonic()
        for frozen in self.study.trials(*FINISHED, TrialState.FAIL):
            if frozen.number in self._known:
                continue
            self._known.add(frozen.number)
            try:
                made = self._made(frozen.number, frozen.params, repetition_of(frozen))
            except ConfigError:
                if frozen.state == TrialState.FAIL:
                    continue  # it was said where it ran
                raise
            trial = self.shared.filled(made, frozen)
            self.trials[trial.name] = trial
            if trial.state == "complete":
                self._curves.add(trial.curve)

    @property
    def over_time(self) -> bool:
        """Tell whether `hydra.sweeper.timeout` has passed, so that no new trial starts."""
        return self._clock() >= self._until

    def next(self) -> Trial | None:
        self.refresh()
        if self.over_time:
            self._tell_held_back()
            return None
        if self.shared.sick:
            return None
        claim = self.study.claim()
        if claim is None and self.shared.held_back and not self.in_state("running"):
            self._tell_held_back()
            claim = self.study.claim()
        if claim is None:
            return None
        try:
            trial = self._made(claim.number, claim.values)
        except ConfigError as error:
            self.study.fail(claim.number, str(error))
            raise
        self.shared.begin(trial, claim)
        self._reported[claim.number] = claim.last_step
        self.trials[trial.name] = trial
        return trial

    def waits(self) -> bool:
        finished = sum(trial.state in ("complete", "pruned") for trial in self.trials.values())
        if self.shared.sick or self.over_time or finished >= self.study.n_trials:
            return False
        if self.study.exhausted and not self.shared.claims.elsewhere():
            return False
        return self.shared.waits()

    def epoch(self, trial: Trial) -> Verdict | None:
        if self._is_taken(trial):
            return TAKEN
        if time.monotonic() - self._looked > FRESH:
            self.refresh()
        try:
            return super().epoch(trial)
        except Gone as gone:
            self._leave(trial, gone)
            return TAKEN

    def _tell(self, trial: Trial, verdict: Verdict | None = None) -> None:
        self._known.add(trial.number)
        try:
            self.study.note(trial.number, RECORD, journal.packed(trial.run))
            Search.over(self, trial, verdict)
        except Gone as gone:
            self._leave(trial, gone)
            self._known.discard(trial.number)


class SharedRepeats(SharedSource):
    """The finalists' repeats, each run by one controller.

    Args:
        planned: in an order that is the same for all controllers.
        keep: puts a complete one's files where others find them.
    """

    def __init__(self, study: OptunaStudy, shared: Shared, planned: Sequence[Trial], keep: Callable[[Trial], None]):
        super().__init__()
        self._study, self.shared, self._planned, self._keep = study, shared, list(planned), keep
        self._known: set[int] = set()

    def refresh(self) -> None:
        """Read the repeats that other controllers have finished."""
        for frozen in self.shared.claims.trials(TrialState.COMPLETE, TrialState.FAIL):
            if frozen.number not in self._known and REPEAT in frozen.params:
                self._known.add(frozen.number)
                trial = self.shared.filled(self._made(frozen.params), frozen)
                self.trials[trial.name] = trial

    def next(self) -> Trial | None:
        self.refresh()
        if self.shared.sick:
            return None
        claim = self.shared.claims.take(self._fresh)
        if claim is None and self.shared.held_back and not self.in_state("running"):
            self._tell_held_back()
        if claim is None:
            return None
        trial = self._made(claim.values)
        self.shared.begin(trial, claim)
        self.trials[trial.name] = trial
        return trial

    def waits(self) -> bool:
        return not self.shared.sick and len(self._known) < len(self._planned) and self.shared.waits()

    def epoch(self, trial: Trial) -> Verdict | None:
        return TAKEN if self._is_taken(trial) else None

    def _tell(self, trial: Trial, verdict: Verdict | None = None) -> None:
        number, complete = self.shared.claimed[trial.name].number, trial.state == "complete"
        try:
            if complete and self.shared.claims.mine(number):
                self._keep(trial)
            state = TrialState.COMPLETE if complete else TrialState.FAIL
            notes = {RECORD: journal.packed(trial.run), trial.state: trial.reason}
            self.shared.claims.tell(number, state, trial.iou if complete else None, **notes)
            self._known.add(number)
        except Gone as gone:
            self._leave(trial, gone)

    def _made(self, values: Mapping[str, Any]) -> Trial:
        planned: Trial = self._planned[values[REPEAT]]
        return replace(planned, run=Run())

    def _fresh(self) -> OptunaTrial | None:
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return self._study.ask(repeat_of(len(self._planned))) if waiting else None


def repeat_of(planned: int) -> dict[str, BaseDistribution]:
    """Return the distribution of the one parameter of finalists' repeats: which of the planned it is."""
    return {REPEAT: IntDistribution(0, planned)}


def attempt_name(name: str, attempt: int) -> str:
    """Name the folder of an attempt at a trial: the first has the trial's own."""
    return name if attempt < 2 else f"{name}.{attempt}"


def copied(before: Path, now: Path) -> bool:
    """Copy what an earlier attempt left, to go on from there; tell whether there was something, and it could be had.

    Its journal as it was before the checkpoint was copied: that one is of the last recorded epoch or of the next, and
    not of an earlier one. Raises DiskError: there is no room for it here.
    """
    try:
        if before.resolve() == now.resolve() or not journal.exists(before):
            return False
        recorded = (before / journal.NAME).read_bytes()
        shutil.rmtree(now, ignore_errors=True)
        left_out = shutil.ignore_patterns(*OWN, journal.NAME, ".*.lock")
        shutil.copytree(before, now, ignore=left_out, copy_function=_copy)
        (now / journal.NAME).write_bytes(recorded)
        return True
    except (OSError, shutil.Error) as error:
        console.note(f"{before}: cannot be copied: {error}")
        shutil.rmtree(now, ignore_errors=True)
        return False


def _copy(source: str, target: str) -> None:
    content = Path(source).read_bytes()
    try:
        with named_by(Path(target)):
            Path(target).write_bytes(content)
    except OSError as error:
        raise DiskError(refused_by_system(error)) from error
