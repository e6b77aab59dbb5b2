"""What came out of a screening: a table, a picture of score against cost, the full sweep's command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from segsweep import catalog, console
from segsweep.figures.curves import plain
from segsweep.paths import atomically
from segsweep.runs.trial import Trial
from segsweep.sweeping import finalists, screened
from segsweep.sweeping.html_report import COLORS, OTHERS
from segsweep.sweeping.screened import JUDGED, Screened, iou

PICTURE, TABLE = "screen.png", "screen.csv"
PRINTED = (
    "weights",
    "objective",
    "params/M",
    "GFLOP",
    "features",
    "GBC",
    "1 epoch",
)  # and the short trainings, and the end
MARKERS: Mapping[str, Any] = {
    "features": {"marker": "o", "markerfacecolor": "white", "ms": 6},
    "epoch": {"marker": "o", "ms": 5},
    "short": {"marker": "*", "ms": 12},
}

Jobs = Mapping[str, Mapping[str, Trial]]


def written(folder: Path) -> str:
    """Write the table and the picture of the screening in a folder; return what is printed at its end."""
    kept, jobs = screened.load(folder), screened.trials(folder)
    rows = table(folder, kept, jobs)
    atomically(folder / TABLE, lambda target: rows.to_csv(target, index=False))
    atomically(folder / PICTURE, lambda target: drawn(kept, jobs).savefig(target, format="png", dpi=150))
    shown = [*PRINTED, _short(kept), "gap to best", "outcome"]
    cost = {name: lambda value: f"{value:.1f}" for name in ("params/M", "GFLOP")}
    printed = rows[shown].to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="", formatters=cost)
    about = [
        "Features: validation IoU of a linear layer on frozen features. GBC: separability of the classes, 0 is best",
        "(https://arxiv.org/abs/2111.12780). Other columns: IoU after this many epochs. Gap to best: IoU of the first",
        "minus this IoU, 95 % interval by a bootstrap over images, not over seeds. GFLOP: of the U-Net at 256x256.",
    ]
    end = [("" if i else "left out", why) for i, why in enumerate(kept.reasons)]
    if kept.chosen:
        end += [("use", ", ".join(kept.chosen)), ("learning rate", _rates(kept, jobs)), ("full sweep", kept.full)]
    end += [("picture", str(folder / PICTURE)), ("table", str(folder / TABLE))]
    return "\n".join(["", printed, *about, "", console.table(end)])


def table(folder: Path, kept: Screened, jobs: Jobs) -> pd.DataFrame:
    """Make a row for each set of weights, those that got furthest first."""
    rows, gaps = [], _gaps(folder, [jobs["short"][name] for name in order(kept, jobs) if iou(jobs["short"].get(name))])
    for name in order(kept, jobs):
        probed = jobs["features"].get(name)
        told = probed.run.end.metrics if probed and probed.run.end else {}
        epoch = probed.run.epochs[-1].metrics if probed and probed.run.epochs else told
        rows.append(
            {
                "weights": name,
                "outcome": outcome(name, kept, jobs),
                "features": iou(probed),
                "GBC": epoch.get("probe/separability"),
                "1 epoch": iou(jobs["epoch"].get(name)),
                _short(kept): iou(jobs["short"].get(name)),
                "gap to best": gaps.get(name, ""),
                **catalog.pretraining(name).columns,
                "from": kept.sources[name],
                "params/M": kept.parameters[name],
                "GFLOP": kept.gflop[name],
                "images/s": jobs["epoch"][name].speed if name in jobs["epoch"] else None,
            }
        )
    return pd.DataFrame(rows)


def _gaps(folder: Path, trained: Sequence[Trial]) -> dict[str, str]:
    """Say of each short training but the best how much lower its IoU is, as a 95 % interval over images."""
    scored = [finalists.read([(folder / trial.name, trial.run)]) for trial in trained]
    pairs = zip(trained[1:], scored[1:], strict=True)
    of = finalists.groups_of(folder / trained[0].name) if trained else {}
    found = {trial.encoder: finalists.behind(scored[0], other, of) for trial, other in pairs}
    return {name: f"{gap[0]:+.3f} to {gap[1]:+.3f}" for name, gap in found.items() if gap}


def order(kept: Screened, jobs: Jobs) -> list[str]:
    """Return the weights that were compared, those that got furthest first, then by the score there."""

    def reached(name: str) -> tuple[int, float]:
        found = [(i, score) for i, step in enumerate(JUDGED) if (score := iou(jobs[step].get(name))) is not None]
        return found[-1] if found else (-1, 0.0)

    return sorted(kept.compared, key=reached, reverse=True)


def outcome(name: str, kept: Screened, jobs: Jobs) -> str:
    """Say what became of a set of weights."""
    had = [(step, jobs[step][name]) for step in JUDGED if name in jobs[step]]
    if not had:
        return "not begun"
    step, last = had[-1]
    if last.state != "complete":
        return f"{last.state}: {last.reason}" if last.reason else last.state
    if not kept.chosen:
        return f"complete: {_title(step, kept)}"
    return "kept" if name in kept.chosen else f"out after {_title(step, kept)}"


def drawn(kept: Screened, jobs: Jobs) -> Figure:
    """Draw each set of weights' scores, a row each, and beside it the scores against the cost."""
    names = order(kept, jobs)
    objectives = list(dict.fromkeys(catalog.pretraining(name).objective for name in names))
    colors = {one: COLORS[i] if i < len(COLORS) else OTHERS for i, one in enumerate(objectives)}
    with mpl.rc_context({"font.size": 9}):
        height = max(3.2, 1.6 + 0.26 * len(names))
        figure = Figure(figsize=(12, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for ax in (left, right):
            ax.spines[["top", "right"]].set_visible(False)
        _rows(left, names, colors, kept, jobs)
        _against_cost(right, names, colors, kept, jobs)
        handles = [left.plot([], [], "s", color=colors[one], label=plain(one))[0] for one in objectives]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure


def _rows(ax: Axes, names: Sequence[str], colors: Mapping[str, str], kept: Screened, jobs: Jobs) -> None:
    for i, name in enumerate(names):
        color = colors[catalog.pretraining(name).objective]
        known = [(step, score) for step in JUDGED if (score := iou(jobs[step].get(name))) is not None]
        ax.plot([score for _, score in known], [i] * len(known), color="#ccc", lw=1, zorder=0)
        for step, score in known:
            ax.plot([score], [i], color=color, ls="", **MARKERS[step])
    ax.set_yticks(range(len(names)), [f"{plain(name)}  {i + 1}" for i, name in enumerate(names)])
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in kept.chosen else "normal")
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("val IoU")
    for step in JUDGED:
        ax.plot([], [], color="#555", ls="", label=_title(step, kept), **MARKERS[step])
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _against_cost(ax: Axes, names: Sequence[str], colors: Mapping[str, str], kept: Screened, jobs: Jobs) -> None:
    """Draw what can be compared: frozen features of all, and the short trainings."""
    for i, name in enumerate(names):
        color, cost = colors[catalog.pretraining(name).objective], kept.gflop[name]
        known = {step: score for step in ("features", "short") if (score := iou(jobs[step].get(name))) is not None}
        ax.plot([cost] * len(known), list(known.values()), color="#ccc", lw=1, zorder=0)
        for step, score in known.items():
            ax.plot([cost], [score], color=color, ls="", **MARKERS[step])
        for score in list(known.values())[-1:]:
            ax.annotate(str(i + 1), (cost, score), xytext=(6, 4), textcoords="offset points", fontsize=8)
    ax.set_xscale("log")
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    ax.set(xlabel="cost: GFLOP of the U-Net at 256x256", ylabel="val IoU")
    ax.margins(x=0.15, y=0.12)


def _short(kept: Screened) -> str:
    return console.counted(kept.short_epochs, "epoch") if kept.short_epochs > 1 else "short"


def _title(step: str, kept: Screened) -> str:
    return {"features": "frozen features", "epoch": "one epoch", "short": _short(kept)}[step]


def _rates(kept: Screened, jobs: Jobs) -> str:
    """Say at which learning rate the weights that are left were trained."""
    found = {name: trial.run.start for name, trial in jobs["short"].items() if name in kept.chosen}
    rates = {f"{start.settings.optim.lr:g}" for start in found.values() if start}
    return f"{' or '.join(sorted(rates))} so far, the default of their kind; the full sweep finds the best"
