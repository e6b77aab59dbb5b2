"""What a training is built from: the words that say how a machine runs it reach what runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

from segsweep.compose import configuration
from segsweep.training.build import build

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
