"""From mask values to class indices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from segsweep.data.images import Value
from segsweep.errors import ConfigError, DataError, suggestion

VOID = 255  # class index of pixels that do not count, everywhere behind this module
BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Labels:
    """The classes of a task; two are a binary one."""

    names: tuple[str, ...]  # in the order of their indices
    table: np.ndarray  # class index of each mask value as the store has it, uint8 `256`; VOID: it does not count

    @property
    def logits(self) -> int:
        """How many logits the model gives: one for a binary task."""
        return 1 if len(self.names) == 2 else len(self.names)


def labels(
    counts: Mapping[int, int],
    classes: Sequence[str] | Mapping[str, Any] | None = None,
    ignore_index: Any = None,
    known: Mapping[str, int] | None = None,
    values: Sequence[Value] | None = None,
    where: Callable[[int], str] = lambda stored: "",
) -> Labels:
    """Decide what mask values mean.

    Without classes the task is the source's own or binary: 0 (or black) is background, the one other value foreground.

    Args:
        counts: pixels for each mask value as it is stored, over the whole data set.
        classes: names of the classes with the values 0, 1, ...; or of some of the `known` ones; or names with their
            value or colour `[r, g, b]`, or a list of them to merge. Where names leave values over, these become a first
            class "background".
        ignore_index: value or colour of void pixels; default: 255, except in masks of 0 and 255 alone.
        known: the source's own classes by name.
        values: what each stored value stands for; default: itself.
        where: names a mask that holds a stored value, for messages.

    Raises:
        ConfigError: a class that the source does not have, or a value given to two.
        DataError: values that no class has, or classes that no mask has.
    """
    found = {(values[stored] if values else stored): n for stored, n in sorted(counts.items()) if n}
    coloured = any(isinstance(value, tuple) for value in found)
    void: Value = _values(255 if ignore_index is None else ignore_index, True)[0]
    if isinstance(void, tuple) and not coloured:
        raise DataError(f"data.ignore_index={_shown(void)}: a colour, but the masks hold {_shares(found)}.")

    def holder(value: Value) -> str:
        return where(values.index(value) if values else cast(int, value))

    names: tuple[str, ...]
    if classes is None and not known:
        names, meaning = _binary(found, ignore_index is not None, void, holder)
    else:
        named = _named(found, classes, ignore_index, known, coloured, holder)
        rest = {*(known or {}).values(), *found} - {value for group in named.values() for value in group} - {void}
        if rest or len(named) == 1:
            named = {"background": [], **named}
            named["background"] = [*named["background"], *rest]
        names = tuple(named)
        meaning = {value: index for index, group in enumerate(named.values()) for value in group if value != void}
    table = np.full(256, VOID, np.uint8)
    for stored, value in enumerate(values or range(256)):
        table[stored] = meaning.get(value, VOID)
    return Labels(names, table)


def _named(
    found: Mapping[Value, int],
    classes: Sequence[str] | Mapping[str, Any] | None,
    ignore_index: Any,
    known: Mapping[str, int] | None,
    coloured: bool,
    where: Callable[[Value], str],
) -> dict[str, list[Value]]:
    """The values of each class that was named."""
    if isinstance(classes, Mapping):
        named = {name: _values(given, coloured) for name, given in classes.items()}
        owners: dict[Value, str] = {}
        for name, group in named.items():
            for value in group:
                if value in owners:
                    raise ConfigError(f"data.classes: {_shown(value)} is given to {owners[value]} and to {name}.")
                owners[value] = name
        if not owners.keys() & found.keys():
            missing = ", ".join(map(_shown, owners))
            raise DataError(f"data.classes: no mask holds {missing}; they hold {_shares(found)}.")
        return named
    if known:
        return {name: [_known(name, known)] for name in (known if classes is None else classes)}
    assert classes is not None
    if coloured:
        raise DataError(
            f"data.classes=[{','.join(classes)}]: the masks are coloured, {_shares(found)}. Name the classes with "
            f"their colours: {_by_value(found, classes)}."
        )
    if len(classes) == 1:
        raise ConfigError(f"data.classes=[{classes[0]}]: one class needs its value: 'data.classes={{{classes[0]}:1}}'.")
    if len(classes) == 2 and found.keys() <= {0, 255} and ignore_index is None:
        return {classes[0]: [0], classes[1]: [255 if 255 in found else 1]}
    void = 255 if ignore_index is None else ignore_index
    beyond = [value for value in found if value not in range(len(classes)) and value != void]
    if beyond:
        some = ", ".join(map(_shown, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
        raise DataError(
            f"data: mask values {_shares(found)}; {some} is none of the {len(classes)} data.classes "
            f"(0 to {len(classes) - 1}) and not data.ignore_index={void}{where(beyond[0])}. Name more classes, or set "
            f"data.ignore_index={beyond[-1]}."
        )
    return {name: [value] for value, name in enumerate(classes)}


def _binary(
    found: Mapping[Value, int], void_given: bool, void: Value, where: Callable[[Value], str]
) -> tuple[tuple[str, str], dict[Value, int]]:
    values = set(found)
    if void_given or (1 in values and values <= {0, 1, 255}):
        values -= {void}
    foreground = values - {0, BLACK}
    if len(foreground) > 1:
        rarest = min(foreground, key=lambda value: found[value])
        raise DataError(f"data: mask {_too_many(found)} The rarest is {_shown(rarest)}{where(rarest)}.")
    if not foreground:
        raise DataError("data: every mask is empty (all background): there is nothing to learn. Check data.masks.")
    meaning: dict[Value, int] = {0: 0, BLACK: 0, foreground.pop(): 1}
    if void_given:
        meaning.pop(void, None)
    return ("background", "foreground"), meaning


def _too_many(found: Mapping[Value, int]) -> str:
    """What to say of masks with more than background and foreground."""
    numbers = [value for value in found if isinstance(value, int)]
    if len(numbers) < len(found):
        return (
            f"colours {_shares(found)}: more than black and one other. Name the classes by colour: {_by_value(found)}; "
            "what is left over is background; a colour that does not count: 'data.ignore_index=[r,g,b]'; or all that "
            "is not black as one class: data.binarize=true."
        )
    edges = found.get(0, 0) + found.get(255, 0) > 0.8 * sum(found.values())
    if 255 in found and edges and len(found) > 8:
        return (
            f"values {_shares(found)}: nearly all are 0 and 255, as in masks saved as JPEG or with smoothed edges. Cut "
            "them at 128 and save them as PNG."
        )
    highest = max(numbers)
    example = ",".join(f"c{i}" for i in range(min(highest + 1, 3))) + (",..." if highest > 2 else "")
    return (
        f"values {_shares(found)}: more than background and foreground. Name the classes of the values 0 to {highest}: "
        f"'data.classes=[{example}]', or some of them: 'data.classes={{name:{highest}}}'; a value that does not count: "
        "data.ignore_index=VALUE; or all that is not 0 as one class, as for numbered objects: data.binarize=true."
    )


def _values(given: Any, coloured: bool) -> list[Value]:
    """A value, a colour, or a list of them, as a list."""
    if isinstance(given, int):
        return [given]
    if coloured and len(given) == 3 and all(isinstance(v, int) for v in given):
        return [tuple(given)]
    return [tuple(v) if isinstance(v, Sequence) else v for v in given]


def _known(name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        hint = suggestion(name, known)
        raise ConfigError(f"data.classes: {name} is no class of this data set.{hint} There are: {', '.join(known)}.")
    return known[name]


def _shares(found: Mapping[Value, int]) -> str:
    rows = [f"{_shown(value)} ({100 * n / sum(found.values()):.2g} %)" for value, n in found.items()]
    return ", ".join(rows[:12]) + (f", ... {len(rows)} in all" if len(rows) > 12 else "")


def _by_value(found: Mapping[Value, int], names: Sequence[str] = ()) -> str:
    """The line to type that names the most frequent colours."""
    frequent = sorted(found, key=lambda value: -found[value])
    names = names or ["background", *(f"c{i}" for i in range(1, 3))]
    rows = ",".join(f"{name}:{_shown(value)}" for name, value in zip(names, frequent, strict=False))
    return f"'data.classes={{{rows}{',...' if len(frequent) > len(names) else ''}}}'"


def _shown(value: Value) -> str:
    return str(value) if isinstance(value, int) else f"[{','.join(map(str, value))}]"
