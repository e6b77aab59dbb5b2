"""What one GPU gives, in parts of four minutes that run unattended, save as they go and can be gone on with.

    pip install -e ".[bench]"
    python benchmarks/gpu.py --part A         # a training step of resnet34, ours and the peer's, in many ways
    python benchmarks/gpu.py --part B         # whole epochs, several trainings at once, a packed sweep
    python benchmarks/gpu.py --part C         # a step of lite0, convnext_tiny and ViT-small
    python benchmarks/gpu.py --table          # Markdown for RESULTS.md from all that is saved
    python benchmarks/gpu.py --part A --device cpu --smoke    # tries the script itself, in seconds

Every cell is one line of `gpu-PART-CARD.jsonl` as soon as it is measured. The same command again measures what is
missing or failed; `--again` measures all. What no longer fits `--seconds` is dropped, later rounds first, and the
output says so.

A and C: one batch lies ready on the device, as fp32 pixels for ours, normalised for the peer (ours does that itself);
only what is called `data` has new ones.
bf16 autocast, channels_last, TF32, cuDNN's search, BCE + Dice, fused Adam, random weights; `segsweep.nn.unet.UNet` with
decoder.width=auto beside segmentation_models_pytorch's Unet. Five steps warm up. The ways take turns in each round:

    eager             as Python launches it
    step              `TrainStep`, as a training takes it: weights cast at once, losses shared
    step, plain       the same, with the decoder's upsampling apart from its convolution
    step, compiled    the same, as `train.compile=true` runs it
    step, graphs      the same, as `train.compile=graphs` runs it
    data ...          these with new batches, cut, warped and coloured on the GPU: what a training does
    CUDA graph        forward, backward and optimizer captured by hand
    reduce-overhead   the model through torch.compile(mode="reduce-overhead")
    compiled          the model through torch.compile

Memory is the most that is allocated in a step, weights and optimizer included, with new batches also all images; that
of graphs is not told.

B: `python train.py` on `data=shapes`: images/s of its steps (`perf/images_per_s`) and of whole epochs (validation and
checkpoints included) while all trainings are in their second or later epoch, beside a bare step as in A. Then a sweep
of short trials, one at a time and with `hydra.sweeper.slots=packed`: trials an hour between the first one's start and
the last one's end, and the largest difference of a trial's IoU from that of the same trial alone.

Whole epochs beside the peer's and its notebook's: `python benchmarks/throughput.py resnet34 --only epoch`.
"""

import argparse
import faulthandler
import gc
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import distributions
from itertools import accumulate, count, repeat
from pathlib import Path
from typing import Any

from gpu_table import ALONE, FIRST, PACKED, PEAK, REFERENCE, SERIAL, Row, table
from measure import RAW, ROOT, machine

PATIENCE = 15.0  # seconds that a training may take to end
STARTED = time.perf_counter()  # importing torch from a cold disk counts
REPLAYED = re.compile("graph|reduce-overhead")  # ways whose steps allocate nothing: their memory lies in a pool
LAUNCHING = re.compile("LaunchKernel|GraphLaunch|MemcpyAsync|MemsetAsync")


@dataclass(frozen=True)
class Scale:
    """How much is measured: the real thing, or as little as shows that the script runs."""

    size: int = 256  # pixels a side
    large: int = 512
    encoders: tuple[str, ...] = ("tf_efficientnet_lite0", "convnext_tiny", "vit_small_patch16_224")  # of part C
    encoder: str = "resnet34"  # of parts A and B
    batches: tuple[int, ...] = (32, 128)
    rounds: int = 3
    seconds: float = 1.0  # that a cell times steps for
    warmup: int = 5
    count: int = 800  # images that `shapes` generates; 480 of them are for training
    repeats: int = 2  # times that an epoch shows each
    length: float = 6  # seconds of trainings side by side, and two more for each
    at_once: tuple[int, ...] = (1, 2, 4)
    trials: int = 8
    peak: tuple[tuple[int, int, int], ...] = ((32, 256, 64), (32, 512, 32), (32, 1024, 32))  # batch, channels, side


SMOKE = Scale(
    *(32, 64, ("test_resnet",), "test_resnet", (2,), 1, 0.05, 1),
    *(30, 1, 3, (1, 2), 2, ((8, 64, 32),)),
)


@dataclass(frozen=True)
class Way:
    """Whose model, and how a training step of it is run."""

    whose: str  # ours, peer
    how: str

    def __str__(self) -> str:
        return f"{self.whose}, {self.how}"


PEER = Way("peer", "eager")
# The cheap ones first: when time runs out while something compiles, they are there.
A = (
    PEER,
    *(Way("ours", how) for how in ("eager", "step", "step, plain", "data", "data, plain", "CUDA graph")),
    *(Way(*pair) for pair in (("peer", "CUDA graph"), ("ours", "step, graphs"), ("ours", "data, graphs"))),
    *(Way(*pair) for pair in (("peer", "compiled"), ("ours", "step, compiled"), ("ours", "data, compiled"))),
    *(Way(*pair) for pair in (("peer", "reduce-overhead"), ("ours", "reduce-overhead"), ("ours", "compiled"))),
)
LARGE = (PEER, *(Way("ours", how) for how in ("data", "data, graphs")), Way("peer", "compiled"))
C = (PEER, Way("ours", "eager"), Way("ours", "compiled"))


class TimeIsUp(BaseException):
    """What was begun does not fit the budget; not an Exception, so that no library takes it for its own."""


class Budget:
    """Seconds until something has to end, counted from now or from `started`."""

    def __init__(self, seconds: float, started: float | None = None, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.end = (clock() if started is None else started) + seconds

    def left(self) -> float:
        return self.end - self.clock()

    def share(self, part: float) -> "Budget":
        """Of what is left."""
        return Budget(self.left() * part, clock=self.clock)

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise TimeIsUp at the end, even in the middle of a compilation; again if somebody swallows it."""

        def stop(*_: Any) -> None:
            raise TimeIsUp

        if self.left() <= 0:
            raise TimeIsUp
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, self.left(), 2)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Cells:
    """Measured cells, one JSON object a line; appended at once, so that a run cut off keeps them.

    Args:
        path: the file; lines that are there count as measured.
        about: what the cells of this session hold for, written before its first cell.
        again: whether to measure what is there once more.
    """

    def __init__(self, path: Path, about: Callable[[], Row], again: bool = False):
        self.path, self.about = path, about
        self.session = f"{time.time():.3f}"
        self.rows = [] if again else read(path)

    def has(self, **key: Any) -> bool:
        """Whether that cell was measured; a failed one was not."""
        return any(key.items() <= row.items() and "error" not in row for row in self.rows)

    def measure(self, budget: Budget, action: Callable[[], Row], **key: Any) -> None:
        """Keep what `action` finds, or its error; nothing where the budget ends first."""
        try:
            with budget.enforced():
                found = action()
        except TimeIsUp:
            say(f"dropped, the time is up: {in_line(key)}")
            return
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            found = {"error": f"{type(error).__name__}: {text}"[:200]}
        if not self.has(session=self.session):
            self._write({"session": self.session, "machine": self.about()})
        self._write({**key, **found, "session": self.session})
        say(in_line({**key, **found}))

    def _write(self, row: Row) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """The rows of a file; a line that a killed run left half written is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def in_line(row: Row) -> str:
    return "  ".join(
        f"{key}={value:.5g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
    )


# Parts A and C: a step.


@dataclass(frozen=True)
class Case:
    """A network, and the batches that it is trained on."""

    encoder: str
    batch: int
    size: int


def build(way: Way, case: Case, scale: Scale, device: Any) -> tuple[Callable[[], None], float]:
    """A training step that has been warmed up, and the FLOPs that one image takes in it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    if way.whose == "ours":
        from segsweep.nn.unet import UNet

        model: Any = UNet(case.encoder)
    else:
        import segmentation_models_pytorch as smp

        name = case.encoder if case.encoder in smp.encoders.encoders else f"tu-{case.encoder}"
        model = smp.Unet(name, encoder_weights=None, classes=1)
    model = model.to(device, memory_format=torch.channels_last).train()
    batch, size = case.batch, case.size
    pixels = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    pixels = pixels * 255 if way.whose == "ours" else (pixels - 0.45) / 0.225
    mask = (torch.rand(batch, 1, size, size, device=device) > 0.5).float()
    captured = way.how == "CUDA graph"
    modes = {"compiled": "default", "reduce-overhead": "reduce-overhead"}
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # a trial on a CPU does not wait for its compiler
    called = model
    if way.how in modes:
        called = torch.compile(model, mode=modes[way.how], dynamic=False, backend=backend)
    adam = torch.optim.Adam(model.parameters(), 1e-4, fused=True, capturable=captured)

    def backward(model: Any, pixels: Any, mask: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=not captured):
            logits = model(pixels)
        logits = logits.float()
        found = logits.sigmoid()
        dice = 1 - 2 * (found * mask).sum() / (found.sum() + mask.sum())
        (torch.nn.functional.binary_cross_entropy_with_logits(logits, mask) + dice).backward()

    def step() -> None:
        if way.how == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        adam.zero_grad()
        backward(called, pixels, mask)
        adam.step()

    if way.how.startswith(("step", "data")):
        step = own_step(way, model, case, scale, (pixels, mask))
    with FlopCounterMode(display=False) as counted:  # beside a compiler, which passes over what is called here
        backward(model, pixels[:2], mask[:2])
    if captured:
        if device.type != "cuda":
            raise RuntimeError("needs CUDA")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        step = graph.replay
    for _ in range(scale.warmup):
        step()
    synchronize(device)
    return step, counted.get_total_flops() / 2


def own_step(way: Way, model: Any, case: Case, scale: Scale, ready: tuple[Any, Any]) -> Callable[[], None]:
    """A step as a training takes it, on one batch or on new ones; built for each way anew, as the model is."""
    import torch

    from segsweep.config.schema import OptimConfig
    from segsweep.data.batches import Batch
    from segsweep.engine import losses
    from segsweep.engine.execution import Execution
    from segsweep.engine.step import TrainStep
    from segsweep.training import optim
    from segsweep.training.state import TrainState

    pixels, mask = ready
    whence, _, how = way.how.partition(", ")
    if how in ("graphs", "compiled") and pixels.device.type != "cuda":
        raise RuntimeError("needs CUDA")
    compiled, graphs = how in ("graphs", "compiled"), how == "graphs"
    execution = Execution(torch.bfloat16, compile=compiled, doubling=how != "plain", graphs=graphs)
    execution.prepare(model)
    optimizer = optim.build(OptimConfig(name="adam", lr=1e-4, encoder_lr_scale=1.0, weight_decay=0.0), model)
    state = TrainState(model, optimizer, torch.amp.GradScaler(pixels.device.type, enabled=False))
    batches: Iterator[Any] = repeat([Batch(pixels, mask[:, 0].long(), tuple(range(len(pixels))), ())])
    if whence == "data":
        batches = new_batches(execution, case, scale, pixels.device)
    own = TrainStep(execution, losses.build({"ce": 1.0, "dice": 1.0}), 1.0)

    def step() -> None:
        own(state, next(batches), 1)

    return step


def new_batches(execution: Any, case: Case, scale: Scale, device: Any) -> Iterator[Any]:
    """Epoch after epoch of a training's steps on `data=shapes`, whose pixels lie on the device."""
    from segsweep.compose import configuration
    from segsweep.data.batches import Pixels, Sampling, TrainBatches
    from segsweep.data.geometry import Canvas
    from segsweep.training.build import load
    from segsweep.world import SINGLE

    side = f"data.size=[{case.size},{case.size}]"
    # What a plan would decide.
    typed = ["augmentation.scale=0.25", "augmentation.translate=0.05"]
    config = configuration(["data=shapes", f"data.count={scale.count}", side, *typed])
    data = load(config.data)
    data.store.to(device)
    pixels, canvas = Pixels(data.store, data.labels, device), Canvas((case.size, case.size), "pad")
    how = canvas, Sampling(case.batch), config.augmentation, SINGLE, execution.making
    train = TrainBatches(pixels, data.parts["train"], *how)
    for number in count(1):
        yield from train.epoch(number)


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: Any) -> int:
    """Bytes that are allocated on a GPU."""
    import torch

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def timed(step: Callable[[], None], device: Any, seconds: float) -> float:
    """Steps a second, over about that time and at least three steps."""

    def over(times: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            step()
        synchronize(device)
        return (time.perf_counter() - started) / times

    return 1 / over(min(max(3, round(seconds / over(2))), 1000))


def convolution_peak(scale: Scale, device: Any) -> float:
    """TFLOP/s of the fastest 3x3 convolution in bf16, forward and backward."""
    import torch

    rates = []
    for batch, channels, side in scale.peak:
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layer = layer.to(device, torch.bfloat16, memory_format=torch.channels_last)
        image = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
        image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
        once = partial(lambda layer, image: layer(image).backward(image.detach()), layer, image)
        once()
        rates.append(timed(once, device, scale.seconds / 10) * 3 * 2 * 9 * batch * (channels * side) ** 2 / 1e12)
    return max(rates)


def profiled(step: Callable[[], None], device: Any, steps: int = 5) -> Row:
    """What the GPU does in a step, by torch.profiler."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        return gpu_work(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"], steps)


def gpu_work(events: Sequence[Row], steps: int) -> Row:
    """Of a step: milliseconds of kernels, copies and fills, their number, and the calls that launch them.

    Args:
        events: of a Chrome trace, times in microseconds.

    Raises:
        RuntimeError: there is no work in it.
    """
    work = [event["dur"] for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    calls = [event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    if not work:
        raise RuntimeError("the profiler saw no kernels")
    launches = sum(bool(LAUNCHING.search(name)) for name in calls)
    return {"gpu_ms": sum(work) / steps / 1000, "kernels": len(work) / steps, "launches": launches / steps}


def measure_steps(cells: Cells, case: Case, ways: Sequence[Way], how: tuple[Scale, Budget, Any]) -> None:
    """All ways of one network and batch: built in turn, then round after round."""
    scale, budget, device = how
    measure, has = partial(cells.measure, **asdict(case)), partial(cells.has, **asdict(case))
    profile = ["profile"] if device.type == "cuda" else []
    rounds: list[Any] = [1, *profile, *range(2, scale.rounds + 1)]
    due = [way for way in ways if not all(has(way=str(way), round=number) for number in rounds)]
    if due and PEER not in due:
        due.insert(0, PEER)  # ratios are of one session
    steps: dict[str, Callable[[], None]] = {}

    def ready(way: Way) -> Row:
        gc.collect()
        started, before = time.perf_counter(), memory(device)
        step, flops = build(way, case, scale, device)
        found = {"seconds": time.perf_counter() - started, "gflop": flops / 1e9}
        if device.type == "cuda" and not REPLAYED.search(way.how):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            step()
            synchronize(device)
            found["gib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**30
        steps[str(way)] = step
        return found

    building = budget.share(0.75)
    for way in due:
        measure(building, partial(ready, way), way=str(way), round="build")
    for number in rounds if steps else ():
        for way, step in list(steps.items()):
            if way != REFERENCE and has(way=way, round=number):
                continue
            if number == "profile":
                measure(budget, partial(profiled, step, device), way=way, round=number)
            else:
                rate = partial(timed, step, device, scale.seconds)
                measure(budget, lambda rate=rate: {"rate": rate() * case.batch}, way=way, round=number)
        if number != "profile":
            measure(budget, lambda: {"rate": convolution_peak(scale, device)}, way=PEAK, round=number)


# Part B: the front door.


def run_all(trainings: Sequence[tuple[Path, list[str]]], at_once: int) -> float:
    """Run `python train.py` for each folder and its words, so many at once; return the seconds it took.

    Raises:
        RuntimeError: one failed, with the last line it said. The others are ended.
    """
    waiting, running = list(trainings), []
    started = time.perf_counter()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                folder, words = waiting.pop(0)
                log = folder.with_suffix(".log")
                command = [sys.executable, str(ROOT / "train.py"), *words]
                environment = {**os.environ, "SEGSWEEP_OUTPUTS": str(folder.parent)}
                with log.open("w") as file:
                    running.append((subprocess.Popen(command, stdout=file, stderr=file, env=environment), log))
            time.sleep(0.02)
            for training, log in running:
                if training.poll():
                    raise RuntimeError((log.read_text().strip().splitlines() or ["it said nothing"])[-1])
            running = [(training, log) for training, log in running if training.returncode is None]
        return time.perf_counter() - started
    finally:
        for training, _ in running:
            training.terminate()  # a sweep then ends its trials; killed, it would leave them on the GPU
        for training, _ in running:
            try:
                training.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                training.kill()
                training.wait()


def together(journals: Sequence[Sequence[Row]], images: int) -> Row:
    """Rates while all trainings are past their first epoch and none has ended.

    Args:
        journals: of each training, the records of its `metrics.jsonl`.
        images: that an epoch shows.

    Returns:
        `rate` and `epoch_rate`: images/s of steps and of whole epochs, summed; `data_share`: the median.

    Raises:
        RuntimeError: a training has no whole epoch in that time.
    """
    epochs = [[record for record in journal if record["kind"] == "epoch"] for journal in journals]
    begin, end = max(own[0]["time"] for own in epochs), min(own[-1]["time"] for own in epochs)
    rate, epoch_rate, shares = 0.0, 0.0, []
    for own in epochs:
        inside = [record for record in own if begin <= record["time"] <= end]
        if len(inside) < 2:
            raise RuntimeError("the trainings were at work together for less than an epoch")
        rate += statistics.median(record["perf/images_per_s"] for record in inside[1:])
        epoch_rate += (len(inside) - 1) * images / (inside[-1]["time"] - inside[0]["time"])
        shares += [record["perf/data_share"] for record in inside[1:]]
    return {"rate": rate, "epoch_rate": epoch_rate, "data_share": statistics.median(shares)}


def trials_of(journals: Sequence[Sequence[Row]], wanted: int) -> Row:
    """What a sweep's trials took together, and how each ended.

    Args:
        journals: of each trial, the records of its `metrics.jsonl`.
        wanted: their number.

    Returns:
        `trials`, their number; `at_once`, the most that were in training at the same time; `seconds` from the first
        one's start to the last one's end; `epochs` that all trained together; `scores`, the best validation IoU of
        each, by learning rate.

    Raises:
        RuntimeError: not all are complete.
    """
    # A sweep's winner goes on after its end: its test split is scored.
    journals = [own[: 1 + next((i for i, row in enumerate(own) if row["kind"] == "end"), len(own))] for own in journals]
    complete = sum(journal[-1].get("status") == "complete" for journal in journals)
    if complete < wanted:
        raise RuntimeError(f"{complete} of {wanted} trials are complete")
    moments = sorted((time, step) for own in journals for time, step in ((own[0]["time"], 1), (own[-1]["time"], -1)))
    epochs = [[record for record in journal if record["kind"] == "epoch"] for journal in journals]
    rates = [journal[0]["settings"]["optim"]["lr"] for journal in journals]
    scores = [own[-1]["best/val_iou"] for own in epochs]
    return {
        "trials": len(journals),
        "at_once": max(accumulate(step for _, step in moments)),
        "seconds": max(own[-1]["time"] for own in journals) - min(own[0]["time"] for own in journals),
        "epochs": sum(map(len, epochs)),
        "scores": [score for _, score in sorted(zip(rates, scores, strict=True))],
    }


def measure_trainings(cells: Cells, scale: Scale, budget: Budget, device: Any) -> None:
    """A bare step, trainings side by side, then a sweep of short ones, packed and one after the other."""
    batch, training = scale.batches[0], scale.count * 6 // 10
    case = Case(scale.encoder, batch, scale.size)
    shared = [
        *("data=shapes", f"data.count={scale.count}", f"data.size=[{scale.size},{scale.size}]"),
        *(f"encoder={scale.encoder}", "encoder.pretrained=false", f"train.batch_size={batch}"),
        *(f"train.device={device.type}", f"train.precision={'bf16' if device.type == 'cuda' else 'fp32'}"),
        *("train.compile=false", "train.test=false", "tracking=none"),
    ]

    def bare() -> Row:
        step, _ = build(Way("ours", "eager"), case, scale, device)
        return {"rate": timed(step, device, 2 * scale.seconds) * batch}

    with tempfile.TemporaryDirectory(prefix="segsweep-gpu-", ignore_cleanup_errors=True) as place:

        def trainings(name: str, count: int, *words: str) -> list[tuple[Path, list[str]]]:
            folders = [Path(place) / f"{name}-{i}" for i in range(count)]
            own = ([f"train.seed={i}", f"hydra.run.dir={folder}"] for i, folder in enumerate(folders))
            return [(folder, [*shared, *words, *more]) for folder, more in zip(folders, own, strict=True)]

        def side_by_side(count: int, *more: str) -> Row:
            words = (f"data.passes={scale.repeats}", f"train.time_budget={scale.length + 2 * count}", *more)
            chosen = trainings(f"beside{count}{''.join(more)}", count, *words)
            run_all(chosen, count)
            return together([read(folder / "metrics.jsonl") for folder, _ in chosen], training * scale.repeats)

        def first() -> Row:
            words = ("train.epochs=2", f"data.passes={scale.repeats}")
            return {"trials": 1, "seconds": run_all(trainings("first", 1, *words), 1)}

        def sweep(slots: str) -> Row:
            """Trials as short as a sweep's may be; how long decides the training that was timed alone."""
            alone = [row["rate"] for row in cells.rows if row.get("way") == ALONE and "rate" in row]
            if not alone:
                raise RuntimeError(f"{ALONE} has to be measured first")
            passes = max(1, round(2.5 * scale.seconds * alone[0] / training))
            rates = ",".join(f"{1e-4 * 1.5**i:.3g}" for i in range(scale.trials))
            words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=none"]
            words += ["hydra.sweeper.finalists=0", f"hydra.sweeper.slots={slots}", f"optim.lr={rates}"]
            folder = Path(place) / f"sweep-{slots}"
            words += [*shared, "train.epochs=2", f"data.passes={passes}", f"hydra.sweep.dir={folder}"]
            run_all([(folder, words)], 1)
            return trials_of([read(path) for path in folder.glob("*/metrics.jsonl")], scale.trials)

        jobs: list[tuple[str, int, Callable[[], Row]]] = [("bare step", 1, bare)]
        # Again in each session: the images, and libraries read from a cold disk.
        jobs += [(FIRST, 1, first)]
        jobs += [(f"{count} at once", 1, partial(side_by_side, count)) for count in scale.at_once]
        jobs += [(f"{ALONE}, side stream", 1, partial(side_by_side, 1, "train.side_stream=true"))]
        jobs += [(SERIAL, 1, partial(sweep, "1"))]
        on_gpu = device.type == "cuda"  # elsewhere there is nothing to pack
        jobs += [(PACKED if on_gpu else "sweep, two trials at a time", 1, partial(sweep, "packed" if on_gpu else "2"))]
        key = asdict(case)
        due = [job for job in jobs if not cells.has(**key, way=job[0], round=job[1])]
        if due and FIRST not in [way for way, *_ in due]:
            due.insert(0, jobs[1])
        for way, number, action in due:
            cells.measure(budget, action, **key, way=way, round=number)


def about() -> Row:
    """The machine, and the peer's version."""
    peer = [found.version for found in distributions(name="segmentation_models_pytorch")]
    return {**machine(), "peer": peer[0] if peer else None}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", choices=["A", "B", "C"])
    options.add_argument("--table", action="store_true", help="print Markdown from what is saved; no GPU needed")
    options.add_argument("--seconds", type=float, default=240, help="that the part may take, imports included")
    options.add_argument("--out", type=Path, default=RAW, help="folder of the raw files")
    options.add_argument("--again", action="store_true", help="measure what is saved once more")
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options.add_argument("--smoke", action="store_true", help="as little as shows that the script runs")
    given = options.parse_args()
    if given.table:
        for path in sorted(given.out.glob(f"gpu-{given.part or '[ABC]'}-*.jsonl")):
            print(f"`{path.stem}`: {table(read(path))}\n")
        return
    if not given.part:
        options.error("--part A, B or C is needed, or --table")
    faulthandler.dump_traceback_later(given.seconds + 15, exit=True)  # a GPU that hangs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if given.smoke:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for busy cores take minutes
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        options.error("there is no CUDA device. To try the script: --device cpu --smoke")
    device = torch.device(given.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    card = torch.cuda.get_device_name(device) if given.device == "cuda" else "cpu"
    name = "-".join(["gpu", given.part, *(["smoke"] if given.smoke else []), re.sub(r"[^a-z0-9]+", "-", card.lower())])
    cells = Cells(given.out / f"{name}.jsonl", about, given.again)
    scale, budget = SMOKE if given.smoke else Scale(), Budget(given.seconds, STARTED)
    if given.part == "B":
        measure_trainings(cells, scale, budget, device)
    else:
        encoders = (scale.encoder,) if given.part == "A" else scale.encoders
        batches = scale.batches if given.part == "A" else scale.batches[:1]
        ways = A if given.part == "A" else C
        cases = [(Case(encoder, batch, scale.size), ways) for batch in batches for encoder in encoders]
        if given.part == "A":
            cases.append((Case(scale.encoder, scale.batches[0], scale.large), LARGE))
        for number, (case, ways) in enumerate(cases):
            share = budget.share(1 / (len(cases) - number))
            measure_steps(cells, case, ways, (scale, share, device))
            with suppress(RuntimeError):  # after a fault of the GPU each call fails
                torch.compiler.reset()
                gc.collect()
                torch.cuda.empty_cache()
    print(table(read(cells.path)))


if __name__ == "__main__":
    main()
