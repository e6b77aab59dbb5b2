"""Nothing in a step or in scoring waits for the device.

On the `meta` device tensors have no values: whoever asks for one, by `item`, `tolist`, `bool`, `cpu` or a shape that
depends on values, raises. Copies to it are looked at.
"""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import counted_apart
from torch.utils._python_dispatch import TorchDispatchMode

from segsweep.compose import configuration
from segsweep.config.schema import OptimConfig, TrainConfig
from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches
from segsweep.data.geometry import Canvas
from segsweep.engine import losses
from segsweep.engine.device import Fetched
from segsweep.engine.execution import PLAIN, Execution
from segsweep.engine.scorer import Scorer
from segsweep.engine.step import TrainStep
from segsweep.nn import UNet
from segsweep.training import loop, optim
from segsweep.training.build import load
from segsweep.training.loop import fit
from segsweep.training.state import TrainState

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Counts copies from the host: those that wait, and those that do not."""

    def __init__(self):
        super().__init__()
        self.waiting, self.others = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name()
        if "copy" in name and getattr(result, "device", None) == META:
            source = args[1] if name.startswith("aten::copy_") else args[0]
            if source.device.type == "cpu":
                on_its_own = (kwargs or {}).get("non_blocking") or (name.startswith("aten::copy_") and args[2:])
                (self.others if on_its_own else self.waiting).append(tuple(source.shape))
        return result


@pytest.fixture
def fetched(monkeypatch):
    """What was asked for, of what was sent to the host; zeros come."""
    asked = []

    def get(self):
        asked.append(tuple(self._host.shape))
        return torch.zeros(self._host.shape, dtype=self._host.dtype)

    monkeypatch.setattr(Fetched, "get", get)
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: nullcontext())  # `meta` knows none
    return asked


def parts(resize, on_device, device=META):
    words = ["data=shapes", "data.count=20", "data.size=[64,64]", "augmentation=strong"]
    config = configuration([*words, "augmentation.noise=0"])  # `meta` draws no random numbers of a seed of their own
    data = load(config.data)
    if on_device:
        data.store._images, data.store._masks = data.store._images.to(device), data.store._masks.to(device)
    pixels, canvas = Pixels(data.store, data.labels, device), Canvas((64, 64), resize)
    train = TrainBatches(pixels, data.parts["train"], canvas, Sampling(4, grad_accum=2), config.augmentation)
    return train, EvalBatches(pixels, data.parts["val"], canvas, 4), data.labels.names


def state_of(model, **more):
    optimizer = optim.build(OptimConfig(lr=1e-3, encoder_lr_scale=1.0), model)
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), **more)


@pytest.mark.parametrize("terms", ({"ce": 1.0, "dice": 1.0, "lovasz": 1.0}, {"focal": 1.0, "jaccard": 1.0}), ids=str)
@pytest.mark.parametrize("resize", ("crop", "pad"))
@pytest.mark.parametrize(("on_device", "logits"), ((True, 1), (False, 1), (True, 2)))  # a sigmoid's, a softmax's
def test_an_epoch_waits_for_the_device_when_it_is_over(fetched, resize, on_device, logits, terms):
    batches, val, names = parts(resize, on_device)
    with META:
        model = UNet("test_resnet", num_classes=logits)
    loss = losses.build(terms, weights=[1.0, 3.0], device=META)
    step = TrainStep(PLAIN, loss, grad_clip=1.0)
    state = state_of(model, average=optim.Average(model, 0.9))
    asked_in_validation = []

    def validate(scored):
        asked_in_training = list(fetched)
        assert asked_in_training == [(len(batches),)], "the losses of all steps at once"
        with Copies() as copies:
            found = Scorer().evaluate(scored, val, loss, names)
        assert copies.waiting == []
        asked_in_validation.extend(fetched[1:])
        return replace(found, metrics={**found.metrics, "loss": 0.0, "iou": 0.5})

    train = TrainConfig(epochs=1, batch_size=4, grad_accum=2)
    with Copies() as copies:
        assert list(fit(state, step, batches, validate, train, OptimConfig(freeze_epochs=1, warmup=0.0)))
    assert copies.waiting == []
    assert copies.others
    sizes = [shape for shape in asked_in_validation if len(shape) == 1]
    assert sum(shape[0] for shape in sizes) == len(val.indices), "the losses of each batch"
    assert sum(shape[0] for shape in asked_in_validation if len(shape) == 2) == len(val.indices)


@pytest.mark.parametrize(("sizes", "searched"), ((1, True), (2, False)))
def test_scoring_lets_cudnn_search_only_where_all_canvases_have_one_size(monkeypatch, sizes, searched):
    """Each new size is seconds of search, and images may have hundreds of sizes."""
    _, val, names = parts("pad", False, torch.device("cpu"))
    monkeypatch.setattr(EvalBatches, "sizes", property(lambda _: sizes))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []

    def forward(execution, model, image):
        seen.append(torch.backends.cudnn.benchmark)
        if len(seen) == 2:
            raise ZeroDivisionError
        return image[:, :1]

    monkeypatch.setattr(Execution, "forward", forward)
    batches = replace(val, batch_size=1)
    with pytest.raises(ZeroDivisionError):
        Scorer().evaluate(torch.nn.Identity(), batches, losses.build({"ce": 1.0}), names)
    assert seen == [searched] * 2
    assert torch.backends.cudnn.benchmark, "training goes on with its search"


@pytest.mark.gpu
@pytest.mark.parametrize("resize", ("crop", "pad"))
@pytest.mark.parametrize("on_device", (True, False))
@pytest.mark.parametrize("doubling", (True, False))
def test_a_gpu_is_not_waited_for(resize, on_device, doubling):
    """CUDA itself refuses calls that wait, and what it computes is what a CPU does."""
    cuda, execution = torch.device("cuda"), Execution(torch.bfloat16, doubling=doubling)
    batches, val, names = parts(resize, on_device, cuda)
    torch.manual_seed(0)
    model, loss = UNet("test_resnet").to(cuda), losses.build({"ce": 1.0, "dice": 1.0}, [1.0, 2.0], device=cuda)
    execution.prepare(model)
    step, state = TrainStep(execution, loss, grad_clip=1.0), state_of(model, average=optim.Average(model, 0.9))
    for micro_batches in batches.epoch(1):  # what is made once
        step(state, micro_batches, 2)
    Scorer(execution).evaluate(model, val, loss, names)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for micro_batches in batches.epoch(2):
            step(state, micro_batches, 2)
            state.average.update(model)
        found = Scorer(execution).evaluate(model, val, loss, names, show=val.indices)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for index, matrix in found.matrices.items():
        target = val.pixels._classes(torch.from_numpy(val.pixels.store.host_mask(index)).to(cuda)).cpu()
        expected = counted_apart([found.predictions[index].long()], [target], len(names))[0]
        np.testing.assert_array_equal(matrix, expected)


def test_a_bad_loss_is_found_some_steps_later(monkeypatch):
    monkeypatch.setattr(loop, "CHECK_EVERY", 4)
    found = loop.StepLosses(META)
    found._sent.clear()
    seen = []
    for step in range(12):
        looked = found.add(torch.tensor(np.nan if step == 2 else float(step)))
        seen.append((looked, found.first_bad))
    assert seen[:7] == [(False, -1)] * 3 + [(True, -1)] + [(False, -1)] * 3
    assert seen[7] == (True, 2), "what was sent before the last is there"
    found.finish()
    assert found.values[3:] == list(range(3, 12))
    assert loop.StepLosses(torch.device("cpu")).add(torch.tensor(1.0)), "a CPU looks at once"


def test_the_sum_of_losses_is_taken_in_float32_one_after_the_other():
    losses_of = loop.StepLosses(torch.device("cpu"))
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 1e3
    total = torch.zeros(())
    for value in values:
        losses_of.add(value)
        total += value
    losses_of.finish()
    assert torch.equal(losses_of.total(), total)
