"""The result of a sweep: a table, the best command, a page."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from segsweep import catalog, console
from segsweep.paths import BEST, program
from segsweep.runs.records import Start
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import about, crossval
from segsweep.sweeping.about import CrossValidated
from segsweep.sweeping.backends.base import OUTPUT
from segsweep.sweeping.finalists import FOLDER, FinalistResult, ranked
from segsweep.sweeping.space import ENCODER

PAGE = "report.html"
QUIET = ("seconds", "reason", "micro_batch_halved", "precision")  # columns of the page alone
# Where a trial ran: columns where several machines, or ways to run, took part.
MACHINE: dict[str, Callable[[Start], object]] = {
    "host": lambda start: start.host,
    "device": lambda start: start.execution.device,
    "ranks": lambda start: start.execution.ranks,
    "torch": lambda start: start.torch,
}
SHOWN = 12  # rows of the table at the end
ENOUGH, FAR = 3, 3.0  # fresh seeds of a finalist, and sd that the search's score may be off them
TINY = 1e-9  # an sd that is none


def results(folder: Path, trials: Sequence[Trial] | None = None) -> list[FinalistResult]:
    """Rank the finalists of the sweep in this folder, best first; ConfigError if none lies there, or it is damaged.

    `trials` are the search's, where they have been read already.
    """
    kept = about.load(folder)
    searched = load_all(folder) if trials is None else trials
    repeats = [run for run in load_all(folder, FOLDER) if kept.repeats is None or run.name in kept.repeats]
    return ranked(folder, [trial for trial in searched if trial.name in kept.finalists], repeats)


def table(trials: Sequence[Trial]) -> pd.DataFrame:
    """Make a row for each trial, best first: what was varied, its score, and what makes comparisons fair."""
    rows = []
    for trial in trials:
        start = trial.run.start
        rows.append(
            {
                "trial": trial.name,
                "state": trial.state,
                **{key: trial.weights if key in ENCODER else value for key, value in trial.varied.items()},
                "val/iou": trial.iou,
                "epochs": len(trial.run.epochs),
                "seconds": trial.run.seconds,
                "images/s": trial.speed,
                "parameters": start and start.parameters,
                "input": start and "x".join(map(str, start.input_size)),
                "micro_batch": start and start.execution.micro_batch,
                "weights": start and start.weights_source,
                "precision": start and start.execution.precision,
                "micro_batch_halved": trial.halvings,
                **{name: start and value(start) for name, value in MACHINE.items()},
                "reason": trial.reason,
            }
        )
    found = pd.DataFrame(rows)
    return found.sort_values("val/iou", ascending=False, kind="stable", ignore_index=True) if len(found) else found


def summary(trials: Sequence[Trial], results: Sequence[FinalistResult], folder: Path) -> str:
    """Return what is printed at the end."""
    rows = table(trials)
    if not len(rows):
        return f"\nno trial\nfolder          {folder}"
    crossed = crossval.results(folder, trials)
    lines = [
        "",
        "trials" if crossed else "search",
        _text(rows.drop(columns=[*QUIET, *(name for name in MACHINE if rows[name].nunique() < 2)]).head(SHOWN)),
    ]
    if len(rows) > SHOWN:
        lines.append(f"... {len(rows)} trials in all")
    if failed := [trial.name for trial in trials if trial.state == "failed"]:
        lines.append(f"failed: {', '.join(failed)}; their messages are in {OUTPUT} of each")
    for reason in dict.fromkeys(trial.reason for trial in trials if trial.state == "refused"):
        names = ", ".join(trial.name for trial in trials if (trial.state, trial.reason) == ("refused", reason))
        lines.append(f"refused: {names}: {reason}")
    if len(made := by_weights(trials)) > 1:
        lines += ["", "weights", _text(made.head(SHOWN))]
    if any(result.runs != (result.trial,) for result in results):
        lines += ["", "finalists: the best setting of each of the best weights, trained again with new seeds"]
        lines += [_text(ranking(results)), *caption(results), *left_out(trials, results, folder)]
    if crossed:
        lines += ["", "cross-validation: each image is predicted by the model that did not train on it"]
        lines += [_text(cross_ranking(crossed)), *cross_caption(crossed)]
    if results:
        lines += ["", *verdict(trials, results, folder)]
    elif crossed and crossed[0].iou is not None:
        lines += ["", *cross_verdict(trials, crossed[0], folder)]
    lines.append(f"{'report':16}{folder / PAGE}")
    return "\n".join(lines)


def left_out(trials: Sequence[Trial], results: Sequence[FinalistResult], folder: Path) -> list[str]:
    """Say which finalists have no place in the ranking; nothing if all have one."""
    absent = set(about.load(folder).finalists) - {result.trial.name for result in results}
    lost = [trial.weights for trial in trials if trial.name in absent]
    return [f"Left out, without a complete repeat: {', '.join(lost)}."] if lost else []


def ranking(results: Sequence[FinalistResult]) -> pd.DataFrame:
    """Make a row for each finalist."""
    return pd.DataFrame(
        [
            {
                "encoder": result.trial.weights,
                "setting": " ".join(o for o in result.setting if not o.startswith(("encoder=", "encoder.name="))),
                "val/iou": result.iou,
                "sd": math.nan if result.sd is None else result.sd,
                "n": f"{len(result.runs)} of {len(result.runs) + result.failed}" if result.failed else len(result.runs),
                "search": result.trial.iou,
                "gap to best": _interval(result, results[0]),
                "weights": result.trial.run.start and result.trial.run.start.weights_source,
                "pretrained on": _pretraining(result.trial).data,
                "objective": _pretraining(result.trial).objective,
            }
            for result in results
        ]
    )


def by_weights(trials: Sequence[Trial]) -> pd.DataFrame:
    """Make a row for each set of weights that trials began with, best first: its best score, and how it was made."""
    of: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: -1.0 if trial.iou is None else trial.iou, reverse=True):
        of.setdefault(trial.weights, []).append(trial)
    return pd.DataFrame(
        [
            {
                "weights": weights,
                "val/iou": best.iou,
                "trials": 1 + len(others),
                **_pretraining(best).columns,
                "from": best.run.start and best.run.start.weights_source,
                "parameters": best.run.start and best.run.start.parameters,
            }
            for weights, (best, *others) in of.items()
        ]
    )


def _pretraining(trial: Trial) -> catalog.Pretraining:
    """Tell how a trial's weights were made; of random ones, and of a file's without a tag, nothing is known."""
    made = catalog.pretraining(trial.weights)
    random = bool(trial.run.start and trial.run.start.weights_source == "random")
    return replace(made, data="nothing", objective="random", licence="", gated="", input_size="") if random else made


def caption(results: Sequence[FinalistResult]) -> list[str]:
    """Explain the gap in the ranking, and name the finalists that are tied with the first."""
    alone = any(len(result.runs) < 2 for result in results)
    seeds = ". A finalist with one run has no spread between seeds" if alone else ""
    lines = [f"Gap to best: IoU of the first minus this IoU, 95 % interval by a bootstrap over images and runs{seeds}."]
    if ties := [result.trial.weights for result in results if result.tied]:
        lines.append(f"A tie: {', '.join(ties)} may be as good as {results[0].trial.weights}.")
    return lines


def cross_ranking(results: Sequence[CrossValidated]) -> pd.DataFrame:
    """Make a row for each setting that ran on folds."""
    rows = []
    for result in results:
        row = {
            "setting": " ".join(result.setting) or "as typed",
            "val/iou": result.iou,
            "95 %": _between(result.interval),
        }
        if result.mean is not None and result.sd is not None:
            row["spread of folds"] = f"{result.mean:.4f} ± {result.sd:.4f}"
        row |= {"gap to best": _between(result.behind, "+"), "folds": result.folds, "images": result.images}
        rows.append(row | ({"problem": result.problem} if any(other.problem for other in results) else {}))
    return pd.DataFrame(rows)


def cross_caption(results: Sequence[CrossValidated]) -> list[str]:
    """Say what the columns of the cross-validation mean."""
    first = results[0]
    drawn = f"{first.groups} groups of images" if first.groups < first.images else "images"
    lines = [
        f"val/iou: IoU of all out-of-fold predictions together; 95 %: interval by a bootstrap over {drawn}.",
        "The model of each fold is from its best epoch on this fold, so the IoU is slightly optimistic.",
        "Spread of folds: mean ± sd of the IoU of each fold. The folds share training images, so this is not a "
        "confidence interval.",
    ]
    if any(result.behind for result in results):
        lines.append(
            "Gap to best: IoU of the first minus this IoU on the same images, 95 % interval over images, not "
            "over seeds."
        )
    return lines


def cross_verdict(trials: Sequence[Trial], best: CrossValidated, folder: Path) -> list[str]:
    """Name the best setting, its score, its folds' models, and the command that trains the first of them again."""
    between = f"   95 % {_between(best.interval)}" if best.interval else ""
    commands = [command(trial) for trial in trials if trial.name == best.trials[0]]  # none if somebody removed it
    models = f"{folder}/{{{','.join(best.trials)}}}/{BEST}"
    return [
        f"{'best':16}{' '.join(best.setting) or 'the one setting'}",
        f"{'IoU':16}{best.iou:.4f}{between}, out of fold, {best.images} images",
        f"{'spread of folds':16}{best.mean:.4f} ± {best.sd:.4f}",
        *(f"{'command':16}{typed}" for typed in commands),
        f"{'models':16}{models}",
    ]


def number(value: float) -> str:
    """Write a number: up to one, as a score, with four digits; a count without decimals; else with one."""
    if abs(value) <= 1:
        return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.3g}"
    return f"{value:.0f}" if value.is_integer() else f"{value:.1f}"


def verdict(trials: Sequence[Trial], results: Sequence[FinalistResult], folder: Path) -> list[str]:
    """Name the winner, its score and its command."""
    first, winner = results[0], results[0].winner
    tested = winner.run.tested.get("test/iou")
    lines = [f"{'best':16}{' '.join(first.setting)}"]
    lines += [f"{'doubtful':16}{why}"] if (why := doubt(first)) else []
    if tested is not None:
        looks = sum("test/iou" in trial.run.tested for trial in (*trials, *load_all(folder, FOLDER)))
        once = "scored once" if looks < 2 else f"optimistic: {looks} models of this sweep were scored on the test split"
        lines.append(f"{'test IoU':16}{tested:.4f}, {once}")
    else:
        there = winner.run.start and winner.run.start.images.get("test")
        why = "the test split is not scored" if there else "no test split"
        lines.append(f"{'':16}{why}: the validation IoU has chosen the winner, so it is optimistic")
    model = folder / winner.name / BEST
    elsewhere = f"  on {winner.slot}, not here" if winner.slot and winner.run.records and not model.exists() else ""
    return [*lines, f"{'command':16}{command(winner)}", f"{'model':16}{model}{elsewhere}"]


def doubt(result: FinalistResult) -> str:
    """Say why a finalist's score is unreliable; empty if there is no reason."""
    search, seeds = result.trial.iou, len(result.runs)
    if result.runs == (result.trial,) and result.failed:
        all_failed = f"the best of many trials: its {console.counted(result.failed, 'repeat')} with new seeds failed"
        return f"{all_failed}; their messages are in {OUTPUT} of each"
    if result.runs == (result.trial,):
        again = f"hydra.sweeper.finalists=1 hydra.sweeper.repeats={ENOUGH} trains it again with new seeds"
        return f"the best of many trials, so its score is optimistic; {again}"
    sd, found = result.sd, []
    if seeds < ENOUGH:
        found.append(f"the mean of only {console.counted(seeds, 'new seed')}; better: hydra.sweeper.repeats={ENOUGH}")
    if sd is not None and search is not None and abs(search - result.iou) > FAR * sd:
        far = abs(search - result.iou)
        apart = "far from all runs with new seeds" if sd < TINY else f"{far / sd:.1f} sd from their mean"
        found.append(f"{search:.4f} in the search, which is {apart}")
    return "; ".join(found)


def command(trial: Trial) -> str:
    """Return the command that repeats a trial's training."""
    alone = ["hydra.mode=RUN"] if any(o.startswith("sweeps=") for o in trial.argv) else []
    last = {override.partition("=")[0]: override for override in trial.argv}
    return f"{program()} {shlex.join([*last.values(), *alone])}"


def _between(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def _interval(result: FinalistResult, first: FinalistResult) -> str:
    if result is first:
        return ""
    gap = result.gap_to_best
    return "not comparable" if gap is None else _between(gap, "+")


def _rounded(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _text(rows: pd.DataFrame) -> str:
    formats = {name: partial(_rounded, digits=0) for name in ("parameters", "micro_batch")}
    formats["images/s"] = partial(_rounded, digits=1)
    return str(rows.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="", formatters=formats))
