"""Rules that make the plan from the data: canvas, zoom, crops, images in an epoch and in a batch.

Pure: from a fingerprint to values, each with its reason. What was asked for is never changed, and later rules go by it.
The model is nnU-Net's planner (https://doi.org/10.1038/s41592-020-01008-z): a fingerprint, fixed rules, nothing
searched. What a constant was measured on stands beside it (docs/log.md, `benchmarks/choosing.py`): one seed each, the
validation images of a few sets, five or ten minutes on one CPU core. The others are judgement.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segsweep import console
from segsweep.config.data import OF_CROPS, ZOOMS
from segsweep.config.keys import named
from segsweep.config.schema import EPOCHS, FADING, VIEWS
from segsweep.config.settings import Settings
from segsweep.data.fingerprint import ClassParts, Fingerprint
from segsweep.data.geometry import Size
from segsweep.nn.tiles import OVERLAP, limit, pixels

CANVAS = 256  # pixels a side; 384 lost 5.6 points on one set and none on another
STEP = 32  # of a canvas's sides: the stride of the deepest map of most encoders
THICK = 16  # pixels that the thinnest class keeps when images are shrunk; from six sets
SHORT = 128  # pixels that the shorter side keeps
UNLIKE = 1.5  # largest image over the smallest: from here sizes differ
LESS = 0.8  # by which the objects' spread has to shrink before each image gets a scale of its own
SHORTEST, LONGEST = 180, 1800  # images that an epoch shows at least, and at most by several passes
FORWARD = 1 / 3  # time of scoring a pixel, of training on one: a forward pass of forward and backward
VALIDATION = 1 / 5  # share of an epoch that validation may take
FIRST = 480.0  # seconds that a first training may take
FEWEST = 3  # epochs that it has at least
BESIDE = 1.2  # time of a step with its data and the optimizer, of forward and backward passes alone
SELDOM = 0.5  # of random crops: a class that fewer of them show is seldom seen
SHOWN_MORE = 0.33  # share of crops that are then laid over a class: nnU-Net's
BATCH = 16  # 8 was 0.6 points worse on the mean of six sets
VARIES = 1.3  # factor by which objects' scale varies between images: from here larger zooms; from three sets
SMALL_ZOOMS, LARGE_ZOOMS = 0.25, 0.5  # augmentation.scale
SMALL_SHIFTS, LARGE_SHIFTS = 0.05, 0.1  # augmentation.translate


@dataclass(frozen=True)
class Decision:
    """A key that was `auto`, its value, and the reason."""

    key: str
    value: Any
    why: str

    def __str__(self) -> str:
        value = f"[{','.join(map(str, self.value))}]" if isinstance(self.value, list) else self.value
        return f"{self.key}={value:g}" if isinstance(value, float) else f"{self.key}={value}"


@dataclass(frozen=True)
class TrainingPlan:
    """Settings, and those of their values that were decided, in the order of deciding."""

    settings: Settings
    decisions: tuple[Decision, ...] = ()

    def deciding(self, key: str, value: Any, why: str) -> "TrainingPlan":
        """Return the plan with this value, if the key says `auto`; else as it is."""
        section, name = key.split(".")
        return self.fixing(key, value, why) if getattr(getattr(self.settings, section), name) == "auto" else self

    def fixing(self, key: str, value: Any, why: str) -> "TrainingPlan":
        """Return the plan with this value."""
        section, name = key.split(".")
        changed = replace(getattr(self.settings, section), **{name: value})
        return replace(self.quietly(**{section: changed}), decisions=(*self.decisions, Decision(key, value, why)))

    def quietly(self, **sections: Any) -> "TrainingPlan":
        """Return the plan with other sections of the settings, and no word about it."""
        return replace(self, settings=replace(self.settings, **sections))

    def table(self) -> str:
        """Return a line for each decision."""
        width = max((len(str(decision)) for decision in self.decisions), default=0)
        rows = [f"{decision!s:{width}}  {decision.why}" for decision in self.decisions]
        return console.table([("plan" * (not i), row) for i, row in enumerate(rows)])


def plan_data(wanted: Settings, found: Fingerprint, varied: Collection[str] = ()) -> TrainingPlan:
    """Decide the keys that depend only on the data and are the same for all encoders.

    Args:
        varied: keys and groups that a sweep varies: they are not decided, nor are keys that depend on them.
    """
    plan, left = TrainingPlan(wanted), set(varied)
    for key, (rule, reads) in RULES.items():
        if any(named(name, left) for name in (key, *reads)):
            left.add(key)
        else:
            plan = rule(plan, found)
    return plan


def _resize(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    """Crop with one zoom for all images, or fit each into the canvas if larger images have larger objects."""
    data, sizes = plan.settings.data, f"{found.width} x {found.height} px"
    equal = all(side.largest == side.least for side in (found.height, found.width))
    if data.of_crops:
        return plan.deciding("data.resize", "crop", f"data.{data.of_crops[0]} works only with crops")
    if all(side.largest <= UNLIKE * side.least for side in (found.height, found.width)):
        have = f"all images have {sizes}" if equal else f"images have similar sizes, {sizes}"
        return plan.deciding("data.resize", "crop", f"{have}: one zoom suits all of them")
    if found.spread is None or found.spread_fitted is None:
        return plan.deciding("data.resize", "crop", "it is not known whether larger images have larger objects")
    unlike, then = 2**found.spread, 2**found.spread_fitted
    differs = f"their scale differs by a factor of {unlike:.2f} now, and of {then:.2f} then"
    if found.spread_fitted >= LESS * found.spread:
        change = "less alike" if then > unlike else "little more alike"
        why = f"resizing images to one size would make objects {change}: {differs}"
        return plan.deciding("data.resize", "crop", why)
    fitted, thin = _fitted(found), _thinnest(found)
    if thin and fitted < 1 and fitted * thin.thickness < THICK:
        left = f"{thin.thickness:.0f} px thick, would have {fitted * thin.thickness:.0f}"
        return plan.deciding("data.resize", "crop", f"{thin.name}, {left} px after images of {sizes} are resized")
    return plan.deciding("data.resize", "pad", f"resizing images to one size makes objects more alike: {differs}")


def _zoom(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    """Shrink images until one fits the canvas, unless thin objects or the shorter side would get too small."""
    if plan.settings.data.resize != "crop":
        return plan.deciding("data.zoom", 1.0, "used only with data.resize=crop")
    parts, thin = _parts(plan, found), _thinnest(found)
    whole = min(1.0, *parts)
    if whole == 1:
        return plan.deciding("data.zoom", 1.0, "a typical image fits the canvas as it is")
    if thin is None:
        return plan.deciding(
            "data.zoom", 1.0, "no training image has an object, so nothing shows how much images may shrink"
        )
    short = min(found.height.median, found.width.median)
    zoom = max(ZOOMS[0], _rounded(min(1.0, max(whole, THICK / thin.thickness, SHORT / short))))
    typical = f"{thin.name} is typically {thin.thickness:.0f} px thick"
    if zoom == 1:
        narrow = f"{typical}, and shrinking has to leave {THICK} px"
        why = narrow if thin.thickness < THICK + 1 else f"the shorter side has {short:.0f} px"
    else:
        shown = math.prod(min(1.0, part / zoom) for part in parts)
        seen = "a typical image fits one canvas" if shown > 0.999 else f"a canvas shows {shown:.0%} of an image"
        why = f"at this zoom {seen}; {typical}, at this zoom {zoom * thin.thickness:.0f} px (at least {THICK})"
    return plan.deciding("data.zoom", zoom, why)


def _canvas(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    """Choose the canvas: as large as the time of a step allows, and not larger than the images."""
    data = plan.settings.data
    height, width = found.height.median * data.zoom, found.width.median * data.zoom
    if data.resize == "crop":
        size = [min(CANVAS, _stepped(height)), min(CANVAS, _stepped(width))]
        whole = height <= size[0] and width <= size[1]
        seen = f"{height:.0f} x {width:.0f} px{' at this zoom' * (data.zoom != 1)} (height x width)"
        crops = f"crops of a typical image of {seen}; on two data sets larger crops were no better in the same time"
        why = f"a typical image fits: {seen}, rounded up to multiples of {STEP}" if whole else crops
    else:
        fitted = _fitted(found)
        size = [_stepped(height * fitted), _stepped(width * fitted)]
        why = f"the aspect ratio of a typical image, {height:.0f} x {width:.0f} px (height x width)"
    return plan.deciding("data.size", size, why)


def _passes(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    """Choose the passes so that validation takes its share of the time."""
    data = plan.settings.data
    area = math.prod(data.size)
    needed = FORWARD * _scored(plan, found) * (1 / VALIDATION - 1) / (found.training * area)
    few, many = math.ceil(SHORTEST / found.training), max(1, LONGEST // found.training)
    passes = max(few, min(many, math.ceil(needed)), 1)
    takes = f"validation takes {_share(needed, passes):.0%} of the time"
    shown = passes * found.training
    told = f"{shown} images in an epoch" if passes == 1 else f"{passes} x {found.training} = {shown} images in an epoch"
    if passes < needed:
        why = f"{told}; {takes}, since images are not repeated beyond {LONGEST} in an epoch"
    elif passes == 1:
        why = f"{told}; {takes} (at most {VALIDATION:.0%})"
    elif passes == few:
        why = (
            f"each of {found.training} training images {passes} times: {shown} images in an epoch (at least {SHORTEST})"
        )
    else:
        why = f"{told}, so that {takes} (at most {VALIDATION:.0%})"
    return plan.deciding("data.passes", passes, why)


def _foreground(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    """Take some crops at objects if random crops seldom show one of their classes."""
    data = plan.settings.data
    if data.resize != "crop":
        return plan.deciding("data.foreground", 0.0, "used only with data.resize=crop")
    window = math.sqrt(math.prod(data.size)) / data.zoom
    seen = [(parts.share_seen(window), parts.name) for parts in found.objects]
    if not seen:
        return plan.deciding("data.foreground", 0.0, "no training image has an object")
    chance, name = min(seen)
    why = f"{chance:.0%} of random crops of an image with {name} show it"
    if chance < SELDOM:
        over = "an object" if len(found.classes) == 1 else "an object, and the rarer its class, the more often"
        placed = f"{SHOWN_MORE:.0%} of crops are placed on {over}: only {why} ({SELDOM:.0%} would be enough)"
        return plan.deciding("data.foreground", SHOWN_MORE, placed)
    enough = f"random crops show enough objects: {why} ({SELDOM:.0%} are enough)"
    return plan.deciding("data.foreground", 0.0, enough)


def _batch(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    shown = found.training * plan.settings.data.passes
    if shown >= BATCH:
        return plan.deciding(
            "train.batch_size", BATCH, "for all data: on the mean of six data sets a batch size of 8 was worse"
        )
    largest = 1 << (shown.bit_length() - 1)  # a power of two
    return plan.deciding("train.batch_size", largest, f"an epoch has only {shown} images")


def _zooms(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    """Choose random zooms as wide as objects differ in scale."""
    spread = found.spread if plan.settings.data.resize == "crop" else found.spread_fitted
    if spread is None:
        return plan.deciding("augmentation.scale", SMALL_ZOOMS, "it is not known how much objects differ in scale")
    varies = 2**spread
    drawn = LARGE_ZOOMS if varies >= VARIES else SMALL_ZOOMS
    zooms = f"random zooms from 1/{1 + drawn:g} to {1 + drawn:g}"
    why = f"{zooms}: objects' scale differs by a factor of {varies:.2f} between images (large zooms from {VARIES:g})"
    return plan.deciding("augmentation.scale", drawn, why)


def _shifts(plan: TrainingPlan, found: Fingerprint) -> TrainingPlan:
    scale = plan.settings.augmentation.scale
    drawn, zooms = (LARGE_SHIFTS, "large") if scale >= LARGE_ZOOMS else (SMALL_SHIFTS, "small")
    why = f"random shifts by up to {drawn:.0%} of the canvas, since random zooms are {zooms}"
    return plan.deciding("augmentation.translate", drawn, why)


Rule = Callable[[TrainingPlan, Fingerprint], TrainingPlan]
CROPPED = ("data.resize", "data.zoom", "data.size")
# What decides a key, and the keys that it reads; in this order, since later rules go by what earlier ones have decided.
RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "data.resize": (_resize, tuple(f"data.{name}" for name in OF_CROPS)),
    "data.zoom": (_zoom, ("data.resize", "data.size")),
    "data.size": (_canvas, ("data.resize", "data.zoom")),
    "data.passes": (_passes, (*CROPPED, "train.tta")),
    "data.foreground": (_foreground, CROPPED),
    "train.batch_size": (_batch, ("data.passes",)),
    "augmentation.scale": (_zooms, ("data.resize",)),
    "augmentation.translate": (_shifts, ("augmentation.scale",)),
}


def length(plan: TrainingPlan, found: Fingerprint, images_per_s: float) -> TrainingPlan:
    """Decide the number of epochs if neither epochs nor seconds were typed, so that a first result comes soon.

    Args:
        images_per_s: canvases that are trained on in a second, without what data and optimizer take.
    """
    data = plan.settings.data
    shown = found.training * data.passes
    seconds = BESIDE * (shown + FORWARD * _scored(plan, found) / math.prod(data.size)) / images_per_s
    epochs = max(FEWEST, min(EPOCHS, int(FIRST / seconds)))
    if epochs == EPOCHS:
        return plan
    why = f"{EPOCHS} would take {EPOCHS * seconds / 60:.0f} minutes here; to train them anyway: train.epochs={EPOCHS}"
    return plan.fixing("train.epochs", epochs, why)


def weigh(plan: TrainingPlan, classes: Sequence[str], pixels: Sequence[int]) -> TrainingPlan:
    """Say whether class weights fade, where that is left open.

    Args:
        classes, pixels: names of the classes by index, and each one's pixels in the training split.
    """
    loss = plan.settings.loss
    if loss.class_weights != FADING:
        return plan
    if len(classes) == 2 or not (loss.ce or loss.focal):
        return plan.quietly(loss=replace(loss, class_weights=None))
    share, rarest = min((n / sum(pixels), name) for name, n in zip(classes, pixels, strict=True) if n)
    seldom = f"{rarest} has {100 * share:.2g} % of the pixels"
    why = f"{seldom}: rare classes weigh more at first, to be learnt early, and all weigh the same in the end"
    return plan.fixing("loss.class_weights", FADING, why)


def tiles(plan: TrainingPlan, input_size: Size | None, found: Fingerprint) -> TrainingPlan:
    """Decide the height and width beyond which images are scored in tiles; `input_size` is an encoder's fixed one."""
    data = plan.settings.data
    if data.resize != "crop":  # nothing to say
        return plan if data.tile != "auto" else plan.quietly(data=replace(data, tile=None))
    sides = list(limit((data.size[0], data.size[1]), input_size))
    seen = [round(data.zoom * found.height.largest), round(data.zoom * found.width.largest)]
    if all(side <= most for side, most in zip(seen, sides, strict=True)):
        why = "images up to this size, so all images in the training split, are scored whole"
    else:
        largest = f"images are up to {seen[0]} px high and {seen[1]} px wide at this zoom"
        why = f"{largest}; tiles overlap by {OVERLAP:.0%}"
    return plan.deciding("data.tile", sides, why)


def _thinnest(found: Fingerprint) -> ClassParts | None:
    return min(found.objects, key=lambda parts: parts.thickness, default=None)


def _scored(plan: TrainingPlan, found: Fingerprint) -> float:
    """Pixels that a validation runs the network on: where tiles overlap, once for each, and in all views."""
    data = plan.settings.data
    views = VIEWS[plan.settings.train.tta]
    if data.resize != "crop":
        return float(views * found.validation * math.prod(data.size))
    typical = round(data.zoom * found.height.median), round(data.zoom * found.width.median)
    tile = limit((data.size[0], data.size[1]), None, data.tile if isinstance(data.tile, list) else None)
    return float(views * found.scored * data.zoom**2 * pixels(typical, tile) / math.prod(typical))


def _share(needed: float, passes: int) -> float:
    """What validation takes of an epoch's time."""
    scoring = needed * VALIDATION / (1 - VALIDATION)
    return scoring / (scoring + passes)


def _parts(plan: TrainingPlan, found: Fingerprint) -> tuple[float, float]:
    """What the canvas covers of a typical image's height and width, as it is."""
    height, width = (CANVAS, CANVAS) if plan.settings.data.size == "auto" else plan.settings.data.size
    return height / found.height.median, width / found.width.median


def _fitted(found: Fingerprint) -> float:
    """How far images are shrunk that are brought to a canvas of their aspect, 1 at most."""
    return min(1.0, CANVAS / math.sqrt(found.height.median * found.width.median))


def _rounded(zoom: float) -> float:
    """A zoom that one types, no larger."""
    digits = 100 if zoom >= 0.1 else 1000
    return math.floor(zoom * digits) / digits


def _stepped(side: float) -> int:
    return max(STEP, STEP * math.ceil(side / STEP))
