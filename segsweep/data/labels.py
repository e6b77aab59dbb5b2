"""From mask values to class indices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segsweep.errors import ConfigError, DataError, closest

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


def labels(
    counts: Mapping[int, int],
    classes: Sequence[str] | Mapping[str, int | Sequence[int]] | None = None,
    ignore_index: int = VOID,
    known: Mapping[str, int] | None = None,
) -> Labels:
    """Decide what mask values mean.

    Without classes the task is the source's own or binary: 0 is background and 1 or 255 foreground, beside
    `ignore_index` for void. Masks of 0 and 255 alone have no void, whatever the default `ignore_index` says.

    Args:
        counts: pixels for each mask value, over the whole data set.
        classes: names of the classes with the values 0, 1, ...; or of some of the `known` ones; or names with their
            value or values, to merge. Where names leave values over, these become a first class "background".
        ignore_index: value of void pixels.
        known: the source's own classes by name.

    Raises:
        ConfigError: a class that the source does not have.
        DataError: values that no class has.
    """
    present = {value for value, count in counts.items() if count}
    if classes is None and not known:
        return _binary(counts, present, ignore_index)
    if isinstance(classes, Mapping):
        named = {name: [values] if isinstance(values, int) else list(values) for name, values in classes.items()}
    elif known:
        named = {name: [_known(name, known)] for name in (known if classes is None else classes)}
    elif classes is not None and len(classes) == 1:
        raise ConfigError(f"data.classes=[{classes[0]}]: one class needs its value: 'data.classes={{{classes[0]}:1}}'.")
    else:
        named = {name: [value] for value, name in enumerate(classes or ())}
        if len(named) == 2 and present <= {0, 255} and ignore_index == VOID:
            return Labels(tuple(named), _binary(counts, present, ignore_index).table)
        beyond = sorted(present - set(range(len(named))) - {ignore_index})
        if beyond:
            raise DataError(
                f"data: mask values {_shares(counts)}; {_listed(beyond)} is none of the {len(named)} data.classes "
                f"(0 to {len(named) - 1}) and not data.ignore_index={ignore_index}. Name more classes, or set "
                f"data.ignore_index={beyond[-1]}."
            )
    table = np.full(256, VOID, np.uint8)
    rest = (set(known.values()) if known else set()) | present
    rest -= {value for values in named.values() for value in values} | {ignore_index}
    if rest or len(named) == 1:
        named = {"background": sorted(rest), **named}
    for index, values in enumerate(named.values()):
        table[values] = index
    table[ignore_index] = VOID
    return Labels(tuple(named), table)


def _binary(counts: Mapping[int, int], present: set[int], ignore_index: int) -> Labels:
    values = present if present <= {0, 255} and ignore_index == VOID else present - {ignore_index}
    if not values <= {0, 1} and not values <= {0, 255}:
        highest = max(values)
        if 255 in present and counts.get(0, 0) + counts.get(255, 0) > 0.8 * sum(counts.values()) and len(values) > 8:
            raise DataError(
                f"data: mask values {_shares(counts)}: nearly all are 0 and 255, as in masks saved as JPEG or "
                "with smoothed edges. Cut them at 128 and save them as PNG."
            )
        example = ",".join(f"c{i}" for i in range(min(highest + 1, 3))) + (",..." if highest > 2 else "")
        raise DataError(
            f"data: mask values {_shares(counts)}: more than background and foreground. Name the classes of the values "
            f"0 to {highest}: 'data.classes=[{example}]', or some of them: 'data.classes={{name:{highest}}}'; a value "
            "that does not count: data.ignore_index=VALUE."
        )
    foreground = 255 if 255 in values else 1
    if foreground not in values:
        raise DataError("data: every mask is empty (all background): there is nothing to learn. Check data.masks.")
    table = np.full(256, VOID, np.uint8)
    table[0], table[foreground] = 0, 1
    if foreground != ignore_index:
        table[ignore_index] = VOID
    return Labels(("background", "foreground"), table)


def _known(name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        near = closest(name, known)
        hint = f" Closest: {near[0]}." if near else ""
        raise ConfigError(f"data.classes: {name} is no class of this data set.{hint} There are: {', '.join(known)}.")
    return known[name]


def _shares(counts: Mapping[int, int]) -> str:
    total = sum(counts.values())
    rows = [f"{value} ({100 * counts[value] / total:.2g} %)" for value in sorted(counts)]
    return ", ".join(rows[:12]) + (f", ... {len(rows)} in all" if len(rows) > 12 else "")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
