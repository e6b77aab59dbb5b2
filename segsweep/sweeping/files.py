"""The files of a shared sweep's runs: in a folder that all controllers see, or kept by MLflow.

Whoever concludes the sweep needs the finalists' models and confusion matrices, wherever they were made.
"""

import time
from collections.abc import Iterable
from pathlib import Path

from segsweep import console
from segsweep.errors import ConfigError, first_line
from segsweep.metrics import MATRICES
from segsweep.paths import BEST, override
from segsweep.runs import journal
from segsweep.runs.trial import NAME, Trial
from segsweep.sweeping.controllers import copied
from segsweep.sweeping.mirror import Tracking
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.sharing import Owner
from segsweep.tracking import client
from segsweep.tracking import run as tracking

KEPT = (journal.NAME, BEST, MATRICES, "split.csv")  # what the next leader needs of a repeat
SEEN = "controllers"  # folder with an empty file of each controller, by which others know a folder that they share
TRIES = 3  # times that MLflow is asked to take a repeat's files


class Files:
    """Those in the folder of this controller's plan, and those that can be had from elsewhere."""

    def __init__(self, plan: Plan, me: Owner):
        self._plan, self._me = plan, me

    def enter(self, first: Owner) -> None:
        """Leave a sign for the others; refuse a folder that the `first` controller, which may be this one, does not
        see, where nothing else brings models together.
        """
        plan, sign = self._plan, self._sign(self._me)
        sign.parent.mkdir(exist_ok=True)
        sign.touch()
        if plan.cross_validates and not self.sees(first):
            raise ConfigError(
                f"hydra.sweep.dir={plan.folder}: differs from the folder of the sweep's first controller, {first}, so "
                f"the folds of a setting could not be scored together. Use a folder on a shared file system."
            )
        enough = self._to_server or plan.sweeper.keep == "scores" or not plan.sweeper.finalists
        if not (enough or self.sees(first)):
            server = override("tracking.uri", "http://HOST:5000")
            raise ConfigError(
                f"hydra.sweep.dir={plan.folder}: differs from the folder of the sweep's first controller, {first}, so "
                f"finalists' models could not be compared. Use a folder on a shared file system, or an MLflow server "
                f"with {server}, or type hydra.sweeper.keep=scores."
            )

    def retract(self) -> None:
        """Remove the sign: this controller does not take part."""
        self._sign(self._me).unlink(missing_ok=True)

    def sees(self, owner: Owner) -> bool:
        """Tell whether another controller's folder is this one's."""
        return self._sign(owner).exists()

    def keep(self, track: Tracking, trial: Trial) -> None:
        """Store a repeat's files where the next leader finds them."""
        for left in reversed(range(TRIES if self._to_server else 0)):
            try:
                track.keep(trial, [self._plan.folder / trial.name / name for name in KEPT])
                return
            except Exception as error:  # whatever a server does; its folder has them
                if not left:
                    told = f"MLflow did not take the files of {trial.name}, which stay on {self._me.host}"
                    console.note(f"{told}: {first_line(error)}")
                time.sleep(1.0)

    def gather(self, trials: Iterable[Trial]) -> None:
        """Write down here what the study says of trials that ran elsewhere, for the report and all that reads it."""
        trials, top = list(trials), self._plan.folder
        for trial in trials:
            folder = top / trial.name
            if not (folder / NAME).exists():
                trial.save(top)
            if trial.run.records and not journal.exists(folder):
                journal.restore(folder, trial.run)
        # Attempts that others took over are no trials.
        below = {trial.name.rpartition("/")[0] for trial in trials}
        known = {trial.name for trial in trials}
        for path in [path for part in below for path in (top / part).glob(f"*/{NAME}")]:
            if path.parent.relative_to(top).as_posix() not in known:
                path.unlink(missing_ok=True)

    def fetch(self, trial: Trial, owner: Owner | None) -> None:
        """Bring a trial's files here, if they are elsewhere and can be reached."""
        folder, base = self._plan.folder / trial.name, self._plan.base
        if (folder / BEST).exists() or trial.state != "complete":
            return
        if owner and copied(Path(owner.folder) / trial.name, folder):
            trial.save(self._plan.folder)
        elif trial.run.start and self._to_server:
            try:
                tracking.fetch(trial.run.start.run, base.experiment, folder, base.tracking.uri)
            except Exception as error:
                console.note(f"the files of {trial.name} cannot be loaded from MLflow: {first_line(error)}")
        if owner and not (folder / BEST).exists():
            console.note(f"{trial.name}: its model is on {owner.host}: {Path(owner.folder) / trial.name / BEST}")

    def _sign(self, owner: Owner) -> Path:
        return self._plan.folder / SEEN / owner.member

    @property
    def _to_server(self) -> bool:
        """Whether repeats' files go to an MLflow server."""
        return self._plan.tracked and client.tracking_uri(self._plan.base.tracking.uri).startswith("http")
