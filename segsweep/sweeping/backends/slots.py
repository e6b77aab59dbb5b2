"""Places where trainings run on this machine: which GPUs each has, how many threads. Standard library only."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segsweep.errors import ConfigError
from segsweep.world import cores

CORES_PER_SLOT = 4  # on a CPU
PACKED = "packed"  # several trials on each GPU


@dataclass(frozen=True)
class Slot:
    """A place where one job runs."""

    number: int  # from 0
    devices: tuple[str, ...] = ()  # of `CUDA_VISIBLE_DEVICES`; empty for a CPU
    threads: int = 1  # that the job may compute on

    @property
    def environment(self) -> dict[str, str]:
        """Return what the job's process gets; a number of threads that the user set stays."""
        ranks = max(1, len(self.devices))
        found = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, self.threads // ranks))}
        if ranks > 1:
            found |= {"WORLD_SIZE": str(ranks)}
        return found | ({"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {})

    def __str__(self) -> str:
        return f"GPU {'+'.join(self.devices)}" if self.devices else f"CPU {self.number}"


def gpus() -> list[str]:
    """Find the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in map(str.strip, visible.split(",")) if name not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i in range(sum(row.startswith("GPU ") for row in listed.splitlines()))]


def slots(given: Any = "auto", on_cpu: bool = False, per_gpu: int = 1) -> tuple[Slot, ...]:
    """Return the slots that `hydra.sweeper.slots` asks for; ConfigError for none, or a GPU that is not there.

    Args:
        given: "auto": one for each GPU, on a CPU one for every four cores; "packed": `per_gpu` for each GPU; a number;
            or for each slot its GPU, or its list of GPUs, counted among the visible ones.
        on_cpu: GPUs are left alone.
    """
    there = [] if on_cpu else gpus()
    if given == PACKED and not there:
        raise ConfigError(f"hydra.sweeper.slots={PACKED}: there is no GPU to share. Try hydra.sweeper.slots=auto.")
    if given in ("auto", PACKED):
        given = len(there) * (per_gpu if given == PACKED else 1) or max(1, cores() // CORES_PER_SLOT)
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        rows: list[tuple[str, ...]] = [(there[i % len(there)],) if there else () for i in range(given)]
    elif isinstance(given, Sequence) and not isinstance(given, str) and given:
        rows = []
        for one in given:
            numbers = [one] if isinstance(one, int) else list(one)
            missing = [n for n in numbers if not isinstance(n, int) or not 0 <= n < len(there)]
            if missing or not numbers:
                raise ConfigError(
                    f"hydra.sweeper.slots={given}: there is no GPU {missing[0] if missing else '?'}; {len(there)} GPUs "
                    "are visible. Try hydra.sweeper.slots=auto."
                )
            if len(set(numbers)) < len(numbers):
                raise ConfigError(
                    f"hydra.sweeper.slots={given}: {one} names a GPU twice; each process needs its own GPU."
                )
            rows.append(tuple(there[n] for n in numbers))
    else:
        raise ConfigError(
            f"hydra.sweeper.slots={given}: must be auto, packed, a number from 1, or GPUs as [0,0,1] or [[0,1],[2,3]]."
        )
    return tuple(Slot(i, row, max(1, cores() // len(rows))) for i, row in enumerate(rows))
