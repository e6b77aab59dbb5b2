"""Find out from the names of folders which files are images and which are masks."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from segsweep.data.pairing import MASKS, Files, Keyed, no_images, part_of, pattern_lines, told_apart, told_by_place, top
from segsweep.data.source import Pairs, existing_folder, image_files, to_type, walk_images
from segsweep.errors import ConfigError, DataError

Kind = Literal["images", "masks"]

# What folders are called, in any case.
NAMES: dict[Kind, tuple[str, ...]] = {
    "images": ("images", "image", "imgs", "img", "jpegimages"),
    "masks": (*MASKS, "segmentationclass", "segmentationclasspng"),
}


class Mark(NamedTuple):
    """What the name of a folder means for the images below it."""

    kind: Kind
    kept: str  # what of the name is part of the key: train of train_annot


class Found(NamedTuple):
    """An image file below a root."""

    path: Path
    kind: Kind | None  # None: no folder on its way says it
    key: str  # the rest of its path
    place: str  # the folder that says the kind, as a pattern below the root: */masks


def detect(root: Path, suffix: str = "") -> Pairs:
    """Find the pairs below a folder by what folders and files are called.

    Folders called as in `NAMES` tell images and masks apart: images/ and masks/, or else, at any depth, train/images/
    and train/masks/, train/ and train_annot/. Where no folder is called as masks are, these share folders with the
    images and differ in the ends of their stems (`ENDING`, or `suffix`) or in their format. The rest of the path is the
    key; its first folder may be a part of a split. Whatever is not plain images/ and masks/ is told in notes.

    Raises:
        ConfigError: no masks, or several answers; says what to type.
        DataError: no images, or files that need a converter.
    """
    while len(names := _folders(root)) == 1 and not (_marks(names) or part_of(names[0]) or _loose(root)):
        root /= names[0]
    found, notes, loose = _looked_through(root, names)
    images, masks, unmarked = ([file for file in found if file.kind == kind] for kind in ("images", "masks", None))
    if images:
        apart, beside = _set_aside(root, unmarked, [*images, *masks])
        notes, loose = notes + beside, loose + apart
        pairs = _paired(root, images, masks, suffix, unmarked)
    else:
        pairs = _paired(root, unmarked, masks, suffix)
    advice = "Move it away, or type data.images=DIR data.masks=DIR"
    problems = [
        *pairs.problems,
        *(f"{path}: the name of its folder says neither images nor masks. {advice}" for path in loose),
    ]
    notes = [*pairs.notes, *notes]
    if pairs.samples and {file.place for file in found} != {"images", "masks"}:
        first = pairs.samples[0]
        example = f"{first.image.relative_to(root)} with {first.mask.relative_to(root)}"
        notes.insert(0, f"pairs found below {root}: {example}, and so on")
    return replace(pairs, problems=problems, notes=tuple(notes))


def _looked_through(root: Path, names: Sequence[str]) -> tuple[list[Found], list[str], list[Path]]:
    """The images below a root with the folders `names`; if some of these are of images and masks, those in them alone.

    Then come notes on the other folders, and the images in the root itself.
    """
    marks = _marks(names)
    if {mark.kind for mark in marks.values()} != {"images", "masks"}:
        return _marked(root, image_files(root)), [], []
    left = [name for name in names if name not in marks]
    _refuse_two_layouts(root, marks, [name for name in left if part_of(name)])
    notes = [f"left out: {root / name}/, whose name says neither images nor masks" for name in left]
    return _marked(root, [path for name in marks for path in image_files(root / name)]), notes, _loose(root)


def _paired(
    root: Path, images: Sequence[Found], masks: Sequence[Found], suffix: str, others: Sequence[Found] = ()
) -> Pairs:
    if not images and not masks:
        raise DataError(f"{root}: {no_images(root, 'root')}")
    if not images:
        raise DataError(f"{existing_folder('images', None, str(root))}: {no_images(root, 'images')}")
    if masks:
        _refuse_two_places(root, images, masks)
        return told_by_place(_files(root, images), _files(root, masks), suffix)
    if told := told_apart(root, _keyed(images), suffix):
        return told
    if lines := pattern_lines([file.path for file in images], [file.path for file in others]):
        raise ConfigError(
            f"data.root={root}: no folder has a name for masks, such as masks/. Type {' or '.join(lines)}"
        )
    if images[0].kind:
        raise DataError(f"{existing_folder('masks', None, str(root))}: {no_images(root, 'masks')}")
    what = "no name says which of its images are masks (a folder such as masks/, or names that end in _mask)"
    raise ConfigError(f"data.root={root}: {what}. Type data.images=DIR data.masks=DIR, and data.mask_suffix=_mask.")


# What folders' names say.


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder that hold images, hidden ones left out."""
    inside = [child for child in sorted(root.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    return [child.name for child in inside if any(walk_images(child))]


def _loose(root: Path) -> list[Path]:
    """The images in a folder itself."""
    return sorted(walk_images(root, deep=False))


def _marks(names: Sequence[str]) -> dict[str, Mark]:
    """Which of the folders in one place say that they hold images, or masks.

    By their whole name; or by an end or beginning of it that leaves the same of a partner's: train_images/ and
    train_masks/, train/ and train_annot/. The parts of a split go the same way: test/ is of images there without
    test_annot/, too.
    """
    exact = {name: Mark(kind, "") for name in names for kind, known in NAMES.items() if name.lower() in known}
    joint: dict[Kind, dict[str, str]] = {"images": {}, "masks": {}}  # what is left of a name, by the name
    for kind, known in NAMES.items():
        words = "|".join(known)
        split = re.compile(rf"(.+?)[ ._-]?(?:{words})|(?:{words})[ ._-](.+)", re.IGNORECASE)
        joint[kind] = {n: found[1] or found[2] for n in names if n not in exact and (found := split.fullmatch(n))}
    marks = dict(exact)
    for name, kept in joint["masks"].items():
        if kept in names and exact.get(kept, Mark("images", kept)).kind == "images":
            marks.setdefault(kept, Mark("images", kept))
            marks[name] = Mark("masks", "" if kept in exact else kept)
        elif partners := [other for other, same in joint["images"].items() if same == kept]:
            marks |= {other: Mark("images", kept) for other in partners} | {name: Mark("masks", kept)}
    if any(part_of(name) and mark == ("images", name) for name, mark in marks.items()):
        marks |= {name: Mark("images", name) for name in names if part_of(name) and name not in marks}
    return marks


def _marked(root: Path, paths: Sequence[Path]) -> list[Found]:
    """What the folders on each file's way from the root say of it; the first that says something counts."""
    below = {path.parent: path.parent.relative_to(root) for path in paths}
    inside: dict[Path, list[str]] = {}
    for folder in sorted({inner for leaf in below.values() for inner in _way(leaf)}):
        inside.setdefault(folder.parent, []).append(folder.name)
    marks = {parent / name: mark for parent, names in inside.items() for name, mark in _marks(names).items()}
    said = {whole: _said(folder, marks) for whole, folder in below.items()}
    return [
        Found(path, kind, f"{above}{path.stem}", place) for path in paths for kind, above, place in (said[path.parent],)
    ]


def _said(folder: Path, marks: Mapping[Path, Mark]) -> tuple[Kind | None, str, str]:
    """The kind of the images in a folder, what their keys begin with, and the place that says so."""
    marked = next((inner for inner in _way(folder) if inner in marks), None)
    if marked is None:
        return None, _above(folder), ""
    kind, kept = marks[marked]
    name = marked.name.replace(kept, "*", 1) if kept else marked.name
    place = "/".join([*("*" for _ in marked.parent.parts), name])
    return kind, _above(marked.parent / kept / folder.relative_to(marked)), place


def _above(folder: Path) -> str:
    return f"{folder.as_posix()}/" if folder.parts else ""


def _way(folder: Path) -> list[Path]:
    """A folder below the root and those above it, the first one first."""
    return [folder, *folder.parents][-2::-1]


def _keyed(files: Sequence[Found]) -> Keyed:
    keyed: Keyed = {}
    for file in files:
        keyed.setdefault(file.key, []).append(file.path)
    return keyed


def _files(root: Path, files: Sequence[Found]) -> Files:
    place, *others = {file.place for file in files}
    return Files(_keyed(files), root if others or "*" in place else root / place)


def _set_aside(root: Path, files: Sequence[Found], used: Sequence[Found]) -> tuple[list[Path], list[str]]:
    """The files of which no folder says the kind: those that must be told one by one, and a note for whole folders."""
    taken = {top(file.path.relative_to(root).as_posix()) for file in used}
    tops = [top(file.key) for file in files]
    whole = {top: n for top, n in Counter(tops).items() if top and top not in taken and part_of(top) in (None, "test")}
    apart = [file.path for file, top in zip(files, tops, strict=True) if top not in whole]
    what = "whose folders say neither images nor masks"
    return apart, [f"left out: {root / top}/, {n} image{'s' * (n != 1)}, {what}" for top, n in whole.items()]


def _refuse_two_places(root: Path, images: Sequence[Found], masks: Sequence[Found]) -> None:
    """Refuse images, or masks, of one key in folders of several names."""
    tops = {top(file.key) for file in images}
    only = tops.pop() if len(tops) == 1 else "*"
    for kind, files, others in (("images", images, masks), ("masks", masks, images)):
        partner = {file.key: file.place for file in others}
        places: dict[str, str] = {}
        for file in files:
            first = places.setdefault(file.key, file.place)
            if first != file.place and (other := partner.get(file.key)) is not None:
                ways = [(place, other) if kind == "images" else (other, place) for place in (first, file.place)]
                lines = [_line(root, *(place.replace("*", only, 1) for place in way)) for way in ways]
                what = f"{first}/ and {file.place}/ both hold {kind} for {file.key}"
                raise ConfigError(f"data.root={root}: {what}. Type {' or '.join(lines)}")


def _refuse_two_layouts(root: Path, marks: Mapping[str, Mark], parts: Sequence[str]) -> None:
    """Refuse parts of a split beside folders of images and masks."""
    if not parts:
        return
    inner = _marks(_folders(root / parts[0]))
    places = [{mark.kind: name for name, mark in found.items()} for found in (marks, inner)]
    lines = [_line(root, places[0]["images"], places[0]["masks"])]
    if len(places[1]) == 2:
        lines.append(_line(root, f"*/{places[1]['images']}", f"*/{places[1]['masks']}"))
    what = f"holds {', '.join(parts)}/ next to {places[0]['images']}/ and {places[0]['masks']}/"
    raise ConfigError(f"data.root={root}: {what}. Type {' or '.join(lines)}")


def _line(root: Path, images: str, masks: str) -> str:
    """What to type for images and masks in folders that a pattern names."""
    return to_type(root=root, images=f"{images}/**".lstrip("/"), masks=f"{masks}/**".lstrip("/"))
