"""What a training is built from: the words that say how a machine runs it reach what runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

import train
from segsweep.compose import configuration
from segsweep.config.schema import LossConfig
from segsweep.engine import losses
from segsweep.errors import ConfigError
from segsweep.training.build import _losses, build

WORDS = [*TINY, "data=shapes", "data.count=16", "data.size=64", "train.batch_size=2", "train.epochs=1"]


@pytest.mark.parametrize("asked", ["false", "true"])
def test_a_side_stream_is_used_where_it_is_asked_for_on_a_gpu(asked):
    training = build(configuration([*WORDS, f"train.side_stream={asked}"]))
    assert not training.train_batches().side_stream  # this is a CPU
    on_gpu = replace(training, state=SimpleNamespace(device=torch.device("cuda"), model=training.model))
    assert on_gpu.train_batches().side_stream == (asked == "true")


def test_an_encoder_that_cannot_save_memory_is_told(caplog):
    """timm refuses the switch for this one: only the decoder's activations are computed again."""
    build(configuration([*WORDS, "encoder=hrnet_w18_small", "train.checkpointing=true"]))
    assert "only the decoder saves memory" in caplog.text


def test_weights_fade_in_training_and_validation_has_none():
    facts = SimpleNamespace(classes=("a", "b", "c"), pixels=[900, 90, 10])
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    plain = losses.build({"ce": 1.0})(logits, target)
    scored, trained = _losses(LossConfig(ce=1, class_weights="fading"), facts, torch.device("cpu"))
    assert scored(logits, target) == plain
    assert isinstance(trained, losses.FadingLoss)
    assert trained(logits, target) != plain
    for constant in (None, "auto"):
        scored, trained = _losses(LossConfig(ce=1, class_weights=constant), facts, torch.device("cpu"))
        assert scored is trained


def test_weights_of_classes_are_in_the_order_that_the_classes_have(pairs):
    words = [*TINY, "data=folder", f"data.root={pairs(8)}", "data.size=32", "train.batch_size=2", "train.epochs=1"]
    named = ["data.classes={cell:1,background:0}", "loss.class_weights=[5,1]"]
    with pytest.raises(ConfigError, match="the order of the classes is background, cell"):
        build(configuration([*words, *named]))
    build(configuration([*words, "data.classes={background:0,cell:1}", "loss.class_weights=[1,5]"]))


def test_a_run_whose_images_would_change_sides_is_not_resumed(pairs, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*TINY, "data=folder", f"data.root={pairs(8)}", "data.size=[32,32]", "train.batch_size=2", "tracking=none"]
    assert train.main([*words, "train.epochs=1", f"hydra.run.dir={folder}"]) == 0
    split = folder / "split.csv"
    text = split.read_text()
    split.write_text(text.replace(",val,", ",T,").replace(",train,", ",val,").replace(",T,", ",train,"))
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 3
    assert "would lie in another part of the split" in capsys.readouterr().err
    split.write_text(text)
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 0
