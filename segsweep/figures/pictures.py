"""Pictures of predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segsweep import metrics

VOID = 255  # a class index: pixels that do not count, as everywhere behind `segsweep.data.labels`
# Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/); grey is background.
PALETTE = (
    *((90, 90, 90), (230, 159, 0), (86, 180, 233), (0, 158, 115)),
    *((240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
# Of each class index: after the palette's come its lighter and darker shades, again and again; void is black.
_HUES = np.array(PALETTE[1:], np.float32)
_SHADES = np.concatenate([_HUES, _HUES * 0.5 + 127, _HUES * 0.55])
COLORS = np.concatenate([[PALETTE[0]], *[_SHADES] * 13])[:256].astype(np.float32)
COLORS[VOID] = 0
# Over a dark image every class's colour can be told from it; stripes, from any colour.
DARKENED, STRIPES = 0.4, (255, 255, 255)
ERRORS = [("errors: missed pixels, in their class's colour", None), ("stripes: false positives", STRIPES)]
SMALLEST, LARGEST, WIDEST = 192, 512, 1600  # pixels of a panel's longer side, and of all panels of a row
MARGIN, HEADER, FONT, CAPTION = 6, 22, 14, 300  # pixels; a narrow panel gets so much room for what stands above it
FRAME = (130, 130, 130)


@dataclass(frozen=True)
class Compared:
    """An image `h w c` with its title, truth and prediction: `h w` class indices; VOID in the truth does not count."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def comparison(
    rows: Sequence[Compared], names: Sequence[str], low: float, high: float, columns: int = 4
) -> Image.Image:
    """Draw a legend, and input, truth, prediction with its IoU and errors of each image, one image below the other.

    Args:
        names: of the classes.
        low, high: of the pixels' values: black and white.
        columns: 4: side by side; 2: in a square.
    """
    strips = [_panels(row, names, low, high, columns) for row in rows]
    seen = np.unique(np.concatenate([mask.ravel() for row in rows for mask in (row.truth, row.prediction)]))
    entries = [(names[index] if index != VOID else "void", COLORS[index]) for index in seen if index]
    if len(names) > 2 and 0 in seen:
        entries.append((f"{names[0]}: not painted", None))
    entries += ERRORS
    legend = _legend(entries, max(strip.width for strip in strips))
    sheet = Image.new("RGB", (legend.width, sum(strip.height for strip in strips) + legend.height), "white")
    top = 0
    for part in (legend, *strips):
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _panels(row: Compared, names: Sequence[str], low: float, high: float, columns: int) -> Image.Image:
    rgb = shown(row.image, low, high)
    side, largest = max(rgb.shape[:2]), min(LARGEST, WIDEST // columns)
    factor = -(-SMALLEST // side) if side < SMALLEST else min(1.0, largest / side)
    height, width = (max(1, round(side * factor)) for side in rgb.shape[:2])
    score = caption(row.truth, row.prediction, len(names))
    panels = [
        (row.title, rgb),
        ("truth", overlay(rgb, row.truth)),
        (f"prediction · {score}", overlay(rgb, np.where(row.truth == VOID, VOID, row.prediction))),
        ("errors", _errors(rgb, row.truth, row.prediction, max(1, round(3 / factor)))),
    ]
    font = ImageFont.load_default(size=FONT)
    said = [min(CAPTION, math.ceil(font.getlength(title))) for title, _ in panels]
    cells = [max(width, *said[i::columns]) for i in range(columns)]
    lines = -(-len(panels) // columns)
    sheet = Image.new("RGB", (sum(cells) + (columns + 1) * MARGIN, lines * (height + HEADER) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    resample = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BILINEAR
    for i, (title, panel) in enumerate(panels):
        column = i % columns
        left, top = sum(cells[:column]) + (column + 1) * MARGIN, i // columns * (height + HEADER)
        _framed(sheet, Image.fromarray(panel).resize((width, height), resample), (left, top + HEADER))
        pen.text((left, top + 3), _cut(title, cells[column], font), fill="black", font=font)
    return sheet


def _framed(sheet: Image.Image, panel: Image.Image, at: tuple[int, int]) -> None:
    """Paste a panel, with a line around it: white in it may be the sheet's own."""
    left, top = at
    sheet.paste(panel, at)
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, left + panel.width, top + panel.height), outline=FRAME)


def _errors(rgb: np.ndarray, truth: np.ndarray, prediction: np.ndarray, stripe: int) -> np.ndarray:
    """Paint what is wrong over the darkened image: the class that was missed, and stripes where there is none.

    Args:
        stripe: their width in pixels.
    """
    painted = np.repeat(rgb.mean(2, keepdims=True), 3, axis=2) * DARKENED
    wrong, (rows, columns) = truth != prediction, np.indices(truth.shape)
    missed = wrong & (truth != 0)
    painted[missed] = COLORS[truth[missed]]
    painted[wrong & (truth == 0) & ((rows + columns) // stripe % 2 == 0)] = STRIPES
    return np.asarray(painted.round(), np.uint8)


def contact_sheet(pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], names: Sequence[str]) -> Image.Image:
    """Draw images next to their masks, with a legend, to check that they belong together.

    Args:
        pairs: title, image `h w c` and class indices `h w` of each.
        names: of the classes.
    """
    side, columns, font = 160, 4, ImageFont.load_default(size=11)
    width = 2 * side + 2 * MARGIN
    void = [("void", COLORS[VOID])] if any((mask == VOID).any() for _, _, mask in pairs) else []
    legend = _legend([*zip(names, COLORS, strict=False), *void], columns * width)
    longest = [side * mask.shape[0] / max(mask.shape) for _, _, mask in pairs]
    heights = [HEADER + int(max(longest[i : i + columns])) for i in range(0, len(pairs), columns)]
    tops = np.cumsum([legend.height, *heights])
    sheet = Image.new("RGB", (columns * width, int(tops[-1])), "white")
    sheet.paste(legend, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for i, (title, image, classes) in enumerate(pairs):
        left, top = (i % columns) * width + MARGIN, int(tops[i // columns])
        low, high = (0.0, 255.0) if image.dtype == np.uint8 else np.percentile(image, (0.5, 99.5))
        rgb = shown(image, low, high)
        for j, panel in enumerate((rgb, overlay(rgb, classes))):
            tile = Image.fromarray(panel)
            tile.thumbnail((side, side), Image.Resampling.BILINEAR)
            _framed(sheet, tile, (left + j * (side + 2), top + HEADER - 4))
        pen.text((left, top), _cut(title, 2 * side, font), fill="black", font=font)
    return sheet


def _legend(entries: Sequence[tuple[str, Any]], width: int) -> Image.Image:
    """Draw names beside their colours, those that have one, in as many lines as it takes."""
    font = ImageFont.load_default(size=FONT)
    places, x, y = [], MARGIN, MARGIN
    for name, color in entries:
        long = round(font.getlength(name)) + (18 if color is None else 38)
        if x + long > width:
            x, y = MARGIN, y + HEADER
        places.append((x, y, name, color))
        x += long
    sheet = Image.new("RGB", (width, y + HEADER + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, name, color in places:
        if color is not None:
            pen.rectangle((x, y + 1, x + 14, y + 15), fill=tuple(int(v) for v in color), outline="black")
            for shift in (4, 9, 14, 19, 24) if color is STRIPES else ():
                ends = (x + max(0, shift - 14), y + 1 + min(14, shift), x + min(14, shift), y + 1 + max(0, shift - 14))
                pen.line(ends, fill="black", width=2)
            x += 20
        pen.text((x, y), name, fill="black", font=font)
    return sheet


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = "…" + text[2:]
    return text


def shown(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Bring `h w c` from low to high to uint8 `h w 3`; of other than one or three channels the first are shown."""
    image = image[..., : 3 if image.shape[2] >= 3 else 1]
    with np.errstate(over="ignore"):  # far outside is black or white
        scaled = (np.clip((image.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


def indexed(classes: np.ndarray) -> Image.Image:
    """Return class indices, uint8 `h w`, as an image with a palette: viewers show colours, programs read indices."""
    image = Image.fromarray(classes)
    image.putpalette(COLORS.astype(np.uint8).tobytes())
    return image


def overlay(rgb: np.ndarray, classes: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Paint classes over an image, uint8 `h w 3`; background stays, borders are drawn full, void is dark."""
    paint = COLORS[classes]
    share = np.where(classes == 0, 0.0, np.where(classes == VOID, 0.7, opacity))[..., None]
    mixed = rgb * (1 - share) + paint * share
    border = np.zeros(classes.shape, bool)
    for below, above in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        changed = classes[below] != classes[above]
        border[below] |= changed
        border[above] |= changed
    edge = border & (classes != 0) & (classes != VOID)
    mixed[edge] = paint[edge]
    return np.asarray(mixed.round(), np.uint8)


def caption(truth: np.ndarray, prediction: np.ndarray, classes: int) -> str:
    """Return an image's IoU (`metrics.image_iou`) from class indices `h w` as text; if it is undefined, the reason."""
    counted = truth != VOID
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted]
    iou = metrics.image_iou(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))
    if np.isnan(iou):
        return "no IoU (empty)" if counted.any() else "no IoU (void)"
    return f"IoU {iou:.4f}" if classes == 2 else f"mean IoU {iou:.4f}"
