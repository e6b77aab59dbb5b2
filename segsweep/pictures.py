"""Pictures of predictions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/); grey is background.
PALETTE = (
    (90, 90, 90),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
SMALLEST, LARGEST = 192, 512  # pixels of a panel's longer side
MARGIN, HEADER = 6, 20


def triptych(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, names: Sequence[str], low: float, high: float
) -> Image.Image:
    """Input, truth and prediction side by side, with the image's IoU of each class.

    Args:
        image: `h w c`, c 1 or 3, with values from low to high.
        truth, prediction: `h w` class indices; 255 in the truth is void and left dark.
        names: of the classes.
    """
    grey = (np.clip((image.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    rgb = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey
    panels = [rgb, overlay(rgb, truth), overlay(rgb, np.where(truth == 255, 255, prediction))]
    factor = _factor(max(rgb.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in rgb.shape[:2])
    sheet = Image.new("RGB", (3 * width + 4 * MARGIN, height + HEADER + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for i, (panel, title) in enumerate(
        zip(panels, ("input", "truth", f"prediction · {_scores(truth, prediction, names)}"), strict=False)
    ):
        left = MARGIN + i * (width + MARGIN)
        resample = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BILINEAR
        sheet.paste(Image.fromarray(panel).resize((width, height), resample), (left, HEADER))
        pen.text((left, 3), title, fill="black", font=font)
    return sheet


def overlay(rgb: np.ndarray, classes: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Classes painted over an image, uint8 `h w 3`; background stays, borders are drawn full, void is dark."""
    colors = np.array([PALETTE[0], *(PALETTE[1 + i % 7] for i in range(254)), (0, 0, 0)], np.float32)
    paint = colors[classes]
    share = np.where(classes == 0, 0.0, np.where(classes == 255, 0.7, opacity))[..., None]
    mixed = rgb * (1 - share) + paint * share
    border = np.zeros(classes.shape, bool)
    for axis in (0, 1):
        changed = np.diff(classes.astype(np.int16), axis=axis) != 0
        border[(slice(None), slice(1, None)) if axis else slice(1, None)] |= changed
        border[(slice(None), slice(None, -1)) if axis else slice(None, -1)] |= changed
    edge = border & (classes != 0) & (classes != 255)
    mixed[edge] = paint[edge]
    return mixed.round().astype(np.uint8)


def _scores(truth: np.ndarray, prediction: np.ndarray, names: Sequence[str]) -> str:
    counted = truth != 255
    parts = []
    for index in range(1, len(names)):
        of_truth, of_prediction = (truth == index) & counted, (prediction == index) & counted
        union = (of_truth | of_prediction).sum()
        if of_truth.any():
            parts.append((names[index], (of_truth & of_prediction).sum() / union))
    if len(names) == 2:
        return f"IoU {parts[0][1]:.2f}" if parts else "no foreground"
    return f"mean IoU {np.mean([score for _, score in parts]):.2f}" if parts else "background only"


def _factor(side: int) -> float:
    if side < SMALLEST:
        return -(-SMALLEST // side)
    return min(1.0, LARGEST / side)
