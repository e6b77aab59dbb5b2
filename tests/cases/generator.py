"""Random data sets as people have them: classes that are known, in one of twelve encodings, formats and layouts.

`drawn(folder, seed)` writes one set and returns what a user would type for it and what every mask means. Each file of a
mask is held against what a viewer shows that did not write it (`scenes.shown`), so a mistake here fails here.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scenes import BLACK, blobs, coded, in_palette, nearest, noise, pillow, png_of, shown, soft, tiff

from segsweep.data.labels import VOID

LARGE = (96, 128)  # of what is blurred or compressed: borders are a few percent of the pixels
NAMES = ("ground", "roof", "tree", "road", "water")
COMPRESSIONS = (None, "tiff_adobe_deflate", "tiff_lzw", "packbits")
Rng = np.random.Generator
File = tuple[str, Callable[[Path], None], np.ndarray | None]  # suffix, how it is written, what a viewer shows


@dataclass(frozen=True)
class Encoded:
    """The masks of a set in one encoding."""

    files: list[File]
    words: dict[str, Any] = field(default_factory=dict)  # what is typed for them
    names: tuple[str, ...] = ("background", "foreground")  # of the classes, in order
    right: list[np.ndarray] | None = None  # the class of each pixel; default: as they were drawn


@dataclass(frozen=True)
class DataSet:
    """A set in a folder."""

    encoding: str
    layout: str
    words: dict[str, Any]  # keys of `data`
    names: tuple[str, ...]
    right: dict[Path, np.ndarray]  # the class of each pixel by the mask's file, `h w`, VOID where it does not count
    exact: bool  # to the last pixel; else 99 % of them

    def __str__(self) -> str:
        suffixes = sorted({path.suffix for path in self.right})
        return f"{self.encoding}, {self.layout}, {' '.join(suffixes)}, {self.words}"


# Files


def _saved(pixels: np.ndarray, rng: Rng, suffixes: Sequence[str], shows: np.ndarray | None = None) -> File:
    """Pixels of 8 bits, or True and False, in one of these formats."""
    suffix = str(rng.choice(suffixes))
    how: dict[str, Any] = {"tif": {"compression": COMPRESSIONS[rng.integers(4)]}}.get(suffix, {})
    return suffix, lambda path: Image.fromarray(pixels).save(path, **how), pixels if shows is None else shows


def _grey(values: np.ndarray, rng: Rng) -> File:
    """Numbers below 256."""
    return _saved(values.astype(np.uint8), rng, ("png", "tif", "bmp", "gif"))


def _color(colors: np.ndarray, rng: Rng) -> File:
    """Colours of 8 bits; now and then with 16, or beside an alpha that is opaque."""
    kind = rng.choice(["plain", "plain", "deep", "opaque"])
    if kind == "deep":
        deep = 257 * colors.astype(np.uint16)
        if rng.random() < 0.5:
            return "png", partial(png_of, samples=deep, bits=16), deep
        return "tif", partial(tiff, pixels=deep, photometric="rgb"), deep
    if kind == "opaque":
        colors = np.dstack([colors, np.full(colors.shape[:2], 255, np.uint8)])
        return _saved(colors, rng, ("png", "tif"))
    return _saved(colors, rng, ("png", "tif", "bmp"))


def _tiff(pixels: np.ndarray, rng: Rng, shows: np.ndarray | None = None, **how: Any) -> File:
    """What Pillow does not write; tifffile compresses it or not, in either byte order."""
    how |= {"compression": [None, "deflate"][rng.integers(2)], "byteorder": "<>"[rng.integers(2)]}
    return "tif", partial(tiff, pixels=pixels, **how), pixels if shows is None else shows


# What is typed


def _listed(k: int, rng: Rng) -> dict[str, Any]:
    """Indices, which are named in their order or with their numbers."""
    names = NAMES[:k]
    numbers = {name: number for number, name in enumerate(names)}
    del numbers[names[0]]  # what is left over is background
    choices: list[Any] = [list(names), {names[0]: 0} | numbers, {"background": 0} | numbers, numbers]
    return {"classes": choices[rng.integers(3 + (k > 1))]}


def _names(words: dict[str, Any], background: Any) -> tuple[str, ...]:
    """The names that words give, with a background where no class is one."""
    classes = words.get("classes")
    if classes is None:
        return "background", "foreground"
    holds = isinstance(classes, list) or background in classes.values()
    return (() if holds else ("background",)) + tuple(classes)


def _binary(rng: Rng, foreground: int) -> dict[str, Any]:
    """Two values, which need no words."""
    choices: list[dict[str, Any]] = [
        {},
        {},
        {"classes": ["bg", "cell"]},
        {"classes": {"cell": foreground}},
        {"classes": {"bg": 0, "cell": foreground}},
    ]
    return choices[rng.integers(len(choices))]


def _palette(k: int, rng: Rng, apart: int = 60) -> list[tuple[int, int, int]]:
    """Colours that differ; black is mostly the first."""
    colors = [BLACK] if rng.random() < 0.7 else []
    while len(colors) < k:
        color = tuple(int(level) for level in rng.integers(0, 256, 3))
        if all(np.hypot.reduce(np.subtract(color, other)) >= apart for other in colors) and len(set(color)) > 1:
            colors.append(color)
    return colors


def _by_color(colors: Sequence[Sequence[int]], rng: Rng) -> dict[str, Any]:
    """Classes by colour: all, or all but the first, or none where two need no words."""
    named = {name: list(color) for name, color in zip(NAMES, colors, strict=False)}
    if len(colors) == 2 and tuple(colors[0]) == BLACK and rng.random() < 0.5:
        return {}
    if rng.random() < 0.4:
        del named[NAMES[0]]
    return {"classes": named}


def _in_colors(truths: Sequence[np.ndarray], colors: Sequence[Sequence[int]], files: list[File], rng: Rng) -> Encoded:
    words = _by_color(colors, rng)
    return Encoded(files, words, _names(words, list(colors[0])))


# The encodings: masks of k classes, 0 to k-1


def _index(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    words = {} if k == 2 and rng.random() < 0.5 else _listed(k, rng)
    right = [truth.copy() for truth in truths]
    if rng.random() < 0.3:
        for truth in right:
            truth[: rng.integers(1, 4)] = VOID  # 255 beside small indices
    return Encoded([_grey(truth, rng) for truth in right], words, _names(words, 0), right)


def _ends(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """0 and 255."""
    words = _binary(rng, 255)
    return Encoded([_grey(255 * truth, rng) for truth in truths], words, _names(words, 0))


def _colors(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    colors = _palette(k, rng)
    return _in_colors(truths, colors, [_color(coded(truth, colors), rng) for truth in truths], rng)


def _palettes(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """In an order of its own in each file; the first two swap background and class 1, so that files do not agree."""
    colors = _palette(k, rng)
    files: list[File] = []
    for number, truth in enumerate(truths):
        order = np.array([*range(k)] if number == 0 else [1, 0, *range(2, k)] if number == 1 else rng.permutation(k))
        suffix = str(rng.choice(["png", "tif", "bmp", *(["gif"] if number > 1 else [])]))
        how = {"compression": COMPRESSIONS[rng.integers(4)]} if suffix == "tif" else {}
        palette = [colors[color] for color in order]
        if suffix == "png" and rng.random() < 0.5:
            bits = int(rng.choice([bits for bits in (1, 2, 4, 8) if 2**bits >= k]))
            write = partial(png_of, samples=np.argsort(order)[truth], bits=bits, palette=palette)
        else:
            write = partial(in_palette, indices=np.argsort(order)[truth], palette=palette, **how)
        files.append((suffix, write, coded(truth, colors)))
    return _in_colors(truths, colors, files, rng)


def _jpeg(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    quality, words = int(rng.integers(70, 96)), [{}, {}, {"threshold": 128}][rng.integers(3)]
    colored = rng.random() < 0.3
    pixels = [coded(truth, [0, 255]) for truth in truths]
    pixels = [np.repeat(grey[..., None], 3, axis=2) for grey in pixels] if colored else pixels
    return Encoded([("jpg", partial(pillow, pixels=p, quality=quality), None) for p in pixels], words)


def _soft(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """Borders that blend, in grey or, where the colours allow it, in colour."""
    if k == 2 and rng.random() < 0.6:
        radius, words = rng.uniform(0.5, 1.2), [{}, {}, {"threshold": 128}][rng.integers(3)]
        blurred = [soft(coded(truth, [0, 255]), radius) for truth in truths]
        return Encoded([_saved(grey, rng, ("png", "tif", "bmp")) for grey in blurred], words)
    while True:
        colors, radius = _palette(k, rng, apart=120), rng.uniform(0.4, 0.8)
        blurred = [soft(coded(truth, colors), radius) for truth in truths]
        found = [nearest(pixels, colors) for pixels in blurred]
        off = [np.mean([f == c for f in found]) - np.mean([t == c for t in truths]) for c in range(k)]
        agreed = min(np.mean(f == t) for f, t in zip(found, truths, strict=True))
        if agreed > 0.994 and max(map(abs, off)) < 0.002:  # blends that have no nearer colour than their own two
            break
    return _in_colors(truths, colors, [_saved(p, rng, ("png", "tif", "bmp")) for p in blurred], rng)


def _ids(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """Objects numbered in each file or through the set; stripes of blobs, so that there are many."""
    first, through = int(rng.choice([1, 1, 300, 40_000])), rng.random() < 0.5
    files = []
    for number, truth in enumerate(truths):
        wide = int(rng.integers(1, 30))
        objects = truth * (first + number * 50 * through + np.arange(truth.shape[1]) // wide)
        if rng.random() < 0.5:
            files.append(("png", partial(png_of, samples=objects, bits=16), objects))
        else:
            files.append(_tiff(objects.astype(rng.choice(["uint16", "uint32"])), rng))
    return Encoded(files, {"binarize": True})


def _alpha(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """The mask is the alpha of one colour, or of grey."""
    color, grey = rng.choice([0, 255], 3), rng.random() < 0.3
    words, files = _binary(rng, 255), []
    for truth in truths:
        alpha = coded(truth, [0, 255])
        visible = [np.full_like(alpha, level) for level in (color[:1] if grey else color)]
        files.append(_saved(np.dstack([*visible, alpha]), rng, ("png", "tif")))
    return Encoded(files, words, _names(words, 0))


def _one_bit(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    words, files = _binary(rng, 255), []
    for truth in truths:
        if rng.random() < 0.2:
            files.append(("tif", partial(pillow, pixels=truth.astype(bool), compression="group4"), 255 * truth))
        elif rng.random() < 0.2:
            files.append(("png", partial(png_of, samples=truth, bits=1), 255 * truth))
        else:
            files.append(_saved(truth.astype(bool), rng, ("png", "tif", "bmp"), shows=255 * truth))
    return Encoded(files, words, _names(words, 0))


def _white_is_zero(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """MinIsWhite: indices, or black and white of 1 to 32 bits."""
    dtype = np.dtype(rng.choice(["bool", "uint8", "uint16", "uint32"] if k == 2 else ["uint8", "uint16", "uint32"]))
    bit = dtype.kind == "b"
    highest = 1 if bit else np.iinfo(dtype).max
    if bit or (k == 2 and rng.random() < 0.6):
        words = _binary(rng, 255) if highest in (1, 255) else {}
        values = [truth * highest for truth in truths]
    else:
        words, values = _listed(k, rng), truths
    shows = [255 * value if bit else value for value in values]
    stored = [(highest - value).astype(dtype) for value in values]
    files = [_tiff(s, rng, v, photometric="miniswhite") for s, v in zip(stored, shows, strict=True)]
    return Encoded(files, words, _names(words, 0))


def _float(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """Indices, or 0 and 255; NaN, where it is, does not count."""
    dtype, scale = rng.choice(["float16", "float32", "float64"]), 255 if k == 2 and rng.random() < 0.5 else 1
    words = _binary(rng, scale) if k == 2 else _listed(k, rng)
    right, files = [truth.copy() for truth in truths], []
    rows = int(rng.choice([0, 0, 3]))
    for truth in right:
        values = (scale * truth).astype(dtype)
        values[:rows], truth[:rows] = np.nan, VOID
        files.append(_tiff(values, rng))
    return Encoded(files, words, _names(words, 0), right)


def _grey_rgb(truths: list[np.ndarray], k: int, rng: Rng) -> Encoded:
    """Three equal channels, of indices or 0 and 255."""
    scale = 255 if k == 2 and rng.random() < 0.5 else 1
    words = _binary(rng, scale) if k == 2 else _listed(k, rng)
    pixels = [np.repeat((scale * truth).astype(np.uint8)[..., None], 3, axis=2) for truth in truths]
    return Encoded([_saved(p, rng, ("png", "tif", "bmp")) for p in pixels], words, _names(words, 0))


ENCODINGS: dict[str, tuple[Callable[[list[np.ndarray], int, Rng], Encoded], int]] = {  # with the most classes it has
    "index": (_index, 5),
    "0 and 255": (_ends, 2),
    "colours": (_colors, 5),
    "palettes": (_palettes, 5),
    "JPEG": (_jpeg, 2),
    "soft edge": (_soft, 4),
    "16-bit ids": (_ids, 2),
    "alpha": (_alpha, 2),
    "1-bit": (_one_bit, 2),
    "MinIsWhite": (_white_is_zero, 5),
    "float": (_float, 5),
    "grey RGB": (_grey_rgb, 5),
}
LOSSY = ("JPEG", "soft edge")
LAYOUTS = ("two folders", "split folders", "table", "suffix")


# Folders


def drawn(folder: Path, seed: int) -> DataSet:
    """Write the set of a seed into an empty folder: 4 to 8 pairs, seed modulo 12 its encoding."""
    rng = np.random.default_rng([25, seed])
    name = tuple(ENCODINGS)[seed % len(ENCODINGS)]
    encode, most = ENCODINGS[name]
    k, n = int(rng.integers(2, most + 1)), int(rng.integers(4, 9))
    size = LARGE if name in LOSSY else (int(rng.integers(40, 60)), int(rng.integers(48, 72)))
    # Class 1 is in every mask, the others are in most of them.
    truths = [blobs(rng, [c for c in range(1, k) if c == 1 or i == 0 or rng.random() < 0.7], size) for i in range(n)]
    encoded = encode(truths, k, rng)
    layout = str(rng.choice(LAYOUTS))
    words, paths = PLACES[layout](folder, [suffix for suffix, *_ in encoded.files], rng)
    for number, ((image, mask), (_, write, shows)) in enumerate(zip(paths, encoded.files, strict=True)):
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        pillow(image, noise(number, size))
        write(mask)
        if shows is not None and not _same_picture(shown(mask), shows):
            raise AssertionError(f"{mask} of seed {seed}, {name}, does not show what was written")
    right = dict(zip((mask for _, mask in paths), encoded.right or truths, strict=True))
    return DataSet(name, layout, words | encoded.words, encoded.names, right, name not in LOSSY)


def _same_picture(found: np.ndarray, shows: np.ndarray) -> bool:
    """Whether a viewer shows it; numbers may come as grey colours, as GIF has them."""
    if found.ndim > shows.ndim and (found == found[..., :1]).all():
        found = found[..., 0]
    return np.array_equal(found, shows, equal_nan=shows.dtype.kind == "f")


Places = tuple[dict[str, Any], list[tuple[Path, Path]]]


def _stem(number: int) -> str:
    return f"site {number} a" if number % 3 == 2 else f"{number:03d}"


def _two_folders(folder: Path, suffixes: list[str], rng: Rng) -> Places:
    names = [(_stem(i), suffix) for i, suffix in enumerate(suffixes)]
    pairs = [(folder / "images" / f"{stem}.png", folder / "masks" / f"{stem}.{suffix}") for stem, suffix in names]
    return {"root": str(folder)}, pairs


def _split_folders(folder: Path, suffixes: list[str], rng: Rng) -> Places:
    pairs = []
    for i, suffix in enumerate(suffixes):
        part = "val" if i % 4 == 3 else "train"
        images, masks = (folder / kind / part for kind in ("images", "masks"))
        pairs.append((images / f"{_stem(i)}.bmp", masks / f"{_stem(i)}.{suffix}"))
    return {"root": str(folder)}, pairs


def _table(folder: Path, suffixes: list[str], rng: Rng) -> Places:
    """A CSV beside its files, or elsewhere with data.root; with a split, or without."""
    split, elsewhere = rng.random() < 0.5, rng.random() < 0.5
    pairs = [(folder / "pictures" / f"{i}.tif", folder / f"m{i}.{suffix}") for i, suffix in enumerate(suffixes)]
    table = folder / "lists" / "pairs.csv" if elsewhere else folder / "pairs.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "mask"] + ["split"] * split)
        for i, pair in enumerate(pairs):
            part = [["train", "val"][i % 4 == 1]] * split
            rows.writerow([path.relative_to(folder) for path in pair] + part)
    return {"table": str(table)} | ({"root": str(folder)} if elsewhere else {}), pairs


def _suffix(folder: Path, suffixes: list[str], rng: Rng) -> Places:
    """Masks are told from their images by a suffix, in one folder or in two."""
    word, together = str(rng.choice(["_mask", "-label", "_gt"])), rng.random() < 0.5
    places = {"images": folder / "all", "masks": folder / ("all" if together else "labels")}
    pairs = [
        (places["images"] / f"{i}.png", places["masks"] / f"{i}{word}.{suffix}") for i, suffix in enumerate(suffixes)
    ]
    return {kind: str(place) for kind, place in places.items()} | {"mask_suffix": word}, pairs


PLACES: dict[str, Callable[[Path, list[str], Rng], Places]] = dict(
    zip(LAYOUTS, (_two_folders, _split_folders, _table, _suffix), strict=True)
)
