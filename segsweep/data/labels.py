"""From mask values to class indices."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segsweep.data.masks import Color, Entry, NoData, Others, Value, color_of, number_of, shown
from segsweep.data.scan import USUAL, usual_void
from segsweep.errors import ConfigError, DataError, suggestion
from segsweep.paths import for_shell, override

VOID = 255  # class index of pixels that do not count, everywhere behind this module
BLACK = (0, 0, 0)
BACKGROUND = "background"
CLOSE = 32  # levels within which grey values are taken for one class's
WRITTEN = 12  # classes that a line to type has at most


@dataclass(frozen=True)
class Labels:
    """The classes of a task; two classes make a binary task."""

    names: tuple[str, ...]  # in the order of their indices
    table: np.ndarray  # class index of each mask value as the store has it, uint8 `256`; VOID: it does not count
    groups: tuple[tuple[Value, ...], ...] = ()  # the mask values of each class, the most frequent first
    void: tuple[Value, ...] = ()  # mask values that do not count
    notes: tuple[str, ...] = ()  # what was decided, a line each
    originals: tuple[int | Color, ...] = ()  # for each class the number or colour that stands for it

    @property
    def logits(self) -> int:
        """The number of logits of the model: one for a binary task, else one for each class."""
        return 1 if len(self.names) == 2 else len(self.names)

    def ordered(self, names: Sequence[str]) -> "Labels":
        """Return the same classes in another order."""
        order = [self.names.index(name) for name in names]
        table = np.full_like(self.table, VOID)
        for new, old in enumerate(order):
            table[self.table == old] = new
        groups, originals = tuple(self.groups[old] for old in order), tuple(self.originals[old] for old in order)
        return replace(self, names=tuple(names), table=table, groups=groups, originals=originals)


@dataclass(frozen=True)
class Hints:
    """What the mask files say besides their values."""

    masks: Sequence[Collection[int]] = ()  # the stored values of each mask
    tags: Collection[int] = ()  # values that a tag says stand for no data
    middle: int | None = None  # between the two ends of grey masks that were smoothed or saved with loss
    blended: bool = False  # masks were saved with loss, or coloured ones smoothed: no value is exact
    void: int | None = None  # a value that the source itself draws as void, whatever else is ignored


@dataclass(frozen=True)
class Found:
    """The values that the masks of a data set hold."""

    counts: Mapping[Value, int]  # pixels of each, in the order of the stored numbers; none is `NoData`
    where: Callable[[Value], str]  # names a mask that holds it, for messages
    masks: Sequence[Collection[Value]]  # the values of each mask
    tags: Collection[int]  # numbers that a file's tag says stand for no data

    @property
    def coloured(self) -> bool:
        return any(isinstance(value, tuple) for value in self.counts)

    @property
    def numbers(self) -> set[int]:
        """Return the numbers of the values, without colours that have none."""
        return {number for value in self.counts if (number := number_of(value)) is not None}

    def share(self, values: Collection[Value]) -> str:
        """Write their share of all pixels in percent."""
        return f"{100 * sum(self.counts[v] for v in values) / sum(self.counts.values()):.2g} %"

    def shares(self, values: Collection[Value] | None = None, written: int = WRITTEN) -> str:
        """Write at most `written` values with their shares: all in order, or the most frequent first."""
        chosen = list(self.counts) if values is None else sorted(values, key=lambda value: -self.counts[value])
        rows = [f"{shown(value)} ({self.share([value])})" for value in chosen]
        number = len(rows) + sum(value.number - 1 for value in chosen if isinstance(value, Others))
        return ", ".join(rows[:written]) + (f", ... {number} in all" if number > written else "")

    def called(self, given: int | Color) -> set[Value]:
        """Find the values that a person means by a number or a colour."""
        name: Callable[[Value], object] = number_of if isinstance(given, int) else color_of
        return {value for value in self.counts if name(value) == given}

    @property
    def background(self) -> set[Value]:
        """Return the value that is background by default: black, or 0 if no value is black."""
        black = self.called(BLACK)
        zero = {value for value in black if number_of(value) == 0}  # a palette may be filled up with black
        black = zero if len(black) > 1 and zero else black
        return black if 0 < len(black) < len(self.counts) else self.called(0)


NO_HINTS = Hints()


def labels(
    counts: Mapping[int, int],
    classes: Sequence[str] | Mapping[str, Any] | None = None,
    ignore_index: Any = None,
    known: Mapping[str, int] | None = None,
    values: Sequence[Value] | None = None,
    where: Callable[[int], str] = lambda stored: "",
    hints: Hints = NO_HINTS,
    binarize: bool = False,
) -> Labels:
    """Decide what mask values mean.

    Without classes the task is the source's own or binary: black (or 0) is background, the one other value foreground.
    A value that a class names is never void. Without `ignore_index` 255 is void only beside the indices 0, 1, ... of
    classes, where nobody names it.

    Args:
        counts: pixels for each mask value as it is stored, over the whole data set.
        classes: names of the classes with the values 0, 1, ...; or of some of the `known` ones; or names with their
            value or colour `[r, g, b]`, or a list of them to merge. Where names leave values over, these become a
            class "background". A class of that name is always the first.
        ignore_index: value or colour of void pixels.
        known: the source's own classes by name.
        values: what each stored value stands for; default: itself.
        where: names a mask that holds a stored value, for messages.
        hints: what the files say beside the values.
        binarize: all that is not background is one class.

    Raises:
        ConfigError: a class that the source does not have, a value given to two, or to a class and as void.
        DataError: values that no class has, classes that no mask has, or what may mean two things.
    """

    def meant(stored: int) -> Value:
        return values[stored] if values else stored

    stored_as = {meant(stored): stored for stored in range(len(values) if values else 256)}
    found = Found(
        {meant(stored): n for stored, n in sorted(counts.items()) if n and not isinstance(meant(stored), NoData)},
        lambda value: where(stored_as[value]),
        [{meant(stored) for stored in mask} for mask in hints.masks],
        hints.tags,
    )
    if not found.counts and any(isinstance(meant(stored), NoData) for stored in counts):
        raise DataError(
            "data: all pixels of all masks are ignored (void). Check data.masks, or type data.nodata_void=false."
        )
    void = _said_void(found, ignore_index) | (set() if hints.void is None else found.called(hints.void))
    if binarize:
        decided = _of_objects(found, void, ignore_index is not None)
    elif classes is None and not known:
        decided = _unnamed(found, void, ignore_index is not None, hints)
    else:
        decided = _with_names(found, classes, void, ignore_index is not None, known)
    table = np.full(256, VOID, np.uint8)
    for index, group in enumerate(decided.groups):
        for value in group:
            if value in stored_as:
                table[stored_as[value]] = index
    return replace(decided, table=table)


def _said_void(found: Found, ignore_index: Any) -> set[Value]:
    """The values that are said not to count."""
    if ignore_index is None:
        return set()
    given = ignore_index if isinstance(ignore_index, int) else _color(ignore_index)
    if isinstance(given, tuple) and not any(isinstance(value, (tuple, Entry)) for value in found.counts):
        raise DataError(
            f"data.ignore_index={shown(given)}: must be a mask value, not a colour: the masks hold {found.shares()}."
        )
    return found.called(given)


def _made(found: Found, named: Mapping[str, Collection[Value]], void: Collection[Value], *notes: str) -> Labels:
    """Labels whose table is still empty."""

    def by_count(group: Collection[Value]) -> tuple[Value, ...]:
        return tuple(sorted(group, key=lambda value: -found.counts.get(value, 0)))

    if len(named) > VOID:
        raise ConfigError(f"data.classes: {len(named)} classes; at most {VOID} are possible.")
    if "void" in named:
        raise ConfigError(
            "data.classes: void is what ignored pixels are called. To ignore the pixels of this class, leave it out "
            "and type data.ignore_index=VALUE; to learn it, give it another name."
        )
    if BACKGROUND in named:  # the first class is what no object is of, and of two the second is scored
        named = {BACKGROUND: named[BACKGROUND], **named}
    groups = tuple(by_count(group) for group in named.values())
    # For background black, if it is of it, however many pixels other values without a name have.
    order = [
        sorted(group, key=lambda value: value not in found.background) if name == BACKGROUND else group
        for name, group in zip(named, groups, strict=True)
    ]
    plain = tuple(next((p for value in group if (p := _plain(value)) is not None), 0) for group in order)
    return Labels(tuple(named), np.zeros(0, np.uint8), groups, by_count(void), notes, plain)


def _of_two(found: Found, foreground: set[Value], void: set[Value], *notes: str) -> Labels:
    background = set(found.counts) - foreground - void
    if not foreground:
        more = f" ({', '.join(map(shown, void))} is ignored)" if void else ""
        what = f"all pixels of all masks are background: there is nothing to learn{more}"
        raise DataError(f"data: {what}. Check data.masks.")
    return _made(found, {BACKGROUND: background or {0} - void, "foreground": foreground}, void, *notes)


def _of_objects(found: Found, void: set[Value], said: bool) -> Labels:
    """Background and all numbered objects as one class; the foreground is written as 255."""
    notes: list[str] = []
    if not said and not found.coloured and found.called(USUAL):
        if usual_void(found.numbers):
            void = _void_beside_indices(found, {"foreground": found.called(1)}, notes)
        elif len(found.numbers) > 2:
            share = found.share(found.called(USUAL))
            notes.append(
                f"masks: {USUAL} is foreground ({share} of the pixels); if it is void: data.ignore_index={USUAL}"
            )
    void = void | _tagged(found, found.background, notes)
    decided = _of_two(found, set(found.counts) - found.background - void, void, *notes)
    return replace(decided, originals=(decided.originals[0], USUAL))


def _tagged(found: Found, kept: Collection[Value], notes: list[str]) -> set[Value]:
    """Values that a file's tag says stand for no data, but for those that are kept; with a note."""
    void = {value for tag in found.tags for value in found.called(tag)} - set(kept)
    if len(void | set(kept)) == len(found.counts) and not kept:
        return set()
    if void:
        notes.append(
            f"masks: {found.shares(void)} of the pixels are ignored, because the files' nodata tag says so; to use "
            f"them: "
            "data.nodata=none"
        )
    return void


def _unnamed(found: Found, void: set[Value], said: bool, hints: Hints) -> Labels:
    """Background and the one other value."""
    notes: list[str] = []
    tagged = _tagged(found, found.background, [])
    if set(found.counts) - found.background - void - tagged:  # else the tag is of the foreground
        void = void | _tagged(found, found.background, notes)
    if not said and found.numbers >= {1, USUAL} and found.numbers <= {0, 1, USUAL} and not found.coloured and not void:
        void = _void_beside_indices(found, {BACKGROUND: found.called(0), "foreground": found.called(1)}, notes)
    background = found.background - void
    foreground = set(found.counts) - background - void
    if len(foreground) > 1:
        rarest = min(foreground, key=lambda value: found.counts[value])
        raise DataError(f"data: mask {_too_many(found, hints)} The rarest is {shown(rarest)}{found.where(rarest)}.")
    if isinstance(next(iter(background), None), Entry) and 0 not in map(number_of, background):
        notes.append("masks: background is the palette's black, though its index is not 0")
    return _of_two(found, foreground, void, *notes)


def _void_beside_indices(found: Found, named: Mapping[str, Collection[Value]], notes: list[str]) -> set[Value]:
    """The value 255, which nobody names, beside class indices; with a note. Refused where it may be foreground."""
    void, one = found.called(USUAL), found.called(1)
    foreground = next((name for name, group in named.items() if one & set(group)), "")
    of_two = foreground and found.numbers <= {0, 1, USUAL}
    alone = sum(bool(void & set(mask) and not one & set(mask)) for mask in found.masks)
    beside = sum(bool(one & set(mask)) for mask in found.masks)
    apart = any(one & set(mask) and not void & set(mask) for mask in found.masks)
    if of_two and alone and (apart or alone > beside):
        raise DataError(
            f"data: mask values {found.shares()}: {alone} masks hold {USUAL} but not 1, {beside} hold 1. If both "
            f"are {foreground}: {typed_classes({foreground: [1, USUAL]})}; to ignore {USUAL}: "
            f"data.ignore_index={USUAL}."
        )
    top = max(found.numbers - {USUAL})
    given = {name: _group(group) for name, group in named.items() if group}
    more = f"; to make it one: {typed_classes({**given, f'c{USUAL}': USUAL})}" if given else ""
    notes.append(
        f"masks: {USUAL} is ignored ({found.share(void)} of the pixels), because the other values are the indices 0 to "
        f"{top} and no class has it{more}"
    )
    return void


def _with_names(
    found: Found,
    classes: Sequence[str] | Mapping[str, Any] | None,
    void: set[Value],
    said: bool,
    known: Mapping[str, int] | None,
) -> Labels:
    notes: list[str] = []
    by_value = isinstance(classes, Mapping)
    if isinstance(classes, Mapping):
        named = _by_value(found, classes)
    elif known:
        named = {name: found.called(_known(name, known)) for name in (known if classes is None else classes)}
    else:
        assert classes is not None
        named = _in_order(found, classes, void)
    taken = set().union(*named.values())
    if not known:
        void = void | _tagged(found, taken | found.background, notes)
    if by_value and (both := taken & void):
        owner = next(name for name, group in named.items() if group & both)
        raise ConfigError(
            f"data.ignore_index={shown(next(iter(both)))} is also a value of the class {owner}: drop one of the two."
        )
    in_order = isinstance(classes, Sequence) and not known
    if not said and not found.coloured and found.called(USUAL) - taken:
        numbers = {number for value in taken if (number := number_of(value)) is not None}
        indices = (found.numbers | numbers | {*(known or {}).values()}) - {USUAL}
        top = len(named) - 1 if in_order else max(indices, default=0)
        beside = indices <= {*range(top + 1)} if in_order else indices | {0} == {*range(top + 1)}
        if top and beside and found.numbers - {0, USUAL}:
            void = void | _void_beside_indices(found, named, notes)
    if in_order:
        _refuse_beyond(found, list(named), set().union(*named.values()) | void, said)
    rest = set(found.counts) - taken - void
    if (known and set(known) - set(named)) or rest or len(named) == 1:
        named = {BACKGROUND: set(), **named}
        named[BACKGROUND] = named[BACKGROUND] | rest
    if len(named) < 2:
        name = next(iter(named))
        raise DataError(
            f"data.classes: {name} is the only class, and a training needs two classes. The masks hold "
            f"{found.shares()}. Name another class, as {_line(found)}."
        )
    if left := rest - found.background:
        more = f"; to ignore {USUAL}: data.ignore_index={USUAL}" if found.called(USUAL) & left else ""
        notes.append(
            f"masks: {found.share(left)} of the pixels have a value that belongs to no class; they are background: "
            f"{found.shares(left, 6)}{more}"
        )
    return _made(found, {name: set(group) - void for name, group in named.items()}, void, *notes)


def _by_value(found: Found, classes: Mapping[str, Any]) -> dict[str, set[Value]]:
    """The values of classes that are named with them."""
    named: dict[str, set[Value]] = {}
    owners: dict[int | Color, str] = {}
    for name, given in classes.items():
        wanted = _wanted(given, found)
        for value in wanted:
            if value in owners:
                raise ConfigError(f"data.classes: {shown(value)} is given to {owners[value]} and to {name}.")
            owners[value] = name
        named[name] = set().union(*(found.called(value) or {value} for value in wanted))
    if not any(group & found.counts.keys() for group in named.values()):
        missing, line = ", ".join(map(shown, owners)), ""
        foreground = set(found.counts) - found.background
        if len(owners) == 1 and len(foreground) == 1:
            line = f" Type {typed_classes({next(iter(classes)): _group(foreground)})}."
        raise DataError(f"data.classes: no mask holds {missing}; they hold {found.shares()}.{line}")
    twice = {value for value in found.counts if sum(value in group for group in named.values()) > 1}
    if twice:  # an entry of a palette, by its number and by its colour
        entry = next(iter(twice))
        first, second = [name for name, group in named.items() if entry in group][:2]
        raise ConfigError(f"data.classes: {shown(entry)} is given to {first} and to {second}.")
    return named


def _in_order(found: Found, classes: Sequence[str], void: set[Value]) -> dict[str, set[Value]]:
    """The values of classes that are named in the order of their values."""
    if len(classes) == 1:
        raise ConfigError(f"data.classes=[{classes[0]}]: one class needs its value: {typed_classes({classes[0]: 1})}.")
    foreground = set(found.counts) - found.background - void
    if len(classes) == 2 and len(foreground) == 1 and not any(isinstance(v, Entry) for v in foreground):
        return {classes[0]: found.background - void or {0}, classes[1]: foreground}
    if found.coloured:
        raise DataError(
            f"data.classes=[{','.join(classes)}]: the masks are coloured, {found.shares()}. Name each class with its "
            f"colour, for example {_line(found, classes)}."
        )
    if both := void & set().union(*(found.called(index) for index in range(len(classes)))):
        index = next(n for n in range(len(classes)) if found.called(n) & both)
        others = typed_classes({name: n for n, name in enumerate(classes) if n != index})
        raise ConfigError(
            f"data.ignore_index={index} is the value of {classes[index]} in data.classes=[{','.join(classes)}], too. "
            f"Type {others} data.ignore_index={index}."
        )
    return {name: found.called(index) or {index} for index, name in enumerate(classes)}


def _refuse_beyond(found: Found, classes: Sequence[str], meant: set[Value], said: bool) -> None:
    beyond = [value for value in found.counts if value not in meant]
    if beyond:
        if len(found.counts) == len(classes):
            raise DataError(
                f"data.classes=[{','.join(classes)}]: these are names of the values 0 to {len(classes) - 1}, but the "
                f"masks hold "
                f"{found.shares()}{found.where(beyond[0])}. Name the classes by value: {_line(found, classes)}."
            )
        single = f" or set data.ignore_index={_typed(beyond[0])}" if len(beyond) == 1 else ""
        some = ", ".join(map(shown, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
        raise DataError(
            f"data: mask values {found.shares()}; {some} is none of the {len(classes)} data.classes "
            f"(0 to {len(classes) - 1}){' and not data.ignore_index' if said else ''}{found.where(beyond[0])}. "
            f"Name more classes, or name them by value, as "
            f"{_line(found)},{single or ' or set data.ignore_index=VALUE'}."
        )


def _too_many(found: Found, hints: Hints) -> str:
    """What to say of masks with more than background and foreground."""
    if found.coloured:
        one = found.background and not hints.blended
        if any(isinstance(value, Others) for value in found.counts):
            return (
                f"colours {found.shares()}: as many as in photographs. Are data.images and data.masks swapped? If "
                "classes are painted over an image, name only their colours: 'data.classes={name:[r,g,b]}'."
            )
        last = "; or all colours except black as one class: data.binarize=true" if one else ""
        return (
            f"colours {found.shares()}: more than black and one other colour. Name the classes by colour: "
            f"{_line(found)}; all other colours are background; to ignore a colour: 'data.ignore_index=[r,g,b]'{last}."
        )
    if hints.middle is not None:
        return (
            f"values {found.shares()}: nearly all are near two values, as in JPEG masks or masks with "
            f"smoothed edges. Type data.threshold={hints.middle}, or name the classes by value, as {_line(found)}."
        )
    others = found.numbers - {USUAL}
    beside = USUAL in found.numbers and others == set(range(len(others)))
    named = sorted(others if beside else found.numbers)
    if named == list(range(len(named))):
        example = ",".join(f"c{i}" for i in named[:3]) + (",..." if len(named) > 3 else "")
        line = f"Name the classes of the values 0 to {named[-1]}: 'data.classes=[{example}]', or some of them: "
        line += f"'data.classes={{c{named[-1]}:{named[-1]}}}'"
    else:
        line = f"Name the classes by value: {_line(found)}; all other values are background"
    last = "; or all values except 0 as one class, as for numbered objects: data.binarize=true"
    if hints.blended:  # no value is exact
        last = "; or foreground from a level on: data.threshold=128"
    elif len(found.counts) > WRITTEN and USUAL in found.numbers:
        last += "; or foreground from a level on: data.threshold=128"
    return (
        f"values {found.shares()}: more than background and foreground. {line}; to ignore a value: "
        f"data.ignore_index=VALUE{last}."
    )


def _wanted(given: Any, found: Found) -> list[int | Color]:
    """A value, a colour, or a list of them, as a list. Three numbers are a colour where masks have colours."""
    if isinstance(given, int):
        return [given]
    if len(given) == 3 and all(isinstance(v, int) for v in given):
        palette = any(isinstance(value, Entry) for value in found.counts)
        numbers = all(found.called(v) for v in given)
        if found.coloured or (palette and (found.called(_color(given)) or not numbers)):
            return [_color(given)]
    return [v if isinstance(v, int) else _color(v) for v in given]


def _color(given: Sequence[int]) -> Color:
    red, green, blue = given
    return red, green, blue


def _known(name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        hint = suggestion(name, known)
        raise ConfigError(f"data.classes: {name} is not a class of this data set.{hint} There are: {', '.join(known)}.")
    return known[name]


def _line(found: Found, names: Sequence[str] = ()) -> str:
    """The line to type that names the most frequent values; of grey levels none beside a more frequent one."""
    first = found.background
    chosen: list[Value] = []
    for value in sorted(found.counts, key=lambda value: (value not in first, -found.counts[value])):
        near = [c for c in chosen if isinstance(c, int) and isinstance(value, int) and abs(c - value) < CLOSE]
        if _plain(value) is not None and not (near and len(found.counts) > WRITTEN):
            chosen.append(value)
    names = names or [BACKGROUND, *(f"c{i}" for i in range(1, min(len(chosen), WRITTEN)))]
    line = typed_classes({name: _group([value]) for name, value in zip(names, chosen, strict=False)})
    return line if len(chosen) <= len(names) else f"{line} and so on"


def _plain(value: Value) -> int | Color | None:
    return value if isinstance(value, tuple) else number_of(value)


def _typed(value: Value) -> str:
    return str(value.number) if isinstance(value, Entry) else shown(value)


def _group(values: Collection[Value]) -> Any:
    """A class's values as JSON has them."""
    plain = dict.fromkeys(p for value in values if (p := _plain(value)) is not None)
    listed = [value if isinstance(value, int) else list(value) for value in sorted(plain, key=str)]
    return listed[0] if len(listed) == 1 else listed


def typed_classes(named: Mapping[str, Any]) -> str:
    """Return `data.classes=...` as it is typed in a shell, with quotes for any names."""
    text = json.dumps(named, ensure_ascii=False, separators=(",", ":"))
    word = re.compile(r"(?!(true|false|null|inf|nan)$)[a-z_][\w.-]*", re.ASCII | re.IGNORECASE)
    if all(map(word.fullmatch, named)):
        return for_shell(f"data.classes={text.replace(chr(34), '')}")
    return override("data.classes", text)
