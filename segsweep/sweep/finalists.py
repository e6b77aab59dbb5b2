"""The fair end of a sweep: the best setting of each of the best backbones, trained anew with fresh seeds.

A search's best score is the largest of many noisy ones, so it is too good to be true. Finalists are ranked by runs that
had no part in the choice, and compared image by image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from segsweep.sweep.trial import Trial

FOLDER = "finalists"
MATRICES = "val_matrices.npz"
RESAMPLES = 2000

Matrices = NDArray[np.int64]


def best_of_each(trials: Iterable[Trial], finalists: int) -> list[Trial]:
    """The best complete trial of each backbone, of the best `finalists` backbones, best first."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.state == "complete" and _score(trial) > _score(best.get(trial.encoder)):
            best[trial.encoder] = trial
    return sorted(best.values(), key=_score, reverse=True)[:finalists]


def repeats(trial: Trial, seeds: Sequence[int]) -> list[Trial]:
    """The same setting with other seeds."""
    return [
        Trial(
            f"{FOLDER}/{trial.name}-{seed}",
            trial.encoder,
            [*(override for override in trial.typed if not override.startswith("train.seed=")), f"train.seed={seed}"],
            [*trial.argv, f"train.seed={seed}"],
            trial.values,
        )
        for seed in seeds
    ]


@dataclass(frozen=True)
class Place:
    """A finalist's place in the ranking.

    Attributes:
        trial: the search's trial whose setting it is.
        runs: its complete repeats; the trial itself where there are none.
        iou: mean of the runs' best validation IoU.
        behind: 95 % interval of how far it is behind the first, by a paired bootstrap; None for the first, and where
            the runs' images cannot be paired.
    """

    trial: Trial
    runs: tuple[Trial, ...]
    iou: float
    behind: tuple[float, float] | None = None

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

    Args:
        folder: the sweep's.
        finalists: trials of the search.
        runs: their repeats, in whatever state.
    """
    of: dict[str, list[Trial]] = {}
    for run in runs:
        if run.state == "complete":
            of.setdefault(run.name.removeprefix(f"{FOLDER}/").rpartition("-")[0], []).append(run)
    places = [Place(t, tuple(of.get(t.name, [t])), 0.0) for t in finalists]
    places = [Place(p.trial, p.runs, mean(_score(run) for run in p.runs)) for p in places]
    places.sort(key=lambda place: place.iou, reverse=True)
    if not places:
        return []
    first = _read(folder, places[0].runs)
    return [places[0], *(Place(p.trial, p.runs, p.iou, behind(first, _read(folder, p.runs))) for p in places[1:])]


def behind(first: Sequence[Matrices], other: Sequence[Matrices], seed: int = 0) -> tuple[float, float] | None:
    """95 % bootstrap interval of how much better the first is, in IoU.

    Images are drawn with replacement, the same for both; runs are drawn with replacement for each of them.

    Args:
        first, other: for each run the confusion matrices of the same images in the same order, `n k k`.

    Returns:
        None where the images differ.
    """
    if not first or not other or any(m.shape != first[0].shape for m in (*first, *other)):
        return None
    rng = np.random.default_rng(seed)
    images = len(first[0])
    ours, theirs = np.stack(first).astype(float), np.stack(other).astype(float)
    gains = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        weight = np.bincount(rng.integers(images, size=images), minlength=images)
        means = []
        for runs in (ours, theirs):
            drawn = runs[rng.integers(len(runs), size=len(runs))]
            means.append(np.mean(iou(np.einsum("n,rnij->rij", weight, drawn))))
        gains[i] = means[0] - means[1]
    low, high = np.nanpercentile(gains, [2.5, 97.5])
    return float(low), float(high)


def iou(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """`val/iou` of pooled confusion matrices `... k k`, as `segsweep.metrics.scores` defines it."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    targets = matrices.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(targets > 0, hits / (targets + matrices.sum(-2) - hits), np.nan)
    return each[..., 1] if matrices.shape[-1] == 2 else np.nanmean(each, -1)


def _read(folder: Path, runs: Sequence[Trial]) -> list[Matrices]:
    found, keys = [], None
    for run in runs:
        try:
            with np.load(folder / run.name / MATRICES, allow_pickle=False) as file:
                own, matrices = file["keys"], file["matrices"]
        except OSError:
            return []
        if keys is not None and not np.array_equal(keys, own):
            return []
        keys = own
        found.append(matrices)
    return found


def _score(trial: Trial | None) -> float:
    return -1.0 if trial is None or trial.iou is None else trial.iou
