"""Find the trained model that RUN means: of a run, a file, an MLflow run, or the best of a sweep or experiment."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from segsweep.errors import ConfigError
from segsweep.paths import BEST, outputs, program
from segsweep.runs import journal
from segsweep.runs.records import Run
from segsweep.tracking.run import folder_of, folders_of

log = logging.getLogger(__name__)

FORMS = "a run folder, its best.safetensors, a sweep's folder, an MLflow run id, best, or best:EXPERIMENT"


@dataclass(frozen=True)
class Found:
    """A trained model's file."""

    model: Path
    folder: Path | None  # of the run that trained it; None for a file that lies elsewhere
    why: str = ""  # how it was chosen, for a person; empty where it was named

    @property
    def run(self) -> Path:
        """The run's folder; a `ConfigError` where there is none."""
        if self.folder is None:
            raise ConfigError(
                f"{self.model}: is not in a run folder, and this command needs the run's journal. Give "
                f"the run's folder."
            )
        return self.folder


def find(run: str, uri: str | None = None) -> Found:
    """Find the model that `run` means.

    Args:
        run: a run folder; a model's file; a sweep's folder: its winner; another folder: the best run below it; an
            MLflow run id; `best`: of all runs in the outputs folder; `best:X`: of the sweep or folder, or of the MLflow
            experiment X.
        uri: MLflow's tracking URI, where it is asked.
    """
    if run == "best":
        return _best(journal.below(outputs()), f"{outputs()}")
    name = run.removeprefix("best:")
    path = Path(name).expanduser()
    if path.is_file():
        inside = path.name == BEST and journal.exists(path.parent)
        return Found(path, path.parent.resolve() if inside else None)
    if path.is_dir():
        return _in_folder(path.resolve())
    if name != run:
        return _best(folders_of(name, uri), f"experiment {name}")
    if re.fullmatch(r"[0-9a-f]{32}", run):
        return _in_folder(folder_of(run, uri))
    raise ConfigError(f"{run}: no such run. Give {FORMS}.")


def _in_folder(folder: Path) -> Found:
    if journal.exists(folder):
        if not (folder / BEST).is_file():
            raise ConfigError(f"{folder}: the run has no {BEST}, because none of its epochs has been scored yet.")
        return Found(folder / BEST, folder)
    from segsweep.sweeping import about, report  # pandas and Optuna are needed here only

    where = f"{folder}"
    if (folder / about.NAME).exists():
        results, over = report.results(folder), about.load(folder).state == "complete"
        if results:
            winner = results[0].winner
            run, what = folder / winner.name, f"{' '.join(winner.typed)} (val IoU {winner.iou:.4f})"
            first = "the sweep's winner" if over else "the best so far of a sweep that is not finished"
            return Found(run / BEST, run, f"{first}: {what}")
        where += "" if over else ", a sweep that is not finished"
    return _best(journal.below(folder), where)


def _best(folders: Iterable[Path], where: str) -> Found:
    """Find the run with the best validation IoU; one that learnt its validation images by heart does not count.

    A damaged run is left out, with a warning.
    """
    scores: dict[Path, float] = {}
    data = set()
    for folder in folders:
        try:
            run = journal.read(folder) if (folder / BEST).is_file() else Run()
        except ConfigError as error:
            log.warning("left out: %s", error)
            continue
        if run.start and run.best and run.best.iou is not None and not run.start.settings.data.overfit:
            scores[folder] = run.best.iou
            data.add((run.start.data_digest, *run.start.classes))
    if not scores:
        raise ConfigError(f"{where}: no trained model there. Train one: {program()}. Or give {FORMS}.")
    best = max(scores, key=lambda folder: scores[folder])
    among = f"the best of {len(scores)} runs" if len(scores) > 1 else "the only run"
    among += (
        f" (on {len(data)} data sets or sets of classes, so their scores cannot be compared)" if len(data) > 1 else ""
    )
    return Found(best / BEST, best, f"{among} in {where}: {best} (val IoU {scores[best]:.4f})")
