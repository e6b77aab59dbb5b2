"""A trial of a sweep: its command and its journal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from segsweep import catalog
from segsweep.config.checks import read_file
from segsweep.paths import save_json
from segsweep.runs import journal
from segsweep.runs.curve import Curve, Point
from segsweep.runs.records import Run

NAME = "trial.json"
State = Literal["running", "complete", "pruned", "failed", "refused"]


@dataclass
class Trial:
    """One training of a sweep; a finalist's repeat is one, too."""

    name: str  # its folder below the sweep's: a number, or `finalists/TRIAL-SEED`
    encoder: str
    typed: list[str]  # the overrides in which it differs from the others
    argv: list[str]  # the whole command, without what only concerns the sweep
    values: dict[str, Any] = field(default_factory=dict)  # of the varied parameters, as the study has them
    state: State = "running"  # running until it is known to be over; refused: before it had begun
    reason: str = ""  # why it was pruned, failed or refused
    halvings: int = 0  # how often its micro-batch was halved, since the memory was too small
    run: Run = field(default_factory=Run, repr=False)  # what its journal says
    slot: str = ""
    placed: list[str] = field(default_factory=list)  # words to go on with here, of one that was begun elsewhere

    @property
    def number(self) -> int:
        """The trial's in its study; its folder's name may have the attempt behind a dot."""
        return int(self.name.partition(".")[0])

    @property
    def varied(self) -> dict[str, str]:
        """The trial's values of the varied keys, by key."""
        return dict(override.split("=", 1) for override in self.typed)

    @property
    def weights(self) -> str:
        """What its encoder begins with, which is what sweeps compare: timm's name with its tag.

        Of random weights, and of a file's that nobody has tagged, the architecture and what they are.
        """
        source = self.run.start.weights_source if self.run.start else ""
        if source == "random":
            return f"{self.encoder.partition('.')[0]} (random)"
        if source == "file" and (file := self.varied.get("encoder.weights_file")):
            return f"{self.encoder} ({file})"
        return (
            f"{self.encoder} (file)" if source == "file" and "." not in self.encoder else catalog.tagged(self.encoder)
        )

    @property
    def iou(self) -> float | None:
        """The best validation IoU so far."""
        return self.run.best.iou if self.run.best else None

    @property
    def speed(self) -> float | None:
        """Images/s of its training."""
        ended = self.run.end.metrics.get("perf/images_per_s") if self.run.end else None
        return ended or self.run.steady_median("perf/images_per_s")

    @property
    def done(self) -> float:
        """The share of its training that is done, in epochs or in seconds, whichever is more."""
        points = self.curve.points
        return 1.0 if self.state == "complete" else points[-1].done if points else 0.0

    @property
    def curve(self) -> Curve:
        """The learning curve, for the pruner."""
        if self.run.start is None:
            return Curve(self.weights, [])
        settings, best, points = self.run.start.settings, -1.0, []
        epochs, budget = settings.train.epochs, settings.train.time_budget
        for epoch in self.run.epochs:
            best = max(best, -1.0 if epoch.iou is None else epoch.iou)
            shares = [epoch.epoch / epochs] if epochs else []
            shares += [(epoch.metrics.get("perf/seconds") or 0.0) / budget] if budget else []
            points.append(Point(min(1.0, max(shares, default=0.0)), best))
        return Curve(self.weights, points, self.state == "complete", settings.optim.lr)

    def save(self, sweep: Path) -> None:
        """Write `trial.json` next to the journal, for reports."""
        kept = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "run"}
        path = sweep / self.name / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, kept)


def load(sweep: Path, name: str) -> Trial:
    """Return a trial as it was saved, with its journal.

    Raises:
        FileNotFoundError: there is none of that name.
        ConfigError: it, or its journal, is damaged.
    """
    trial = read_file(Trial, sweep / name / NAME, "trial")
    trial.name, trial.run = name, journal.read(sweep / name)  # whatever the file says: it may name another folder
    if trial.state == "complete" and trial.iou is None:
        trial.state, trial.reason = "failed", "its journal has lost its scores"
    return trial


def load_all(sweep: Path, below: str = "") -> Iterator[Trial]:
    """All saved trials of a sweep in order of their numbers; those below a folder, such as `finalists`, by name."""
    paths = (sweep / below).glob(f"*/{NAME}")
    for path in sorted(paths, key=lambda path: (len(path.parent.name), path.as_posix())):
        yield load(sweep, path.parent.relative_to(sweep).as_posix())


def seconds_left(trials: Sequence[Trial], wanted: int, slots: int) -> float | None:
    """A guess at how long the rest of a search takes: the usual trial's seconds, shared by the slots."""
    over = [trial for trial in trials if trial.state in ("complete", "pruned")]
    if not over:
        return None
    usual = sum(trial.run.seconds for trial in over) / len(over)
    running = sum(1 - trial.done for trial in trials if trial.state == "running")
    waiting = max(0, wanted - len(over) - sum(trial.state == "running" for trial in trials))
    return usual * (waiting + running) / max(1, slots)
