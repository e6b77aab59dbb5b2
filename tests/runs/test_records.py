"""Records: what is written is what is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from records import decided, end, epoch, start

from segsweep.config.schema import DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig, keys
from segsweep.config.settings import Normalization
from segsweep.errors import ConfigError
from segsweep.paths import nan_to_none
from segsweep.runs import journal
from segsweep.runs.records import VERSION, End, EpochRecord, ExecutionRecord, Run, decode, encode

HERE = Path("a") / journal.NAME
ASKED = RunConfig(
    data=DataConfig(root="there", size=[64, 96], classes={"road": [3, 4], "tree": [[0, 128, 0]]}, window=[0, 4095]),
    loss=LossConfig(ce=1.0, class_weights=[1, 2.5, 3]),
    optim=OptimConfig(lr="auto"),
    train=TrainConfig(batch_size="auto", compile="true"),
)
CLIPPED = Normalization((1.0, 2.0), (3.0, 4.0), ((0.0, 0.0), (255.0, 200.0)))
FULL = start(
    ASKED,
    settings=replace(decided(ASKED), normalization=CLIPPED),
    execution=ExecutionRecord("cuda:0 (one)", 4, "bf16", False, True, 2, {"fp32 contiguous": 12.5}, 1e12),
    commit="0123",
    dirty=True,
    resumed_after=3,
)


def through_json(record):
    return decode(json.loads(json.dumps(nan_to_none(encode(record)), allow_nan=False)), HERE)


@pytest.mark.parametrize(
    "record",
    [
        start(),
        FULL,
        epoch(3, 0.25, lr=1e-3),
        epoch(1, None),
        end(**{"best/epoch": 2, "test/iou": 0.5}),
        End(2.0, "failed", "no memory", "out_of_memory"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_what_is_written_is_what_is_read(record):
    assert through_json(record) == record


def test_a_number_is_read_as_the_type_that_it_has():
    found = through_json(epoch(2, 0.5, epochs=3))
    assert [type(found.metrics[name]) for name in ("val/iou", "epochs")] == [float, int]


def test_metrics_that_are_not_finite_are_none():
    found = through_json(EpochRecord(1, 1.0, {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 1}))
    assert found.metrics == {"a": None, "b": None, "c": None, "d": 1}


@pytest.mark.parametrize("version", [VERSION + 1, VERSION - 1, "3", None])
def test_another_format_is_refused(version):
    with pytest.raises(ConfigError, match=r"a/metrics\.jsonl: .*reads format 3\. Use the version that wrote it"):
        decode(encode(start()) | {"version": version}, HERE)


def test_unknown_fields_are_left_out():
    plain = json.loads(json.dumps(encode(start())))
    plain["cluster"] = "there"
    plain["settings"]["optim"]["lookahead"] = 3
    plain["asked"]["scheduler"] = {"name": "slurm"}
    plain["execution"]["nodes"] = 8
    assert decode(plain, HERE) == start()


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("execution", "micro_batch", "4", "start.execution.micro_batch: must be a whole number, not '4'"),
        ("execution", "precision", "fp8", "start.execution.precision: must be fp32 or bf16 or fp16"),
        ("execution", "compiled", 1, "start.execution.compiled: must be true or false, not '1'"),
        ("settings", "optim", 3, "start.settings.optim: must be an object"),
        ("images", "train", None, "start.images.train: must be a whole number, not 'None'"),
    ],
)
def test_a_field_of_another_type_is_named(section, name, value, said):
    plain = json.loads(json.dumps(encode(start())))
    plain[section][name] = value
    with pytest.raises(ConfigError) as refusal:
        decode(plain, HERE)
    assert str(refusal.value).startswith(f"{HERE}: ")
    assert said in str(refusal.value)


def test_a_value_that_no_run_can_have_is_refused():
    plain = json.loads(json.dumps(encode(start())))
    plain["asked"]["train"]["epochs"] = 0
    with pytest.raises(ConfigError, match=r"a/metrics\.jsonl: .*train\.epochs=0: must be 1 or more"):
        decode(plain, HERE)


def test_every_key_has_the_value_that_was_decided_or_asked_for():
    asked = replace(ASKED, train=replace(ASKED.train, device="cpu", batch_size=16), data=DataConfig(root="there"))
    found = start(asked).keys()
    assert found.keys() >= {key.name for key in keys() if not key.name.startswith("data.classes")}
    assert (found["data.root"], found["train.device"], found["tracking.name"]) == ("there", "cpu", "mlflow")
    assert (asked.optim.lr, found["optim.lr"], found["data.passes"]) == ("auto", 1e-3, 1)
    assert not [name for name in found if name.startswith("normalization")]


def test_the_best_epoch_is_the_first_of_equals_and_has_a_score():
    run = Run([start(), epoch(1, None), epoch(2, 0.5), epoch(3, None), epoch(4, 0.5), epoch(5, 0.25)])
    assert run.best == run.epochs[1]
    assert Run([start(), epoch(1, None)]).best is None
    assert Run([epoch(1, 0.0)]).best is not None


def test_the_first_epoch_warms_up():
    run = Run([epoch(1, None, speed=1.0), epoch(2, None, speed=5.0), epoch(3, None), epoch(4, None, speed=7.0)])
    assert run.steady_median("speed") == 6.0
    assert Run([epoch(1, None, speed=1.0)]).steady_median("speed") == 1.0
    assert run.steady_median("none") is None
