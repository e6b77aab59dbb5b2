"""Who is stopped: only who cannot reach its own backbone's best."""

import pytest

from segsweep.runs.curve import Curve, Point
from segsweep.sweeping import pruner


def curve(encoder, *scores, of=10, complete=True, lr=0.0):
    best, points = -1.0, []
    for i, score in enumerate(scores):
        best = max(best, score)
        points.append(Point((i + 1) / of, best))
    return Curve(encoder, points, complete, lr)


FAST = curve("fast", 0.5, 0.6, 0.65, 0.68, 0.7, 0.71, 0.72, 0.72, 0.73, 0.73)
SLOW = curve("slow", 0.0, 0.0, 0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9)


def complete(*curves):
    """Complete curves, as the pruner keeps them."""
    found = pruner.Complete()
    for one in curves:
        found.add(one)
    return found


def judge(trial, others, top=3):
    return pruner.judge(trial, complete(*others), top)


def gain(trial, done):
    """How much one curve rose after this share of the training."""
    ((rose,), _) = complete(trial).of[trial.weights].gains(done, trial.lr)
    return rose


def running(encoder, *scores):
    return curve(encoder, *scores, complete=False)


def test_gains_are_measured_from_where_a_trial_stands():
    assert gain(SLOW, 0.5) == pytest.approx(0.6)
    assert gain(SLOW, 1.0) == 0
    assert gain(FAST, 0.05) == pytest.approx(0.73)  # before its first point it had nothing


def test_a_slow_starter_is_not_compared_with_a_fast_backbone():
    assert judge(running("slow", 0.0, 0.0, 0.0, 0.05, 0.3), [FAST, FAST, SLOW, SLOW]) is None


def test_the_first_of_a_backbone_is_never_stopped():
    assert judge(running("new", *[0.0] * 9), [FAST, SLOW]) is None


def test_only_trials_with_a_rate_as_high_tell_what_can_still_come():
    # Real curves of lite2 on shapes: the best one is behind at half time.
    low = curve("lite2", 0.1158, 0.3739, 0.5278, 0.6814, 0.6640, 0.6868, of=6, lr=3e-3)
    high = Curve("lite2", curve("lite2", 0.1107, 0.2801, of=6).points, lr=1e-2)
    assert judge(high, [low, low, low]) is None
    assert judge(Curve("lite2", high.points, lr=3e-3), [low, low, low])


def test_running_trials_are_no_history():
    assert judge(running("new", *[0.0] * 5), [FAST, running("new", 0.9, 0.9, 0.9, 0.9, 0.9)]) is None


def test_a_hopeless_trial_is_stopped_with_its_reason_and_an_estimate():
    verdict = judge(running("fast", 0.1, 0.2, 0.3, 0.35), [FAST, FAST])
    assert verdict.reason == (
        "0.3500 after 40 %; with the largest gain of similar trials it would reach 0.4050, below the 0.7300 of fast"
    )
    assert verdict.estimate == pytest.approx(0.35 + 0.05)


def test_with_one_trial_of_its_own_all_backbones_gains_are_believed_possible():
    trial = running("fast", 0.1, 0.2, 0.3, 0.35)
    assert judge(trial, [FAST, SLOW]) is None  # SLOW rose by 0.8 from here
    assert judge(trial, [FAST, FAST, SLOW])


def test_nothing_is_judged_before_the_first_rung_or_at_the_end():
    bad = running("fast", 0.0, 0.0)
    assert judge(bad, [FAST, FAST]) is None
    assert judge(running("fast", 0.0, 0.0, 0.0), [FAST, FAST])
    assert judge(running("fast", *[0.0] * 10), [FAST, FAST]) is None
    assert judge(Curve("fast", []), [FAST, FAST]) is None
    assert judge(curve("fast", 0.0, of=3, complete=False), [FAST, FAST]) is None  # one epoch, though a third of all


def test_gains_are_believed_of_the_trials_that_stood_closest():
    low = curve("fast", 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.72)
    trial = running("fast", 0.0, 0.1, 0.2, 0.31)
    assert judge(trial, [FAST, FAST, FAST, low]) is None  # one like it rose by 0.42
    assert judge(trial, [FAST, FAST, FAST, FAST])


def test_a_backbone_that_is_not_among_the_best_must_reach_them():
    others = [curve(name, *[0.9] * 10) for name in ("a", "b", "c")]
    own = [curve("poor", 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)] * 2
    trial = running("poor", 0.3, 0.4, 0.5, 0.52)  # better than its own best, and to no avail
    assert "below the 0.9000 of the best backbones" in judge(trial, [*others, *own]).reason
    assert judge(trial, [*others, *own], top=4) is None
    assert judge(trial, [*others[:2], *own]) is None


def test_a_trial_within_the_noise_of_the_best_goes_on():
    here = FAST.points[4].best
    assert judge(running("fast", 0, 0, 0, 0, here - 0.004), [FAST, FAST]) is None
    assert judge(running("fast", 0, 0, 0, 0, here - 0.006), [FAST, FAST])
