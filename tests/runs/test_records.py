"""Records: what is written is what is read, and what an older version wrote says the same."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from records import decided, end, epoch, start, undecided

from segsweep.config.renamed import renewed_sections
from segsweep.config.schema import DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig, keys
from segsweep.config.settings import Normalization
from segsweep.errors import ConfigError
from segsweep.paths import nan_to_none
from segsweep.runs import journal
from segsweep.runs.records import VERSION, End, EpochRecord, ExecutionRecord, Run, decode, encode, upgrade

HERE = Path("a") / journal.NAME
FIXTURES = Path(__file__).parents[1] / "goldens" / "fixtures"
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


@pytest.mark.parametrize("version", [VERSION + 1, "2", None, 2.5])
def test_a_later_version_is_refused(version):
    with pytest.raises(ConfigError, match=r"a/metrics\.jsonl: .*reads formats up to 3\. Update segsweep"):
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


@pytest.mark.parametrize("folder", ["plain", "stopped", *(f"sweep/{i}" for i in range(4)), "sweep/finalists/1-1"])
def test_a_journal_of_the_first_version_says_what_was_decided(folder):
    run = journal.started(FIXTURES / folder)
    lines = [json.loads(line) for line in (FIXTURES / folder / journal.NAME).read_text().splitlines()]
    old, new = lines[0], run.start
    assert old["version"] == 1
    assert (new.run, new.classes, new.parameters) == (old["run"], old["classes"], old["parameters"])
    assert new.images == {part: old[f"data/{part}"] for part in ("train", "val", "test")}
    assert new.input_size == tuple(old["input_size"])
    assert new.execution == ExecutionRecord(
        old["device"], old["threads"], "fp32", old["channels_last"], old["compiled"], old["micro_batch"]
    )
    settings = new.settings
    # The record never said these two; the checkpoint has the statistics and the weights.
    assert set(undecided(settings)) <= {"data.normalize", "encoder.pretrained"}
    old["config"] = renewed_sections(old["config"])
    assert settings.train.batch_size == old["micro_batch"] * old["config"]["train"]["grad_accum"]
    assert settings.train.epochs == old["epochs"]
    assert settings.decoder.width == old["decoder_width"]
    for section, values in old["config"].items():
        if isinstance(values, dict):
            assert {name: asdict(getattr(new.asked, section))[name] for name in values} == values
    for name, value in new.keys().items():
        section, _, key = name.partition(".")
        recorded = old["config"][section].get(key, "auto") if section != "resume" else None
        if recorded not in ("auto", None) and not name.startswith("data.classes."):
            assert value == recorded, name
    assert [epoch.metrics["val/iou"] for epoch in run.epochs] == [x["val/iou"] for x in lines if x["kind"] == "epoch"]
    if lines[-1]["kind"] == "end":
        assert run.end.status == lines[-1]["status"]
        assert run.end.error is None


def test_the_first_version_said_that_the_memory_was_too_small_in_words_alone():
    old = {"kind": "end", "time": 1.0, "status": "failed", "reason": "out of memory with train.batch_size=64. Try 32."}
    assert decode(old, HERE).error == "out_of_memory"
    assert decode(old | {"reason": "NaN in the loss."}, HERE).error is None
    assert decode(old | {"error": "crash"}, HERE).error == "crash"


def first(**changes):
    """The first record of a run of the first version, with `changes` to it; `section.key` are of its configuration."""
    old = json.loads((FIXTURES / "plain" / journal.NAME).read_text().splitlines()[0])
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            old["config"][section][key] = value
        else:
            old[name] = value
    return old


def test_what_was_auto_in_the_first_version_is_what_its_record_says():
    old = first(
        train__batch_size="auto",
        micro_batch=8,
        decoder__width="auto",
        decoder_width=[32, 16, 8, 8, 8],
        optim__lr="auto",
        optim__encoder_lr_scale="auto",
        train__epochs=None,
        epochs=10,
        precision_used="bfloat16",
    )
    found = decode(old, HERE)
    assert (found.settings.train.batch_size, found.settings.decoder.width) == (8, [32, 16, 8, 8, 8])
    assert (found.settings.optim.lr, found.settings.optim.encoder_lr_scale) == (3e-3, 1.0)  # random weights
    assert (found.settings.train.epochs, found.execution.precision) == (10, "bf16")
    assert (found.asked.train.batch_size, found.asked.decoder.width) == ("auto", "auto")
    assert (found.asked.optim.lr, found.asked.train.epochs) == ("auto", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": {"data": 3}}, "start.config.data: must be an object, not '3'"),
        ({"config": {"optim": None}}, "start.config.optim: must be an object"),
        ({"precision_used": ["float32"]}, ""),
        ({"input_size": 32}, ""),
        ({"decoder_width": {}}, "decoder.width"),
    ],
)
def test_a_damaged_record_of_the_first_version_is_one_line(changes, said):
    with pytest.raises(ConfigError) as refusal:
        decode(first(**changes), HERE)
    assert str(refusal.value).startswith(f"{HERE}: damaged")
    assert said in str(refusal.value)


def test_a_run_by_its_time_alone_has_no_number_of_epochs():
    found = decode(first(train__epochs=None, train__time_budget=60.0, epochs=None), HERE)
    assert (found.settings.train.epochs, found.settings.train.time_budget) == (None, 60.0)


@pytest.mark.parametrize(("overfit", "passes"), [(None, 1), (3, 10)])
def test_images_were_repeated_in_overfit_alone_before_there_was_the_key(overfit, passes):
    old = first(data__overfit=overfit)
    del old["config"]["data"]["repeats"]
    found = decode(old, HERE)
    assert found.settings.data.passes == found.asked.data.passes == passes


def test_keys_that_are_gone_are_left_out():
    assert decode(first(train__bias="none", gone={"key": 1}), HERE) == decode(first(), HERE)


def test_the_present_form_is_not_touched():
    plain = encode(FULL)
    assert upgrade(plain) == plain
