"""What torch.compile makes of a step: one graph, for all epochs."""

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from inspect import signature

import pytest
import torch
from torch._dynamo.utils import counters

from segsweep.compose import configuration
from segsweep.config.schema import OptimConfig, TrainConfig
from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches
from segsweep.data.geometry import Canvas
from segsweep.data.store import Store
from segsweep.engine import losses
from segsweep.engine.device import was_compiled
from segsweep.engine.execution import Execution
from segsweep.engine.scorer import Scorer
from segsweep.engine.step import TrainStep
from segsweep.nn import UNet
from segsweep.training import optim
from segsweep.training.build import load
from segsweep.training.loop import fit
from segsweep.training.state import TrainState
from segsweep.world import SINGLE

CPU = torch.device("cpu")
PLAINLY = Execution(torch.bfloat16, doubling=False)
EXECUTION = replace(PLAINLY, compile=True)


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """torch.compile without its slow half: graphs are captured, and run as they are. Breaks and second graphs fail."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    with torch._dynamo.config.patch(error_on_recompile="isolate_recompiles" in signature(torch.compile).parameters):
        yield counters
    torch._dynamo.reset()


def trained(name, freeze_epochs=0, epochs=3, execution=EXECUTION):
    """Three epochs of three steps; the last batch is filled up."""
    config = configuration(["data=shapes", "data.count=18", "data.size=[64,64]", "augmentation=light"])
    data = load(config.data)
    pixels, canvas = Pixels(data.store, data.labels, CPU), Canvas((64, 64), "pad")
    torch.manual_seed(0)
    terms = {"ce": 1.0, "dice": 1.0, "lovasz": 1.0}
    model, loss = UNet(name), losses.build(terms)
    optimizer = optim.build(OptimConfig(lr=1e-3, encoder_lr_scale=1.0), model)
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    batches = TrainBatches(pixels, data.parts["train"][:10], canvas, Sampling(4), config.augmentation)
    val = EvalBatches(pixels, data.parts["val"], canvas, 4)
    found = fit(
        state,
        TrainStep(execution, losses.FadingLoss(terms, [1.0, 8.0]), grad_clip=1.0, kind="a kind"),
        batches,
        lambda scored: Scorer(execution).evaluate(scored, val, loss, data.labels.names),
        TrainConfig(epochs=epochs, batch_size=4, grad_accum=1),
        OptimConfig(freeze_epochs=freeze_epochs),
    )
    return [epoch.metrics["train/loss"] for epoch in found], model


REAL = ("resnet34", "tf_efficientnet_lite0", "convnext_tiny", "vit_small_patch16_224")


@pytest.mark.parametrize(
    "name",
    (
        *("test_resnet", "test_efficientnet", "test_convnext", "test_vit"),
        *(pytest.param(name, marks=pytest.mark.services) for name in REAL),
    ),
)
def test_a_step_is_one_graph_in_every_epoch_and_one_more_where_the_encoder_is_frozen(compiler, name):
    found, _ = trained(name, freeze_epochs=1)
    assert not compiler["graph_break"]
    assert compiler["stats"]["unique_graphs"] == 2
    assert was_compiled("a kind")
    assert not was_compiled("another")
    if name == "test_resnet":  # that it was tried first has left nothing
        plain, _ = trained(name, freeze_epochs=1, execution=PLAINLY)
        assert found == pytest.approx(plain, rel=1e-3), "up to the rounding of sums in another order"


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A compiler that fails at the first call."""

    def compiled(function, **how):
        def call(*given):
            raise RuntimeError("no C++ compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_a_compiler_that_fails_is_told_of_once_and_done_without(broken, capsys):
    losses_found, model = trained("test_resnet", epochs=1)
    begins, *said = [line for line in capsys.readouterr().err.splitlines() if "compil" in line]
    assert begins.startswith("compiling the training step: minutes")
    assert said == ["note: torch.compile failed, so this training runs without it: no C++ compiler."]
    expected, plain = trained("test_resnet", epochs=1, execution=PLAINLY)
    assert losses_found == expected
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


def batches_of(augmentation, resize, execution=PLAINLY):
    """Three epochs of images of several sizes: their windows differ in height and width."""
    typed = ["data=shapes", "data.count=24", "data.size=[64,64]", f"augmentation={augmentation}"]
    config = configuration(typed)
    data = load(config.data)
    pixels, canvas = Pixels(data.store, data.labels, CPU), Canvas((40, 48), resize)
    how = canvas, Sampling(3), config.augmentation, SINGLE, execution.making
    train = TrainBatches(pixels, data.parts["train"][:13], *how)
    return [batch for number in (1, 2, 3) for step in train.epoch(number) for batch in step]


@pytest.mark.parametrize("on_device", (True, False))
@pytest.mark.parametrize("resize", ("crop", "pad"))
@pytest.mark.parametrize("augmentation", ("light", "strong"))
def test_what_the_device_does_with_a_batch_is_one_program(
    compiler, monkeypatch, capsys, augmentation, resize, on_device
):
    if on_device:
        monkeypatch.setattr(Store, "on_device", property(lambda _: True))
    found = batches_of(augmentation, resize, EXECUTION)
    assert "torch.compile" not in capsys.readouterr().err
    assert not compiler["graph_break"]
    assert compiler["stats"]["unique_graphs"] == 1
    for one, other in zip(found, batches_of(augmentation, resize), strict=True):
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.image, other.image)


def test_batches_are_made_without_a_compiler_that_fails(broken, capsys):
    found = batches_of("light", "crop", EXECUTION)
    said = [line for line in capsys.readouterr().err.splitlines() if "compile" in line]
    assert said == ["note: torch.compile failed, so batches are made without it: no C++ compiler."]
    for one, other in zip(found, batches_of("light", "crop"), strict=True):
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.image, other.image)


COMPILING = """
import torch
from torch._dynamo.utils import counters
from segsweep.engine.execution import Execution
weight = torch.ones(3, requires_grad=True)
Execution(compile=True).compiled(lambda x: (x * weight).sin().sum())(torch.ones(2, 3)).backward()
print(*(counters["inductor"]["fxgraph_cache_" + name] for name in ("miss", "hit")))
"""


@pytest.mark.services
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_what_one_process_compiled_the_next_one_finds(outputs, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)

    def misses_and_hits():
        ran = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, check=True)
        return [int(number) for number in ran.stdout.split()]

    misses, hits = misses_and_hits()
    assert misses > hits == 0
    assert list((outputs / "cache" / "compiled").iterdir())
    assert misses_and_hits() == [0, misses]
