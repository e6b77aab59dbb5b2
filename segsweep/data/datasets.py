"""Where pairs of image and mask come from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segsweep.data import shapes
from segsweep.errors import ConfigError, DataError
from segsweep.paths import cache, made

SPLITS = ("train", "val", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Sample:
    """One pair of files. `key` names it: the path below its folder, without suffix. `split` is None where not given."""

    key: str
    image: Path
    mask: Path
    split: str | None = None


@dataclass(frozen=True)
class Options:
    """What a source may ask for; the `data.*` keys of the same names."""

    root: str | None = None
    images: str | None = None
    masks: str | None = None
    seed: int = 0
    count: int = 300


def folder(options: Options) -> list[Sample]:
    """Paired by stem. Folders that hold train/ (val/, test/) are taken as the split.

    Raises:
        ConfigError: a folder is not given or not there.
        DataError: no images, or files without a partner.
    """
    images = _folder("images", options.images, options.root)
    masks = _folder("masks", options.masks, options.root)
    if images == masks:
        raise ConfigError(f"data.images and data.masks are the same folder: {images}. Give two.")
    parts = [part for part in SPLITS if (images / part).is_dir()]
    if not parts:
        return _pair(images, masks, None)
    if "train" not in parts:
        raise DataError(f"{images}: holds {parts[0]}/ but no train/. Add it, or rename {parts[0]}/ if it is no split.")
    return [sample for part in parts for sample in _pair(images / part, masks / part, part)]


def generated_shapes(options: Options) -> list[Sample]:
    """The embedded data set, drawn into the cache at first use (`segsweep.data.shapes`)."""
    target = cache() / f"shapes-v{shapes.VERSION}-{options.count}-{options.seed}"
    made(target, "images", lambda making: shapes.write(making, options.count, options.seed))
    return folder(Options(root=str(target)))


SOURCES: dict[str, Callable[[Options], list[Sample]]] = {"folder": folder, "shapes": generated_shapes}


def _folder(name: str, given: str | None, root: str | None) -> Path:
    if not given and not root:
        raise ConfigError(f"data=folder needs data.{name}=DIR (or data.root=DIR with {name}/ in it).")
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


def _pair(images: Path, masks: Path, split: str | None) -> list[Sample]:
    of_image, of_mask = _files(images), _files(masks)
    if not of_image:
        raise DataError(f"{images}: no images in it ({', '.join(SUFFIXES)}). Give the right data.images=DIR.")
    problems = [f"{of_image[key][0]}: no mask {masks / key}.*" for key in of_image if key not in of_mask]
    problems += [f"{of_mask[key][0]}: no image {images / key}.*" for key in of_mask if key not in of_image]
    for files in (of_image, of_mask):
        problems += [f"{paths[0]}: same stem as {paths[1].name}" for paths in files.values() if len(paths) > 1]
    refuse(problems, "every image needs one mask of the same stem")
    return [Sample(key, of_image[key][0], of_mask[key][0], split) for key in of_image]


def refuse(problems: list[str], rule: str, shown: int = 20) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        more = [f"  ... and {len(problems) - shown} more"] if len(problems) > shown else []
        raise DataError(
            "\n".join([f"data: {rule}; {len(problems)} do not hold:", *(f"  {p}" for p in problems[:shown]), *more])
        )
