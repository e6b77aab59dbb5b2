"""Runs side by side: a table of what differs between them and how well they did, from their journals."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from segsweep import metrics
from segsweep.config.schema import places
from segsweep.errors import ConfigError, suggestion
from segsweep.runs import journal, locks
from segsweep.runs.records import Run
from segsweep.runs.trial import NAME as TRIAL
from segsweep.sweeping import finalists
from segsweep.sweeping.report import number

log = logging.getLogger(__name__)

SCORES = ("val/iou", "test/iou", *(f"val/{name}" for name in metrics.SHOWN if name != "iou"))
CHANGED = 5  # images that lost most, and that won most
COST = ("epochs", "seconds", "perf/images_per_s", "parameters")
# Keys that say where and not what; of weights the table tells.
UNTOLD = places() - {"encoder.weights_file"}
UNTOLD |= {"train.test", "resume"}


def runs(folders: Iterable[Path]) -> pd.DataFrame:
    """Make a row for each run in or below the folders: all its keys, its scores and its cost; ConfigError for none.

    What is not named itself is left out if it is damaged, with a warning, or no training (`segsweep probe`).
    """
    rows = []
    for given in folders:
        for folder in journal.some_below(given):
            try:
                run = journal.started(folder)
                if folder == given or not run.probed:
                    rows.append(_row(folder, run))
            except ConfigError as error:
                if folder == given:
                    raise
                log.warning("left out: %s", error)
    if not rows:
        raise ConfigError("no run that can be read.")
    names = dict.fromkeys(name for row in rows for name in row)
    # Settings stay what they are: a column of numbers would make 2 and null 2.0 and nan.
    kinds = {name: object if _is_setting(name) else None for name in names}
    return pd.DataFrame({n: pd.Series([row.get(n) for row in rows], dtype=kinds[n]) for n in names})


def table(rows: pd.DataFrame, group_by: Sequence[str] = ()) -> pd.DataFrame:
    """Show what differs between the runs and their scores, best first; with `group_by` mean ± sd over complete runs.

    Only repeats of one setting are averaged, and those of a search, the best of many, not with finalists': what else
    differs splits the groups further. Runs on different data stay apart. A key that no run has is a ConfigError.
    """
    scores = [name for name in SCORES if name in rows and rows[name].notna().any()]
    cost = [name for name in COST if name in rows]
    data = ["data"] if _several(rows) else []
    if not group_by:
        differ = _differing(rows)
        told = rows.assign(run=rows["run"].map(_from_here), **{name: rows[name].map(_typed) for name in differ})
        return _best_first(told[["run", *data, *differ, "weights", *scores, *cost, "status"]])
    for key in group_by:
        if key not in rows:
            hint = suggestion(key, [str(column) for column in rows if _is_setting(str(column))], "Try ")
            raise ConfigError(f"--group-by {key}: no run has this key.{hint}")
    complete = rows[rows["status"] == "complete"]  # pruned ones would lower a mean
    told = (complete if len(complete) else rows).assign(**{key: rows[key].astype(str) for key in group_by})
    apart = [name for name in _differing(told) if name not in finalists.ANEW]
    told = told.assign(**{name: told[name].map(_typed) for name in apart})
    of = ["of"] if told["of"].nunique() > 1 else []
    grouped = told.groupby(list(dict.fromkeys([*group_by, *apart, *of, *data])), sort=False)
    found = grouped.size().rename("n").to_frame()
    for name in scores:
        # The winner alone has a test score: no mean of one stands beside n.
        found[name] = grouped[name].agg(lambda values: values.mean(skipna=False))
        found[f"{name} sd"] = grouped[name].agg(lambda values: values.std(ddof=1, skipna=False))
    for name in cost:
        found[name] = grouped[name].median()
    if (found["epochs"] % 1 == 0).all():
        found["epochs"] = found["epochs"].astype(int)
    found["weights"] = grouped["weights"].agg(lambda sources: "+".join(sorted(set(sources))))
    return _best_first(found.reset_index())


def pair(first: Path, second: Path, kind: str = "text") -> str:
    """Tell how the second run differs from the first: settings, scores, and the images that got better and worse."""
    rows = pd.concat([runs([folder]).head(1) for folder in (first, second)], ignore_index=True)
    sides = {"first": rows.iloc[0], "second": rows.iloc[1]}
    changed = _differing(rows)
    values = {side: [_typed(row[c]) for c in changed] for side, row in sides.items()}
    settings = pd.DataFrame({"setting": changed, **values})
    weights = {side: [row["weights"]] for side, row in sides.items()}
    settings = pd.concat([settings, pd.DataFrame({"setting": ["weights_source"], **weights})], ignore_index=True)
    names = [name for name in (*SCORES, *COST) if name in rows and rows[name].notna().all()]
    columns = {side: pd.Series([row[n] for n in names], dtype=object) for side, row in sides.items()}
    scores = pd.DataFrame({"score": names, **columns, "change": columns["second"] - columns["first"]})
    parts = [f"first           {first}", f"second          {second}"]
    if _several(rows):
        parts.append("data            not the same, so the scores cannot be compared")
    elif rows["classes"].nunique() > 1:
        parts.append("classes         not the same, so the scores cannot be compared")
    same = [] if changed else ["the same settings", ""]
    parts += ["", *same, shown(settings, kind), "", shown(scores, kind), ""]
    return "\n".join([*parts, _images(first, second, kind)])


def _images(first: Path, second: Path, kind: str) -> str:
    """Tell what changed on the validation images."""
    before, after = (finalists.read([(folder, journal.read(folder))]) for folder in (first, second))
    interval = finalists.behind(after, before, finalists.groups_of(first))
    if interval is None:
        why = f"not validated on the same images, or on too few, or one lacks the {metrics.MATRICES} of its best epoch"
        return f"images: the runs cannot be compared image by image: they were {why}"
    (keys,) = before
    each = {"first": metrics.image_iou(before[keys][0]), "second": metrics.image_iou(after[keys][0])}
    found = pd.DataFrame({"image": keys, **each})
    found["change"] = found["second"] - found["first"]
    empty = _empty(found)
    found = found.dropna().sort_values("change", kind="stable", ignore_index=True)
    better, worse = int((found["change"] > 0).sum()), int((found["change"] < 0).sum())
    low, high = interval
    sure = "" if low > 0 or high < 0 else ": the difference may be chance"
    most = found if len(found) <= 2 * CHANGED else pd.concat([found.head(CHANGED), found.tail(CHANGED)])
    return (
        f"images: {better} better, {worse} worse of {len(found)}{empty}; IoU {low:+.4f} to {high:+.4f} "
        f"(95 % interval over images{sure}; only one run each, so not over seeds)\n\n{shown(most, kind)}"
    )


def _empty(images: pd.DataFrame) -> str:
    """Tell of images without a number in `first`, `second` or both: they have nothing to find, and runs may find it."""
    left_out = images[images["change"].isna()]
    if left_out.empty:
        return ""
    wrong = {side: int(left_out[side].notna().sum()) for side in ("first", "second")}
    told = "".join(f"; in {n} of them the {side} run predicted objects" for side, n in wrong.items() if n)
    return f" ({len(left_out)} more have an empty mask{told})"


def shown(rows: pd.DataFrame, kind: str) -> str:
    """Write the table as text, csv, markdown or latex; mean and standard deviation in one cell but for csv."""
    if kind == "csv":
        return str(rows.to_csv(index=False, lineterminator="\n")).rstrip()
    records, names = rows.to_dict("records"), [str(name) for name in rows if not str(name).endswith(" sd")]
    told = {name: [_cell(row[name], row.get(f"{name} sd"), kind) for row in records] for name in names}
    cells = pd.DataFrame({_escaped(name, kind): column for name, column in told.items()})
    if kind == "latex":
        return str(cells.to_latex(index=False, escape=False)).rstrip()
    if kind == "markdown":
        lines = [cells.columns, ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    return str(cells.to_string(index=False))


def _row(folder: Path, run: Run) -> dict[str, object]:
    start, best = run.starts[-1], run.best
    return {
        "run": str(folder),
        "data": f"{start.asked.data.name} {start.data_digest[:8]}",
        "digest": start.data_digest,
        "classes": ",".join(start.classes),
        **start.keys(),
        **{name: best.metrics.get(name) if best else None for name in SCORES if name.startswith("val/")},
        "test/iou": run.tested.get("test/iou"),
        "epochs": len(run.epochs),
        "seconds": run.seconds if run.epochs else None,
        "perf/images_per_s": run.steady_median("perf/images_per_s"),
        "parameters": start.parameters,
        "weights": start.weights_source,
        "of": _role(folder),
        "status": run.end.status if run.end else "running" if locks.alive(folder) else "interrupted",
    }


def _role(folder: Path) -> str:
    """Say whether a run is a search's trial, a finalist's repeat, or by itself."""
    if not (folder / TRIAL).exists():
        return "itself"
    return "finalists" if folder.parent.name == finalists.FOLDER else "search"


def _differing(rows: pd.DataFrame) -> list[str]:
    """Return the settings that are not the same in all rows; `auto`, in old ones' records, may be any value."""
    return [c for c in rows if _is_setting(c) and len({*rows[c].map(_typed)} - {"auto"}) > 1]


def _from_here(folder: str) -> str:
    """Return a path as one types it in the working folder."""
    return str(Path(folder).relative_to(Path.cwd())) if Path(folder).is_relative_to(Path.cwd()) else folder


def _several(rows: pd.DataFrame) -> bool:
    """Tell whether the runs saw other files, whatever they are called."""
    return bool(rows["digest"].nunique() > 1)


def _typed(value: Any) -> str:
    return "null" if value is None else str(value)


def _is_setting(column: str) -> bool:
    return "." in column and column not in UNTOLD


def _best_first(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("val/iou", ascending=False, kind="stable", ignore_index=True) if "val/iou" in rows else rows


def _cell(value: Any, deviation: Any, kind: str) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        text = number(value)
        sign = r"$\pm$" if kind == "latex" else "±"
        return text if deviation is None or pd.isna(deviation) else f"{text} {sign} {deviation:.4f}"
    return _escaped(str(value), kind)


def _escaped(text: str, kind: str) -> str:
    """Escape text, so that nothing in it has a meaning to LaTeX or Markdown."""
    if kind == "latex":
        escaped = re.sub(r"[&%$#_{}]", lambda found: f"\\{found[0]}", text.replace("\\", "/"))
        return escaped.replace("^", r"\textasciicircum{}").replace("~", r"\textasciitilde{}")
    return text.replace("|", r"\|") if kind == "markdown" else text
