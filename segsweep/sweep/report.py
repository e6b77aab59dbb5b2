"""What came out of a sweep: a table, the best command, a page."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from segsweep.errors import ConfigError
from segsweep.paths import save_json
from segsweep.runs.trial import NAME, Trial, load_all
from segsweep.sweep.backends.local import OUTPUT
from segsweep.sweep.finalists import FOLDER, Place, ranked

ABOUT, PAGE = "sweep.json", "report.html"
SHOWN = 12  # rows of the table at the end


def keep(folder: Path, **about: Any) -> None:
    """Write down what the sweep asks, for reports."""
    save_json(folder / ABOUT, about)


def about(folder: Path) -> dict[str, Any]:
    """What was written down.

    Raises:
        ConfigError: no sweep lies in this folder.
    """
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no sweep's folder: no {ABOUT} in it. Give a hydra.sweep.dir.") from None


def sweep_of(run: Path) -> Path | None:
    """The folder of the sweep that a run is a trial of, or a finalist's repeat."""
    if not (run / NAME).exists():
        return None
    return next((up for up in list(run.absolute().parents)[:2] if (up / ABOUT).exists()), None)


def places(folder: Path) -> list[Place]:
    """The finalists of the sweep in this folder, best first, from what its trials left there.

    Raises:
        ConfigError: no sweep lies there.
    """
    chosen = about(folder)["finalists"]
    return ranked(folder, [t for t in load_all(folder) if t.name in chosen], load_all(folder, FOLDER))


def table(trials: Sequence[Trial]) -> pd.DataFrame:
    """A row for each trial, best first: what was varied, its score, and what makes comparisons fair."""
    rows = []
    for trial in trials:
        start = trial.start
        rows.append(
            {
                "trial": trial.name,
                "state": trial.state,
                **dict(override.split("=", 1) for override in trial.typed),
                "val/iou": trial.iou,
                "epochs": len(trial.epochs),
                "seconds": trial.seconds,
                "images/s": trial.speed,
                "parameters": start.get("parameters"),
                "input": "x".join(map(str, start.get("input_size", []))) or None,
                "micro_batch": start.get("micro_batch"),
                "weights": start.get("weights_source"),
                "precision": start.get("precision_used"),
                "halvings": trial.halvings,
                "reason": trial.reason,
            }
        )
    found = pd.DataFrame(rows)
    return found.sort_values("val/iou", ascending=False, kind="stable", ignore_index=True) if len(found) else found


def result(trials: Sequence[Trial], places: Sequence[Place], folder: Path) -> str:
    """What is printed at the end."""
    rows = table(trials)
    lines = [""]
    if not len(rows):
        return f"\nno trial\nfolder          {folder}"
    lines += ["search", _text(rows.drop(columns=["seconds", "reason", "halvings", "precision"]).head(SHOWN))]
    if len(rows) > SHOWN:
        lines.append(f"... {len(rows)} trials in all")
    if failed := [trial.name for trial in trials if trial.state == "failed"]:
        lines.append(f"failed: {', '.join(failed)}; what each said is in its {OUTPUT}")
    if any(place.runs != (place.trial,) for place in places):
        lines += [
            "",
            "finalists: the best setting of each of the best backbones, with fresh seeds",
            _text(ranking(places)),
            *caption(places),
        ]
        ranked = [place.trial.name for place in places]
        lost = [t.encoder for t in trials if t.name in about(folder)["finalists"] and t.name not in ranked]
        if lost:
            lines.append(f"Left out, since all their repeats failed: {', '.join(lost)}.")
    if places:
        lines += ["", *verdict(trials, places, folder)]
    lines.append(f"{'report':16}{folder / PAGE}")
    return "\n".join(lines)


def ranking(places: Sequence[Place]) -> pd.DataFrame:
    """A row for each finalist."""
    return pd.DataFrame(
        [
            {
                "encoder": place.trial.encoder,
                "setting": " ".join(o for o in place.setting if not o.startswith(("encoder=", "encoder.name="))),
                "val/iou": place.iou,
                "sd": math.nan if place.sd is None else place.sd,
                "n": f"{len(place.runs)} of {len(place.runs) + place.failed}" if place.failed else len(place.runs),
                "search": place.trial.iou,
                "behind": _interval(place, places[0]),
                "weights": place.trial.start.get("weights_source"),
            }
            for place in places
        ]
    )


def caption(places: Sequence[Place]) -> list[str]:
    """What "behind" means in the ranking, and who may be as good as the first."""
    alone = any(len(place.runs) < 2 for place in places)
    seeds = "; of seeds it says nothing where there is one run" if alone else ""
    lines = [f"Behind: how far behind the first, 95 % by a bootstrap over images and runs{seeds}."]
    if ties := [place.trial.encoder for place in places if place.tied]:
        lines.append(f"A tie: {', '.join(ties)} may be as good as {places[0].trial.encoder}.")
    return lines


def number(value: float) -> str:
    """Up to one, as a score, with four digits; a count without decimals; else with one."""
    if abs(value) <= 1:
        return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.3g}"
    return f"{value:.0f}" if value.is_integer() else f"{value:.1f}"


def verdict(trials: Sequence[Trial], places: Sequence[Place], folder: Path) -> list[str]:
    """The winner, its score and its command."""
    first = places[0]
    winner = first.winner
    tested = winner.end.get("test/iou")
    lines = [f"{'best':16}{' '.join(first.setting)}"]
    if tested is not None:
        looks = sum("test/iou" in run.end for run in (*trials, *load_all(folder, FOLDER)))
        once = "scored once" if looks < 2 else f"of {looks} models of this sweep that were scored on it: optimistic"
        lines.append(f"{'test IoU':16}{tested:.4f}, {once}")
    else:
        lines.append(f"{'':16}no test split: the validation IoU is the best of many looks, and optimistic")
    return [
        *lines,
        f"{'command':16}{command(winner)}",
        f"{'model':16}{folder / winner.name / 'best.safetensors'}",
    ]


def command(trial: Trial) -> str:
    """What to type for the same training again."""
    alone = [] if not any(o.startswith("sweeps=") for o in trial.argv) else ["hydra.mode=RUN"]
    last = {override.partition("=")[0]: override for override in trial.argv}
    return shlex.join(["python", "train.py", *last.values(), *alone])


def _interval(place: Place, first: Place) -> str:
    if place is first:
        return ""
    return "other images" if place.behind is None else f"{place.behind[0]:+.4f} to {place.behind[1]:+.4f}"


def _text(rows: pd.DataFrame) -> str:
    formats = {"images/s": lambda value: "" if pd.isna(value) else f"{value:.1f}"}
    return rows.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="", formatters=formats)
