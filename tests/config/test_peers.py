"""The words of other tools: each of them means a key or a group that exists."""

import pytest

from segsweep.config import peers
from segsweep.config.schema import keys
from segsweep.paths import ROOT

KEYS = [key.name for key in keys()]


def test_every_target_exists():
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert set(peers.WORDS) <= {*KEYS, *groups, "hydra.run.dir"}


def test_no_word_means_two_things():
    words = [word for line in peers.WORDS.values() for word in line.split()]
    assert sorted(words) == sorted(peers.OURS)
    assert all(word == word.lower() and word not in KEYS for word in words)


@pytest.mark.parametrize(
    "line",
    [
        "data.size: imgsz img_size image_size",
        "data.images: img_dir image_dir",
        "data.masks: mask_dir masks_dir ann_dir",
        "data.classes: n_classes num_classes nc",
        "data.root: path data_root",
        "optim.lr: lr lr0 learning_rate model.lr",
        "optim.weight_decay: weight_decay wd",
        "encoder: model backbone arch encoder_name",
        "encoder.pretrained: pretrained encoder_weights",
        "train.batch_size: batch bs train_batch_size",
        "train.epochs: epochs num_epochs trainer.max_epochs",
        "train.workers: workers num_workers",
        "train.seed: seed",
        "train.device: device",
        "train.precision: amp",
        "train.patience: patience",
        "tracking.experiment: project",
        "hydra.run.dir: name",
    ],
)
def test_the_usual_words_are_there(line):
    key, _, words = line.partition(": ")
    assert {peers.meant(word, KEYS) for word in words.split()} == {key}


def test_a_word_of_nobody_means_nothing():
    assert peers.meant("data.qqq", KEYS) is None
