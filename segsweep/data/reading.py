"""How the masks of a data set are read, decided once all are known: the codes of files to the values that count."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data.masks import ALPHA, ALPHA_SHIFT, COLOR, NO_DATA, OTHERS, PALETTE, Codes

KEPT = 254  # values that are kept apart; a byte holds them and those without a number
SAME = 20  # distance of flat colours, in levels, that lossy formats make of one
NEAR = 40  # distance from the way between two colours that blends of them may have
FAR, FARTHEST = 100, 442  # distance from a colour at which something else than it must be meant; from black to white
FEW = 0.01  # share of the pixels that blends of three colours have at most, which lie between no two
SOLID = 0.2  # share of a value's pixels inside of a flat area from which on it is no blend of its neighbours
BLENDS = 16  # different colours that form no areas, from which on masks are taken for smoothed, or saved with loss
LEVELS, TAIL = 8, 3  # the same of grey ones between two ends, and beside each of them
ANCHORS = 32  # colours that blends may belong to
APART = 64  # levels between the two ends of smoothed grey masks
SHARE = 0.2  # of the pixels that lie between the two ends, at most


@dataclass(frozen=True)
class Census:
    """What all masks of a data set hold together."""

    codes: Codes  # `n`, each once, rising
    counts: Codes  # `n`: pixels
    flat: Codes  # `n`: pixels whose neighbours have the same code
    files: Sequence[Codes]  # the codes of each mask


@dataclass(frozen=True)
class Reading:
    """Turns the codes of files into those that count."""

    alpha: bool = False  # masks lie in the alpha channel, the other channels are the same everywhere
    by: Literal["number", "colour", "level"] = "number"  # what counts of colours and of palettes' entries
    anchors: tuple[int, ...] = ()  # codes of the colours that blends belong to, the nearest
    reach: int = 0  # how far from the nearest they may lie, in levels
    ends: tuple[int, int] | None = None  # of smoothed grey masks: a value becomes the nearer one
    kept: tuple[int, ...] = ()  # values that are kept apart where they are too many; the rest is `OTHERS`
    notes: tuple[str, ...] = ()  # what was decided, a line each

    def final(self, codes: Codes) -> Codes:
        """Return the code that counts for each code of a file."""
        codes = _seen(codes, self.alpha)
        if self.by != "number":
            codes = _colored(codes) if self.by == "colour" else _levels(codes)
        if self.anchors:
            codes = _snapped(codes, self.anchors, self.reach)
        if self.ends:
            codes = _cut(codes, *self.ends)
        if self.kept:
            codes = np.where(np.isin(codes, [*self.kept, NO_DATA]), codes, OTHERS)
        return codes


def decide(census: Census, named: Sequence[int] = (), cut: bool = True) -> Reading:
    """Decide how masks are read.

    The alpha channel counts where nothing else differs. Palettes are read by their numbers, unless one number has two
    colours, or one colour two numbers in two files: then by colour, as wherever one file is coloured. Blends, which lie
    nowhere flat, become the nearest value that does, or that is among the `named` codes; of grey masks only with `cut`.
    """
    notes: list[str] = []
    reading = Reading(alpha=_in_alpha(census.files))
    if reading.alpha:
        notes.append("masks: read from the alpha channel; the other channels are the same everywhere")
    files = [_seen(codes, reading.alpha) for codes in census.files]
    differ, coloured = _palettes_differ(files), any(_is_color(codes).any() for codes in files)
    if differ or coloured:
        grey = all(_is_grey(codes).all() for codes in files)
        reading = replace(reading, by="level" if grey else "colour")
    if any(_is_palette(codes).any() for codes in files):
        why = "the same number has another colour from file to file" if differ else "as others are coloured"
        by_number = reading.by == "number"
        notes.append("masks: palettes are read by index" if by_number else f"masks: palettes are read by colour, {why}")
    codes, counts, flat = _merged(reading, census)
    if _is_color(codes).any():
        anchors = _anchors(codes, counts, flat, named)
        snapped = _snapped(codes, anchors, FAR) if anchors else codes
        if changed := counts[snapped != codes].sum():
            far = counts[_is_color(snapped) & ~np.isin(snapped, anchors)].sum() > FEW * counts.sum()
            reading = replace(reading, anchors=anchors, reach=FAR if far else FARTHEST)
            notes.append(
                f"masks: {100 * changed / counts.sum():.2g} % of the pixels have blended colours, as smoothed or saved "
                "with loss; each counts as the nearest flat or named one"
            )
    elif cut and (ends := two_ends(codes, counts, flat)):
        reading = replace(reading, ends=ends)
        between = counts[(codes > ends[0]) & (codes < ends[1])].sum() / counts.sum()
        notes.append(
            f"masks: cut at {middle(*ends)}, since all but {100 * between:.2g} % of the pixels are {ends[0]} or "
            f"{ends[1]}, as in masks saved as JPEG or smoothed; another cut: data.threshold=VALUE"
        )
    codes, counts, _ = _merged(reading, census)
    special = codes < 0
    if len(codes) - np.count_nonzero(special) > KEPT:
        first = np.isin(codes, [0, COLOR, *named])
        order = np.lexsort((-counts, ~first))
        kept = sorted(codes[order][:KEPT].tolist())
        reading = replace(reading, kept=tuple(kept))
    return replace(reading, notes=tuple(notes))


def two_ends(codes: Codes, counts: Codes, flat: Codes) -> tuple[int, int] | None:
    """Find the two ends of grey masks that were smoothed or saved with loss; None where they are labels.

    Nearly all pixels lie at the two ends, and those between them have many values and form no areas.
    """
    known = (codes >= 0) & (codes < 65536)
    codes, counts, flat = codes[known], counts[known], flat[known]
    if len(codes) < LEVELS + 2:
        return None
    most = codes[counts.argmax()]
    far = np.abs(codes - int(most)) >= APART
    if not far.any():
        return None
    low, high = sorted((int(most), int(codes[far][counts[far].argmax()])))
    margin = (high - low) // 8
    between = (codes > low + margin) & (codes < high - margin)
    beyond = (codes < low - margin) | (codes > high + margin)
    total = counts.sum()
    blended = counts[between].sum()
    tails = min(int(np.count_nonzero((np.abs(codes - end) <= margin) & (codes != end))) for end in (low, high))
    if beyond.any() or (np.count_nonzero(between) < LEVELS and tails < TAIL) or blended > SHARE * total:
        return None
    rarer = min(counts[codes == low].item(), counts[codes == high].item())
    if flat[between].sum() > SOLID * blended or counts[between].max(initial=0) > rarer / 4:
        return None
    return (0 if low <= 5 else low), (255 if 250 <= high <= 255 else high)


def _seen(codes: Codes, alpha: bool) -> Codes:
    """The alpha, or what lies beside it."""
    has_alpha = codes >= ALPHA
    inner = (codes >> ALPHA_SHIFT & 0xFFFF) if alpha else codes & ((1 << ALPHA_SHIFT) - 1)
    return np.where(has_alpha, inner, codes)


def _in_alpha(files: Sequence[Codes]) -> bool:
    return bool(files) and all((codes >= ALPHA).all() for codes in files) and any(len(codes) > 1 for codes in files)


def _is_palette(codes: Codes) -> NDArray[np.bool_]:
    return (codes >= PALETTE) & (codes < ALPHA)


def _is_color(codes: Codes) -> NDArray[np.bool_]:
    return (codes >= COLOR) & (codes < PALETTE)


def _is_grey(codes: Codes) -> NDArray[np.bool_]:
    red, green, blue = _rgb(codes).T
    return np.asarray((codes < COLOR) | ((red == green) & (green == blue)))


def _rgb(codes: Codes) -> NDArray[np.int64]:
    """`n 3`; without meaning for numbers."""
    return np.stack([codes >> shift & 255 for shift in (16, 8, 0)], -1)


def _palettes_differ(files: Sequence[Codes]) -> bool:
    entries = [codes[_is_palette(codes)] for codes in files]
    pairs = np.unique(np.concatenate(entries)) if entries else np.zeros(0, np.int64)
    numbers, colors = pairs >> 24 & 0xFFFF, pairs & 0xFFFFFF
    if len(np.unique(numbers)) < len(pairs):
        return True
    shared, times = np.unique(colors, return_counts=True)
    for color in shared[times > 1]:
        # A file that has both tells them apart by number: its palette is no picture of its classes.
        if not any(np.count_nonzero(codes & 0xFFFFFF == color) > 1 for codes in entries):
            return True
    return False


def _colored(codes: Codes) -> Codes:
    """Colours alone: a mask that is all grey counts as colour, too, where others are coloured."""
    grey = (codes >= 0) & (codes <= 255)
    colors = np.where(grey, COLOR | codes * 0x010101, codes)
    return np.where(_is_palette(codes), COLOR | codes & 0xFFFFFF, colors)


def _levels(codes: Codes) -> Codes:
    """Numbers alone: of grey colours their level."""
    return np.where(_is_palette(codes) | _is_color(codes), codes & 255, codes)


def _merged(reading: Reading, census: Census) -> tuple[Codes, Codes, Codes]:
    """The census of the codes that count."""
    codes, place = np.unique(reading.final(census.codes), return_inverse=True)
    counts, flat = (
        np.bincount(place, weights, len(codes)).astype(np.int64) for weights in (census.counts, census.flat)
    )
    return codes, counts, flat


def _anchors(codes: Codes, counts: Codes, flat: Codes, named: Sequence[int]) -> tuple[int, ...]:
    """The colours that blends belong to: named ones, and flat ones by their area; none where masks have no blends."""
    chosen = sorted({code for code in named if COLOR <= code < PALETTE})
    solid = flat >= SOLID * counts
    blended = np.count_nonzero(~solid & ~np.isin(codes, chosen) & _is_color(codes))
    if blended < max(BLENDS, int(np.count_nonzero(solid))):
        return ()
    for index in np.argsort(-flat, kind="stable"):
        code = int(codes[index])
        if not solid[index] or len(chosen) >= ANCHORS or not COLOR <= code < PALETTE:
            continue
        if not chosen or _distances(codes[index : index + 1], np.array(chosen)).min() > SAME:
            chosen.append(code)
    return tuple(sorted(chosen)) if len(chosen) > 1 else ()


def _distances(codes: Codes, anchors: Codes) -> NDArray[np.float64]:
    """`n m`, Euclidean, in levels."""
    return np.asarray(np.sqrt(((_rgb(codes)[:, None] - _rgb(anchors)[None]) ** 2).sum(-1)))


def _snapped(codes: Codes, colors: Sequence[int], reach: int) -> Codes:
    """Blends become the nearer anchor of the two they lie between, or one within reach; other colours stay."""
    anchors = np.array(colors, np.int64)
    able = _is_color(codes)
    points, ends = _rgb(codes[able]).astype(float), _rgb(anchors).astype(float)
    distances = _distances(codes[able], anchors)
    target, closest = distances.argmin(1), distances.min(1)
    least = np.where(closest <= SAME, 0.0, np.where(closest <= reach, NEAR, np.inf))
    for i in range(len(anchors)):
        for j in range(i):
            way = ends[i] - ends[j]
            along = ((points - ends[j]) @ way / (way @ way)).clip(0, 1)
            off = np.sqrt(((points - ends[j] - along[:, None] * way) ** 2).sum(1))
            better = off < np.minimum(least, NEAR)
            target[better] = np.where(along[better] < 0.5, j, i)
            least[better] = off[better]
    result = codes.copy()
    result[able] = np.where(np.isfinite(least), anchors[target], codes[able])
    return result


def _cut(codes: Codes, low: int, high: int) -> Codes:
    grey = (codes >= 0) & (codes < 65536)
    return np.where(grey, np.where(codes >= middle(low, high), high, low), codes)


def middle(low: int, high: int) -> int:
    """Return where grey masks with these two ends are cut: this and all above is the high one."""
    return (low + high + 1) // 2
