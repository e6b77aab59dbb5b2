"""How good a trained model is, on any split of its own or of other data, and how sure that is."""

import csv
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep import metrics
from segsweep.data.batches import EvalBatches
from segsweep.data.dataset import Dataset, read_split
from segsweep.data.labels import VOID
from segsweep.engine import device as devices
from segsweep.engine.execution import Execution
from segsweep.errors import ConfigError
from segsweep.inference.find import Found
from segsweep.nn.checkpoint import describe, load_model
from segsweep.nn.tiles import limit
from segsweep.nn.unet import UNet, predict
from segsweep.paths import save_json
from segsweep.runs import journal
from segsweep.training.loop import FLIPS, Watch, own_grid, seen

log = logging.getLogger(__name__)

FOLDER = "evaluations"
RATIO = 0.02  # of the image's diagonal: how thick a boundary is, the paper's
STEPS = 256  # thresholds are multiples of 1 / STEPS
RESAMPLES = 2000


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
    matrices: list[Tensor] = field(default_factory=list)
    boundaries: list[Tensor] = field(default_factory=list)
    histogram: Tensor = field(default_factory=lambda: torch.zeros(2, STEPS, dtype=torch.int64))


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
    records = journal.read(found.run)
    start, about = journal.last_start(records), describe(found.model)
    if split not in data.parts:
        raise ConfigError(
            f"--split {split}: the data have {', '.join(data.parts)}. Try --split {next(iter(data.parts))}."
        )
    known = _splits(found.run) if data.store.digest == start["data_digest"] else {}
    keys = {data.samples[index].key for index in data.parts[split]}
    own = keys == known.get(split)
    if split != "train" and (learnt := len(keys & known.get("train", set()))):
        raise ConfigError(
            f"--split {split}: {learnt} of these {len(keys)} images were in the run's training split, so a score would "
            "be that of a good memory. Leave out data.split, data.fold, data.seed and data.group, or say --split train."
        )
    model = load_model(found.model, devices.find(device))
    _refuse_other_data(data, about, model)
    execution = _execution(start, next(model.parameters()).device)
    execution.prepare(model)
    as_trained = start["config"]["train"].get("tta", "none")
    views = tta or as_trained
    count = partial(_counted, model, data, start, about, execution, FLIPS[views], watch)
    with devices.fitting("Try --device cpu."):
        counts = count(split)
    scored = _scores(counts, data.labels.names)
    usual = split if own else f"{split}-{title}-{data.store.digest[:6]}"
    usual += "" if views == as_trained else f"-tta-{views}"
    folder = found.run / FOLDER / (name or usual)
    times = _times(folder) + (own and split == "test")
    summary: dict[str, Any] = {
        "split": split,
        "own": own,
        "tta": views,
        "epoch": about.get("epoch"),
        "data_digest": data.store.digest,
        "images": len(counts.keys),
        "times": times,
    }
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    if data.labels.logits == 1:
        rows = curve(counts.histogram)
        chosen_on = "val" if "val" in data.parts else split
        chosen = rows if chosen_on == split else curve(count(chosen_on, edges=False).histogram)
        summary["threshold_chosen_on"] = chosen_on
        if (best := best_threshold(chosen)) is not None:
            scored |= {f"threshold/{key}": value for key, value in rows[best].items()}
    intervals = bootstrap(counts)
    summary |= {"metrics": scored, "intervals": intervals}
    _write(folder, counts, data.labels.names, rows, summary)
    looks = _looks(found.run, records) if own and split == "test" else 0
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


def boundaries(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """For each class the pixels in both boundaries and in either, int64 `k 2`; both are `h w` class indices."""
    void = target == VOID
    found = torch.zeros(classes, 2, dtype=torch.int64)
    for index in range(classes):
        masks = [(prediction == index) & ~void, target == index]
        if any(bool(mask.any()) for mask in masks):
            ours, theirs = (boundary(mask, void) for mask in masks)
            found[index] = torch.stack([(ours & theirs).sum(), (ours | theirs).sum()]).cpu()
    return found


def histogram(logits: Tensor, target: Tensor) -> Tensor:
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
    return torch.bincount(flat, minlength=2 * STEPS).view(2, STEPS)


def curve(counted: Tensor) -> list[dict[str, float]]:
    """IoU, Dice, precision and recall of the foreground at each threshold, from a histogram `2 256`; NaN for 0 / 0."""
    false, true = (part.flip(0).cumsum(0).flip(0)[1:].double() for part in counted)  # above each threshold
    missed = counted[1].sum() - true
    columns = {
        "at": torch.arange(1, STEPS).double() / STEPS,
        "iou": true / (true + false + missed),
        "dice": 2 * true / (2 * true + false + missed),
        "precision": true / (true + false),
        "recall": true / (true + missed),
    }
    return [dict(zip(columns, row, strict=True)) for row in torch.stack(list(columns.values()), 1).tolist()]


def best_threshold(rows: Sequence[Mapping[str, float]]) -> int | None:
    """The row with the best IoU, of equal ones that closest to 0.5; None where no row has one."""
    scored = [i for i, row in enumerate(rows) if not math.isnan(row["iou"])]
    return max(scored, key=lambda i: (rows[i]["iou"], -abs(rows[i]["at"] - 0.5)), default=None)


def bootstrap(counts: Counts, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of IoU, Dice, accuracy and boundary IoU: images drawn with replacement, their pixels pooled.

    A mean over classes is one over the same classes each time: draws that miss one which the split has are left out.
    """
    images = len(counts.keys)
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(rng.multinomial(images, [1 / images] * images, size=RESAMPLES)).double()
    matrices = torch.einsum("rn,nij->rij", weights, torch.stack(counts.matrices).double())
    both, either = torch.einsum("rn,nkb->brk", weights, torch.stack(counts.boundaries).double())
    there = matrices.sum(-1) > 0
    whole = there[:, torch.stack(counts.matrices).sum((0, 2)) > 0].all(1)
    matrices, both, either = matrices[whole], both[whole], either[whole]
    drawn = {
        "iou": metrics.overall(metrics.where_present(matrices, metrics.iou(matrices))),
        "dice": metrics.overall(metrics.where_present(matrices, metrics.dice(matrices))),
        "accuracy": metrics.accuracy(matrices),
        "boundary_iou": metrics.overall(metrics.where_present(matrices, both / either)),
    }
    return {name: _interval(values[~values.isnan()].numpy()) for name, values in drawn.items()}


def _interval(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _splits(run: Path) -> dict[str, set[str]]:
    """The keys of a run's images by split."""
    found: dict[str, set[str]] = {}
    for row in read_split(run):
        found.setdefault(row["split"], set()).add(row["key"])
    return found


def _execution(start: Mapping[str, Any], where: torch.device) -> Execution:
    """How the training ran its model; in fp32 where this machine cannot."""
    wanted = getattr(torch, start["precision_used"])
    try:
        devices.precision(devices.named(wanted), where)
    except ConfigError as error:
        log.warning(
            "trained in %s: %s Scored in fp32, which may change a score a little.", start["precision_used"], error
        )
        wanted = torch.float32
    return Execution(wanted, start.get("channels_last", True))


def _refuse_other_data(data: Dataset, about: Mapping[str, Any], model: UNet) -> None:
    if list(data.labels.names) != about["classes"]:
        raise ConfigError(
            f"the data have the classes {', '.join(data.labels.names)}; the model was trained on "
            f"{', '.join(about['classes'])}. Name them alike with data.classes."
        )
    kind, trained = str(data.store.dtype), about.get("dtype", "uint8")
    if (data.store.channels not in (1, model.in_channels)) or (model.in_channels not in (3, data.store.channels)):
        raise ConfigError(
            f"the data have {data.store.channels} channels; the model was trained on {model.in_channels}. Convert them."
        )
    if kind != trained:
        raise ConfigError(f"the data are {kind}; the model was trained on {trained}. Convert them.")


@torch.inference_mode()
def _counted(
    model: UNet,
    data: Dataset,
    start: Mapping[str, Any],
    about: Mapping[str, Any],
    execution: Execution,
    flips: Sequence[tuple[int, ...]],
    watch: Watch,
    split: str,
    edges: bool = True,
) -> Counts:
    size, config = (about["size"][0], about["size"][1]), start["config"]
    batches = EvalBatches(
        data.store,
        data.labels,
        data.parts[split],
        size=size,
        resize=about["resize"],
        batch_size=start["micro_batch"],
        device=next(model.parameters()).device,
    )
    tile = limit(size, model.encoder.input_size, config["data"].get("tile"))
    counts, classes = Counts(), len(data.labels.names)
    for batch, logits in seen(model, batches, execution, flips, tile, watch):
        for i, index in enumerate(batch.indices):
            target = batch.targets[i]
            parts = []
            for rows, own in own_grid(batch, logits, i):
                parts.append(predict(own[None])[0])
                if len(own) == 1:
                    counts.histogram += histogram(own[0], target[rows])
            prediction = torch.cat(parts)
            counts.keys.append(data.samples[index].key)
            counts.matrices.append(metrics.ConfusionMatrix(classes).update(prediction, target))
            if edges:
                counts.boundaries.append(boundaries(prediction, target, classes))
    return counts


def _scores(counts: Counts, names: Sequence[str]) -> dict[str, float]:
    pooled = metrics.ConfusionMatrix(len(names))
    pooled.matrix += torch.stack(counts.matrices).sum(0)
    both, either = torch.stack(counts.boundaries).sum(0).double().T
    edges = metrics.where_present(pooled.matrix, both / either)
    return {
        **metrics.scores(pooled, counts.matrices, names),
        "boundary_iou": float(metrics.overall(edges)),
        **{f"boundary_iou/{name}": float(score) for name, score in zip(names, edges, strict=True)},
    }


def _looks(run: Path, records: Sequence[Mapping[str, Any]]) -> int:
    """How often the run's test split has been scored: by the training, and by evaluations of whatever name."""
    by_training = sum(any(name.startswith("test/") for name in r) for r in records if r["kind"] == "end")
    return by_training + sum(_times(path.parent) for path in (run / FOLDER).glob("*/metrics.json"))


def _times(folder: Path) -> int:
    """How often an evaluation of this name has looked at the run's test split."""
    try:
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get("times", 0)
    except FileNotFoundError:
        return 0


def _write(
    folder: Path,
    counts: Counts,
    names: Sequence[str],
    thresholds: Sequence[Mapping[str, float]],
    summary: Mapping[str, Any],
) -> None:
    """metrics.json, images.csv, confusion.csv and, for two classes, thresholds.csv."""
    images = []
    for key, matrix, edges in zip(counts.keys, counts.matrices, counts.boundaries, strict=True):
        by_class = metrics.iou(matrix)
        both, either = edges.double().T
        images.append(
            {
                "key": key,
                "iou": float(metrics.overall(by_class)),
                "dice": float(metrics.overall(metrics.dice(matrix))),
                "accuracy": float(metrics.accuracy(matrix)),
                "boundary_iou": float(metrics.overall(both / either)),
                "pixels": int(matrix.sum()),
                **{f"iou/{name}": float(score) for name, score in zip(names, by_class, strict=True)},
            }
        )
    total = torch.stack(counts.matrices).sum(0).tolist()
    confusion = [{"target": name, **dict(zip(names, row, strict=True))} for name, row in zip(names, total, strict=True)]
    _table(folder / "images.csv", images)
    _table(folder / "confusion.csv", confusion)
    if thresholds:
        _table(folder / "thresholds.csv", thresholds)
    save_json(folder / "metrics.json", journal.finite(dict(summary)))


def _table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
