"""The fair end of a sweep: the best setting of each of the best pretrained weights, trained again with new seeds.

A search's best score is the largest of many noisy ones, so it is too good to be true. Finalists are ranked by runs that
had no part in the choice, and compared image by image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from segsweep import metrics
from segsweep.data.split import read_split
from segsweep.errors import ConfigError
from segsweep.metrics import Matrices
from segsweep.runs.records import Run
from segsweep.runs.trial import Trial
from segsweep.sweeping.space import Value

FOLDER = "finalists"
ANEW = ("train.seed", "data.fold")  # what each repeat has of its own

Scored = Mapping[tuple[str, ...], Sequence[Matrices]]
"""By the names of the images, in order: the confusion matrices `n k k` of each run that was scored on them."""


def best_of_each(trials: Iterable[Trial], finalists: int) -> list[Trial]:
    """Return the best complete trial of each set of weights, of the best `finalists` of them, best first."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.state == "complete" and _score(trial) > _score(best.get(trial.weights)):
            best[trial.weights] = trial
    return sorted(best.values(), key=_score, reverse=True)[:finalists]


def repeats(trial: Trial, seeds: Sequence[int], folds: Sequence[Value] = ()) -> list[Trial]:
    """Make a trial's repeats: its setting with other seeds and the varied folds in turn, alike for all finalists."""
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
    """The result of a finalist's repeats.

    `gap_to_best` is the 95 % interval of how far it is behind the first, by a paired bootstrap; None for the first, and
    where the two were not scored on the same images.
    """

    trial: Trial  # of the search, whose setting it is
    runs: tuple[Trial, ...]  # its complete repeats; the trial itself where there are none
    iou: float  # mean of the runs' best validation IoU; where they are of several folds, of the folds' means
    gap_to_best: tuple[float, float] | None = None
    failed: int = 0  # repeats that gave nothing

    @property
    def setting(self) -> list[str]:
        """Return the varied keys with their values, without the seeds and folds of the repeats."""
        if self.runs == (self.trial,):
            return self.trial.typed
        return [override for override in self.trial.typed if override.partition("=")[0] not in ANEW]

    @property
    def winner(self) -> Trial:
        return max(self.runs, key=_score)

    @property
    def tied(self) -> bool:
        """Tell whether it is tied with the first: the interval of the gap includes 0."""
        return self.gap_to_best is not None and self.gap_to_best[0] <= 0

    @property
    def sd(self) -> float | None:
        """Return the standard deviation of the IoU over the runs; None if there is only one run."""
        return float(np.std([_score(run) for run in self.runs], ddof=1)) if len(self.runs) > 1 else None


def ranked(folder: Path, finalists: Sequence[Trial], runs: Iterable[Trial]) -> list[FinalistResult]:
    """Rank the finalists of the sweep in `folder` by mean validation IoU of their repeats, best first.

    A search's score does not stand beside those of fresh seeds: who has no complete repeat while others do is left out.
    Where repeats are of several folds and some failed, those of the folds that all have are compared.
    """
    repeats: dict[str, list[Trial]] = {}  # by the name of their trial
    for run in runs:
        repeats.setdefault(run.name.removeprefix(f"{FOLDER}/").rpartition("-")[0], []).append(run)
    fresh = any(run.state == "complete" for of_trial in repeats.values() for run in of_trial)

    def counted(trial: Trial) -> list[Trial]:
        return [run for run in repeats.get(trial.name, []) if run.state == "complete"] if fresh else [trial]

    folds = [{_fold(run) for run in own} for trial in finalists if (own := counted(trial))]
    common = set.intersection(*folds) if folds else set()
    results = []
    for trial in finalists:
        every = counted(trial)
        own = [run for run in every if _fold(run) in common] or every
        if not own:
            continue  # it has no fresh score, and others have
        failed = sum(run.state in ("failed", "refused") for run in repeats.get(trial.name, []))
        by_fold = [[_score(run) for run in own if _fold(run) == fold] for fold in {_fold(run) for run in own}]
        results.append(FinalistResult(trial, tuple(own), mean(map(mean, by_fold)), failed=failed))
    results.sort(key=lambda result: result.iou, reverse=True)
    scored = [read((folder / trial.name, trial.run) for trial in result.runs) for result in results]
    of = groups_of(folder / results[0].winner.name) if results else {}
    gaps = [None, *(behind(scored[0], other, of) for other in scored[1:])]
    return [replace(result, gap_to_best=gap) for result, gap in zip(results, gaps, strict=False)]


def groups_of(run: Path) -> dict[str, str]:
    """Return the group of each image of a run, by its key; empty where its split cannot be read."""
    try:
        return {row["key"]: row["group"] for row in read_split(run)}
    except (OSError, KeyError, ConfigError):
        return {}


def behind(
    first: Scored, other: Scored, groups: Mapping[str, str] | None = None, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of how much better the first is, in IoU.

    None where the images or classes differ, one image is all there is, or too few draws hold every class.

    Images, or `groups` of them, are drawn with replacement, the same for both; runs are drawn with replacement for each
    of them. Where runs were scored on several sets of images (folds), this is done in each, and the sets count alike.
    """
    if not first or first.keys() != other.keys():
        return None
    shapes = {matrices.shape[1:] for scored in (first, other) for runs in scored.values() for matrices in runs}
    if len(shapes) > 1:
        return None  # other classes
    of = {images: [(groups or {}).get(image, image) for image in images] for images in first}
    if all(len(set(names)) == 1 for names in of.values()):
        return None
    rng = np.random.default_rng(seed)

    def means(runs: Sequence[Matrices], names: Sequence[str], weights: NDArray[np.int64]) -> metrics.Floats:
        scores = np.stack([metrics.drawn_iou(metrics.by_group(run, names)[1], weights) for run in runs], 1)
        drawn = rng.integers(len(runs), size=scores.shape)
        return np.asarray(np.take_along_axis(scores, drawn, 1).mean(1))

    gains = np.zeros(metrics.RESAMPLES)
    for images, names in of.items():
        weights = metrics.resample(rng, len(set(names)))
        gains += (means(first[images], names, weights) - means(other[images], names, weights)) / len(first)
    low, high = metrics.interval(gains)
    return None if np.isnan(low) else (low, high)


def read(runs: Iterable[tuple[Path, Run]]) -> Scored:
    """Read the confusion matrices of runs, each a folder and its journal.

    Nothing where those of a run cannot be read, or are of another epoch than its journal's best.
    """
    found: dict[tuple[str, ...], list[Matrices]] = {}
    for folder, run in runs:
        kept = metrics.read_validation(folder)
        if kept is None or run.best is None or kept.epoch != run.best.epoch:
            return {}
        found.setdefault(kept.keys, []).append(kept.matrices)
    return found


def _fold(run: Trial) -> str | None:
    return run.varied.get("data.fold")


def _score(trial: Trial | None) -> float:
    return -1.0 if trial is None or trial.iou is None else trial.iou
