"""Warn about classes that a training cannot learn and, once half of it is done, about those that it never predicted."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from segsweep.runs.records import EpochRecord

log = logging.getLogger(__name__)

LATE = 0.5  # share of a training after which a class should have been predicted


class ClassWatch:
    """Warns of classes without a pixel in the training split at once, of classes that are never predicted later.

    Args:
        names: of the classes, by index.
        pixels: of each class in the training split.
        past: epochs that were recorded before the training goes on.
    """

    def __init__(self, names: Sequence[str], pixels: Sequence[int], past: Iterable[EpochRecord] = ()):
        self._names, self._told = names, False
        self._predicted = np.zeros(len(names), bool)
        for epoch in past:
            self._predicted |= [(epoch.metrics.get(f"val/iou/{name}") or 0) > 0 for name in names]
        self._learnt = np.array(pixels) > 0
        if lacking := [name for name, there in zip(names, self._learnt, strict=True) if not there]:
            log.warning(
                "the training split has no pixel of %s, so the model cannot learn it. Add training images with it, or "
                "leave it out of data.classes.",
                ", ".join(lacking),
            )

    def epoch(self, matrices: Iterable[NDArray[np.int64]], done: float) -> None:
        """Look at the confusion matrices `k k` of the validation images after an epoch; `done` is a share.

        Of a class that no validation image has, nothing can be said.
        """
        total = np.sum(list(matrices), 0)
        self._predicted |= total.sum(0) > 0
        if done < LATE or self._told:
            return
        self._told = True
        never = self._learnt & ~self._predicted & (total.sum(1) > 0)
        if never.any():
            log.warning(
                "%s: not predicted on any validation image so far, after %.0f %% of the training. Try data.balance=1, "
                "which shows images with rare classes more often, or a longer training.",
                ", ".join(name for name, missing in zip(self._names, never, strict=True) if missing),
                100 * done,
            )
