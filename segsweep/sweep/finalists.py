"""The fair end of a sweep: the best setting of each of the best backbones, trained anew with fresh seeds.

A search's best score is the largest of many noisy ones, so it is too good to be true. Finalists are ranked by runs that
had no part in the choice, and compared image by image.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.runs.trial import Trial

FOLDER = "finalists"
MATRICES = "val_matrices.npz"
RESAMPLES = 2000
ANEW = ("train.seed", "data.fold")  # what each repeat has of its own

Matrices = NDArray[np.int64]
Scored = Mapping[tuple[str, ...], Sequence[Matrices]]
"""By the names of the images, in order: the confusion matrices `n k k` of each run that was scored on them."""


def best_of_each(trials: Iterable[Trial], finalists: int) -> list[Trial]:
    """The best complete trial of each backbone, of the best `finalists` backbones, best first."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.state == "complete" and _score(trial) > _score(best.get(trial.encoder)):
            best[trial.encoder] = trial
    return sorted(best.values(), key=_score, reverse=True)[:finalists]


def repeats(trial: Trial, seeds: Sequence[int], folds: Sequence[Any] = ()) -> list[Trial]:
    """The same setting with other seeds; the first on the first fold and so on, so that all finalists see the same."""
    runs = []
    for i, seed in enumerate(seeds):
        anew = [f"train.seed={seed}", *([f"data.fold={folds[i % len(folds)]}"] if folds else [])]
        replaced = tuple(f"{override.partition('=')[0]}=" for override in anew)
        typed, argv = ([o for o in kept if not o.startswith(replaced)] for kept in (trial.typed, trial.argv))
        name = f"{FOLDER}/{trial.name}-{seed}"
        runs.append(Trial(name, trial.encoder, [*typed, *anew], [*argv, *anew], trial.values))
    return runs


@dataclass(frozen=True)
class Place:
    """A finalist's place in the ranking.

    Attributes:
        trial: the search's trial whose setting it is.
        runs: its complete repeats; the trial itself where there are none.
        iou: mean of the runs' best validation IoU.
        behind: 95 % interval of how far it is behind the first, by a paired bootstrap; None for the first, and where
            the two were not scored on the same images.
        failed: repeats that gave nothing.
    """

    trial: Trial
    runs: tuple[Trial, ...]
    iou: float
    behind: tuple[float, float] | None = None
    failed: int = 0

    @property
    def setting(self) -> list[str]:
        """What was varied, without what each repeat has of its own."""
        if self.runs == (self.trial,):
            return self.trial.typed
        return [override for override in self.trial.typed if override.partition("=")[0] not in ANEW]

    @property
    def winner(self) -> Trial:
        """The best of its runs."""
        return max(self.runs, key=_score)

    @property
    def tied(self) -> bool:
        """Whether it may just as well be as good as the first."""
        return self.behind is not None and self.behind[0] <= 0

    @property
    def sd(self) -> float | None:
        """Standard deviation of the IoU over the runs; None for one."""
        scores = [_score(run) for run in self.runs]
        return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def ranked(folder: Path, finalists: Sequence[Trial], runs: Iterable[Trial]) -> list[Place]:
    """The finalists by mean validation IoU of their repeats, best first.

    A search's score does not stand beside those of fresh seeds: who has no complete repeat while others do is left out.

    Args:
        folder: the sweep's.
        finalists: trials of the search.
        runs: their repeats, in whatever state.
    """
    of: dict[str, list[Trial]] = {}
    failed: Counter[str] = Counter()
    for run in runs:
        name = run.name.removeprefix(f"{FOLDER}/").rpartition("-")[0]
        if run.state == "complete":
            of.setdefault(name, []).append(run)
        failed[name] += run.state == "failed"
    places = []
    for trial in finalists:
        if own := of.get(trial.name, [] if of else [trial]):
            places.append(Place(trial, tuple(own), mean(map(_score, own)), failed=failed[trial.name]))
    places.sort(key=lambda place: place.iou, reverse=True)
    if not places:
        return []
    scored = [read(folder / run.name / MATRICES for run in place.runs) for place in places]
    apart = [None, *(behind(scored[0], other) for other in scored[1:])]
    return [replace(place, behind=interval) for place, interval in zip(places, apart, strict=True)]


def behind(first: Scored, other: Scored, seed: int = 0) -> tuple[float, float] | None:
    """95 % bootstrap interval of how much better the first is, in IoU.

    Images are drawn with replacement, the same for both; runs are drawn with replacement for each of them. Where runs
    were scored on several sets of images (folds), this is done in each, and the sets count alike.

    Returns:
        None where the images differ.
    """
    if not first or first.keys() != other.keys():
        return None
    shapes = {matrices.shape[1:] for scored in (first, other) for runs in scored.values() for matrices in runs}
    if len(shapes) > 1:
        return None  # other classes
    rng = np.random.default_rng(seed)
    gains = np.zeros(RESAMPLES)
    for images, runs in first.items():
        ours, theirs = (np.stack(matrices).astype(float) for matrices in (runs, other[images]))
        for i in range(RESAMPLES):
            weight = np.bincount(rng.integers(len(images), size=len(images)), minlength=len(images))
            means = []
            for those in (ours, theirs):
                drawn = those[rng.integers(len(those), size=len(those))]
                means.append(np.mean(iou(np.einsum("n,rnij->rij", weight, drawn))))
            gains[i] += (means[0] - means[1]) / len(first)
    low, high = np.nanpercentile(gains, [2.5, 97.5])
    return float(low), float(high)


def iou(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """`val/iou` of pooled confusion matrices `... k k`, as `segsweep.metrics.scores` defines it."""
    return _iou(matrices, matrices.sum(-1) > 0)


def iou_of_images(matrices: Matrices) -> NDArray[np.float64]:
    """Each image's own IoU from matrices `n k k`: NaN where nothing is and was said, 0 where something was said of
    nothing. As the `iou_image` of `segsweep.metrics.scores`."""
    return _iou(matrices, (matrices.sum(-1) + matrices.sum(-2)) > 0)


def _iou(matrices: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of the foreground for two classes, else the mean over the counted ones, `... k`; NaN without any."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    union = matrices.sum(-1) + matrices.sum(-2) - hits
    each = np.where(counted, hits / np.maximum(union, 1), 0.0)
    if matrices.shape[-1] == 2:
        return np.where(counted[..., 1], each[..., 1], np.nan)
    number = counted.sum(-1)
    return np.where(number > 0, each.sum(-1) / np.maximum(number, 1), np.nan)


def read(files: Iterable[Path]) -> Scored:
    """Files `MATRICES` of runs; nothing where one of them is missing."""
    found: dict[tuple[str, ...], list[Matrices]] = {}
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as file:
                found.setdefault(tuple(map(str, file["keys"])), []).append(file["matrices"])
        except OSError:
            return {}
    return found


def _score(trial: Trial | None) -> float:
    return -1.0 if trial is None or trial.iou is None else trial.iou
