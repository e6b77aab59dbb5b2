"""Which image is trained on, validated on, tested on."""

import hashlib
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

from segsweep.data.datasets import SPLITS, Sample
from segsweep.errors import DataError


def assign(samples: Sequence[Sample], shares: Sequence[float] = (0.8, 0.2), seed: int = 0) -> dict[str, list[int]]:
    """Indices of the samples in each part, in the samples' order.

    A given split is kept; one without val/ gives that share of its train. Otherwise a hash of the key decides, so that
    an image stays where it is when others come and go. Every part gets at least one, in tiny sets against its hash.

    Args:
        samples: all with a given split, or all without.
        shares: of train and val, or of train, val and test; sums to 1.
        seed: of the hash.

    Returns:
        part to indices; "test" only where there is one.

    Raises:
        DataError: fewer images than parts.
    """
    parts: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        parts.setdefault(sample.split or "", []).append(i)
    if "" in parts:
        return _hashed(parts[""], samples, dict(zip(SPLITS, shares, strict=False)), seed)
    if "val" not in parts:
        total = shares[0] + shares[1]
        parts |= _hashed(parts["train"], samples, {"train": shares[0] / total, "val": shares[1] / total}, seed)
    return {part: parts[part] for part in SPLITS if part in parts}


def place(key: str, seed: int = 0) -> float:
    """Where a key falls in [0, 1), whatever other keys there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def _hashed(
    indices: Sequence[int], samples: Sequence[Sample], shares: dict[str, float], seed: int
) -> dict[str, list[int]]:
    if len(indices) < len(shares):
        raise DataError(
            f"data: {len(indices)} image{'s' * (len(indices) != 1)} cannot be split into {' and '.join(shares)}. "
            f"Give at least {len(shares)}, better some dozens."
        )
    places = {i: place(samples[i].key, seed) for i in indices}
    ends = list(accumulate(shares.values()))
    parts: dict[str, list[int]] = {part: [] for part in shares}
    names = list(shares)
    for i in indices:
        parts[names[min(bisect(ends, places[i]), len(names) - 1)]].append(i)
    for part, end in zip(names, ends, strict=True):
        if not parts[part]:  # few images: take the one nearest to this part's end from the largest part
            largest = max(parts.values(), key=len)
            _, nearest = min((abs(places[i] - end), i) for i in largest)
            largest.remove(nearest)
            parts[part].append(nearest)
    return parts
