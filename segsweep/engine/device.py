"""Where a training runs and in which precision."""

import hashlib
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from segsweep.config.checks import DEVICES, is_device
from segsweep.errors import ConfigError, OutOfMemoryError, first_line
from segsweep.paths import build_once, cache, load_json, locked
from segsweep.runs.records import Precision
from segsweep.world import cores

log = logging.getLogger(__name__)

JSON = TypeVar("JSON")  # a value that JSON has

PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FATAL = (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS)

# Channels and side of the maps that the convolution peak is looked for with, and images: on a CPU, and on a GPU.
PEAK_SHAPES = (((96, 56), (128, 56), (256, 32), (512, 32)), ((128, 64), (256, 64), (512, 32), (1024, 32)))
PEAK_BATCH, PEAK_REPEATS = (4, 32), 8

# Convolutions and products, forward and backward, of the shapes for which oneDNN has kernels of their own.
_EXERCISE = """
import sys, torch
from torch import nn
kind = getattr(torch, sys.argv[1])
shapes = ((3, 64, 7, 2, 32), (64, 64, 3, 1, 8), (256, 512, 1, 2, 2), (64, 256, 1, 1, 8))
for inputs, outputs, kernel, stride, side in shapes:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2).to(memory_format=torch.channels_last)
    image = torch.randn(4, inputs, side, side, requires_grad=True)
    with torch.autocast("cpu", kind):
        result = conv(image.contiguous(memory_format=torch.channels_last))
    result.float().sum().backward()
for width in (64, 96, 384):
    linear = nn.Linear(width, 3 * width)
    tokens = torch.randn(4, 17, width, requires_grad=True)
    with torch.autocast("cpu", kind):
        result = linear(tokens)
    result.float().sum().backward()
"""


def place(kind: str, about: object) -> str:
    """Return the place of an answer for `remembered`; `about` is all, as JSON has it, that the answer depends on."""
    return f"{kind}/{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"


def remembered(place: str, measure: Callable[[], JSON]) -> JSON:
    """Return what `measure` gave for this place of the cache, which is asked only once; safe for many processes.

    What it raises is raised, and nothing kept.
    """

    def write(folder: Path) -> None:
        (folder / "answer.json").write_text(json.dumps(measure()))

    def whole(folder: Path) -> bool:
        try:
            load_json((folder / "answer.json").read_bytes())
        except (OSError, ValueError):
            return False
        return True

    answer: JSON = load_json((build_once(cache() / place, whole, write) / "answer.json").read_bytes())
    return answer


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """Let one process at a time measure on a GPU; the others wait. On a CPU nobody waits."""
    if device.type != "cuda":
        yield
        return
    with locked(cache() / f"{torch.cuda.get_device_properties(device).uuid}.lock"):
        yield


@contextmanager
def searching(allowed: bool) -> Iterator[None]:
    """Where it is not allowed, keep cuDNN from trying its algorithms for each new shape, while in this context."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and allowed
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def fitting(advice: str, tried: str = "") -> Iterator[None]:
    """Raise what does not fit the device's or the process's memory as an `OutOfMemoryError`, while in this context."""
    try:
        yield
    except Exception as error:
        on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        if not (on_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
            raise
        raise OutOfMemoryError(f"out of memory{tried}. {advice}") from error


def find(name: str, option: str = "train.device=", local: int | None = None) -> torch.device:
    """Return the device of `train.device`; auto is the first GPU if there is one.

    Args:
        option: what was typed before the name.
        local: of several processes that train together, this one's number on its machine: it takes the GPU of it.

    Raises ConfigError: there is no such device, or it is not here.
    """
    if not is_device(name):
        raise ConfigError(f"{option}{name}: must be {DEVICES}.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"  # mps on request only: nobody has measured it yet
    device = torch.device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if local is not None and device.type != "cpu":
        if device.type == "mps" or device.index is not None:
            raise ConfigError(f"{option}{name}: each of several processes takes a GPU of its own. Drop {option}{name}.")
        if count and local >= count:
            told = f"{count} GPUs here, and process {local + 1} on this machine needs its own GPU"
            raise ConfigError(
                f"{option}{name}: there are {told}. Start {count} with torchrun --nproc-per-node={count}."
            )
        if count:
            torch.cuda.set_device(local)
            return torch.device("cuda", local)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= count):
        raise ConfigError(f"{option}{name}: there are {count} CUDA devices. Try {option}auto.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{option}mps: not available here. Try {option}auto.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events and new streams are those of the current one
    return device


def describe(device: torch.device) -> str:
    """Return its name, for the record."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def named(precision: torch.dtype) -> Precision:
    """Name a data type as `train.precision` does."""
    return next(name for name, kind in PRECISIONS.items() if kind == precision)


def precision(name: Precision | str, device: torch.device, option: str = "train.precision=") -> torch.dtype:
    """Return the data type of `train.precision` on this device; auto: a half precision it has in hardware, else fp32.

    Raises ConfigError: the processor crashes with it; `option` is what was typed before the name.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        units = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        claimed = device.type == "cpu" and any(getattr(torch.cpu, unit, lambda: False)() for unit in units)
        return torch.bfloat16 if claimed and _survives(torch.bfloat16) else torch.float32
    chosen = {str(known): kind for known, kind in PRECISIONS.items()}[name]
    if device.type == "cpu" and chosen != torch.float32 and not (survives := _survives(chosen)):
        told = "this processor crashes with it (illegal instruction), although it reports support"
        if survives is None:
            told = "whether this processor computes in it could not be found out"
        raise ConfigError(f"{option}{name}: {told}. Try {option}fp32.")
    return chosen


def _survives(kind: torch.dtype) -> bool | None:
    """Whether this CPU really computes in that type; None: not known. Tried once per machine, in a process of its own.

    A virtual machine may announce instructions (AMX) that kill whoever uses them, and no exception tells.
    """
    name = str(kind).removeprefix("torch.")

    def exercise() -> bool:
        ran = subprocess.run([sys.executable, "-c", _EXERCISE, name], capture_output=True, text=True, check=False)
        if ran.returncode not in (0, *(-fatal for fatal in FATAL)):
            raise RuntimeError(ran.stderr)  # some other trouble, no answer to keep
        if ran.returncode:
            log.warning(
                "This processor reports support for %s but crashes with it (illegal instruction). If only AMX causes "
                "it, ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 before the command lets it compute in bf16.",
                name,
            )
        return ran.returncode == 0

    try:
        return remembered(place("survives", [name, machine()]), exercise)
    except RuntimeError as error:
        log.warning("Whether this processor computes in %s could not be found out: %s", name, first_line(error))
        return None


def machine() -> str:
    """Return a short hash of this machine, its processor and torch's version: what was measured holds for these."""
    what = [platform.node(), torch.__version__, _processor(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def keep_compiled() -> Path | None:
    """Have inductor keep what it compiles in segsweep's cache, beside the probe's answers, for later trainings here.

    Torch's own place is a temporary folder. `TORCHINDUCTOR_CACHE_DIR`, if set, decides. Return the folder, None where
    this torch keeps it elsewhere.
    """
    try:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    except ImportError:  # its own folder will do
        return None
    name = "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(name, "") in ("", default_cache_dir()):  # inductor sets it to its own when it is imported
        os.environ[name] = str(cache() / "compiled" / machine())
    return Path(os.environ[name])


def was_compiled(kind: str) -> bool:
    """Tell whether a training of this kind, a place in the cache, was compiled here and inductor has kept it."""
    folder = keep_compiled()
    return folder is not None and _mark(folder, kind).exists()


def mark_compiled(kind: str) -> None:
    """Remember, where inductor keeps it, that a training of this kind was compiled: both are deleted together."""
    if folder := keep_compiled():
        mark = _mark(folder, kind)
        with suppress(OSError):  # it only saves time
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def _mark(folder: Path, kind: str) -> Path:
    return folder / "segsweep" / kind


def compute_as(deterministic: bool = False) -> None:
    """Set torch's threads, and TF32 unless `train.deterministic` is set: what a training's numbers depend on."""
    set_threads()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic


def set_up(deterministic: bool) -> None:
    """Set torch's threads and switches for a training; `deterministic`: no algorithm that differs between runs."""
    compute_as(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)


def set_threads() -> int:
    """Let torch compute on as many threads as this process may use cores; return the number.

    `OMP_NUM_THREADS`, if set, decides. Otherwise it is the physical cores, fewer where the process is bound to some
    (affinity) or a container may use less (cgroup quota): more threads than cores wait for each other. Processes that
    torchrun started on one machine share its cores; the 1 that it then sets the variable to is nobody's word.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if beside > 1 and given == "1":
        torch.set_num_threads(max(1, cores() // beside))
    elif given.isdigit() and int(given):  # said again: torch may have been loaded before it was set
        torch.set_num_threads(int(given))
    else:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores()) // beside))
    return torch.get_num_threads()


class Fetched:
    """A tensor on its way from the device to the host: nobody waits for it until it is asked for."""

    def __init__(self, tensor: torch.Tensor):
        self._host, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def get(self) -> torch.Tensor:
        """Return it on the host; wait until it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.cpu()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def convolution_peak(device: torch.device, kind: torch.dtype) -> float:
    """Return the FLOP/s of the fastest convolution in this precision; measured once per machine.

    A convolution of 3x3 on a map that fits the caches does little but multiply: no network can be faster.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 0

    def measure() -> float:
        with alone(device):
            return measured_peak(device, kind)

    return remembered(place("peak", [describe(device), str(kind), threads, machine()]), measure)


def measured_peak(device: torch.device, kind: torch.dtype) -> float:
    """Measure the FLOP/s of the fastest convolution, forward and backward."""
    return max(_convolution(device, kind, channels, side) for channels, side in PEAK_SHAPES[device.type == "cuda"])


def _convolution(device: torch.device, kind: torch.dtype, channels: int, side: int) -> float:
    batch = PEAK_BATCH[device.type == "cuda"]
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layer = layer.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(batch, channels, side, side, device=device).to(kind)
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    shortest = math.inf
    for _ in range(PEAK_REPEATS):
        started = time.perf_counter()
        result = layer(image)
        result.backward(result)
        synchronize(device)
        shortest = min(shortest, time.perf_counter() - started)
    return 3 * 2 * 9 * batch * (channels * side) ** 2 / shortest


def _processor() -> str:
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({row for row in rows if row.startswith(("model name", "flags"))}))
