"""Score a trained model, with confidence intervals, on any split of its own or of other data."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segsweep import console, metrics
from segsweep.config.checks import read_file
from segsweep.data.batches import Batch, EvalBatches, Pixels
from segsweep.data.dataset import Dataset
from segsweep.data.labels import VOID
from segsweep.data.pairing import part_of
from segsweep.data.scan import Row
from segsweep.data.split import SPLIT, read_split
from segsweep.data.store import Watch, unwatched
from segsweep.engine import device as devices
from segsweep.engine.counting import matrices, pair_counts
from segsweep.engine.scorer import Scorer, own_grid
from segsweep.errors import ConfigError
from segsweep.inference.find import Found
from segsweep.inference.running import canvas, execution, refuse_far
from segsweep.nn.checkpoint import ModelInfo, describe, load_model
from segsweep.nn.tiles import limit
from segsweep.nn.unet import predict
from segsweep.paths import save_json
from segsweep.runs import journal
from segsweep.runs.records import End

FOLDER, RESULT = "evaluations", "metrics.json"
ALL = "all"  # a split: every image of every part
RATIO = 0.02  # of the image's diagonal: how thick a boundary is, the paper's
STEPS = 256  # thresholds are multiples of 1 / STEPS


@dataclass(frozen=True)
class Result:
    """What was found, and the folder where it lies."""

    folder: Path
    split: str
    images: int  # number of them in the split
    metrics: dict[str, float]  # those of training, `boundary_iou`, and for two classes `threshold/...`
    intervals: dict[str, tuple[float, float]]  # 95 %, by the metric's name; NaN where too few images tell
    looks: int  # how often the run's test split has been scored, now included; 0 for another split or other data
    how: str  # the model was run: precision and layout, and why
    groups: int  # of the images, which the intervals draw

    @property
    def drawn(self) -> str:
        """Say what the intervals are over."""
        alone = self.groups == self.images
        return console.counted(self.images, "image") if alone else console.counted(self.groups, "group") + " of images"


@dataclass(frozen=True)
class EvaluationRecord:
    """What `metrics.json` in an evaluation's folder holds. Older files lack what has a default."""

    split: str
    epoch: int | None  # after which the model was kept
    data_digest: str
    images: int  # number of them in the split
    metrics: Mapping[str, float | None]  # as in `Result`, with None for NaN
    intervals: Mapping[str, tuple[float | None, float | None]]
    own: bool = False  # whether the images are those of this split of the run's
    tta: str = "none"  # views, as `train.tta`
    times: int = 0  # how often evaluations of this name scored the run's test split
    threshold_chosen_on: str | None = None  # for two classes the split whose best threshold was taken
    how: str = ""  # as in `Result`


def read_evaluation(folder: Path) -> EvaluationRecord | None:
    """Read what an evaluation found, None where there is none; a damaged file is a `ConfigError`."""
    try:
        return read_file(EvaluationRecord, folder / RESULT, "evaluation", " Evaluate again, after removing it.")
    except FileNotFoundError:
        return None


@dataclass
class Counts:
    """What one pass over a split leaves, for each image; `boundaries` and `histogram` say what theirs are."""

    keys: list[str] = field(default_factory=list)
    matrices: list[NDArray[np.int64]] = field(default_factory=list)  # confusion matrices `k k`, targets in rows
    boundaries: list[NDArray[np.int64]] = field(default_factory=list)
    # For two classes, of all images.
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, STEPS), np.int64))


def evaluate(
    found: Found,
    data: Dataset,
    split: str | None = None,
    name: str | None = None,
    *,
    title: str = "other",
    device: str = "auto",
    tta: str | None = None,
    watch: Watch = unwatched,
) -> Result:
    """Score a run's best checkpoint as its training did: same batch, precision, layout, tiles and views.

    Where the device cannot, `how` of the result says what was done instead.

    Args:
        found: the model; its run's journal says how it was trained.
        data: the run's own, or other data with the same classes.
        split: train, val, test (or another name of them, as validation), or all: every image. None: all, of data that
            come without a split or folds and hold no image that the run was trained on, else val.
        name: of the evaluation's folder in the run's `evaluations/`; default: the split, with `title` and digest of
            other data than the run's, and with other views than its own.
        device: as `train.device`.
        tta: views, as `train.tta`; None: as the run.

    Raises ConfigError: no such split, data that the model was not made for, or images that it has learnt.
    """
    if name is not None and (not re.fullmatch(r"[\w.+-]+", name) or not name.strip(".")):
        raise ConfigError(f"--name {name}: must be the name of a folder: letters, digits and . _ + -")
    run, info = journal.started(found.run), describe(found.model)
    data = data.ordered(info.classes)
    start = run.starts[-1]
    same = data.store.digest == start.data_digest
    rows = read_split(found.run) if same or (found.run / SPLIT).is_file() else []
    learnt = _learnt(data, rows, by="key" if same else "image")
    if split is None:
        given = bool(data.folds) or any(sample.split for sample in data.samples)
        split = "val" if same or learnt or given else ALL
    split = part_of(split) or split
    parts = data.parts | {ALL: sorted(set().union(*data.parts.values()))}
    if split not in parts:
        there = ", ".join(sorted(data.parts, key="val".__ne__))
        raise ConfigError(f"--split {split}: the data have {there}. Try --split val.")
    _refuse_learnt(split, parts[split], learnt, same)
    own = same and {data.samples[i].key for i in parts[split]} == {row["key"] for row in rows if row["split"] == split}
    devices.compute_as(start.asked.train.deterministic)
    model = load_model(found.model, devices.find(device, "--device "))
    where = next(model.parameters()).device
    _refuse_other_data(data, info)
    ran, how = execution(info, where)
    ran.prepare(model)
    views = tta or info.tta
    tile = limit(info.size, model.encoder.input_size, info.tile)
    scorer, seen_on = Scorer(ran, views, tile, watch), canvas(info)
    pixels = Pixels(data.store, data.labels, where)

    def count(split: str, edges: bool = True) -> Counts:
        batches = EvalBatches(pixels, parts[split], seen_on, start.execution.micro_batch)
        return _counted(scorer.iter_logits(model, batches), data, edges)

    with devices.fitting("Try --device cpu."):
        counts = count(split)
    scored = _scores(counts, data.labels.names)
    usual = split if own else f"{split}-{title}-{data.store.digest[:6]}"
    usual += "" if views == info.tta else f"-tta-{views}"
    folder, on_test = found.run / FOLDER / (name or usual), own and split == "test"
    times = _times(folder) + on_test
    folder.mkdir(parents=True, exist_ok=True)
    thresholds: list[dict[str, float]] = []
    chosen_on: str | None = None
    if data.labels.logits == 1:
        thresholds = curve(counts.histogram)
        chosen_on = split if split == ALL else "val"
        chosen = thresholds if chosen_on == split else curve(count(chosen_on, edges=False).histogram)
        if (best := best_threshold(chosen)) is not None:
            scored |= {f"threshold/{key}": value for key, value in thresholds[best].items()}
    of = {sample.key: group for sample, group in zip(data.samples, data.groups, strict=True)}
    groups = [of[key] for key in counts.keys]
    intervals = bootstrap(counts, groups)
    digest, images = data.store.digest, len(counts.keys)
    evaluation = EvaluationRecord(
        split, info.epoch, digest, images, scored, intervals, own, views, times, chosen_on, how
    )
    _write(folder, counts, data.labels.names, thresholds)
    save_json(folder / RESULT, asdict(evaluation))
    looks = 0
    if on_test:  # by the training, and by evaluations of whatever name
        looks = sum(isinstance(record, End) and bool(record.tested) for record in run.records)
        looks += sum(_times(path.parent) for path in (found.run / FOLDER).glob(f"*/{RESULT}"))
    return Result(folder, split, images, scored, intervals, looks, how, len(set(groups)))


def boundary(mask: Tensor, void: Tensor) -> Tensor:
    """Return the pixels of a mask within 2 % of the image's diagonal from its edge; `h w` bool each.

    As Cheng et al. 2021 have it (https://arxiv.org/abs/2103.16562): the mask without what is left of it after eroding
    it by a square. The image's own edge is one, too; void pixels are no edge, and in no boundary.
    """
    distance = max(1, round(RATIO * math.hypot(*mask.shape)))
    # Beyond the image lies background: one frame of it is enough.
    outside = F.pad(~(mask | void), (1, 1, 1, 1), value=True)
    inside = tuple(_reached(mask.any(1 - dim), distance) for dim in (0, 1))
    found = torch.zeros_like(outside)
    found[inside] = _grown(_grown(outside[inside], distance, 0), distance, 1)
    return mask & found[1:-1, 1:-1] & ~void


def _reached(there: Tensor, distance: int) -> slice:
    """Of one side of an image, with a frame, what is within a distance of where something is."""
    places = there.nonzero()
    return slice(max(0, int(places[0]) + 1 - distance), int(places[-1]) + 2 + distance) if len(places) else slice(0, 0)


def _grown(mask: Tensor, distance: int, dim: int) -> Tensor:
    """A mask `h w` and all within a distance of it along one dimension, in time that the distance does not change."""
    sums = F.pad(mask.cumsum(dim, dtype=torch.int32), (0, 0, 1, 0) if dim == 0 else (1, 0))
    places = torch.arange(mask.shape[dim], device=mask.device)
    ends = sums.index_select(dim, (places + distance + 1).clamp(max=len(places)))
    return ends > sums.index_select(dim, (places - distance).clamp(min=0))


def boundaries(prediction: Tensor, target: Tensor, classes: int) -> NDArray[np.int64]:
    """Count for each class the pixels in both boundaries and in either, int64 `k 2`, of class indices `h w`."""
    void = target == VOID
    found = np.zeros((classes, 2), np.int64)
    for index in range(classes):
        masks = [(prediction == index) & ~void, target == index]
        if any(bool(mask.any()) for mask in masks):
            ours, theirs = (boundary(mask, void) for mask in masks)
            found[index] = torch.stack([(ours & theirs).sum(), (ours | theirs).sum()]).cpu().numpy()
    return found


def histogram(logits: Tensor, target: Tensor) -> NDArray[np.int64]:
    """Count pixels of background and foreground by how many of the thresholds i / 256 they are above, int64 `2 256`.

    Logits and class indices are `h w`. They are compared as logits: 0.5 is to the last pixel what training decides by.
    """
    levels = torch.arange(1, STEPS, dtype=torch.float64) / STEPS
    above = torch.bucketize(logits, levels.logit().to(logits))
    counted = target != VOID
    flat = (target[counted].long() * STEPS + above[counted]).cpu()
    return torch.bincount(flat, minlength=2 * STEPS).view(2, STEPS).numpy()


def curve(counted: NDArray[np.int64]) -> list[dict[str, float]]:
    """Score the foreground at each threshold, from a histogram `2 256`; NaN for 0 / 0."""
    above = counted[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    below = counted.sum(1, keepdims=True) - above
    matrices = np.stack([below.T, above.T], -1)  # of each threshold
    columns = {"at": np.arange(1, STEPS) / STEPS}
    for score in (metrics.iou, metrics.dice, metrics.precision, metrics.recall):
        columns[score.__name__] = score(matrices)[:, 1]
    return [dict(zip(columns, row, strict=True)) for row in np.stack(list(columns.values()), 1).tolist()]


def best_threshold(rows: Sequence[Mapping[str, float]]) -> int | None:
    """Return the row with the best IoU, of equal ones that closest to 0.5; None where no row has one."""
    scored = [i for i, row in enumerate(rows) if not math.isnan(row["iou"])]
    return max(scored, key=lambda i: (rows[i]["iou"], -abs(rows[i]["at"] - 0.5)), default=None)


def bootstrap(counts: Counts, groups: Sequence[str] | None = None, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of the four scores: groups of images drawn with replacement, their pixels pooled.

    A mean over classes is one over the same classes each time: draws that miss one which the split has are left out.
    NaN where one group is all there is, or where too few draws are left.

    Args:
        groups: of the images; None: each image is one of its own.
    """
    names, pixels = metrics.by_group(np.stack(counts.matrices), groups or counts.keys)
    _, borders = metrics.by_group(np.stack(counts.boundaries), groups or counts.keys)
    weights = metrics.resample(np.random.default_rng(seed), len(names))
    matrices, edges = metrics.pool(pixels, weights), metrics.pool(borders, weights)
    drawn = {
        "iou": metrics.pooled_iou(matrices),
        "dice": metrics.overall(metrics.where_present(matrices, metrics.dice(matrices))),
        "accuracy": metrics.accuracy(matrices),
        "boundary_iou": metrics.overall(metrics.where_present(matrices, _boundary_iou(edges))),
    }
    if len(names) == 1:
        return dict.fromkeys(drawn, (math.nan, math.nan))
    whole = metrics.hold_every_class(matrices, pixels)
    by_class = {name: np.where(whole, values, np.nan) for name, values in drawn.items() if name != "accuracy"}
    return {name: metrics.interval(by_class.get(name, values)) for name, values in drawn.items()}


def _boundary_iou(edges: NDArray[Any]) -> NDArray[np.float64]:
    """Divide pixels in both boundaries by those in either, `... k 2` to `... k`; NaN for 0 / 0."""
    return metrics.ratio(edges[..., 0], edges[..., 1])


def _learnt(data: Dataset, rows: Iterable[Mapping[str, str]], by: str) -> set[int]:
    """Find the samples that a run was trained on, by the `key` or the `image` file in the rows of its split.

    Of other data an image with the same pixels is one of them, too, wherever it lies, unless it is all of one colour.
    """
    trained = [row for row in rows if row["split"] == "train"]
    names = {row[by] for row in trained}
    contents = set() if by == "key" else {row.get("content") for row in trained} - {None, ""}
    stored = data.store.rows
    return {
        i
        for i, sample in enumerate(data.samples)
        if str(getattr(sample, by)) in names or (stored[i].content in contents and not _flat(stored[i]))
    }


def _flat(row: Row) -> bool:
    """Tell whether an image is all of one colour; of 8 bits a row keeps no ends."""
    sums = zip(row.valid, row.total, row.squares, strict=True)
    return row.low == row.high or all(number * squares == total**2 for number, total, squares in sums)


def _refuse_learnt(split: str, indices: Sequence[int], learnt: set[int], same: bool) -> None:
    """Refuse to score a model on images that it has learnt, unless that is asked for.

    Args:
        indices: of the split's samples.
        learnt: indices of the samples that the run was trained on.
        same: the data are the run's own, however they were split.
    """
    if split == "train" or not (number := len(learnt.intersection(indices))):
        return
    advice = "Give data without them, or type --split train."
    if same:
        leave = "Leave out data.split, data.fold, data.seed and data.group"
        advice = f"{leave}, and type --split val." if split == ALL else f"{leave}, or type --split train."
    raise ConfigError(
        f"--split {split}: {number} of these {len(indices)} images were in the run's training split, so the score "
        f"would be too high. {advice}"
    )


def _refuse_other_data(data: Dataset, info: ModelInfo) -> None:
    ours, trained_on = ", ".join(data.labels.names), f"the model was trained on {', '.join(info.classes)}"
    if list(data.labels.names) != info.classes:
        raise ConfigError(
            f"the data have the classes {ours}; {trained_on}. Give them the same names in the same order with "
            f"data.classes."
        )
    channels, wanted = data.store.channels, info.model.in_channels
    if (channels not in (1, wanted)) or (wanted not in (3, channels)):
        raise ConfigError(f"the data have {channels} channels; the model was trained on {wanted}. Convert them.")
    if str(data.store.dtype) != info.dtype:
        raise ConfigError(f"the data are {data.store.dtype}; the model was trained on {info.dtype}. Convert them.")
    refuse_far("the data", *data.store.range, info.range)


@torch.inference_mode()
def _counted(scored: Iterable[tuple[Batch, Tensor]], data: Dataset, edges: bool) -> Counts:
    """Count what a pass over a split gives, batches and their logits; with `edges` boundaries, too."""
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
            counts.matrices.append(matrices(pair_counts(prediction[None], target[None], classes).cpu(), classes)[0])
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


def _times(folder: Path) -> int:
    """Count how often an evaluation of this name has looked at the run's test split."""
    before = read_evaluation(folder)
    return before.times if before else 0


def _write(folder: Path, counts: Counts, names: Sequence[str], thresholds: Sequence[Mapping[str, float]]) -> None:
    """Write images.csv, confusion.csv and, for two classes, thresholds.csv."""
    images = [
        {
            "key": key,
            "iou": float(metrics.image_iou(matrix)),
            "dice": float(metrics.overall(metrics.dice(matrix))),
            "accuracy": float(metrics.accuracy(matrix)),
            "boundary_iou": float(metrics.overall(_boundary_iou(edges))),
            "pixels": int(matrix.sum()),
            **{f"iou/{name}": float(score) for name, score in zip(names, metrics.iou(matrix), strict=True)},
        }
        for key, matrix, edges in zip(counts.keys, counts.matrices, counts.boundaries, strict=True)
    ]
    total = pd.DataFrame(np.sum(counts.matrices, 0), names, names)
    pd.DataFrame(images).to_csv(folder / "images.csv", index=False)
    total.to_csv(folder / "confusion.csv", index_label="target")
    if thresholds:
        pd.DataFrame(thresholds).to_csv(folder / "thresholds.csv", index=False)
