"""A study that several controllers use at once, on a PostgreSQL server: who runs which trial, and who is gone.

A trial belongs to the controller that its attribute `owner` names, which tells the server every few seconds that it
lives. One that was silent for `GRACE` seconds, by the server's clock, loses its trials to whoever asks next. What must
not happen twice at the same time (asking, taking over, ending a trial) happens under a lock of the server's, which is
free as soon as its holder's connection is.
"""

import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import update_wrapper
from pathlib import Path
from platform import node
from typing import Any, Concatenate, ParamSpec, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, Connection, create_engine, exc, text

from segsweep.errors import first_line
from segsweep.sweeping.storage import number, told

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

BEAT = 10  # seconds between two signs of life
GRACE = 60  # seconds without one after which a trial is another's to take
PAUSE = 2.0  # seconds until a server that did not answer is asked again
SAID = 60.0  # seconds between two words about that
# A connection whose other end is gone without a word is noticed within half a minute, by the server (the first two
# lines: so its locks are let go) and by us. Optuna keeps the server's times without their zone.
CONNECTION: dict[str, Any] = {
    "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c TimeZone=UTC",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "connect_timeout": 10,
}
STUCK = 60  # seconds that a holder of a lock may do nothing, until the server frees it
CONNECTION_FAULTS = (
    *(exc.OperationalError, exc.InterfaceError, exc.InternalError),
    *(exc.DisconnectionError, exc.TimeoutError, exc.PendingRollbackError),
)
OWNER, LAST, ATTEMPTS, UNSTARTED = "owner", "last", "attempts", "unstarted"  # a trial's attributes


class Gone(Exception):
    """The trial now belongs to another controller; the text names it."""


def is_away(error: BaseException) -> bool:
    """Tell whether an error means that the server, or the way to it, is gone for now."""
    if isinstance(error, StorageInternalError):
        return isinstance(error.__cause__, CONNECTION_FAULTS)
    return isinstance(error, CONNECTION_FAULTS)


@dataclass(frozen=True)
class Owner:
    """Who runs a trial, and where."""

    member: str  # names the controller
    host: str
    sweep: str  # names the sweep
    attempt: int  # from 1
    folder: str  # of the sweep, on that host

    def __str__(self) -> str:
        return f"{self.host}:{self.folder}"

    @classmethod
    def here(cls, sweep: str, folder: Path) -> "Owner":
        """Return a controller on this host, under a name of its own."""
        return cls(uuid.uuid4().hex, node(), sweep, 1, str(folder))

    @classmethod
    def of(cls, trial: FrozenTrial) -> "Owner | None":
        """Return a trial's; None of one that was given back, or whose controller died when it asked for it."""
        found = trial.user_attrs.get(OWNER)
        return cls(**found) if isinstance(found, dict) else None

    @classmethod
    def earlier(cls, trial: FrozenTrial) -> tuple["Owner", ...]:
        """Return who ran a trial before whoever asks now, the last one first."""
        owner = cls.of(trial)
        return (*([owner] if owner else []), *(cls(**one) for one in trial.user_attrs.get(LAST, [])))


@dataclass(frozen=True)
class Claim:
    """A trial that belongs to this controller."""

    number: int
    values: Mapping[str, Any]
    attempt: int = 1
    before: tuple[Owner, ...] = ()  # who ran it before, the last one first
    last_step: int = 0  # the last epoch that the study has heard of
    unstarted: tuple[str, ...] = ()  # hosts where it failed before its first epoch


def patient(method: Callable[Concatenate["Claims", P], T]) -> Callable[Concatenate["Claims", P], T]:
    """Retry until the server answers; trainings continue meanwhile."""

    def asked(self: "Claims", /, *arguments: P.args, **named: P.kwargs) -> T:
        return self.server.until_answered(lambda: method(self, *arguments, **named))

    return update_wrapper(asked, method)


class Server:
    """A PostgreSQL server: its storage for Optuna, and locks that are free when their holder is gone.

    Args:
        study: the study's name, which locks are of.
    """

    def __init__(self, url: URL, study: str):
        self._url, self._study = url, study
        # This process's clock: before, the silence of others may be one's own deafness, or the server's.
        self.trusts_after = time.monotonic() + GRACE
        self._held: dict[str, Connection] = {}
        self._inside = threading.local()  # whether this thread is `alone`
        name = {"application_name": f"segsweep {os.getpid()}"}  # for who looks at the server
        arguments: Any = {"connect_args": CONNECTION | name, "pool_pre_ping": True}
        shown = url.render_as_string(hide_password=False)
        with told(url):
            self._engine = create_engine(url, pool_size=1, max_overflow=4, **arguments)
            with self.alone("schema", anywhere=True):
                kept = RDBStorage(shown, engine_kwargs={**arguments, "pool_size": 1, "max_overflow": 2})
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    # A storage of its own: with heartbeats, Optuna warns of `ask` each time.
                    self.beats = RDBStorage(
                        shown,
                        engine_kwargs={**arguments, "pool_size": 1, "max_overflow": 2},
                        heartbeat_interval=BEAT,
                        grace_period=GRACE,
                    )
        self._engines = [self._engine, kept.engine, self.beats.engine]
        self.storage: BaseStorage = get_storage(kept)

    @contextmanager
    def alone(self, what: str = "", anywhere: bool = False, stuck: int = STUCK) -> Iterator[None]:
        """Do what one controller of the study at a time does, or of all studies there; wait for one's turn.

        A server that does not answer meanwhile raises: with the connection the turn is over. So it is for who does
        nothing for `stuck` seconds; 0: never.
        """
        before = time.monotonic()
        with self._engine.begin() as connection:
            key = {"key": self._key(what, anywhere)}
            connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{stuck}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(CAST(:key AS bigint))"), key)
            if time.monotonic() - before > GRACE / 2:
                self.silent()
            outer, self._inside.now = getattr(self._inside, "now", False), True
            try:
                yield
            finally:
                self._inside.now = outer

    def hold(self, what: str) -> bool:
        """Take a lock without waiting, to keep until `release`, or the end of this process; tell whether it is ours."""
        return self.until_answered(lambda: self._hold(what))

    def is_held(self, what: str) -> bool:
        """Tell whether a lock was taken here; the server is not asked."""
        return what in self._held

    def _hold(self, what: str) -> bool:
        if what in self._held:
            try:
                self._held[what].execute(text("SELECT 1"))
                return True
            except exc.SQLAlchemyError:  # that connection is gone, and the lock with it
                self.release(what)
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        key = {"key": self._key(what)}
        if connection.scalar(text("SELECT pg_try_advisory_lock(CAST(:key AS bigint))"), key):
            self._held[what] = connection
            return True
        connection.close()
        return False

    def release(self, what: str) -> None:
        """Release a lock."""
        if connection := self._held.pop(what, None):
            with suppress(exc.SQLAlchemyError):
                connection.invalidate()  # closed, and not kept for another's use: the lock goes with it
                connection.close()

    def until_answered(self, ask: Callable[[], T]) -> T:
        """Return what `ask` does, as soon as the server answers; while this thread is `alone` at once, or raise."""
        if getattr(self._inside, "now", False):
            return ask()
        said = 0.0
        while True:
            try:
                found = ask()
            except Exception as error:
                if not is_away(error):
                    raise
                self.silent()
                if time.monotonic() - said > SAID:
                    said = time.monotonic()
                    cause = error.__cause__ or error
                    log.warning("the study's server does not answer; trainings continue. %s", first_line(cause))
                time.sleep(PAUSE)
                continue
            if said:
                log.warning("the study's server answers again.")
            return found

    def silent(self) -> None:
        """Note that the server, or this process, was away: who seems silent since may only not have been heard."""
        self.trusts_after = time.monotonic() + GRACE

    def close(self) -> None:
        for what in list(self._held):
            self.release(what)
        for engine in self._engines:
            engine.dispose()

    def _key(self, what: str, anywhere: bool = False) -> int:
        return number(f"{self._url.database}/{'' if anywhere else self._study}/{what}")


class Beats:
    """Tells the server every few seconds, in a thread, that this controller lives and runs its trials."""

    def __init__(self, server: Server):
        self._server, self._ids, self._lock = server, set[int](), threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="beats", daemon=True)
        self._thread.start()

    def add(self, trial_id: int) -> None:
        """Speak for a trial from now on."""
        self._server.beats.record_heartbeat(trial_id)
        with self._lock:
            self._ids.add(trial_id)

    def drop(self, trial_id: int) -> None:
        with self._lock:
            self._ids.discard(trial_id)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(BEAT)

    def _work(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(BEAT):
            with self._lock:
                ids = list(self._ids)
            try:
                for trial_id in ids:
                    self._server.beats.record_heartbeat(trial_id)
            except (exc.SQLAlchemyError, OptunaError):
                self._server.silent()
            if time.monotonic() - last > GRACE / 2:  # this process slept, or waited for the server
                self._server.silent()
            last = time.monotonic()


class Claims:
    """The trials of one Optuna study, each run by one controller at a time.

    Args:
        distributions: of a trial's values.
        me: who takes them.
    """

    def __init__(
        self,
        study: OptunaStudy,
        server: Server,
        beats: Beats,
        distributions: Mapping[str, BaseDistribution],
        me: Owner,
    ):
        self._study, self.server, self._beats, self._distributions, self.me = study, server, beats, distributions, me
        self._mine: dict[int, Trial] = {}
        self._waiting: Claim | None = None  # taken, and not handed out yet

    def take(self, ask: Callable[[], Trial | None]) -> Claim | None:
        """Take a trial that was given back or whose controller is gone, or else what `ask` gives; None for nothing.

        Last come those that failed elsewhere before they had begun.
        """
        self._take(ask)
        found, self._waiting = self._waiting, None
        return found

    @patient
    def mine(self, number: int) -> bool:
        """Tell whether a running trial is still this controller's; of one that is not nothing is kept."""
        if number in self._mine and not self._is_mine(number):
            self._dropped(number)
        return number in self._mine

    @patient
    def note(self, number: int, name: str, value: Any) -> None:
        """Write something down about a trial of this controller's. Raises Gone: it is another's."""
        with self._ours(number) as trial:
            trial.set_user_attr(name, value)

    @patient
    def report(self, number: int, step: int, value: float) -> None:
        """Note a score after so many epochs. Raises Gone: it is another's."""
        with self._ours(number) as trial:
            trial.report(value, step)

    @patient
    def should_prune(self, number: int) -> bool:
        return self._mine[number].should_prune()

    def tell(self, number: int, state: TrialState, value: float | None = None, **notes: Any) -> None:
        """End a trial, with notes. Raises Gone: it is another's by now."""
        try:
            self._tell(number, state, value, notes)
        finally:
            self._dropped(number)

    def give_back(self, number: int, unstarted: Iterable[str] = ()) -> None:
        """Leave a trial to whoever asks next; `unstarted` are hosts where it failed before its first epoch.

        A server that does not answer learns it by this controller's silence.
        """
        with suppress(exc.SQLAlchemyError, OptunaError), self.server.alone():
            if self._is_mine(number):
                trial = self._mine[number]
                trial.set_user_attr(LAST, [asdict(owner) for owner in Owner.earlier(self._frozen(number))])
                trial.set_user_attr(UNSTARTED, sorted(unstarted))
                trial.set_user_attr(OWNER, None)
        self._dropped(number)

    @property
    def held(self) -> list[int]:
        """Return the numbers of this controller's trials."""
        return list(self._mine)

    @patient
    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def elsewhere(self) -> list[Owner | None]:
        """Return who runs the trials that this controller does not; None of one that was left."""
        return [Owner.of(trial) for trial in self.trials(TrialState.RUNNING) if trial.number not in self._mine]

    @patient
    def living(self) -> int:
        """Return how many trials other controllers run that show signs of life."""
        silent = self._silent()
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        owned = [trial for trial in running if Owner.of(trial) and trial.number not in self._mine]
        return sum(trial._trial_id not in silent for trial in owned)

    def _silent(self) -> set[int]:
        """Return the ids of running trials that show no signs of life; none while that may be one's own deafness."""
        if time.monotonic() < self.server.trusts_after:
            return set()
        return set(self.server.beats._get_stale_trial_ids(self._study._study_id))

    @patient
    def _take(self, ask: Callable[[], Trial | None]) -> None:
        if self._waiting:  # the answer was lost on its way
            return
        with self.server.alone():
            free = list(self._free())
            if found := next((trial for trial in free if not trial.user_attrs.get(UNSTARTED)), None):
                self._take_over(found)
            elif fresh := ask():
                self._taken(fresh, Claim(fresh.number, dict(fresh.params)))
            elif free:
                self._take_over(free[0])

    def _free(self) -> Iterator[FrozenTrial]:
        """Yield the running trials that nobody runs."""
        silent = self._silent()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = Owner.of(trial)
            lost = owner is None or owner.member == self.me.member or trial._trial_id in silent
            if lost and trial.number not in self._mine:
                yield trial

    def _take_over(self, frozen: FrozenTrial) -> None:
        trial = Trial(self._study, frozen._trial_id)
        for name, kind in self._distributions.items():
            if name not in frozen.params:  # its controller died while it drew them; what was enqueued is kept
                trial._suggest(name, kind)
        attrs = frozen.user_attrs
        claim = Claim(
            frozen.number,
            dict(trial.params),
            attempt=int(attrs.get(ATTEMPTS, 0)) + 1,
            before=Owner.earlier(frozen),
            last_step=frozen.last_step or 0,
            unstarted=tuple(attrs.get(UNSTARTED, ())),
        )
        self._taken(trial, claim)

    def _taken(self, trial: Trial, claim: Claim) -> None:
        # First the sign of life: without one an owner that dies now would be believed alive for ever.
        self._beats.add(trial._trial_id)
        trial.set_user_attr(ATTEMPTS, claim.attempt)
        if claim.before:
            trial.set_user_attr(LAST, [asdict(owner) for owner in claim.before])
        trial.set_user_attr(OWNER, asdict(replace(self.me, attempt=claim.attempt)))
        self._mine[trial.number] = trial
        self._waiting = claim

    @patient
    def _tell(self, number: int, state: TrialState, value: float | None, notes: Mapping[str, Any]) -> None:
        if number not in self._mine:
            raise Gone("another controller has taken it over")
        with self.server.alone():
            frozen = self._frozen(number)
            if frozen.state.is_finished() and frozen.user_attrs.get("told") == self.me.member:
                return  # the answer was lost on its way
            with self._ours(number) as trial:
                for name, note in {**notes, "told": self.me.member}.items():
                    trial.set_user_attr(name, note)
                self._study.tell(trial, value, state)

    @contextmanager
    def _ours(self, number: int) -> Iterator[Trial]:
        """Give a trial that is still this controller's. Raises Gone: it is not, or was ended by another."""
        if number not in self._mine or not self._is_mine(number):
            self._dropped(number)
            raise Gone("another controller has taken it over")
        try:
            yield self._mine[number]
        except UpdateFinishedTrialError as error:
            self._dropped(number)
            raise Gone("another controller has ended it") from error

    def _is_mine(self, number: int) -> bool:
        owner = Owner.of(self._frozen(number))
        return owner is not None and owner.member == self.me.member

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study._storage.get_trial(self._mine[number]._trial_id)

    def _dropped(self, number: int) -> None:
        if trial := self._mine.pop(number, None):
            self._beats.drop(trial._trial_id)
