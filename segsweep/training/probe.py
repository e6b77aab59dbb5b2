"""What an encoder's frozen features are worth on some data: a linear layer, and how far apart the classes lie.

Pixels are drawn once, from crops of the training split without augmentation, by the seed alone: for the same data and
canvas every encoder is asked about the same pixels. Penalty and statistics are the training split's; the validation
split scores the layer on its masks' own grid, as it would a trained network.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segsweep import console
from segsweep.config.schema import AugmentationConfig, RunConfig
from segsweep.data.batches import Batch
from segsweep.data.dataset import evenly_spaced
from segsweep.data.labels import VOID
from segsweep.engine import device as devices
from segsweep.engine import transfer
from segsweep.nn.probe import LinearProbe
from segsweep.process import show
from segsweep.runs import journal, provenance
from segsweep.runs.records import End, EpochRecord, Run
from segsweep.training.build import Training, build
from segsweep.training.recorder import described
from segsweep.training.run import claimed

CROPS = 64  # of the training split, after which no further batch is drawn from
PIXELS = 256  # drawn of each crop, at most
SCORED = 64  # validation images, at most
FOLDS = 3  # of training images, by which the penalty is chosen
DRAW = 7  # keeps the pixels' random numbers apart from those of the batches


def run(asked: RunConfig, folder: Path, argv: Sequence[str]) -> None:
    """Probe as configured, leave a journal in `folder`, and print the scores.

    The journal has the records of a training of one epoch, written at once at the end: what was killed begins again.

    Args:
        folder: made if need be.
        argv: the command line, for the record.

    Raises ConfigError: what the user can mend.
    """
    train = replace(asked.train, epochs=1, time_budget=None, ema=0.0, tta="none")
    tracking = replace(asked.tracking, name="none")
    advice = "Try a smaller data.size, or leave this encoder out."
    with claimed(folder, resuming=False), devices.fitting(advice):
        started = time.perf_counter()
        training = build(replace(asked, train=train, tracking=tracking))
        found = probe(training)
        scores = {name: value for name, value in found.items() if name.startswith("val/")}
        metrics = {**found, "perf/seconds": time.perf_counter() - started}
        commit, dirty, _ = provenance.code()
        start = described(training, argv, [], commit, dirty)
        end = End(time.time(), "complete", "frozen features were probed", metrics=scores)
        journal.restore(folder, Run([start, EpochRecord(1, time.time(), metrics), end]))
    drawn = f"{found['probe/pixels']:.0f}"
    rows = [
        ("encoder", f"{asked.encoder.name}, weights: {training.model.weights_source}"),
        (
            "IoU",
            f"{scores['val/iou']:.4f} with a linear layer on {found['probe/features']:.0f} frozen features, validation",
        ),
        ("separability", f"{found['probe/separability']:.4f} of the classes (GBC, at most 0), {drawn} training pixels"),
        ("folder", str(folder)),
    ]
    show(console.table(rows))


def probe(training: Training) -> dict[str, float]:
    """Fit a linear layer on frozen features of the training split, and score it on the validation split.

    Returns:
        metrics as a journal names them: `val/...`, the scores; `probe/...`: separability (of the classes), alpha (the
        penalty), features (of each pixel) and pixels (that were drawn); `perf/images_per_s` of the encoder's forward
        pass, with the data.
    """
    model = LinearProbe(training.model)
    training.tuned.execution.prepare(model)
    started, seen = time.perf_counter(), 0
    features, classes, images = [], [], []
    with torch.inference_mode():
        for batch in crops(training):
            where, drawn = pixels(batch.mask, training.settings.train.seed, seen)
            seen += len(batch.indices)
            features_at = partial(model.features, where=where.to(batch.image.device))
            found = training.tuned.execution.forward(features_at, batch.image).cpu()
            counted = drawn != VOID
            features.append(found[counted])
            classes.append(drawn[counted])
            images += [torch.full((int(n),), index) for n, index in zip(counted.sum(1), batch.indices, strict=True)]
        rate = seen / (time.perf_counter() - started)
        x, y, of = torch.cat(features), torch.cat(classes), torch.cat(images)
        counts = training.data.counts("train")[:-1]
        weights = transfer.balanced(y, [count / sum(counts) for count in counts])
        targets = _targets(y, training.data.labels.logits)
        order = {index: i for i, index in enumerate(training.data.parts["train"])}
        folds = torch.tensor([order[index] % FOLDS for index in of.tolist()])
        weight, bias, alpha = transfer.fitted(x, targets, weights, folds)
        model.set(weight, bias)
        compared = torch.linspace(0, len(x) - 1, min(len(x), transfer.COMPARED)).long()
        separability = transfer.class_separability(x[compared], y[compared])
    validation = training.evaluate(model, evenly_spaced(training.data.parts["val"], SCORED))
    return {
        **{f"val/{name}": value for name, value in validation.metrics.items()},
        "probe/separability": separability,
        "probe/alpha": alpha,
        "probe/features": x.shape[1],
        "probe/pixels": len(x),
        "perf/images_per_s": rate,
    }


def crops(training: Training) -> Iterator[Batch]:
    """Yield batches of a training's first epoch, without augmentation, until there are `CROPS` images."""
    plain = replace(training.train_batches(), augmentation=AugmentationConfig())
    seen = 0
    for step in plain.epoch(1):
        for batch in step:
            yield batch
            seen += len(batch.indices)
        if seen >= CROPS:
            return


def pixels(mask: Tensor, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Draw pixels of each mask `b h w`, half of them from anywhere, half as many from each class that is there.

    Args:
        number: how many masks were drawn from before.

    Returns:
        rows and columns, int64 `b p 2`, and their classes `b p`; VOID where a mask has fewer pixels than were wanted.
    """
    where = torch.zeros(len(mask), PIXELS, 2, dtype=torch.long)
    classes = torch.full((len(mask), PIXELS), VOID)
    for i, flat in enumerate(mask.cpu().flatten(1).numpy()):
        rng = np.random.default_rng([DRAW, seed, number + i])
        labelled = np.flatnonzero(flat != VOID)
        there = np.unique(flat[labelled])
        parts = [labelled, *(np.flatnonzero(flat == k) for k in there)]
        each = [PIXELS // 2, *([PIXELS // 2 // len(there)] * len(there))] if len(there) else []
        drawn = [rng.choice(part, min(n, len(part)), replace=False) for part, n in zip(parts, each, strict=False)]
        chosen = torch.from_numpy(np.concatenate(drawn)) if drawn else torch.zeros(0, dtype=torch.long)
        rows, columns = chosen // mask.shape[2], chosen % mask.shape[2]
        where[i, : len(chosen)] = torch.stack([rows, columns], 1)
        classes[i, : len(chosen)] = torch.from_numpy(flat)[chosen]
    return where, classes


def _targets(classes: Tensor, logits: int) -> Tensor:
    """Return what the layer is to give for class indices `n`: -1 or 1, in one column for two classes; `n k`."""
    if logits == 1:
        return (2.0 * (classes == 1) - 1)[:, None]
    return 2 * torch.nn.functional.one_hot(classes, logits).double() - 1
