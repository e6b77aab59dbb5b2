"""Draw a training in one figure, on white, so that it can be read on any page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from segsweep import metrics
from segsweep.paths import atomically

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # of Okabe and Ito, as in segsweep.figures.pictures
WRITTEN = 12  # classes up to which the confusion matrix has its numbers written in
UPRIGHT = 5  # classes from which on their names below it are turned
STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "legend.frameon": False}


Epoch = Mapping[str, Any]  # its number and its metrics, by name


def plain(name: str) -> str:
    """Return a name as Matplotlib writes it and takes it for no formula."""
    return name.replace("$", r"\$")


def training(path: Path, epochs: Sequence[Epoch], best: Epoch | None, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Write loss, IoU and learning rate by epoch, IoU of each class and the confusion matrix as a PNG.

    Args:
        best: of the epochs; None where none was scored.
        matrix: of the best epoch's validation, int64 `k k`, targets in rows.
        names: of the classes.
    """
    names = list(map(plain, names))
    with mpl.rc_context(STYLE):
        tall, longest = max(2.8, 0.24 * len(names)), max(map(len, names))
        below = 0.5 if len(names) < UPRIGHT else 0.5 + 0.055 * longest  # inches
        high = 3.4 + tall + below
        figure = Figure(figsize=(11, high), dpi=90)
        sides = {"left": 0.05 + 0.007 * longest, "right": 0.98, "top": 1 - 0.35 / high, "bottom": below / high}
        rows = figure.add_gridspec(2, 1, height_ratios=(2.4, tall), hspace=0.4, **sides)
        upper, lower = rows[0].subgridspec(1, 3, wspace=0.28), rows[1].subgridspec(1, 2, wspace=0.15 + 0.02 * longest)
        losses, scores, rates = (figure.add_subplot(upper[column]) for column in range(3))
        _curve(losses, epochs, {"train/loss": ("training", BLUE), "val/loss": ("validation", ORANGE)}, "loss")
        _curve(scores, epochs, {"val/iou": ("validation", ORANGE)}, "IoU")
        _curve(rates, epochs, {"lr": ("", GREEN)}, "learning rate at each epoch's end")
        if best:
            scores.plot(best["epoch"], best["val/iou"], "o", color=ORANGE, label=f"best: {best['val/iou']:.4f}")
            scores.legend()
        _bars(figure.add_subplot(lower[0]), metrics.where_present(matrix, metrics.iou(matrix)), names)
        _confusion(figure.add_subplot(lower[1]), matrix, names)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomically(path, FigureCanvasAgg(figure).print_png)


def _curve(axes: Axes, epochs: Iterable[Epoch], lines: Mapping[str, tuple[str, str]], title: str) -> None:
    for name, (label, color) in lines.items():
        points = [(epoch["epoch"], epoch[name]) for epoch in epochs if epoch.get(name) is not None]
        axes.plot(*zip(*points, strict=True), color=color, label=label, marker="." if len(points) < 30 else None)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.ticklabel_format(axis="y", useOffset=False)
    if len(lines) > 1:
        axes.legend()


def _bars(axes: Axes, iou: np.ndarray, names: Sequence[str]) -> None:
    places = np.arange(len(names))
    axes.barh(places, np.nan_to_num(iou), color=BLUE)
    for place, score in enumerate(iou):
        text = "in no mask" if np.isnan(score) else f"{score:.3f}"
        axes.text(np.nan_to_num(score) + 0.01, place, text, va="center")
    axes.set(title="IoU of each class, validation", xlim=(0, 1.12), yticks=places, yticklabels=names)
    axes.invert_yaxis()


def _confusion(axes: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    places = range(len(names))
    axes.set(title="confusion matrix, % of each class's pixels", xticks=places, yticks=places, yticklabels=names)
    turned: dict[str, Any] = {} if len(names) < UPRIGHT else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticklabels(names, **turned)
    axes.set(ylabel="truth", xlabel="prediction")
    if len(names) <= WRITTEN:
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.1f}", ha="center", va="center", color=color, fontsize=8)
