"""Summary of a data set, as numbers and as a table."""

from collections.abc import Iterable
from dataclasses import dataclass

from segsweep import console
from segsweep.data.images import channels_named

SHOWN = 6  # mask values of a class
CELL = 17  # letters of a part's column


@dataclass(frozen=True)
class PartSummary:
    images: int
    groups: int
    empty: int  # masks without a pixel of any class but the first
    shares: dict[str, float]  # of each class in the pixels that count; "void": in all
    showing: dict[str, int]  # images that show some of it


@dataclass(frozen=True)
class DataSummary:
    digest: str
    sizes: dict[tuple[int, int], int]  # images by height and width, most frequent first
    channels: dict[int, int]  # images by their number of channels
    dtype: str
    range: tuple[float, float]  # lowest and highest value that a pixel can have
    copies: int
    parts: dict[str, PartSummary]
    values: dict[str, list[str]]  # the mask values of each class, and those that are "void"

    def table(self) -> str:
        """Return it for a person."""

        def line(title: str, values: Iterable[object]) -> tuple[str, str]:
            return title, "".join(f"{value!s:>{CELL}}" for value in values)

        parts = self.parts.values()
        rows = [
            line("", self.parts),
            line("images", (p.images for p in parts)),
            line("groups", (p.groups for p in parts)),
        ]
        for name in next(iter(parts)).shares:
            rows.append(line(name, (f"{100 * p.shares[name]:.2f} % in {p.showing[name]:<4}" for p in parts)))
        rows += [
            line("empty masks", (p.empty for p in parts)),
            ("", "% of the pixels, and in how many images"),
            ("", ""),
        ]
        meaning = [
            f"{name} = {', '.join(values[:SHOWN])}{', ...' if len(values) > SHOWN else ''}"
            for name, values in self.values.items()
            if values
        ]
        rows.append(("mask values", f"  {'; '.join(meaning)}"))
        sizes = [f"{width}x{height} ({n})" for (height, width), n in self.sizes.items()]
        more = f", ... {len(sizes)} sizes" if len(sizes) > 6 else ""
        channels = ", ".join(f"{channels_named(c)} ({n})" for c, n in self.channels.items())
        low, high = self.range
        rows += [
            ("width x height", f"  {', '.join(sizes[:6])}{more}"),
            ("pixels", f"  {self.dtype}, {low:g} to {high:g}; {channels}"),
            ("copies", f"  {self.copies or 'none'}"),
            ("digest", f"  {self.digest}"),
        ]
        return console.table(rows)
