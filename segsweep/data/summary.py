"""Summary of a data set, as a table for a person."""

from collections import Counter
from collections.abc import Iterable

from segsweep import console
from segsweep.data.dataset import Dataset
from segsweep.data.images import channels_named
from segsweep.data.masks import shown

SHOWN = 6  # mask values of a class, and sizes
CELL = 17  # letters of a part's column


def table(data: Dataset) -> str:
    """Return a table of a data set: what each part has of each class, mask values, sizes and pixels."""

    def line(title: str, values: Iterable[object]) -> tuple[str, str]:
        return title, "".join(f"{value!s:>{CELL}}" for value in values)

    rows = [
        line("", data.parts),
        line("images", map(len, data.parts.values())),
        line("groups", (len({data.groups[i] for i in indices}) for indices in data.parts.values())),
    ]
    shares = [_shares(data.counts(part)) for part in data.parts]
    showing = [(data.pixels[indices] > 0).sum(0) for indices in data.parts.values()]
    for i, name in enumerate([*data.labels.names, "void"]):
        cells = (f"{100 * share[i]:.2f} % in {images[i]:<4}" for share, images in zip(shares, showing, strict=True))
        rows.append(line(name, cells))
    groups = [*zip(data.labels.names, data.labels.groups, strict=True), ("void", data.labels.void)]
    meaning = [f"{name} = {_first([shown(value) for value in group])}" for name, group in groups if group]
    sizes = Counter((row.width, row.height) for row in data.store.rows).most_common()
    channels = Counter(row.channels for row in data.store.rows).most_common()
    low, high = data.store.range
    rows += [
        line("empty masks", (len(data.empty(part)) for part in data.parts)),
        ("", "% of the pixels, and in how many images"),
        ("", ""),
        ("mask values", f"  {'; '.join(meaning)}"),
        ("width x height", f"  {_first([f'{w}x{h} ({n})' for (w, h), n in sizes], f' {len(sizes)} sizes')}"),
        (
            "pixels",
            f"  {data.store.dtype}, {low:g} to {high:g}; "
            f"{', '.join(f'{channels_named(number)} ({n})' for number, n in channels)}",
        ),
        ("copies", f"  {len(data.copies) or 'none'}"),
        ("digest", f"  {data.store.digest}"),
    ]
    return console.table(rows)


def _shares(counts: list[int]) -> list[float]:
    """Each class's share of the pixels that count, and that of void in all."""
    *classes, void = counts
    return [*(n / max(sum(classes), 1) for n in classes), void / sum(counts)]


def _first(words: list[str], more: str = "") -> str:
    return f"{', '.join(words[:SHOWN])}{f', ...{more}' if len(words) > SHOWN else ''}"
