"""What all benchmarks share: the machine in words, interleaved repeats, medians, and raw JSON."""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

ROOT = Path(__file__).parents[1]
ABOUT = ("cpu", "torch", "timm", "commit", "dirty", "date")  # what a row of results says of the machine
RAW = ROOT / "benchmarks" / "raw"
DATA = Path(os.environ.get("SEGSWEEP_DATA", ROOT.parent / "shared" / "data"))  # real data sets
sys.path.insert(0, str(ROOT))


class Job(Protocol):
    """One piece of work of a queue."""

    @property
    def key(self) -> tuple[Any, ...]: ...


AnyJob = TypeVar("AnyJob", bound=Job)


def machine() -> dict[str, Any]:
    """The hardware and the versions that a number depends on; no name of the machine."""
    import timm
    import torch

    from segsweep.runs import provenance

    rows = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), platform.processor())
    flags = next((row for row in rows if row.startswith("flags")), "")
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags.split()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    commit, _, _ = provenance.code()
    # What a queue has added to its own rows is no change of the program.
    changed = ["git", "status", "--porcelain", "--", ".", ":(exclude)benchmarks/raw"]
    dirty = bool(subprocess.run(changed, cwd=ROOT, capture_output=True, check=True).stdout)
    return {
        "cpu": f"{model}, {os.cpu_count()} cores, {' '.join(units)}",
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "dirty": dirty,
        "command": f"python {shlex.join(['benchmarks/' + Path(sys.argv[0]).name, *sys.argv[1:]])}",
        "date": time.strftime("%Y-%m-%d"),
    }


def interleaved(variants: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each variant gives in each round; they take turns, so that a noisy minute meets all of them.

    One round before warms up and does not count.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(1 + repeats):
        for name, variant in variants.items():
            value = variant()
            if repeat:
                found[name].append(value)
                print(f"  {name:34}{value:10.3f}", file=sys.stderr, flush=True)
    return found


def summary(found: Mapping[str, list[float]], reference: str) -> str:
    """Each variant's ratio to the reference in the same round: median, smallest, largest; and its own median."""
    lines = [f"{'':34}{'ratio':>7}{'from':>7}{'to':>7}{'median':>10}"]
    for name, values in found.items():
        ratios = [value / base for value, base in zip(values, found[reference], strict=True)]
        spread = f"{statistics.median(ratios):7.2f}{min(ratios):7.2f}{max(ratios):7.2f}"
        lines.append(f"{name:34}{spread}{statistics.median(values):10.3f}")
    return "\n".join(lines)


class Results:
    """A file of JSON lines that several workers add to: what is there is not run again.

    Args:
        key: the names in a row that tell it from others, in the order of a job's `key`.
    """

    def __init__(self, path: Path, key: Sequence[str]):
        self.path, self.names = path, tuple(key)
        self._about: dict[str, Any] = {}

    def rows(self) -> list[dict[str, Any]]:
        """What has been run."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.names)

    def missing(self, jobs: Iterable[AnyJob]) -> Iterator[AnyJob]:
        """Yield the jobs that are neither there nor another worker's; each is this worker's until the next."""
        for job in jobs:
            name = hashlib.sha256(repr((self.path.resolve(), job.key)).encode()).hexdigest()[:12]
            with (Path(tempfile.gettempdir()) / f"segsweep-{name}").open("w") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue  # another worker has it
                if job.key not in map(self.key, self.rows()):
                    self._about = {name: value for name, value in machine().items() if name in ABOUT}
                    yield job

    def add(self, job: Job, found: Mapping[str, Any]) -> None:
        """Add the row of the job that `missing` gave last, with the machine and the commit that it was begun on."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**dict(zip(self.names, job.key, strict=True)), **found, **self._about}) + "\n")


def keep(name: str, results: Any) -> None:
    """Write the raw numbers beside the machine's description to `benchmarks/raw/NAME.json`."""
    RAW.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "results": results}, indent=1)
    (RAW / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options that all benchmarks take."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--name", help="name of the raw file; without it nothing is kept")
    made.add_argument("--repeats", type=int, default=3)
    return made
