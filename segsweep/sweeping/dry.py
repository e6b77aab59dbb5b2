"""`hydra.sweeper.dry=true`: print the number of trainings of a sweep and their time, and start none."""

from dataclasses import asdict
from statistics import mean

from segsweep import console
from segsweep.process import show
from segsweep.sweeping.backends.base import Backend
from segsweep.sweeping.live import duration
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.run import backend_for
from segsweep.sweeping.space import ENCODER, LR
from segsweep.sweeping.study import trials_of


def run(plan: Plan) -> None:
    """Print the cost of the sweep; start no training and make no folder. Raises what `told` raises."""
    backend = backend_for(plan)
    try:
        show(told(plan, backend))
    finally:
        backend.close()


def told(plan: Plan, backend: Backend) -> str:
    """Return the trainings and the time that the sweep would take, from a few steps with each encoder.

    Raises ConfigError: what a training would be refused for, or a grid without an end.
    """
    asked, encoders, space = plan.sweeper, plan.space.encoders, plan.space
    trials = trials_of(space, asked)
    finalists = min(asked.finalists, len(encoders))
    trainings = trials + finalists * asked.repeats
    console.note(f"timing a few steps with each encoder: {', '.join(encoders)}")
    base = plan.timed
    found = backend.call("segsweep.training.estimate:estimates", asdict(base), list(encoders))
    width = max(map(len, encoders))
    rows = [
        f"{name:{width}}  {one['images_per_s']:8.1f} images/s  {duration(one['seconds'])}"
        for name, one in found.items()
    ]
    seconds = trainings * mean(one["seconds"] for one in found.values()) / min(backend.capacity, trainings)
    first = [
        o for o in space.typed(space.first) if o.partition("=")[0] not in (*ENCODER, LR, "train.seed", "data.fold")
    ]
    how = [
        console.counted(trials, "trial"),
        *([f"{finalists} x {asked.repeats} repeats of finalists"] * bool(finalists)),
    ]
    lines = [
        ("trainings", f"{trainings} in all: {', '.join(how)}; {backend.capacity} at once"),
        ("each", f"{base.train.epochs} epochs" if base.train.epochs else f"{base.train.time_budget:g} s"),
        *(("one training" * (not i), row) for i, row in enumerate(rows)),
        *([("timed with", f"{' '.join(first)}; trials with other values may take another time")] * bool(first)),
        ("all", f"about {duration(seconds)}{'; less where trials are pruned' * (asked.pruner != 'none')}"),
    ]
    return console.table(lines)
