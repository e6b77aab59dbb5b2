"""The census: a U-Net on every architecture of timm, at four sizes in turn through one instance, on the `meta` device.

    python benchmarks/encoders.py                      # all of timm into docs/encoders.csv; goes on where it stopped
    python benchmarks/encoders.py 'convnext*' --output some.csv
    python benchmarks/encoders.py --peer smp --output peer.csv      # segmentation_models_pytorch by the same rules

Counts as running: it builds, and each size gives logits of that size. Every architecture runs in a process pool, one
after the other in each process; what fails is written with its error. `--again` runs the failures once more.
"""

import argparse
import csv
import warnings
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import measure
import timm
import torch

from segsweep import catalog
from segsweep.nn.survey import survey

SIZES = ((256, 256), (352, 480), (250, 350), (33, 65))
COLUMNS = (
    *("encoder", "runs", "parameters", "gflop", "decoder_share", "strides", "channels", "input_size", "switches"),
    *("timm", "error"),
)


def ours(name: str) -> dict[str, Any]:
    return asdict(survey(name, SIZES))


def peer(name: str) -> dict[str, Any]:
    """The peer's U-Net. It is built for the size it first meets, where it can be told one."""
    import segmentation_models_pytorch as smp

    with torch.device("meta"), torch.no_grad():
        model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=1).eval()
        for size in SIZES:
            found = tuple(model(torch.empty(1, 3, *size)).shape)
            if found != (1, 1, *size):
                raise RuntimeError(f"logits {found} for an image of {size[0]}x{size[1]}")
    return {"encoder": name, "parameters": round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 3)}


def row(name: str, count: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        return {"timm": timm.__version__, "runs": "yes", **count(name)}
    except Exception as error:  # whatever it is, it is a result
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return {"timm": timm.__version__, "encoder": name, "runs": "no", "error": text[:200]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--output", type=Path, default=measure.ROOT / "docs" / "encoders.csv")
    parser.add_argument("--peer", choices=["smp"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="run what failed once more")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if options.output.exists():
        with options.output.open(newline="", encoding="utf-8") as file:
            rows = {r["encoder"]: r for r in csv.DictReader(file) if r["runs"] == "yes" or not options.again}
    counted = {name for name, found in rows.items() if found["timm"] == timm.__version__}
    names = [n for n in catalog.architectures() if fnmatch(n, options.pattern) and n not in counted]
    count = peer if options.peer else ours
    # Fresh processes now and then: timm's models leave memory behind.
    with get_context("spawn").Pool(options.workers, maxtasksperchild=100) as pool:
        for done, found in enumerate(pool.imap_unordered(partial(row, count=count), names), start=1):
            rows[found["encoder"]] = found
            if done % 20 == 0 or done == len(names):
                write(options.output, rows)
                failed = sum(r["runs"] == "no" for r in rows.values())
                print(f"{len(rows)} counted, {failed} do not run", flush=True)
    for found in rows.values():
        if found["runs"] == "no":
            print(f"{found['encoder']}: {found['error']}")


def write(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    partial = path.with_suffix(".writing")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
    partial.replace(path)


if __name__ == "__main__":
    main()
