"""Augmentation: parameters drawn for a whole batch on the CPU, applied to it at once on the device.

Geometry is one 2x2 matrix and one shift, so image and mask are warped once, together; colour is one 3x3 matrix and a
contrast. The numbers drawn for an image do not depend on what is switched on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.config.schema import AugmentationConfig

LUMA = (0.299, 0.587, 0.114)  # of R, G and B in grey (ITU-R BT.601)


@dataclass(frozen=True)
class Draws:
    """The augmentation of n images, each with its own draw."""

    linear: np.ndarray  # `n 2 2`, from canvas points to points of the canvas without augmentation, about its centre
    shift: np.ndarray  # `n 2`, x and y, as a share of the canvas
    window: np.ndarray  # `n 2`, x and y in [0, 1): where a crop lies
    brightness: np.ndarray  # `n`, a factor, as the next two
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray  # `n`, radians
    blur: np.ndarray  # `n`, standard deviation in pixels
    noise: np.ndarray  # `n`, standard deviation as a share of the value range

    def __getitem__(self, rows: Any) -> "Draws":
        return Draws(**{name: values[rows] for name, values in vars(self).items()})


def draw(rng: np.random.Generator, n: int, augmentation: AugmentationConfig) -> Draws:
    """Draw the augmentation of n images."""
    chance = rng.random((n, 3))
    u = rng.uniform(-1, 1, (n, 12))
    window = rng.random((n, 2))
    flip = np.where(chance < (augmentation.hflip, augmentation.vflip, augmentation.transpose), -1.0, 1.0)
    linear = np.zeros((n, 2, 2))
    linear[:, 0, 0], linear[:, 1, 1] = flip[:, 0], flip[:, 1]
    linear = np.where((flip[:, 2] < 0)[:, None, None], linear[:, :, ::-1], linear)
    angle = np.deg2rad(augmentation.rotate) * u[:, 0]
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(n, 2, 2)
    skew = np.tile(np.eye(2), (n, 1, 1))
    skew[:, 0, 1] = np.tan(np.deg2rad(augmentation.shear) * u[:, 1])
    zoom = (1 + augmentation.scale) ** u[:, 2]
    return Draws(
        linear=linear @ turn @ skew * zoom[:, None, None],
        shift=augmentation.translate * u[:, 3:5],
        window=window,
        brightness=1 + augmentation.brightness * u[:, 5],
        contrast=1 + augmentation.contrast * u[:, 6],
        saturation=1 + augmentation.saturation * u[:, 7],
        hue=2 * math.pi * augmentation.hue * u[:, 8],
        blur=augmentation.blur * u[:, 9].clip(0),  # half of the images stay as they are
        noise=augmentation.noise * u[:, 10].clip(0),
    )


@dataclass(frozen=True)
class Effects:
    """What augmentation does to the values of pixels, after the geometry.

    Which parts it has depends on the configuration alone, never on a draw: it is one program for all batches.
    """

    augmentation: AugmentationConfig
    channels: int
    low: float  # of the pixels' values, which stay between the two
    high: float

    def numbers(self, draws: Draws) -> np.ndarray:
        """Return all that a program needs to know of each of n images, `n m` float32: see `widths`."""
        parts = [
            _color_matrix(draws).reshape(-1, 9) if self._matrix else draws.brightness[:, None],
            draws.contrast[:, None],
            _gaussians(draws.blur, self._radius),
            draws.noise[:, None] * (self.high - self.low),
        ]
        kept = [part for part, width in zip(parts, self.widths, strict=True) if width]
        return np.concatenate([np.empty((len(draws.blur), 0)), *kept], 1).astype(np.float32)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers for colour or brightness, contrast, the blur's kernel, noise; 0 where an effect is switched off."""
        on = self.augmentation
        color = 9 if self._matrix else int(on.brightness > 0)
        return color, int(on.contrast > 0), 2 * self._radius + 1 if on.blur else 0, int(on.noise > 0)

    def noise(self, shape: Sequence[int], device: torch.device, seed: int) -> Tensor | None:
        """Draw standard normal noise on the device: the only draw that depends on it. None where it is switched off."""
        if not self.augmentation.noise:
            return None
        return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)

    def __call__(self, image: Tensor, numbers: Tensor, noise: Tensor | None) -> Tensor:
        """Apply it to `b c h w` float32: tensors alone decide.

        Args:
            numbers: `b m`, of the images, on their device.
            noise: of the image's shape; None adds none.
        """
        color, contrast, kernel, sd = torch.split(numbers, list(self.widths), 1)
        top = self.high - self.low
        image = image - self.low if self.low else image
        if self._matrix:
            image = torch.einsum("bij,bjhw->bihw", color.reshape(-1, 3, 3), image)
        elif color.shape[1]:
            image = image * color[..., None, None]
        if contrast.shape[1]:
            image = torch.lerp(image.mean(dim=(1, 2, 3), keepdim=True), image, contrast[..., None, None])
        image = image.clamp(0, top)
        image = image + self.low if self.low else image
        if kernel.shape[1]:
            image = blurred(image, kernel)
        if noise is not None:
            image = (image + noise * sd[..., None, None]).clamp(self.low, self.high)
        return image

    @property
    def _matrix(self) -> bool:
        """Whether colours are mixed, for which there have to be three."""
        return self.channels == 3 and (self.augmentation.saturation > 0 or self.augmentation.hue > 0)

    @property
    def _radius(self) -> int:
        """Of the blur's kernel, in every batch the most there can be: no image depends on its neighbours."""
        return max(1, math.ceil(3 * self.augmentation.blur))


def blurred(image: Tensor, kernel: Tensor) -> Tensor:
    """Blur `b c h w` along both axes with each image's own kernel, `b k`, the edge replicated."""
    b, c = image.shape[:2]
    weight = kernel.repeat_interleave(c, 0)
    flat = F.pad(image.reshape(1, b * c, *image.shape[2:]), (kernel.shape[1] // 2,) * 4, mode="replicate")
    flat = F.conv2d(flat, weight[:, None, None, :], groups=b * c)
    flat = F.conv2d(flat, weight[:, None, :, None], groups=b * c)
    return flat.view_as(image)


def _gaussians(sigma: np.ndarray, radius: int) -> np.ndarray:
    """Return kernels of such standard deviations in pixels, `n 2*radius+1`; for 0 the kernel that changes nothing."""
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    return np.asarray(kernel / kernel.sum(1, keepdims=True))


def _color_matrix(draws: Draws) -> np.ndarray:
    """Brightness times saturation times a rotation of the hue about the grey axis: `b 3 3`."""
    cos, sin = np.cos(draws.hue)[:, None, None], np.sin(draws.hue)[:, None, None]
    third, cross = np.full((3, 3), 1 / 3), np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = cos * np.eye(3) + (1 - cos) * third + sin * cross  # Rodrigues' formula
    s = draws.saturation[:, None, None]
    saturate = s * np.eye(3) + (1 - s) * np.array(LUMA)
    return np.asarray(draws.brightness[:, None, None] * saturate @ turn)
