"""Which validation image a kept matrix is of."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import records

from segsweep import metrics
from segsweep.config.schema import RunConfig, TrackingConfig
from segsweep.data.source import Sample
from segsweep.engine.scorer import Evaluation
from segsweep.runs.records import Run
from segsweep.training.recorder import Recorder

NAMES = {4: "a/1", 7: "b/1", 2: "b/1", 9: "c/1"}  # samples of the val split, in its order: their keys


@pytest.fixture
def recorder(tmp_path):
    """A recorder whose validation split has two images of one key."""
    samples = [Sample(NAMES.get(i, ""), Path(f"{i}.png"), Path(f"{i}.png")) for i in range(10)]
    data = SimpleNamespace(samples=samples, parts={"val": list(NAMES)})
    training = SimpleNamespace(data=data, asked=RunConfig(tracking=TrackingConfig(name="none")))
    recorder = Recorder(training, tmp_path, Run([records.start(), records.epoch(1, 0.5)]))
    yield recorder
    recorder.close()


def matrix(hits, wrong):
    return np.array([[50, wrong], [0, hits]])


@pytest.mark.parametrize("lowest", NAMES)
def test_the_lowest_image_is_found_though_keys_are_equal_and_batches_go_by_size(recorder, lowest):
    scored = {index: matrix(9, 41 if index == lowest else 1) for index in (2, 9, 7, 4)}
    recorder._save_validation(1, Evaluation({}, {}, scored))
    assert recorder._lowest() == {"lowest/iou": pytest.approx(9 / 50), "lowest/image": f"{lowest}.png"}
    kept = metrics.read_validation(recorder.folder)
    assert kept.keys == tuple(NAMES.values())
    assert np.array_equal(kept.matrices, [scored[index] for index in NAMES])


def test_each_shown_image_has_a_folder_of_its_own_that_a_file_system_takes(recorder):
    keys = ["a/b_c", "a_b/c", "val/7", "x" * 120 + "/" + "y" * 120, "長" * 90]
    samples = [Sample(key, Path("i.png"), Path("m.png")) for key in keys]
    recorder.training = SimpleNamespace(data=SimpleNamespace(samples=samples), shown=range(len(keys)))
    named = [recorder._named[key] for key in keys]
    assert len(set(named)) == len(keys)
    assert named[2] == "val_7"
    for name in named:
        (recorder.folder / name).mkdir()
        assert "/" not in name
