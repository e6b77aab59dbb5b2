import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segsweep import world
from segsweep.config.checks import is_device
from segsweep.engine import device
from segsweep.errors import ConfigError
from segsweep.paths import cache

CPU = torch.device("cpu")


def test_a_gpus_peak_is_measured_while_no_other_process_measures(monkeypatch):
    held = []

    @contextmanager
    def alone(where):
        held.append(where)
        yield
        held.pop()

    monkeypatch.setattr(device, "alone", alone)
    monkeypatch.setattr(device, "measured_peak", lambda where, kind: float(len(held)))
    assert device.convolution_peak(CPU, torch.float32) == 1.0


def test_processes_measure_a_gpu_one_after_the_other(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda where: SimpleNamespace(uuid=f"card {where.index}"))
    first, other = torch.device("cuda:0"), torch.device("cuda:1")
    said, waiting = [], threading.Event()

    def second():
        with device.alone(other):
            said.append("another GPU is free")
        waiting.set()
        with device.alone(first):
            said.append("the second's turn")

    thread = threading.Thread(target=second)
    with device.alone(first):
        thread.start()
        assert waiting.wait(10)
        thread.join(0.3)
        said.append("the first has done")
    thread.join(10)
    assert said == ["another GPU is free", "the first has done", "the second's turn"]


@pytest.fixture
def announced(monkeypatch):
    """A CPU that says it has bf16."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)


def test_a_cpu_that_dies_of_bf16_gets_fp32_and_a_clear_refusal(announced, monkeypatch):
    monkeypatch.setattr(device, "_EXERCISE", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert device.precision("auto", CPU) == torch.float32
    with pytest.raises(ConfigError, match=r"train\.precision=bf16.*Try train\.precision=fp32"):
        device.precision("bf16", CPU)


def test_what_could_not_be_found_out_is_said_so(announced, monkeypatch):
    monkeypatch.setattr(device, "_EXERCISE", "raise SystemExit('no memory')")
    with pytest.raises(ConfigError, match=r"whether this processor computes in it could not be found out\. Try"):
        device.precision("bf16", CPU)


@pytest.mark.parametrize("name", ["cpu", "mps", "cuda", "cuda:0", "cuda:12"])
def test_what_is_called_a_device_is_one_for_torch(name):
    assert is_device(name)
    assert str(torch.device(name)) == name


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:1 ", "CUDA", "auto:0"])
def test_a_device_that_does_not_exist_is_one_line_that_begins_with_what_was_typed(name):
    assert not is_device(name)
    with pytest.raises(ConfigError) as refused:
        device.find(name, "device=")
    assert str(refused.value) == f"device={name}: must be auto, cpu, cuda, cuda:N or mps."


@pytest.mark.parametrize("name", ["cuda:1", "cuda"])
def test_a_gpu_that_is_named_is_the_current_one(name, monkeypatch):
    """What is recorded without a stream is recorded in the current one's."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert device.find(name) == torch.device(name)
    assert current == [torch.device("cuda:1")] * (name == "cuda:1")


def test_a_cpu_that_survives_is_asked_once(announced, monkeypatch):
    monkeypatch.setattr(device, "_EXERCISE", "pass")
    assert device.precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(device, "_EXERCISE", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert device.precision("auto", CPU) == torch.bfloat16
    (answer,) = cache().glob("survives/*/answer.json")
    assert json.loads(answer.read_text()) is True


def test_another_trouble_than_a_fatal_signal_is_no_answer_to_keep(announced, monkeypatch):
    monkeypatch.setattr(device, "_EXERCISE", "raise SystemExit('no memory')")
    assert device.precision("auto", CPU) == torch.float32
    assert not list(cache().glob("survives/*/answer.json"))
    monkeypatch.setattr(device, "_EXERCISE", "pass")
    assert device.precision("auto", CPU) == torch.bfloat16


def test_a_cpu_without_bf16_is_not_asked(monkeypatch):
    for unit in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, unit, lambda: False, raising=False)
    monkeypatch.setattr(device, "_survives", lambda kind: pytest.fail("asked"))
    assert device.precision("auto", CPU) == torch.float32


def test_the_exercise_is_a_real_program():
    device._survives(torch.float16)
    (answer,) = cache().glob("survives/*/answer.json")  # there is one only where it ran through or was killed
    assert json.loads(answer.read_text()) in (True, False)


def test_fp32_needs_no_proof(monkeypatch):
    monkeypatch.setattr(device, "_survives", lambda kind: pytest.fail("asked"))
    assert device.precision("fp32", CPU) == torch.float32


def test_an_unhappy_instruction_set_is_another_machine(monkeypatch):
    before = device.machine()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert device.machine() != before


@pytest.fixture
def threads():
    """torch's threads, as they were afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_keep_to_what_the_process_may_use(threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    torch.set_num_threads(2)
    assert device.set_threads() == 1


def test_threads_keep_to_a_containers_quota(threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(world, "quota", lambda: 1)
    torch.set_num_threads(2)
    assert device.set_threads() == 1


def test_omp_num_threads_decides(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(world, "quota", lambda: 1)
    torch.set_num_threads(2)
    assert device.set_threads() == 7


@pytest.mark.parametrize(
    ("text", "cores"),
    (("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", None), ("", None)),
)
def test_a_quota_is_read(text, cores, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(world, "Path", lambda path: tmp_path / "cpu.max")
    assert world.quota() == cores
    assert world.cores() <= (cores or 1 << 16)


FAULTS = """
import importlib, resource, sys
importlib.import_module(sys.argv[1])
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this Linux gives no huge pages"
)
@pytest.mark.parametrize("entry", ["segsweep.training.run", "segsweep.inference.export"])
def test_large_maps_come_in_huge_pages(entry):
    def faults(**asked):
        env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"} | asked
        typed = [sys.executable, "-c", FAULTS, entry]
        return int(subprocess.run(typed, env=env, capture_output=True, check=True).stdout)

    assert faults() < 2000
    if "[madvise]" in HUGE_PAGES.read_text():
        assert faults(THP_MEM_ALLOC_ENABLE="0") > 10_000


def test_the_convolution_peak_is_measured_once(monkeypatch):
    monkeypatch.setattr(device, "PEAK_SHAPES", (((8, 16), (16, 8)), ()))
    peak = device.convolution_peak(CPU, torch.float32)
    assert peak > 1e6
    monkeypatch.setattr(device, "_convolution", lambda *_: pytest.fail("measured again"))
    assert device.convolution_peak(CPU, torch.float32) == peak


@pytest.mark.gpu
def test_a_gpu_has_a_half_precision():
    assert device.precision("auto", device.find("cuda")) in (torch.bfloat16, torch.float16)
