"""The table that benchmarks/gpu.py prints, from the rows that it has saved."""

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
KEY = ("encoder", "batch", "size", "way", "round")  # of a cell
REFERENCE, PEAK = "peer, eager", "convolution peak"
FIRST, ALONE = "first training", "1 at once"
SERIAL, PACKED = "sweep, one trial at a time", "sweep, packed"


def table(rows: Sequence[Row]) -> str:
    """Markdown of one part on one card, from the rows of its file; columns that would be empty are left out."""
    latest = {tuple(row[key] for key in KEY): row for row in rows if "way" in row}
    kinds: dict[tuple[Any, ...], list[Row]] = {}
    for key, row in latest.items():
        kinds.setdefault(key[:-1], []).append(row)
    by = {tuple(row[key] for key in (*KEY, "session")): row["rate"] for row in rows if "rate" in row}

    def beside(row: Row, way: str) -> float | None:
        """That way's figure: of a step in the same round of the same session, of trainings the median."""
        if way in (PEAK, REFERENCE):
            return by.get((row["encoder"], row["batch"], row["size"], way, row["round"], row["session"]))
        same = kinds.get((row["encoder"], row["batch"], row["size"], way), [])
        found = [figure(own) for own in same if "error" not in own]
        return statistics.median(found) if found else None

    lines = []
    for (encoder, batch, size, way), own in kinds.items():
        one = {name: value for row in own for name, value in row.items()}  # of the build and the profile there is one
        rounds = [row for row in own if "rate" in row or "trials" in row]
        base = SERIAL if "trials" in one else ALONE if "epoch_rate" in one else REFERENCE
        rates = [row["rate"] for row in rounds if "rate" in row]
        ratios = [figure(row) / found for row in rounds if way != PEAK and (found := beside(row, base))]
        shares = [row["rate"] / found for row in rounds if "gflop" in one and (found := beside(row, PEAK))]
        cells = {"encoder": encoder, "batch": str(batch), "size": str(size), "": way}
        if rates:
            cells["images/s"] = spread(rates) + " TFLOP/s" * (way == PEAK)
        if "epoch_rate" in one:
            cells["whole epochs, images/s"] = spread([one["epoch_rate"]])
            cells["data share"] = f"{one['data_share']:.1%}"
            cells["validation and checkpoint"] = f"{1 - one['epoch_rate'] / one['rate']:.1%}"
        if "trials" in one:
            cells["trials an hour"] = spread([figure(row) for row in rounds])
        if "scores" in one:
            alone = [row["scores"] for row in kinds.get((encoder, batch, size, SERIAL), []) if "scores" in row]
            cells["at once"], cells["epochs"] = str(one["at_once"]), str(one["epochs"])
            if alone and len(alone[-1]) == len(one["scores"]):
                apart = [abs(a - b) for a, b in zip(alone[-1], one["scores"], strict=True)]
                cells["largest difference of IoU"] = f"{max(apart):.4f}"
        if ratios:
            cells[f"ratio to *{base}*"] = "1" if way == base else spread(ratios)
        if shares:
            cells["of the convolution peak"] = f"{statistics.median(shares) * one['gflop'] / 1000:.1%}"
        if rates and "gpu_ms" in one:
            cells["GPU busy"] = f"{statistics.median(rates) / batch * one['gpu_ms'] / 1000:.0%}"
            cells["launches, kernels a step"] = f"{one['launches']:.0f}, {one['kernels']:.0f}"
        if "gib" in one:
            cells["memory, GiB"] = f"{one['gib']:.2f}"
        if "gflop" in one:
            cells["ready after, s"] = f"{one['seconds']:.0f}"
        if "error" in one:
            cells["failed"] = one["error"].replace("|", "/")
        if way != FIRST or "error" in one:
            lines.append(cells)
    titles = sorted(dict.fromkeys(title for cells in lines for title in cells), key=lambda title: title == "failed")
    grid = [titles, *([cells.get(title, "") for title in titles] for cells in lines)]
    machines = dict.fromkeys(in_words(row["machine"]) for row in rows if "machine" in row)
    texts = [f"| {' | '.join(row)} |" for row in grid]
    return "\n".join(["; ".join(machines), "", texts[0], "|" + "---|" * len(titles), *texts[1:]])


def figure(row: Row) -> float:
    """What a row's ratio is taken of: trials an hour, images/s of whole epochs, or of steps."""
    return 3600 * row["trials"] / row["seconds"] if "trials" in row else row.get("epoch_rate", row.get("rate"))


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest, in three digits or more."""
    middle = statistics.median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    found = [f"{value:,.{digits}f}" for value in (middle, min(values), max(values))]
    return f"{found[0]} ({found[1]} to {found[2]})" if len(values) > 1 else found[0]


def in_words(machine: Row) -> str:
    commit = (machine["commit"] or "unknown")[:7] + " with uncommitted changes" * machine["dirty"]
    peer = f", segmentation_models_pytorch {machine['peer']}" if machine["peer"] else ""
    card = machine["gpu"] or machine["cpu"]
    return f"{card} · torch {machine['torch']}, timm {machine['timm']}{peer} · commit {commit} · {machine['date']}"
