"""Predict masks for images, which are prepared in the same way as in training."""

import logging
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from os.path import abspath, commonpath
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segsweep.data.geometry import Size, strips
from segsweep.data.images import SUFFIXES, Picture, channels_named, read_picture
from segsweep.data.prefetch import prefetch
from segsweep.data.source import image_files
from segsweep.data.store import Watch, unwatched
from segsweep.data.windows import centres, cut, stack, warped
from segsweep.engine import device as devices
from segsweep.engine.scorer import Scorer
from segsweep.errors import ConfigError, DataError, first_line, unwritable
from segsweep.inference.geotiff import georeference
from segsweep.inference.output import INDICES, MaskForm, Places, is_own, probability, write
from segsweep.inference.running import canvas, execution, refuse_far
from segsweep.nn.checkpoint import describe, load_model
from segsweep.nn.tiles import bands, limit
from segsweep.nn.unet import predict as classes_of

log = logging.getLogger(__name__)

BATCH = 8  # images of the training's canvas that are run at once
DECODING = 2  # threads, and images that wait: large ones take much memory
ADVICE = "Try --tile 512, or less, or --device cpu."

Strips = Iterator[tuple[slice, Tensor]]


class Predictor:
    """A trained model, and the way that images take to it and back: by default the way they took when it was scored.

    Args:
        model: its file, whose `ModelInfo` is kept as `info`.
        device, precision, tta: as the keys of `train`; None: as in training, where the device can.
        tile: pixels a side beyond which an image is run in overlapping tiles; None: as in training.

    What came of it is said in `how`, for a person.

    Raises ConfigError: not a model of segsweep's, a device that is not there, or a precision that it has not.
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str = "auto",
        precision: str | None = None,
        tta: str | None = None,
        tile: int | None = None,
        option: str = "--device ",
    ):
        self.info = describe(model)
        self.classes, self.range = self.info.classes, self.info.range
        devices.compute_as()
        self.device = devices.find(device, option)
        self._execution, self.how = execution(self.info, self.device, precision)
        views = tta or self.info.tta
        if (views, self.info.tta) != ("none", "none"):
            own = "as in training" if views == self.info.tta else f"training scored with {self.info.tta}"
            self.how += f"; mirrored views: {views}, {own}"
        self._model = load_model(model, self.device)
        self._execution.prepare(self._model)
        self._scorer = Scorer(self._execution, views)
        self._canvas = canvas(self.info)
        given = (tile, tile) if tile else self.info.tile
        self._tile = limit(self.info.size, self._model.encoder.input_size, given)

    @property
    def channels(self) -> int:
        """Of the images that the model was trained on."""
        return self._model.in_channels

    def picture(self, path: Path) -> Picture:
        """Read an image's file as training did, and say where it has no data; a `DataError` if it cannot be taken."""
        picture = read_picture(path, self.info.nodata)
        return replace(picture, pixels=self.accept(picture.pixels, path))

    def accept(self, image: np.ndarray, name: object) -> np.ndarray:
        """Return the image `h w c` with the channels that the model takes: grey for three, three equal ones for one.

        Raises DataError: other channels, or pixels of another kind than in training; it begins with the image's `name`.
        """
        wanted, found = self._model.in_channels, image.shape[2]
        if wanted == 1 and found == 3 and (image == image[..., :1]).all():
            image = image[..., :1]
        elif found != wanted and (found, wanted) != (1, 3):
            trained = channels_named(wanted)
            raise DataError(f"{name}: {channels_named(found)}; the model was trained on {trained}. Convert it.")
        if image.dtype != self.info.dtype:
            low, high = self.range
            raise DataError(
                f"{name}: {image.dtype} pixels from {image.min():g} to {image.max():g}; the model was trained on "
                f"{self.info.dtype} from {low:g} to {high:g}. Convert it to that range."
            )
        refuse_far(name, float(image.min()), float(image.max()), self.range)
        return image

    def canvas(self, image: np.ndarray) -> Size:
        """Return height and width that the model sees the image at; images of one can be run together."""
        return self._canvas.whole((image.shape[0], image.shape[1])).size

    def together(self, size: Size) -> int:
        """Return how many images of this canvas are run at once."""
        if size[0] > self._tile[0] or size[1] > self._tile[1]:
            return 1
        return max(1, min(BATCH, BATCH * math.prod(self.info.size) // math.prod(size)))

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray]) -> list[Strips]:
        """Run images `h w c` of one canvas, as `accept` gives them: one, or as many as `together` says.

        Returns:
            for each image an iterator over rows and their logits, `k rows w`, on its own pixel grid, from the top down.
            Of a single large image they are computed as they are asked for, in memory for a row of tiles.
        """
        own = [(image.shape[0], image.shape[1]) for image in images]
        whole_canvas = self._canvas.whole(own[0])
        placements = [whole_canvas.place(size) for size in own]
        pixels = [torch.from_numpy(np.ascontiguousarray(image)) for image in images]
        # No labels are asked for: one zero, as large as need be.
        masks = [torch.zeros(1, 1, dtype=torch.uint8).expand(size) for size in own]

        def run(rows: slice, columns: slice) -> Tensor:
            parts = [placement.part(rows, columns) for placement in placements]
            windows = [cut(*sample) for sample in zip(pixels, masks, parts, strict=True)]
            sent = stack(windows, self._model.in_channels).on(self.device)
            image, _, _ = warped(*sent, centres(parts[0].canvas, self.device))
            return self._scorer.logits(self._model, image).float()

        whole = bands(run, whole_canvas.size, self._tile)
        if len(images) == 1 and placements[0].untouched(own[0]):
            return [_fitting((rows, logits[0]) for rows, logits in whole)]
        with devices.fitting(ADVICE):
            maps = torch.cat([logits for _, logits in whole], dim=2)
        return [_fitting(strips(m, p, s)) for m, p, s in zip(maps, placements, own, strict=True)]

    def decided(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the class indices of one image, uint8 `h w`, and its probabilities, float32 `k h w`.

        Those are of each class, or of two classes the foreground's (k = 1).
        """
        (found,) = self.logits([image])
        parts = [(classes_of(logits[None])[0], probability(logits)) for _, logits in found]
        classes = np.concatenate([rows.cpu().numpy().astype(np.uint8) for rows, _ in parts])
        return classes, np.concatenate([rows.cpu().numpy() for _, rows in parts], axis=1)


@dataclass(frozen=True)
class Outcome:
    """The result for an image: the mask's file, or the error."""

    image: Path
    mask: Path
    problem: str = ""
    grey: bool = False  # an image of one channel, by a model of colour
    lacking: int = 0  # pixels without data, which are of no class in the mask


def find_images(given: Sequence[str], output: Path | None = None, suffix: str = ".png") -> list[tuple[Path, Path]]:
    """Find images, and the places of their masks below the folder that all have in common.

    Args:
        given: files, folders (all images below them), patterns such as 'scans/**/*.png'.
        output: where masks go; below a folder that is given, it is not searched.
        suffix: of the masks; a GeoTIFF's is .tif.

    Raises ConfigError: nothing there, or two images whose masks would have one name.
    """
    files: dict[Path, None] = {}
    bases: list[Path] = []
    for name in given:
        path = Path(name).expanduser()
        found = image_files(path) if path.is_dir() else [path] if path.is_file() else _matching(path)
        if output and not path.is_file() and _searched(path) in _absolute(output).parents:
            there = [p for p in found if _absolute(output) in _absolute(p).parents]
            found = [p for p in found if p not in there]
            if there:
                log.warning("%s: %d images left out, because the masks are written there", output, len(there))
        bases += [path] if path.is_dir() else [p.parent for p in found]
        if not found:
            what = f"no images in it ({', '.join(SUFFIXES)})" if path.is_dir() else "no such file or folder"
            raise ConfigError(f"{name}: {what}. Give images, folders of images, or patterns in quotes.")
        files |= dict.fromkeys(map(_absolute, found))
    base = Path(commonpath([_absolute(b) for b in bases]))
    taken: dict[Path, Path] = {}
    for path in files:
        target = path.relative_to(base).with_suffix(".tif" if georeference(path) else suffix)
        if target in taken:
            what = f"{path} and {taken[target]}: both masks would be {target}"
            raise ConfigError(f"{what}. Leave one out, or use a separate -o DIR for each.")
        taken[target] = path
    return [(path, target) for target, path in taken.items()]


def _placed(images: Sequence[tuple[Path, Path]], folder: Path, overlay: bool, probabilities: bool) -> list[Places]:
    """Place what is written of each image. ConfigError: something of two images would have one name."""
    placed = [Places.of(folder, target, overlay, probabilities) for _, target in images]
    taken: dict[Path, Path] = {}
    for (path, _), places in zip(images, placed, strict=True):
        for file in filter(None, places):
            if (other := taken.setdefault(file, path)) != path:
                what = f"{path} and {other}: both would write {file}"
                raise ConfigError(f"{what}. Leave one out, or use a separate -o DIR for each.")
    return placed


def predict(
    predictor: Predictor,
    images: Sequence[tuple[Path, Path]],
    folder: Path,
    *,
    form: MaskForm = INDICES,
    overlay: bool = False,
    probabilities: bool = False,
    watch: Watch = unwatched,
) -> Generator[Outcome, None, None]:
    """Write a mask for each image, at the image's own size; of a GeoTIFF it is one, with the same georeference.

    Pixels without data, in any channel, are of no class. Files of an earlier prediction are replaced, and no others.

    Args:
        images: as `find_images` gives them with the form's suffix; the masks keep their places.
        form: of the masks; default: class indices with a palette.
        overlay: also the classes painted over the image, as JPEG in `overlays/`.
        probabilities: also what `Predictor.probabilities` gives, as float32 TIFF in `probabilities/`.

    Yields:
        what became of each image; one that cannot be used does not keep back the others.

    Raises ConfigError: two images would write one file; something would be written over an image or another file that
        no prediction wrote, or cannot be written, or a tile takes too much memory.
    """
    sources = {path.resolve() for path, _ in images}
    places = _placed(images, folder, overlay, probabilities)
    for (path, _), place in zip(images, places, strict=True):
        if over := [file for file in place if file and file.resolve() in sources]:
            raise ConfigError(f"{path}: {over[0]} would overwrite an image. Give another -o DIR.")
        if other := [file for file in place if file and file.exists() and not is_own(file)]:
            raise ConfigError(f"{other[0]}: exists, and predict did not write it. Give another -o DIR.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, "DIR") from error

    def read(path: Path) -> Picture | DataError:
        try:
            return predictor.picture(path)
        except DataError as error:
            return error

    group: list[tuple[Path, Places, Picture]] = []

    def flush() -> Iterator[Outcome]:
        found = predictor.logits([picture.pixels for _, _, picture in group]) if group else []
        for (path, place, picture), parts in zip(group, found, strict=True):
            lacking = picture.nowhere
            try:
                write(picture.pixels, parts, place, predictor.range, form, georeference(path), lacking)
            except OSError as error:
                raise unwritable(folder, error, "DIR") from error
            grey = picture.pixels.shape[2] == 1 and predictor.channels == 3
            yield Outcome(path, place.mask, grey=grey, lacking=0 if lacking is None else int(lacking.sum()))
        group.clear()

    jobs = (partial(read, path) for path, _ in images)
    with closing(prefetch(jobs, DECODING, DECODING)) as decoded:
        found = watch(decoded, len(images), "predicting")
        for (path, _), place, picture in zip(images, places, found, strict=True):
            if isinstance(picture, DataError):
                yield Outcome(path, place.mask, str(picture))
                continue
            size = predictor.canvas(picture.pixels)
            if group and predictor.canvas(group[0][2].pixels) != size:
                yield from flush()
            group.append((path, place, picture))
            if len(group) >= predictor.together(size):
                yield from flush()
        yield from flush()


def _absolute(path: Path) -> Path:
    """Links stay: an image's place is where it was found."""
    return Path(abspath(path))  # noqa: PTH100 (resolve() would follow them)


def _searched(given: Path) -> Path:
    """Return the folder that is searched for a folder or a pattern."""
    fixed = list(takewhile(lambda part: not set(part) & set("*?["), given.parts))
    return _absolute(Path(*fixed) if fixed else Path())


def _matching(pattern: Path) -> list[Path]:
    """Files that a pattern such as 'scans/**/*.png' matches."""
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"{pattern}: {first_line(error)} Patterns are like 'scans/**/*.png'.") from error
    return [path for path in found if path.is_file()]


def _fitting(parts: Iterable[tuple[slice, Tensor]]) -> Strips:
    with torch.inference_mode(), devices.fitting(ADVICE):
        yield from parts
