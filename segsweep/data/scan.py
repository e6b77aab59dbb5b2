"""Write the files of a data set into a store: decode each file once, and collect its problems."""

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data import masks
from segsweep.data.images import Picture, channels_named, read_picture
from segsweep.data.masks import COLOR, NO_DATA, OTHERS, Codes, Mask, is_black, is_color, is_entry, numbers, read_mask
from segsweep.data.reading import KEPT, LEVELS, Census, Reading, decide
from segsweep.data.source import Sample, refuse
from segsweep.errors import DataError
from segsweep.paths import sync

USUAL = 255  # the mask value that is void beside class indices, where nobody names it
MANY = 4096  # values that only blended colours have more of
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
    low: list[float | None]  # lowest of them; None without any
    high: list[float | None]  # highest of them
    values: dict[int, int]  # pixels for each mask value, as stored
    content: str  # hash of the image's pixels, the same for duplicates
    labelled: str  # hash of the mask's values
    checksum: tuple[int, int]  # CRC-32 of the stored image and mask
    sentinel: float | None = None  # `Picture.sentinel`


@dataclass(frozen=True)
class Manifest:
    """The manifest of a store."""

    rows: list[Row]  # the samples that can be used, in the order they were given
    kept: list[int]  # where each row's sample was among those given
    problems: list[str]  # what is wrong with the others, a line each
    notes: list[str]  # what was decided about the files, a line each
    digest: str  # of the decoded content, the keys and the given split
    dtype: str
    range: tuple[float, float]  # lowest and highest value the type or, beyond 8 bits, the data set has
    codes: list[int] | None  # what each stored mask value stands for, where that is not itself
    tags: list[int]  # mask values that a file's tag says stand for no data
    void: int | None  # mask value that never counts in masks whose foreground is a class of its own
    others: int  # mask values that are not kept apart
    reading: Reading
    named: list[int]  # codes of the mask values that had a name
    by_name: bool  # other names would give other masks
    absent: list[int] = field(default_factory=list)  # numbers that are no class of a folder, as a file's tag says
    black: bool = True  # of folders' classes: some pixels are black, so those are background

    def stored(self, codes: Codes) -> np.ndarray:
        """Return the stored number of each code that counts, uint8."""
        found = codes if self.codes is None else np.searchsorted(self.codes, codes)
        return np.asarray(found, np.uint8)

    def final(self, codes: Codes, foreground: int | None) -> Codes:
        """Return the code that counts for each of a mask's codes; with `foreground` all but background is that."""
        return _of_class(self.reading.final(codes), foreground, self.void, self.absent, self.black)

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
    told: list[str]  # what of `TOLD` holds
    lacking: int  # pixels without data
    foreground: int | None  # `Sample.foreground`


TOLD = {
    "alpha": "images have an alpha channel with different values; it is dropped",
    "mask alpha": "masks have an alpha channel with different values; it is dropped",
    "no data": "images have pixels without data (data.nodata); they are filled with the channel's mean and left out "
    "of statistics",
    "inverted": "images are inverted, because their tag says that white is zero",
    "mask inverted": "masks are inverted, because their tag says that white is zero",
    "mask no data": "masks have pixels without a value (NaN, or the nodata tag's); they are ignored",
    "resized": "masks were resized to their image's size (data.mask_resize=nearest)",
}


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest. Raises ValueError: damaged; OSError: not there."""
    checksum, _, text = (folder / MANIFEST).read_bytes().partition(b"\n")
    if checksum != _checksum(text):
        raise ValueError(f"{folder / MANIFEST}: damaged")
    plain = json.loads(text)
    rows = [
        Row(**row | {"values": {int(k): n for k, n in row["values"].items()}, "checksum": tuple(row["checksum"])})
        for row in plain["rows"]
    ]
    reading: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain["reading"].items()}
    return Manifest(**plain | {"rows": rows, "reading": Reading(**reading), "range": tuple(plain["range"])})


def sound(folder: Path, keep: bool) -> Manifest | None:
    """Read a store's manifest; None if it is damaged or, where pixels are kept, their files have not its sizes."""
    try:
        manifest = read_manifest(folder)
        whole = not keep or all((folder / name).stat().st_size == size for name, size in manifest.sizes.items())
    except (OSError, ValueError):
        return None
    return manifest if whole else None


def _checksum(text: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}".encode()


def decode(sample: Sample, how: Decoding) -> Decoded | list[str]:
    """Decode one sample; or return the problems of its files, one line each."""
    problems: list[str] = []
    picture, mask = Picture(np.empty(0)), None
    try:
        picture = read_picture(sample.image, how.nodata)
    except DataError as error:
        problems.append(str(error))
    try:
        level = None if how.threshold == "auto" else how.threshold
        mask = read_mask(sample.mask, level, how.void, how.nodata)
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
    told += ["mask no data"] * bool(np.isin(NO_DATA, mask.codes))
    lacking = 0
    if (nowhere := picture.nowhere) is not None:
        told.append("no data")
        lacking = int(nowhere.sum())
        if how.nodata_void:
            mask = masks.blanked(mask, nowhere)
    told += ["alpha"] * picture.dropped_alpha + ["mask alpha"] * mask.dropped_alpha
    told += ["inverted"] * picture.inverted + ["mask inverted"] * mask.inverted
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
        **_moments(picture),
        values={},
        content=content,
        labelled=labelled,
        checksum=(zlib.crc32(contiguous.data), 0),
        sentinel=picture.sentinel,
    )
    return Decoded(row, contiguous, mask, told, lacking, sample.foreground)


@dataclass
class _Scan:
    """What is known after the first pass over the files."""

    rows: list[Row] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kinds: dict[str, Sample] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Sample] = field(default_factory=dict)
    tags: set[int] = field(default_factory=set)
    lacking: int = 0  # pixels without data
    files: list[Codes] = field(default_factory=list)  # as `Census.files`
    census: Census | None = None
    waiting: list[Mask] = field(default_factory=list)  # that the census does not count yet

    def count(self, mask: Mask) -> None:
        """Count a mask's values; of many at once, since merging takes as long as there are values."""
        self.files.append(mask.codes if len(mask.codes) <= MANY else mask.codes[-1:])
        self.waiting.append(replace(mask, index=np.empty(0, np.uint8)))
        if sum(len(one.codes) for one in self.waiting) > 1_000_000:
            self.merge()

    def merge(self) -> Census:
        """Return the census of all masks that were counted."""
        parts: list[Census | Mask] = [*([self.census] if self.census else []), *self.waiting]
        codes, counts, flat, ramp = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "counts", "flat", "ramp")
        )
        lossy = any(part.lossy for part in parts)
        self.census, self.waiting = Census(codes, counts, flat, ramp, self.files, lossy).merged(codes), []
        return self.census


def write(
    folder: Path,
    samples: Sequence[Sample],
    decoded: Iterable[Decoded | list[str]],
    how: Decoding,
    named: Sequence[int],
    keep: bool,
) -> None:
    """Write a store into an empty folder.

    Args:
        decoded: of each sample, in their order.
        named: codes of the mask values that have a name.
        keep: write the pixels, too.

    Raises DataError: at least `STOP` files that cannot be used, or none that can; images of several kinds.
    """
    raw = folder / "masks.raw"  # as the files have them, until all of them are known
    scan = _scanned(folder / IMAGES if keep else Path(os.devnull), raw, samples, decoded)
    if len({kind.replace("grey", "colour") for kind in scan.kinds}) > 1:
        found = "; ".join(f"{kind} in {sample.image}" for kind, sample in scan.kinds.items())
        refuse([*scan.problems, f"images differ in pixel type or channels: {found}. Convert them to one"])
    if not scan.rows:
        refuse(scan.problems)
    census = scan.merge()
    reading = decide(census, named, how.threshold == "auto")
    final, notes = reading.final(census.codes), list(reading.notes)
    black = bool(is_black(final).any())
    classes = [samples[number].foreground for number in scan.kept]
    void, tags = how.void, set[int]()
    if any(one is not None for one in classes):
        folders = _folders([reading.final(codes) for codes in scan.files], [samples[number] for number in scan.kept])
        if void is None and usual_void({*numbers(final[final != NO_DATA]).tolist()}):
            void, note = _void_of(folders)
            notes.append(note)
        tags = _without_value(final, scan.tags if how.nodata != "none" else (), void)
        _refuse_without_background(folders, void, tags, black)
    of_class = {one: _of_class(final, one, void, tags, black) for one in dict.fromkeys(classes)}
    listed = np.unique(np.concatenate([*of_class.values()])).tolist()
    dtype = next(iter(scan.kinds)).split()[0]
    manifest = Manifest(
        rows=[],
        kept=scan.kept,
        problems=scan.problems,
        notes=[*_notes(scan), *notes],
        digest=_digest([samples[i] for i in scan.kept], scan.rows),
        dtype=dtype,
        range=_range(scan.rows, dtype),
        codes=None if all(0 <= code <= 255 for code in listed) else listed,
        tags=sorted(scan.tags),
        void=void,
        others=len(np.unique(replace(reading, kept=()).final(census.codes))) - len(reading.kept),
        reading=reading,
        named=sorted(named),
        absent=sorted(tags),
        black=black,
        by_name=len(census.codes) > KEPT or (len(census.codes) > LEVELS and bool(census.ramp.any())),
    )
    tables = {one: manifest.stored(codes) for one, codes in of_class.items()}
    with raw.open("rb") as source, (folder / MASKS if keep else Path(os.devnull)).open("wb") as file:
        for row, one in zip(scan.rows, classes, strict=True):
            codes, index = _unpacked(source, row)
            stored = tables[one][np.searchsorted(census.codes, codes)][index]
            file.write(stored.data)
            counts = np.bincount(stored, minlength=256)
            values = {int(number): int(counts[number]) for number in np.flatnonzero(counts)}
            checksum = (row.checksum[0], zlib.crc32(stored.data)) if keep else (row.checksum[0], 0)
            manifest.rows.append(replace(row, values=values, checksum=checksum))
    raw.unlink()
    for name in (IMAGES, MASKS) if keep else ():
        sync(folder / name)
    text = json.dumps(asdict(manifest)).encode()
    (folder / MANIFEST).write_bytes(_checksum(text) + b"\n" + text)
    sync(folder / MANIFEST)


def usual_void(found: Collection[int]) -> bool:
    """Tell whether 255, if it is among these numbers, stands beside the indices 0, 1, ... of classes alone."""
    others = {*found} - {USUAL}
    return USUAL in found and 2 <= len(others) < USUAL - 1 and others == {*range(len(others))}


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
            scan.tags |= set() if mask.absent is None else {mask.absent}
            scan.lacking += result.lacking
            scan.kept.append(number)
            scan.rows.append(replace(result.row, image_offset=image_offset, mask_offset=mask_offset))
            scan.count(mask)
            image_file.write(image.data)
            for part in (np.array([len(mask.codes)]), mask.codes, np.ascontiguousarray(mask.index)):
                mask_file.write(part.data)
            image_offset += image.size
            mask_offset += mask.index.size
    return scan


def _unpacked(source: BinaryIO, row: Row) -> tuple[Codes, np.ndarray]:
    """A mask as it was written: its codes, and for each pixel which of them it has."""
    (n,) = np.frombuffer(source.read(8), np.int64)
    codes, kind = np.frombuffer(source.read(8 * int(n)), np.int64), np.dtype(np.uint8 if n <= 256 else np.int32)
    return codes, np.frombuffer(source.read(row.height * row.width * kind.itemsize), kind)


def _of_class(
    codes: Codes, foreground: int | None, void: int | None, tags: Collection[int] = (), black: bool | None = None
) -> Codes:
    """With a class of its own all but background is that; what is void, or has a tag's value, does not count.

    `black`: whether black is among the codes of all files; None: these are all.
    """
    if foreground is None:
        return codes
    absent = (codes == NO_DATA) | np.isin(numbers(codes), [*tags])
    if void is not None:
        grey = COLOR | void * 0x010101 if 0 <= void <= 255 else void  # a colour that is called by its level
        absent |= (numbers(codes) == void) | (codes == void) | (codes == grey)
        absent |= is_entry(codes) & (COLOR | codes & 0xFFFFFF == void)
    return np.where(absent, NO_DATA, np.where(_background(codes, black), 0, foreground))


def _background(codes: Codes, black: bool | None = None) -> NDArray[np.bool_]:
    """Which codes are background where all others are a class's: black or, without any, a palette's first entry."""
    found = is_black(codes)
    there = found.any() if black is None else black
    return found if there else is_entry(codes) & (numbers(codes) == 0)


def _without_value(codes: Codes, tags: Collection[int], void: int | None) -> set[int]:
    """Numbers that a file's tag says stand for no data; none of them where nothing else is foreground."""
    kept = {*tags} - {int(number) for number in numbers(codes[_background(codes)])}
    return kept if (_of_class(codes, 1, void, kept) == 1).any() else set()


def _folders(files: Sequence[Codes], samples: Sequence[Sample]) -> dict[Path, Codes]:
    """The codes that the masks of each folder that is a class hold, by the folder of its first mask."""
    first: dict[int, Path] = {}
    held: dict[Path, list[Codes]] = {}
    for codes, sample in zip(files, samples, strict=True):
        if sample.foreground is not None:
            held.setdefault(first.setdefault(sample.foreground, sample.mask.parent), []).append(codes)
    return {folder: np.unique(np.concatenate(own)) for folder, own in held.items()}


def _void_of(folders: Mapping[Path, Codes]) -> tuple[int | None, str]:
    """Decide whether 255 is ignored, in masks that hold 0, 1, ... and it, and say so; it may be a folder's foreground.

    Raises DataError: of one folder it is the only foreground, and in another it stands beside one.
    """
    others = {folder: {*numbers(codes[codes != NO_DATA]).tolist()} - {0} for folder, codes in folders.items()}
    alone = next((folder for folder, own in others.items() if own == {USUAL}), None)
    beside = next((folder for folder, own in others.items() if own > {USUAL}), None)
    if alone and beside:
        refuse(
            [
                f"masks in {alone} hold {USUAL} alone beside 0, and those in {beside} hold other values, too. To "
                f"ignore {USUAL}: data.ignore_index={USUAL}; if it is foreground in {alone}, write it as 1 there"
            ]
        )
    if alone:
        why = "because some folders have no other foreground"
        return None, f"masks: {USUAL} is foreground, {why}; to ignore it: data.ignore_index={USUAL}"
    why = "because the other values are 0, 1, ..."
    return USUAL, f"masks: {USUAL} is ignored, {why}; to ignore another value: data.ignore_index=VALUE"


def _refuse_without_background(
    folders: Mapping[Path, Codes], void: int | None, tags: Collection[int], black: bool
) -> None:
    """Refuse a folder of a class whose masks have several values that count, none of which is background."""
    problems = []
    for folder, codes in folders.items():
        counted = _of_class(codes[codes != OTHERS], 1, void, tags, black)
        number = np.count_nonzero(counted == 1)
        if number > 1 and not (counted == 0).any():
            problems.append(
                f"{folder}: masks have {number} values, and none of them is background (0 or black), so all pixels "
                f"would be the folder's class. Make the background 0"
            )
    if problems:
        refuse(problems)


def _range(rows: Sequence[Row], dtype: str) -> tuple[float, float]:
    """Lowest and highest value the type or, beyond 8 bits, the data set has."""
    lows = [value for row in rows for value in row.low if value is not None]
    highs = [value for row in rows for value in row.high if value is not None]
    return (0.0, 255.0) if dtype == "uint8" or not lows else (min(lows), max(highs))


def _notes(scan: _Scan) -> list[str]:
    notes = []
    for what, n in scan.told.items():
        example = scan.examples[what]
        path = example.mask if TOLD[what].startswith("masks") else example.image
        share = ""
        if what == "no data":
            pixels = sum(row.height * row.width for row in scan.rows)
            share = f"; {100 * scan.lacking / pixels:.3g} % of all pixels"
        notes.append(f"{n} of {len(scan.rows)} {TOLD[what]}, such as {path}{share}")
    return notes


def _hashed(mask: Mask, how: Decoding) -> tuple[list[int], np.ndarray]:
    """What a mask's hash is of: names of its values, which stay so that data sets keep their digests, and indices."""
    codes = mask.codes
    names = np.where(is_color(codes), 1 << 24 | codes & 0xFFFFFF, numbers(codes))
    if how.binarize:
        names = np.where((codes == how.void) | (numbers(codes) == how.void), 255, (names != 0) & (names != 1 << 24))
    if np.array_equal(names, codes):
        return codes.tolist(), mask.index
    listed, place = np.unique(names, return_inverse=True)
    return listed.tolist(), place.astype(mask.index.dtype)[mask.index]


def _fitted(mask: Mask, size: tuple[int, ...]) -> Mask | None:
    """Bring a mask to another size of the same shape, by the nearest pixel; None if the shape is another."""
    height, width = mask.index.shape
    (large, small), (wide, narrow) = (sorted((a, b), reverse=True) for a, b in zip(size, (height, width), strict=True))
    if (size[0] > height) != (size[1] > width) and size[0] * width != size[1] * height:
        return None
    # A side of the smaller one may have been rounded, by less than a pixel; that says little where both are alike.
    rounding = 1.0 if large >= 1.5 * small else 0.0
    if abs(narrow * large / small - wide) > rounding * large / small:
        return None
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size, (height, width), strict=True)
    )
    return masks.recounted(mask, mask.codes, mask.index[rows][:, columns])


def _other_size(path: Path, mask: Mask, image: np.ndarray) -> str:
    (h, w), (y, x) = mask.index.shape, image.shape[:2]
    advice = ". Resize it with data.mask_resize=nearest" if _fitted(mask, (y, x)) else ""
    return f"{path}: {w}x{h} pixels, its image has {x}x{y}{advice}"


def _moments(picture: Picture) -> dict[str, Any]:
    """What a `Row` has of the pixels with data, for each channel."""
    pixels = picture.pixels.reshape(-1, picture.pixels.shape[2])
    there = None if picture.lacking is None else ~picture.lacking.reshape(pixels.shape)
    found: dict[str, Any] = {name: [] for name in ("total", "squares", "valid", "low", "high")}
    for channel, column in enumerate(pixels.T):
        values = column if there is None else column[there[:, channel]]
        if values.dtype == np.uint8:  # by histogram: some ten times as fast
            histogram, levels = np.bincount(values, minlength=256), np.arange(256.0)
            sums, ends = (histogram @ levels, histogram @ levels**2), [0.0, 255.0]
        else:
            wide = values.astype(np.float64)
            sums, ends = (wide.sum(), (wide**2).sum()), [float(wide.min()), float(wide.max())] if wide.size else []
        low, high = ends or (None, None)
        for name, value in zip(found, (float(sums[0]), float(sums[1]), int(values.size), low, high), strict=True):
            found[name].append(value)
    return found


def _digest(samples: Sequence[Sample], rows: Sequence[Row]) -> str:
    """Of the decoded content, the keys and the given split."""
    digest = hashlib.sha256()
    for sample, row in zip(samples, rows, strict=True):
        line = f"{row.key} {sample.split} {row.height} {row.width} {row.content} {row.labelled}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
