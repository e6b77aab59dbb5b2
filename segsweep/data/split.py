"""Which image is trained on, validated on, tested on."""

import hashlib
from collections.abc import Sequence

from segsweep.data.datasets import SPLITS, Sample
from segsweep.errors import DataError


def assign(samples: Sequence[Sample], shares: Sequence[float] = (0.8, 0.2), seed: int = 0) -> dict[str, list[int]]:
    """Indices of the samples in each part, in the samples' order.

    A given split is kept; one without val/ gives that share of its train. Otherwise a hash of the key decides, so that
    an image stays where it is when others come and go. Every part gets at least one image.

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
    parts: dict[str, list[int]] = {part: [] for part in shares}
    bounds: list[tuple[float, float, str]] = []
    for part, share in shares.items():
        bounds.append((bounds[-1][1] if bounds else 0.0, (bounds[-1][1] if bounds else 0.0) + share, part))
    for i in indices:
        part = next((part for _, end, part in bounds if places[i] < end), bounds[-1][2])
        parts[part].append(i)
    for start, end, part in bounds:
        if not parts[part]:  # few images: take the one nearest to this part from the largest
            largest = max(parts.values(), key=len)
            nearest = min(largest, key=lambda i: abs(places[i] - (start + end) / 2))
            largest.remove(nearest)
            parts[part].append(nearest)
    return parts
