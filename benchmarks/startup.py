"""Seconds from `python train.py` to its first batch beside the bare import of torch and timm.

    python benchmarks/startup.py --name startup-cpu

The decoded data, MLflow's file and the probe's answer are there already, as they are from the second run on.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, interleaved, keep, parser, summary

options = parser(__doc__)


def bare() -> float:
    """Until both are imported."""
    return until("import", [sys.executable, "-c", "import torch, timm; print('import', flush=True)"])


def first_batch() -> float:
    """Until the first batch is asked for: everything before it is ours to answer for."""
    program = """
import runpy, sys, time
from segsweep.data.batches import TrainBatches

def epoch(self, number):
    print("first batch", flush=True)
    sys.exit(0)

TrainBatches.epoch = epoch
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""
    with tempfile.TemporaryDirectory() as folder:
        return until("first batch", [sys.executable, "-c", program, f"hydra.run.dir={folder}/run"])


def until(said: str, command: list[str]) -> float:
    """Seconds until a program prints a line with these words; how long it takes to end is not counted."""
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout
        if not any(said in line for line in child.stdout):
            raise SystemExit(f"{said}: never said. Run python train.py once and see why.")
        return time.perf_counter() - started


def main() -> None:
    given = options.parse_args()
    if not (Path(ROOT) / "train.py").exists():
        raise SystemExit("run it from a checkout")
    found = interleaved({"import torch, timm": bare, "python train.py to its first batch": first_batch}, given.repeats)
    print(f"\nseconds\n{summary(found, 'import torch, timm')}")
    if given.name:
        keep(given.name, found)


if __name__ == "__main__":
    main()
