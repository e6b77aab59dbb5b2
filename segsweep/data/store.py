"""Decoded once, then memory-mapped: all images and masks of a data set, ragged, in the files' own data type.

A store is a folder in the cache: `images.bin` and `masks.bin` (rows of pixels, one sample after the other) and
`manifest.json` (where each sample lies, and what was counted while decoding). Its name is a hash of the files' names,
sizes and times, so a changed file makes another store. Without room for the pixels the manifest stands alone, and
samples are decoded whenever they are asked for.

Each sample's checksum is compared when it is first read. Damaged means absent: what is damaged is decoded again.
"""

import hashlib
import logging
import math
import mmap
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segsweep.data import masks, raster, scan
from segsweep.data.masks import NO_DATA, Value
from segsweep.data.prefetch import prefetch
from segsweep.data.scan import IMAGES, MASKS, Decoded, Decoding, Manifest
from segsweep.data.source import Sample, Unusable
from segsweep.data.windows import Flat
from segsweep.errors import FULL, DataError, DiskError
from segsweep.paths import build_once, cache
from segsweep.world import cores

log = logging.getLogger(__name__)

# Wraps an iterator, as a progress bar does; also given its length and a title.
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]

VERSION = 8
PLAIN = Decoding()
SAMPLED = 4_000_000  # pixels that percentiles are taken from


def unwatched(items: Iterable[Any], *_: object) -> Iterable[Any]:
    """Return the iterator as it is: a `Watch` that shows nothing."""
    return items


class Store:
    """An open store.

    Args:
        folder: of the store.
        manifest: as it is there.
        decode: decodes the files of one of the samples given, by its number.
        keep: the pixels lie in the folder.
    """

    def __init__(self, folder: Path, manifest: Manifest, decode: Callable[[int], Decoded], keep: bool):
        self.folder, self._manifest = folder, manifest
        self.rows, self.kept, self.problems = manifest.rows, manifest.kept, manifest.problems
        self.notes, self.digest, self.range = manifest.notes, manifest.digest, manifest.range
        self.reading = manifest.reading  # how masks are read
        self.by_name = manifest.by_name  # other names would give other masks
        self.named = manifest.named  # codes of the mask values that had a name
        self.tags = manifest.tags  # mask values that a file's tag says stand for no data
        self.channels = max(row.channels for row in self.rows)  # the pixels of grey images count for all of them
        # What each stored mask value stands for, where that is not itself.
        codes = manifest.codes
        self.values: list[Value] | None = None
        if codes is not None:
            self.values = [masks.value(code, manifest.others) for code in codes]
        self.dtype = np.dtype(manifest.dtype)
        self._no_data = codes.index(NO_DATA) if codes and NO_DATA in codes else None
        self._decode = decode
        self.kept_pixels = keep  # in the folder; else files are decoded each time
        self._sound = bytearray(len(self.rows))  # 1 where a sample's checksum was compared
        if keep:
            self._maps = [_mapped(folder / name) for name in (IMAGES, MASKS)]
            self._images = torch.from_numpy(np.frombuffer(self._maps[0], self.dtype))
            self._masks = self._host_masks = torch.from_numpy(np.frombuffer(self._maps[1], np.uint8))

    @property
    def on_device(self) -> bool:
        """Tell whether the pixels lie on a device of their own and not in main memory."""
        return self.kept_pixels and self._images.device.type != "cpu"

    @property
    def flat(self) -> Flat:
        """All kept pixels, where they lie."""
        return Flat(self._images, self._masks, self.channels)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image and mask, as `image` and `mask` do.

        Raises DataError: a file of the data set has changed, or one of the store's has been cut.
        """
        if self.kept_pixels:
            return self.image(index), self.mask(index)
        decoded, row = self._decode(self.kept[index]), self.rows[index]
        if (decoded.row.content, decoded.row.labelled) != (row.content, row.labelled):
            raise DataError(f"{row.key}: has changed since the data were scanned. Start again.")
        return torch.from_numpy(np.array(decoded.image)), self._stored(decoded)

    def image(self, index: int) -> Tensor:
        """Return `h w c`, a view in the store's data type; c is the row's own."""
        if not self.kept_pixels:
            return self.pair(index)[0]
        self._check(index)
        return self._image(index)

    def mask(self, index: int) -> Tensor:
        """Return `h w` uint8, a view: the file's values."""
        if not self.kept_pixels:
            return self.pair(index)[1]
        self._check(index)
        return self._mask(index, self._masks)

    def host_mask(self, index: int) -> np.ndarray:
        """Return the mask, `h w` uint8, in main memory, wherever the pixels are."""
        if not self.kept_pixels:
            return self.pair(index)[1].numpy()
        self._check(index)
        return self._mask(index, self._host_masks).numpy()

    def to(self, device: torch.device) -> "Store":
        """Move all pixels to the device if half of its free memory holds them; return self."""
        if device.type == "cuda" and self.kept_pixels:
            needed = sum(t.numel() * t.element_size() for t in (self._images, self._masks))
            if needed < torch.cuda.mem_get_info(device)[0] / 2:
                for index in range(len(self.rows)):
                    self._check(index)
                self._images, self._masks = self._images.to(device), self._masks.to(device)
        return self

    def _image(self, index: int) -> Tensor:
        row = self.rows[index]
        return _view(self._images, row.image_offset, row.height, row.width, row.channels)

    def _mask(self, index: int, of: Tensor) -> Tensor:
        row = self.rows[index]
        return _view(of, row.mask_offset, row.height, row.width)

    def _stored(self, decoded: Decoded) -> Tensor:
        """A decoded mask as it is stored."""
        table = self._manifest.stored(self._manifest.final(decoded.mask.codes, decoded.foreground))
        return torch.from_numpy(table[decoded.mask.index])

    def _check(self, index: int) -> None:
        """Compare a sample's checksum the first time; decode what is damaged again, in this process's memory."""
        for name, mapped in zip((IMAGES, MASKS), self._maps, strict=True):
            # To read beyond the end of a file that was cut kills a process.
            if mapped.size() < len(mapped):
                raise DataError(
                    f"{self.folder / name}: became shorter while it was in use. Start again: the data "
                    f"will be decoded again."
                )
        if self.on_device or self._sound[index]:
            return  # compared before
        image, mask, row = self._image(index), self._mask(index, self._masks), self.rows[index]
        if (zlib.crc32(image.numpy().data), zlib.crc32(mask.numpy().data)) != row.checksum:
            if (self.folder / scan.MANIFEST).exists():
                log.warning("%s: damaged, at %s. It is decoded again.", self.folder, row.key)
                (self.folder / scan.MANIFEST).unlink(missing_ok=True)  # the next start makes all of it anew
            decoded = self._decode(self.kept[index])
            if (decoded.row.content, decoded.row.labelled) != (row.content, row.labelled):
                raise DataError(f"{row.key}: has changed since the data were decoded. Start again.")
            image.copy_(torch.from_numpy(np.array(decoded.image)))
            mask.copy_(self._stored(decoded))
        self._sound[index] = 1

    def counts(self) -> Counter[int]:
        """Count the pixels for each mask value."""
        counted: Counter[int] = Counter()
        for row in self.rows:
            counted.update(row.values)
        return counted

    def statistics(self, indices: Sequence[int]) -> tuple[list[float], list[float]]:
        """Compute mean and standard deviation of each channel over these samples' pixels; grey counts for all three.

        Pixels without data count in neither.
        """
        total, squares, pixels = np.zeros((3, self.channels))
        for row in (self.rows[i] for i in indices):
            total += row.total  # one channel counts for all
            squares += row.squares
            pixels += row.valid
        pixels = np.maximum(pixels, 1)
        mean = total / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        spans = [self._span(channel) for channel in range(self.channels)]
        return mean.tolist(), [max(float(s), 1e-3 * span or 1.0) for s, span in zip(std, spans, strict=True)]

    def percentiles(self, indices: Sequence[int], *percents: float) -> tuple[list[float], ...]:
        """Compute these percentiles, 0 to 100, of each channel over evenly spaced pixels of these samples.

        Pixels that are void for want of data do not count.
        """
        pixels = sum(self.rows[i].height * self.rows[i].width for i in indices)
        every = max(1, pixels // SAMPLED)
        taken = [self._known(i)[::every].cpu().numpy() for i in indices]
        wide = np.concatenate([np.broadcast_to(t, (len(t), self.channels)) for t in taken])
        return tuple(np.percentile(wide.astype(np.float32), percents, axis=0).tolist())

    def _span(self, channel: int) -> float:
        """From the lowest to the highest value that a channel has in the data set, or can have in 8 bits."""
        ends = [end for row in self.rows for end in (row.low[channel % row.channels], row.high[channel % row.channels])]
        known = [end for end in ends if end is not None]
        return max(known, default=0.0) - min(known, default=0.0)

    def _known(self, index: int) -> Tensor:
        """A sample's pixels that have data, `n c`."""
        image, mask = self.pair(index)
        return image.flatten(0, 1) if self._no_data is None else image[mask != self._no_data]


def _mapped(path: Path) -> mmap.mmap:
    """A file in memory, copy-on-write: torch wants writable memory, and only what is damaged is written, here alone."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _view(pixels: Tensor, offset: int, *shape: int) -> Tensor:
    return pixels[offset : offset + math.prod(shape)].view(shape)


def open_store(
    samples: Sequence[Sample],
    how: Decoding = PLAIN,
    named: Sequence[int] = (),
    *,
    keep: bool = True,
    workers: int | None = None,
    progress: Watch = unwatched,
) -> Store:
    """Open the store of these samples; decode them first where there is none. Safe for many processes at once.

    Args:
        named: codes of the mask values that have a name (`segsweep.data.masks.code`), which blended colours belong to.
        keep: write the decoded pixels down; without them samples are decoded again whenever they are asked for.
        workers: decoding threads; default: as many as cores.
        progress: wraps the iterator over decoded samples; also given their number and a title.

    Raises DataError: at least `segsweep.data.scan.STOP` files that cannot be used, or none that can.
    """
    names = sorted(set(named))
    store = _opened(_name(samples, how, keep), samples, how, names, keep, workers, progress)
    if store.by_name and store.named != names:
        store = _opened(_name(samples, how, keep, names), samples, how, names, keep, workers, progress)
    return store


def _opened(
    name: str,
    samples: Sequence[Sample],
    how: Decoding,
    named: Sequence[int],
    keep: bool,
    workers: int | None,
    progress: Watch,
) -> Store:
    target = cache() / "stores" / name
    threads = workers or cores()

    def write(folder: Path) -> None:
        jobs = (partial(scan.decode, sample, how) for sample in samples)
        with closing(prefetch(jobs, threads, 4 * threads)) as decoded:  # its threads end here, whatever happens
            try:
                scan.write(folder, samples, progress(decoded, len(samples), "decoding"), how, named, keep)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise DiskError(
                    f"{target.parent}: no room for the decoded images. Try data.cache=none, which decodes them every "
                    f"time, or type SEGSWEEP_OUTPUTS=DIR before the command, to use another disk."
                ) from error

    def again(number: int) -> Decoded:
        result = scan.decode(samples[number], how)
        if isinstance(result, list):
            raise Unusable(result)
        return result

    known: list[Manifest] = []

    def whole(folder: Path) -> bool:
        manifest = scan.sound(folder, keep)
        if manifest is None and (folder / scan.MANIFEST).exists():
            log.warning("%s: damaged. The data are decoded again.", folder)
        known.extend([manifest] if manifest else [])
        return manifest is not None

    folder = build_once(target, whole, write)
    return Store(folder, known[0] if known else scan.read_manifest(folder), again, keep)


def _name(samples: Sequence[Sample], how: Decoding, keep: bool, named: Sequence[int] | None = None) -> str:
    if how.threshold in (None, "auto") and not how.binarize and all(sample.foreground is None for sample in samples):
        how = replace(how, void=None)  # it changes nothing then
    # Other decoders may give other pixels, and read what these do not.
    hashed = hashlib.sha256(f"store {VERSION} {raster.decoders()} {raster.optional_decoders()} {how} {named}".encode())
    for sample in samples:
        for path in (sample.image, sample.mask):
            stat = path.stat()
            line = f"{sample.key}\0{sample.split}\0{sample.foreground}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            hashed.update(line.encode(errors="surrogateescape"))
    return hashed.hexdigest()[:24] + ("" if keep else "-scan")
