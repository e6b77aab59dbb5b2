"""Cross-validation: score a setting over all images, each predicted by the model that did not train on it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from segsweep import metrics
from segsweep.metrics import Floats, Matrices
from segsweep.runs.trial import Trial
from segsweep.sweeping import about, finalists
from segsweep.sweeping.about import CrossValidated

FOLD = "data.fold"


@dataclass(frozen=True)
class _Pooled:
    """All out-of-fold predictions of a setting."""

    images: int
    groups: tuple[str, ...]
    matrices: Matrices  # of each group, `g k k`

    @cached_property
    def resampled(self) -> Floats:
        """The pooled IoU of groups drawn with replacement, `r`; the same draws for the same groups."""
        return metrics.drawn_iou(self.matrices, metrics.resample(np.random.default_rng(0), len(self.groups)))


def results(folder: Path, trials: Iterable[Trial]) -> list[CrossValidated]:
    """Rank the settings of a sweep's trials by pooled out-of-fold IoU, best first; empty if it is no cross-validation.

    Settings that lack a fold come last, without a score. Of a sweep that is over it is what `sweep.json` says.
    """
    kept = about.load(folder)
    if not kept.cross_validates or kept.cross_validation:
        return kept.cross_validation
    of: dict[tuple[str, ...], dict[int, Trial]] = {}  # by setting and fold
    for trial in trials:
        setting = tuple(override for override in trial.typed if override.partition("=")[0] != FOLD)
        fold = trial.varied.get(FOLD, "")
        if fold.isdecimal():  # else the trial's file is damaged
            of.setdefault(setting, {})[int(fold)] = trial
    scored = [_scored(folder, list(setting), runs) for setting, runs in of.items()]
    scored.sort(key=lambda pair: -1.0 if pair[0].iou is None else pair[0].iou, reverse=True)
    return [replace(result, behind=_behind(scored[0][1], pooled)) for result, pooled in scored]


def _scored(folder: Path, setting: list[str], runs: dict[int, Trial]) -> tuple[CrossValidated, _Pooled | None]:
    """Score a setting by its trials, one for each fold."""
    asked = [start.settings.data.folds or 0 for trial in runs.values() if (start := trial.run.start)]
    folds = max([*asked, max(runs) + 1, 2])
    names = [runs[fold].name for fold in sorted(runs)]
    result = CrossValidated(setting, names, folds)
    for fold in range(folds):
        state = runs[fold].state if fold in runs else "not run"
        if state != "complete":
            return replace(result, problem=f"fold {fold}: {state}"), None
    pooled = _pooled([(folder / runs[fold].name, runs[fold]) for fold in range(folds)])
    if pooled is None:
        problem = f"a fold lacks the {metrics.MATRICES} of its best epoch, or its classes differ"
        return replace(result, problem=problem), None
    low, high = metrics.interval(pooled.resampled)
    own = [runs[fold].iou or 0.0 for fold in range(folds)]
    found = replace(
        result,
        images=pooled.images,
        groups=len(pooled.groups),
        iou=float(metrics.pooled_iou(pooled.matrices.sum(0))),
        interval=None if np.isnan(low) else (low, high),
        mean=mean(own),
        sd=stdev(own),
    )
    return found, pooled


def _pooled(runs: Sequence[tuple[Path, Trial]]) -> _Pooled | None:
    """Join the validation images of all folds; None where matrices are missing or do not fit together."""
    matrices: list[Matrices] = []
    groups: list[str] = []
    classes: list[str] = []  # in the order of the first fold: folds of an older version may have another
    for folder, trial in runs:
        scored = finalists.read([(folder, trial.run)])
        if not scored:
            return None
        ((keys, (own,)),) = scored.items()
        named = trial.run.start.classes if trial.run.start else []
        classes = classes or named
        if sorted(named) != sorted(classes):
            return None
        if named != classes:
            order = [named.index(name) for name in classes]
            own = own[:, order][:, :, order]
        of = finalists.groups_of(folder)
        groups += [of.get(key, key) for key in keys]
        matrices.append(own)
    if len({own.shape[1:] for own in matrices}) > 1:
        return None
    names, grouped = metrics.by_group(np.concatenate(matrices), groups)
    return _Pooled(len(groups), names, grouped)


def _behind(first: _Pooled | None, other: _Pooled | None) -> tuple[float, float] | None:
    """Return the 95 % interval of how far a setting is behind the first, on the same drawn groups; None for itself."""
    if first is None or other is None or first is other or first.groups != other.groups:
        return None
    low, high = metrics.interval(first.resampled - other.resampled)
    return None if np.isnan(low) else (low, high)
