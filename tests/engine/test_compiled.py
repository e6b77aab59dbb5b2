"""What torch.compile makes of a step: one graph, for all epochs."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from segsweep.compose import configuration
from segsweep.config.schema import OptimConfig, TrainConfig
from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches
from segsweep.data.geometry import Canvas
from segsweep.engine import losses
from segsweep.engine.execution import Execution
from segsweep.engine.scorer import Scorer
from segsweep.engine.step import TrainStep
from segsweep.nn import UNet
from segsweep.training import optim
from segsweep.training.build import load
from segsweep.training.loop import fit
from segsweep.training.state import TrainState

CPU = torch.device("cpu")
PLAINLY = Execution(torch.bfloat16, doubling=False)
EXECUTION = replace(PLAINLY, compile=True)


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile without its slow half: graphs are captured, refused where they break, and run as they are."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    yield counters
    torch._dynamo.reset()


def trained(name, freeze_epochs=0, epochs=3, execution=EXECUTION):
    """Three epochs of three steps; the last batch is filled up."""
    config = configuration(["data=shapes", "data.count=18", "data.size=[64,64]", "augmentation=light"])
    data = load(config.data)
    pixels, canvas = Pixels(data.store, data.labels, CPU), Canvas((64, 64), "pad")
    torch.manual_seed(0)
    model, loss = UNet(name), losses.build({"ce": 1.0, "dice": 1.0, "lovasz": 1.0}, [1.0, 2.0])
    optimizer = optim.build(OptimConfig(lr=1e-3, encoder_lr_scale=1.0), model)
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    batches = TrainBatches(pixels, data.parts["train"][:10], canvas, Sampling(4), config.augmentation)
    val = EvalBatches(pixels, data.parts["val"], canvas, 4)
    found = fit(
        state,
        TrainStep(execution, loss, grad_clip=1.0),
        batches,
        lambda scored: Scorer(execution).evaluate(scored, val, loss, data.labels.names),
        TrainConfig(epochs=epochs, batch_size=4, grad_accum=1),
        OptimConfig(freeze_epochs=freeze_epochs),
    )
    return [epoch.metrics["train/loss"] for epoch in found], model


@pytest.mark.parametrize(
    ("name", "freeze_epochs"), (("test_resnet", 1), ("test_efficientnet", 0), ("test_convnext", 0), ("test_vit", 0))
)
def test_a_step_is_one_graph_in_every_epoch_and_one_more_where_the_encoder_is_frozen(compiler, name, freeze_epochs):
    found, _ = trained(name, freeze_epochs)
    assert not compiler["graph_break"]
    assert compiler["stats"]["unique_graphs"] == 1 + freeze_epochs
    if name == "test_resnet":  # that it was tried first has left nothing
        plain, _ = trained(name, freeze_epochs, execution=PLAINLY)
        assert found == pytest.approx(plain, rel=1e-3), "up to the rounding of sums in another order"


def test_a_compiler_that_fails_is_told_of_once_and_done_without(monkeypatch, capsys):
    def broken(function, **how):
        def call(*given):
            raise RuntimeError("no C++ compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    losses_found, model = trained("test_resnet", epochs=1)
    said = [line for line in capsys.readouterr().err.splitlines() if "compile" in line]
    assert said == ["note: torch.compile failed, so this training runs without it: no C++ compiler."]
    expected, plain = trained("test_resnet", epochs=1, execution=PLAINLY)
    assert losses_found == expected
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))
