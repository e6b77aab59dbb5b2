"""What a screening keeps, and who goes on after each of its steps: pure functions of its journals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from segsweep.config.checks import read_file
from segsweep.paths import save_json
from segsweep.runs.trial import Trial, load_all

NAME = "screen.json"
# Steps, the cheapest first, each with those by which its weights are judged. After one epoch two steps count, since
# they say different things: how much weights know already, and how fast they adapt.
JUDGED: Mapping[str, Sequence[str]] = {"features": ("features",), "epoch": ("features", "epoch"), "short": ("short",)}


@dataclass(frozen=True)
class Screened:
    """What is written down of a screening: what was asked, and what was found before its first job."""

    command: str  # as it was typed, without the program
    fixed: list[str]  # the overrides that all jobs have
    decided: list[str]  # words that follow from the data alone
    sources: dict[str, str] = field(default_factory=dict)  # of the weights that can be had: where they come from
    left_out: dict[str, str] = field(default_factory=dict)  # those that are not compared, and why
    gflop: dict[str, float] = field(default_factory=dict)  # of the U-Net's forward pass at 256x256
    parameters: dict[str, float] = field(default_factory=dict)  # of the encoder, in millions
    seconds: dict[str, float] = field(default_factory=dict)  # of an epoch, as estimated
    short_epochs: int = 0  # of the short trainings
    fades: bool = False  # whether what is said of class weights is in `decided`; 0.1.0 knew nothing of it
    chosen: list[str] = field(default_factory=list)  # best first, once it is over
    full: str = ""  # the full sweep's command, once it is over

    @property
    def compared(self) -> list[str]:
        """Return the weights that are compared."""
        return [name for name in self.sources if name not in self.left_out]

    @property
    def reasons(self) -> list[str]:
        """Say why weights are left out, each reason once."""
        of: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            of.setdefault(why, []).append(name)
        return [f"{why}: {', '.join(names)}" for why, names in of.items()]

    def save(self, folder: Path) -> None:
        save_json(folder / NAME, asdict(self))


def load(folder: Path) -> Screened:
    """Read what is written down of the screening in a folder; ConfigError if it is damaged."""
    return read_file(Screened, folder / NAME, "screening")


def trials(folder: Path) -> dict[str, dict[str, Trial]]:
    """Return all jobs of a screening, by step and weights."""
    return {step: {trial.encoder: trial for trial in load_all(folder, step)} for step in JUDGED}


def iou(trial: Trial | None) -> float | None:
    """Return a job's score; None where it is not complete."""
    return trial.iou if trial and trial.state == "complete" else None


def best_first(names: Sequence[str], jobs: Mapping[str, Mapping[str, Trial]], after: str) -> list[str]:
    """Order weights that are complete after a step, best first: by the better of their ranks in what it is judged by.

    Two scores that disagree, as frozen features and one epoch do, each keep their best; of equal ones the mean counts.
    """
    scored = [name for name in names if all(iou(jobs[step].get(name)) is not None for step in JUDGED[after])]

    def score(step: str, name: str) -> float:
        return iou(jobs[step][name]) or 0.0

    def order(name: str) -> tuple[int, int, float]:
        ranks = [sum(score(step, other) > score(step, name) for other in scored) for step in JUDGED[after]]
        return min(ranks), sum(ranks), -score(after, name)

    return sorted(scored, key=order)
