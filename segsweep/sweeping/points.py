"""The points of a finite space: which of them have run, and a sampler that draws only those that have not."""

import random
from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, TrialState

from segsweep.sweeping.space import Space, Value

REFUSED = "refused"  # a trial's attribute: why its values do not go together
AGAIN = "again"  # a trial's attribute: it was not run, since another had had its point


class Points:
    """How often trials had each point of a finite space, whatever became of them; those that run are among them.

    Args:
        space: a finite one.
        trials: all that a study has; those that wait to be asked for do not count.
        repeats: a point may run again, once all have run as often. One that was refused never may.
    """

    def __init__(self, space: Space, trials: Iterable[FrozenTrial], repeats: bool = False):
        keys = space.distributions.keys()
        # A controller may have been killed while it drew a trial's values.
        whole = [trial for trial in trials if trial.state != TrialState.WAITING and trial.params.keys() == keys]
        begun = [trial for trial in whole if AGAIN not in trial.user_attrs]
        self.space, self._often = space, 0
        self.counts = Counter(space.position(trial.params) for trial in begun)
        self._refused = {space.position(trial.params) for trial in begun if REFUSED in trial.user_attrs}
        if repeats and len(self.counts) == space.size:
            self._often = min((n for point, n in self.counts.items() if point not in self._refused), default=0)

    @property
    def none_left(self) -> bool:
        return self._often == 0 and len(self.counts) == self.space.size

    def free(self, values: Mapping[str, Value]) -> bool:
        """Tell whether a point may be run now."""
        return self._is_free(self.space.position(values))

    def nearest_free(
        self, values: Mapping[str, Value], given: Container[str], rng: random.Random
    ) -> dict[str, Value] | None:
        """Return the free point that is fewest steps from a point; None if none is free.

        A step changes a key that is not `given`: to the number beside, or to any other option. Of several that are as
        near one is drawn. No more points are looked at than have run, and one.
        """
        moving = [(i, p) for i, p in enumerate(self.space.parameters) if p.key not in given]
        first = self.space.position(values)
        seen, waiting = {first}, deque([first])
        while waiting:
            point = waiting.popleft()
            if self._is_free(point):
                return self.space.point(point)
            beside = [(*point[:i], j, *point[i + 1 :]) for i, p in moving for j in p.neighbours(point[i])]
            fresh = [other for other in beside if other not in seen]
            rng.shuffle(fresh)
            seen.update(fresh)
            waiting.extend(fresh)
        return None

    def _is_free(self, position: tuple[int, ...]) -> bool:
        return position not in self._refused and self.counts[position] <= self._often


class FreshSampler(BaseSampler):
    """Draws from a finite space as another sampler does; where that point may not run now, the nearest that may."""

    def __init__(self, sampler: BaseSampler, space: Space, repeats: bool, seed: int):
        self._sampler, self._space, self._repeats, self._rng = sampler, space, repeats, random.Random(seed)

    def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space.distributions

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Value]:
        points = Points(self._space, study.get_trials(deepcopy=False), self._repeats)
        given = trial.system_attrs.get("fixed_params", {})  # of one that was enqueued
        values = {**self._drawn(study, trial), **given}
        return points.nearest_free(values, given, self._rng) or values

    def sample_independent(
        self, study: OptunaStudy, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def _drawn(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, Value]:
        together = self._sampler.infer_relative_search_space(study, trial)
        values = self._sampler.sample_relative(study, trial, together)
        alone = {name: kind for name, kind in self._space.distributions.items() if name not in values}
        return values | {n: self._sampler.sample_independent(study, trial, n, kind) for n, kind in alone.items()}
