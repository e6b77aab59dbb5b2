"""Exported models beside PyTorch: images/s, the largest difference of a logit, equal pixels.

    python benchmarks/export.py --name export-cpu

U-Nets at 256x256 in fp32, batches of 1 and 8, on as many threads each; every variant in turn. PyTorch runs as
`segsweep predict` runs it: channels_last. The weights of lite0 come with the installation; those of the others
are random where the hub is out of reach (`weights` in the raw file), which changes no speed. BatchNorm has been shown
random pixels first.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import interleaved, keep, parser, summary

ENCODERS = ("tf_efficientnet_lite0", "resnet34", "vit_small_patch16_224")
SIDE, BATCHES = 256, (1, 8)


def model_file(name: str, path: Path) -> str:
    """A U-Net as a run would leave it, its decoder untrained; where its weights came from."""
    import torch

    from segsweep.nn import UNet
    from segsweep.nn.checkpoint import save_model

    torch.manual_seed(0)
    model = UNet(name, 1, pretrained="auto")
    with torch.no_grad():
        for _ in range(10):
            model.train()(torch.rand(4, 3, SIDE, SIDE) * 255)
    save_model(path, model, classes=["background", "foreground"], size=[SIDE, SIDE], resize="pad")
    return model.weights_source


def rate(run: Callable[[Any], Any], pixels: Any, seconds: float = 2.0) -> float:
    """Images/s over at least that long."""
    import torch

    images, started = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - started < seconds:
            run(pixels)
            images += len(pixels)
    return images / (time.perf_counter() - started)


def measured(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """One encoder: both formats against PyTorch."""
    import torch

    from segsweep.engine.execution import PLAIN
    from segsweep.inference.export import FORMATS, compare, export, opened
    from segsweep.nn.checkpoint import load_model

    path = folder / f"{name}.safetensors"
    found: dict[str, Any] = {"encoder": name, "weights": model_file(name, path), "side": SIDE}
    model = load_model(path)
    PLAIN.prepare(model)
    runs: dict[str, Callable[[Any], Any]] = {}
    for kind in FORMATS:
        started = time.perf_counter()
        done = export(path, path.with_suffix(f".{kind}"), kind)
        runs[kind] = opened(done.path, kind)
        found[kind] = {"sizes": str(done.sizes), "seconds": time.perf_counter() - started}
    generator = torch.Generator().manual_seed(1)
    for batch in BATCHES:
        pixels = torch.rand(batch, 3, SIDE, SIDE, generator=generator) * 255
        for kind, run in runs.items():
            compared = compare(model, run, [pixels])
            found[kind][f"batch {batch}"] = {"difference": compared.difference, "equal": compared.equal}
        variants = {"PyTorch": partial(PLAIN.forward, model), **runs}
        rates = interleaved({title: partial(rate, run, pixels) for title, run in variants.items()}, repeats)
        print(f"\n{name}, batch {batch}, images/s\n{summary(rates, 'PyTorch')}", flush=True)
        found[f"images_per_s, batch {batch}"] = rates
        found[f"ratio, batch {batch}"] = {
            kind: statistics.median(a / b for a, b in zip(rates[kind], rates["PyTorch"], strict=True)) for kind in runs
        }
    return found


def main() -> None:
    """Measure all encoders."""
    import onnxruntime

    options = parser(__doc__)
    options.add_argument("encoders", nargs="*", metavar="ENCODER", default=ENCODERS)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measured(name, Path(folder), given.repeats) for name in given.encoders]
    for row in found:
        print(json.dumps({key: value for key, value in row.items() if key in ("encoder", "weights", "onnx", "pt2")}))
    if given.name:
        keep(given.name, {"onnxruntime": onnxruntime.__version__, "encoders": found})


if __name__ == "__main__":
    main()
