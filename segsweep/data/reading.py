"""Decide how the masks of a data set are read, after all files are known: from codes to final values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data.masks import (
    ALPHA,
    ALPHA_SHIFT,
    COLOR,
    NO_DATA,
    OTHERS,
    PALETTE,
    Codes,
    colors,
    is_black,
    is_color,
    is_entry,
    numbers,
)

KEPT = 254  # values that are kept apart; a byte holds them and those without a number
# Of values that are no flat areas, the share of pixels that lie between two neighbours. Measured: 0.67 in Kvasir-SEG's
# JPEG masks, 0.98 in DSB2018's halved or blurred, 0.41 in CamVid's as coloured JPEG; 0 in them as they are.
RAMPS = 0.3
SOLID = 0.2  # share of a value's pixels inside of a flat area from which on it is no blend of its neighbours
BLENDS = 16  # different colours that form no areas, from which on masks are taken for smoothed, or saved with loss
LEVELS = 3  # the same of grey ones: with fewer they may be classes
SAME, SAME_GREY = 24, 16  # distance of colours, and of greys, in levels, that lossy formats make of one
NEAR = 40  # distance from the way between two colours that blends of them may have
FAR, FARTHEST = 100, 442  # from a colour on which something else than it must be meant; from black to white
LEFT = 0.01  # share of the pixels that blends of three colours have at most, which lie between no two
ANCHORS = 64  # colours that blends may belong to
# Of a thin class's colour: pixels at least, as a share of the blends, and at most the share of ramps.
OFTEN, RARE, THIN = 20, 0.05, 0.1
APART = 64  # levels between the two ends of smoothed grey masks
BETWEEN = 0.2  # share of the pixels that lie between the two ends, at most
STRAY = 0.005  # share of the pixels far outside of the two ends, at most
PEAK, MOST = 3, 0.3  # a class between two ends: times the pixels of the valleys beside it, share of all between


@dataclass(frozen=True)
class Census:
    """The codes in all masks of a data set, with their counts."""

    codes: Codes  # `n`, each once, rising
    counts: Codes  # `n`: pixels
    flat: Codes  # `n`: as `Mask.flat`
    ramp: Codes  # `n`: as `Mask.ramp`
    files: Sequence[Codes]  # the codes of each mask; of masks with thousands some of them
    lossy: bool = False  # a file may have changed values; else colours of areas are what they were

    def merged(self, codes: Codes) -> "Census":
        """Return the census of other codes, one for each of these."""
        merged, place = np.unique(codes, return_inverse=True)

        def summed(pixels: Codes) -> Codes:
            return np.bincount(place, pixels, len(merged)).astype(np.int64)

        return Census(merged, summed(self.counts), summed(self.flat), summed(self.ramp), self.files, self.lossy)

    def where(self, chosen: NDArray[np.bool_]) -> "Census":
        """Return the census of some of the codes."""
        return replace(
            self, codes=self.codes[chosen], counts=self.counts[chosen], flat=self.flat[chosen], ramp=self.ramp[chosen]
        )


@dataclass(frozen=True)
class Reading:
    """Turns the codes of files into final codes."""

    alpha: Literal["", "number", "shape"] = ""  # what counts where nothing but the alpha differs in a mask
    by: Literal["number", "colour", "level"] = "number"  # what counts of colours and of palettes' entries
    anchors: tuple[int, ...] = ()  # codes of the colours that blends belong to, the nearest
    reach: int = 0  # how far from the nearest they may lie, in levels
    levels: tuple[int, ...] = ()  # of smoothed grey masks: a value becomes the nearest of these
    kept: tuple[int, ...] = ()  # values that are kept apart where they are too many; the rest is `OTHERS`
    notes: tuple[str, ...] = ()  # what was decided, a line each
    lossy: bool = False  # `Census.lossy`
    middle: int | None = None  # between the two ends of smoothed grey masks, whether or not they are cut

    @property
    def blended(self) -> bool:
        """Tell whether masks were saved with loss, or coloured ones smoothed: no value is exact then."""
        return bool(self.anchors) or self.lossy

    @property
    def cut(self) -> int | None:
        """Where smoothed grey masks are cut; None where they are not."""
        return self.middle if len(self.levels) == 2 else None

    def final(self, codes: Codes) -> Codes:
        """Return the final code for each code of a file."""
        codes = _seen(codes, self.alpha)
        if self.by != "number":
            codes = _colored(codes) if self.by == "colour" else _levels(codes)
        if self.anchors:
            codes = _snapped(codes, self.anchors, self.reach)
        if self.levels:
            codes = _nearest(codes, self.levels)
        if self.kept:
            codes = np.where(np.isin(codes, [*self.kept, NO_DATA]), codes, OTHERS)
        return codes


def decide(census: Census, named: Sequence[int] = (), cut: bool = True) -> Reading:
    """Decide how masks are read.

    The alpha channel counts where nothing else differs. Palettes are read by their numbers, unless one number has two
    colours, or one colour two numbers in two files: then by colour, as wherever one file is coloured. Blends, which lie
    in no area and between their neighbours, become the nearest value that does, or that is among the `named` codes; of
    grey masks only with `cut`.
    """
    reading = replace(_of_kind(_of_alpha(census), census), lossy=census.lossy)
    final = census.merged(reading.final(census.codes))
    coloured = is_color(final.codes).any()
    reading = _of_colours(reading, final, named) if coloured else _of_greys(reading, final, named, cut)
    final = census.merged(reading.final(census.codes))
    special = np.isin(final.codes, [NO_DATA, OTHERS])
    if len(final.codes) - np.count_nonzero(special) > KEPT:
        order = np.lexsort((-final.counts, ~(is_black(final.codes) | np.isin(final.codes, named)), special))
        reading = replace(reading, kept=tuple(sorted(final.codes[order][:KEPT].tolist())))
    return reading


def _of_alpha(census: Census) -> Reading:
    """Whether the alpha channel counts."""
    files = [known for codes in census.files if len(known := codes[codes != NO_DATA])]
    lying = [codes for codes in files if (codes >= ALPHA).all()]
    if not any(len(codes) > 1 for codes in lying):
        return Reading()
    visible = np.unique(np.concatenate([_seen(codes, "") for codes in lying]))
    if len(lying) == len(files) and len(visible) == 1:
        note = "masks: read from the alpha channel; the other channels are the same everywhere"
        return Reading(alpha="number", notes=(note,))
    if any(len(codes) > 1 and is_black(_seen(codes, "")).any() for codes in lying):
        note = (
            f"masks: {len(lying)} are all black with a shape in the alpha channel; it is ignored, because other masks "
            f"have none"
        )
        return Reading(notes=(note,))
    note = (
        f"masks: {len(lying)} have a shape in the alpha channel: opaque pixels have the mask's colour, transparent "
        "pixels are background"
    )
    return Reading(alpha="shape", notes=(note,))


def _of_kind(reading: Reading, census: Census) -> Reading:
    """Whether numbers or colours count."""
    files = [_seen(codes, reading.alpha) for codes in census.files]
    entries, differ = [codes[is_entry(codes)] for codes in files], _palettes_differ(files)
    grey = all(_is_grey(codes).all() for codes in files)
    plain = {int(code) for codes in files for code in codes[codes < COLOR] if code >= 0}
    if not any(len(codes) for codes in entries):
        return replace(reading, by="colour") if not grey else reading
    own = {int(number) for codes in entries for number in numbers(codes)}
    shown = {int(level) for codes in entries for level in colors(codes)[:, 0]}
    why = "because one index has different colours in different files" if differ else "because other masks are coloured"
    if grey and plain and not plain <= own and plain <= shown:
        differ, why = True, "because files without a palette contain its colours"
    if not differ and not any(is_color(codes).any() for codes in files):
        return replace(reading, notes=(*reading.notes, "masks: palettes are read by index"))
    notes = (*reading.notes, f"masks: palettes are read by colour, {why}")
    return replace(reading, by="level" if grey else "colour", notes=notes)


def _of_colours(reading: Reading, census: Census, named: Sequence[int]) -> Reading:
    """Which colours blends belong to."""
    anchors = _anchors(census, named)
    if not anchors:
        return reading
    snapped = _snapped(census.codes, anchors, FAR)
    changed = census.counts[snapped != census.codes].sum()
    if not changed:
        return reading
    left = census.counts[is_color(snapped) & ~np.isin(snapped, anchors)].sum()
    note = (
        f"masks: {100 * changed / census.counts.sum():.2g} % of the pixels have blended colours, as in smoothed or "
        f"JPEG masks; each is read as the nearest pure or named colour"
    )
    reach = FAR if left > LEFT * census.counts.sum() else FARTHEST
    return replace(reading, anchors=anchors, reach=reach, notes=(*reading.notes, note))


def _of_greys(reading: Reading, census: Census, named: Sequence[int], cut: bool) -> Reading:
    """Where smoothed grey masks are cut, and which values stand for what lies between."""
    known = census.where((census.codes >= 0) & (census.codes < 65536))
    ends = two_ends(known, named)
    if not ends:
        return reading
    low, high = ends
    reading, margin = replace(reading, middle=middle(low, high)), (high - low) // 8
    levels = sorted({low, high, *(n for n in named if low + margin < n < high - margin)})
    near = ((abs(known.codes - low) <= margin) | (abs(known.codes - high) <= margin)).astype(float) @ known.counts
    if not cut or (len(levels) == 2 and (_peaks(known, low, high) or _few(known, low, high))):
        return reading
    nearest = f"read as the nearest of {', '.join(map(str, levels))}"
    note = (
        f"masks: {f'cut at {middle(low, high)}' if len(levels) == 2 else nearest}, because "
        f"{100 * near / known.counts.sum():.3g} % of the pixels are near {low} or {high}, as in JPEG or smoothed "
        f"masks; for another threshold: data.threshold=VALUE"
    )
    return replace(reading, levels=tuple(levels), notes=(*reading.notes, note))


def two_ends(census: Census, named: Sequence[int] = ()) -> tuple[int, int] | None:
    """Find the two ends of grey masks that were smoothed or saved with loss; None where they are labels.

    Nearly all pixels lie near the two ends; those between them, or near them, are no areas but ramps from one to the
    other. `census` is of numbers from 0 to 65535; those that are `named` say nothing against it.
    """
    codes, counts = census.codes, census.counts
    if len(codes) < 4:
        return None
    most = int(codes[counts.argmax()])
    far = abs(codes - most) >= APART
    if not far.any():
        return None
    known = [number for number in named if 0 <= number < 65536 and (abs(codes - number) <= SAME_GREY).any()]
    low, *_, high = sorted((most, int(codes[far][counts[far].argmax()]), *known))
    margin = (high - low) // 8
    at_ends = (abs(codes - low) <= margin) | (abs(codes - high) <= margin)
    outside = (codes < low - 3 * margin) | (codes > high + 3 * margin)
    noise = SAME_GREY if census.lossy else 0
    apart = np.ones(len(codes), bool)
    for number in named:
        apart &= abs(codes - number) > noise
    others = census.where(~np.isin(codes, [low, high]) & ((abs(codes - low) > 2) | (census.ramp > 0)))
    stray = counts[outside].sum() > STRAY * counts.sum()
    if stray or counts[~at_ends & apart].sum() > BETWEEN * counts.sum() or not len(others.codes):
        return None
    if not census.lossy and others.flat.sum() > SOLID * others.counts.sum():
        return None  # numbered objects have areas
    inner = census.where(~at_ends & apart)
    beside = min(int(np.count_nonzero(abs(others.codes - end) <= margin)) for end in (low, high))
    if not len(inner.codes) and not beside:
        return None  # blends lie at both ends, or between
    judged = inner if inner.counts.sum() else others
    ramps = judged.ramp.any() and judged.ramp.sum() >= RAMPS * (judged.counts.sum() - judged.flat.sum())
    if not ramps and not (census.lossy and beside >= LEVELS):  # noise at both ends is as good
        return None
    if inner.flat.sum() > SOLID * max(1, inner.counts.sum()) or not len(judged.codes):
        return None
    rarer = min(counts[abs(codes - end) <= noise].sum() for end in (low, high))
    if inner.counts.max(initial=0) > rarer / 2:
        return None
    return (0 if low <= 5 else low), (255 if 250 <= high <= 255 else high)


def _few(census: Census, low: int, high: int) -> bool:
    """Whether there are so few values between two ends that they may be classes."""
    return int(np.count_nonzero((census.codes > low) & (census.codes < high))) < LEVELS


def _peaks(census: Census, low: int, high: int) -> bool:
    """Whether a value between two ends stands out from those beside it, as a class does and blends do not."""
    margin = (high - low) // 8
    inside = (census.codes > low) & (census.codes < high)
    if np.count_nonzero(inside) < 3 * LEVELS:
        return False  # steps of a smoothed edge stand out, each for itself
    histogram = np.zeros(high - low + 1)
    histogram[census.codes[inside] - low] = census.counts[inside]
    near = np.convolve(histogram, np.ones(SAME_GREY + 1), "same")
    first, last = margin // 2, high - low - margin // 2
    for place in range(margin, high - low - margin):
        valleys = max(near[first:place].min(initial=np.inf), near[place:last].min(initial=np.inf))
        if near[place] > max(PEAK * valleys, MOST * histogram.sum()):
            return True
    return False


def middle(low: int, high: int) -> int:
    """Return where grey masks with these two ends are cut: this and all above is the high one."""
    return (low + high + 1) // 2


def _seen(codes: Codes, alpha: str) -> Codes:
    """What counts of codes with an alpha: it, what lies beside it, or its shape in the colour that lies beside it."""
    level, beside = codes >> ALPHA_SHIFT & 0xFFFF, codes & ((1 << ALPHA_SHIFT) - 1)
    inner = {"": beside, "number": level, "shape": np.where(level >= 128, beside, 0)}[alpha]
    return np.where(codes >= ALPHA, inner, codes)


def _is_grey(codes: Codes) -> NDArray[np.bool_]:
    red, green, blue = colors(codes).T
    return np.asarray((codes < COLOR) | ((red == green) & (green == blue)))


def _palettes_differ(files: Sequence[Codes]) -> bool:
    entries = [codes[is_entry(codes)] for codes in files]
    pairs = np.unique(np.concatenate(entries)) if entries else np.zeros(0, np.int64)
    if len(np.unique(numbers(pairs))) < len(pairs):
        return True
    shared, times = np.unique(pairs & 0xFFFFFF, return_counts=True)
    for color in shared[times > 1]:
        # A file that has both tells them apart by number: its palette is no picture of its classes.
        if not any(np.count_nonzero(codes & 0xFFFFFF == color) > 1 for codes in entries):
            return True
    return False


def _colored(codes: Codes) -> Codes:
    """Colours alone: a mask that is all grey, of 8 or of 16 bits, counts as colour, too, where others are coloured."""
    levels = np.where((codes > 255) & (codes < 65536) & (codes % 257 == 0), codes // 257, codes)
    able = ((levels >= 0) & (levels <= 255)) | is_entry(levels)
    red, green, blue = colors(levels).T
    return np.where(able, COLOR | red << 16 | green << 8 | blue, codes)


def _levels(codes: Codes) -> Codes:
    """Numbers alone: of grey colours their level."""
    return np.where(is_entry(codes) | is_color(codes), codes & 255, codes)


def _anchors(census: Census, named: Sequence[int]) -> tuple[int, ...]:
    """The colours that blends belong to; none where masks have no blends.

    They are the named ones, those with areas by their size, and frequent ones between no neighbours, as thin lines are.
    """
    census = census.where(is_color(census.codes))
    codes, counts = census.codes, census.counts
    chosen = sorted({code for code in named if COLOR <= code < PALETTE})
    solid = census.flat >= SOLID * counts
    centers = np.array(chosen + codes[solid][np.argsort(-census.flat[solid])][:ANCHORS].tolist(), np.int64)
    if not len(centers):
        return ()
    same = SAME if census.lossy else 0
    near = _distances(codes, centers).min(1) <= same
    loose = census.where(~solid & ~np.isin(codes, chosen) & ~near)
    noise = np.count_nonzero(near & ~np.isin(codes, centers) & (counts < RARE * counts.max()))
    blended = len(loose.codes) >= BLENDS and loose.ramp.sum() >= RAMPS * loose.counts.sum()
    if not blended and noise < BLENDS:
        return ()
    exact = (counts >= max(OFTEN, RARE * loose.counts.sum())) & (census.ramp < THIN * counts)
    for index in [*np.argsort(-census.flat, kind="stable"), *np.argsort(-counts, kind="stable")]:
        if len(chosen) >= ANCHORS:
            break
        if not (solid[index] or exact[index]):
            continue
        if census.lossy and len(chosen) > 1 and _between(codes[index : index + 1], chosen)[0][0] < NEAR:
            continue  # where values were changed, blends have areas, too
        if not chosen or _distances(codes[index : index + 1], np.array(chosen)).min() > same:
            chosen.append(int(codes[index]))
    return tuple(sorted(chosen)) if len(chosen) > 1 else ()


def _distances(codes: Codes, anchors: Codes) -> NDArray[np.float64]:
    """`n m`, Euclidean, in levels."""
    points, ends = colors(codes).astype(np.float32), colors(anchors).astype(np.float32)
    return np.stack([np.sqrt(((points - end) ** 2).sum(1)) for end in ends], 1)


def _between(codes: Codes, chosen: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """How far each colour is from the nearest way between two others, `n` in levels, and which end is nearer, `n`."""
    points, ends = colors(codes).astype(np.float32), colors(np.array(chosen, np.int64)).astype(np.float32)
    least, nearer = np.full(len(codes), np.inf, np.float32), np.zeros(len(codes), np.int64)
    for i in range(len(ends)):
        for j in range(i):
            way = ends[i] - ends[j]
            along = ((points - ends[j]) @ way / (way @ way)).clip(0, 1)
            off = np.sqrt(((points - ends[j] - along[:, None] * way) ** 2).sum(1))
            better = off < least
            least[better], nearer[better] = off[better], np.where(along[better] < 0.5, j, i)
    return least, nearer


def _snapped(codes: Codes, chosen: Sequence[int], reach: int) -> Codes:
    """Blends become the nearer anchor of the two they lie between, or one within reach; other colours stay."""
    anchors = np.array(chosen, np.int64)
    able = is_color(codes)
    distances = _distances(codes[able], anchors)
    target, closest = distances.argmin(1), distances.min(1)
    least = np.where(closest <= SAME, 0.0, np.where(closest <= reach, NEAR, np.inf))
    off, end = _between(codes[able], chosen)
    better = (off < np.minimum(least, NEAR)) & (least > 0)
    target[better], least[better] = end[better], off[better]
    result = codes.copy()
    result[able] = np.where(np.isfinite(least), anchors[target], codes[able])
    return result


def _nearest(codes: Codes, levels: Sequence[int]) -> Codes:
    """The nearest level; of two equally near ones the higher."""
    known, between = np.array(levels), np.array([middle(*pair) for pair in pairwise(levels)])
    grey = (codes >= 0) & (codes < 65536)
    return np.where(grey, known[np.searchsorted(between, codes, "right")], codes)
