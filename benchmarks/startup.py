"""Seconds from `python train.py` to its first step beside the bare import of torch and timm.

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
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, timm"], check=True)
    return time.perf_counter() - started


def first_step() -> float:
    """Until the first batch is asked for: everything before it is ours to answer for."""
    program = """
import runpy, sys, time
from segsweep.data.batches import TrainBatches

def epoch(self, number):
    print("first step", flush=True)
    sys.exit(0)

TrainBatches.epoch = epoch
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program, f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout
            if not any("first step" in line for line in child.stdout):
                raise SystemExit("no first step: run python train.py once and see why")
            return time.perf_counter() - started


def main() -> None:
    given = options.parse_args()
    if not (Path(ROOT) / "train.py").exists():
        raise SystemExit("run it from a checkout")
    found = interleaved({"import torch, timm": bare, "python train.py to its first step": first_step}, given.repeats)
    print(f"\nseconds\n{summary(found, 'import torch, timm')}")
    if given.name:
        keep(given.name, found)


if __name__ == "__main__":
    main()
