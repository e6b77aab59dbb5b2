"""Decoded once, then memory-mapped: all images and masks of a data set, ragged, in the files' own data type.

A store is a folder in the cache: `images.bin` and `masks.bin` (rows of pixels, one sample after the other) and
`manifest.json` (where each sample lies, and what was counted while decoding). Its name is a hash of the files' names,
sizes and times, so a changed file makes another store. Without room for the pixels the manifest stands alone, and
samples are decoded whenever they are asked for.
"""

import errno
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segsweep.data import images
from segsweep.data.images import Value
from segsweep.data.prefetch import prefetch
from segsweep.data.source import Sample, Unusable, refuse
from segsweep.errors import DataError
from segsweep.paths import build_once, cache

# Wraps an iterator, as a progress bar does; also given its length and a title.
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]

VERSION = 4
STOP = 20  # problems after which no more are looked for
SAMPLED = 4_000_000  # pixels that percentiles are taken from


def unwatched(items: Iterable[Any], *_: object) -> Iterable[Any]:
    """Return the iterator as it is: a `Watch` that shows nothing."""
    return items


@dataclass(frozen=True)
class Row:
    """One sample's place in the store and what was counted in it."""

    key: str
    height: int
    width: int
    channels: int
    image_offset: int
    mask_offset: int
    total: list[float]  # sum of the pixels, for each channel
    squares: list[float]  # sum of their squares
    values: dict[int, int]  # pixels for each mask value, as stored
    content: str  # hash of the image's pixels, the same for duplicates
    labelled: str  # hash of the mask's values


class Store:
    """An open store."""

    def __init__(self, folder: Path, decode: Callable[[int], "_Decoded"] | None = None):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        # The samples that can be used, in the order they were given.
        self.rows = [Row(**row | {"values": {int(k): n for k, n in row["values"].items()}}) for row in manifest["rows"]]
        self.kept: list[int] = manifest["kept"]  # where each row's sample was among those given
        self.problems: list[str] = manifest["problems"]  # what is wrong with the others, a line each
        self.digest: str = manifest["digest"]  # of the decoded content, the keys and the given split
        # Lowest and highest pixel value the data type or, beyond 8 bits, the data set has.
        self.range: tuple[float, float] = (manifest["range"][0], manifest["range"][1])
        self.channels = max(row.channels for row in self.rows)  # the pixels of grey images count for all of them
        self._codes: list[int] | None = manifest["codes"]
        # What each stored mask value stands for, where that is not itself (colours, numbers beyond 255).
        self.values: list[Value] | None = self._codes and [images.value(code) for code in self._codes]
        self.dtype = np.dtype(manifest["dtype"])
        self._decode = decode
        if decode is None:
            # Copy-on-write: torch wants writable memory, and nothing is ever written.
            self._images = torch.from_numpy(np.memmap(folder / "images.bin", self.dtype, "c"))
            self._masks = self._host_masks = torch.from_numpy(np.memmap(folder / "masks.bin", np.uint8, "c"))

    @property
    def on_device(self) -> bool:
        """Tell whether the pixels lie on a device of their own and not in main memory."""
        return self._decode is None and self._images.device.type != "cpu"

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image and mask, as `image` and `mask` do."""
        if self._decode is None:
            return self.image(index), self.mask(index)
        decoded, row = self._decode(self.kept[index]), self.rows[index]
        if (decoded.row.content, decoded.row.labelled) != (row.content, row.labelled):
            raise DataError(f"{row.key}: has changed since the data were scanned. Start again.")
        numbers = np.array([_number(self._codes, code) for code in decoded.row.values], np.uint8)
        return torch.from_numpy(np.ascontiguousarray(decoded.image)), torch.from_numpy(numbers[decoded.mask])

    def image(self, index: int) -> Tensor:
        """Return `h w c`, a view in the store's data type; c is the row's own."""
        if self._decode is not None:
            return self.pair(index)[0]
        row = self.rows[index]
        return _view(self._images, row.image_offset, row.height, row.width, row.channels)

    def mask(self, index: int) -> Tensor:
        """Return `h w` uint8, a view: the file's values."""
        return self._mask(index, self._masks) if self._decode is None else self.pair(index)[1]

    def host_mask(self, index: int) -> np.ndarray:
        """Return the mask, `h w` uint8, in main memory, wherever the pixels are."""
        return (self._mask(index, self._host_masks) if self._decode is None else self.pair(index)[1]).numpy()

    def _mask(self, index: int, masks: Tensor) -> Tensor:
        row = self.rows[index]
        return _view(masks, row.mask_offset, row.height, row.width)

    def to(self, device: torch.device) -> "Store":
        """Move all pixels to the device if half of its free memory holds them; return self."""
        if device.type == "cuda" and self._decode is None:
            needed = sum(t.numel() * t.element_size() for t in (self._images, self._masks))
            if needed < torch.cuda.mem_get_info(device)[0] / 2:
                self._images, self._masks = self._images.to(device), self._masks.to(device)
        return self

    def counts(self, indices: Sequence[int] | None = None) -> Counter[int]:
        """Count the pixels for each mask value over these samples (default: all)."""
        counted: Counter[int] = Counter()
        for i in range(len(self.rows)) if indices is None else indices:
            counted.update(self.rows[i].values)
        return counted

    def statistics(self, indices: Sequence[int]) -> tuple[list[float], list[float]]:
        """Compute mean and standard deviation of each channel over these samples' pixels; grey counts for all three."""
        total, squares, pixels = np.zeros(self.channels), np.zeros(self.channels), 0
        for row in (self.rows[i] for i in indices):
            total += row.total  # one channel counts for all
            squares += row.squares
            pixels += row.height * row.width
        mean = total / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        return mean.tolist(), np.maximum(std, 1e-3 * (self.range[1] - self.range[0]) or 1.0).tolist()

    def percentiles(self, indices: Sequence[int], *percents: float) -> tuple[list[float], ...]:
        """Compute these percentiles, 0 to 100, of each channel over evenly spaced pixels of these samples."""
        pixels = sum(self.rows[i].height * self.rows[i].width for i in indices)
        every = max(1, pixels // SAMPLED)
        taken = [self.image(i).flatten(0, 1)[::every].cpu().numpy() for i in indices]
        wide = np.concatenate([np.broadcast_to(t, (len(t), self.channels)) for t in taken])
        return tuple(np.percentile(wide.astype(np.float32), percents, axis=0).tolist())


def _view(pixels: Tensor, offset: int, *shape: int) -> Tensor:
    return pixels[offset : offset + math.prod(shape)].view(shape)


def open_store(
    samples: Sequence[Sample],
    binarize: bool = False,
    ignore: int | None = None,
    keep: bool = True,
    workers: int | None = None,
    progress: Watch = unwatched,
) -> Store:
    """Open the store of these samples; decode them first where there is none. Safe for many processes at once.

    Args:
        binarize: masks become 0 where they are 0 or black, else 1, but for 255 where they are `ignore`.
        ignore: code of a mask value (`segsweep.data.images.code`).
        keep: write the decoded pixels down; without them samples are decoded again whenever they are asked for.
        workers: decoding threads; default: as many as cores.
        progress: wraps the iterator over decoded samples; also given their number and a title.

    Raises DataError: at least `STOP` files that cannot be used, or none that can.
    """
    read = partial(_decode, binarize=binarize, ignore=ignore)
    target = cache() / "stores" / (_name(samples, binarize, ignore if binarize else None) + ("" if keep else "-scan"))
    threads = workers or os.cpu_count() or 1

    def write(folder: Path) -> None:
        jobs = (partial(read, sample) for sample in samples)
        with closing(prefetch(jobs, threads, 4 * threads)) as decoded:  # its threads end here, whatever happens
            try:
                _write(folder, samples, progress(decoded, len(samples), "decoding"), keep)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise DataError(
                    f"{target.parent}: no room for the decoded images. Try data.cache=none, which decodes them again "
                    "and again, or another place: SEGSWEEP_OUTPUTS=DIR before the command."
                ) from error

    def again(number: int) -> _Decoded:
        result = read(samples[number])
        if isinstance(result, list):
            raise Unusable(result)
        return result

    folder = build_once(target, "manifest.json", write)
    if keep and not _whole(folder):
        shutil.rmtree(folder)
        folder = build_once(target, "manifest.json", write)
    return Store(folder, None if keep else again)


def _whole(folder: Path) -> bool:
    """Whether all pixels are there that the manifest promises."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    last = manifest["rows"][-1]
    area = last["height"] * last["width"]
    promised = {
        "images.bin": (last["image_offset"] + area * last["channels"]) * np.dtype(manifest["dtype"]).itemsize,
        "masks.bin": last["mask_offset"] + area,
    }
    return all((folder / name).is_file() and (folder / name).stat().st_size == n for name, n in promised.items())


@dataclass(frozen=True)
class _Decoded:
    """A sample's files as arrays; its row still lacks its offsets, and counts codes instead of stored values."""

    row: Row
    image: np.ndarray  # `h w c`
    mask: np.ndarray  # `h w`, indices into the row's codes
    low: float
    high: float


def _name(samples: Sequence[Sample], *options: Any) -> str:
    hashed = hashlib.sha256(f"store {VERSION} {options}".encode())
    for sample in samples:
        for path in (sample.image, sample.mask):
            stat = path.stat()
            line = f"{sample.key}\0{sample.split}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            hashed.update(line.encode(errors="surrogateescape"))
    return hashed.hexdigest()[:24]


def _decode(sample: Sample, binarize: bool, ignore: int | None) -> _Decoded | list[str]:
    """All that can be done with a sample alone, in a thread; or its problems."""
    read, problems = [], []
    for reader, path in ((images.read_image, sample.image), (images.read_mask, sample.mask)):
        try:
            read.append(reader(path))
        except DataError as error:
            problems.append(str(error))
    if problems:
        return problems
    image, mask = read
    if image.shape[:2] != mask.shape:
        (h, w), (y, x) = mask.shape, image.shape[:2]
        return [f"{sample.mask}: {w}x{h} pixels, its image has {x}x{y}"]
    if binarize:
        mask = _binary(mask, ignore)
    if mask.dtype == np.uint8:
        counts = np.bincount(mask.reshape(-1), minlength=256)
        codes = counts.nonzero()[0]
        counts = counts[codes]
        indices = np.zeros(256, np.uint8)
        indices[codes] = np.arange(len(codes))
        mask = indices[mask]
    else:
        codes, mask, counts = np.unique(mask, return_inverse=True, return_counts=True)
        if len(codes) > 256:
            return [_too_many_values(sample.mask, int(codes[0]), len(codes))]
        mask = mask.reshape(image.shape[:2]).astype(np.uint8)
    total, squares, low, high = _moments(image.reshape(-1, image.shape[2]))
    content, labelled = (
        hashlib.sha256(f"{about}".encode() + np.ascontiguousarray(pixels).data).hexdigest()[:16]
        for about, pixels in ((f"{image.shape}{image.dtype}", image), (codes.tolist(), mask))
    )
    values = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    (height, width, channels), sums = image.shape, (total.tolist(), squares.tolist())
    row = Row(sample.key, height, width, channels, 0, 0, *sums, values, content, labelled)
    return _Decoded(row, image, mask, low, high)


def _binary(mask: np.ndarray, ignore: int | None) -> np.ndarray:
    """1 where a mask is not 0 or black, 255 where it is `ignore`."""
    binary: np.ndarray = (mask != 0) & (mask != images.COLOR)
    if ignore is None:
        return binary.astype(np.uint8)
    void = mask == ignore
    if ignore == _color(ignore & 255):  # a mask that is all grey is read as numbers
        void |= mask == ignore & 255
    return np.where(void, 255, binary).astype(np.uint8)


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Sum and sum of squares of each column, and the extremes."""
    if pixels.dtype == np.uint8:  # by histogram: some ten times as fast
        histograms = np.stack([np.bincount(column, minlength=256) for column in pixels.T])
        levels = np.arange(256.0)
        return histograms @ levels, histograms @ levels**2, 0.0, 255.0
    wide = pixels.astype(np.float64)
    return wide.sum(0), (wide**2).sum(0), float(wide.min()), float(wide.max())


def _too_many_values(path: Path, first: int, number: int) -> str:
    what = "colours, as after saving as JPEG; save masks as PNG" if first >= images.COLOR else "values"
    return f"{path}: {number} different {what}. Numbered objects become one class with data.binarize=true"


def _write(folder: Path, samples: Sequence[Sample], decoded: Iterable[_Decoded | list[str]], keep: bool) -> None:
    rows: list[Row] = []
    kept: list[int] = []
    problems: list[str] = []
    kinds: dict[str, Sample] = {}
    index: dict[int, int] = {}  # of each code in the file of masks, in the order of appearance
    low, high = np.inf, -np.inf
    image_offset = mask_offset = 0
    paths = [folder / name if keep else Path(os.devnull) for name in ("images.bin", "masks.bin")]
    with paths[0].open("wb") as image_file, paths[1].open("wb") as mask_file:
        for number, (sample, result) in enumerate(zip(samples, decoded, strict=True)):
            if isinstance(result, list):
                problems += result
                if len(problems) >= STOP:
                    refuse(problems)
                continue
            image = result.image
            channels = {1: "grey", 3: "colour"}.get(image.shape[2], f"{image.shape[2]} channels")
            kinds.setdefault(f"{image.dtype} {channels}", sample)
            codes = list(result.row.values)
            places = [index.setdefault(code, len(index)) for code in codes]
            if len(index) > 256:
                refuse([*problems, f"{_too_many_values(sample.mask, codes[0], len(index))} (with those before)"])
            kept.append(number)
            rows.append(replace(result.row, image_offset=image_offset, mask_offset=mask_offset))
            low, high = min(low, result.low), max(high, result.high)
            image_file.write(np.ascontiguousarray(image).data)
            mask_file.write(np.array(places, np.uint8)[result.mask].data)
            image_offset += image.size
            mask_offset += result.mask.size
    if len({kind.replace("grey", "colour") for kind in kinds}) > 1:
        found = "; ".join(f"{kind} in {sample.image}" for kind, sample in kinds.items())
        refuse([*problems, f"images of several kinds: {found}. Convert them to one"])
    if not rows:
        refuse(problems)
    listed = _listed(index)
    stored = {code: _number(listed, code) for code in index}
    if keep:
        _renumber(paths[1], np.array([stored[code] for code in index], np.uint8))
    rows = [replace(row, values={stored[code]: n for code, n in row.values.items()}) for row in rows]
    manifest = {
        "digest": _digest([samples[i] for i in kept], rows),
        "dtype": next(iter(kinds)).split()[0],
        "range": [float(low), float(high)],
        "codes": listed,
        "kept": kept,
        "problems": problems,
        "rows": [asdict(row) for row in rows],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _listed(index: Iterable[int]) -> list[int] | None:
    """The codes that the store's numbers stand for, in their order; None where all are small and stay themselves."""
    found = sorted(index)
    if all(0 <= code <= 255 for code in found):
        return None
    return sorted({_color(code) for code in found} if found[-1] >= images.COLOR else found)


def _number(codes: list[int] | None, code: int) -> int:
    """A code's number in a store that lists these codes."""
    return code if codes is None else codes.index(_color(code) if codes[-1] >= images.COLOR else code)


def _color(code: int) -> int:
    """A mask that is all grey counts as colour, too, where others are coloured."""
    return images.COLOR | code * 0x010101 if 0 <= code <= 255 else code


def _renumber(path: Path, places: np.ndarray) -> None:
    """Replace each byte of the file by its place."""
    if (places != np.arange(len(places))).any():
        values = np.memmap(path, np.uint8, "r+")
        for start in range(0, len(values), 1 << 24):
            values[start : start + (1 << 24)] = places[values[start : start + (1 << 24)]]
        values.flush()


def _digest(samples: Sequence[Sample], rows: Sequence[Row]) -> str:
    """Of the decoded content, the keys and the given split."""
    digest = hashlib.sha256()
    for sample, row in zip(samples, rows, strict=True):
        line = f"{row.key} {sample.split} {row.height} {row.width} {row.content} {row.labelled}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
