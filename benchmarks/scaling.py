"""What an image costs as a data set grows: decoding, opening, and a training batch, and the memory they take.

    python benchmarks/scaling.py 1000 10000 100000 --name scaling-cpu

The images are small and generated (64 x 64 pixels), each size in a process of its own.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from measure import keep, parser

SIDE, BATCH, STEPS = 64, 16, 200

options = parser(__doc__)
options.add_argument("counts", nargs="*", type=int, default=[1000, 10_000, 100_000])
options.add_argument("--one", type=int, help="used by the benchmark itself")


def one(count: int) -> dict[str, float]:
    import numpy as np
    import torch
    from PIL import Image

    from segsweep.config.schema import AugmentationConfig, DataConfig
    from segsweep.data.batches import Pixels, Sampling, TrainBatches
    from segsweep.data.dataset import open_dataset
    from segsweep.data.geometry import Canvas
    from segsweep.paths import cache

    root = cache() / f"benchmark-{count}"
    if not (root / "done").exists():
        rng = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
            Image.fromarray(pixels).save(root / "images" / f"{i:06}.png", compress_level=1)
            Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(root / "masks" / f"{i:06}.png")
        (root / "done").touch()
    torch.set_num_threads(1)
    found = {"images": count}
    config = DataConfig(root=str(root))
    started = time.perf_counter()
    open_dataset(config)
    found["decode_us"] = 1e6 * (time.perf_counter() - started) / count
    started = time.perf_counter()
    data = open_dataset(config)
    found["open_us"] = 1e6 * (time.perf_counter() - started) / count
    batches = TrainBatches(
        Pixels(data.store, data.labels, torch.device("cpu")),
        data.parts["train"],
        Canvas((SIDE, SIDE), "pad"),
        Sampling(BATCH),
        AugmentationConfig(hflip=0.5, rotate=10, brightness=0.2),
    )
    epochs = (step for number in range(1_000_000) for step in batches.epoch(number))
    steps = (list(step) for step in islice(epochs, STEPS + 20))
    for _ in range(20):
        next(steps)
    started = time.perf_counter()
    shown = sum(1 for _ in steps)
    found["batch_us"] = 1e6 * (time.perf_counter() - started) / (shown * BATCH)
    # What is the process's own; pages of the mapped store come and go as the system likes.
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    found["own_mb"] = next(int(row.split()[1]) for row in rollup if row.startswith("Anonymous:")) / 1024
    found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> None:
    given = options.parse_args()
    if given.one:
        print(json.dumps(one(given.one)))
        return
    from segsweep.paths import outputs

    place = outputs() / "benchmark-scaling"  # of its own: its stores are deleted
    shutil.rmtree(place / "cache" / "stores", ignore_errors=True)
    environment = {**os.environ, "SEGSWEEP_OUTPUTS": str(place)}
    rows = []
    print(f"{'images':>8}{'decode/us':>11}{'open/us':>9}{'batch/us':>10}{'own/MB':>12}")
    for count in given.counts:
        command = [sys.executable, __file__, "--one", str(count)]
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(ran.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{count:8}{row['decode_us']:11.0f}{row['open_us']:9.1f}{row['batch_us']:10.0f}{row['own_mb']:12.0f}",
            flush=True,
        )
    if given.name:
        keep(given.name, rows)


if __name__ == "__main__":
    main()
