"""Prediction of large images: do tiles give what the whole image gives, and how much memory do they take?

    python benchmarks/prediction.py RUN [RUN ...] --name prediction-cpu
    python benchmarks/prediction.py RUN --large 10000

Mosaics are made of a run's validation images, as many as fill a square. *equal* is the share of their pixels that get
the same class from tiles as from the whole mosaic at once, by the tile's side and the overlap of neighbours (a share of
the side). `--large` predicts one mosaic of that many pixels a side through the command line, in a process of its own,
and tells its seconds and its peak memory.
"""

import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure


def mosaic(run: Path, side: int) -> Any:
    """Validation images of a run side by side, uint8 `side side 3`; cut off at the right and below."""
    import numpy as np

    from segsweep.data.images import read_image

    with (run / "split.csv").open(encoding="utf-8") as file:
        images = [row["image"] for row in csv.DictReader(file) if row["split"] == "val"]
    made = np.zeros((side, side, 3), np.uint8)
    top, number = 0, 0
    while top < side:
        left, lowest = 0, side
        while left < side:
            image = read_image(Path(images[number % len(images)]))[: side - top, : side - left]
            made[top : top + image.shape[0], left : left + image.shape[1]] = image
            left, lowest, number = left + image.shape[1], min(lowest, image.shape[0]), number + 1
        top += lowest
    return made


def agreement(run: Path, side: int, tiles: list[int], overlaps: list[float]) -> list[dict[str, Any]]:
    """Share of equal pixels for each tile and overlap."""
    import numpy as np
    import torch

    from segsweep.inference.find import find
    from segsweep.inference.predict import Predictor
    from segsweep.nn import tiles as tiling
    from segsweep.nn.unet import predict

    image = mosaic(run, side)

    def mask(tile: int) -> Any:
        predictor = Predictor(find(str(run)).model, tile=tile, precision="fp32")
        (parts,) = predictor.logits([image])
        return torch.cat([predict(logits[None])[0] for _, logits in parts]).numpy()

    whole, rows = mask(side), []
    for overlap in overlaps:
        tiling.OVERLAP = overlap
        for tile in tiles:
            equal = float(np.mean(mask(tile) == whole))
            rows.append({"run": run.name, "side": side, "tile": tile, "overlap": overlap, "equal": equal})
            print(f"{run.name:20}{side:6}{tile:6}{overlap:7.3f}{100 * equal:9.3f} %", flush=True)
    return rows


def large(run: Path, side: int) -> dict[str, Any]:
    """Seconds and peak memory of `segsweep predict` on one image."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        Image.fromarray(mosaic(run, side)).save(path, compress_level=1)
        started = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "segsweep",
            "predict",
            str(run),
            str(path),
            "-o",
            f"{folder}/masks",
        ]
        subprocess.run(command, check=True, cwd=measure.ROOT)
        seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{side} x {side}: {seconds:.0f} s, peak memory {memory / 1e9:.2f} GB")
    return {"run": run.name, "side": side, "seconds": seconds, "peak_bytes": memory}


def main() -> None:
    """Measure what is asked for."""
    parser = measure.parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--side", type=int, default=2048, help="of the mosaics, in pixels")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1024, 512, 256])
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.125, 0.25, 0.5])
    parser.add_argument("--large", type=int, metavar="SIDE", help="predict one image of this side instead")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for run in options.runs:
        run = run.resolve()
        if options.large:
            results.append(large(run, options.large))
        else:
            results += agreement(run, options.side, options.tiles, options.overlaps)
    if options.name:
        measure.keep(options.name, results)


if __name__ == "__main__":
    main()
