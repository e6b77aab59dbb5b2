"""A sweep's memory: Optuna's study, in a file that a killed controller leaves readable.

Finished trials are those that were completed or pruned. A failed or refused one has no value, and the sampler still
learns that its place is a bad one. Of a finite space no point is asked for twice before all have run. Trials that were
running are there again after a restart, with all that was noted of them.
"""

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from platform import node
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, Trial, TrialState

from segsweep import console
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.paths import atomically
from segsweep.runs import journal
from segsweep.sweeping.extend import BEGAN, extend
from segsweep.sweeping.finalists import FOLDER
from segsweep.sweeping.points import AGAIN, REFUSED, FreshSampler, Points
from segsweep.sweeping.space import Space, Value, spoken
from segsweep.sweeping.storage import database, is_database

JOURNAL = "optuna-journal.log"
STARTUP = 10  # trials that TPE draws at random before it models

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """The trials of a sweep; `anew` is what to type to begin another.

    ConfigError if it was begun with another space or other fixed values, or if the folder has runs of something else.

    Args:
        folder: of the sweep, which only one controller uses at a time.
        seeds: the values of the first trials.
        pruner: Optuna's, for `should_prune`.
        fixed: what all trials have, to be compared with on the next start.
        owner: of the trials that are asked for here; "" for nobody.
        storage: in place of what the sweeper names.
    """

    anew = "hydra.sweep.dir=DIR"

    def __init__(
        self,
        folder: Path,
        space: Space,
        sweeper: SweeperConfig,
        *,
        seeds: Sequence[Mapping[str, Value]] = (),
        pruner: BasePruner | None = None,
        fixed: Sequence[str] = (),
        owner: str = "",
        storage: BaseStorage | None = None,
    ):
        self.space, self._owner, gridded = space, owner, sweeper.sampler == "grid"
        if sweeper.storage and storage is None:
            self.anew = "hydra.sweeper.study_name=NAME hydra.sweep.dir=DIR"
        self._repeats = sweeper.repeat_points == "seed"
        if gridded:
            seeds = grid(space)
        self.n_trials = trials_of(space, sweeper)
        name = sweeper.study_name or "sweep"
        self._file = (
            None if storage or is_database(sweeper.storage) else Path(sweeper.storage or folder / JOURNAL).expanduser()
        )
        storage = storage or (_in_file(self._file) if self._file else database(str(sweeper.storage)))
        self._refuse_foreign(folder, storage, name, apart=bool(sweeper.storage))
        self._before = b""  # the file, if this start has written it anew
        if self._file:
            before = self._file.read_bytes() if self._file.exists() else b""
            if added := extend(self._file, _in_file, name, space, fixed, self.n_trials):
                console.note(f"study {name}: continues with {', '.join(added)} in addition")
                self._before, storage = before, _in_file(self._file)
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=RandomSampler(sweeper.seed),
            pruner=pruner or NopPruner(),
            load_if_exists=True,
        )
        self._new = not self.remembered(BEGAN) and not self.trials()
        self._compare(space.described(), list(fixed), name)
        enqueued = "gridded" if gridded else "seeded"
        if not self.remembered(enqueued):
            for values in seeds:
                self._study.enqueue_trial(dict(values), skip_if_exists=True)
            self.remember(enqueued, True)
        # Another stream of random numbers after a restart than the one that the first trials had.
        seed = (sweeper.seed + len(self.trials()) + self._salt()) % 2**32
        sampler = _sampler(sweeper.sampler, seed, self.n_trials)
        self._study.sampler = FreshSampler(sampler, space, self._repeats, seed) if space.size else sampler
        self._open = {t.number: Trial(self._study, t._trial_id) for t in Study.trials(self, TrialState.RUNNING)}

    @property
    def name(self) -> str:
        return self._study.study_name

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in one of these states, by number; without any, all."""
        found = self._study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in found if AGAIN not in trial.user_attrs]

    @property
    def exhausted(self) -> bool:
        """Tell whether all points of a finite space have run, or run now, and none may run again."""
        return self.space.size is not None and self._points().none_left

    def repetition(self, number: int) -> int:
        """Return how many trials had a trial's point before it was asked for: 0 but where points may run again."""
        return repetition_of(self._study.get_trials(deepcopy=False)[number])

    def _salt(self) -> int:
        """Return what tells this controller's stream of random numbers from others'."""
        return 0

    def _points(self) -> Points:
        return Points(self.space, self.trials(), self._repeats)

    def ask(self) -> tuple[int, dict[str, Value]]:
        """Return the next trial's number and values; it is this owner's."""
        trial = self._asked()
        self._open[trial.number] = trial
        if self._owner:
            self.note(trial.number, "owner", {"sweep": self._owner, "host": node(), "pid": os.getpid()})
        return trial.number, trial.params

    def _asked(self) -> Trial:
        """Draw the next trial."""
        while True:
            points = self._points() if self.space.size else None
            trial = self._study.ask(self.space.distributions)
            if points is None or points.none_left or points.free(trial.params):
                break
            # It was enqueued, and another has had its point since.
            trial.set_user_attr(AGAIN, True)
            self._study.tell(trial, state=TrialState.FAIL)
        if points and (before := points.counts[self.space.position(trial.params)]):
            trial.set_user_attr("repetition", before)
        return trial

    def owns(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial is this owner's to run; one that nobody owns is everybody's."""
        owner = trial.user_attrs.get("owner")
        return not isinstance(owner, dict) or owner.get("sweep") == self._owner

    def values(self, number: int) -> dict[str, Value]:
        """Return a running trial's values; those that an earlier start ended before it had drawn are drawn now."""
        trial = self._open[number]
        for name, kind in self.space.distributions.items():
            if name not in trial.params:
                trial._suggest(name, kind)
        return trial.params

    def note(self, number: int, name: str, value: Any) -> None:
        """Record an attribute of a running trial."""
        self._open[number].set_user_attr(name, value)

    def report(self, number: int, step: int, value: float | None) -> None:
        """Note a running trial's score after so many epochs; what has no number is left out."""
        if value is not None:
            self._open[number].report(value, step)

    def should_prune(self, number: int) -> bool:
        return self._open[number].should_prune()

    def complete(self, number: int, value: float) -> None:
        """End a trial as complete."""
        self._end(number, TrialState.COMPLETE, value)

    def prune(self, number: int, reason: str, estimate: float | None = None) -> None:
        """End a trial that is not going to be the best; the sampler takes `estimate` for its score."""
        known: dict[str, Any] = {} if estimate is None else {"estimate": estimate}
        self._end(number, TrialState.PRUNED, pruned=reason, **known)

    def fail(self, number: int, reason: str) -> None:
        """End a trial as failed."""
        self._end(number, TrialState.FAIL, failed=reason)

    def refuse(self, number: int, reason: str) -> None:
        """End a trial as refused: its values contradict each other."""
        noted: dict[str, Any] = {REFUSED: reason}
        self._end(number, TrialState.FAIL, **noted)

    def _end(self, number: int, state: TrialState, value: float | None = None, **notes: Any) -> None:
        for name, note in notes.items():
            self.note(number, name, note)
        self._study.tell(self._open.pop(number), value, state)

    def remember(self, name: str, value: Any) -> None:
        """Record an attribute of the sweep."""
        self._study.set_user_attr(name, value)

    def remembered(self, name: str) -> Any:
        """Return a recorded attribute of the sweep, or None."""
        return self._study.user_attrs.get(name)

    def discard(self) -> None:
        """Leave the storage as it was before this start: the sweep was refused."""
        if self._file and self._before:
            before = self._before
            atomically(self._file, lambda target: target.write_bytes(before))
        if self._new:
            with suppress(Exception):  # the storage itself may be why
                optuna.delete_study(study_name=self._study.study_name, storage=self._study._storage)

    def _refuse_foreign(self, folder: Path, storage: BaseStorage, name: str, apart: bool) -> None:
        """Refuse a folder with runs if no trial of the study is of this sweep: they would be taken for its trials.

        And a study that is kept `apart` from the folder, if all its trials are of a sweep in another one.
        """
        with suppress(KeyError):  # no such study yet
            every = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
            began = [trial for trial in every if trial.state != TrialState.WAITING]
            if any(map(self.owns, began)):
                return
            if began and apart:
                raise ConfigError(
                    f"{folder}: is not the folder of the sweep whose trials study {name} has. To continue that sweep, "
                    f"type its folder, hydra.sweep.dir=DIR; for another one type {self.anew}."
                )
        found = [path.parent for run in ("*", f"{FOLDER}/*") for path in folder.glob(f"{run}/{journal.NAME}")]
        if runs := sorted(str(path.relative_to(folder)) for path in found):
            shown = ", ".join(runs[:3]) + (", ..." if len(runs) > 3 else "")
            raise ConfigError(
                f"{folder}: has runs that study {name} does not know: {shown}. "
                "Give another folder with hydra.sweep.dir=DIR."
            )

    def _compare(self, space: Mapping[str, str], fixed: Sequence[str], name: str) -> None:
        """Refuse another sweep than the one that the study was begun with."""
        before = self.remembered(BEGAN)
        if before is None:
            self.remember(BEGAN, {"space": space, "fixed": fixed})
            return
        old, kept = before["space"], before["fixed"]
        differ = [key for key in sorted(old.keys() | space.keys()) if old.get(key) != space.get(key)]
        changes = [f"{key}: {spoken(old.get(key))} -> {spoken(space.get(key))}" for key in differ]
        changes += [f"{override}: gone" for override in kept if override not in fixed]
        changes += [f"{override}: new" for override in fixed if override not in kept]
        if changes or kept != fixed:
            raise ConfigError(
                f"study {name}: was begun with another command: {'; '.join(changes) or 'in another order'}. Type the "
                f"command as before, or start a new study with {self.anew}."
            )


def repetition_of(trial: FrozenTrial) -> int:
    """Return how many trials had a trial's point before it was asked for."""
    return int(trial.user_attrs.get("repetition", 0))


def trials_of(space: Space, sweeper: SweeperConfig) -> int:
    """Return how many trials a sweep finishes: of a grid without a number all its points; else as `grid` raises."""
    if sweeper.sampler == "grid":
        _refuse_endless(space)
    points = space.size or math.inf
    most = math.inf if sweeper.repeat_points == "seed" else points
    return int(min(sweeper.n_trials or points, most))


def grid(space: Space) -> list[dict[str, Value]]:
    """Return all points of a space; ConfigError if a key has infinitely many values."""
    _refuse_endless(space)
    return list(space.points)


def _refuse_endless(space: Space) -> None:
    if space.size is None:
        key = next(parameter.key for parameter in space.parameters if parameter.count is None)
        raise ConfigError(
            f"hydra.sweeper.sampler=grid: {key} has infinitely many values. Type {key}=VALUE, or "
            f"{key}='choice(...)' or 'range(...)'. Keys that you do not type come from hydra.sweeper.params."
        )


def optuna_pruner(name: str, epochs: int) -> BasePruner | None:
    """Return Optuna's pruner of that name, with its first rung after a third of the epochs; None if it has none."""
    first = max(1, math.ceil(epochs / 3))
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=first - 1)
    if name == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=max(epochs, first))
    return None


def _in_file(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    journal.cut_torn_line(path)
    return JournalStorage(JournalFileBackend(str(path), _Unlocked(str(path))))


class _Unlocked(JournalFileOpenLock):
    """The folder's lock keeps a second controller out; Optuna's own would outlive a killed one by half a minute."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _sampler(name: str, seed: int, n_trials: int) -> BaseSampler:
    if name in ("random", "grid"):
        return RandomSampler(seed)
    if name == "gp":
        return _GP(seed=seed)
    startup = max(1, min(STARTUP, n_trials // 3))  # at most a third of a short sweep
    return _TPE(n_startup_trials=startup, multivariate=True, constant_liar=True, seed=seed)


class _TPE(TPESampler):
    """Learns more from trials without a final score.

    Optuna leaves failed ones out, and ranks all pruned ones below all completed ones: among unlike backbones a good
    one's second best trial, pruned, would count less than a bad one's best.
    """

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._learnt: dict[int, FrozenTrial] = {}  # what is finished does not change between samplings

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Value]:
        return super().sample_relative(_Seen(study, self._seen), trial, search_space)  # type: ignore[arg-type]

    def _seen(self, found: list[FrozenTrial]) -> list[FrozenTrial]:
        for trial in found:
            if trial.state in (TrialState.PRUNED, TrialState.FAIL) and trial.number not in self._learnt:
                self._learnt[trial.number] = _learnt(trial)
        return [self._learnt.get(trial.number, trial) for trial in found]


class _GP(GPSampler):
    """Learns from refused trials, too: they look as bad as the worst one. Optuna leaves them out."""

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Value]:
        return super().sample_relative(_Seen(study, _refused_as_worst), trial, search_space)  # type: ignore[arg-type]


class _Seen:
    """A study as a sampler sees it: failed trials are among its trials, and `seen` changes what they look like."""

    def __init__(self, study: OptunaStudy, seen: Callable[[list[FrozenTrial]], list[FrozenTrial]]):
        self._study, self._change = study, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        wanted = None if states is None else {*states, TrialState.FAIL}
        return self._change(self._study._get_trials(deepcopy, wanted, use_cache))


def _refused_as_worst(found: list[FrozenTrial]) -> list[FrozenTrial]:
    """Have refused trials look completed, with the lowest score of all; failed ones are left out."""
    lowest = min((t.value for t in found if t.state == TrialState.COMPLETE and t.value is not None), default=0.0)
    seen = []
    for trial in found:
        if REFUSED in trial.user_attrs:
            trial = copy.copy(trial)
            trial.state, trial.values = TrialState.COMPLETE, [lowest]
        if trial.state != TrialState.FAIL:
            seen.append(trial)
    return seen


def _learnt(trial: FrozenTrial) -> FrozenTrial:
    """Have a failed trial look pruned before its first score, and a pruned one completed as estimated."""
    learnt, estimate = copy.copy(trial), trial.user_attrs.get("estimate")
    if trial.state == TrialState.FAIL:
        learnt.state, learnt.intermediate_values = TrialState.PRUNED, {}
    elif estimate is not None:
        learnt.state, learnt.values = TrialState.COMPLETE, [estimate]
    return learnt
