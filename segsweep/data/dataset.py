"""A data set for training: found, decoded, split and labelled. One error lists all problems."""

import csv
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.config.checks import is_color
from segsweep.config.schema import DataConfig
from segsweep.data import masks, split
from segsweep.data.labels import VOID, Hints, Labels, labels
from segsweep.data.masks import shown
from segsweep.data.scan import Decoding
from segsweep.data.source import PLACES, Sample, Unusable, refuse, same_keys, source, told_by_part
from segsweep.data.split import SPLIT
from segsweep.data.store import Store, Watch, open_store, unwatched
from segsweep.errors import ConfigError, DataError


@dataclass(frozen=True)
class Dataset:
    """Image-mask pairs with their classes and split."""

    samples: list[Sample]  # in the store's order
    groups: list[str]  # of each sample; images of one are not apart, unless a given split has them so
    folds: list[int | None] | None  # of each sample, None without cross-validation
    parts: dict[str, list[int]]  # indices of the samples in train, val and, where there is one, test
    store: Store
    labels: Labels
    notes: tuple[str, ...] = ()  # what was decided about the files and their values, a line each
    stratified: bool = False  # parts or folds have their shares of the classes' pixels

    @cached_property
    def pixels(self) -> NDArray[np.int64]:
        """Number of pixels of each sample and class, `n k+1`; the last column counts void pixels."""
        return class_pixels(self.store, self.labels)

    def counts(self, part: str) -> list[int]:
        """Count the pixels of each class in a part of the split; the last entry counts void pixels."""
        counts: list[int] = self.pixels[self.parts[part]].sum(axis=0).tolist()
        return counts

    def rarity(self, balance: float) -> list[float]:
        """Return the weight with which each training image is shown: (sum over c of p_c / P_c) ** balance.

        p_c: share of class c in the image's pixels without void; P_c: the same for the whole training split.
        """
        pixels = self.pixels[self.parts["train"], :-1]
        totals = pixels.sum(axis=0)
        shares = pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
        found: list[float] = (((shares / np.maximum(totals, 1)).sum(axis=1) * totals.sum()) ** balance).tolist()
        return found

    def empty(self, part: str) -> list[int]:
        """List the samples whose masks have only the first class."""
        return [i for i in self.parts[part] if not self.pixels[i, 1:-1].any()]

    @cached_property
    def copies(self) -> list[tuple[int, int]]:
        """Pairs of samples with the same image."""
        first: dict[str, int] = {}
        pairs = [(first.setdefault(row.content, i), i) for i, row in enumerate(self.store.rows)]
        return [(one, other) for one, other in pairs if one != other]

    def contents(self) -> str:
        """Return a short hash of the files' bytes, by their keys; all of them are read."""
        hashed = hashlib.sha256()
        for sample in sorted(self.samples, key=lambda sample: sample.key):
            hashed.update(sample.key.encode(errors="surrogateescape"))
            for path in (sample.image, sample.mask):
                with path.open("rb") as file:
                    hashed.update(hashlib.file_digest(file, "sha256").digest())
        return hashed.hexdigest()[:16]

    def ordered(self, names: Sequence[str]) -> "Dataset":
        """Return the data with their classes in the order in which a model has learnt them, if that differs.

        As they are where these are other classes. Two keep their order: the second one is what is scored.
        """
        own = self.labels.names
        differs = len(own) > 2 and own != tuple(names) and sorted(own) == sorted(names)
        return replace(self, labels=self.labels.ordered(names)) if differs else self

    def write_split(self, folder: Path) -> None:
        """Write down in `SPLIT` which image is in which part; `split.read_split` reads it."""
        with (folder / SPLIT).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["key", "split", "group", "fold", "image", "mask", "content"])
            for part, indices in self.parts.items():
                for i in indices:
                    sample, fold = self.samples[i], self.folds[i] if self.folds else None
                    content = self.store.rows[i].content
                    rows.writerow([sample.key, part, self.groups[i], fold, sample.image, sample.mask, content])

    def warnings(self) -> list[str]:
        """List problems that make scores too high or training harder, one line each."""
        found = []
        if self.stratified:
            found.append(
                "data.stratify=true: the split depends on all images. If you add images or change classes, images may "
                "move to another part. To use a run's split again with data=folder: data.table=RUN/split.csv "
                "data.root=DIR."
            )
        part_of = {i: part for part, indices in self.parts.items() for i in indices}
        apart = [(a, b) for a, b in self.copies if {a, b} <= part_of.keys() and part_of[a] != part_of[b]]
        if apart:
            a, b = (self.samples[i].image for i in apart[0])
            found.append(
                f"{len(apart)} images have copies in another part of the split, such as {a} and {b}: scores "
                f"may be too high."
            )
        overfits = self.parts["train"] == self.parts["val"]
        if pulled := {} if overfits else split.apart(self.parts, self.groups):
            name, places = next(iter(pulled.items()))
            found.append(
                f"{len(pulled)} groups lie in more than one part of the given split, such as {name} in "
                f"{' and '.join(places)}: scores may be too high."
            )
        odd = [
            (row.sentinel, s.image)
            for row, s in zip(self.store.rows, self.samples, strict=True)
            if row.sentinel is not None
        ]
        if odd:
            value, path = odd[0]
            found.append(
                f"{len(odd)} images hold {_typed(value)} far outside the range of their other pixels, such as {path}: "
                f"if it means no data, type data.nodata={_typed(value)}."
            )
        for part, indices in self.parts.items():
            empty = len(self.empty(part))
            if empty > len(indices) / 2:
                found.append(f"{empty} of {len(indices)} masks of the {part} split are empty.")
        return found


def open_dataset(data: DataConfig, *, workers: int | None = None, progress: Watch = unwatched) -> Dataset:
    """Find, decode, split and label a data set. In our own splits, images with equal pixels are one group.

    Args:
        workers: decoding threads; default: as many as cores.
        progress: wraps the iterator over decoded samples; also given their number and a title.

    Raises:
        ConfigError: a folder is not there, classes that do not exist.
        DataError: files or masks that cannot be used, or too few of them.
    """
    origin = source(data.name)
    _refuse_unread(data, getattr(origin, "READS", PLACES))
    found = origin.find(data)
    found = replace(found, samples=told_by_part(found.samples))
    repeated = same_keys(found.samples)
    if repeated or not found.samples:
        refuse([*found.problems, *repeated])
    cut_by_hand = isinstance(data.threshold, (int, float))
    # Where masks are cut, or folders say the classes, its value has no number any more.
    ignore = None if cut_by_hand or data.class_from else data.ignore_index
    ignore = found.void if ignore is None and not cut_by_hand else ignore
    try:
        store = open_store(
            found.samples,
            _decoding(data),
            _named(data, found.classes),
            keep=data.cache != "none",
            workers=workers,
            progress=progress,
        )
    except Unusable as error:
        refuse([*found.problems, *error.problems])
        raise
    samples = [found.samples[i] for i in store.kept]
    problems = [*found.problems, *store.problems]
    try:
        if data.binarize and store.reading.middle:
            raise DataError(
                "data.binarize=true is for masks of numbered objects, but nearly all pixels of these masks are near "
                "two values, as in JPEG or smoothed masks: nearly black pixels would be foreground. Type "
                f"data.threshold={store.reading.middle} instead, or data.threshold=1 for all values except 0."
            )
        groups = split.group(samples, data.group)
        kept_together = split.joined(groups, [row.content for row in store.rows])
        meaning = labels(
            store.counts(),
            data.classes,
            ignore,
            None if data.binarize else found.classes,
            store.values,
            partial(_holder, samples, store),
            Hints(
                [row.values for row in store.rows],
                store.tags if data.nodata != "none" else (),
                store.reading.middle,
                store.reading.blended,
                None if cut_by_hand or data.class_from else found.void,
            ),
            data.binarize,
        )
        pixels = class_pixels(store, meaning)[:, :-1] if data.stratify else None
        fold_of = split.fold_of(samples, kept_together, data.folds, data.seed, pixels) if data.folds else None
        stratify = None if data.folds else pixels
        parts = split.assign(samples, kept_together, data.split, data.seed, fold_of, data.fold, stratify)
        cut = [f"masks: cut at {data.threshold:g}, as data.threshold says"] if cut_by_hand else []
        unused = _unused_split(data.split, samples, bool(fold_of))
        notes = (*found.notes, *cut, *store.notes, *meaning.notes, *unused)
        dataset = Dataset(samples, groups, fold_of, parts, store, meaning, notes, data.stratify)
        if data.overfit:
            train, empty = dataset.parts["train"], set(dataset.empty("train"))
            chosen = evenly_spaced([i for i in train if i not in empty] or train, data.overfit)
            dataset = replace(dataset, parts={"train": chosen, "val": chosen})
        _refuse_empty(dataset, any(sample.split for sample in samples))
    except DataError as error:
        if problems:
            refuse([*problems, str(error).removeprefix("data: ")])
        if said := [*found.notes, *store.notes]:
            raise DataError("\n  ".join([str(error), *(f"note: {note}" for note in said)])) from error
        raise
    if problems:
        refuse([*problems, *dataset.warnings()])
    return dataset


def _refuse_unread(data: DataConfig, reads: Collection[str]) -> None:
    """Refuse a place that the kind of data does not look at."""
    if given := [name for name in PLACES if name not in reads and getattr(data, name)]:
        told = f"Drop it, or type data=folder, or data.{given[0]}=null"
        raise ConfigError(f"data.{given[0]}: data={data.name} does not read it. {told}.")


def _unused_split(shares: Sequence[float], samples: Sequence[Sample], in_folds: bool) -> list[str]:
    """Say that shares were typed, and are not used: the data have parts of their own, or folds decide."""
    if list(shares) == DataConfig().split:
        return []
    if in_folds:
        return ["data.split is not used: data.folds decides"]
    parts = {sample.split for sample in samples}
    if "val" in parts:
        return ["data.split is not used: the data have their own split"]
    makes_none = "train" in parts and len(shares) > 2
    return ["data.split makes no test part: the data have their own split"] if makes_none else []


def _decoding(data: DataConfig) -> Decoding:
    void = None if data.ignore_index is None else masks.code(data.ignore_index)
    return Decoding(data.threshold, void, data.nodata, data.nodata_void, data.binarize, data.mask_resize)


def _named(data: DataConfig, known: Mapping[str, int] | None) -> list[int]:
    """Codes of all mask values that have a name; three numbers in a list may be three values or a color: both."""
    plain = [] if data.ignore_index is None else [data.ignore_index]
    found: list[int] = []
    if isinstance(data.classes, Mapping):
        for values in data.classes.values():
            if is_color(values):
                found += values
            plain += values if isinstance(values, list) and not is_color(values) else [values]
    elif data.classes is not None:
        plain += range(len(data.classes))
    plain += (known or {}).values()
    greys = [masks.code((value, value, value)) for value in plain if isinstance(value, int) and 0 <= value <= 255]
    return [*found, *greys, *(masks.code(value) for value in plain if isinstance(value, int) or is_color(value))]


def _typed(value: float) -> str:
    """A number as one types it: whole ones without a point."""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def class_pixels(store: Store, labels: Labels) -> NDArray[np.int64]:
    """Count the pixels of each sample and class, `n k+1`; the last column counts void pixels."""
    found = np.zeros((len(store.rows), len(labels.names) + 1), np.int64)
    for row, counts in zip(store.rows, found, strict=True):
        for value, n in row.values.items():
            index = int(labels.table[value])
            counts[-1 if index == VOID else index] += n
    return found


def evenly_spaced(indices: Sequence[int], number: int) -> list[int]:
    """Choose `number` of the indices, evenly spaced; all if there are fewer."""
    return [indices[i * len(indices) // number] for i in range(number)] if len(indices) > number else list(indices)


def _holder(samples: Sequence[Sample], store: Store, stored: int) -> str:
    """Says which masks hold a stored value."""
    holding = [sample.mask for sample, row in zip(samples, store.rows, strict=True) if stored in row.values]
    more = f" and {len(holding) - 1} more" if len(holding) > 1 else ""
    return f" ({holding[0]}{more})" if holding else ""


def _refuse_empty(dataset: Dataset, given_split: bool) -> None:
    """Refuse a part without which there is nothing to learn, or nothing to score."""
    names, groups = dataset.labels.names, dataset.labels.groups
    counts = {part: dataset.counts(part) for part in dataset.parts}
    for part, (*found, _) in counts.items():
        if not any(found):
            raise DataError(f"data: the {part} split has only void pixels. Check data.masks and data.ignore_index.")
    if len(names) > 2:
        return
    if not any(found[1] for found in counts.values()):
        held = ", ".join(map(shown, groups[1])) or "none"
        raise DataError(
            f"data: no mask has a pixel of {names[1]} (mask value {held}). Check data.classes and data.masks."
        )
    for part, found in counts.items():
        if not found[1]:
            advice = "images to it" if given_split else "images, or another split with data.seed=N"
            raise DataError(
                f"data: the {part} split has no {names[1]} pixel, so its IoU is undefined. Give more {advice}."
            )
    if not counts["train"][0]:
        raise DataError(f"data: all pixels of all masks are {names[1]}: there is nothing to learn. Check data.masks.")
