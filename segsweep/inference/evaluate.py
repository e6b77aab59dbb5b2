"""How good a trained model is, on any split of its own or of other data, and how sure that is."""

import csv
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segsweep import metrics
from segsweep.config.checks import read
from segsweep.data.batches import Batch, EvalBatches, Pixels
from segsweep.data.dataset import Dataset, read_split
from segsweep.data.geometry import Canvas
from segsweep.data.labels import VOID
from segsweep.engine import device as devices
from segsweep.engine.counting import confusion_matrices
from segsweep.engine.execution import Execution
from segsweep.engine.scorer import Scorer, Watch, own_grid
from segsweep.errors import ConfigError, first_line
from segsweep.inference.find import Found
from segsweep.nn.checkpoint import ModelInfo, describe, load_model
from segsweep.nn.tiles import limit
from segsweep.nn.unet import predict
from segsweep.paths import save_json
from segsweep.runs import journal
from segsweep.runs.records import End, Run, Start

log = logging.getLogger(__name__)

FOLDER, RESULT = "evaluations", "metrics.json"
RATIO = 0.02  # of the image's diagonal: how thick a boundary is, the paper's
STEPS = 256  # thresholds are multiples of 1 / STEPS


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        folder: where it lies.
        metrics: by name: those of training, `boundary_iou`, and for two classes `threshold/...`.
        intervals: 95 %, lowest and highest, by the metric's name; NaN where too few images tell.
        looks: how often the run's test split has been scored, this time included; 0 for another split or other data.
    """

    folder: Path
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    looks: int


@dataclass(frozen=True)
class EvaluationRecord:
    """What `metrics.json` in an evaluation's folder holds. Older files lack what has a default.

    Attributes:
        split: that was scored.
        epoch: after which the model was kept.
        data_digest: of the data.
        images: number of them in the split.
        metrics, intervals: as in `Result`, with None for NaN.
        own: whether the images are those of this split of the run's.
        tta: views, as `train.tta`.
        times: how often evaluations of this name scored the run's test split.
        threshold_chosen_on: for two classes the split whose best threshold was taken.
    """

    split: str
    epoch: int | None
    data_digest: str
    images: int
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float | None, float | None]]
    own: bool = False
    tta: str = "none"
    times: int = 0
    threshold_chosen_on: str | None = None


def read_evaluation(folder: Path) -> EvaluationRecord | None:
    """Read what an evaluation found; None where there is none.

    Raises:
        ConfigError: its file is damaged.
    """
    path = folder / RESULT
    try:
        return read(EvaluationRecord, json.loads(path.read_text(encoding="utf-8")), "evaluation")
    except FileNotFoundError:
        return None
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{path}: damaged: {first_line(error)} Evaluate again, after removing it.") from error


@dataclass
class Counts:
    """What one pass over a split leaves, for each image in the order of `keys`.

    Attributes:
        keys: of the samples.
        matrices: confusion matrices, int64 `k k`, targets in rows.
        boundaries: for each class pixels in both boundaries and in either, int64 `k 2`.
        histogram: for two classes, of all images: pixels of background and foreground by the number of thresholds
            that they are above, int64 `2 STEPS`.
    """

    keys: list[str] = field(default_factory=list)
    matrices: list[NDArray[np.int64]] = field(default_factory=list)
    boundaries: list[NDArray[np.int64]] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, STEPS), np.int64))


def evaluate(
    found: Found,
    data: Dataset,
    split: str = "val",
    name: str | None = None,
    *,
    title: str = "other",
    device: str = "auto",
    tta: str | None = None,
    watch: Watch = lambda items, *_: items,
) -> Result:
    """Score a run's best checkpoint as its training did: same batch, precision, layout, tiles and views.

    Args:
        found: the model; its run's journal says how it was trained.
        data: the run's own, or other data with the same classes.
        split: of the data.
        name: of the evaluation, and of its folder in the run's `evaluations/`; default: the split, and for other images
            than the run's `title` and their digest, and other views than its own.
        title: of the data.
        device: as `train.device`.
        tta: views, as `train.tta`; None: as the run.
        watch: wraps the iterator over the batches; also given their number and a title.

    Raises:
        ConfigError: no such split, data that the model was not made for, or images that it has learnt.
    """
    if name is not None and (not re.fullmatch(r"[\w.+-]+", name) or not name.strip(".")):
        raise ConfigError(f"--name {name}: letters, digits and . _ + - make the name of a folder.")
    run, info = journal.started(found.run), describe(found.model)
    start = run.starts[-1]
    if split not in data.parts:
        raise ConfigError(
            f"--split {split}: the data have {', '.join(data.parts)}. Try --split {next(iter(data.parts))}."
        )
    known = _splits(found.run) if data.store.digest == start.data_digest else {}
    keys = {data.samples[index].key for index in data.parts[split]}
    own = keys == known.get(split)
    if split != "train" and (learnt := len(keys & known.get("train", set()))):
        raise ConfigError(
            f"--split {split}: {learnt} of these {len(keys)} images were in the run's training split, so a score would "
            "be that of a good memory. Leave out data.split, data.fold, data.seed and data.group, or say --split train."
        )
    model = load_model(found.model, devices.find(device))
    _refuse_other_data(data, info)
    execution = _execution(start, next(model.parameters()).device)
    execution.prepare(model)
    as_trained = start.settings.train.tta
    views = tta or as_trained
    tile = limit(info.size, model.encoder.input_size, start.settings.data.tile)
    scorer, where = Scorer(execution, views, tile, watch), next(model.parameters()).device

    def count(split: str, edges: bool = True) -> Counts:
        pixels, canvas = Pixels(data.store, data.labels, where), Canvas(info.size, info.resize)
        batches = EvalBatches(pixels, data.parts[split], canvas, start.execution.micro_batch)
        return _counted(scorer.iter_logits(model, batches), data, edges)

    with devices.fitting("Try --device cpu."):
        counts = count(split)
    scored = _scores(counts, data.labels.names)
    usual = split if own else f"{split}-{title}-{data.store.digest[:6]}"
    usual += "" if views == as_trained else f"-tta-{views}"
    folder = found.run / FOLDER / (name or usual)
    times = _times(folder) + (own and split == "test")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    chosen_on: str | None = None
    if data.labels.logits == 1:
        rows = curve(counts.histogram)
        chosen_on = "val" if "val" in data.parts else split
        chosen = rows if chosen_on == split else curve(count(chosen_on, edges=False).histogram)
        if (best := best_threshold(chosen)) is not None:
            scored |= {f"threshold/{key}": value for key, value in rows[best].items()}
    intervals = bootstrap(counts)
    digest, images = data.store.digest, len(counts.keys)
    evaluation = EvaluationRecord(split, info.epoch, digest, images, scored, intervals, own, views, times, chosen_on)
    _write(folder, counts, data.labels.names, rows)
    save_json(folder / RESULT, asdict(evaluation))
    looks = _looks(found.run, run) if own and split == "test" else 0
    return Result(folder, scored, intervals, looks)


def boundary(mask: Tensor, void: Tensor) -> Tensor:
    """The pixels of a mask that are near its edge: within 2 % of the image's diagonal, the image's own edge included.

    As Cheng et al. 2021 have it (https://arxiv.org/abs/2103.16562): the mask without what is left of it after eroding
    it by a square. Void pixels are no edge, and in no boundary.

    Args:
        mask, void: `h w` bool.
    """
    distance = max(1, round(RATIO * math.hypot(*mask.shape)))
    # Beyond the image lies background: one frame of it is enough.
    outside = F.pad(~(mask | void), (1, 1, 1, 1), value=True)
    inside = tuple(_reached(mask.any(1 - dim), distance) for dim in (0, 1))
    near = outside[inside]
    for dim in (0, 1):
        near = _grown(near, distance, dim)
    found = torch.zeros_like(outside)
    found[inside] = near
    return mask & found[1:-1, 1:-1] & ~void


def _reached(there: Tensor, distance: int) -> slice:
    """Of one side of an image, with a frame, what is within a distance of where something is."""
    places = there.nonzero()
    if not len(places):
        return slice(0, 0)
    return slice(max(0, int(places[0]) + 1 - distance), int(places[-1]) + 2 + distance)


def _grown(mask: Tensor, distance: int, dim: int) -> Tensor:
    """A mask `h w` and all within a distance of it along one dimension, in time that the distance does not change."""
    length = mask.shape[dim]
    sums = F.pad(mask.cumsum(dim, dtype=torch.int32), (0, 0, 1, 0) if dim == 0 else (1, 0))
    places = torch.arange(length, device=mask.device)
    ends = sums.index_select(dim, (places + distance + 1).clamp(max=length))
    return ends > sums.index_select(dim, (places - distance).clamp(min=0))


def boundaries(prediction: Tensor, target: Tensor, classes: int) -> NDArray[np.int64]:
    """For each class the pixels in both boundaries and in either, int64 `k 2`; both are `h w` class indices."""
    void = target == VOID
    found = np.zeros((classes, 2), np.int64)
    for index in range(classes):
        masks = [(prediction == index) & ~void, target == index]
        if any(bool(mask.any()) for mask in masks):
            ours, theirs = (boundary(mask, void) for mask in masks)
            found[index] = torch.stack([(ours & theirs).sum(), (ours | theirs).sum()]).cpu().numpy()
    return found


def histogram(logits: Tensor, target: Tensor) -> NDArray[np.int64]:
    """Pixels of background and foreground by the number of thresholds 1/256, 2/256, ... that they are above, `2 256`.

    Compared as logits, so that threshold 0.5 is to the last pixel what training decides by.

    Args:
        logits: `h w`.
        target: `h w` class indices.
    """
    levels = torch.arange(1, STEPS, dtype=torch.float64) / STEPS
    above = torch.bucketize(logits, levels.logit().to(logits))
    counted = target != VOID
    flat = (target[counted].long() * STEPS + above[counted]).cpu()
    return torch.bincount(flat, minlength=2 * STEPS).view(2, STEPS).numpy()


def curve(counted: NDArray[np.int64]) -> list[dict[str, float]]:
    """IoU, Dice, precision and recall of the foreground at each threshold, from a histogram `2 256`; NaN for 0 / 0."""
    above = counted[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    below = counted.sum(1, keepdims=True) - above
    matrices = np.stack([below.T, above.T], -1)  # of each threshold
    columns = {
        "at": np.arange(1, STEPS) / STEPS,
        "iou": metrics.iou(matrices)[:, 1],
        "dice": metrics.dice(matrices)[:, 1],
        "precision": metrics.precision(matrices)[:, 1],
        "recall": metrics.recall(matrices)[:, 1],
    }
    return [dict(zip(columns, row, strict=True)) for row in np.stack(list(columns.values()), 1).tolist()]


def best_threshold(rows: Sequence[Mapping[str, float]]) -> int | None:
    """The row with the best IoU, of equal ones that closest to 0.5; None where no row has one."""
    scored = [i for i, row in enumerate(rows) if not math.isnan(row["iou"])]
    return max(scored, key=lambda i: (rows[i]["iou"], -abs(rows[i]["at"] - 0.5)), default=None)


def bootstrap(counts: Counts, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of IoU, Dice, accuracy and boundary IoU: images drawn with replacement, their pixels pooled.

    A mean over classes is one over the same classes each time: draws that miss one which the split has are left out.
    """
    weights, _ = metrics.resample(np.random.default_rng(seed), len(counts.keys))
    matrices, edges = (metrics.pool(np.stack(each), weights) for each in (counts.matrices, counts.boundaries))
    needed = np.sum(counts.matrices, (0, 2)) > 0
    whole = (matrices.sum(-1) > 0)[:, needed].all(1)
    matrices, edges = matrices[whole], edges[whole]
    drawn = {
        "iou": metrics.pooled_iou(matrices),
        "dice": metrics.overall(metrics.where_present(matrices, metrics.dice(matrices))),
        "accuracy": metrics.accuracy(matrices),
        "boundary_iou": metrics.overall(metrics.where_present(matrices, _boundary_iou(edges))),
    }
    return {name: metrics.interval(values) for name, values in drawn.items()}


def _boundary_iou(edges: NDArray[Any]) -> NDArray[np.float64]:
    """Of each class, from pixels in both boundaries and in either, `... k 2` to `... k`; NaN for 0 / 0."""
    return metrics.ratio(edges[..., 0], edges[..., 1])


def _splits(run: Path) -> dict[str, set[str]]:
    """Return the keys of a run's images by split."""
    found: dict[str, set[str]] = {}
    for row in read_split(run):
        found.setdefault(row["split"], set()).add(row["key"])
    return found


def _execution(start: Start, device: torch.device) -> Execution:
    """Return how the training ran its model; in fp32 where this machine cannot."""
    try:
        precision = devices.precision(start.execution.precision, device)
    except ConfigError as error:
        log.warning(
            "trained in %s: %s Scored in fp32, which may change a score a little.", start.execution.precision, error
        )
        precision = torch.float32
    return Execution(precision, start.execution.channels_last)


def _refuse_other_data(data: Dataset, info: ModelInfo) -> None:
    if list(data.labels.names) != info.classes:
        raise ConfigError(
            f"the data have the classes {', '.join(data.labels.names)}; the model was trained on "
            f"{', '.join(info.classes)}. Name them alike with data.classes."
        )
    kind, wanted = str(data.store.dtype), info.model["in_channels"]
    if (data.store.channels not in (1, wanted)) or (wanted not in (3, data.store.channels)):
        raise ConfigError(
            f"the data have {data.store.channels} channels; the model was trained on {wanted}. Convert them."
        )
    if kind != info.dtype:
        raise ConfigError(f"the data are {kind}; the model was trained on {info.dtype}. Convert them.")


@torch.inference_mode()
def _counted(scored: Iterable[tuple[Batch, Tensor]], data: Dataset, edges: bool) -> Counts:
    """Count what a pass over a split gives.

    Args:
        scored: batches and their logits.
        edges: whether boundaries are counted, too.
    """
    counts, classes = Counts(), len(data.labels.names)
    for batch, logits in scored:
        for i, index in enumerate(batch.indices):
            target = batch.targets[i]
            parts = []
            for rows, own in own_grid(batch, logits, i):
                parts.append(predict(own[None])[0])
                if len(own) == 1:
                    counts.histogram += histogram(own[0], target[rows])
            prediction = torch.cat(parts)
            counts.keys.append(data.samples[index].key)
            counts.matrices.append(confusion_matrices([prediction], [target], classes)[0])
            if edges:
                counts.boundaries.append(boundaries(prediction, target, classes))
    return counts


def _scores(counts: Counts, names: Sequence[str]) -> dict[str, float]:
    edges = metrics.where_present(np.sum(counts.matrices, 0), _boundary_iou(np.sum(counts.boundaries, 0)))
    return {
        **metrics.scores(counts.matrices, names),
        "boundary_iou": float(metrics.overall(edges)),
        **{f"boundary_iou/{name}": float(score) for name, score in zip(names, edges, strict=True)},
    }


def _looks(folder: Path, run: Run) -> int:
    """Count how often the run's test split was scored: by the training, and by evaluations of whatever name."""
    by_training = sum(isinstance(record, End) and bool(record.tested) for record in run.records)
    return by_training + sum(_times(path.parent) for path in (folder / FOLDER).glob(f"*/{RESULT}"))


def _times(folder: Path) -> int:
    """Count how often an evaluation of this name has looked at the run's test split."""
    before = read_evaluation(folder)
    return before.times if before else 0


def _write(
    folder: Path,
    counts: Counts,
    names: Sequence[str],
    thresholds: Sequence[Mapping[str, float]],
) -> None:
    """Write images.csv, confusion.csv and, for two classes, thresholds.csv."""
    images = []
    for key, matrix, edges in zip(counts.keys, counts.matrices, counts.boundaries, strict=True):
        images.append(
            {
                "key": key,
                "iou": float(metrics.image_iou(matrix)),
                "dice": float(metrics.overall(metrics.dice(matrix))),
                "accuracy": float(metrics.accuracy(matrix)),
                "boundary_iou": float(metrics.overall(_boundary_iou(edges))),
                "pixels": int(matrix.sum()),
                **{f"iou/{name}": float(score) for name, score in zip(names, metrics.iou(matrix), strict=True)},
            }
        )
    total = np.sum(counts.matrices, 0).tolist()
    confusion = [{"target": name, **dict(zip(names, row, strict=True))} for name, row in zip(names, total, strict=True)]
    _table(folder / "images.csv", images)
    _table(folder / "confusion.csv", confusion)
    if thresholds:
        _table(folder / "thresholds.csv", thresholds)


def _table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
