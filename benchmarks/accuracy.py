"""IoU on real data after a given time: segsweep's defaults beside segmentation_models_pytorch in its notebooks' recipe.

    pip install -e ".[bench]"
    python benchmarks/accuracy.py dsb2018 --seeds 0 1 2
    python benchmarks/accuracy.py camvid --seeds 0 --who ours peer random
    python benchmarks/accuracy.py dsb2018 --who ours --budget 1560 augmentation=strong
    python benchmarks/accuracy.py dsb2018 --who peer --seeds 1 --epochs 10
    python benchmarks/accuracy.py dsb2018 --table

Who:

    ours        `python train.py data=... train.time_budget=SECONDS`, and overrides
    random      the same with encoder.pretrained=false
    peer        the same encoder, weights, split and seconds: Adam 2e-4 with a cosine, Dice loss, flips, images squeezed
                to the canvas, as in its notebooks, but at tuned speed (bf16, channels_last, loader processes)

The seconds are of training and validation; both keep the best epoch by validation IoU, and both are scored by the same
evaluator on each mask's own pixel grid, on the test split (without one: on the validation split, and the table says
so). Where the machine is not quiet, `--epochs` gives what a quiet one did in these seconds, and the table marks the
run with an asterisk. Every run is a line of `benchmarks/raw/accuracy.jsonl` with the counts of every image, from which
the intervals are made; what is there already is not run again. "Mirrored" is the same model over the mean of an image
and its mirror image, as `segsweep evaluate RUN --tta hflip` scores.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import DATA, RAW, ROOT, machine

PEER_LR = 2e-4
RESAMPLES = 10_000
LARGEST = (1024, 1024)  # canvases beyond are scored in tiles
KEPT = (  # of a run's summary.json
    "val/iou",
    "best/epoch",
    "epochs",
    "seconds",
    "precision",
    "channels_last",
    "weights_source",
    "perf/images_per_s",
)


@dataclass(frozen=True)
class Task:
    """A data set as it is asked for, the seconds, and the peer's canvas, batch and mirrored dimensions of `h w`."""

    data: tuple[str, ...]
    budget: int
    size: tuple[int, int]
    batch: int
    flips: tuple[int, ...]


TASKS = {
    "dsb2018": Task(("data=folder", "data.split=[0.8,0.1,0.1]"), 720, (256, 256), 16, (0, 1)),
    "camvid": Task(("data=camvid",), 3600, (352, 480), 8, (1,)),
    "car": Task(("data=camvid", "data.classes=[car]", "data.ignore_index=254"), 3600, (352, 480), 8, (1,)),
    "isbi2012_em": Task(("data=folder",), 720, (256, 256), 8, (0, 1)),
}


def overrides(task: str) -> list[str]:
    """What asks for the data set."""
    return [*TASKS[task].data, f"data.root={DATA / task.replace('car', 'camvid')}"]


def ours(task: str, seed: int, budget: int, epochs: int | None, more: list[str]) -> tuple[Any, dict[str, Any]]:
    """Train through the front door; the kept model's evaluation and what the run says of itself."""
    from segsweep.compose import configuration
    from segsweep.engine import device
    from segsweep.nn.checkpoint import describe, load_model
    from segsweep.training.build import load

    with tempfile.TemporaryDirectory() as outputs:
        folder = Path(outputs) / "run"
        length = f"train.epochs={epochs}" if epochs else f"train.time_budget={budget}"
        typed = [*overrides(task), length, f"train.seed={seed}", "tracking=none", *more]
        subprocess.run([sys.executable, "train.py", *typed, f"hydra.run.dir={folder}"], cwd=ROOT, check=True)
        info = describe(folder / "best.safetensors")
        said = json.loads((folder / "summary.json").read_text())
        model = load_model(folder / "best.safetensors", device.find("auto"))
        found, mirrored = twice(model, load(configuration(overrides(task)).data), info.size, info.resize)
    return found, {"resize": info.resize, **{name: said.get(name) for name in KEPT}, **mirrored}


def evaluated(model: Any, data: Any, size: Any, resize: str, part: str = "", tta: str = "none") -> Any:
    """Score the model on a part of the data: the test split if there is one."""
    import torch

    from segsweep.data.batches import EvalBatches, Pixels
    from segsweep.data.geometry import Canvas
    from segsweep.engine.scorer import Scorer

    part = part or ("test" if "test" in data.parts else "val")
    where = next(model.parameters()).device
    pixels = Pixels(data.store, data.labels, where)
    batches = EvalBatches(pixels, data.parts[part], Canvas(tuple(size), resize), batch_size=8)
    scorer = Scorer(tta=tta, tile=LARGEST)
    return scorer.evaluate(model, batches, lambda *_: torch.zeros(()), data.labels.names)


def twice(model: Any, data: Any, size: Any, resize: str) -> tuple[Any, dict[str, Any]]:
    """The evaluation as it is, and the scores of the mean of two mirrored views."""
    found = evaluated(model, data, size, resize)
    return found, {"hflip": evaluated(model, data, size, resize, tta="hflip").metrics}


def peer(task: str, seed: int, budget: int, given: int | None) -> tuple[Any, dict[str, Any]]:
    """Train the peer for as long, or for the given epochs."""
    import copy

    import numpy as np
    import segmentation_models_pytorch as smp
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from segsweep.compose import configuration
    from segsweep.engine import device
    from segsweep.nn.encoder import Encoder
    from segsweep.training.build import load

    asked = TASKS[task]
    config = configuration(overrides(task))
    data = load(config.data)
    where = device.find("auto")
    device.set_threads()
    torch.manual_seed(seed)
    binary = data.labels.logits == 1

    class Files(Dataset):
        """As in its notebooks: decoded, resized and mirrored when asked for."""

        def __len__(self) -> int:
            return len(data.parts["train"])

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            index = data.parts["train"][index]
            height, width = asked.size
            image = Image.open(data.samples[index].image).convert("RGB").resize((width, height))
            truth = data.labels.table[data.store.mask(index).numpy()].astype("uint8")
            truth = np.asarray(Image.fromarray(truth).resize((width, height), Image.Resampling.NEAREST))
            pixels = np.asarray(image)
            for dimension in asked.flips:
                if torch.rand(()) < 0.5:
                    pixels, truth = np.flip(pixels, dimension), np.flip(truth, dimension)
            return pixels.transpose(2, 0, 1).astype("float32"), truth.astype("int64")

    class Peer(torch.nn.Module):
        """Pixels to logits, as segsweep's U-Net does."""

        def __init__(self) -> None:
            super().__init__()
            self.net = smp.Unet(f"tu-{config.encoder.name}", encoder_weights=None, classes=data.labels.logits)
            encoder = Encoder(config.encoder.name, pretrained=True)
            self.net.encoder.model.load_state_dict(encoder.timm.state_dict())
            self.to(memory_format=torch.channels_last)

        def forward(self, pixels: Any) -> Any:
            pixels = pixels if pixels.shape[1] == 3 else pixels.expand(-1, 3, -1, -1)
            scaled = ((pixels - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)
            with torch.autocast(where.type, torch.bfloat16):
                return self.net(scaled).float()

    model = Peer().to(where)
    loss = smp.losses.DiceLoss("binary" if binary else "multiclass", from_logits=True, ignore_index=255)
    optimizer = torch.optim.Adam(model.parameters(), PEER_LR)
    loader = DataLoader(Files(), asked.batch, shuffle=True, drop_last=True, num_workers=min(8, os.cpu_count() or 1))
    best, kept, epochs, reserve = -1.0, model.state_dict(), 0, 0.0
    started = time.perf_counter()

    steps = 0

    def spent() -> float:
        return time.perf_counter() - started

    def share() -> float:
        """Of the training that is done."""
        return steps / (given * len(loader)) if given else spent() / (budget - reserve)

    while share() < 1:
        model.train()
        for pixels, truth in loader:
            if share() >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = PEER_LR * (1 + math.cos(math.pi * share())) / 2
            optimizer.zero_grad()
            target = truth.to(where)
            loss(model(pixels.to(where)), target[:, None] if binary else target).backward()
            optimizer.step()
            steps += 1
        before = spent()
        iou = evaluated(model, data, asked.size, "squash", "val").metrics["iou"]
        reserve = spent() - before
        epochs += 1
        print(f"peer: epoch {epochs}, {spent():.0f} s, val IoU {iou:.4f}", file=sys.stderr, flush=True)
        if iou > best:
            best, kept = iou, copy.deepcopy(model.state_dict())
    seconds = spent()
    model.load_state_dict(kept)
    found, mirrored = twice(model, data, asked.size, "squash")
    return found, {"val/iou": best, "epochs": epochs, "seconds": seconds, **mirrored}


def counts(found: Any) -> dict[str, Any]:
    """Of every image and class: pixels that are right, in the target, and predicted."""
    import numpy as np

    matrices = np.stack([found.matrices[i] for i in sorted(found.matrices)])
    return {
        "hits": matrices.diagonal(axis1=1, axis2=2).tolist(),
        "target": matrices.sum(2).tolist(),
        "predicted": matrices.sum(1).tolist(),
    }


def iou(row: dict[str, Any], chosen: Any = slice(None)) -> Any:
    """The IoU of the images chosen, as `val/iou` is defined; of many choices at once, `... images`, one for each."""
    import numpy as np

    hits, target, predicted = (np.asarray(row[name])[chosen] for name in ("hits", "target", "predicted"))
    hits, target, predicted = (counted.sum(-2).astype(float) for counted in (hits, target, predicted))
    with np.errstate(invalid="ignore"):
        by_class = np.where(target > 0, hits / (target + predicted - hits), np.nan)
    return by_class[..., 1] if by_class.shape[-1] == 2 else np.nanmean(by_class, -1)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, intervals by bootstrap over the images, what ours is ahead."""
    import numpy as np

    lines = [
        "| data | who | seconds | n | IoU | by seed | mirrored | 95 % over images | ours - who | 95 % | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["part"], row["who"], row["budget"], row["more"]), []).append(row)
    for (task, part, who, budget, more), own in groups.items():
        rng = np.random.default_rng(0)
        images = len(own[0]["hits"])
        draws = rng.integers(images, size=(RESAMPLES, images))
        spread = np.mean([iou(row, draws) for row in own], 0)
        scores = [float(iou(row)) for row in own]
        by_seed = [f"{score:.3f}{'*' * row.get('paced', False)}" for score, row in zip(scores, own, strict=True)]
        low, high = np.percentile(spread, [2.5, 97.5])
        views = [row["hflip"]["iou"] for row in own if "hflip" in row]
        mirrored = f"{statistics.mean(views):.3f}" if len(views) == len(own) else ""
        rivals, theirs = groups.get((task, part, "ours", budget, more), []), ""
        if who == "peer" and not rivals:  # it has no overrides to agree in
            others = [(key[4], rows) for key, rows in groups.items() if key[:4] == (task, part, "ours", budget)]
            theirs, rivals = others[0] if others else ("", [])
        against = ""
        if who != "ours" and rivals:
            gain = np.mean([iou(row, draws) for row in rivals], 0) - spread
            mean = statistics.mean(float(iou(row)) for row in rivals) - statistics.mean(scores)
            named = f" (`{theirs}`)" if theirs else ""
            between = f"{np.percentile(gain, 2.5):+.3f} to {np.percentile(gain, 97.5):+.3f}"
            against = f"{mean:+.3f}{named} | {between}"
        commits = ", ".join(sorted({f"{row['commit'][:7]}{' dirty' * row['dirty']}" for row in own}))
        deviation = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        lines.append(
            f"| {task}, {part} | {who}{f' `{more}`' if more else ''} | {budget} | {len(own)} "
            f"| {statistics.mean(scores):.3f}{deviation} | {', '.join(by_seed)} | {mirrored} "
            f"| {low:.3f} to {high:.3f} | {against or ' | '} | {commits} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--who", nargs="+", choices=["ours", "peer", "random"], default=["ours", "peer"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, help="seconds; default: 720, for CamVid 3600")
    parser.add_argument("--epochs", type=int, help="train for these instead, as a quiet machine does in the budget")
    parser.add_argument("--out", type=Path, default=RAW / "accuracy.jsonl")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("more", nargs="*", help="overrides of ours and random")
    arguments = parser.parse_intermixed_args()
    budget = arguments.budget or TASKS[arguments.task].budget
    more = " ".join(arguments.more)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for seed in arguments.seeds if not arguments.table else []:
        for who in arguments.who:
            about = {"task": arguments.task, "who": who, "seed": seed, "budget": budget}
            about["more"] = "" if who == "peer" else more
            if any(about.items() <= row.items() for row in rows):
                continue
            if who == "peer":
                found, said = peer(arguments.task, seed, budget, arguments.epochs)
            else:
                extra = ["encoder.pretrained=false"] if who == "random" else []
                found, said = ours(arguments.task, seed, budget, arguments.epochs, [*arguments.more, *extra])
            part = "val" if arguments.task == "isbi2012_em" else "test"
            scores = {name: None if math.isnan(value) else value for name, value in found.metrics.items()}
            about |= {
                "part": part,
                "paced": bool(arguments.epochs),
                **said,
                "scores": scores,
                **machine(),
                **counts(found),
            }
            rows.append(about)
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(about) + "\n")
    print(table([row for row in rows if row["task"] == arguments.task]))


if __name__ == "__main__":
    main()
