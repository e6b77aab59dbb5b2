"""A trial as the sweep sees it: a command, and what its journal says."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from segsweep.paths import save_json
from segsweep.runs import journal
from segsweep.runs.curve import Curve, Point

NAME = "trial.json"
State = Literal["running", "complete", "pruned", "failed"]


@dataclass
class Trial:
    """One training of a sweep; a finalist's repeat is one, too.

    Attributes:
        name: its folder below the sweep's: a number, or `finalists/TRIAL-SEED`.
        encoder: its backbone.
        typed: the overrides in which it differs from the others.
        argv: the whole command, without what only concerns the sweep.
        values: of the varied parameters, as the study has them.
        state: running until it is known to be over.
        reason: why it was pruned or failed.
        halvings: how often its micro-batch was halved, since the memory was too small.
        records: of its journal.
    """

    name: str
    encoder: str
    typed: list[str]
    argv: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    state: State = "running"
    reason: str = ""
    halvings: int = 0
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)
    slot: str = ""

    @property
    def start(self) -> dict[str, Any]:
        """The latest start record; empty before the first."""
        return journal.last_start(self.records)

    @property
    def end(self) -> dict[str, Any]:
        """The end record, if the journal closes with one."""
        return self.records[-1] if self.records and self.records[-1]["kind"] == "end" else {}

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The epoch records."""
        return journal.epochs(self.records)

    @property
    def iou(self) -> float | None:
        """The best validation IoU so far."""
        scored = [record["val/iou"] for record in self.epochs if record.get("val/iou") is not None]
        return max(scored, default=None)

    @property
    def seconds(self) -> float:
        """Of training and validation so far."""
        return self.epochs[-1]["perf/seconds"] if self.epochs else 0.0

    @property
    def speed(self) -> float | None:
        """Images/s of its training."""
        return self.end.get("perf/images_per_s") or journal.usual(self.epochs, "perf/images_per_s")

    @property
    def done(self) -> float:
        """The share of its training that is done, in epochs or in seconds, whichever is more."""
        points = self.curve.points
        return 1.0 if self.state == "complete" else points[-1].done if points else 0.0

    @property
    def curve(self) -> Curve:
        """What the pruner looks at."""
        start, best, points = self.start, -1.0, []
        config = start.get("config", {})
        epochs, budget = start.get("epochs"), config.get("train", {}).get("time_budget")
        for record in self.epochs:
            best = max(best, -1.0 if record.get("val/iou") is None else record["val/iou"])
            shares = [record["epoch"] / epochs] if epochs else []
            shares += [record["perf/seconds"] / budget] if budget else []
            points.append(Point(min(1.0, max(shares, default=0.0)), best))
        return Curve(self.encoder, points, self.state == "complete", config.get("optim", {}).get("lr", 0.0))

    def save(self, sweep: Path) -> None:
        """Keep it beside its journal, for reports."""
        kept = {name: value for name, value in asdict(self).items() if name != "records"}
        path = sweep / self.name / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, kept)


def load(sweep: Path, name: str) -> Trial:
    """A trial as it was saved, with its journal.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    kept = json.loads((sweep / name / NAME).read_text(encoding="utf-8"))
    known = {item.name for item in fields(Trial)}
    trial = Trial(**{key: value for key, value in kept.items() if key in known})
    trial.records = journal.read(sweep / name)
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
    usual = sum(trial.seconds for trial in over) / len(over)
    running = sum(1 - trial.done for trial in trials if trial.state == "running")
    waiting = max(0, wanted - len(over) - sum(trial.state == "running" for trial in trials))
    return usual * (waiting + running) / max(1, slots)
