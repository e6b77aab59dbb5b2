"""SegSweep-Bench: real learning curves of encoders by learning rates and seeds, on which sweeps can be replayed.

    python benchmarks/record_curves.py --epochs 8 --seeds 0 --encoders tf_efficientnet_lite0 tf_efficientnet_lite1
    python benchmarks/sweep.py --world benchmarks/raw/segsweep_bench.csv --trials 32

The grid is trained by segsweep's own sweep, without pruning, so it can be stopped and gone on with; the CSV is added
to. Columns: encoder, weights, lr, seed, epoch, iou (validation), seconds (of the epoch).
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ablation import SMALL, folder
from measure import RAW, ROOT

from segsweep.runs.trial import load_all

WHERE = {
    "shapes": (),
    **{name: (*settings, f"data.root={folder(name)}") for name, settings in SMALL.items()},
}
COLUMNS = ("encoder", "weights", "lr", "seed", "epoch", "iou", "seconds")


def record(
    data: str,
    encoders: Sequence[str],
    rates: Sequence[str],
    seeds: Sequence[int],
    epochs: int,
    sweep: Path,
    more: Sequence[str],
) -> None:
    """Train the grid; the sweep's folder keeps it."""
    typed = [
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=none"),
        *("hydra.sweeper.n_trials=100000", "hydra.sweeper.finalists=0", "hydra.sweeper.mixed_weights=true"),
        *(f"hydra.sweep.dir={sweep}", "tracking=none", *WHERE[data]),
        *(f"encoder=choice({','.join(encoders)})", f"optim.lr=choice({','.join(rates)})"),
        *(f"train.seed=choice({','.join(map(str, seeds))})", f"train.epochs={epochs}", "train.test=false", *more),
    ]
    subprocess.run([sys.executable, "train.py", *typed], cwd=ROOT, env=os.environ, check=True)


def collect(sweep: Path, out: Path) -> int:
    """Add the curves of a sweep's complete trials to the file; returns how many it then holds."""
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    if out.exists():
        with out.open(encoding="utf-8") as file:
            rows = {tuple(row[:5]): tuple(row) for row in list(csv.reader(file))[1:]}
    for trial in load_all(sweep):
        if trial.state != "complete":
            continue
        start, before = trial.run.starts[-1], 0.0
        for epoch in trial.run.epochs:
            until = epoch.metrics["perf/seconds"]
            seconds, before = until - before, until
            lr, seed = start.settings.optim.lr, start.settings.train.seed
            key = (trial.encoder, start.weights_source, str(lr), str(seed), str(epoch.epoch))
            rows[key] = (*key, f"{epoch.iou:.5f}", f"{seconds:.3f}")
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows.values(), key=lambda row: (row[0], float(row[2]), *map(int, row[3:5]))))
    return len({key[:4] for key in rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=WHERE, default="shapes")
    parser.add_argument("--encoders", nargs="+", required=True)
    parser.add_argument("--rates", nargs="+", default=["3e-4", "1e-3", "3e-3", "1e-2", "3e-2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sweep", type=Path, default=ROOT / "outputs" / "sweeps" / "segsweep_bench")
    parser.add_argument("--out", type=Path, default=RAW / "segsweep_bench.csv")
    parser.add_argument("more", nargs="*", metavar="OVERRIDE", help="for all trainings")
    options = parser.parse_args()
    record(options.data, options.encoders, options.rates, options.seeds, options.epochs, options.sweep, options.more)
    print(f"{collect(options.sweep, options.out)} curves in {options.out}")


if __name__ == "__main__":
    main()
