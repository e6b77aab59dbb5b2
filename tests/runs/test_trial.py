"""What a sweep keeps of a trial."""

import json
from dataclasses import replace

import pytest
from records import epoch, start, write

from segsweep.errors import ConfigError
from segsweep.runs.trial import NAME, Trial, load, load_all
from segsweep.sweeping.finalists import best_of_each


def test_a_trial_is_of_its_folder_whatever_it_says(tmp_path):
    write(tmp_path / "sweep" / "0", start(), epoch(1, 0.5))
    write(tmp_path / "victim", start(), epoch(1, 0.9))
    Trial("0", "resnet18", [], []).save(tmp_path / "sweep")
    path = tmp_path / "sweep" / "0" / NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "../victim"}))
    found = load(tmp_path / "sweep", "0")
    assert (found.name, found.iou) == ("0", 0.5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": NaN}', "[" * 100_000, '{"state": {}}'], ids=lambda t: t[:9])
def test_a_damaged_one_is_one_line_that_names_the_file(tmp_path, text):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / NAME).write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, "0")
    assert str(refusal.value).startswith(f"{tmp_path / '0' / NAME}: damaged: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("encoder", "source", "weights"),
    [
        ("resnet18", "hub", "resnet18.a1_in1k"),
        ("resnet18.tv_in1k", "cache", "resnet18.tv_in1k"),
        ("resnet18.tv_in1k", "file", "resnet18.tv_in1k"),
        ("resnet18", "file", "resnet18 (file)"),
        ("resnet18.tv_in1k", "random", "resnet18 (random)"),
    ],
)
def test_trials_are_compared_by_the_weights_that_they_begin_with(tmp_path, encoder, source, weights):
    write(tmp_path / "0", replace(start(), weights_source=source), epoch(1, 0.5))
    Trial("0", encoder, [], []).save(tmp_path)
    found = load(tmp_path, "0")
    assert (found.weights, found.curve.weights) == (weights, weights)


def test_each_file_of_weights_that_is_varied_is_a_backbone_of_its_own(tmp_path):
    for number, (file, iou) in enumerate((("a.pt", 0.5), ("b.pt", 0.6), ("a.pt", 0.7), ("null", 0.4))):
        source = "hub" if file == "null" else "file"
        write(tmp_path / str(number), replace(start(), weights_source=source), epoch(1, iou))
        Trial(str(number), "resnet18", [f"encoder.weights_file={file}"], [], state="complete").save(tmp_path)
    best = best_of_each(load_all(tmp_path), 9)
    assert [trial.name for trial in best] == ["2", "1", "3"]
    assert [trial.weights for trial in best] == ["resnet18 (a.pt)", "resnet18 (b.pt)", "resnet18.a1_in1k"]


def test_a_complete_trial_whose_journal_was_lost_is_no_complete_one(tmp_path):
    write(tmp_path / "0", start(), epoch(1, 0.5))
    Trial("0", "resnet18", [], [], state="complete").save(tmp_path)
    assert load(tmp_path, "0").state == "complete"
    (tmp_path / "0" / "metrics.jsonl").write_bytes(b"")
    assert (load(tmp_path, "0").state, load(tmp_path, "0").reason) == ("failed", "its journal has lost its scores")
