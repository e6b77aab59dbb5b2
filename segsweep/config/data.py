"""The keys of `data`: where image-mask pairs come from, what masks mean, how data are split and cropped or resized."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsweep.config.checks import check, is_color, is_count, is_number, is_share, is_whole
from segsweep.config.keys import PATH, PLACE, key, normal
from segsweep.errors import ConfigError, one_of
from segsweep.paths import PACKAGE

# Each source is a module of that name; looked up by file name, since importing one brings numpy.
SOURCES = tuple(sorted(path.stem for path in (PACKAGE / "data" / "sources").glob("[!_]*.py")))

ZOOMS = (0.05, 8)  # least and largest
LAID = ("size", "resize", "zoom", "passes", "foreground", "tile")  # how data are laid on canvases, and how often shown
LARGEST_SIDE = 65536  # pixels of a canvas or a tile
MOST_PASSES = 1_000_000  # over the training images in an epoch
OF_CROPS = ("foreground", "zoom", "tile")  # need data.resize=crop


@dataclass(frozen=True)
class DataConfig:
    name: str = key("folder", f"where the pairs come from: {', '.join(SOURCES)}")
    root: str | None = key(
        None,
        "folder of the data set: with images/ and masks/, train/images/ and train/masks/, train/ and train_annot/, or "
        "pairs in one folder; for data=camvid and others, the folder of this data set",
        PATH,
    )
    images: str | None = key(
        None,
        "folder of the images; folders train/, val/ and test/ in it are the split; or a pattern below data.root, as "
        "'*/Imgs/*.jpg'",
        PATH,
    )
    masks: str | None = key(
        None,
        "folder of the masks, with the same names as the images; or a pattern whose stars match the same text, as "
        "'*/GT/*.png'",
        PATH,
    )
    annotations: str | None = key(None, "coco: the JSON file with the annotations of data.images", PATH)
    size: Any = key(
        "auto",
        "canvas, the network's input in training: [height,width] in pixels, 256 is [256,256]; auto: from the images' "
        "sizes",
    )
    resize: str = key(
        "auto",
        "crop: train on crops; pad: fit the image into the canvas, keep its shape; squash: stretch it; auto: crop, or "
        "pad if larger images have larger objects",
    )
    zoom: Any = key(
        "auto",
        "resize=crop: factor by which images are resized, as 0.5; scores stay at each mask's own resolution; auto: "
        "below 1 if images are large and no class is thin",
    )
    mask_suffix: str = key("", "what a mask's name has after its image's name: _mask for 7.png and 7_mask.png")
    table: str | None = key(
        None,
        "a CSV with the columns image and mask, optionally split, group, fold; paths below the CSV's folder or "
        "data.root",
        PATH,
    )
    split: list[float] = key(
        [0.8, 0.2], "shares of train and val, or of train, val and test, if the data have no split"
    )
    stratify: bool = key(
        False,
        "true: each part of a split or fold made by segsweep gets the same share of every class; images may change "
        "their part when you add others",
    )
    group: str | None = key(
        None, "regular expression that finds the group in an image's path; a group stays in one part of the split"
    )
    folds: int | None = key(None, "cross-validation: number of folds, made from train and val")
    fold: int = key(0, "cross-validation: the fold to validate on; the first is 0")
    classes: Any = key(
        None,
        "names of the mask values 0, 1, ..., as [ground,road]; or names with values or colours, as "
        "{car:8,tree:[0,128,0]}; or one of these as JSON text; default: two classes",
    )
    ignore_index: Any = key(
        None,
        "mask value or [r,g,b] of pixels to ignore (void); default: 255 in masks of 0, 1, ... if it is not a class",
    )
    class_from: str | None = key(
        None, "folder: the first folder below the images' folder is the class of the mask's foreground"
    )
    binarize: bool = key(False, "true: all mask values except 0 are one class, as for instance masks")
    threshold: Any = key(
        "auto",
        "grey masks: values from this one up are foreground, as 128; auto: the middle, if nearly all pixels are near "
        "two values, as in JPEG masks; null: no threshold",
    )
    mask_resize: str = key(
        "none", "nearest: resize masks whose size differs from their image's, if the shape is the same"
    )
    nodata: Any = key(
        "auto",
        "pixel value that means no data: left out of statistics, filled with the channel's mean; auto or tag: the "
        "file's GDAL tag; none: no value; NaN and infinity always mean no data",
    )
    nodata_void: bool = key(True, "true: the mask ignores pixels without data in the image")
    normalize: str = key(
        "auto",
        "encoder: mean and std of the pretrained weights; dataset: of the training split; percentile: its 0.5 to "
        "99.5 % range, clipped; window: data.window; auto: encoder for 8-bit colour "
        "with pretrained weights, else dataset",
    )
    window: list[float] | None = key(None, "lowest and highest pixel value for data.normalize=window, as [0,4095]")
    foreground: Any = key(
        "auto",
        "resize=crop: share of crops that are chosen to show an object, of rare classes more often; auto: a third if "
        "random crops seldom show a class, else 0",
    )
    tile: Any = key(
        "auto",
        "resize=crop: images larger than [height,width] are scored in overlapping tiles, 512 is [512,512]; auto: 1024 "
        "or more, or data.size for encoders of a fixed size",
    )
    balance: float = key(
        0.0, "how much more often images with rare classes are shown: 0: not; 1: in proportion to the pixels' rarity"
    )
    passes: Any = key(
        "auto",
        "how often an epoch shows each training image; auto: at least 180 images in an epoch, and more if validation "
        "would take more than a fifth of the time",
    )
    seed: int = key(0, "random seed of the split by hash and of generated data")
    count: int = key(300, "shapes: number of generated images")
    download: bool = key(False, "oxford_pets, voc2012: true: download the data into data.root first", PLACE)
    cache: str = key(
        "auto", "auto: decode each file once, keep the pixels on the device or on disk; none: decode every time", PLACE
    )
    overfit: int | None = key(None, "train and validate on only this many training images (debug=overfit)")

    @property
    def title(self) -> str:
        """The name to print: the name of the folder, if there is one."""
        return Path(self.root).expanduser().resolve().name if self.root else self.name

    @property
    def long_title(self) -> str:
        """A name that tells data sets apart: names of folder (or table) and parent folder; else the source's."""
        place = self.table or self.root or self.images
        if not place or set(place) & set("*?"):
            return self.name
        path = Path(place).expanduser().resolve()
        return f"{path.parent.name}-{path.stem if self.table else path.name}".removeprefix("-")

    @property
    def of_crops(self) -> list[str]:
        """Return the keys that are set and need data.resize=crop."""
        unset = {"foreground": ("auto", 0), "zoom": ("auto", 1), "tile": ("auto", None)}
        return [name for name in OF_CROPS if getattr(self, name) not in unset[name]]

    def __post_init__(self) -> None:
        form = f"one number or [height,width], of 32 to {LARGEST_SIDE} pixels, as"
        check(self.size == "auto" or _is_size(self.size), "data.size", self.size, f"auto, or {form} 256")
        valid = self.tile in ("auto", None) or _is_size(self.tile)
        check(valid, "data.tile", self.tile, f"auto, or {form} 1024")
        for name in ("size", "tile", "classes"):
            object.__setattr__(self, name, normal(f"data.{name}", getattr(self, name)))
        one_of("data.name", self.name, SOURCES)
        given = [name for name in ("root", "images", "masks", "table") if getattr(self, name)]
        if self.name == "shapes" and given:
            what = f"data.{given[0]} is given, but data=shapes generates its images"
            raise ConfigError(f"{what}. Add data=folder to train on your own.")
        if self.annotations and self.name != "coco":
            raise ConfigError("data.annotations is of data=coco. Add data=coco, or drop it.")
        if self.class_from is not None:
            self._check_class_from()
        one_of("data.cache", self.cache, ("auto", "none"))
        one_of("data.resize", self.resize, ("auto", "pad", "squash", "crop"))
        self._check_normalization()
        valid = self.foreground == "auto" or (is_number(self.foreground) and is_share(self.foreground))
        check(valid, "data.foreground", self.foreground, "auto, or in [0, 1]")
        check(self.zoom == "auto" or is_zoom(self.zoom), "data.zoom", self.zoom, f"auto, or in {ZOOMS}, as 0.5")
        if self.of_crops and self.resize not in ("auto", "crop"):
            name = self.of_crops[0]
            raise ConfigError(f"data.{name}={getattr(self, name)} works only with data.resize=crop.")
        valid = self.passes == "auto" or (is_count(self.passes) and self.passes <= MOST_PASSES)
        check(valid, "data.passes", self.passes, f"auto, or in 1..{MOST_PASSES}")
        check(is_share(self.balance), "data.balance", self.balance, "in [0, 1]")
        check(
            len(self.split) in (2, 3) and all(s > 0 for s in self.split) and math.isclose(sum(self.split), 1),
            "data.split",
            self.split,
            "two or three positive shares that sum to 1, as [0.8,0.2]",
        )
        check(self.folds is None or self.folds >= 2, "data.folds", self.folds, "2 or more")
        check(0 <= self.fold < (self.folds or 1), "data.fold", self.fold, f"in 0..{(self.folds or 1) - 1} (data.folds)")
        if self.ignore_index is not None:
            value = is_whole(self.ignore_index) or is_color(self.ignore_index)
            check(value, "data.ignore_index", self.ignore_index, "a mask value, or a colour as [0,0,0]")
        one_of("data.mask_resize", self.mask_resize, ("none", "nearest"))
        self._check_values()
        if self.classes is not None:
            self._check_classes()
            if self.binarize:
                raise ConfigError("data.binarize=true makes two classes of all values: drop data.classes.")
        check(0 <= self.seed < 2**32, "data.seed", self.seed, "in 0..2**32-1")
        check(self.count >= 10, "data.count", self.count, "10 or more")
        check(self.overfit is None or self.overfit >= 1, "data.overfit", self.overfit, "1 or more")

    def _check_values(self) -> None:
        valid = self.threshold in ("auto", None) or is_number(self.threshold)
        check(valid, "data.threshold", self.threshold, "auto, null or a value, as 128")
        valid = self.nodata in ("auto", "tag", "none") or is_number(self.nodata)
        check(valid, "data.nodata", self.nodata, "auto, tag, none or a pixel value, as -9999")
        if self.binarize and is_number(self.threshold):
            raise ConfigError("data.binarize=true and data.threshold make two classes each: drop one of the two.")

    def _check_normalization(self) -> None:
        if self.normalize.startswith("window["):
            bounds = self.normalize.removeprefix("window")
            raise ConfigError(f"data.normalize={self.normalize}: type data.normalize=window 'data.window={bounds}'.")
        one_of("data.normalize", self.normalize, ("auto", "encoder", "dataset", "percentile", "window"))
        if self.window is not None:
            valid = len(self.window) == 2 and -math.inf < self.window[0] < self.window[1] < math.inf
            check(valid, "data.window", self.window, "[lowest,highest], as [0,4095]")
            if self.normalize not in ("auto", "window"):
                raise ConfigError(f"data.window is given but data.normalize={self.normalize}. Drop one of the two.")
        elif self.normalize == "window":
            raise ConfigError("data.normalize=window needs its bounds: 'data.window=[0,4095]'.")

    def _check_class_from(self) -> None:
        one_of("data.class_from", self.class_from, ("folder",))
        if self.name != "folder":
            raise ConfigError(f"data.class_from=folder is of data=folder, and this is data={self.name}. Drop it.")
        for name, given in (("classes", self.classes is not None), ("binarize", self.binarize)):
            if given:
                raise ConfigError(f"data.class_from=folder says what the classes are: drop data.{name}.")

    def _check_classes(self) -> None:
        form = (
            "names, as 'data.classes=[ground,road,car]', or names with values or colours, in single quotes, as "
            "'data.classes={road:[3,4],car:8,tree:[[0,128,0]]}'"
        )
        if isinstance(self.classes, dict):
            given = [value if isinstance(value, list) else [value] for value in self.classes.values()]
            valid = bool(given) and all(group and all(is_whole(v) or is_color(v) for v in group) for group in given)
            check(valid and all(isinstance(c, str) for c in self.classes), "data.classes", self.classes, form)
        else:
            valid = isinstance(self.classes, list) and bool(self.classes)
            check(valid and all(isinstance(c, str) for c in self.classes), "data.classes", self.classes, form)
            check(len(set(self.classes)) == len(self.classes), "data.classes", self.classes, "distinct names")


def is_zoom(value: Any) -> bool:
    """Tell whether this value is a valid zoom."""
    return is_number(value) and ZOOMS[0] <= value <= ZOOMS[1]


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(is_count(side) and 32 <= side <= LARGEST_SIDE for side in sides)
