"""What the cases share: masks that are known, files written bit by bit, a viewer of its own, data sets opened and read.

Nothing here uses the product's readers. `shown` reads a file with pypng, tifffile or Pillow and applies what its tags
say, as a viewer does; `test_scenes.py` holds the writers against it.
"""

import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest
import tifffile
from PIL import Image, ImageFilter

from segsweep.compose import configuration
from segsweep.config.schema import DataConfig
from segsweep.data.dataset import Dataset, open_dataset
from segsweep.data.labels import VOID
from segsweep.errors import DataError

SIZE = (48, 64)  # height and width of most files
BLACK, WHITE, RED, GREEN, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
YELLOW, GREY = (255, 255, 0), (128, 128, 128)
NODATA, PHOTOMETRIC = 42113, 262  # TIFF tags
Write = Callable[[Path, np.ndarray], None]


# Masks that are known


def blobs(rng: np.random.Generator, classes: Sequence[int] = (1,), size: tuple[int, int] = SIZE) -> np.ndarray:
    """Draw discs and rectangles of these classes on 0, int64 `h w`; of each class 20 pixels at least are left."""
    y, x = np.indices(size)
    while True:
        mask = np.zeros(size, np.int64)
        for number in rng.permutation(np.repeat(classes, rng.integers(1, 3, len(classes)))):
            top, left = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
            high, wide = rng.integers(6, size[0] // 3, 2)
            disc = (y - top) ** 2 + (x - left) ** 2 <= (high / 2 + 1) ** 2
            box = (y >= top) & (y < top + high) & (x >= left) & (x < left + wide)
            mask[disc if rng.random() < 0.5 else box] = number
        if all((mask == number).sum() >= 20 for number in (0, *classes)):
            return mask


def truths(n: int = 6, classes: int = 2, size: tuple[int, int] = SIZE, seed: int = 0) -> list[np.ndarray]:
    """Draw n masks that hold every class, int64 `h w`."""
    return [blobs(np.random.default_rng([seed, i]), range(1, classes), size) for i in range(n)]


def coded(truth: np.ndarray, values: Sequence[Any], dtype: Any = np.uint8) -> np.ndarray:
    """Replace each class by its value or colour."""
    return np.array(values, dtype)[truth]


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture, uint8 `h w 3`."""
    return np.random.default_rng([9, seed]).integers(0, 256, (*size, 3)).astype(np.uint8)


def soft(pixels: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """Blur grey or coloured pixels of 8 bits, as an editor's brush or a resize does at their borders."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


# Files


def pillow(path: Path, pixels: np.ndarray, **how: Any) -> None:
    """A file by Pillow, in the format of its suffix; whole numbers of 64 bits become 8."""
    Image.fromarray(pixels.astype(np.uint8) if pixels.dtype == np.int64 else pixels).save(path, **how)


def jpeg(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, format="JPEG", quality=85, subsampling=0)


def tiff(path: Path, pixels: np.ndarray, nodata: str = "", orientation: int = 1, **how: Any) -> None:
    """A TIFF by tifffile; with GDAL's tag for nodata, and turned, where that is said."""
    tags: list[tuple[int, str, int, Any, bool]] = []
    if nodata:
        tags.append((NODATA, "s", len(nodata) + 1, nodata, False))
    if orientation != 1:
        tags.append((274, "H", 1, orientation, False))
    tifffile.imwrite(path, pixels, extratags=tags, metadata=None, **{"photometric": "minisblack"} | how)


def in_palette(path: Path, indices: np.ndarray, palette: Sequence[Sequence[int]], **how: Any) -> None:
    """Indices with a palette: PNG, TIFF, BMP or GIF by Pillow."""
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([level for color in palette for level in color])
    image.save(path, **how)


def _packed(samples: np.ndarray, bits: int) -> list[bytes]:
    """Each row's samples of 1 to 16 bits, highest bits first, filled up to whole bytes."""
    rows = samples.reshape(len(samples), -1).astype(np.uint32)
    planes = (rows[..., None] >> np.arange(bits)[::-1].astype(np.uint32)) & 1
    return [row.tobytes() for row in np.packbits(planes.reshape(len(rows), -1).astype(np.uint8), axis=1)]


def png_of(path: Path, samples: np.ndarray, bits: int, palette: Sequence[Sequence[int]] | None = None) -> None:
    """A PNG by hand, of any depth: grey `h w`, indices into a palette, or `h w c` of 2 (alpha), 3 or 4 (alpha)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    channels = samples.shape[2] if samples.ndim == 3 else 1
    kind = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, kind, 0, 0, 0)
    colors = chunk(b"PLTE", bytes(level for color in palette for level in color)) if palette else b""
    rows = b"".join(b"\0" + row for row in _packed(samples, bits))
    body = chunk(b"IHDR", header) + colors + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tiff_of(path: Path, samples: np.ndarray, bits: int, photometric: int = 1) -> None:
    """A grey TIFF by hand, of 1 to 12 bits a sample and one strip; photometric 0: the lowest value is white."""
    (height, width), data = samples.shape, b"".join(_packed(samples, bits))
    tags = {256: width, 257: height, 258: bits, 259: 1, PHOTOMETRIC: photometric, 273: 8, 277: 1, 278: height}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {279: len(data)}).items())
    data += b"\0" * (len(data) % 2)
    directory = struct.pack("<H", len(tags) + 1) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


def shown(path: Path) -> np.ndarray:
    """Read a file as a viewer shows it: `h w` or `h w c`, palettes and tags applied, fewer than 8 bits scaled to 8."""
    if path.suffix == ".png":
        width, height, rows, about = png.Reader(bytes=path.read_bytes()).read()
        pixels = np.array([list(row) for row in rows]).reshape(height, width, -1)
        if "palette" in about:
            return np.array([color[:3] for color in about["palette"]])[pixels[..., 0]]
        scale = 255 // (2 ** about["bitdepth"] - 1) if about["bitdepth"] < 8 else 1
        return np.squeeze(pixels * scale, 2) if pixels.shape[2] == 1 else pixels
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            if page.compression not in (tifffile.COMPRESSION.LZW, tifffile.COMPRESSION.CCITTFAX4):
                pixels, lowest_is_white = page.asarray(), page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
                if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                    return (page.colormap.T >> 8)[pixels]
                if pixels.dtype == bool:
                    return np.where(pixels ^ lowest_is_white, 255, 0)
                return np.iinfo(pixels.dtype).max - pixels if lowest_is_white else pixels
    with Image.open(path) as image:
        return np.asarray(image.convert({"P": "RGB", "1": "L"}.get(image.mode, image.mode)))


def cut_at(path: Path, level: int = 128) -> np.ndarray:
    """Cut a file at a grey level as Pillow shows it: 1 where it is as bright or brighter, int64 `h w`."""
    with Image.open(path) as image:
        return (np.asarray(image.convert("L")) >= level).astype(np.int64)


def nearest(pixels: np.ndarray, colors: Sequence[Sequence[int]]) -> np.ndarray:
    """The index of each pixel's nearest colour, int64 `h w`."""
    apart = pixels[:, :, None].astype(np.int64) - np.array(colors)
    return np.asarray((apart**2).sum(3).argmin(2))


# Data sets


def written(
    root: Path, masks: Sequence[np.ndarray], suffix: str = "png", write: Write | Sequence[Write] = pillow
) -> Path:
    """Write each mask, with one writer or a writer each, as `root`/masks/N.suffix and noise as its image."""
    writers = [write] * len(masks) if callable(write) else write
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number, (mask, writer) in enumerate(zip(masks, writers, strict=True)):
        pillow(root / "images" / f"{number}.png", noise(number, mask.shape[:2]), compress_level=1)
        writer(root / "masks" / f"{number}.{suffix}", mask)
    return root


def pictured(root: Path, pictures: Sequence[np.ndarray], write: Write, suffix: str = "tif", seed: int = 0) -> Path:
    """Write each picture as `root`/images/N.suffix, and `truths` of its size as indices in PNG."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number, (picture, truth) in enumerate(zip(pictures, truths(len(pictures), seed=seed), strict=True)):
        write(root / "images" / f"{number}.{suffix}", picture)
        pillow(root / "masks" / f"{number}.png", truth)
    return root


def opened(root: Path, **words: Any) -> Dataset:
    return open_dataset(DataConfig(root=str(root), **words), workers=2)


def typed(root: Path, *words: str) -> Dataset:
    """Open a folder with words as they are typed on the command line."""
    return open_dataset(configuration(["data=folder", f"data.root={root}", *words]).data, workers=2)


def refused(root: Path, kind: type[Exception] = DataError, **words: Any) -> str:
    """Open what must be refused, and return what is said."""
    with pytest.raises(kind) as error:
        opened(root, **words)
    return str(error.value)


def seen(dataset: Dataset) -> dict[str, np.ndarray]:
    """The class of each pixel that training sees, uint8 `h w`, by the stem of the mask."""
    table = dataset.labels.table
    return {sample.mask.stem: table[dataset.store.mask(i).numpy()] for i, sample in enumerate(dataset.samples)}


def pixels(dataset: Dataset) -> dict[str, np.ndarray]:
    """The pixels that training sees, `h w c`, by the stem of the image."""
    return {sample.image.stem: dataset.store.image(i).numpy() for i, sample in enumerate(dataset.samples)}


def same(found: Mapping[str, np.ndarray], right: Sequence[np.ndarray]) -> bool:
    """Tell whether the arrays named 0, 1, ... are the right ones, to the last pixel."""
    assert found.keys() == {str(number) for number in range(len(right))}
    for number, expected in enumerate(right):
        assert found[str(number)].shape == expected.shape
        different = (found[str(number)] != expected).mean()
        assert not different, f"{different:.1%} of the pixels of {number} differ"
    return True


def agreement(found: Mapping[str, np.ndarray], right: Sequence[np.ndarray]) -> float:
    """The share of all pixels that are right."""
    assert found.keys() == {str(number) for number in range(len(right))}
    return float(np.mean([found[str(number)] == expected for number, expected in enumerate(right)]))


def foreground(dataset: Dataset) -> float:
    """The share of class 1 in the pixels that count."""
    everything = np.concatenate([classes.ravel() for classes in seen(dataset).values()])
    return float((everything == 1).sum() / (everything != VOID).sum())


# What is said


def said(dataset: Dataset, *words: str) -> str:
    """Return the first note that holds these words, in any case; fail where there is none."""
    for note in dataset.notes:
        if all(word.lower() in note.lower() for word in words):
            return note
    raise AssertionError(f"no note says {words}: {dataset.notes}")


def percents(text: str) -> list[float]:
    """The shares that a text tells."""
    return [float(number) for number in re.findall(r"([\d.]+) ?%", text)]


def advice(text: str, key: str) -> str:
    """The first `data.KEY=...` of a message that can be typed as it stands, without the shell's quotes."""
    lines = re.findall(rf"'(data\.{key}=[^']+)'|(?<!')\b(data\.{key}=[^\s',;)]+)", text)
    found = [(quoted or plain).rstrip(".") for quoted, plain in lines]
    complete = [line for line in found if "..." not in line and not re.search("[A-Z]{2}", line)]
    complete = [line for line in complete if line.count("[") == line.count("]")]  # not what came, cut at a comma
    assert complete, f"no complete line with data.{key} in: {text}"
    return complete[0]


def meant(line: str, values: Sequence[Any]) -> np.ndarray:
    """The class index that a line with `data.classes` gives to each of these values or colours, int64 `n`."""
    classes = configuration(["data=folder", "data.root=.", line]).data.classes
    groups = list(classes.values()) if isinstance(classes, Mapping) else list(range(len(classes)))
    places = []
    for value in (list(value) if isinstance(value, tuple) else value for value in values):
        holding = [
            i for i, group in enumerate(groups) if group == value or (isinstance(group, list) and value in group)
        ]
        places += holding[:1] or [-1]
    return np.array(places) + (1 if -1 in places else 0)  # what is left over comes first, as background
