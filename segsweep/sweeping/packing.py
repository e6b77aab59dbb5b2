"""How many trials share a GPU with `hydra.sweeper.slots=packed`: pure, from what a training was measured to need."""

from collections.abc import Sequence

from segsweep.runs.records import GpuNeed

MOST = 8  # on one GPU, whatever else allows
ROOM = 0.9  # share of a GPU's memory that trials may fill: what they need varies a little
CORES = 2  # of a trial: one launches the GPU's work, one prepares batches
GIB = 2**30


def per_gpu(needs: Sequence[GpuNeed], gpus: int, cores: int, trials: int) -> tuple[int, str]:
    """Return how many trials share each GPU, at least 1, and why not more.

    All trials of a sweep are packed alike, so the one that needs most decides.

    Args:
        needs: of a training with each encoder.
        gpus: that the sweep has.
        cores: of the machine.
        trials: that the sweep trains at most.
    """
    memory, busy = max(need.memory for need in needs), max(need.busy for need in needs)
    total = min(need.total for need in needs)
    limits = [
        (int(ROOM * total / memory), f"one takes up to {memory / GIB:.1f} of {total / GIB:.0f} GiB"),
        (int(1 / max(busy, 1e-9)), f"one keeps the GPU busy for up to {100 * busy:.0f} % of the time"),
        (cores // (CORES * gpus), f"each needs {CORES} of {cores} cores"),
        (-(-trials // gpus), f"the sweep has {trials}"),
        (MOST, "the most that is tried"),
    ]
    number, why = min(limits, key=lambda limit: limit[0])
    return max(1, number), why
