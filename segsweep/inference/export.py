"""A trained model as one file that runs without segsweep: ONNX, or PyTorch's own exported program."""

import json
import logging
import math
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segsweep import __version__
from segsweep.data.batches import EvalBatches, Pixels
from segsweep.data.dataset import Dataset, evenly_spaced
from segsweep.data.geometry import SMALLEST, Canvas, Size
from segsweep.data.store import Watch, unwatched
from segsweep.engine.execution import PLAIN, Execution
from segsweep.errors import ConfigError, first_line, unwritable
from segsweep.inference.running import canvas, execution, without_views
from segsweep.nn.checkpoint import ModelInfo, describe, load_model
from segsweep.nn.encoder import whole_strides
from segsweep.nn.tiles import limit
from segsweep.nn.unet import UNet, predict
from segsweep.paths import atomically, extra

log = logging.getLogger(__name__)

FORMATS = ("onnx", "pt2")
OTHER = dict(zip(FORMATS, reversed(FORMATS), strict=True))
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}  # packages
METADATA = "segsweep.json"  # in a pt2 file; in an ONNX file each key is a property of its own
TOLERANCE, EQUAL = 1e-3, 0.9999  # of logits; of pixels
IMAGES, BATCH = 64, 4  # that are compared at most; at once
ROUNDS = 4  # batches of a timed block
PATIENCE = 120  # seconds that torch may reason about sizes: windowed attention makes it think for ever
ONNX_LIMIT = 2**31  # bytes of a protobuf

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Heights and widths that a model takes: multiples of `step` from `least` on, or `fixed` alone."""

    step: int = 1
    least: int = SMALLEST
    fixed: Size | None = None

    def takes(self, size: Size) -> bool:
        return size == self.fixed if self.fixed else all(side >= self.least and side % self.step == 0 for side in size)

    def near(self, size: Size) -> Size:
        """Return the smallest valid size that is not smaller; or the fixed size."""
        height, width = (self.step * math.ceil(max(side, self.least) / self.step) for side in size)
        return self.fixed or (height, width)

    def __str__(self) -> str:
        what = "any" if self.step == 1 else f"multiples of {self.step}"
        return f"{self.fixed[0]}x{self.fixed[1]} only" if self.fixed else f"{what} from {self.least}x{self.least}"


@dataclass(frozen=True)
class Comparison:
    """Comparison of an exported model with PyTorch in fp32, on the same images and threads."""

    images: int
    difference: float  # the largest of any logit
    equal: float  # share of pixels with the same class
    rates: tuple[float, float]  # images/s of PyTorch and of the exported model, medians; NaN where none was timed
    as_scored: float  # share of pixels with the class that the model gives them run as in training, in bf16 say


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified, the sizes it takes, and how images are brought to it."""

    path: Path
    sizes: Sizes
    images: str
    comparison: Comparison
    how: str  # the model was run for `Comparison.as_scored`: precision and layout, and why


def export(
    model: Path,
    path: Path,
    kind: str = "onnx",
    data: Dataset | None = None,
    watch: Watch = unwatched,
    rounds: int = ROUNDS,
) -> Exported:
    """Write a model in another format, with the normalisation inside, and compare it with PyTorch at once.

    The input is `pixels`, float32 `b c h w` on the scale of the stored data type; the output is `logits`, `b k h w`.
    The batch is free; of height and width as much as encoder and format allow.

    Args:
        model, path: a run's best.safetensors, and the file that is written.
        kind: onnx or pt2.
        data: whose validation images are compared; None: random pixels.
        rounds: of the timing; 0: no timing.

    Raises:
        ConfigError: a package is missing, a place that cannot be written, an encoder that cannot be exported, or a
            result that is not the model's. No file is left then.
    """
    needs(kind)
    info, unet = describe(model), load_model(model)
    scored, how = execution(info, torch.device("cpu"))
    how = "; ".join(filter(None, (how, without_views(info))))
    weight = sum(tensor.numel() * tensor.element_size() for tensor in unet.state_dict().values())
    if kind == "onnx" and weight >= ONNX_LIMIT:
        raise ConfigError(f"--format onnx: can hold 2 GB, and {info.encoder} has {weight / 1e9:.1f}. Try pt2.")
    _refuse_unwritable(path, kind)
    comparisons: list[Comparison] = []

    def write(sizes: Sizes, target: Path) -> None:
        run = _written(unet, sizes, target, kind, metadata(info, unet, sizes))
        for shape in _trials(sizes, unet.encoder.maps[-1].stride):
            _refuse_difference(compare(unet, run, [_noise(shape, unet, info.range)]), kind)
        batches = [_noise((3, *sizes.near(info.size)), unet, info.range)]
        if data:
            batches = list(_validation(data, info, unet, sizes))
        comparisons.append(compare(unet, run, watch(batches, len(batches), "comparing"), rounds, scored))
        _refuse_difference(comparisons[-1], kind)

    refusal: Exception | None = None
    for sizes in levels(unet, info.size):
        try:
            atomically(path, partial(write, sizes))
            return Exported(path, sizes, preparation(info), comparisons[-1], how)
        except Exception as error:  # tracing and conversion raise nearly anything
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise unwritable(path, error, "FILE") from error
            log.debug("%s, sizes %s: %s", kind, sizes, error)
            refusal = error
    if isinstance(refusal, ConfigError):
        raise refusal
    why = first_line(refusal) if refusal else ""
    raise ConfigError(f"{info.encoder}: cannot be exported as {kind}: {why} Try --format {OTHER[kind]}.") from refusal


def needs(kind: str) -> None:
    """Refuse a format whose packages are not installed by a `ConfigError`."""
    if missing := ", ".join(name for name in NEEDED[kind] if find_spec(name) is None):
        raise ConfigError(f"--format {kind}: needs {missing}, not installed. Type: {extra('export')}")


def metadata(info: ModelInfo, model: UNet, sizes: Sizes) -> Mapping[str, object]:
    """Return what a user of the exported file has to know, as JSON values."""
    (low, high), mean, std = info.range, model.mean.flatten().tolist(), model.std.flatten().tolist()
    rule = "foreground where the logit is above 0" if model.num_classes == 1 else "the class of the largest logit"
    return {
        "producer": f"segsweep {__version__}",
        "encoder": info.encoder,
        "classes": info.classes,
        "input": f"pixels, float32 b c h w, {model.in_channels} channels, from {low:g} to {high:g}; not normalised",
        "output": f"logits, float32 b k h w; {rule}",
        "sizes": str(sizes),
        "images": preparation(info),
        "step": sizes.step,
        "dtype": info.dtype,
        "range": [low, high],
        "normalization": {"inside": True, "mean": mean, "std": std, "clip": model.architecture.normalization.clip},
        "size": list(info.size),
        "resize": info.resize,
        "zoom": info.zoom,
        "weights_source": info.weights_source,
        "tta": info.tta,
        **{name: value for name, value in (("epoch", info.epoch), ("val_iou", info.val_iou)) if value is not None},
    }


def preparation(info: ModelInfo) -> str:
    """Return what `segsweep predict` does to an image first; users of an exported model must do it themselves."""
    if not info.resamples:
        height, width = info.tile or info.size
        tiled = f"at {height}x{width}: smaller ones padded by repeating the edge, larger ones in overlapping tiles"
        return f"{tiled}, as in training and by segsweep predict" if info.filled else "as they are"
    brought = f"resized to {info.size[0]}x{info.size[1]} first"
    how = {
        "crop": f"resized first, to {info.zoom:g} times their height and width (zoom={info.zoom:g})",
        "pad": f"{brought}, with their aspect ratio, padded on both sides alike by repeating the edge (resize=pad)",
        "squash": f"{brought}, stretched (resize=squash)",
    }[info.resize]
    resized = "cut the padding off the logits, and resize them" if info.resize == "pad" else "resize the logits"
    return f"{how}, as in training and by segsweep predict; then {resized} to the image's size"


def levels(model: UNet, size: Size) -> Iterator[Sizes]:
    """Yield the freest sizes first, and last the one that the model was trained at."""
    step = math.ceil(model.encoder.maps[-1].stride)
    # More than one value on the deepest map: to torch, a side of one is a number and no symbol.
    deepest = max(SMALLEST, step, *(math.ceil(level.stride) for level in model.plan.pyramid))
    if not model.encoder.input_size:  # else it sees a resized image, and nothing is padded
        yield Sizes(1, deepest + 1)
    yield Sizes(step, step * (deepest // step + 1))
    yield Sizes(fixed=size)


class AnySize(nn.Module):
    """A U-Net that pads where the size is a symbol, too: the edge is repeated as in `UNet.forward`, by its index."""

    def __init__(self, model: UNet):
        super().__init__()
        self.model, self.step = model, model.encoder.multiple

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = (torch.arange(side, device=pixels.device) for side in pixels.shape[-2:])
        padded = pixels.index_select(2, self._repeated(rows)).index_select(3, self._repeated(columns))
        # Selected as well: a slice is a view, of which torch.export notes that it is not contiguous.
        logits: Tensor = self.model(padded)
        return logits.index_select(2, rows).index_select(3, columns)

    def _repeated(self, places: Tensor) -> Tensor:
        length = places.shape[0]
        whole = (length + self.step - 1) // self.step * self.step
        return torch.arange(whole, device=places.device).clamp(max=length - 1)


def traced(model: UNet, sizes: Sizes) -> ExportedProgram:
    """Return the model as a graph whose batch, height and width are symbols as far as `sizes` says."""
    step = math.ceil(model.encoder.maps[-1].stride)
    shapes: dict[int, Any] = {0: Dim("batch", min=1)}
    whole: nn.Module = model
    if sizes.fixed:
        example = sizes.fixed
    elif sizes.step == 1:
        whole = AnySize(model)
        example = (sizes.least + 2 * step + step // 3, sizes.least + 4 * step + step // 3)
        shapes |= {2: Dim("height", min=sizes.least), 3: Dim("width", min=sizes.least)}
    else:
        example = (sizes.least + step, sizes.least + 3 * step)
        least = sizes.least // step
        shapes |= {2: step * Dim("_height", min=least), 3: step * Dim("_width", min=least)}
    pixels = torch.zeros(2, model.in_channels, *example)
    free = not model.encoder.input_size
    with torch.no_grad(), _quiet(), _within(PATIENCE), whole_strides() if free else nullcontext():
        return torch.export.export(
            whole, (pixels,), dynamic_shapes=(shapes,), prefer_deferred_runtime_asserts_over_guards=free
        )


def _written(model: UNet, sizes: Sizes, path: Path, kind: str, about: Mapping[str, object]) -> Run:
    """Write the file and take it up again from there."""
    program = traced(model, sizes)
    if kind == "pt2":
        with path.open("wb") as file, _quiet():
            torch.export.save(program, file, extra_files={METADATA: json.dumps(about)})
        return opened(path, kind)
    with torch.no_grad(), _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, input_names=["pixels"], output_names=["logits"], verbose=False
        )
    assert converted is not None
    _name_sides(converted.model.graph)
    properties = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    converted.model.metadata_props.update(properties)
    converted.save(path)
    return opened(path, kind)


def _name_sides(graph: Any) -> None:
    """Call the free sides what they are, where torch.export numbered them."""
    import onnx_ir

    (pixels,) = graph.inputs
    named = zip(pixels.shape, ("batch", "", "height", "width"), strict=True)
    names = {str(side): onnx_ir.SymbolicDim(name) for side, name in named if isinstance(side, onnx_ir.SymbolicDim)}
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape([names.get(str(side), side) for side in value.shape])


def opened(path: Path, kind: str) -> Run:
    """Open an exported file as a function from pixels to logits, on as many threads as torch has."""
    if kind == "pt2":
        with path.open("rb") as file, _quiet():
            return torch.export.load(file).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


@torch.no_grad()
def compare(model: UNet, run: Run, batches: Iterable[Tensor], rounds: int = 0, scored: Execution = PLAIN) -> Comparison:
    """Run both on the same pixels, `b c h w` each, in fp32, as the exported model computes.

    Args:
        rounds: of the timing, two blocks of each side on the largest batch; 0: no timing.
        scored: how the model was run when it was scored; its classes are compared, too.
    """
    model.eval()
    as_scored = scored.prepare(deepcopy(model)) if scored.precision != torch.float32 else None
    plain = Execution(channels_last=scored.channels_last)
    plain.prepare(model)
    images, equal, equal_scored, pixels, largest, most = 0, 0, 0, 0, 0.0, torch.empty(0)
    sides: tuple[Run, Run] = (lambda batch: plain.forward(model, batch), run)
    for batch in batches:
        ours, theirs = (side(batch) for side in sides)
        difference = float((ours - theirs).abs().max())
        largest = max(largest, difference) if math.isfinite(difference) else math.inf
        classes = predict(theirs)
        same = predict(ours) == classes
        images, equal, pixels = images + len(batch), equal + int(same.sum()), pixels + same.numel()
        told = predict(scored.forward(as_scored, batch).float()) == classes if as_scored else same
        equal_scored += int(told.sum())
        most = batch if batch.numel() > most.numel() else most
    rates: tuple[list[float], list[float]] = ([], [])
    for side, rate in 2 * list(zip(sides, rates, strict=True)) if rounds else []:
        side(most)  # not timed: the other's threads may still be awake
        for _ in range(rounds):
            started = time.perf_counter()
            side(most)
            rate.append(len(most) / (time.perf_counter() - started))
    ours_rate, their_rate = (statistics.median(rate) if rate else math.nan for rate in rates)
    return Comparison(images, largest, equal / pixels, (ours_rate, their_rate), equal_scored / pixels)


def _refuse_difference(comparison: Comparison, kind: str) -> None:
    if comparison.difference > TOLERANCE or comparison.equal < EQUAL:
        raise ConfigError(
            f"--format {kind}: the exported model's logits differ from PyTorch's by up to {comparison.difference:.2g} "
            f"(at most {TOLERANCE:g}), {100 * comparison.equal:.2f} % of the pixels are equal (at least "
            f"{100 * EQUAL:g} %). No file was written. Try --format {OTHER[kind]}."
        )


def _trials(sizes: Sizes, stride: float) -> Sequence[tuple[int, int, int]]:
    """Batches, heights and widths at which a graph shows whether it holds beyond the example it was traced with."""
    if sizes.fixed:
        return [(1, *sizes.fixed), (3, *sizes.fixed)]
    least, step = sizes.least, math.ceil(stride)
    odd = 3 if sizes.step == 1 else 0
    return [(1, least, least), (3, least + 2 * step, least + odd), (1, least, least + 4 * step + odd)]


def _noise(shape: tuple[int, int, int], model: UNet, limits: tuple[float, float]) -> Tensor:
    """Return random pixels `b c h w` within the range that the model was trained on."""
    (low, high), (batch, height, width) = limits, shape
    drawn = torch.rand(batch, model.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * drawn


def _validation(data: Dataset, info: ModelInfo, model: UNet, sizes: Sizes) -> Iterator[Tensor]:
    """Return validation images as the training scored them, or fitted into a size that is taken and no tile's."""
    chosen = evenly_spaced(data.parts["val"], IMAGES)
    seen_on, pixels = canvas(info), Pixels(data.store, data.labels, torch.device("cpu"))
    most = limit(info.size, model.encoder.input_size)
    seen = [seen_on.whole(pixels.size(i)).size for i in chosen]
    if not all(sizes.takes(c) and c[0] <= most[0] and c[1] <= most[1] for c in seen):
        seen_on = Canvas(sizes.near(info.size), "pad")
    return (batch.image for batch in EvalBatches(pixels, chosen, seen_on, BATCH))


def _refuse_unwritable(path: Path, kind: str) -> None:
    if path.suffix != f".{kind}":  # no other file of a run is written over
        raise ConfigError(f"-o {path}: must end in .{kind}. Try -o {path.with_suffix(f'.{kind}')}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise unwritable(path, error, "FILE") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says of itself: what matters is compared afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "torch.fx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside when the time is over; in other threads than the main one there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"the image sizes were not determined within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again: some of torch's code swallows exceptions
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
