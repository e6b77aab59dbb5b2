"""Which model is meant."""

import json

import pytest
import records

from segsweep.config.schema import DataConfig, RunConfig
from segsweep.errors import ConfigError
from segsweep.inference.find import find
from segsweep.tracking.client import connected, tracking_uri


@pytest.fixture
def run(outputs):
    """`run(name, *ious)` leaves a run of those epochs in the outputs folder; its folder."""

    def make(name, *ious, digest="0123", classes=("background", "cell"), **data):
        asked = RunConfig(data=DataConfig(name="shapes", **data))
        begin = records.start(asked, data_digest=digest, classes=list(classes))
        folder = records.write(outputs / name, begin, *(records.epoch(n, iou) for n, iou in enumerate(ious, 1)))
        (folder / "best.safetensors").write_bytes(b"weights")
        return folder

    return make


def test_a_folder_and_its_file_mean_the_run(run):
    folder = run("one", 0.5)
    for given in (folder, folder / "best.safetensors"):
        found = find(str(given))
        assert found.model == folder / "best.safetensors"
        assert found.run == folder


def test_a_file_elsewhere_has_no_run(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    assert find(str(path)).model == path
    with pytest.raises(ConfigError, match="is not in a run folder"):
        _ = find(str(path)).run


def test_best_is_the_best_epoch_of_any_run_that_was_validated(run, outputs):
    run("low", 0.3, 0.4)
    high = run("high", 0.9, 0.2)
    run("by-heart", 0.99, overfit=8)
    run("diverged", None)
    found = find("best")
    assert found.folder == high
    assert "best of 2 runs" in found.why
    assert find(str(outputs)).folder == find(f"best:{outputs}").folder == high


def test_a_damaged_run_is_left_out_of_the_best(run, caplog):
    good, bad = run("good", 0.3), run("bad", 0.9)
    (bad / "metrics.jsonl").write_text("noise\n")
    assert find("best").folder == good
    (warning,) = caplog.messages
    assert f"{bad / 'metrics.jsonl'}: damaged" in warning


@pytest.mark.parametrize("other", [{"digest": "4567"}, {"classes": ["background", "gland"]}], ids=["data", "classes"])
def test_the_best_of_several_data_sets_or_sets_of_classes_says_so(run, other):
    run("one", 0.3)
    run("other", 0.4)
    assert "data sets" not in find("best").why
    run("easier", 0.9, **other)
    assert "on 2 data sets or sets of classes, so their scores cannot be compared" in find("best").why


def test_a_sweep_that_is_not_finished_says_so(run, outputs):
    run("sweep/0", 0.3)
    records.write_about(outputs / "sweep", state="stopped")
    assert "a sweep that is not finished" in find(str(outputs / "sweep")).why
    records.write_about(outputs / "sweep")
    assert "not finished" not in find(str(outputs / "sweep")).why
    trial = {"name": "0", "encoder": "a", "typed": ["encoder=a"], "argv": [], "state": "complete"}
    (outputs / "sweep" / "0" / "trial.json").write_text(json.dumps(trial))
    for state, said in (
        ("stopped", "the best so far of a sweep that is not finished"),
        ("complete", "the sweep's winner"),
    ):
        records.write_about(outputs / "sweep", state=state, finalists=["0"])
        assert find(str(outputs / "sweep")).why.startswith(said)


def test_a_sweep_means_its_winner_and_not_the_luckiest_trial(run, outputs):
    run("sweep/0", 0.95)
    run("sweep/finalists/0-1", 0.7)
    run("sweep/finalists/0-2", 0.8)
    for name in ("0", "finalists/0-1", "finalists/0-2"):
        about = {"name": name, "encoder": "a", "typed": ["encoder=a"], "argv": [], "state": "complete"}
        (outputs / "sweep" / name / "trial.json").write_text(json.dumps(about))
    records.write_about(outputs / "sweep", finalists=["0"])
    assert find(str(outputs / "sweep")).folder == outputs / "sweep" / "finalists" / "0-2"


def test_an_id_and_an_experiment_are_asked_of_mlflow(run, database):
    low, high = run("low", 0.1), run("high", 0.2)
    client = connected(tracking_uri())
    experiment = client.create_experiment("nuclei")
    ids = [
        client.create_run(experiment, tags={"segsweep.folder": str(folder)}).info.run_id
        for folder in (low, high, low / "moved")
    ]
    assert find(ids[0]).folder == low
    assert find("best:nuclei").folder == high
    with pytest.raises(ConfigError, match="not on this machine"):
        find(ids[2])
    with pytest.raises(ConfigError, match="no run of this id"):
        find("0" * 32)
    with pytest.raises(ConfigError, match="Closest: nuclei"):
        find("best:nuclie")


def test_what_cannot_be_found_says_what_can(outputs, tmp_path):
    with pytest.raises(ConfigError, match=r"no such run\. Give a run folder"):
        find("nowhere")
    with pytest.raises(ConfigError, match="no trained model there"):
        find("best")
    with pytest.raises(ConfigError, match="no trained model there"):
        find(str(tmp_path))


def test_a_run_without_a_scored_epoch_is_refused(run):
    folder = run("one", 0.5)
    (folder / "best.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no best\.safetensors"):
        find(str(folder))
