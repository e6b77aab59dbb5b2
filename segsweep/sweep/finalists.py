"""The fair end of a sweep: the best setting of each of the best backbones, trained anew with fresh seeds.

A search's best score is the largest of many noisy ones, so it is too good to be true. Finalists are ranked by runs that
had no part in the choice, and compared image by image.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from segsweep import metrics
from segsweep.metrics import Matrices
from segsweep.runs.trial import Trial
from segsweep.sweep.space import Value

FOLDER = "finalists"
MATRICES = "val_matrices.npz"
ANEW = ("train.seed", "data.fold")  # what each repeat has of its own

Scored = Mapping[tuple[str, ...], Sequence[Matrices]]
"""By the names of the images, in order: the confusion matrices `n k k` of each run that was scored on them."""


def best_of_each(trials: Iterable[Trial], finalists: int) -> list[Trial]:
    """Return the best complete trial of each backbone, of the best `finalists` backbones, best first."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.state == "complete" and _score(trial) > _score(best.get(trial.encoder)):
            best[trial.encoder] = trial
    return sorted(best.values(), key=_score, reverse=True)[:finalists]


def repeats(trial: Trial, seeds: Sequence[int], folds: Sequence[Value] = ()) -> list[Trial]:
    """Make a trial's repeats: its setting with other seeds.

    Args:
        folds: those that are varied; the first repeat has the first and so on, so that all finalists see the same.
    """
    runs = []
    for i, seed in enumerate(seeds):
        anew = [f"train.seed={seed}", *([f"data.fold={folds[i % len(folds)]}"] if folds else [])]
        replaced = tuple(f"{override.partition('=')[0]}=" for override in anew)
        typed, argv = ([o for o in kept if not o.startswith(replaced)] for kept in (trial.typed, trial.argv))
        name = f"{FOLDER}/{trial.name}-{seed}"
        runs.append(Trial(name, trial.encoder, [*typed, *anew], [*argv, *anew], trial.values))
    return runs


@dataclass(frozen=True)
class FinalistResult:
    """What a finalist's repeats gave.

    Attributes:
        trial: the search's trial whose setting it is.
        runs: its complete repeats; the trial itself where there are none.
        iou: mean of the runs' best validation IoU.
        gap_to_best: 95 % interval of how far it is behind the first, by a paired bootstrap; None for the first, and
            where the two were not scored on the same images.
        failed: repeats that gave nothing.
    """

    trial: Trial
    runs: tuple[Trial, ...]
    iou: float
    gap_to_best: tuple[float, float] | None = None
    failed: int = 0

    @property
    def setting(self) -> list[str]:
        """Return what was varied, without what each repeat has of its own."""
        if self.runs == (self.trial,):
            return self.trial.typed
        return [override for override in self.trial.typed if override.partition("=")[0] not in ANEW]

    @property
    def winner(self) -> Trial:
        """Return the best of its runs."""
        return max(self.runs, key=_score)

    @property
    def tied(self) -> bool:
        """Tell whether it may just as well be as good as the first."""
        return self.gap_to_best is not None and self.gap_to_best[0] <= 0

    @property
    def sd(self) -> float | None:
        """Return the standard deviation of the IoU over the runs; None for one."""
        scores = [_score(run) for run in self.runs]
        return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def ranked(folder: Path, finalists: Sequence[Trial], runs: Iterable[Trial]) -> list[FinalistResult]:
    """Rank the finalists by mean validation IoU of their repeats, best first.

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
    results = []
    for trial in finalists:
        if own := of.get(trial.name, [] if of else [trial]):
            results.append(FinalistResult(trial, tuple(own), mean(map(_score, own)), failed=failed[trial.name]))
    results.sort(key=lambda result: result.iou, reverse=True)
    if not results:
        return []
    scored = [read(folder / run.name / MATRICES for run in result.runs) for result in results]
    apart = [None, *(behind(scored[0], other) for other in scored[1:])]
    return [replace(result, gap_to_best=interval) for result, interval in zip(results, apart, strict=True)]


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
    gains = np.zeros(metrics.RESAMPLES)
    for images, runs in first.items():
        sides = (runs, other[images])
        weights, drawn = metrics.resample(rng, len(images), *map(len, sides))
        ours, theirs = (
            np.take_along_axis(_scores(side, weights), indices, 1).mean(1)
            for side, indices in zip(sides, drawn, strict=True)
        )
        gains += (ours - theirs) / len(first)
    return metrics.interval(gains)


def _scores(runs: Sequence[Matrices], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The IoU of each run on each draw of the images, `draws runs`."""
    return np.stack([metrics.pooled_iou(metrics.pool(matrices, weights)) for matrices in runs], 1)


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
