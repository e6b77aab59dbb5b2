"""What a run is called."""

from dataclasses import replace

import pytest
import records

from segsweep.config.schema import EncoderConfig, OptimConfig, RunConfig
from segsweep.tracking import names as summary


def start(lr=3e-4):
    return records.start(RunConfig(encoder=EncoderConfig("convnext_atto"), optim=OptimConfig(lr=lr)))


@pytest.mark.parametrize(("lr", "said"), [(3e-4, "3e-4"), (1.3e-3, "1.3e-3"), (0.1, "1e-1"), (2.0, "2e0")])
def test_names_begin_with_number_encoder_and_rate(lr, said):
    name = summary.name(start(lr=lr), 7, {})
    assert name == f"007-convnext_atto-lr{said}"
    assert summary.number(name) == 7


def test_what_else_was_varied_is_in_the_name():
    varied = {"encoder": "convnext_atto", "optim.lr": "0.0003", "augmentation": "strong", "data.fold": "2"}
    assert summary.name(start(), 12, varied) == "012-convnext_atto-lr3e-4-strong-fold2"
    assert len(summary.name(start(), 12, {f"loss.{i}": "x" * 20 for i in range(20)})) == summary.LONGEST


def test_what_was_typed_is_in_a_single_runs_name():
    typed = "data=folder data.root=/x encoder=convnext_atto optim.lr=3e-4 loss=focal train.epochs=40 tracking.uri=x"
    begun = replace(start(), command=f"{typed} hydra.run.dir=y train.device=cpu +data.classes.car=8")
    assert summary.name(begun, 3, {}) == "003-convnext_atto-lr3e-4-focal-epochs40-car8"


def test_where_things_lie_is_in_no_name():
    words = "data.annotations=/home/x/a.json train.workers=3 data.cache=none encoder.weights_file=w hydra.run.dir=y"
    begun = replace(start(), command=f"{words} train.epochs=3")
    assert summary.name(begun, 1, {}) == "001-convnext_atto-lr3e-4-epochs3"


def test_other_names_have_no_number():
    assert summary.number("resnet18-lr0.1") == 0
