"""`folder`: the user's own images and masks, in folders or in a table."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePath

from segsweep.config.schema import DataConfig
from segsweep.data.labels import BACKGROUND
from segsweep.data.layout import detect
from segsweep.data.pairing import in_folders, matched, part_of
from segsweep.data.source import Pairs, existing_folder, listed, to_type
from segsweep.errors import ConfigError, DataError
from segsweep.paths import is_pattern


def find(data: DataConfig) -> Pairs:
    """Find pairs in a table, by two patterns, in two folders, or by what the folders and files below a root are called.

    With `data.class_from=folder` the folder of a pair says which class all but the background of its mask is.
    """
    pairs = _find(data)
    return _by_folder(pairs) if data.class_from else pairs


def _find(data: DataConfig) -> Pairs:
    if data.table:
        if data.images or data.masks:
            raise ConfigError(
                "data.table says which images and masks there are. Drop data.images and data.masks, or type "
                "data.images=null data.masks=null."
            )
        return listed(Path(data.table).expanduser(), data.root)
    if any(is_pattern(given) for given in (data.images, data.masks) if given):
        return matched(_given("images", data.images), _given("masks", data.masks), data.root, data.mask_suffix)
    if data.root and not data.images and not data.masks:
        root = existing_folder("root", data.root, None)
        pairs = detect(root, data.mask_suffix)
        return pairs if data.class_from else _without_inner_splits(root, pairs)
    images = existing_folder("images", data.images, data.root)
    masks = existing_folder("masks", data.masks, data.root)
    return in_folders(images, masks, data.mask_suffix)


def _without_inner_splits(root: Path, pairs: Pairs) -> Pairs:
    """Refuse a folder one too high: a split that a folder below it has would not count."""
    for above, *rest in (sample.key.split("/") for sample in pairs.samples):
        if len(rest) > 1 and not part_of(above) and part_of(rest[0]):
            what = f"{above}/ has its own split ({rest[0]}/), which would be ignored"
            raise DataError(f"data.root={root}: {what}. Type {to_type(root=root / above)}")
    return pairs


def _given(name: str, pattern: str | None) -> str:
    if not pattern:
        raise ConfigError(f"data.{name} is not given. Type data.{name}='PATTERN', or data.{name}=DIR.")
    return pattern


def _by_folder(pairs: Pairs) -> Pairs:
    """Take as the class the first folder of each key behind those that all share, background first, then by name.

    Folders below those of the classes may be parts of a split: crack/train/, crack/val/, hole/train/, hole/val/.
    """
    folders = [PurePath(sample.key).parts[:-1] for sample in pairs.samples]
    parts: Sequence[str | None] = [sample.split for sample in pairs.samples]
    given = any(sample.split or sample.fold is not None for sample in pairs.samples)
    inner = {n: [part_of(name) for name in level] for n, level in enumerate(zip(*folders, strict=False))}
    for level in [n for n, found in inner.items() if None not in found and {"train"} < {*found}][:1]:
        parts = parts if given else inner[level]
        folders = [names[:level] + names[level + 1 :] for names in folders]
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))))
    if folders and shared == max(map(len, folders)):
        shared -= 1  # all lie in one folder, the one class
    names = [inside[shared] if len(inside) > shared >= 0 else "" for inside in folders]
    problems = [
        f"{sample.image}: is in no folder that names its class (data.class_from=folder)"
        for sample, name in zip(pairs.samples, names, strict=True)
        if not name
    ]
    if pairs.problems and {*parts} == {"train"}:
        advice = "If it is a class, rename it, or list the pairs: data.table=FILE.csv"
        problems = [f"a folder named train is read as the training split, next to other folders. {advice}", *problems]
    known = sorted({name for name in names if name})
    if BACKGROUND in known:
        raise ConfigError(
            "data.class_from=folder: a folder is named background, and this is the name of the first "
            "class. Rename the folder."
        )
    classes = {name: value for value, name in enumerate([BACKGROUND, *known])}
    samples = [
        replace(sample, foreground=classes[name], split=part)
        for sample, name, part in zip(pairs.samples, names, parts, strict=True)
        if name
    ]
    note = f"the folder of a mask is the class of its foreground: {', '.join(known)}"
    return Pairs(samples, [*problems, *pairs.problems], (*pairs.notes, note), classes)
