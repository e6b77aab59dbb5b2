"""From mask values to class indices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segsweep.errors import DataError

VOID = 255  # class index of pixels that do not count, everywhere behind this module


@dataclass(frozen=True)
class Labels:
    """The classes of a task.

    Attributes:
        names: of the classes, in the order of their indices; two names are a binary task.
        table: class index of each mask value, uint8 `256`; VOID where the value does not count.
    """

    names: tuple[str, ...]
    table: np.ndarray

    @property
    def logits(self) -> int:
        """How many logits the model gives: one for a binary task."""
        return 1 if len(self.names) == 2 else len(self.names)


def labels(counts: Mapping[int, int], names: Sequence[str] | None = None, ignore_index: int = VOID) -> Labels:
    """Decide what mask values mean.

    Without names the task is binary: 0 is background and 1 or 255 foreground, beside `ignore_index` for void. Masks of
    0 and 255 alone have no void, whatever the default `ignore_index` says.

    Args:
        counts: pixels for each mask value, over the whole data set.
        names: of the classes with the values 0, 1, ...; None for a binary task.
        ignore_index: value of void pixels.

    Raises:
        DataError: values that no class has.
    """
    present = {value for value, count in counts.items() if count}
    table = np.full(256, VOID, np.uint8)
    if names is not None:
        beyond = sorted(present - set(range(len(names))) - {ignore_index})
        if beyond:
            raise DataError(
                f"data: mask values {_shares(counts)}; {_listed(beyond)} is none of the {len(names)} data.classes "
                f"(0 to {len(names) - 1}) and not data.ignore_index={ignore_index}. Name more classes, or set "
                f"data.ignore_index={beyond[-1]}."
            )
        table[: len(names)] = np.arange(len(names), dtype=np.uint8)
        table[ignore_index] = VOID
        return Labels(tuple(names), table)
    values = present if present <= {0, 255} and ignore_index == VOID else present - {ignore_index}
    if not values <= {0, 1} and not values <= {0, 255}:
        highest = max(values)
        example = ",".join(f"c{i}" for i in range(min(highest + 1, 3))) + (",..." if highest > 2 else "")
        raise DataError(
            f"data: mask values {_shares(counts)}: more than background and foreground. Name the classes of the values "
            f"0 to {highest}: 'data.classes=[{example}]'; a value that does not count: data.ignore_index=VALUE."
        )
    foreground = 255 if 255 in values else 1
    if foreground not in values:
        raise DataError("data: every mask is empty (all background): there is nothing to learn. Check data.masks.")
    table[0], table[foreground] = 0, 1
    if foreground != ignore_index:
        table[ignore_index] = VOID
    return Labels(("background", "foreground"), table)


def _shares(counts: Mapping[int, int]) -> str:
    total = sum(counts.values())
    rows = [f"{value} ({100 * counts[value] / total:.2g} %)" for value in sorted(counts)]
    return ", ".join(rows[:12]) + (f", ... {len(rows)} in all" if len(rows) > 12 else "")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
