"""One change at a time: what each setting of the recipe does to the validation IoU, on equal epochs.

    python benchmarks/ablation.py --data dsb2018 --seeds 0 1 -- optim.lr=3e-3 'optim.schedule=constant'

Each argument after `--` is one variant, several overrides in one separated by blanks; the first variant is always the
defaults. Results are appended to `--out`, one JSON line for each run; what is there of this commit is not run again.
The table has the mean over the seeds and the difference to the defaults, seed by seed. No test split is looked at.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import DATA, RAW, ROOT, machine

SMALL = {
    "dsb2018": ("data=folder", "data.split=[0.8,0.1,0.1]", "data.size=[128,128]", "data.resize=crop"),
    "camvid": ("data=camvid", "data.size=[120,160]"),
}


def scored(data: str, variant: str, seed: int, epochs: int, base: list[str]) -> dict[str, float]:
    """Train once; the summary's numbers."""
    with tempfile.TemporaryDirectory() as outputs:
        settings = [*SMALL[data], f"data.root={DATA / data}", f"train.epochs={epochs}", f"train.seed={seed}"]
        typed = [
            *settings,
            "train.test=false",
            "tracking=none",
            f"hydra.run.dir={outputs}/run",
            *base,
            *shlex.split(variant),
        ]
        env = {**os.environ, "SEGSWEEP_OUTPUTS": str(Path(tempfile.gettempdir()) / "segsweep-ablation")}
        done = subprocess.run([sys.executable, "train.py", *typed], cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{variant or 'defaults'}, seed {seed}: {done.stderr[-2000:]}")
        summary = json.loads((Path(outputs) / "run" / "summary.json").read_text())
    return {name: summary[name] for name in ("val/iou", "val/iou_fg", "best/epoch", "seconds") if name in summary}


def table(rows: list[dict[str, object]], seeds: list[int]) -> str:
    """Mean validation IoU by variant, and its difference to the defaults seed by seed."""
    by = {(row["variant"], row["seed"]): row["val/iou"] for row in rows if "val/iou" in row}
    lines = ["| variant | val IoU | difference | smallest | largest | n |", "|---|---|---|---|---|---|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        pairs = [(by[variant, s], by["", s]) for s in seeds if (variant, s) in by and ("", s) in by]
        if pairs:
            gains = [float(own) - float(base) for own, base in pairs]  # type: ignore[arg-type]
            mean = statistics.mean(float(own) for own, _ in pairs)  # type: ignore[arg-type]
            spread = f"{statistics.mean(gains):+.3f} | {min(gains):+.3f} | {max(gains):+.3f}"
            lines.append(f"| {variant or 'defaults'} | {mean:.3f} | {spread} | {len(pairs)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(SMALL), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--base", default="", help="overrides that all variants have, the defaults too")
    parser.add_argument("--out", type=Path, default=RAW / "ablation.jsonl")
    parser.add_argument("variants", nargs="*")
    arguments = parser.parse_args()
    shared = {"data": arguments.data, "epochs": arguments.epochs, "base": arguments.base}
    commit = machine()["commit"]
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    rows = [row for row in rows if all(row[name] == value for name, value in (shared | {"commit": commit}).items())]
    for variant in dict.fromkeys(["", *arguments.variants]):
        for seed in arguments.seeds:
            if any(row["variant"] == variant and row["seed"] == seed for row in rows):
                continue
            found = scored(arguments.data, variant, seed, arguments.epochs, shlex.split(arguments.base))
            rows.append({**shared, "variant": variant, "seed": seed, "commit": commit, **found})
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows, arguments.seeds))


if __name__ == "__main__":
    main()
