"""What is chosen, given how fast each way is; that the speeds are real is the benchmarks' affair."""

import itertools
import math
import shutil
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segsweep.compose import configuration
from segsweep.config.schema import TrainConfig
from segsweep.config.settings import Settings
from segsweep.engine import device as devices
from segsweep.engine import execution
from segsweep.errors import ConfigError, OutOfMemoryError
from segsweep.nn import UNet
from segsweep.paths import cache
from segsweep.training import autotune as tuning
from segsweep.training import build
from segsweep.training.autotune import Workload, tune
from segsweep.training.build import _refuse_graphs
from segsweep.world import NEIGHBOURS, SINGLE, World

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def half(monkeypatch):
    """A CPU with bf16, and with a peak that need not be measured."""
    monkeypatch.setattr(devices, "precision", lambda name, where: torch.float32 if name == "fp32" else torch.bfloat16)
    monkeypatch.setattr(devices, "convolution_peak", lambda where, kind: 1e12)


@pytest.fixture
def speeds(monkeypatch):
    """Set the images/s of each way; gives what was tried."""
    tried = []

    def set_speeds(bf16=10.0, fp32=10.0, contiguous=1.0, batches=None, graphs=1.0):
        def seconds(execution, image):
            tried.append((execution, len(image)))
            if batches is not None and len(image) not in batches:
                raise torch.OutOfMemoryError
            if execution.graphs and not graphs:
                raise RuntimeError("no compiler here")
            one = graphs if execution.graphs else 1.0
            one *= bf16 if execution.precision == torch.bfloat16 else fp32
            rate = one * (1.0 if execution.channels_last else contiguous) * (batches or {}).get(len(image), 1.0)
            return len(image) / rate

        monkeypatch.setattr(tuning, "_pass", lambda model, execution, loss: partial(seconds, execution))
        return tried

    return set_speeds


def tuned(precision="auto", compile="auto", deterministic=False, **given):
    work = Workload(**{"size": (64, 64), "channels": 3, "images": 8, "expected_images": 10_000} | given)
    train = TrainConfig(precision=precision, compile=compile, deterministic=deterministic)
    return tune(nn.Conv2d(3, 1, 1), ["a model"], work, train, CPU)


def test_the_fastest_is_taken(speeds):
    speeds(bf16=1.0, fp32=2.0, contiguous=1.5)
    found = tuned()
    assert (found.execution.precision, found.execution.channels_last) == (torch.float32, False)
    assert found.rates == {"bf16 channels_last": 1.0, "fp32 channels_last": 2.0, "fp32 contiguous": 3.0}
    assert found.peak == 1e12


def test_what_is_hardly_faster_is_not_worth_leaving_the_usual_way(speeds):
    speeds(bf16=1.0, fp32=1.04, contiguous=1.04)
    found = tuned()
    assert (found.execution.precision, found.execution.channels_last) == (torch.bfloat16, True)


@pytest.mark.parametrize(
    ("busy", "given", "precision"),
    (
        (range(4), {"bf16": 2.0, "fp32": 1.0}, torch.bfloat16),
        (range(4, 8), {"bf16": 1.0, "fp32": 2.0}, torch.float32),
        (range(8, 12), {"bf16": 2.0, "fp32": 1.0, "contiguous": 0.5}, torch.bfloat16),
        (range(8, 16, 2), {"bf16": 2.0, "fp32": 1.0, "contiguous": 0.5}, torch.bfloat16),
    ),
    ids=("first precision", "second precision", "first layout", "first layout each time"),
)
def test_a_busy_moment_does_not_decide(speeds, monkeypatch, busy, given, precision):
    speeds(**given)
    usual, passes = tuning._pass, itertools.count()

    def slowed(*asked):
        seconds = usual(*asked)
        return lambda image: seconds(image) * (10 if next(passes) in busy else 1)

    monkeypatch.setattr(tuning, "_pass", slowed)
    found = tuned()
    assert (found.execution.precision, found.execution.channels_last) == (precision, True)
    assert (found.rates["bf16 channels_last"], found.rates["fp32 channels_last"]) == (given["bf16"], given["fp32"])


def test_a_precision_that_was_asked_for_stays(speeds):
    tried = speeds(bf16=1.0, fp32=9.0)
    assert tuned(precision="bf16").execution.precision == torch.bfloat16
    assert {execution.precision for execution, _ in tried} == {torch.bfloat16}


def test_the_answer_is_kept_for_all_of_the_kind(speeds):
    tried = speeds()
    first = tuned()
    number = len(tried)
    assert tuned(expected_images=20_000) == first
    assert len(tried) == number
    tuned(size=(96, 64))
    assert len(tried) == 2 * number


@pytest.mark.parametrize(
    "given", ({"deterministic": True}, {"expected_images": 999}, {"expected_images": math.inf, "seconds": 59.0})
)
def test_where_it_does_not_pay_nothing_is_tried(speeds, given):
    tried = speeds()
    found = tuned(**given)
    assert not tried
    assert (found.rates, found.peak, found.micro_batch) == ({}, 0.0, 8)
    assert found.execution.precision == torch.bfloat16


@pytest.mark.parametrize(
    ("fit", "images", "chosen"), (({16, 8, 4}, 16, 16), ({8, 4}, 16, 8), ({3}, 12, 3), ({5, 1}, 15, 5))
)
def test_memory_halves_the_micro_batch(speeds, fit, images, chosen):
    speeds(batches=dict.fromkeys(fit, 1.0))
    work = Workload((64, 64), 3, images, 10_000)
    assert tuning._largest_micro_batch(nn.Conv2d(3, 1, 1), tuning.Execution(), work, 2) == chosen


def test_beside_others_too_little_memory_is_an_error_and_nothing_is_kept(speeds, monkeypatch):
    """What neighbours take is no property of the training: all trials of a sweep are to be cut alike."""
    speeds(batches={4: 1.0})
    monkeypatch.setattr(tuning, "_may_cut", lambda *_: True)  # as on a GPU
    monkeypatch.setenv(NEIGHBOURS, "1")
    with pytest.raises(OutOfMemoryError, match="beside the other trainings on this GPU"):
        tuned()
    assert not list((cache() / "tuned").glob("*/answer.json"))
    monkeypatch.delenv(NEIGHBOURS)
    assert tuned().micro_batch == 4


@pytest.mark.parametrize(("ema", "kept"), ((0.0, 2), (0.999, 3)))
def test_what_an_optimizer_and_an_average_keep_is_there_while_a_batch_is_tried(speeds, monkeypatch, ema, kept):
    speeds()
    model, made = nn.Conv2d(3, 1, 1), []
    monkeypatch.setattr(tuning, "_may_cut", lambda *_: True)  # as on a GPU
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor: made.append(tensor.numel()) or empty_like(tensor))
    tune(model, ["a model"], Workload((8, 8), 3, 2, 10), TrainConfig(ema=ema), CPU)
    assert sum(made) == kept * sum(p.numel() for p in model.parameters())


def test_a_batch_is_tried_with_the_losss_own_memory(monkeypatch):
    """Of 150 classes a loss keeps more than the network: a micro-batch that fits without it may not fit with it."""

    def loss(logits, target):
        assert logits.shape == (len(target), 150, *target.shape[1:])
        if len(target) > 4:
            raise torch.OutOfMemoryError
        return logits.mean()

    work = Workload((8, 8), 3, 16, 10_000, loss=loss)
    assert tuning._largest_micro_batch(nn.Conv2d(3, 150, 1), tuning.Execution(), work, 2) == 4


@pytest.fixture
def contiguous_too_large(monkeypatch):
    def seconds(execution, image):
        if not execution.channels_last:
            raise torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(tuning, "_pass", lambda model, execution, loss: partial(seconds, execution))


def test_another_way_that_does_not_fit_the_memory_is_not_taken(contiguous_too_large):
    found = tuned()
    assert found.execution.channels_last
    assert found.rates["bf16 contiguous"] == 0


def test_another_way_that_does_not_fit_beside_others_is_no_answer_to_keep(contiguous_too_large, monkeypatch):
    monkeypatch.setenv(NEIGHBOURS, "1")
    with pytest.raises(torch.OutOfMemoryError):
        tuned()
    assert not list((cache() / "tuned").glob("*/answer.json"))


def test_a_way_that_did_not_fit_is_tried_once_and_leaves_no_gradients(monkeypatch):
    model, tried = nn.Conv2d(3, 1, 1), []

    def forward(execution, model, image):
        tried.append(execution.channels_last)
        assert model.weight.grad is None
        logits = model(image)
        if not execution.channels_last:
            logits.register_hook(full)
        return logits

    def full(gradient):
        model.weight.grad = torch.zeros_like(model.weight)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tuning.Execution, "forward", forward)
    ways = [tuning.Execution(), tuning.Execution(channels_last=False)]
    first, second = tuning._rates(model, ways, torch.rand(4, 3, 8, 8), tuning.Workload.loss)
    assert first > second == 0
    assert tried.count(False) == 1


def test_answers_of_an_older_measurement_are_not_used(speeds, monkeypatch):
    tried = speeds()
    tuned()
    number = len(tried)
    monkeypatch.setattr(tuning, "PROBE_VERSION", tuning.PROBE_VERSION + 1)
    tuned()
    assert len(tried) == 2 * number


def test_no_way_and_no_batch_that_fits_is_an_error(speeds, monkeypatch):
    speeds(batches={})
    with pytest.raises(torch.OutOfMemoryError):
        tuned()
    speeds(batches={})
    with pytest.raises(OutOfMemoryError, match=r"a single image of 64x64\. Try a smaller data\.size"):
        tuning._largest_micro_batch(nn.Conv2d(3, 1, 1), tuning.Execution(), Workload((64, 64), 3, 16, 1000), 2)
    assert not list((cache() / "tuned").glob("*/answer.json"))


def test_a_cpu_does_not_compile_by_itself(speeds):
    speeds()
    assert not tuned().execution.compile
    assert tuned(compile="true").execution.compile


@pytest.mark.parametrize(("seconds", "at_first", "later"), ((60, False, False), (300, False, True), (900, True, True)))
def test_a_gpu_compiles_shorter_trainings_where_one_of_the_kind_was_compiled(monkeypatch, seconds, at_first, later):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(devices, "describe", lambda device: "cuda (a card)")
    monkeypatch.setattr(devices, "alone", lambda device: nullcontext())
    answer = {"precision": "bf16", "channels_last": True, "doubling": True, "graphs": False}
    monkeypatch.setattr(tuning, "_probe", lambda *_: answer | {"micro_batch": 8, "rates": {"bf16": 100.0}})

    def tuned(width, world=SINGLE):
        work = Workload((64, width), 3, 8, 100.0 * seconds)
        return tune(nn.Conv2d(3, 1, 1), ["a model"], work, TrainConfig(), torch.device("cuda"), world)

    found = tuned(64)
    assert found.execution.compile == at_first
    devices.mark_compiled(found.kind)
    assert tuned(64).execution.compile == later
    assert tuned(96).execution.compile == at_first, "another canvas is another program"
    two = World()
    two.size = 2
    assert not tuned(64, two).execution.compile, "nobody has tried it with several processes"
    shutil.rmtree(devices.keep_compiled())
    assert tuned(64).execution.compile == at_first, "inductor's files are gone"


def test_a_gpu_also_tries_upsampling_in_fewer_calls(speeds, monkeypatch):
    speeds()
    usual = tuning._pass
    monkeypatch.setattr(tuning, "_pass", lambda model, way, loss: slowed(usual(model, way, loss), way))
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.zeros(shape))

    def slowed(seconds, way):
        return lambda image: seconds(image) * (2 if way.doubling else 1)

    train = TrainConfig(grad_accum=1)
    found = tuning._probe(
        nn.Conv2d(3, 1, 1), tuning.Execution(), train, Workload((8, 8), 3, 4, 9999), torch.device("cuda")
    )
    assert not found["doubling"]
    assert found["rates"]["fp32 channels_last, plain upsampling"] == 2 * found["rates"]["fp32 channels_last"]


@pytest.mark.parametrize(("graphs", "taken"), ((1.5, True), (1.02, False), (0.0, False)))
def test_cuda_graphs_are_tried_where_asked_for_and_taken_where_faster(speeds, capsys, graphs, taken):
    tried = speeds(graphs=graphs)
    assert not any(execution.graphs for execution, _ in tried), "not by themselves"
    found = tuned(compile="graphs").execution
    assert (found.compile, found.graphs) == (taken, taken)
    said = [line for line in capsys.readouterr().err.splitlines() if "compiler" in line]
    expected = "note: bf16 channels_last, CUDA graphs failed, so this training runs without: no compiler here."
    assert said == [expected] * (graphs == 0)
    assert not tuned().execution.graphs


def test_a_way_is_compiled_once_before_it_is_timed(monkeypatch):
    made, calls = [], []

    def compiled(function, **how):
        made.append(how)

        def call(*given):
            calls.append(len(given[0]))
            return function(*given)

        return call

    monkeypatch.setattr(execution, "_compiled", compiled)
    ways = [tuning.Execution(), tuning.Execution(compile=True, graphs=True)]
    rates = tuning._rates(nn.Conv2d(3, 1, 1), ways, torch.rand(4, 3, 8, 8), tuning.Workload.loss)
    assert all(rates)
    assert made == [{"mode": "reduce-overhead"}]
    assert calls == [4] * (1 + tuning.REPEATS)


@pytest.mark.parametrize(
    ("words", "device", "size", "found"),
    (
        (["train.grad_accum=1"], "cpu", 1, "train.device=cpu"),
        (["train.grad_accum=1"], "cuda", 2, "2 processes"),
        (["train.grad_accum=1", "optim.freeze_epochs=3"], "cuda", 1, "optim.freeze_epochs=3"),
        ([], "cuda", 1, "train.grad_accum=auto"),
    ),
)
def test_cuda_graphs_are_refused_where_nobody_has_tried_them(words, device, size, found):
    world = World()
    world.size = size
    asked = configuration(["data=shapes", "train.compile=graphs", *words])
    with pytest.raises(ConfigError, match=rf"here: {found}\. Try train\.compile=auto"):
        _refuse_graphs(asked, None, torch.device(device), world)
    _refuse_graphs(configuration(["data=shapes", *words]), None, torch.device(device), world)


def test_a_run_with_cuda_graphs_goes_on_without_them_where_there_is_no_gpu(monkeypatch):
    """What was typed cannot change when a run goes on, so a refusal would be the end of it."""
    words = ["data=shapes", "data.size=[64,64]", "train.batch_size=8", "train.epochs=1", "train.grad_accum=1"]
    asked = configuration([*words, "train.compile=graphs"])
    before = SimpleNamespace(execution=SimpleNamespace(device="cuda (a card)"))
    _refuse_graphs(asked, before, CPU, SINGLE)
    seen = []
    monkeypatch.setattr(build, "tune", lambda model, key, workload, train, *_: seen.append(train.compile))
    build._tuned(Settings.of(asked), asked, UNet("test_resnet"), Workload.loss, 8, before, SINGLE)
    assert seen == ["auto"]


def test_the_probe_is_a_real_one_and_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    work = Workload((32, 32), 3, images=8, expected_images=10_000)
    found = tune(model, ["real"], work, TrainConfig(precision="fp32", compile="false"), CPU)
    assert found.micro_batch == 8
    assert all(rate > 0 for rate in found.rates.values())
    assert set(found.rates) == {"fp32 channels_last", "fp32 contiguous"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Second(World):
    """The other one of two processes; the first one has answered."""

    rank, size = 1, 2

    def agreed(self, value):
        if isinstance(value, str):
            return value  # the usual precision
        assert value is None  # it measures nothing itself
        return {
            "precision": "fp32",
            "channels_last": True,
            "doubling": True,
            "graphs": False,
            "micro_batch": 4,
            "rates": {"fp32": 1.0},
        }


def test_all_processes_take_the_answer_of_the_first(speeds):
    speeds(bf16=9.0, fp32=1.0)
    work = Workload((64, 64), 3, 8, 10_000)
    found = tune(nn.Conv2d(3, 1, 1), ["a model"], work, TrainConfig(), CPU, Second())
    assert (found.execution.precision, found.micro_batch) == (torch.float32, 4)
