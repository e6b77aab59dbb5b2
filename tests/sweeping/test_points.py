"""The points of a finite space: the nearest that may run, found without a walk over the whole space."""

import itertools
import random
import time

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from segsweep.sweeping.points import FreshSampler, Points
from segsweep.sweeping.space import Space, choice, steps

SPACE = Space((choice("a", ["x", "y", "z"]), steps("b", 0, 5), steps("c", 0.1, 0.5, 0.1)), "resnet18")
LARGE = Space((steps("a", 0, 2), *(steps(key, 0, 1000) for key in "bcd")), "resnet18")  # 2e9 points


def run(space, *points):
    kinds = space.distributions
    return [create_trial(params=p, distributions=kinds, value=0.5, state=TrialState.COMPLETE) for p in points]


def apart(one, other):
    """How many steps two points are apart, from their values."""
    return (one["a"] != other["a"]) + abs(one["b"] - other["b"]) + round(abs(one["c"] - other["c"]) / 0.1)


@pytest.mark.parametrize("given", [set(), {"b"}, {"a", "c"}])
def test_the_nearest_free_point_is_that_of_all_with_what_is_given(given):
    every = [
        dict(zip("abc", values, strict=True)) for values in itertools.product("xyz", range(5), (0.1, 0.2, 0.3, 0.4))
    ]
    rng = random.Random(0)
    for taken in (0, 20, 45, 57):
        had = rng.sample(every, taken)
        points, wanted = Points(SPACE, run(SPACE, *had)), rng.choice(had or every)
        allowed = [p for p in every if p not in had and all(p[key] == wanted[key] for key in given)]
        found = points.nearest_free(wanted, given, rng)
        if allowed:
            assert found in allowed
            assert apart(found, wanted) == min(apart(p, wanted) for p in allowed)
        else:
            assert found is None


class Insists(BaseSampler):
    """Always wants one point, and counts how often it is asked."""

    def __init__(self, wanted):
        self.wanted, self.asked = wanted, 0

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        self.asked += 1
        return self.wanted

    def sample_independent(self, study, trial, param_name, param_distribution):
        raise AssertionError


def test_a_sampler_is_asked_once_for_each_trial_and_a_large_space_is_not_walked_through():
    given = dict.fromkeys("bcd", 7)
    wanted = {"a": 1, **given}
    insists = Insists(wanted)
    study = optuna.create_study(sampler=FreshSampler(insists, LARGE, False, 0))
    for _ in range(3):  # there are two points with these values
        study.enqueue_trial(given)
    begun = time.process_time()
    found = [study.ask(LARGE.distributions).params for _ in range(12)]
    assert time.process_time() - begun < 5
    assert insists.asked == 12
    assert found[:3] == [wanted, {"a": 0, **given}, wanted]
    assert all(abs(point["a"] - 1) + sum(abs(point[key] - 7) for key in "bcd") <= 2 for point in found)
    assert len({tuple(point.values()) for point in found}) == 11
