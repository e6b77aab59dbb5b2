"""Find out which image and mask belong together, and to which part of the split."""

import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product, takewhile
from pathlib import Path

from segsweep.data.foreign import converter
from segsweep.data.images import SUFFIXES
from segsweep.data.source import Pairs, Sample, image_files, to_type, walk_images
from segsweep.errors import ConfigError, DataError

Keyed = dict[str, list[Path]]

# What the folders of a split are called, in any case.
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
# What masks are called, in any case.
MASKS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "gt", "ground_truth"),
    *("groundtruth", "segmentations", "segmentation"),
)
# Of masks' stems: _mask, -gt, " label", and .jpg of those called as their image with one more suffix.
ENDING = re.compile(rf"(?:[ ._-](?:{'|'.join((*MASKS, 'seg'))})|{'|'.join(map(re.escape, SUFFIXES))})$", re.IGNORECASE)
LOSSY = (".jpg", ".jpeg")  # of two files of one stem, the image


@dataclass(frozen=True)
class Files:
    """Image files of one kind, by the key that pairs them with the other: a path without what tells the kind."""

    by_key: Keyed
    folder: Path  # all are below it
    suffix: str = ""  # what their stems have beyond the key

    @cached_property
    def _beside(self) -> dict[str, Path]:
        return {key.rpartition("/")[0]: paths[0].parent for key, paths in self.by_key.items()}

    def expected(self, key: str) -> str:
        """Return where the file of a key should be: in the folder of the neighbouring keys."""
        above, _, stem = key.rpartition("/")
        return f"{self._beside.get(above, self.folder / above) / stem}{self.suffix}.*"

    def within(self, tops: Collection[str]) -> "Files":
        """Keep the files whose key begins with one of these folders."""
        return replace(self, by_key={key: paths for key, paths in self.by_key.items() if top(key) in tops})

    def without(self, left: Collection[Path]) -> "Files":
        """Leave these files out."""
        kept = {key: [path for path in paths if path not in left] for key, paths in self.by_key.items()}
        return replace(self, by_key={key: paths for key, paths in kept.items() if paths})


def top(key: str) -> str:
    """Return the first folder of a key; empty where it has none."""
    return key.partition("/")[0] if "/" in key else ""


def part_of(name: str) -> str | None:
    """Return the part of a split that a folder's name means."""
    return next((part for part, names in PARTS.items() if name.lower() in names), None)


def by_path(folder: Path, without: Path | None = None) -> Keyed:
    """List the images below a folder by their path without suffix; those below `without` left out."""
    keyed: Keyed = {}
    above = {folder: ""}
    for path in image_files(folder):
        if without not in path.parents:
            if path.parent not in above:
                above[path.parent] = f"{path.parent.relative_to(folder).as_posix()}/"
            keyed.setdefault(f"{above[path.parent]}{path.stem}", []).append(path)
    return keyed


def pair(images: Files, masks: Files) -> Pairs:
    """Pair images and masks of one key. Keys that begin with train/ (val/, test/: `PARTS`) are taken as the split.

    Samples' keys are without it.

    Whole folders beside several such parts are left out with a note, and so is a test/ without masks; beside train/
    alone they are problems: it may be one of them by chance.

    Raises DataError: no images, also in a part whose folder is there; val/ or test/ without train/; masks that need a
    converter.
    """
    if not images.by_key:
        raise DataError(f"{images.folder}: {no_images(images.folder, 'images')}")
    if not masks.by_key and (advice := converter(masks.folder, images.folder)):
        raise DataError(f"{masks.folder}: holds no mask images. {advice}")
    parts = _parts(images)
    notes, problems = _beside(images, masks, parts) if parts else ([], [])
    if parts:
        masked = {top(key) for key in masks.by_key}
        unscored = [name for name, part in parts.items() if part == "test" and name not in masked]
        notes += [f"left out: {name}/, which has no masks" for name in unscored]
        kept = parts.keys() - unscored
        images, masks = images.within(kept), masks.within(kept)
    of_image, of_mask = images.by_key, masks.by_key
    problems += [f"{of_image[key][0]}: no mask {masks.expected(key)}" for key in of_image if key not in of_mask]
    problems += [f"{of_mask[key][0]}: no image {images.expected(key)}" for key in of_mask if key not in of_image]
    for keyed in (of_image, of_mask):
        problems += [f"{paths[0]}: same stem as {paths[1].name}" for paths in keyed.values() if len(paths) > 1]
    keys, order = [key for key in of_image if key in of_mask], [*parts, ""]
    samples = [
        Sample(key.removeprefix(f"{name}/"), of_image[key][0], of_mask[key][0], parts.get(name))
        for key in sorted(keys, key=lambda key: order.index(top(key)) if parts else 0)
        for name in (top(key) if parts else "",)
    ]
    return Pairs(samples, problems, tuple(notes))


def in_folders(images: Path, masks: Path, suffix: str = "") -> Pairs:
    """Pair the images below one folder with the masks below another, or in the same one, told apart by their names.

    Raises:
        ConfigError: nothing tells them apart, or several things do.
        DataError: as `pair`.
    """
    if images == masks:
        if told := told_apart(images, by_path(images), suffix):
            return told
        what = f"data.images and data.masks are the same folder: {images}"
        raise ConfigError(f"{what}. Give two folders, or the end of the masks' names: data.mask_suffix=_mask.")
    of_image = by_path(images, masks if images in masks.parents else None)
    of_mask = by_path(masks, images if masks in images.parents else None)
    return told_by_place(Files(of_image, images), Files(of_mask, masks), suffix)


def matched(images: str, masks: str, root: str | None, suffix: str = "") -> Pairs:
    """Pair the files that two patterns match, below `root` where they are relative: `*/Imgs/*.jpg` and `*/GT/*.png`.

    What the stars matched is the key: `a/Imgs/1.jpg` goes with `a/GT/1.png`. `*` and `?` match within a name, `**` over
    folders; letters in any case; a pattern that ends in a star matches images of every format. A folder stands for all
    that is in it. A file that both match is what the pattern with fewer files says.

    Raises:
        ConfigError: a folder before the first star is not there.
        DataError: a pattern matches nothing, or nothing that the other does not; and as `pair`.
    """
    of_image, of_mask = _matching("images", images, root), _matching("masks", masks, root)
    both = {path for paths in of_image.by_key.values() for path in paths}
    both &= {path for paths in of_mask.by_key.values() for path in paths}
    if len(of_image.by_key) < len(of_mask.by_key):
        of_mask = of_mask.without(both)
    else:
        of_image = of_image.without(both)
    for name, other, pattern, files in (("images", "masks", images, of_image), ("masks", "images", masks, of_mask)):
        if not files.by_key:
            more = f" that data.{other} does not match as well" if both else ""
            raise DataError(f"data.{name}={pattern}: matches no image below {files.folder}{more}.")
    return told_by_place(of_image, of_mask, suffix)


def told_by_place(images: Files, masks: Files, suffix: str) -> Pairs:
    """Pair images and masks; masks' stems have `suffix` beyond the key, or else, where none is equal, one `ENDING`.

    Raises:
        ConfigError: masks' stems have several endings, or are called otherwise; says what to type.
        DataError: as `pair`.
    """
    if suffix:
        ours = {key.removesuffix(suffix): paths for key, paths in masks.by_key.items() if key.endswith(suffix)}
        pairs, others = pair(images, Files(ours, masks.folder, suffix)), len(masks.by_key) - len(ours)
        return (
            _noted(pairs, f"left out: {others} of {len(masks.by_key)} masks, not ending in {suffix}")
            if others
            else pairs
        )
    endings = {} if images.by_key.keys() & masks.by_key.keys() else _endings(masks.by_key, images.by_key)
    if not endings:
        stems = [{key.rpartition("/")[2] for key in files.by_key} for files in (images, masks)]
        if stems[0].isdisjoint(stems[1]):
            _refuse_other_names(images.by_key, masks.by_key, "no mask has the name of its image")
        return pair(images, masks)
    if len(endings) > 1:
        numbers = ", ".join(f"{n} in {ending}" for ending, n in endings.items())
        lines = " or ".join(to_type(mask_suffix=ending) for ending in endings)
        raise ConfigError(f"{masks.folder}: the masks' names have several endings: {numbers}. Type {lines}.")
    (suffix,) = endings
    ours = {key.removesuffix(suffix): paths for key, paths in masks.by_key.items()}
    return _noted(pair(images, Files(ours, masks.folder, suffix)), f"the masks' names end in {suffix}")


def told_apart(folder: Path, keyed: Keyed, suffix: str) -> Pairs | None:
    """Pair images and masks that share folders, told apart by what masks' stems end in, or by their format.

    Without `suffix` there has to be one way in which every file is in a pair. None: nothing says which are the masks.

    Raises:
        ConfigError: files that are in no pair, or two formats of which either may be the images'; says what to type.
        DataError: as `pair`.
    """
    if suffix or not keyed:
        return _by_ending(folder, keyed, suffix)
    endings, formats = _endings(keyed, keyed), _formats(keyed)
    if len(endings) == 1 and not (pairs := _by_ending(folder, keyed, *endings)).problems:
        return _noted(pairs, f"masks are the files whose names end in {next(iter(endings))}")
    if len(formats) == 1 and not (pairs := _by_format(folder, keyed)).problems:
        ((image, mask),) = formats
        return _noted(pairs, f"of two files with the same name, {image} is the image and {mask} is the mask")
    lines = [f"{to_type(images=folder, masks=folder, mask_suffix=ending)} ({n} pairs)" for ending, n in endings.items()]
    lines += [
        f"{to_type(root=folder, images=f'**/*{image}', masks=f'**/*{mask}')} ({n} pairs)"
        for (image, mask), n in formats.items()
    ]
    if lines:
        what = "some files are in no pair." if len(lines) == 1 else "which are the masks?"
        raise ConfigError(f"{folder}: {what} Type {' or '.join(lines)}.")
    _refuse_other_names(keyed, keyed, "no name says which of its images are masks")
    if advice := converter(folder):
        raise DataError(f"{folder}: holds no mask images. {advice}")
    return None


def pattern_lines(images: Collection[Path], masks: Collection[Path]) -> list[str]:
    """Return what to type where each of two patterns has half of the files, and their stars stand for the same.

    So are img_1.png and mask_1.png; 21_training.tif and 21_manual1.gif. `images` and `masks` may be the same files:
    then the one that is called or saved as masks are is the mask, or there is a line for either.
    """
    every = {*images, *masks}
    if len(every) < 4:
        return []  # of one pair anything may be the same
    root = Path(os.path.commonpath([path.parent for path in every]))
    ours, theirs = (
        [(shape, found) for shape, found in _shaped(files) if 2 * len(found) == len(every)] for files in (images, masks)
    )
    lines: dict[str, bool] = {}  # whether the second of two patterns is the one that is called as masks are
    for (one, first), (other, second) in product(ours, theirs):
        if first | second != every or re.sub(r"\d+", "", one) == re.sub(r"\d+", "", other):
            continue  # what differs in a number alone is two images
        places = _place(first, root) + one, _place(second, root) + other
        keys = [_matching("images", place, str(root)).by_key.keys() for place in places]
        if keys[0] == keys[1] and len(keys[0]) == len(first):
            line = to_type(root=root, images=places[0], masks=places[1])
            lines[line] = _like_mask(other) > _like_mask(one)
    return [line for line, sure in lines.items() if sure] or list(lines)


def no_images(folder: Path, kind: str) -> str:
    """Return the error for a folder without images, with the line that converts its files or what to type."""
    return f"no images in it ({', '.join(SUFFIXES)}). {converter(folder) or f'Give the right data.{kind}=DIR.'}"


def _parts(images: Files) -> dict[str, str]:
    """The folders of the split in the order train, val, test, and which part each is."""
    tops = sorted({top(key) for key in images.by_key if part_of(top(key))})
    found: dict[str, str] = {}
    for part, names in PARTS.items():
        of_part = [folder for name in names for folder in tops if folder.lower() == name]
        if of_part:
            found[of_part[0]] = part  # `_beside` tells of a second one
    if not found:
        return {}
    if "train" not in found.values():
        what = f"holds {', '.join(found)}/ but no train/"
        raise DataError(f"{images.folder}: {what}. Add it, or rename the folders that are not a split.")
    for folder in sorted(images.folder.iterdir()):
        if folder.is_dir() and part_of(folder.name) and not any(walk_images(folder)):
            raise DataError(f"{folder}: {no_images(folder, 'images')}")
    return found


def _beside(images: Files, masks: Files, parts: Collection[str]) -> tuple[list[str], list[str]]:
    """Notes on whole folders beside the parts of a split, and problems: files beside them, two folders of one part."""
    named, keyed = ", ".join(parts), {**masks.by_key, **images.by_key}
    beside = {key: paths[0] for key, paths in sorted(keyed.items()) if top(key) not in parts}
    folders = Counter(top(key) for key in beside if top(key) and not part_of(top(key)) and len(parts) > 1)
    notes = [f"left out: {name}/, {n} image{'s' * (n != 1)}: none of {named}" for name, n in folders.items()]
    lost = [path for key, path in beside.items() if top(key) not in folders]
    return notes, [f"{path}: lies next to the split folders {named}/ of {images.folder.name}/" for path in lost]


def _endings(masks: Keyed, images: Keyed) -> dict[str, int]:
    """The `ENDING`s that stems have beyond an image's, most frequent first, and how many have them."""
    found = ((key, ending[0]) for key in masks if (ending := ENDING.search(key)))
    return dict(Counter(ending for key, ending in found if key.removesuffix(ending) in images).most_common())


def _formats(keyed: Keyed) -> dict[tuple[str, str], int]:
    """The most frequent two suffixes of files of one stem, the image's first; both ways where either may be."""
    suffixes = [sorted({path.suffix for path in paths}) for paths in keyed.values() if len(paths) == 2]
    for (one, other), n in Counter((two[0], two[1]) for two in suffixes if len(two) == 2).most_common(1):
        ways = [(one, other), (other, one)]
        known = [(image, mask) for image, mask in ways if image.lower() in LOSSY and mask.lower() not in LOSSY]
        return dict.fromkeys(known or ways, n)
    return {}


def _by_ending(folder: Path, keyed: Keyed, ending: str) -> Pairs:
    """Pair files of one folder: those that end so are masks; those of another `ENDING` beside a pair are left out."""
    masks = {key.removesuffix(ending): paths for key, paths in keyed.items() if ending and key.endswith(ending)}
    images = {key: paths for key, paths in keyed.items() if not (ending and key.endswith(ending))}
    paired = masks.keys() & images.keys()
    others = {key for key in images if (other := ENDING.search(key)) and key.removesuffix(other[0]) in paired}
    images = {key: paths for key, paths in images.items() if key not in others}
    pairs = pair(Files(images, folder), Files(masks, folder, ending))
    return _noted(pairs, f"left out: {len(others)} more files that have names of masks") if others else pairs


def _by_format(folder: Path, keyed: Keyed) -> Pairs:
    """Pair files of one folder: of each stem the lossy one is the image."""
    files = Files(keyed, folder)
    lossy = {path for paths in keyed.values() for path in paths if path.suffix.lower() in LOSSY}
    return pair(files.without({path for paths in keyed.values() for path in paths} - lossy), files.without(lossy))


def _refuse_other_names(images: Keyed, masks: Keyed, what: str) -> None:
    """Refuse files of which two patterns make pairs, with the lines to type."""
    files = [[path for paths in keyed.values() for path in paths] for keyed in (images, masks)]
    if lines := pattern_lines(*files):
        raise ConfigError(f"{Path(os.path.commonpath(files[1])).parent}: {what}. Type {' or '.join(lines)}")


def _shaped(files: Collection[Path]) -> list[tuple[str, set[Path]]]:
    """The patterns that names have whose first or last word is fixed, and the files of each."""
    groups: dict[str, set[Path]] = {}
    for path in files:
        head = re.match(r".*?[ ._-](?=.)|\D+(?=\d)|", path.stem)
        tail = re.search(r"(?<=.)[ ._-][^ ._-]*$|(?<=\d)\D+$|$", path.stem)
        assert head and tail  # each may be empty
        for shape in (f"{head[0]}*{path.suffix}", f"*{tail[0]}{path.suffix}", f"*{path.suffix}"):
            groups.setdefault(shape, set()).add(path)
    return list(groups.items())


def _place(files: Collection[Path], root: Path) -> str:
    """The folders of files below a root, as the beginning of a pattern."""
    rows = {path.parent.relative_to(root).parts for path in files}
    if len({len(row) for row in rows}) > 1:
        return "**/"
    return "".join(f"{level[0] if len(set(level)) == 1 else '*'}/" for level in zip(*rows, strict=True))


def _like_mask(shape: str) -> tuple[bool, bool]:
    """How much a pattern is one of masks: by its words, and by the format."""
    words = set(re.split(r"[^a-z]+", shape.lower()))
    return bool(words & {*MASKS, "seg"}), not shape.lower().endswith(LOSSY)


def _noted(pairs: Pairs, note: str) -> Pairs:
    return replace(pairs, notes=(note, *pairs.notes))


def _matching(name: str, pattern: str, root: str | None) -> Files:
    """The images that a pattern, or a folder, matches, by what its stars matched."""
    given = Path(pattern).expanduser()
    whole = given.resolve() / "**" if given.is_dir() else Path(root or "").expanduser() / given
    whole = Path(os.path.normpath(whole.absolute()))
    fixed = Path(*takewhile(lambda part: not set("*?") & set(part), whole.parts))
    if not fixed.is_dir():
        raise ConfigError(f"data.{name}={pattern}: there is no folder {fixed}, with which the pattern begins.")
    below = whole.relative_to(fixed).as_posix()
    any_format = below.endswith(("*", "?"))
    stars = {"**/": "((?:.*/)?)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    words = re.split(r"(\*\*/|\*\*|\*|\?)", below.removesuffix(".*"))
    expression = re.compile("".join(stars.get(word, re.escape(word)) for word in words), re.IGNORECASE)
    keyed: Keyed = {}
    for path in image_files(fixed):
        short = path.relative_to(fixed)
        if found := expression.fullmatch((short.with_suffix("") if any_format else short).as_posix()):
            key = "/".join(part for group in found.groups() if (part := group.strip("/")))
            keyed.setdefault(key, []).append(path)
    return Files(keyed, fixed)
