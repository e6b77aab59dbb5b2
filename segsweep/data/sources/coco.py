"""`coco`: images with annotations in COCO's JSON (polygons, run lengths), drawn as masks of class numbers."""

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from segsweep.config import checks
from segsweep.config.schema import DataConfig
from segsweep.data.labels import BACKGROUND
from segsweep.data.pairing import PARTS, part_of
from segsweep.data.raster import LARGEST, ORIENTATION
from segsweep.data.reading import KEPT
from segsweep.data.source import Pairs, Sample, existing_folder, image_files, to_type
from segsweep.errors import ConfigError, DataError, first_line, suggestion
from segsweep.paths import build_once, cache, extra, load_json, save_json, sync

READS = ("images",)
VERSION = 3  # raise when masks come out otherwise
VOID = 255  # of crowds; no class has this number
MOST = KEPT - 2  # categories; background and void are two values more
ROBOFLOW = "_annotations.coco.json"
FEW = 4  # crowds that are no habit
CROWDED = 0.05  # share of crowds among objects that is no longer usual; COCO has 0.01
FAR = 1e6  # pixels; points beyond it are no points of an image
INDEX = "index.json"  # what the masks in a folder of the cache are
PART = re.compile(
    rf"(?<![a-z])({'|'.join(name for names in PARTS.values() for name in names)})(?![a-z])", re.IGNORECASE
)


@dataclass(frozen=True)
class Picture:
    """An entry of "images"."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Annotation:
    """An entry of "annotations": one object, or a crowd of them."""

    image_id: int
    category_id: int
    segmentation: Any = None  # polygons [[x, y, x, y, ...], ...], or {"size": [h, w], "counts": numbers or text}
    iscrowd: Any = 0


@dataclass(frozen=True)
class Category:
    """An entry of "categories"."""

    id: int
    name: str
    supercategory: str | None = None


@dataclass(frozen=True)
class Header:
    """What an image file says of its size."""

    height: int  # as stored
    width: int
    orientation: int = 1  # of EXIF: 2 to 8 are shown turned or flipped, from 5 on with rows and columns swapped

    @property
    def shown(self) -> tuple[int, int]:
        """Return height and width as shown."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    def fits(self, listed: Picture) -> set[str]:
        """Tell of which photo the height and width listed are: as it is shown, as it is stored, both or none."""
        ways = {"shown": self.shown, "stored": (self.height, self.width)}
        return {way for way, size in ways.items() if size == (listed.height, listed.width)}

    def misfit(self, listed: Picture) -> str:
        """Say how the size listed differs from the image's; empty if it does not.

        Raises ValueError: the shape differs, too.
        """
        if self.fits(listed):
            return ""
        height, width = self.shown
        what = f"listed as {listed.width}x{listed.height} pixels, the image has {width}x{height}"
        if abs(listed.width * height - listed.height * width) > max(listed.height, height) / 2:
            raise ValueError(what)  # else half a pixel of the smaller one is rounding
        return what


@dataclass(frozen=True)
class Content:
    """A file of annotations."""

    images: Sequence[Picture]
    annotations: Sequence[Annotation]
    categories: Sequence[Category]


@dataclass(frozen=True)
class Mask:
    """A drawn mask."""

    image: str  # the path of its image below the folder of images
    size: int  # bytes of its file
    checksum: int  # their CRC-32
    misfit: str = ""  # how its size differs from its image's, where the shape is the same


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a file of annotations, as `INDEX` beside the masks has it."""

    masks: Mapping[str, Mask]  # by the names of their files
    classes: Mapping[str, int]  # mask values by class name
    crowds: int
    problems: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True)
class Photos:
    """The image files below a folder."""

    folder: Path
    files: Sequence[Path]

    @cached_property
    def state(self) -> str:
        """Return a hash that is another one when a file is changed, comes or goes."""
        stats = [(os.fspath(file), stat.st_size, stat.st_mtime_ns) for file in self.files for stat in (file.stat(),)]
        return hashlib.sha256(repr(stats).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Table:
    """A file of annotations, the folder of its images, and the part of the split that they are."""

    file: Path
    images: Path
    split: str | None = None


def find(data: DataConfig) -> Pairs:
    """Find images with annotations; draw their masks into the cache at first use.

    `data.annotations` is about the images in `data.images`. Below a `data.root` alone annotations are looked for as
    `_annotations.coco.json` in train/, valid/ and test/, as annotations/*.json, one for each part, or as one JSON. The
    classes are background and the categories, in the order of their id. Where these are more than `MOST`, those in
    `data.classes` alone are drawn. Photos that EXIF turns have their masks as they are shown.

    Raises:
        ConfigError: no annotations, several answers, too many categories, or no pycocotools.
        DataError: a file that is damaged or no COCO, or has other categories than that of another part.
    """
    tables = _tables(data)
    samples: list[Sample] = []
    problems: list[str] = []
    notes: list[str] = []
    there = {table.images: Photos(table.images, image_files(table.images)) for table in tables}
    classes: Mapping[str, int] = {}
    crowds = 0
    for table in tables:
        folder, drawn = _drawn(table.file, there[table.images])
        if len(drawn.classes) > MOST + 1 and not data.binarize:
            wanted = _wanted(table.file, list(drawn.classes), data.classes)
            folder, drawn = _drawn(table.file, there[table.images], wanted)
        if classes not in ({}, drawn.classes):
            raise DataError(
                f"{table.file}: its categories differ from those in {tables[0].file}. Export all parts "
                f"with the same categories."
            )
        classes, crowds = drawn.classes, crowds + drawn.crowds
        said = [f"{drawn.crowds} crowd{'s' * (drawn.crowds != 1)} (iscrowd) void"] if drawn.crowds else []
        notes += [f"{table.file.name}: {note}" for note in (*said, *drawn.notes)]
        problems += [f"{table.file}: {problem}" for problem in drawn.problems]
        for name, mask in drawn.masks.items():
            if mask.misfit and data.mask_resize == "none":
                problems.append(f"{table.file}: {mask.misfit}. Resize the masks with data.mask_resize=nearest")
            key = Path(mask.image).with_suffix("").as_posix()
            samples.append(Sample(key, table.images / mask.image, folder / name, table.split))
    used = {sample.image for sample in samples}
    for photos in there.values():
        if others := len(set(photos.files) - used):
            notes.append(f"left out: {others} image{'s' * (others != 1)} below {photos.folder} without annotations")
    return Pairs(samples, problems, tuple(notes), classes, VOID if crowds else None)


def draw(annotations: Sequence[Annotation], values: Mapping[int, int], height: int, width: int) -> np.ndarray:
    """Draw the annotations of one image as a mask, `height width` uint8, or uint16 where values go beyond 255.

    An object has its category's value, what nobody outlined is 0. Larger objects are drawn first, so that small ones on
    them stay visible, and of equal ones the later is on top. Crowds are void and below all objects.

    Raises ValueError: what is wrong with one of the annotations.
    """
    if not 0 < height * width <= LARGEST or height < 0:
        raise ValueError(f"{width}x{height} pixels is not a size of an image")
    mask = np.zeros(width * height, np.uint16 if max(values.values()) > VOID else np.uint8)  # column by column
    drawn = [(annotation, _runs(annotation.segmentation, height, width)) for annotation in annotations]
    for annotation, runs in sorted(drawn, key=lambda pair: (not pair[0].iscrowd, -sum(pair[1][1::2]))):
        ends = np.cumsum(runs)
        for start, end in zip(ends[0::2], ends[1::2], strict=False):  # runs of 0 and 1 in turn
            mask[start:end] = VOID if annotation.iscrowd else values[annotation.category_id]
    return np.ascontiguousarray(mask.reshape(width, height).T)


def _tables(data: DataConfig) -> list[Table]:
    if data.annotations:
        file = Path(data.annotations).expanduser().resolve()
        if not file.is_file():
            raise ConfigError(f"data.annotations={file}: no such file. Give the JSON: data.annotations=FILE.json.")
        return [Table(file, existing_folder("images", data.images or data.root or str(file.parent), None))]
    if data.images or not data.root:
        raise ConfigError("data.annotations is not given. Type data.images=DIR data.annotations=FILE.json.")
    root = existing_folder("root", data.root, None)
    named = [file for file in sorted(root.glob(f"*/{ROBOFLOW}")) if part_of(file.parent.name)]
    inside = sorted((root / "annotations").glob("*.json"))
    inside = [file for file in inside if file.name.startswith("instances_")] or inside  # and not captions_, ...
    beside = sorted(root.glob("*.json"))
    ways = [
        [Table(file, file.parent, part_of(file.parent.name)) for file in named],
        *([Table(file, _images(root, file), _part(file)) for file in files] for files in (inside, beside)),
    ]
    found = [way for way in ways if way]
    if not found:
        places = f"annotations/*.json, train/{ROBOFLOW} or *.json"
        raise ConfigError(f"data.root={root}: no {places} in it. Type data.images=DIR data.annotations=FILE.json.")
    (tables, *others), parts = found, [table.split for table in found[0]]
    if others or len(set(parts)) < len(parts) or (None in parts and len(parts) > 1):
        lines = [to_type(images=table.images, annotations=table.file) for way in found for table in way]
        what = "there are several annotation files, but not one for each of train, val and test"
        raise ConfigError(f"data.root={root}: {what}. Type {' or '.join(lines)}")
    return sorted(tables, key=lambda table: list(PARTS).index(table.split or "train"))


def _part(file: Path) -> str | None:
    """The part of the split that a file's name says: train of instances_train2017.json."""
    found = PART.search(file.stem)
    return part_of(found[0]) if found else None


def _images(root: Path, file: Path) -> Path:
    """The folder of the images of a file of annotations: called as it is, or images/, or else the root."""
    found = PART.search(file.stem)
    names = [file.stem.removeprefix("instances_"), *([found[0]] if found else [])]
    places = [place / name for name in names for place in (root / "images", root)]
    return next((place for place in (*places, root / "images") if place.is_dir()), root)


def _found(folder: Path, names: Sequence[str], there: Sequence[Path]) -> list[Path | None]:
    """The images below a folder that are called so, by their path or, as exporters put others before it, by name."""
    by_name: dict[str, list[Path]] = {}
    for path in there:
        by_name.setdefault(path.name, []).append(path)
    known, found = set(there), []
    for name in names:
        path = Path(os.path.normpath(folder / name.replace("\\", "/")))
        called = by_name.get(path.name, [])
        found.append(path if path in known else called[0] if len(called) == 1 else None)
    return found


def _wanted(file: Path, classes: Sequence[str], given: object) -> Sequence[str]:
    """The categories that `data.classes` names, where a file has too many."""
    wanted = given if isinstance(given, list) else []
    if unknown := [name for name in wanted if name not in classes]:
        raise ConfigError(f"data.classes: {unknown[0]} is not a category of {file}.{suggestion(unknown[0], classes)}")
    if not 0 < len({*wanted} - {BACKGROUND}) <= MOST:
        raise ConfigError(
            f"{file}: {len(classes) - 1} categories; at most {MOST} are possible. Name the ones that you need, all "
            f"others become background: 'data.classes=[NAME,NAME,...]'; or make all of them one class: "
            f"data.binarize=true."
        )
    return wanted


def _drawn(file: Path, photos: Photos, wanted: Sequence[str] = ()) -> tuple[Path, Drawn]:
    """The masks of a file of annotations: their folder in the cache, and what they are."""
    stat = file.stat()
    about = f"coco {VERSION} {file} {stat.st_size} {stat.st_mtime_ns} {photos.state} {sorted(wanted)}"
    folder = cache() / f"coco-{hashlib.sha256(about.encode(errors='surrogateescape')).hexdigest()[:24]}"
    build_once(folder, _is_whole, lambda making: _write(making, file, photos, wanted))
    return folder, checks.read_file(Drawn, folder / INDEX, INDEX)


def _is_whole(folder: Path) -> bool:
    """Whether the index of a folder can be read, and all its masks are as they were written."""
    try:
        masks = checks.read_file(Drawn, folder / INDEX, INDEX).masks
        return all(_sum(folder / name) == (mask.size, mask.checksum) for name, mask in masks.items())
    except (ConfigError, OSError):  # damaged, or not there
        return False


def _sum(path: Path) -> tuple[int, int]:
    """The size and the CRC-32 of a file."""
    content = path.read_bytes()
    return len(content), zlib.crc32(content)


def _write(folder: Path, file: Path, photos: Photos, wanted: Sequence[str]) -> None:
    """Draw the masks of all images that are there, and write the index."""
    content = _read(file)
    used = {annotation.category_id for annotation in content.annotations}
    values, classes = _values(file, content.categories, used, wanted)
    of_image: dict[int, list[Annotation]] = {picture.id: [] for picture in content.images}
    problems: list[str] = []
    for annotation in content.annotations:
        if annotation.image_id not in of_image:
            problems.append(f"an annotation belongs to image {annotation.image_id}, which is not listed")
        elif annotation.category_id not in values:
            problems.append(f"an annotation has the category {annotation.category_id}, which is not listed")
        else:
            of_image[annotation.image_id].append(annotation)
    found = _found(photos.folder, [picture.file_name for picture in content.images], photos.files)
    headers = [_header(path, p) if path else None for path, p in zip(found, content.images, strict=True)]
    fits = [header.fits(p) if header else set() for header, p in zip(headers, content.images, strict=True)]
    stored = {"stored"} in fits and {"shown"} not in fits  # then also of those that fit both ways, as if turned by 180
    masks: dict[str, Mask] = {}
    done: set[Path] = set()
    turned = either = 0
    for number, (picture, path, header) in enumerate(zip(content.images, found, headers, strict=True)):
        try:
            if path is None or header is None:
                raise ValueError(f"not a file below {photos.folder}")
            if path in done:
                raise ValueError("is listed more than once")
            done.add(path)
            mask = Image.fromarray(draw(of_image[picture.id], values, picture.height, picture.width))
            misfit = header.misfit(picture)
        except ValueError as error:
            problems.append(f"{picture.file_name}: {error}")
            continue
        if header.orientation > 1 and (fits[number] == {"stored"} or (stored and fits[number])):
            mask.getexif()[ORIENTATION] = header.orientation
            ImageOps.exif_transpose(mask, in_place=True)
            turned += 1
        elif header.orientation > 1 and len(fits[number]) == 2:
            either += 1
        stem = re.sub(r"[^\w.-]+", "_", Path(picture.file_name.replace("\\", "/")).stem, flags=re.ASCII)
        target = folder / f"{number:06d}-{stem[:100]}.png"
        mask.save(target, compress_level=1)
        sync(target)
        key = path.relative_to(photos.folder).as_posix()
        masks[target.name] = Mask(key, *_sum(target), misfit and f"{picture.file_name}: {misfit}")
    crowds = sum(bool(annotation.iscrowd) for annotation in content.annotations)
    every = len(content.annotations)
    notes = [f"{turned} mask{'s' * (turned != 1)} rotated in the same way as EXIF rotates the photo"] if turned else []
    if crowds > max(FEW, CROWDED * every):
        notes.append(
            f"{crowds} of {every} objects are marked as crowds (iscrowd=1) and ignored, far more than usual. Some "
            f"tools mark each brush mask so; set iscrowd to 0 in the file to read them as objects"
        )
    if either:
        sizes = f"of {either} image{'s' * (either != 1)} that EXIF rotates, the size fits with and without the rotation"
        notes.append(f"{sizes}; the outlines are used for the rotated image")
    save_json(folder / INDEX, asdict(Drawn(masks, classes, crowds, problems, notes)))


def _header(path: Path, picture: Picture) -> Header:
    """What an image file says of its size; as listed where that cannot be told before it is decoded."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "TIFF":  # Pillow has the size of a turned one as it is shown
                width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
            orientation = image.getexif().get(ORIENTATION, 1)
            return Header(height, width, orientation if orientation in range(2, 9) else 1)
    except Exception:  # decoders raise nearly anything on damaged files; reading the image tells what is wrong
        return Header(picture.height, picture.width)


def _read(file: Path) -> Content:
    try:
        content = checks.read(Content, load_json(file.read_bytes()), str(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not valid JSON: {first_line(error)}") from error
    except ConfigError as error:
        raise DataError(f"{error} It must have the format of COCO. Export it again.") from error
    for what, found in (("categories", content.categories), ("images", content.images)):
        if not found:
            raise DataError(f"{file}: lists no {what}.")
        if len({one.id for one in found}) < len(found):
            raise DataError(f"{file}: two of its {what} have the same id. Export it again.")
    return content


def _values(
    file: Path, categories: Sequence[Category], used: set[int], wanted: Sequence[str]
) -> tuple[dict[int, int], dict[str, int]]:
    """Mask values by the id of a category, and by name; one called background, or not `wanted`, is the background."""
    groups = {one.supercategory for one in categories if one.supercategory != one.name}  # Roboflow lists them, too
    kept = [one for one in sorted(categories, key=lambda one: one.id) if one.id in used or one.name not in groups]
    names = [category.name for category in kept if category.name != BACKGROUND]
    if len(set(names)) < len(names):
        raise DataError(f"{file}: two categories are called {Counter(names).most_common(1)[0][0]}. Rename one.")
    names = [name for name in names if not wanted or name in wanted]
    classes = {BACKGROUND: 0} | {name: n + (n >= VOID) for n, name in enumerate(names, start=1)}
    return {category.id: classes.get(category.name, 0) for category in kept}, classes


def _runs(segmentation: Any, height: int, width: int) -> list[int]:
    """The lengths of the runs of 0 and 1 in turn, column by column, that fill an image. ValueError: it has none."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        runs = _unpacked(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(checks.is_whole(run) and run >= 0 for run in runs):
            raise ValueError("the counts of a run-length encoding must be numbers, or their text")
        if segmentation.get("size") != [height, width] or sum(runs) != height * width:
            raise ValueError(f"a run-length encoding has another size than its image, {width}x{height}")
        return runs
    if not segmentation or not isinstance(segmentation, list):
        raise ValueError("an annotation has no segmentation. Add its outline, or remove the annotation")
    for polygon in segmentation:
        even = isinstance(polygon, list) and len(polygon) % 2 == 0
        if not even or not all(isinstance(n, (int, float)) and abs(n) <= FAR for n in polygon):
            raise ValueError(f"a polygon must be a list of x, y, x, y, ..., and is {str(polygon)[:60]}")
    outlines = [polygon for polygon in segmentation if len(polygon) >= 6]  # fewer than three points have no area
    if not outlines:
        return [height * width]
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ConfigError(f"data=coco needs pycocotools. Type: {extra('coco')}") from error
    # Not its `decode`: where runs do not fill their image, the rest is what happens to be in memory.
    return _unpacked(mask.merge(mask.frPyObjects(outlines, height, width))["counts"].decode())


def _unpacked(text: str) -> list[int]:
    """The counts in COCO's text: 5 bits a letter, the lowest first; the fourth and later ones less the last but one."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= bool(bits & 16) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
