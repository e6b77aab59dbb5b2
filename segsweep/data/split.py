"""Which image is trained on, validated on, tested on. Images of one group are never apart."""

import hashlib
import re
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from segsweep.data.datasets import SPLITS, Sample
from segsweep.errors import ConfigError, DataError


def assign(
    samples: Sequence[Sample],
    shares: Sequence[float] = (0.8, 0.2),
    seed: int = 0,
    pattern: str | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> dict[str, list[int]]:
    """Indices of the samples in each part, in the samples' order.

    A given split is kept; one without val/ gives that share of its train. Otherwise a hash of the group decides, so
    that an image stays where it is when others come and go. Every part gets at least one group, in tiny sets against
    its hash.

    With `folds`, all but a given test split is cut into that many folds of about equal size, and one of them is val;
    samples that came with a fold keep it.

    Args:
        samples: all with a given split, or all without.
        shares: of train and val, or of train, val and test; sums to 1.
        seed: of the hash.
        pattern: regular expression that finds the group in a key: its first parenthesis or, without one, the match.
        folds, fold: of cross-validation; fold from 0.

    Returns:
        part to indices; "test" only where there is one.

    Raises:
        ConfigError: the pattern is no regular expression.
        DataError: fewer groups than parts, or keys without a group.
    """
    groups = group(samples, pattern)
    parts: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        parts.setdefault(sample.split or "", []).append(i)
    if folds:
        rest = [i for part, indices in parts.items() if part != "test" for i in indices]
        rest.sort()
        drawn = _folded(rest, groups, folds, seed)
        given = {i: samples[i].fold for i in rest}
        held_out = {i for i in rest if (drawn[groups[i]] if given[i] is None else given[i]) == fold}
        parts = {"train": [i for i in rest if i not in held_out], "val": sorted(held_out)} | {
            part: indices for part, indices in parts.items() if part == "test"
        }
        _refuse_empty_fold(parts, fold)
    elif "" in parts:
        parts = _hashed(parts[""], groups, dict(zip(SPLITS, shares, strict=False)), seed)
    elif "val" not in parts:
        total = shares[0] + shares[1]
        parts |= _hashed(parts["train"], groups, {"train": shares[0] / total, "val": shares[1] / total}, seed)
    return {part: parts[part] for part in SPLITS if part in parts}


def group(samples: Sequence[Sample], pattern: str | None = None) -> list[str]:
    """Each sample's group: the one it came with, else what the pattern finds in its key, else the key itself.

    Raises:
        ConfigError: the pattern is no regular expression.
        DataError: it finds nothing in some key.
    """
    try:
        finder = re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"data.group={pattern}: not a regular expression: {error}.") from None
    groups, without = [], []
    for sample in samples:
        found = finder.search(sample.key) if finder else None
        if finder and not found:
            without.append(sample.key)
        own = (found[1] if found.re.groups else found[0]) if found else sample.key
        groups.append(sample.group or own)
    if without:
        raise DataError(
            f"data.group={pattern}: finds no group in {len(without)} of {len(samples)} stems, such as {without[0]!r}."
        )
    return groups


def apart(parts: dict[str, list[int]], groups: Sequence[str]) -> dict[str, list[str]]:
    """Groups that lie in more than one part, with those parts."""
    places: dict[str, list[str]] = {}
    for part, indices in parts.items():
        for name in {groups[i] for i in indices}:
            places.setdefault(name, []).append(part)
    return {name: found for name, found in places.items() if len(found) > 1}


def place(name: str, seed: int = 0) -> float:
    """Where a group falls in [0, 1), whatever other groups there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64


def _hashed(indices: Sequence[int], groups: Sequence[str], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    places = {groups[i]: place(groups[i], seed) for i in indices}
    _refuse_too_few(len(places), len(indices), shares)
    names, ends = list(shares), list(accumulate(shares.values()))
    chosen = {name: names[min(bisect(ends, where), len(names) - 1)] for name, where in places.items()}
    for part, end in zip(names, ends, strict=True):
        if part not in chosen.values():  # few groups: take the one nearest to this part's end from the largest part
            largest = Counter(chosen.values()).most_common(1)[0][0]
            _, nearest = min((abs(places[name] - end), name) for name in chosen if chosen[name] == largest)
            chosen[nearest] = part
    return {part: [i for i in indices if chosen[groups[i]] == part] for part in names}


def _folded(indices: Sequence[int], groups: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """Fold of each group: in the hash's order, always to the fold that has fewest images."""
    sizes = Counter(groups[i] for i in indices)
    _refuse_too_few(len(sizes), len(indices), [f"fold {n}" for n in range(folds)])
    filled = [0] * folds
    chosen = {}
    for name in sorted(sizes, key=lambda name: place(name, seed)):
        chosen[name] = filled.index(min(filled))
        filled[chosen[name]] += sizes[name]
    return chosen


def _refuse_empty_fold(parts: dict[str, list[int]], fold: int) -> None:
    if not parts["val"] or not parts["train"]:
        raise DataError(f"data.fold={fold}: no image is {'in' if not parts['val'] else 'outside'} that fold.")


def _refuse_too_few(groups: int, images: int, parts: Sequence[str] | dict[str, float]) -> None:
    if groups < len(parts):
        what = f"{images} image{'s' * (images != 1)}"
        what += f" in {groups} group{'s' * (groups != 1)}" if groups != images else ""
        raise DataError(
            f"data: {what} cannot be split into {' and '.join(parts) if len(parts) < 4 else f'{len(parts)} folds'}. "
            f"Give at least {len(parts)}{' groups' if groups != images else ', better some dozens'}."
        )
