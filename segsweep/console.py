"""Text for the terminal: progress bars and lines on stderr, the result for stdout."""

import math
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segsweep.metrics import SHOWN
from segsweep.paths import override, program
from segsweep.process import printable

MOST_CLASSES = 25  # whose IoU the result shows one by one
SILENCE = 30.0  # seconds after which a log hears how far something is
SCORES = {**SHOWN, "boundary_iou": "boundary IoU"}  # of an evaluation


def bar(items: Iterable[Any], total: int, title: str) -> Iterator[Any]:
    """Yield the items and show a progress bar; if stderr is not a terminal, print a line from time to time."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()
        for done, item in enumerate(items):
            if time.monotonic() - said > SILENCE:
                said = time.monotonic()
                note(f"{title}: {done} of {total}")
            yield item
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=title)


def epoch_line(number: int, epochs: int | None, metrics: Mapping[str, float], is_best: bool) -> None:
    """Print one line for an epoch; a star marks the best epoch so far."""
    of = f"/{epochs}" if epochs else ""
    Console(stderr=True).print(
        f"epoch {number:>3}{of}  train loss {metrics['train/loss']:.4f}  val loss {metrics['val/loss']:.4f}  "
        f"val IoU {metrics['val/iou']:.4f}{' *' if is_best else '  '}  {metrics['perf/images_per_s']:.1f} images/s",
        highlight=False,
        soft_wrap=True,
    )


def columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of texts as a table, each column as wide as it has to be; the first row's keys are its head."""
    table = [dict(zip(rows[0], rows[0], strict=True)), *rows]
    widths = {name: max(len(row[name]) for row in table) for name in rows[0]}
    return "\n".join("  ".join(f"{row[name]:{width}}" for name, width in widths.items()).rstrip() for row in table)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 trial, 2 trials."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def note(text: str) -> None:
    """Print lines for a person, on stderr."""
    Console(stderr=True).print(printable(text), highlight=False, soft_wrap=True, markup=False)


def result(folder: Path, summary: Mapping[str, Any], reason: str) -> str:
    """Return the result of a run, what is in summary.json and the reason of its end, as a short table."""
    parts = [part for part in ("val", "test") if summary.get(f"{part}/iou") is not None]
    rows: list[tuple[str, str]] = []
    if parts:
        rows.append(("", "".join(f"{part:>10}" for part in parts)))
        for name in ("iou", "dice", "accuracy"):
            rows.append((SCORES[name], "".join(f"{summary[f'{part}/{name}']:10.4f}" for part in parts)))
        if "lowest/iou" in summary:
            rows.append(("lowest IoU", f"{summary['lowest/iou']:10.4f}    {summary['lowest/image']}"))
        rows += _of_classes(summary, parts)
        rows += [("", ""), ("best epoch", f"  {summary['best/epoch']} of {summary['epochs']}")]
    often = f" (each {summary['passes']} times an epoch)" if summary["passes"] > 1 else ""
    images = ", ".join(f"{n} {part}{often if part == 'train' else ''}" for part, n in summary["images"].items())
    rows.append(("data", f"  {summary['data']}: {images}; {len(summary['classes'])} classes"))
    warning = "  (random weights: expect lower scores)" if summary["weights_source"] == "random" else ""
    fixed = summary["input_size"]
    size = f", runs at {fixed[0]}x{fixed[1]} on a resized image" if fixed else ""
    rows.append(("encoder", f"  {summary['encoder']}, weights: {summary['weights_source']}{warning}{size}"))
    if summary.get("perf/images_per_s") is not None:
        share = summary.get("perf/peak_share") or 0.0
        digits = ".0f" if share >= 0.1 else ".2g"  # a small encoder reaches 0.8 % of a large GPU's
        used = f"; {100 * share:{digits}} % of what this machine can compute" if share else ""
        rows.append(("speed", f"  {summary['perf/images_per_s']:.1f} images/s in {summary['precision']}{used}"))
    rows += [("run", f"  {summary['status']}: {reason}"), ("folder", f"  {folder}")]
    resume = f"  {program()} {override('resume', folder)}"
    if summary["status"] == "stopped":
        rows.append(("go on", resume))
    if parts:
        predict = f"segsweep predict {shlex.quote(str(folder))} IMAGES"
        rows += [("pictures", f"  {folder / 'figures'}"), ("masks", f"  {predict}")]
    epochs = summary.get("epochs") or 0
    if summary.get("best/epoch") == epochs and reason == counted(epochs, "epoch"):
        rows.append(("longer", f"{resume} train.epochs={2 * epochs}   the last epoch was the best"))
    return f"\n{table(rows)}"


def _of_classes(summary: Mapping[str, Any], parts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the IoU of each class, of more than two."""
    classes = summary["classes"]
    if not 2 < len(classes) <= MOST_CLASSES:
        return []
    rows = [("", "")]
    for name in classes:
        values = [summary.get(f"{part}/iou/{name}") for part in parts]
        rows.append((f"IoU {name}"[:15], "".join(f"{'-':>10}" if v is None else f"{v:10.4f}" for v in values)))
    return rows


def evaluation(
    split: str,
    drawn: str,
    metrics: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]],
    folder: Path,
    looks: int,
) -> str:
    """Return the scores of a split as a short table, with 95 % intervals over what was `drawn`, as "12 images".

    `looks` says how often the run's test split has been scored; 0 where that does not matter.
    """
    rows = [("", f"{split:>10}    95 % over {drawn}")]
    for name, title in SCORES.items():
        low, high = intervals[name]
        between = "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
        rows.append((title, f"{metrics[name]:10.4f}    {between}"))
    classes = [name.removeprefix("iou/") for name in metrics if name.startswith("iou/")]
    if len(classes) > 2:
        rows += [("", ""), *((name, f"{metrics[f'iou/{name}']:10.4f}") for name in classes)]
    if "threshold/at" in metrics:
        optimistic = "chosen on these images, so its IoU is optimistic"
        where = optimistic if split in ("val", "all") else "chosen on the validation split"
        chosen = f"{metrics['threshold/at']:10.4f}    {where}; IoU with it {metrics['threshold/iou']:.4f}"
        rows += [("", ""), ("threshold", chosen)]
    rows += [("", ""), ("folder", f"  {folder}")]
    if looks:
        scored = (
            f"{counted(looks, 'time')} so far. Choose between models by their validation scores: a test score "
            "used to choose a model is optimistic."
        )
        rows.append(("test scored", f"  {scored}"))
    return table(rows)


def tracked(folder: Path, shown_by: str, problem: str | None) -> str:
    """Return the command that shows the run in MLflow, or the one that sends it later if there was a problem."""
    if not problem:
        return table([("compare", f"  {shown_by}")])
    later = f"segsweep sync {shlex.quote(str(folder))}"
    return table([("MLflow", f"  not everything was sent: {problem} Later: {later}")])


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return one line for each row: a label of 16 characters, and the text."""
    return "\n".join(f"{title:16}{text}".rstrip() for title, text in rows)
