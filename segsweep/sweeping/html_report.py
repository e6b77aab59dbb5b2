"""`report.html`: one file with everything a reader of a sweep asks, figures inside, nothing loaded from elsewhere."""

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from PIL import Image

from segsweep.figures.curves import plain
from segsweep.paths import atomically, program
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import about, crossval, report
from segsweep.sweeping.about import About
from segsweep.sweeping.finalists import FinalistResult
from segsweep.sweeping.space import distribution

# Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
OTHERS = "#bbbbbb"
PICTURE = 560  # pixels of a prediction's longer side
ENOUGH = 8  # complete trials to speak of importance
# A column only where they differ.
CONDITIONS = ("input", "micro_batch", "weights", "precision", "micro_batch_halved", *report.MACHINE)
BOX = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
# On a vertical axis, readable over the lines.
LABEL: Any = {"xytext": (4, 0), "textcoords": "offset points", "fontsize": 8, "va": "center", "bbox": BOX}
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "segsweep", "font.size": 10, "font.family": "sans-serif"}
optuna.logging.set_verbosity(optuna.logging.WARNING)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2.2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td, th { padding: .25em .7em; text-align: left; border-bottom: 1px solid #eee; white-space: nowrap }
td:last-child { white-space: normal; min-width: 14em }
td.n, th.n { text-align: right } div.wide { overflow-x: auto } tr.pruned, tr.failed, tr.refused { color: #888 }
pre { background: #f5f5f3; padding: .7em 1em; white-space: pre-wrap; overflow-wrap: anywhere }
h1, p { overflow-wrap: anywhere } svg { max-width: 100%; height: auto }
table.pictures td { border: none; padding: .2em; min-width: 15em } table.pictures img { width: 100% }
@media (max-width: 800px) { body { margin: 1em auto; padding: 0 .7em } td:last-child { min-width: 9em } }
p.note { color: #666 }
@media (prefers-color-scheme: dark) {
  html { color-scheme: dark } body { background: #191919; color: #ddd } p.note { color: #aaa }
  pre { background: #262626 } td, th, h2 { border-color: #3a3a3a }
  svg { filter: invert(.9) hue-rotate(180deg) } /* black becomes light, hues stay */
}
"""


def write(folder: Path) -> Path:
    """Write the page of the sweep in this folder, and return its path; ConfigError if no sweep lies there."""
    path, kept = folder / report.PAGE, about.load(folder)
    distributions = {key: distribution(text) for key, text in kept.space.items()}
    trials = list(load_all(folder))
    results = report.results(folder, trials)
    scored = [trial for trial in trials if trial.iou is not None]
    colors = _colors(scored)
    crossed = crossval.results(folder, trials)
    found = report.verdict(trials, results, folder) if results else []
    if crossed and not results and crossed[0].iou is not None:
        found = report.cross_verdict(trials, crossed[0], folder)
    sections = [_head(trials, kept, folder.name, found)]
    fresh = any(result.runs != (result.trial,) for result in results)
    if fresh:
        sections += [_section("Finalists", _finalists(results, report.left_out(trials, results, folder)))]
        if pictures := _predictions(folder, results):
            sections.append(_section("The same images, by each finalist", pictures, PREDICTIONS))
    if crossed:
        caption = " ".join(report.cross_caption(crossed))
        sections += [_section("Cross-validation", _table(report.cross_ranking(crossed)), caption)]
    if scored:
        important = _importance(trials, distributions)
        sections += [
            _section("Validation IoU by epoch", _figure(_curves, scored, colors), CURVES),
            _section("Learning rate", _figure(_rates, scored, colors, results), RATES),
            _section(
                "IoU against cost", _figure(_costs, scored, colors, results, columns=2), COSTS if fresh else SEARCHED
            ),
        ]
        if important:
            bars = _figure(_bars, important, height=0.5 + 0.4 * len(important))
            sections += [_section("What mattered", bars, IMPORTANCE)]
        parallel = _figure(_parallel, scored, colors, distributions)
        sections += [_section("All settings at once", parallel, PARALLEL)]
    if len(weights := report.by_weights(trials)) > 1:
        sections.append(_section("Weights", _table(weights), WEIGHTS))
    rows = report.table(trials)
    same = {name: rows[name].dropna().iloc[0] for name in CONDITIONS if name in rows and rows[name].nunique() == 1}
    told = ", ".join(f"{name} {report.number(v) if isinstance(v, float) else v}" for name, v in same.items())
    note = f"The same for all trials: {told}." if same else ""
    sections.append(_section("Trials", _table(rows.drop(columns=list(same))), note))
    head = '<!doctype html><html lang="en"><meta charset="utf-8">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>segsweep: {html.escape(folder.name)}</title>"
    page = f"{head}<style>{STYLE}</style>{''.join(sections)}</html>\n"
    atomically(path, lambda target: target.write_text(page, encoding="utf-8"))
    return path


PREDICTIONS = (
    "Validation images, predicted by the best run of each finalist. The images were chosen before the training."
)
CURVES = "One line for each trial, in the colour of its weights. A cross: the trial was pruned there."
RATES = (
    "Best validation IoU of each trial. A hollow point: a pruned trial, with its best IoU until then. A star: "
    "mean of a finalist's runs."
)
COSTS = (
    "Filled points: mean of a finalist's runs with new seeds. The line joins the finalists for which no other "
    "finalist has both lower cost and higher IoU. Hollow points: best IoU of other weights in the search; it is "
    "optimistic compared with a mean."
)
SEARCHED = (
    "Best IoU of each set of weights in a single run of the search; it is optimistic. The line joins those for "
    "which no other has both lower cost and higher IoU."
)
WEIGHTS = (
    "How each set of weights was made, from its name in timm, and its best IoU in the search. Trained at: size of the "
    "images in pretraining. Gated: the hub requires you to accept the licence."
)
IMPORTANCE = "Importance of each key for being among the best trials (PED-ANOVA, https://arxiv.org/abs/2304.10255)."
PARALLEL = (
    "One line for each trial that was not pruned, from its settings to its IoU. Stronger lines have a higher IoU."
)


def _head(trials: Sequence[Trial], kept: About, name: str, found: Sequence[str]) -> str:
    """Say what was asked and, as `found` has it, what came out."""
    states = [trial.state for trial in trials]
    order = [state for state in ("complete", "pruned", "failed", "refused", "running") if state in states]
    counted = ", ".join(f"{states.count(state)} {state}" for state in order)
    encoders = pd.Series([trial.weights for trial in trials]).value_counts()
    of_each = ", ".join(f"{name} {count}" for name, count in encoders.items())
    said = f"<pre>{html.escape(chr(10).join(found))}</pre>" if found else ""
    if kept.state in ("stopped", "failed"):
        said = f"<p><b>{kept.state}</b>: {html.escape(kept.reason)}</p>{said}"
    elif kept.state == "running":
        said = f"<p><b>not finished</b></p>{said}"
    return (
        f"<h1>{html.escape(name)}</h1><p>{len(trials)} trials ({counted}); equal for all: "
        f"{html.escape(kept.budget)}. By weights: {html.escape(of_each)}.</p>"
        f"<pre>{program()} {html.escape(kept.command)}</pre>{said}"
    )


def _finalists(results: Sequence[FinalistResult], left_out: Sequence[str]) -> str:
    notes = " ".join([*report.caption(results), *left_out])
    return _table(report.ranking(results)) + (
        '<p class="note">val/iou: mean validation IoU over n runs with new seeds, not the run of the search. search: '
        f"the best IoU in the search, which is optimistic. {html.escape(notes)}</p>"
    )


def _predictions(folder: Path, results: Sequence[FinalistResult]) -> str:
    """Show the images that all finalists predicted, one below the other, and the finalists side by side."""
    found = {result.trial.weights: _pictures(folder / result.winner.name) for result in results}
    shown = [name for name in next(iter(found.values())) if all(name in of for of in found.values())]
    if not shown:
        return ""
    head = "".join(f"<th>{html.escape(encoder)}</th>" for encoder in found)
    rows = "".join(f"<tr>{''.join(f'<td>{_jpeg(of[name])}</td>' for of in found.values())}</tr>" for name in shown)
    return f'<div class="wide"><table class="pictures"><tr>{head}</tr>{rows}</table></div>'


def _pictures(run: Path) -> dict[str, Path]:
    """Return a run's last picture of each validation image it keeps, by the image's name."""
    return {path.parent.name: path for path in sorted(run.glob("predictions/*/*.png"))}


def _jpeg(path: Path) -> str:
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:  # a report is not lost over a picture
        return ""
    small.thumbnail((PICTURE, PICTURE))
    made = io.BytesIO()
    small.save(made, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(made.getvalue()).decode()}">'


def _section(title: str, content: str, note: str = "") -> str:
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<h2>{html.escape(title)}</h2>{content}{said}"


def _table(rows: pd.DataFrame) -> str:
    if not len(rows):
        return "<p>none</p>"
    numbers = {name for name in rows if pd.api.types.is_numeric_dtype(rows[name])}

    def cell(name: Any, value: Any, tag: str = "td") -> str:
        if value is None or value != value:  # nan
            value = ""
        elif isinstance(value, float):
            value = report.number(value)
        kind = ' class="n"' if name in numbers else ""
        return f"<{tag}{kind}>{html.escape(str(value))}</{tag}>"

    head = "".join(cell(name, name, "th") for name in rows)
    body = []
    for row in rows.to_dict("records"):
        state = f' class="{html.escape(str(row["state"]))}"' if "state" in row else ""
        body.append(f"<tr{state}>{''.join(cell(name, value) for name, value in row.items())}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _figure(draw: Callable[..., None], *arguments: Any, columns: int = 1, height: float = 4.0) -> str:
    """Draw an SVG; its text stays text, and equal content gives equal bytes."""
    with mpl.rc_context(SVG):
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
        draw(*axes, *arguments)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "<svg" + file.getvalue().partition("<svg")[2]


def _colors(trials: Iterable[Trial]) -> dict[str, str]:
    """Choose a colour for each set of weights, the best ones' first."""
    best = sorted(trials, key=lambda trial: trial.iou or 0.0, reverse=True)
    names = dict.fromkeys(trial.weights for trial in best)
    return {name: COLORS[i] if i < len(COLORS) else OTHERS for i, name in enumerate(names)}


def _legend(ax: Axes, colors: Mapping[str, str]) -> None:
    for name, color in list(colors.items())[: len(COLORS)]:
        ax.plot([], [], color=color, lw=3, label=plain(name))
    if len(colors) > len(COLORS):
        ax.plot([], [], color=OTHERS, lw=3, label=f"{len(colors) - len(COLORS)} others")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _curves(ax: Axes, trials: Sequence[Trial], colors: Mapping[str, str]) -> None:
    for trial in trials:
        x, y = zip(*((e.epoch, e.iou) for e in trial.run.epochs if e.iou is not None), strict=True)
        ax.plot(x, y, color=colors[trial.weights], lw=1.2, alpha=0.8, marker="." if len(x) < 30 else "")
        if trial.state == "pruned":
            ax.plot(x[-1:], y[-1:], "x", color=colors[trial.weights], ms=7)
    ax.set(xlabel="epoch", ylabel="val IoU")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(ax, colors)


def _rates(ax: Axes, trials: Sequence[Trial], colors: Mapping[str, str], results: Sequence[FinalistResult]) -> None:
    for trial in trials:
        color = colors[trial.weights]
        face = "none" if trial.state == "pruned" else color
        ax.plot([_rate(trial)], [trial.iou or 0.0], "o", color=color, markerfacecolor=face, ms=7)
    for trial, iou in _fresh(results).values():
        ax.plot([_rate(trial)], [iou], "*", color=colors[trial.weights], markeredgecolor="black", ms=14)
    ax.set(xscale="log", xlabel="optim.lr", ylabel="best val IoU")
    _legend(ax, colors)


def _costs(
    left: Axes, right: Axes, trials: Sequence[Trial], colors: Mapping[str, str], results: Sequence[FinalistResult]
) -> None:
    fresh = _fresh(results)
    best = {t.weights: (t, t.iou or 0.0) for t in sorted(trials, key=lambda trial: trial.iou or 0.0)}

    shown = best | fresh
    millions = {name: t.run.start.parameters / 1e6 if t.run.start else 0.0 for name, (t, _) in shown.items()}
    slowness = {name: -(t.speed or 0.0) for name, (t, _) in shown.items()}
    for ax, label, cost in ((left, "parameters / million", millions), (right, "training, images/s", slowness)):
        points = {name: (cost[name], iou) for name, (_, iou) in shown.items()}
        front: list[tuple[float, float]] = []
        for point in sorted(points[name] for name in fresh or best):
            if not front or point[1] > front[-1][1]:
                front.append(point)
        ax.plot([abs(x) for x, _ in front], [y for _, y in front], color="#bbb", zorder=0, drawstyle="steps-post")
        for name, (x, y) in sorted(points.items()):
            face = colors[name] if name in fresh or not fresh else "none"
            ax.plot([abs(x)], [y], "o", color=colors[name], markerfacecolor=face, ms=8)
            ax.annotate(plain(name), (abs(x), y), xytext=(6, 5), textcoords="offset points", fontsize=8)
        ax.set(xlabel=label, ylabel="val IoU")
        ax.margins(x=0.25, y=0.12)


def _fresh(results: Sequence[FinalistResult]) -> dict[str, tuple[Trial, float]]:
    """Return each finalist with the mean of its fresh runs, by weights; without those that have none."""
    return {result.trial.weights: (result.trial, result.iou) for result in results if result.runs != (result.trial,)}


def _bars(ax: Axes, shares: Mapping[str, float]) -> None:
    names = list(shares)[::-1]
    ax.barh(names, [shares[name] for name in names], color=COLORS[0], height=0.6)
    ax.set(xlim=(0, 1))


def _parallel(
    ax: Axes, trials: Sequence[Trial], colors: Mapping[str, str], distributions: Mapping[str, BaseDistribution]
) -> None:
    shown = sorted((t for t in trials if t.state != "pruned"), key=lambda trial: trial.iou or 0.0)
    if not shown:
        return
    axes = [*distributions, "val IoU"]
    heights: dict[str, list[float]] = {}
    for key in axes:
        values: list[Any] = [t.iou if key == "val IoU" else t.varied.get(key) for t in shown]
        distribution = distributions.get(key)
        if isinstance(distribution, CategoricalDistribution):
            choices = list(map(str, distribution.choices))
            positions = [float(choices.index(str(v))) if str(v) in choices else 0.0 for v in values]
            low, high = 0.0, max(1.0, len(choices) - 1.0)
            labels = [(plain(choice), i / high) for i, choice in enumerate(choices)]
        else:
            log = key == "optim.lr" or getattr(distribution, "log", False)
            numbers = [float(v or 0.0) for v in values]
            positions = [math.log(n) for n in numbers] if log and min(numbers) > 0 else numbers
            low, high = min(positions), max(positions)
            labels = [(f"{min(numbers):.3g}", 0.0), (f"{max(numbers):.3g}", 1.0)]
        heights[key] = [(p - low) / (high - low) if high > low else 0.5 for p in positions]
        ax.axvline(axes.index(key), color="#ccc", lw=1, zorder=0)
        for label, y in labels:
            ax.annotate(label, (axes.index(key), y), **LABEL)
    for i, trial in enumerate(shown):
        strength, way = 0.15 + 0.85 * (i + 1) / len(shown), [heights[key][i] for key in axes]
        ax.plot(range(len(axes)), way, color=colors[trial.weights], alpha=strength, lw=1.4)
    ax.set_xticks(range(len(axes)), axes)
    ax.set_yticks([])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlim(-0.1, len(axes) - 0.6)


def _importance(trials: Sequence[Trial], distributions: Mapping[str, BaseDistribution]) -> dict[str, float]:
    """Return each key's share, largest first; empty where there is too little to tell."""
    complete = [t for t in trials if t.state == "complete" and t.values.keys() == distributions.keys()]
    if len(complete) < ENOUGH or len(distributions) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    try:
        for t in complete:
            frozen = optuna.trial.create_trial(params=t.values, distributions=dict(distributions), value=t.iou)
            study.add_trial(frozen)
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):  # all scores are equal, or values are not of the space
        return {}


def _rate(trial: Trial) -> float:
    assert trial.run.start is not None
    return float(trial.run.start.settings.optim.lr)
