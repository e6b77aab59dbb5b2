"""Frozen features on real files: the same pixels for every encoder, and scores that can be told apart."""

import numpy as np
import pytest
import torch
from PIL import Image

from segsweep.compose import configuration
from segsweep.data.labels import VOID
from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.sweeping import compare
from segsweep.training import probe
from segsweep.training.build import build


@pytest.fixture
def bright(tmp_path):
    """Images whose foreground is what is bright: an encoder with random weights sees that."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(12):
        mask = np.kron(rng.random((4, 4)) > 0.5, np.ones((16, 16), bool))
        image = np.where(mask, 200, 60) + rng.normal(0, 10, (64, 64))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def asked(root, encoder="test_resnet"):
    words = ["data=folder", f"data.root={root}", "data.size=64", "train.device=cpu", "train.precision=fp32"]
    return configuration([*words, f"encoder={encoder}", "encoder.pretrained=false", "train.epochs=1"])


def test_what_is_easily_seen_scores_well_and_the_journal_is_a_runs(bright, tmp_path, capsys):
    probe.run(asked(bright), tmp_path / "run", ["encoder=test_resnet"])
    run = journal.read(tmp_path / "run")
    assert run.end.status == "complete"
    assert run.best.iou == run.end.metrics["val/iou"] > 0.8
    assert run.start.weights_source == "random"
    assert run.probed
    assert run.asked.tracking.name == "none"  # MLflow hears of trainings
    with pytest.raises(ConfigError, match="no run that can be read"):
        compare.runs([tmp_path])  # nor is it one to compare with
    assert len(compare.runs([tmp_path / "run"])) == 1  # unless it is named
    assert f"{run.best.iou:.4f} with a linear layer" in capsys.readouterr().out
    again = tmp_path / "again"
    probe.run(asked(bright), again, [])
    scores = [{k: v for k, v in one.best.metrics.items() if "perf" not in k} for one in (run, journal.read(again))]
    assert scores[0] == scores[1]


def test_every_encoder_is_asked_about_the_same_pixels_of_the_training_split(bright):
    def seen(encoder):
        training = build(asked(bright, encoder))
        drawn = []
        for batch in probe.crops(training):
            assert set(batch.indices) <= set(training.data.parts["train"])
            drawn += zip(batch.indices, *probe.pixels(batch.mask, 0, len(drawn)), strict=True)
        return drawn

    first, second = seen("test_resnet"), seen("test_vit")
    assert len(first) >= min(probe.CROPS, 9)
    for (index, where, classes), (other, elsewhere, others) in zip(first, second, strict=True):
        assert index == other
        assert torch.equal(where, elsewhere)
        assert torch.equal(classes, others)


def test_pixels_have_the_classes_of_the_mask_and_rare_ones_are_among_them():
    mask = torch.zeros(2, 40, 50, dtype=torch.long)
    mask[0, :3, :4], mask[0, 5:], mask[1] = 1, VOID, VOID
    where, classes = probe.pixels(mask, 0, 0)
    kept = classes[0] != VOID
    assert torch.equal(mask[0][tuple(where[0][kept].T)], classes[0][kept])
    assert int((classes[0] == 1).sum()) >= 12  # all of them, and those of the draw from anywhere
    assert (classes[1] == VOID).all()
