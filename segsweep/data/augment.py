"""Augmentation: parameters drawn for a whole batch on the CPU, applied to it at once on the device.

Geometry is one 2x2 matrix and one shift, so image and mask are warped once, together; colour is one 3x3 matrix and a
contrast. The numbers drawn for an image do not depend on what is switched on.
"""

import math
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


def recolor(image: Tensor, draws: Draws, low: float, high: float) -> Tensor:
    """Change brightness, saturation, hue and contrast of `b c h w` float; the result stays within `low` and `high`.

    Saturation and hue need three channels.
    """
    image = image - low if low else image
    if image.shape[1] == 3 and (draws.saturation != 1).any() | (draws.hue != 0).any():
        image = torch.einsum("bij,bjhw->bihw", _placed(_color_matrix(draws), image), image)
    elif (draws.brightness != 1).any():
        image = image * _column(draws.brightness, image)
    if (draws.contrast != 1).any():
        image = torch.lerp(image.mean(dim=(1, 2, 3), keepdim=True), image, _column(draws.contrast, image))
    image = image.clamp(0, high - low)
    return image + low if low else image


def blurred(image: Tensor, sigma: np.ndarray, largest: float = 0.0) -> Tensor:
    """Blur `b c h w` by Gaussians with each image's own standard deviation, in pixels.

    With `largest`, the most there can be, the kernel has one size in every batch: no image depends on its neighbours.
    """
    if not (sigma > 0).any():
        return image
    b, c = image.shape[:2]
    radius = max(1, math.ceil(3 * max(largest, float(sigma.max()))))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdims=True)).repeat(c, axis=0)
    weight = _placed(kernel, image)
    flat = F.pad(image.reshape(1, b * c, *image.shape[2:]), (radius,) * 4, mode="replicate")
    flat = F.conv2d(flat, weight[:, None, None, :], groups=b * c)
    flat = F.conv2d(flat, weight[:, None, :, None], groups=b * c)
    return flat.view_as(image)


def noised(image: Tensor, sd: np.ndarray, low: float, high: float, seed: int) -> Tensor:
    """Add Gaussian noise to `b c h w`, drawn on its device from `seed`: the only draw that depends on the device."""
    if not (sd > 0).any():
        return image
    generator = torch.Generator(image.device).manual_seed(seed)
    drawn = torch.randn(image.shape, generator=generator, device=image.device)
    return (image + drawn * _column(sd * (high - low), image)).clamp(low, high)


def _color_matrix(draws: Draws) -> np.ndarray:
    """Brightness times saturation times a rotation of the hue about the grey axis: `b 3 3`."""
    cos, sin = np.cos(draws.hue)[:, None, None], np.sin(draws.hue)[:, None, None]
    third, cross = np.full((3, 3), 1 / 3), np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = cos * np.eye(3) + (1 - cos) * third + sin * cross  # Rodrigues' formula
    s = draws.saturation[:, None, None]
    saturate = s * np.eye(3) + (1 - s) * np.array(LUMA)
    return np.asarray(draws.brightness[:, None, None] * saturate @ turn)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return _placed(values, like)[:, None, None, None]


def _placed(values: np.ndarray, like: Tensor) -> Tensor:
    """Bring numbers to an image's device and data type, without a wait for it."""
    return torch.from_numpy(values).to(like.dtype).to(like.device, non_blocking=True)
