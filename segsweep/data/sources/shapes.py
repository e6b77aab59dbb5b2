"""`shapes`, the embedded data set: find the striped objects among look-alikes.

Each image shows irregular objects on textured ground. Those filled with a grating of stripes are the foreground; the
distractors have the same outlines and colours but are filled with blotches, spots or a plain tint. Colour, outline and
brightness say nothing, texture says all, under blur and noise: what an encoder trained on photographs knows already and
a random one has to learn from a few hundred images.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from segsweep.config.schema import DataConfig
from segsweep.data.source import Pairs
from segsweep.data.sources import folder
from segsweep.paths import build_once, cache

SIDE = 128  # pixels
VERSION = 1  # raise when the pictures change

Rng = np.random.Generator
Array = np.ndarray

CENTERS: tuple[Array, Array] = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)  # x and y of the pixels


def find(data: DataConfig) -> Pairs:
    """Find the embedded data set, drawn into the cache at first use."""
    target = cache() / f"shapes-v{VERSION}-{data.count}-{data.seed}"
    build_once(target, lambda made: (made / "images").is_dir(), lambda making: write(making, data.count, data.seed))
    return folder.find(DataConfig(root=str(target)))


def write(target: Path, count: int, seed: int) -> None:
    """Write `count` pairs of PNGs as `target`/{images,masks}/{train,val,test}/NNNN.png, 60, 20 and 20 percent.

    Masks are 8-bit, 0 background, 255 foreground. Each image depends on the seed and its number only.
    """
    for number in range(count):
        part = "val" if number % 5 == 3 else "test" if number % 5 == 4 else "train"
        image, mask = draw(np.random.default_rng([VERSION, seed, number]))
        for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
            path = target / kind / part / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)


def draw(rng: Rng) -> tuple[Array, Array]:
    """Draw one image, uint8 `h w 3`, and its mask, bool `h w`."""
    canvas = _tint(_clouds(rng, rng.uniform(2, 12)), rng)
    mask = np.zeros((SIDE, SIDE), bool)
    kinds = ["stripes"] * rng.integers(1, 4) + list(rng.choice(["blotches", "spots", "plain"], rng.integers(2, 5)))
    for kind in rng.permutation(kinds):
        inside = _outline(rng)
        canvas = np.where(inside[..., None], _tint(_fill(kind, rng), rng), canvas)
        mask = np.where(inside, kind == "stripes", mask)
    light = 1 + 0.25 * (_clouds(rng, 40) - 0.5)[..., None]
    canvas = _blur(canvas * light, rng.uniform(0.3, 1.2))
    canvas = canvas + rng.normal(0, rng.uniform(0.02, 0.08), canvas.shape)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), mask


def _outline(rng: Rng) -> Array:
    """A star-shaped blob with a wavy edge."""
    x, y = CENTERS
    cx, cy = rng.uniform(8, SIDE - 8, 2)
    angle = np.arctan2(y - cy, x - cx)
    radius = np.full_like(x, rng.uniform(10, 26))
    for harmonic in range(2, 6):
        radius *= 1 + rng.uniform(0, 0.35 / harmonic) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    squeeze, turn = rng.uniform(1, 1.6), rng.uniform(0, np.pi)
    u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    return np.asarray(np.hypot(u * squeeze, v) < radius)


def _fill(kind: str, rng: Rng) -> Array:
    x, y = CENTERS
    period, turn = rng.uniform(4, 9), rng.uniform(0, np.pi)
    if kind == "stripes":
        bend = 1.5 * (_clouds(rng, 16) - 0.5)
        phase = 2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / period + rng.uniform(0, 2 * np.pi) + 2 * bend
        return np.asarray(0.5 + 0.5 * np.sin(phase))
    if kind == "blotches":
        return _clouds(rng, period / 3)
    if kind == "spots":
        return 0.5 + 0.5 * np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period + turn)
    return np.full_like(x, rng.uniform(0.2, 0.8))


def _tint(level: Array, rng: Rng) -> Array:
    """A grey level in 0..1 as a mixture of two colours."""
    dark, bright = rng.uniform(0.05, 0.95, (2, 3))
    return np.asarray(dark + level[..., None] * (bright - dark))


def _clouds(rng: Rng, scale: float) -> Array:
    """Smooth noise with features of about `scale` pixels, spread over 0..1."""
    level = _blur(rng.normal(size=(SIDE, SIDE, 1)), scale)[..., 0]
    return np.asarray(((level - level.mean()) / (level.std() + 1e-9) * 0.25 + 0.5).clip(0, 1))


def _blur(pixels: Array, sigma: float) -> Array:
    """Gaussian blur of `h w c`, periodic at the edges."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    response = np.exp(-2 * (np.pi * sigma) ** 2 * (fx**2 + fy**2))[..., None]
    return np.fft.irfft2(np.fft.rfft2(pixels, axes=(0, 1)) * response, s=(SIDE, SIDE), axes=(0, 1))
