"""Decoded once, then memory-mapped: all images and masks of a data set, ragged, in the files' own data type.

A store is a folder in the cache: `images.bin` and `masks.bin` (rows of pixels, one sample after the other) and
`manifest.json` (where each sample lies, and what was counted while decoding). Its name is a hash of the files' names,
sizes and times, so a changed file makes another store.
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segsweep.data import images
from segsweep.data.datasets import Sample, refuse
from segsweep.errors import DataError
from segsweep.paths import cache, made

VERSION = 1


@dataclass(frozen=True)
class Row:
    """One sample's place in the store and what was counted in it.

    Attributes:
        total, squares: sum of the pixels and of their squares, for each channel.
        values: pixels for each mask value.
    """

    key: str
    height: int
    width: int
    channels: int
    image_offset: int
    mask_offset: int
    total: list[float]
    squares: list[float]
    values: dict[int, int]


class Store:
    """An open store.

    Attributes:
        rows: the samples, in the order they were given.
        digest: of the decoded content, the keys and the given split.
        range: lowest and highest pixel value the data type or, beyond 8 bits, the data set has.
        channels: 1 if all images are grey, else 3.
    """

    def __init__(self, folder: Path):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.rows = [
            Row(**{**row, "values": {int(k): n for k, n in row["values"].items()}}) for row in manifest["rows"]
        ]
        self.digest: str = manifest["digest"]
        self.range: tuple[float, float] = (manifest["range"][0], manifest["range"][1])
        self.channels = max(row.channels for row in self.rows)
        self.dtype = np.dtype(manifest["dtype"])
        # Copy-on-write: torch wants writable memory, and nothing is ever written.
        self._images = torch.from_numpy(np.memmap(folder / "images.bin", self.dtype, "c"))
        self._masks = torch.from_numpy(np.memmap(folder / "masks.bin", np.uint8, "c"))

    def image(self, index: int) -> Tensor:
        """`h w c`, a view in the store's data type; c is 1 or 3."""
        row = self.rows[index]
        size = row.height * row.width * row.channels
        return self._images[row.image_offset : row.image_offset + size].view(row.height, row.width, row.channels)

    def mask(self, index: int) -> Tensor:
        """`h w` uint8, a view: the file's values."""
        row = self.rows[index]
        return self._masks[row.mask_offset : row.mask_offset + row.height * row.width].view(row.height, row.width)

    def to(self, device: torch.device) -> "Store":
        """Move all pixels to the device if half of its free memory holds them; return self."""
        if device.type == "cuda":
            needed = sum(t.numel() * t.element_size() for t in (self._images, self._masks))
            if needed < torch.cuda.mem_get_info(device)[0] / 2:
                self._images, self._masks = self._images.to(device), self._masks.to(device)
        return self

    def counts(self, indices: Sequence[int] | None = None) -> Counter[int]:
        """Pixels for each mask value over these samples (default: all)."""
        counted: Counter[int] = Counter()
        for i in range(len(self.rows)) if indices is None else indices:
            counted.update(self.rows[i].values)
        return counted

    def statistics(self, indices: Sequence[int]) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over these samples' pixels; grey counts for all three."""
        total, squares, pixels = np.zeros(self.channels), np.zeros(self.channels), 0
        for row in (self.rows[i] for i in indices):
            total += row.total
            squares += row.squares
            pixels += row.height * row.width
        mean = total / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        return mean.tolist(), np.maximum(std, 1e-3 * (self.range[1] - self.range[0]) or 1.0).tolist()


def open_store(
    samples: Sequence[Sample],
    workers: int | None = None,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda rows, _: rows,
) -> Store:
    """Open the store of these samples; decode them first where there is none. Safe for many processes at once.

    Args:
        workers: decoding threads; default: as many as cores.
        progress: wraps the iterator over decoded samples; also given their number.

    Raises:
        DataError: files that cannot be decoded, all listed.
    """
    threads = workers or os.cpu_count() or 1
    target = cache() / "stores" / _name(samples)
    return Store(made(target, "manifest.json", lambda making: _write(making, samples, threads, progress)))


def _name(samples: Sequence[Sample]) -> str:
    hashed = hashlib.sha256(f"store {VERSION}".encode())
    for sample in samples:
        for path in (sample.image, sample.mask):
            stat = path.stat()
            hashed.update(f"{sample.key}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return hashed.hexdigest()[:24]


def _decode(sample: Sample) -> tuple[np.ndarray, np.ndarray] | str:
    try:
        return images.read_image(sample.image), images.read_mask(sample.mask)
    except DataError as error:
        return str(error)


def _decoded(samples: Sequence[Sample], workers: int) -> Iterator[tuple[np.ndarray, np.ndarray] | str]:
    """In the samples' order, a few ahead: never more than that many in memory."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[tuple[np.ndarray, np.ndarray] | str]] = deque()
        for sample in samples:
            ahead.append(pool.submit(_decode, sample))
            if len(ahead) >= 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _write(
    folder: Path, samples: Sequence[Sample], workers: int, progress: Callable[[Iterator[Any], int], Iterator[Any]]
) -> None:
    rows: list[Row] = []
    problems: list[str] = []
    dtypes: dict[str, Sample] = {}
    digest = hashlib.sha256()
    low, high = np.inf, -np.inf
    decoded = progress(_decoded(samples, workers), len(samples))
    image_offset = mask_offset = 0
    with (folder / "images.bin").open("wb") as image_file, (folder / "masks.bin").open("wb") as mask_file:
        for sample, result in zip(samples, decoded, strict=True):
            if isinstance(result, str):
                problems.append(result)
                continue
            image, mask = result
            if image.shape[:2] != mask.shape:
                problems.append(f"{sample.mask}: {mask.shape[1]}x{mask.shape[0]} pixels, its image has another size")
                continue
            dtypes.setdefault(str(image.dtype), sample)
            channels = 3 if image.shape[2] == 3 else 1
            pixels = image.reshape(-1, image.shape[2]).astype(np.float64)
            values, counts = np.unique(mask, return_counts=True)
            rows.append(
                Row(
                    key=sample.key,
                    height=image.shape[0],
                    width=image.shape[1],
                    channels=channels,
                    image_offset=image_offset,
                    mask_offset=mask_offset,
                    total=pixels.sum(0).tolist(),
                    squares=(pixels**2).sum(0).tolist(),
                    values={int(v): int(n) for v, n in zip(values, counts, strict=True)},
                )
            )
            low, high = min(low, pixels.min()), max(high, pixels.max())
            for file, array in ((image_file, image), (mask_file, mask)):
                content = np.ascontiguousarray(array).tobytes()
                file.write(content)
                digest.update(f"{sample.key} {sample.split} {array.shape}\n".encode() + content)
            image_offset += image.size
            mask_offset += mask.size
    if len(dtypes) > 1:
        found = "; ".join(f"{dtype} in {sample.image}" for dtype, sample in dtypes.items())
        problems.append(f"images of several data types: {found}. Convert them to one.")
    refuse(problems, "every file must be decodable")
    dtype = next(iter(dtypes))
    manifest = {
        "version": VERSION,
        "digest": digest.hexdigest()[:16],
        "dtype": dtype,
        "range": [0.0, 255.0] if dtype == "uint8" else [float(low), float(high)],
        "rows": [asdict(row) for row in rows],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
