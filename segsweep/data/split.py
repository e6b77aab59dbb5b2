"""Which image is trained on, validated on, tested on. Images of one group are never apart."""

import hashlib
import re
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from segsweep.data.source import SPLITS, Sample
from segsweep.errors import ConfigError, DataError


def assign(
    samples: Sequence[Sample],
    groups: Sequence[str],
    shares: Sequence[float] = (0.8, 0.2),
    seed: int = 0,
    folds: Sequence[int | None] | None = None,
    fold: int = 0,
) -> dict[str, list[int]]:
    """Assign the samples to parts: indices of each, in the samples' order; "test" only where there is one.

    A given split is kept; one without val/ gives that share of its train. Otherwise a hash of the group decides, so
    that an image stays where it is when others come and go. Every part gets at least one group, in tiny sets against
    its hash. With `folds` the fold `fold` is val, and all others but a given test split are train.

    Args:
        samples: all with a given split, or all without.
        groups: of each sample, from `group`.
        shares: of train and val, or of train, val and test; sums to 1.
        folds: of each sample, from `fold_of`.

    Raises DataError: fewer groups than parts, or an empty fold.
    """
    if samples and not any(sample.split in (None, "train") for sample in samples):
        raise DataError("data: the given split has no train part that can be used.")
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
        parts = _hashed(parts[""], groups, dict(zip(SPLITS, shares, strict=False)), seed)
    elif "val" not in parts:
        total = shares[0] + shares[1]
        parts |= _hashed(parts["train"], groups, {"train": shares[0] / total, "val": shares[1] / total}, seed)
    return {part: parts[part] for part in SPLITS if part in parts}


def fold_of(samples: Sequence[Sample], groups: Sequence[str], folds: int, seed: int = 0) -> list[int | None]:
    """Give each sample a fold of cross-validation: the one it came with, else by its group; None in a given test split.

    Groups go in the order of their hash, always to the fold that has fewest images. DataError if they are too few.
    """
    counted = [i for i, sample in enumerate(samples) if sample.split != "test"]
    sizes = Counter(groups[i] for i in counted)
    _refuse_too_few(len(sizes), len(counted), [f"fold {n}" for n in range(folds)])
    filled = [0] * folds
    chosen = {}
    for name in sorted(sizes, key=lambda name: place(name, seed)):
        chosen[name] = filled.index(min(filled))
        filled[chosen[name]] += sizes[name]
    of: list[int | None] = [None] * len(samples)
    for i in counted:
        given = samples[i].fold
        of[i] = chosen[groups[i]] if given is None else given
    return of


def group(samples: Sequence[Sample], pattern: str | None = None) -> list[str]:
    """Name each sample's group: the one it came with, else what the pattern finds in its key, else the key itself.

    The first parenthesis of the regular expression or, without one, the match is the group. ConfigError if it is none,
    DataError if it finds nothing in some key.
    """
    try:
        finder = re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"data.group={pattern}: not a regular expression: {error}.") from None
    groups, without = [], []
    for sample in samples:
        found = finder.search(sample.key) if finder else None
        if finder and not found and not sample.group:
            without.append(sample.key)
        own = (found[1] if found.re.groups else found[0]) if found else sample.key
        groups.append(sample.group or own or sample.key)
    if without:
        number = f"{len(without)} of {len(samples)} stems"
        raise DataError(f"data.group={pattern}: finds no group in {number}, such as {without[0]!r}.")
    return groups


def joined(groups: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Make one group of those that share an image, by the hash of its pixels: copies apart would flatter the scores."""
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
    """Place a group in [0, 1), whatever other groups there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


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


def _refuse_too_few(groups: int, images: int, parts: Sequence[str] | dict[str, float]) -> None:
    if groups < len(parts):
        what = f"{images} image{'s' * (images != 1)}"
        what += f" in {groups} group{'s' * (groups != 1)}" if groups != images else ""
        raise DataError(
            f"data: {what} cannot be split into {' and '.join(parts) if len(parts) < 4 else f'{len(parts)} folds'}. "
            f"Give at least {len(parts)}{' groups' if groups != images else ', better some dozens'}."
        )
