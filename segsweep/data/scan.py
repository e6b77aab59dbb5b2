"""A data set's files to a store: each is decoded once, and what is wrong with it is told."""

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segsweep.data import masks
from segsweep.data.images import Picture, channels_named, read_picture
from segsweep.data.masks import ALPHA, COLOR, NO_DATA, PALETTE, Codes, Mask, read_mask
from segsweep.data.reading import KEPT, LEVELS, Census, Reading, decide
from segsweep.data.source import Sample, refuse
from segsweep.errors import DataError
from segsweep.paths import sync

STOP = 20  # problems after which no more are looked for
MANIFEST, IMAGES, MASKS = "manifest.json", "images.bin", "masks.bin"


@dataclass(frozen=True)
class Decoding:
    """How files are decoded."""

    # In grey masks this and all above is 255, all below 0; None: masks as they are; auto: where they have two ends.
    threshold: float | Literal["auto"] | None = "auto"
    void: int | None = None  # code of the mask value that never counts
    nodata: float | str = "auto"  # of images, as `read_picture` takes it
    nodata_void: bool = True  # pixels without data in the image do not count in the mask
    binarize: bool = False  # all that is not background is one class: part of the masks' hash alone
    mask_resize: str = "none"  # nearest: masks of another size and the same shape are brought to their image's


@dataclass(frozen=True)
class Row:
    """One sample's place in the store and what was counted in it."""

    key: str
    height: int
    width: int
    channels: int
    image_offset: int
    mask_offset: int
    total: list[float]  # sum of the pixels that have data, for each channel
    squares: list[float]  # sum of their squares
    valid: list[int]  # their number
    values: dict[int, int]  # pixels for each mask value, as stored
    content: str  # hash of the image's pixels, the same for duplicates
    labelled: str  # hash of the mask's values
    checksum: tuple[int, int]  # CRC-32 of the stored image and mask
    sentinel: float | None = None  # `Picture.sentinel`


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself."""

    rows: list[Row]  # the samples that can be used, in the order they were given
    kept: list[int]  # where each row's sample was among those given
    problems: list[str]  # what is wrong with the others, a line each
    notes: list[str]  # what was decided about the files, a line each
    digest: str  # of the decoded content, the keys and the given split
    dtype: str
    range: tuple[float, float]  # lowest and highest value the type or, beyond 8 bits, the data set has
    codes: list[int] | None  # what each stored mask value stands for, where that is not itself
    others: int  # mask values that are not kept apart
    reading: Reading
    named: list[int]  # codes of the mask values that had a name
    by_name: bool  # other names would give other masks

    def stored(self, codes: Codes) -> np.ndarray:
        """Return the stored number of each code that counts, uint8."""
        numbers = codes if self.codes is None else np.searchsorted(self.codes, codes)
        return np.asarray(numbers, np.uint8)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file of pixels."""
        last = self.rows[-1]
        area = last.height * last.width
        item = np.dtype(self.dtype).itemsize
        return {IMAGES: (last.image_offset + area * last.channels) * item, MASKS: last.mask_offset + area}


@dataclass(frozen=True)
class Decoded:
    """A sample's files as arrays; its row still lacks offsets, mask values and the mask's checksum."""

    row: Row
    image: np.ndarray  # `h w c`
    mask: Mask
    low: float  # of the pixels with data
    high: float
    told: list[str]  # what of `TOLD` holds
    lacking: int  # pixels without data
    foreground: int | None  # `Sample.foreground`
    void: int | None  # `Decoding.void`

    def final(self, reading: Reading) -> Codes:
        """Return the codes that count, one for each of the mask's: all but background is the sample's own class."""
        codes = reading.final(self.mask.codes)
        if self.foreground is None:
            return codes
        black = (codes == 0) | ((codes >= COLOR) & (codes & 0xFFFFFF == 0))
        if not black.any():
            black = (codes >= PALETTE) & (codes >> 24 & 0xFFFF == 0)
        stay = np.isin(codes, [NO_DATA, *([] if self.void is None else [self.void])])
        return np.where(stay, codes, np.where(black, 0, self.foreground))


TOLD = {
    "alpha": "images have an alpha channel that is dropped and not the same everywhere",
    "mask alpha": "masks have an alpha channel that is dropped and not the same everywhere",
    "no data": "images have pixels without data (data.nodata), which get the channel's mean and count in no statistics",
    "resized": "masks were brought to their image's size (data.mask_resize=nearest)",
}


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest. Raises ValueError: damaged; OSError: not there."""
    try:
        plain = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rows = [
            Row(**row | {"values": {int(k): n for k, n in row["values"].items()}, "checksum": tuple(row["checksum"])})
            for row in plain["rows"]
        ]
        reading: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain["reading"].items()}
        return Manifest(**plain | {"rows": rows, "reading": Reading(**reading), "range": tuple(plain["range"])})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / MANIFEST}: damaged") from error


def whole(folder: Path, pixels: bool = True) -> bool:
    """Tell whether a store can be used: its manifest is sound and, with `pixels`, their files have its sizes."""
    try:
        sizes = read_manifest(folder).sizes if pixels else (read_manifest(folder), {})[1]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, IndexError):
        return False


def decode(sample: Sample, how: Decoding) -> Decoded | list[str]:
    """Do all that can be done with a sample alone; return what is wrong with its files, a line each."""
    problems: list[str] = []
    picture, mask = Picture(np.empty(0)), None
    try:
        picture = read_picture(sample.image, how.nodata)
    except DataError as error:
        problems.append(str(error))
    try:
        mask = read_mask(sample.mask, None if how.threshold == "auto" else how.threshold, how.void)
    except DataError as error:
        problems.append(str(error))
    if problems or mask is None:
        return problems
    image, told = picture.pixels, []
    if image.shape[:2] != mask.index.shape:
        fitted = _fitted(mask, image.shape[:2]) if how.mask_resize == "nearest" else None
        if fitted is None:
            return [_other_size(sample.mask, mask, image)]
        mask = fitted
        told.append("resized")
    lacking = 0
    if picture.lacking is not None:
        told.append("no data")
        somewhere = np.asarray(picture.lacking.any(2))
        lacking = int(somewhere.sum())
        if how.nodata_void:
            mask = masks.blanked(mask, somewhere)
    told += ["alpha"] * picture.dropped_alpha + ["mask alpha"] * mask.dropped_alpha
    total, squares, valid, low, high = _moments(picture)
    contiguous = np.ascontiguousarray(image)
    content, labelled = (
        hashlib.sha256(f"{about}".encode() + np.ascontiguousarray(pixels).data).hexdigest()[:16]
        for about, pixels in ((f"{image.shape}{image.dtype}", image), _hashed(mask, how))
    )
    height, width, channels = image.shape
    row = Row(
        key=sample.key,
        height=height,
        width=width,
        channels=channels,
        image_offset=0,
        mask_offset=0,
        total=total.tolist(),
        squares=squares.tolist(),
        valid=valid.tolist(),
        values={},
        content=content,
        labelled=labelled,
        checksum=(zlib.crc32(contiguous.data), 0),
        sentinel=picture.sentinel,
    )
    return Decoded(row, contiguous, mask, low, high, told, lacking, sample.foreground, how.void)


@dataclass
class _Scan:
    """What is known after the first pass over the files."""

    rows: list[Row] = field(default_factory=list)
    decoded: list[Decoded] = field(default_factory=list)  # without pixels
    kept: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kinds: dict[str, Sample] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Sample] = field(default_factory=dict)
    low: float = np.inf
    high: float = -np.inf


def write(
    folder: Path,
    samples: Sequence[Sample],
    decoded: Iterable[Decoded | list[str]],
    named: Sequence[int],
    cut: bool,
    keep: bool,
) -> None:
    """Write a store into an empty folder.

    Args:
        decoded: of each sample, in their order.
        named: codes of the mask values that have a name.
        cut: grey masks with two ends are cut in the middle.
        keep: write the pixels, too.

    Raises DataError: at least `STOP` files that cannot be used, or none that can; images of several kinds.
    """
    raw = folder / "masks.raw"  # as the files have them, until all of them are known
    images_file, raw_file = (path if keep else Path(os.devnull) for path in (folder / IMAGES, raw))
    scan = _scanned(images_file, raw_file, samples, decoded)
    if len({kind.replace("grey", "colour") for kind in scan.kinds}) > 1:
        found = "; ".join(f"{kind} in {sample.image}" for kind, sample in scan.kinds.items())
        refuse([*scan.problems, f"images of several kinds: {found}. Convert them to one"])
    if not scan.rows:
        refuse(scan.problems)
    census = _census([one.mask for one in scan.decoded])
    reading = decide(census, named, cut)
    finals = [one.final(reading) for one in scan.decoded]
    listed = np.unique(np.concatenate(finals)).tolist()
    manifest = Manifest(
        rows=[],
        kept=scan.kept,
        problems=scan.problems,
        notes=[*_notes(scan), *reading.notes],
        digest=_digest([samples[i] for i in scan.kept], scan.rows),
        dtype=next(iter(scan.kinds)).split()[0],
        range=(float(scan.low), float(scan.high)),
        codes=None if all(0 <= code <= 255 for code in listed) else listed,
        others=len(np.unique(replace(reading, kept=()).final(census.codes))) - len(reading.kept),
        reading=reading,
        named=sorted(named),
        by_name=len(census.codes) > KEPT or (len(census.codes) > LEVELS and bool((census.codes >= COLOR).any())),
    )
    tables = [manifest.stored(codes) for codes in finals]
    checksums = _numbered(raw, folder / MASKS, scan, tables) if keep else [0] * len(tables)
    for row, one, table, checksum in zip(scan.rows, scan.decoded, tables, checksums, strict=True):
        values = np.bincount(table, one.mask.counts, 256).astype(int)
        counted = {int(number): int(values[number]) for number in np.flatnonzero(values)}
        manifest.rows.append(replace(row, values=counted, checksum=(row.checksum[0], checksum)))
    if keep:
        sync(folder / IMAGES)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)), encoding="utf-8")
    sync(folder / MANIFEST)


def _scanned(
    images_path: Path, masks_path: Path, samples: Sequence[Sample], decoded: Iterable[Decoded | list[str]]
) -> _Scan:
    """Write the images, and the masks as the files have them."""
    scan = _Scan()
    image_offset = mask_offset = 0
    with images_path.open("wb") as image_file, masks_path.open("wb") as mask_file:
        for number, (sample, result) in enumerate(zip(samples, decoded, strict=True)):
            if isinstance(result, list):
                scan.problems += result
                if len(scan.problems) >= STOP:
                    refuse(scan.problems)
                continue
            image, mask = result.image, result.mask
            scan.kinds.setdefault(f"{image.dtype} {channels_named(image.shape[2])}", sample)
            scan.told.update(result.told)
            for what in result.told:
                scan.examples.setdefault(what, sample)
            scan.kept.append(number)
            scan.rows.append(replace(result.row, image_offset=image_offset, mask_offset=mask_offset))
            scan.decoded.append(replace(result, image=image[:0], mask=replace(mask, index=mask.index[:0])))
            scan.low, scan.high = min(scan.low, result.low), max(scan.high, result.high)
            image_file.write(image.data)
            mask_file.write(np.ascontiguousarray(mask.index).data)
            image_offset += image.size
            mask_offset += mask.index.size
    return scan


def _numbered(raw: Path, target: Path, scan: _Scan, tables: Sequence[np.ndarray]) -> list[int]:
    """Write the masks as stored numbers, and remove the raw ones; return each mask's checksum."""
    checksums = []
    with raw.open("rb") as source, target.open("wb") as file:
        for row, one, table in zip(scan.rows, scan.decoded, tables, strict=True):
            area, kind = row.height * row.width, one.mask.index.dtype
            numbers = table[np.frombuffer(source.read(area * kind.itemsize), kind)]
            checksums.append(zlib.crc32(numbers.data))
            file.write(numbers.data)
    raw.unlink()
    sync(target)
    return checksums


def _census(found: Sequence[Mask]) -> Census:
    codes, place = np.unique(np.concatenate([mask.codes for mask in found]), return_inverse=True)
    counts, flat = (
        np.bincount(place, np.concatenate(weights), len(codes)).astype(np.int64)
        for weights in ([mask.counts for mask in found], [mask.flat for mask in found])
    )
    return Census(codes, counts, flat, [mask.codes for mask in found])


def _notes(scan: _Scan) -> list[str]:
    notes = []
    for what, n in scan.told.items():
        example = scan.examples[what]
        path = example.mask if TOLD[what].startswith("masks") else example.image
        share = ""
        if what == "no data":
            pixels = sum(row.height * row.width for row in scan.rows)
            share = f"; {100 * sum(one.lacking for one in scan.decoded) / pixels:.3g} % of all pixels"
        notes.append(f"{n} of {len(scan.rows)} {TOLD[what]}, such as {path}{share}")
    return notes


def _hashed(mask: Mask, how: Decoding) -> tuple[list[int], np.ndarray]:
    """What a mask's hash is of: names of its values, which stay so that data sets keep their digests, and indices."""
    codes = mask.codes
    names = np.where((codes >= COLOR) & (codes < PALETTE), 1 << 24 | codes & 0xFFFFFF, codes)
    names = np.where((codes >= PALETTE) & (codes < ALPHA), codes >> 24 & 0xFFFF, names)
    if how.binarize:
        names = np.where(codes == how.void, 255, (names != 0) & (names != 1 << 24))
    if np.array_equal(names, codes):
        return codes.tolist(), mask.index
    listed, place = np.unique(names, return_inverse=True)
    return listed.tolist(), place.astype(mask.index.dtype)[mask.index]


def _fitted(mask: Mask, size: tuple[int, ...]) -> Mask | None:
    """Bring a mask to another size of the same shape, by the nearest pixel; None if the shape is another."""
    height, width = mask.index.shape
    scale = size[0] / height
    if abs(width * scale - size[1]) > max(1.0, scale) / 2:  # half a pixel of the smaller one is rounding
        return None
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size, (height, width), strict=True)
    )
    return masks.counted(mask.codes, mask.index[rows][:, columns], dropped_alpha=mask.dropped_alpha)


def _other_size(path: Path, mask: Mask, image: np.ndarray) -> str:
    (h, w), (y, x) = mask.index.shape, image.shape[:2]
    advice = "; data.mask_resize=nearest brings it to that size" if _fitted(mask, (y, x)) else ""
    return f"{path}: {w}x{h} pixels, its image has {x}x{y}{advice}"


def _moments(picture: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Sum, sum of squares and number of each channel's pixels with data, and the extremes of all."""
    pixels = picture.pixels.reshape(-1, picture.pixels.shape[2])
    n = np.full(pixels.shape[1], len(pixels))
    if picture.lacking is None:
        if pixels.dtype == np.uint8:  # by histogram: some ten times as fast
            histograms = np.stack([np.bincount(column, minlength=256) for column in pixels.T])
            levels = np.arange(256.0)
            return histograms @ levels, histograms @ levels**2, n, 0.0, 255.0
        wide = pixels.astype(np.float64)
        return wide.sum(0), (wide**2).sum(0), n, float(wide.min()), float(wide.max())
    there = ~picture.lacking.reshape(pixels.shape)
    wide = np.where(there, pixels.astype(np.float64), 0)
    n = there.sum(0)
    known = pixels[there]
    low, high = (known.min(), known.max()) if known.size and pixels.dtype != np.uint8 else (0.0, 255.0)
    return wide.sum(0), (wide**2).sum(0), n, float(low), float(high)


def _digest(samples: Sequence[Sample], rows: Sequence[Row]) -> str:
    """Of the decoded content, the keys and the given split."""
    digest = hashlib.sha256()
    for sample, row in zip(samples, rows, strict=True):
        line = f"{row.key} {sample.split} {row.height} {row.width} {row.content} {row.labelled}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
