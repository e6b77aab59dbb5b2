"""What is typed beside a record."""

import pytest

from segsweep.compose import changed, with_data
from segsweep.config.schema import DataConfig, OptimConfig, RunConfig, TrainConfig
from segsweep.errors import ConfigError

ASKED = RunConfig(
    data=DataConfig(name="folder", root="there", size=[64, 96], folds=5, fold=1, classes=["ground", "road"]),
    train=TrainConfig(workers=2, seed=7),
)


def test_nothing_typed_changes_nothing():
    assert with_data(ASKED, []) == ASKED


def test_typed_keys_take_the_place_of_the_records():
    found = with_data(ASKED, ["data.root=here", "data.fold=4", "train.workers=1"])
    assert (found.data.root, found.data.fold, found.train.workers) == ("here", 4, 1)
    assert (found.data.name, found.data.folds, found.data.size) == ("folder", 5, [64, 96])
    assert (found.data.classes, found.train.seed) == (["ground", "road"], 7)


def test_another_data_set_brings_its_own_section_whole():
    found = with_data(ASKED, ["data=folder", "data.root=here"])
    assert found.data == DataConfig(name="folder", root="here")
    assert found.train == ASKED.train


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("encoder=resnet18", "encoder=resnet18: must be a key of data"),
        ("train.seed=1", "must be a key of data"),
        ("tracking.uri=http://there", "must be a key of data"),
        ("hydra.run.dir=x", "must be a key of data"),
        ("+hydra.callbacks.x={_target_: os.system}", "must be a key of data"),
        ("folder", "must be a key of data"),
        ("data=foldr", "Try data=folder"),
        ("data.roots=x", "Closest: data.root"),
        ("data.fold=5", "in 0..4"),
        ("data.fold=[", "cannot be read"),
        ("data.fold=x", "data.fold"),
        ("~data.fold", "data.fold"),
    ],
)
def test_other_words_are_one_line(word, said):
    with pytest.raises(ConfigError) as refusal:
        with_data(ASKED, [word])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_auto_typed_again_changes_nothing_that_was_decided():
    """The first version recorded what auto became."""
    asked = RunConfig(optim=OptimConfig(lr=3e-3, encoder_lr_scale=1.0), train=TrainConfig(device="cpu"))
    assert changed(asked, ["optim.lr=auto", "optim.encoder_lr_scale=auto"]) == asked
    assert changed(asked, ["train.device=auto"]).train.device == "auto"


def test_nothing_of_a_record_is_resolved(monkeypatch):
    """What looks like Hydra's grammar or OmegaConf's in a record is text."""
    root = "${oc.env:HOME}/x','${outputs:}"
    asked = RunConfig(data=DataConfig(root=root))
    assert with_data(asked, ["data.seed=3"]).data.root == root


def test_words_are_laid_over_the_runs_values_not_over_the_defaults():
    """data.root belongs to no data=shapes, the default; 3 divides 12, and not the default's 16."""
    asked = RunConfig(
        data=DataConfig(name="folder", root="there"),
        optim=OptimConfig(name="sgd", lr=0.05),
        train=TrainConfig(batch_size=12, compile="true"),
    )
    words = ["data.root=/here", "train.accumulate=3", "train.compile=true", "optim.name=sgd", "train.batch_size=12"]
    found = changed(asked, words)
    assert (found.data.root, found.train.accumulate) == ("/here", 3)
    assert found.optim == asked.optim
    with pytest.raises(ConfigError, match=r"train\.accumulate=5: must be a divisor of train\.batch_size=12"):
        changed(asked, ["train.accumulate=5"])
