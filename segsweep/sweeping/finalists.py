"""The fair end of a sweep: the best setting of each of the best pretrained weights, trained again with new seeds.

A search's best score is the largest of many noisy ones, so it is too good to be true. Finalists are ranked by runs that
had no part in the choice, and compared image by image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np

from segsweep import metrics
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
    iou: float  # mean of the runs' best validation IoU
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
    """
    of: dict[tuple[str, str], list[Trial]] = {}  # by trial and state
    for run in runs:
        of.setdefault((run.name.removeprefix(f"{FOLDER}/").rpartition("-")[0], run.state), []).append(run)
    fresh = any(state == "complete" for _, state in of)
    results = []
    for trial in finalists:
        if own := of.get((trial.name, "complete"), [] if fresh else [trial]):
            failed = sum(len(of.get((trial.name, state), [])) for state in ("failed", "refused"))
            results.append(FinalistResult(trial, tuple(own), mean(map(_score, own)), failed=failed))
    results.sort(key=lambda result: result.iou, reverse=True)
    scored = [read((folder / trial.name, trial.run) for trial in result.runs) for result in results]
    gaps = [None, *(behind(scored[0], other) for other in scored[1:])]
    return [replace(result, gap_to_best=gap) for result, gap in zip(results, gaps, strict=False)]


def behind(first: Scored, other: Scored, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of how much better the first is, in IoU; None where the images differ.

    Images are drawn with replacement, the same for both; runs are drawn with replacement for each of them. Where runs
    were scored on several sets of images (folds), this is done in each, and the sets count alike.
    """
    if not first or first.keys() != other.keys():
        return None
    shapes = {matrices.shape[1:] for scored in (first, other) for runs in scored.values() for matrices in runs}
    if len(shapes) > 1:
        return None  # other classes
    rng = np.random.default_rng(seed)
    gains = np.zeros(metrics.RESAMPLES)
    for images, runs in first.items():
        weights, means = metrics.resample(rng, len(images)), []
        for side in (runs, other[images]):
            scores = np.stack([metrics.pooled_iou(metrics.pool(matrices, weights)) for matrices in side], 1)
            drawn = rng.integers(len(side), size=scores.shape)  # draws runs
            means.append(np.take_along_axis(scores, drawn, 1).mean(1))
        gains += (means[0] - means[1]) / len(first)
    return metrics.interval(gains)


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


def _score(trial: Trial | None) -> float:
    return -1.0 if trial is None or trial.iou is None else trial.iou
