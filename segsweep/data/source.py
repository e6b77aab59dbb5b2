"""Shared by all data sources: samples, pairing of files, refusing bad files."""

import csv
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from segsweep.config.schema import DataConfig
from segsweep.data.images import SUFFIXES
from segsweep.errors import ConfigError, DataError, first_line
from segsweep.paths import override

SPLITS = ("train", "val", "test")
PLACES = ("images", "masks", "table")  # keys of data that may say where files are, beside root and annotations
SHOWN = 20  # problems that are listed
PATHS = 100  # by which links may lead to one folder: more are a maze, as below /sys


@dataclass(frozen=True)
class Sample:
    """One pair of files; split, group and fold are None where none was given."""

    key: str  # names it: the path below its folder, without suffix
    image: Path
    mask: Path
    split: str | None = None  # the part it was given to
    group: str | None = None  # images that must not be apart
    fold: int | None = None  # of cross-validation, from 0
    foreground: int | None = None  # the mask value, 1 or more, that all but background in its mask stands for
    prefix: str = ""  # what `told_by_part` put before the key


@dataclass(frozen=True)
class Pairs:
    """The pairs of a source, and the problems of the other files, one line each."""

    samples: list[Sample]
    problems: list[str]
    notes: tuple[str, ...] = ()  # what was decided and a person must be told, a line each
    classes: Mapping[str, int] | None = None  # mask values by class name, where the source knows them
    void: int | None = None  # mask value that never counts, where the source says so


class Source(Protocol):
    """A module in `segsweep/data/sources/`: `data=NAME` calls its `find`."""

    READS: Collection[str]  # of `PLACES`, those that `find` looks at; a module that lacks it looks at all

    @staticmethod
    def find(data: DataConfig) -> Pairs:
        """Find the pairs; ConfigError if a folder is not given or not there, DataError without images."""


def source(name: str) -> Source:
    """Load the source that `data.name` names."""
    return cast(Source, import_module(f"segsweep.data.sources.{name}"))


def existing_folder(name: str, given: str | None, root: str | None) -> Path:
    """Resolve `data.NAME`, or NAME below `data.root`, to a folder; ConfigError if it is not given or not there."""
    if not given and not root:
        instead = "" if name == "root" else f" (or data.root=DIR with {name}/ in it)"
        raise ConfigError(f"data.{name} is not given. Type data.{name}=DIR{instead}.")
    path = Path(given).expanduser() if given else Path(root or "").expanduser() / name
    if not path.is_dir():
        what = "not a folder" if path.exists() else "no such folder"
        held = "data set" if name == "root" else name
        raise ConfigError(f"data.{name}={path}: {what}. Give the folder that holds the {held}: data.{name}=DIR.")
    return path.resolve()


def image_files(root: Path) -> list[Path]:
    """List the images below a folder; hidden ones left out, links followed."""
    return sorted(walk_images(root))


def walk_images(
    folder: Path, deep: bool = True, above: frozenset[str] = frozenset(), paths: "Counter[str] | None" = None
) -> Iterator[Path]:
    """Yield the images in a folder in any order, and with `deep` those in its folders; none where there is no folder.

    `above` are the folders on the way: a link back into one is not followed. `paths` counts how often each folder was
    reached. ConfigError: a folder cannot be listed, or is reached too often; DataError: an image's name is no text.
    """
    real, paths = os.path.realpath(folder), Counter() if paths is None else paths
    if real in above or not folder.is_dir():
        return
    paths[real] += 1
    if paths[real] > PATHS:
        raise ConfigError(
            f"{folder}: links lead to this folder by more than {PATHS} paths. Give the data set's own folder."
        )
    try:
        inside = list(os.scandir(folder))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed: {error.strerror}.") from error
    for entry in inside:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if deep:
                yield from walk_images(folder / entry.name, above=above | {real}, paths=paths)
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            if any("\ud800" <= letter <= "\udfff" for letter in entry.name):  # bytes that are no UTF-8
                how = "Rename it. For all files in a folder: convmv -f latin1 -t utf8 -r --notest"
                raise DataError(f"{folder / entry.name}: its name is not valid UTF-8. {how}")
            yield folder / entry.name


def listed(table: Path, root: str | None) -> Pairs:
    """Read pairs from a CSV with the columns image and mask, and optionally split, group and fold."""
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
        commas = " Separate the columns with commas." if re.search("[;\t]", "".join(found)) else ""
        raise DataError(f"{table}: must have the columns image and mask and at least one row; it has {found}.{commas}")
    samples, problems = [], []
    elsewhere = "; or type data.root=DIR, a folder that contains them all"
    named = [Path(row[name] or "") for row in rows for name in ("image", "mask")]
    if all(path.is_absolute() and not path.resolve().is_relative_to(base) for path in named):
        common = os.path.commonpath([path.parent for path in named])
        raise DataError(f"{table}: none of its files is below {base}. Add {to_type(root=common)}")
    for number, row in enumerate(rows, start=2):
        image, mask = ((base / (row[name] or "")).resolve() for name in ("image", "mask"))
        split, fold = row.get("split") or None, row.get("fold") or None
        wrong = [
            f"{row[name]}: not a file below {base}{'' if path.is_relative_to(base) else elsewhere}"
            for name, path in (("image", image), ("mask", mask))
            if not path.is_relative_to(base) or not path.is_file()
        ]
        if split not in (None, *SPLITS):
            wrong.append(f"split {split!r} must be one of {', '.join(SPLITS)}")
        if fold is not None and not fold.isdecimal():
            wrong.append(f"fold {fold!r} must be a whole number from 0")
        problems += [f"{table}, line {number}: {problem}" for problem in wrong]
        if not wrong:
            key = image.relative_to(base).with_suffix("").as_posix()
            samples.append(Sample(key, image, mask, split, row.get("group") or None, int(fold) if fold else None))
    apart = [sample for sample in samples if sample.split != "test"]  # which are in no fold
    given = {
        name: (sum(getattr(s, name) is not None for s in of), len(of))
        for name, of in (("split", samples), ("fold", apart))
    }
    partly = {name: n for name, (n, rows) in given.items() if n not in (0, rows)}
    problems += [f"{table}: {name} is given in {n} rows only" for name, n in partly.items()]
    return Pairs(samples, problems)


def existing(samples: list[Sample], classes: Mapping[str, int]) -> Pairs:
    """Keep the samples whose files are there; the others are problems."""
    problems = [f"{path}: no such file" for s in samples for path in (s.image, s.mask) if not path.is_file()]
    return Pairs([s for s in samples if s.image.is_file() and s.mask.is_file()], problems, classes=classes)


def told_by_part(samples: Sequence[Sample]) -> list[Sample]:
    """Put the part of the split before each key of the parts that share a key: train/0 and val/0."""
    parts: dict[str, set[str]] = {}
    for sample in samples:
        parts.setdefault(sample.key, set()).add(sample.split or "")
    shared = set().union(*(found for found in parts.values() if len(found) > 1)) - {""}
    return [replace(s, key=f"{s.split}/{s.key}", prefix=f"{s.split}/") if s.split in shared else s for s in samples]


def same_keys(samples: Sequence[Sample]) -> list[str]:
    """List samples with the same key, one line each: a key must name one image."""
    first: dict[str, Sample] = {}
    twice = [(first.setdefault(sample.key, sample), sample) for sample in samples]
    return [
        f"{one.image}: is listed more than once"
        if one.image == other.image
        else f"{one.image} and {other.image}: both are called {one.key} without suffix. Rename one"
        for one, other in twice
        if one is not other
    ]


def to_type(**given: object) -> str:
    """Return what to type for keys of the section data: `root=DIR` becomes data.root=DIR."""
    return " ".join(override(f"data.{key}", value) for key, value in given.items())


def torchvision_root(name: str, data: DataConfig, **arguments: Any) -> Path:
    """Have torchvision's class find the data, or with data.download fetch and unpack them first; return their root."""
    from torchvision import datasets

    if not data.root:
        raise ConfigError("data.root is not given. Type data.root=DIR, and data.download=true to fetch the data there.")
    root = Path(data.root).expanduser().resolve()
    try:
        getattr(datasets, name)(str(root), download=data.download, **arguments)
    except (RuntimeError, OSError) as error:
        fetch = "" if data.download else " Fetch them with data.download=true."
        raise ConfigError(f"data.root={root}: {first_line(error)}{fetch}") from error
    return root


def lines(path: Path) -> list[str]:
    """Read the lines of torchvision's list of images, without empty ones."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Fetch the data again with data.download=true.") from error


class Unusable(DataError):
    """Lists all problems of the files of a data set: `problems`, one line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = problems
        number = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        more = [f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        rule = "Every image needs one mask with the same name and size, and no file may be damaged"
        super().__init__("\n".join([f"data: {number}. {rule}:", *(f"  {p}" for p in problems[:SHOWN]), *more]))


def refuse(problems: Sequence[str]) -> None:
    """Raise `Unusable` with all problems, if there are any."""
    if problems:
        raise Unusable(problems)
