"""Large images with small objects: nuclei cut together, and thin lines drawn, to see whether a plan suits them.

python benchmarks/large.py                          # writes outputs/large/nuclei and outputs/large/lines
python benchmarks/choosing.py cells --groups nuclei lines        # the cell that validation chooses
"""

from pathlib import Path

import numpy as np
from measure import DATA, ROOT
from PIL import Image, ImageDraw, ImageFilter

PLACE = ROOT / "outputs" / "large"
PARTS = {"train": 24, "val": 6, "test": 6}  # images of each
NUCLEI = (8, 12)  # rows and columns of 256 px that an image is cut together from: 2048 x 3072
LINES = (1500, 4000)  # least and largest side, in pixels


def nuclei(folder: Path, rng: np.random.Generator) -> None:
    """DSB2018's images of 256 x 256, those of one part of its split in an image of the same part."""
    root = DATA / "dsb2018"
    names = sorted(path.name for path in (root / "images").rglob("*.png"))
    found = {path.name: path for path in (root / "images").rglob("*.png")}
    masks = {path.name: path for path in (root / "masks").rglob("*.png")}
    names = [name for name in names if name in masks and Image.open(found[name]).size == (256, 256)]
    ends = np.cumsum([0.7 * len(names), 0.15 * len(names), 0.15 * len(names)]).astype(int)
    for (part, images), first, end in zip(PARTS.items(), [0, *ends[:-1]], ends, strict=True):
        for number in range(images):
            rows, columns = NUCLEI
            image, mask = Image.new("RGB", (256 * columns, 256 * rows)), Image.new("L", (256 * columns, 256 * rows))
            for cell in range(rows * columns):
                name = names[rng.integers(first, end)]
                at = (256 * (cell % columns), 256 * (cell // columns))
                image.paste(Image.open(found[name]).convert("RGB"), at)
                mask.paste(Image.open(masks[name]).convert("L").point(lambda value: 255 * (value > 0)), at)
            save(folder, part, number, image, mask)


def lines(folder: Path, rng: np.random.Generator) -> None:
    """Grey texture of 1,500 to 4,000 px a side with some dark lines of 3 to 7 px, and bright ones that do not count."""
    for part, images in PARTS.items():
        for number in range(images):
            height, width = (int(side) for side in rng.integers(*LINES, 2))
            coarse = rng.normal(128, 22, (height // 16 + 1, width // 16 + 1)).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            mask = Image.new("L", (width, height))
            draw, truth = ImageDraw.Draw(image), ImageDraw.Draw(mask)
            for _ in range(int(rng.integers(4, 12))):
                points, thick = walk(rng, width, height), int(rng.integers(3, 8))
                draw.line(points, fill=int(rng.integers(50, 85)), width=thick)
                truth.line(points, fill=255, width=thick)
            for _ in range(12):
                draw.line(walk(rng, width, height), fill=int(rng.integers(170, 220)), width=int(rng.integers(3, 8)))
            noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8))) + rng.normal(0, 10, (height, width))
            save(folder, part, number, Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), mask)


def walk(rng: np.random.Generator, width: int, height: int) -> list[tuple[float, float]]:
    """A bent way of some hundred pixels across an image."""
    x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * np.pi)
    points = [(x, y)]
    for _ in range(int(rng.integers(6, 20))):
        angle += rng.normal(0, 0.35)
        x, y = x + 40 * np.cos(angle), y + 40 * np.sin(angle)
        points.append((x, y))
    return points


def save(folder: Path, part: str, number: int, image: Image.Image, mask: Image.Image) -> None:
    for name, picture in (("images", image), ("masks", mask)):
        (folder / name / part).mkdir(parents=True, exist_ok=True)
        picture.save(folder / name / part / f"{number:03d}.png")


if __name__ == "__main__":
    nuclei(PLACE / "nuclei", np.random.default_rng(0))
    lines(PLACE / "lines", np.random.default_rng(1))
