"""What a training takes, from a few of its steps: one training at a time, errors with advice, answers kept."""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import asdict

import pytest
import torch
from conftest import TINY

from segsweep.compose import configuration
from segsweep.errors import OutOfMemoryError
from segsweep.training import estimate

ENCODERS = ("test_resnet", "test_vit")


@pytest.fixture
def asked():
    return asdict(
        configuration([*TINY, "data=shapes", "data.count=16", "data.size=64", "train.batch_size=2", "train.epochs=1"])
    )


def test_a_training_is_gone_before_the_next_one_is_built(asked, monkeypatch):
    built, build, there = [], estimate.build, []

    def counting(config):
        gc.collect()
        there.append(sum(model() is not None for model in built))
        training = build(config)
        built.append(weakref.ref(training.model))
        return training

    monkeypatch.setattr(estimate, "build", counting)
    assert list(estimate.estimates(asked, ENCODERS)) == list(ENCODERS)
    assert there == [0, 0]


@pytest.mark.parametrize("look", [estimate.estimates, estimate.needs])
def test_a_step_that_finds_too_little_memory_says_what_to_type(asked, monkeypatch, look):
    def full(training):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(estimate, "_estimate", full)
    monkeypatch.setattr(estimate, "_need", full)
    with pytest.raises(OutOfMemoryError, match=r"Leave test_resnet out, or try a smaller train\.batch_size"):
        look(asked, ENCODERS)


def test_what_a_training_needs_is_measured_once(asked, monkeypatch):
    measured = []

    def need(training):
        measured.append(training.asked.encoder.name)
        return estimate.GpuNeed(1.0, 2.0, 0.5)

    monkeypatch.setattr(estimate, "_need", need)
    first = estimate.needs(asked, ENCODERS)
    assert estimate.needs(asked, ENCODERS[::-1]) == first
    assert measured == list(ENCODERS)
    estimate.needs(asked | {"train": asked["train"] | {"batch_size": 3}}, ENCODERS[:1])
    assert measured == [*ENCODERS, "test_resnet"]


def test_where_the_profiler_does_not_work_the_gpu_counts_as_busy(monkeypatch):
    def broken(**_):
        raise RuntimeError("CUPTI is in use")

    monkeypatch.setattr(torch.profiler, "profile", broken)
    assert estimate._busy(None, 100.0) == 1.0


def test_too_little_memory_while_the_profiler_looks_is_no_fault_of_the_profiler(monkeypatch):
    def full(training):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.profiler, "profile", lambda **_: nullcontext())
    monkeypatch.setattr(estimate, "_steps", full)
    with pytest.raises(torch.OutOfMemoryError):
        estimate._busy(None, 100.0)
