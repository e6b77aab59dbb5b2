"""What all benchmarks share: the machine in words, interleaved repeats, medians, and raw JSON."""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RAW = ROOT / "benchmarks" / "raw"
DATA = Path(os.environ.get("SEGSWEEP_DATA", ROOT.parent / "shared" / "data"))  # real data sets
sys.path.insert(0, str(ROOT))


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
    commit, dirty, _ = provenance.code()
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
