"""Assign images to training, validation and test. All images of a group are in the same part."""

import csv
import hashlib
import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.source import SPLITS, Sample
from segsweep.errors import ConfigError, DataError, first_line

SPLIT = "split.csv"  # in a run's folder


def assign(
    samples: Sequence[Sample],
    groups: Sequence[str],
    shares: Sequence[float] = (0.8, 0.2),
    seed: int = 0,
    folds: Sequence[int | None] | None = None,
    fold: int = 0,
    pixels: NDArray[np.int64] | None = None,
) -> dict[str, list[int]]:
    """Assign the samples to parts: indices of each, in the samples' order; "test" only where there is one.

    A given split is kept; one without val/ gives that share of its train. Otherwise a hash of the group decides, so
    that an image stays where it is when others come and go; with `pixels` it is `stratified`. Every part gets at least
    one group, in tiny sets against its hash. With `folds` the fold `fold` is val, and all others but a given test split
    are train.

    Args:
        samples: all with a given split, or all without.
        groups: of each sample, from `group`.
        shares: of train and val, or of train, val and test; sums to 1.
        folds: of each sample, from `fold_of`.
        pixels: of each sample and class, `n k`, to stratify by.

    Raises:
        ConfigError: a given split is to be stratified.
        DataError: fewer groups than parts, or an empty fold.
    """
    if samples and not any(sample.split in (None, "train") for sample in samples):
        raise DataError("data: the given split has no training part, or it cannot be used.")
    parts: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        parts.setdefault(sample.split or "", []).append(i)
    if folds:
        inside = [i for i, of in enumerate(folds) if of == fold]
        outside = [i for i, of in enumerate(folds) if of not in (None, fold)]
        if not inside or not outside:
            raise DataError(f"data.fold={fold}: no image is {'outside' if inside else 'in'} that fold.")
        parts = {"train": outside, "val": inside} | ({"test": parts["test"]} if "test" in parts else {})
    elif "" in parts:
        parts = _cut(parts[""], groups, dict(zip(SPLITS, shares, strict=False)), seed, pixels)
    elif "val" not in parts:
        total = shares[0] + shares[1]
        of_train = {"train": shares[0] / total, "val": shares[1] / total}
        parts |= _cut(parts["train"], groups, of_train, seed, pixels)
    elif pixels is not None:
        raise ConfigError(
            "data.stratify=true: the data have their own split, so there is nothing to stratify. Drop it, or add "
            "data.folds=5 to make folds of train and val."
        )
    return {part: parts[part] for part in SPLITS if part in parts}


def fold_of(
    samples: Sequence[Sample],
    groups: Sequence[str],
    folds: int,
    seed: int = 0,
    pixels: NDArray[np.int64] | None = None,
) -> list[int | None]:
    """Give each sample a fold of cross-validation: the one it came with, else by its group; None in a given test split.

    Groups go in the order of their hash, always to the fold that has fewest images; with `pixels`, of each sample and
    class, `n k`, the folds are `stratified`.

    Raises:
        ConfigError: given folds are to be stratified.
        DataError: the groups are too few.
    """
    counted = [i for i, sample in enumerate(samples) if sample.split != "test"]
    if beyond := sorted({own for i in counted if (own := samples[i].fold) is not None and own >= folds}):
        raise DataError(
            f"data.folds={folds}: the table has the fold {beyond[-1]}, so some images would be in no validation. Type "
            f"data.folds={beyond[-1] + 1}."
        )
    sizes = Counter(groups[i] for i in counted)
    _refuse_too_few(len(sizes), len(counted), folds, f"{folds} folds")
    chosen = {}
    if pixels is not None:
        if counted and all(samples[i].fold is not None for i in counted):
            raise ConfigError(
                "data.stratify=true: the data have their own folds, so there is nothing to stratify. Drop it."
            )
        chosen = stratified([groups[i] for i in counted], pixels[counted], [1 / folds] * folds, seed)
    else:
        filled = [0] * folds
        for name in sorted(sizes, key=lambda name: place(name, seed)):
            chosen[name] = filled.index(min(filled))
            filled[chosen[name]] += sizes[name]
    of: list[int | None] = [None] * len(samples)
    for i in counted:
        given = samples[i].fold
        of[i] = chosen[groups[i]] if given is None else given
    return of


def stratified(
    groups: Sequence[str], pixels: NDArray[np.int64], shares: Sequence[float], seed: int = 0
) -> dict[str, int]:
    """Choose a part for each group, so that a part has about its share of every class's pixels, and of the images.

    The largest groups, by the class of which they hold most, go first, always where the squared distance between what
    the parts have and what they should, over what they should (chi-squared), becomes least; groups of about one size go
    in the order of their hash. Every part gets at least one. Where a group goes depends on all the others, so it may
    move when one is added.

    Args:
        groups: of each sample; not fewer than parts.
        pixels: of each sample and class, `n k`.
        shares: of the parts; sums to 1.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    held = np.zeros((len(names), pixels.shape[1] + 1))  # the images themselves count like a class
    np.add.at(held, [names[name] for name in groups], np.column_stack([pixels, np.ones(len(pixels))]))
    held /= np.maximum(held.sum(0), 1)
    expected = np.array(shares)
    beyond = np.repeat(-expected[:, None], held.shape[1], 1)  # what each part has beyond its share, negative at first
    chosen: dict[str, int] = {}
    empty = list(range(len(shares)))  # parts without a group
    order = sorted(names, key=lambda name: (-math.floor(math.log2(held[names[name]].max())), place(name, seed)))
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        own = held[names[name]]
        worse = (2 * beyond @ own + own @ own) / expected  # of each part, if the group went there
        allowed = empty if len(empty) == left else range(len(shares))
        chosen[name] = min(allowed, key=lambda part, worse=worse: worse[part])
        if chosen[name] in empty:
            empty.remove(chosen[name])
        beyond[chosen[name]] += own
    return chosen


def group(samples: Sequence[Sample], pattern: str | None = None) -> list[str]:
    """Name each sample's group: the one it came with, else what the pattern finds in its key, else the key itself.

    The first parenthesis of the regular expression that finds something is the group; without parentheses, the match. A
    part that the key names only to be unique is not seen: a group may lie in several parts. ConfigError if it is no
    expression, DataError if it finds nothing in some key.
    """
    try:
        finder = re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"data.group={pattern}: not a regular expression: {error}.") from None
    groups, without = [], []
    for sample in samples:
        found = finder.search(sample.key.removeprefix(sample.prefix)) if finder else None
        # Of alternatives, the parenthesis that took part.
        own = next(filter(None, found.groups() if found.re.groups else [found[0]]), "") if found else ""
        if finder and not own and not sample.group:
            without.append(sample.key)
        groups.append(sample.group or own or sample.key)
    if without:
        number = f"{len(without)} of {len(samples)} stems"
        raise DataError(f"data.group={pattern}: finds no group in {number}, such as {without[0]!r}.")
    return groups


def joined(groups: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Join groups that share an image, by the hash of its pixels: copies in two parts would make scores too high."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    first: dict[str, str] = {}
    for name, content in zip(groups, contents, strict=True):
        one, other = sorted((lead(name), lead(first.setdefault(content, name))))
        leader[other] = one
    return [lead(name) for name in groups]


def apart(parts: dict[str, list[int]], groups: Sequence[str]) -> dict[str, list[str]]:
    """Find the groups that lie in more than one part, with those parts."""
    places: dict[str, list[str]] = {}
    for part, indices in parts.items():
        for name in {groups[i] for i in indices}:
            places.setdefault(name, []).append(part)
    return {name: found for name, found in places.items() if len(found) > 1}


def place(name: str, seed: int = 0) -> float:
    """Hash a group to a number in [0, 1), independent of other groups."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def read_split(folder: Path) -> list[dict[str, str]]:
    """Read what `Dataset.write_split` wrote: a dict of key, split, group, fold, image, mask and content of each sample.

    The content is a hash of the image's pixels; 0.1.0 did not write it.

    Raises ConfigError: it is damaged.
    """
    path = folder / SPLIT
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: damaged: {first_line(error)}") from error
    torn = any(None in row or None in row.values() for row in rows)
    if torn or (rows and not {"key", "split", "image"} <= {*rows[0]}):
        raise ConfigError(f"{path}: damaged: must have columns key, split, group, fold, image and mask.")
    return rows


def _cut(
    indices: Sequence[int],
    groups: Sequence[str],
    shares: dict[str, float],
    seed: int,
    pixels: NDArray[np.int64] | None,
) -> dict[str, list[int]]:
    """Cut samples into parts by their groups: by hash or, with pixels, stratified."""
    own = [groups[i] for i in indices]
    _refuse_too_few(len(set(own)), len(indices), len(shares), " and ".join(shares))
    if pixels is None:
        chosen = _hashed(set(own), shares, seed)
    else:
        names = list(shares)
        found = stratified(own, pixels[indices], list(shares.values()), seed)
        chosen = {name: names[part] for name, part in found.items()}
    return {part: [i for i in indices if chosen[groups[i]] == part] for part in shares}


def _hashed(groups: Iterable[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Choose each group's part by its hash."""
    places = {name: place(name, seed) for name in groups}
    names, ends = list(shares), list(accumulate(shares.values()))
    chosen = {name: names[min(bisect(ends, where), len(names) - 1)] for name, where in places.items()}
    for part, end in zip(names, ends, strict=True):
        if part not in chosen.values():  # few groups: take the one nearest to this part's end from the largest part
            largest = Counter(chosen.values()).most_common(1)[0][0]
            _, nearest = min((abs(places[name] - end), name) for name in chosen if chosen[name] == largest)
            chosen[nearest] = part
    return chosen


def _refuse_too_few(groups: int, images: int, parts: int, named: str) -> None:
    if groups < parts:
        what = f"{images} image{'s' * (images != 1)}"
        what += f" in {groups} group{'s' * (groups != 1)}" if groups != images else ""
        raise DataError(
            f"data: {what} cannot be split into {named}. "
            f"Give at least {parts}{' groups' if groups != images else ', better some dozens'}."
        )
