"""IoU on real data after a given time: segsweep's defaults beside segmentation_models_pytorch.

    pip install -e ".[bench]"
    python benchmarks/accuracy.py dsb2018 --seeds 0 1 2
    python benchmarks/accuracy.py camvid --seeds 0 --who ours peer random
    python benchmarks/accuracy.py dsb2018 --who ours --budget 1560 augmentation=strong
    python benchmarks/accuracy.py kvasir --who careful --budget 1200 --core 1
    python benchmarks/accuracy.py dsb2018 --who peer --seeds 1 --epochs 10
    python benchmarks/accuracy.py dsb2018 --table
    python benchmarks/accuracy.py dsb2018 camvid kvasir --lead

Who:

    ours        `python train.py data=... train.time_budget=SECONDS`, and overrides
    random      the same with encoder.pretrained=false
    peer        the same encoder, weights, split and seconds: Adam 2e-4 with a cosine, Dice loss, flips, images squeezed
                to the canvas, as in its notebooks, but at tuned speed (bf16, channels_last, loader processes)
    careful     the peer as a practised user runs it, `benchmarks/careful.py`

`--lead` says how far ours is ahead of careful, over the mean of the data sets named; its interval resamples data sets,
seeds and images. A pair is of one commit: `choosing.py final` trains both side by side.

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import DATA, RAW, ROOT, machine

PEER_LR = 2e-4
RESAMPLES = 10_000
SEED_DRAWS = 100  # of seeds, each with as many draws of images as make RESAMPLES
VOID = 200  # of the masks that careful is given: 255 beside 0 alone would be its foreground
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
    """A data set: its folder, what else asks for it, the seconds, the peer's canvas, batch and mirrored dimensions."""

    folder: str
    data: tuple[str, ...]
    budget: int
    size: tuple[int, int] = (256, 256)
    batch: int = 8
    flips: tuple[int, ...] = (0, 1)


# Commits whose pairs are of today's defaults: later ones changed nothing for the data set, earlier ones did.
TWO_CLASSES, SEVERAL = ("9e5166a", "1475863"), ("3dcf98f", "6a30abd")
PRESENT = dict.fromkeys(("dsb2018", "isbi2012_em", "kvasir"), TWO_CLASSES)
PRESENT |= dict.fromkeys(("camvid", "super1", "ebc2"), SEVERAL)
CAR = ("data=camvid", "data.classes=[car]", "data.ignore_index=254")
TASKS = {
    "dsb2018": Task("dsb2018", ("data=folder", "data.split=[0.8,0.1,0.1]"), 720, batch=16),
    "camvid": Task("camvid", ("data=camvid",), 3600, (352, 480), flips=(1,)),
    "car": Task("camvid", CAR, 3600, (352, 480), flips=(1,)),
    "isbi2012_em": Task("isbi2012_em", ("data=folder",), 720),
    "kvasir": Task("kvasir", ("data=folder",), 1200),
    "super1": Task("micronet/super1", ("data=folder", "data.classes=[matrix,secondary,tertiary]"), 600),
    "ebc2": Task("micronet/ebc2", ("data=folder", "data.classes=[background,oxide,crack]"), 600),
    "nuclei": Task(str(ROOT / "outputs/large/nuclei"), ("data=folder",), 600),  # benchmarks/large.py
    "lines": Task(str(ROOT / "outputs/large/lines"), ("data=folder",), 600),
}


def overrides(task: str) -> list[str]:
    """What asks for the data set."""
    return [*TASKS[task].data, f"data.root={DATA / TASKS[task].folder}"]


def ours(task: str, seed: int, budget: int, epochs: int | None, more: list[str]) -> tuple[Any, dict[str, Any]]:
    """Train through the front door; the kept model's evaluation and what the run says of itself."""
    from segsweep.compose import configuration
    from segsweep.engine import device
    from segsweep.inference.running import canvas, execution
    from segsweep.nn.checkpoint import describe, load_model
    from segsweep.training.build import load

    with tempfile.TemporaryDirectory() as outputs:
        folder = Path(outputs) / "run"
        length = f"train.epochs={epochs}" if epochs else f"train.time_budget={budget}"
        typed = [*overrides(task), length, f"train.seed={seed}", "tracking=none", *more]
        subprocess.run([sys.executable, "train.py", *typed, f"hydra.run.dir={folder}"], cwd=ROOT, check=True)
        info = describe(folder / "best.safetensors")
        said = json.loads((folder / "summary.json").read_text())
        where = device.find("auto")
        model, (how, _) = load_model(folder / "best.safetensors", where), execution(info, where)
        data = load(configuration([*overrides(task), *more]).data)
        found, mirrored = twice(how.prepare(model), data, canvas(info), how)
        plan = json.loads((folder / "plan.json").read_text())["plan"]
    laid: dict[str, Any] = {"part": part_of(data), "resize": info.resize, "size": info.size, "zoom": info.zoom}
    laid["plan"] = {one["key"]: one["value"] for one in plan}
    return found, {**laid, **{name: said.get(name) for name in KEPT}, **mirrored}


def part_of(data: Any) -> str:
    """The part that is scored: the test split if there is one."""
    return "test" if "test" in data.parts else "val"


def evaluated(model: Any, data: Any, canvas: Any, part: str = "", tta: str = "none", how: Any = None) -> Any:
    """Score the model, run in its own precision or as `how` says, on a part of the data."""
    import torch

    from segsweep.data.batches import EvalBatches, Pixels
    from segsweep.engine.execution import PLAIN
    from segsweep.engine.scorer import Scorer
    from segsweep.nn.tiles import limit

    part = part or part_of(data)
    where = next(model.parameters()).device
    pixels = Pixels(data.store, data.labels, where)
    batches = EvalBatches(pixels, data.parts[part], canvas, batch_size=8)
    scorer = Scorer(how or PLAIN, tta=tta, tile=limit(canvas.size, None))
    return scorer.evaluate(model, batches, lambda *_: torch.zeros(()), data.labels.names)


def twice(model: Any, data: Any, canvas: Any, how: Any = None) -> tuple[Any, dict[str, Any]]:
    """The evaluation as it is, and the scores of the mean of two mirrored views."""
    found = evaluated(model, data, canvas, how=how)
    return found, {"hflip": evaluated(model, data, canvas, tta="hflip", how=how).metrics}


@dataclass(frozen=True)
class Masks:
    """How predicted masks score: confusion matrices by image, and what follows from them."""

    matrices: Mapping[int, Any]
    metrics: Mapping[str, float]


def careful(task: str, seed: int, budget: int) -> tuple[Masks, dict[str, Any]]:
    """Train the peer as a practised user does, on files of the same pixels and parts, and score the masks it leaves."""
    import numpy as np
    from PIL import Image

    from segsweep import metrics
    from segsweep.compose import configuration
    from segsweep.data.labels import VOID as NOT_COUNTED
    from segsweep.training.build import load

    config = configuration(overrides(task))
    data, encoder = load(config.data), config.encoder.name.removeprefix("tf_efficientnet_")
    classes, part = len(data.labels.names), part_of(data)
    truths = {i: data.labels.table[data.store.host_mask(i)] for indices in data.parts.values() for i in indices}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, indices in data.parts.items():
            for folder in (root / "images" / name, root / "masks" / name):
                folder.mkdir(parents=True)
            for i in indices:
                mask = np.where(truths[i] == NOT_COUNTED, VOID, truths[i]).astype(np.uint8)
                Image.fromarray(data.store.image(i).numpy().squeeze()).save(root / "images" / name / f"{i:05d}.png")
                Image.fromarray(mask).save(root / "masks" / name / f"{i:05d}.png")
        typed = [str(root), "--seconds", str(budget), "--seed", str(seed), "--encoder", encoder]
        typed += ["--ignore", str(VOID), "--keep", place]
        # -P: a module in benchmarks/ would hide Python's own `profile`.
        command = [sys.executable, "-P", str(ROOT / "benchmarks" / "careful.py"), *typed]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
        found = {}
        for i in data.parts[part]:
            predicted, counted = np.asarray(Image.open(root / part / f"{i:05d}.png")), truths[i] != NOT_COUNTED
            pairs = truths[i][counted].astype(int) * classes + predicted[counted]
            found[i] = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    scores = metrics.scores(list(found.values()), data.labels.names)
    said = {"part": part, "val/iou": said["val"], "epochs": said["epochs"], "seconds": said["took"]}
    return Masks(found, scores), said


def peer(task: str, seed: int, budget: int, given: int | None) -> tuple[Any, dict[str, Any]]:
    """Train the peer for as long, or for the given epochs."""
    import copy

    import numpy as np
    import segmentation_models_pytorch as smp
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from segsweep.compose import configuration
    from segsweep.data.geometry import Canvas
    from segsweep.engine import device
    from segsweep.nn.encoder import Encoder
    from segsweep.training.build import load

    asked = TASKS[task]
    squashed = Canvas(asked.size, "squash")
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
    batch = min(asked.batch, len(data.parts["train"]))
    loader = DataLoader(Files(), batch, shuffle=True, drop_last=True, num_workers=min(8, os.cpu_count() or 1))
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
        iou = evaluated(model, data, squashed, "val").metrics["iou"]
        reserve = spent() - before
        epochs += 1
        print(f"peer: epoch {epochs}, {spent():.0f} s, val IoU {iou:.4f}", file=sys.stderr, flush=True)
        if iou > best:
            best, kept = iou, copy.deepcopy(model.state_dict())
    seconds = spent()
    model.load_state_dict(kept)
    found, mirrored = twice(model, data, squashed)
    return found, {"part": part_of(data), "val/iou": best, "epochs": epochs, "seconds": seconds, **mirrored}


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
        key = row["task"], row["part"], row["who"], row["budget"], row["more"], row["commit"]
        groups.setdefault(key, []).append(row)
    for (task, part, who, budget, more, commit), own in groups.items():
        rng = np.random.default_rng(0)
        images = len(own[0]["hits"])
        draws = rng.integers(images, size=(RESAMPLES, images))
        spread = np.mean([iou(row, draws) for row in own], 0)
        scores = [float(iou(row)) for row in own]
        by_seed = [f"{score:.3f}{'*' * row.get('paced', False)}" for score, row in zip(scores, own, strict=True)]
        low, high = np.percentile(spread, [2.5, 97.5])
        views = [row["hflip"]["iou"] for row in own if "hflip" in row]
        mirrored = f"{statistics.mean(views):.3f}" if len(views) == len(own) else ""
        rivals, theirs = groups.get((task, part, "ours", budget, more, commit), []), ""
        if who == "peer" and not rivals:  # it has no overrides to agree in
            same = task, part, "ours", budget
            others = [(key[4], rows) for key, rows in groups.items() if key[:4] == same and key[5] == commit]
            theirs, rivals = others[0] if others else ("", [])
        against = ""
        if who != "ours" and rivals:
            gain = np.mean([iou(row, draws) for row in rivals], 0) - spread
            mean = statistics.mean(float(iou(row)) for row in rivals) - statistics.mean(scores)
            named = f" (`{theirs}`)" if theirs else ""
            between = f"{np.percentile(gain, 2.5):+.3f} to {np.percentile(gain, 97.5):+.3f}"
            against = f"{mean:+.3f}{named} | {between}"
        commits = f"{commit[:7]}{' dirty' * any(row['dirty'] for row in own)}"
        deviation = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        lines.append(
            f"| {task}, {part} | {who}{f' `{more}`' if more else ''} | {budget} | {len(own)} "
            f"| {statistics.mean(scores):.3f}{deviation} | {', '.join(by_seed)} | {mirrored} "
            f"| {low:.3f} to {high:.3f} | {against or ' | '} | {commits} |"
        )
    return "\n".join(lines)


def lead(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """How far ours is ahead of careful on each data set and on their mean; intervals resample sets, seeds and images.

    Pairs have seed and commit in common, one of `PRESENT` if the data set has any there. A set without a test split is
    scored on the images that both chose by, ours more often: it does not count in the mean.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    head = ("data", "seconds", "seeds", "images", "ours", "careful", "ours - careful", "95 %")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    gains, drawn = [], []
    for task in tasks:
        pairs: dict[tuple[int, int, str], dict[str, Any]] = {}
        for row in rows:
            known = PRESENT.get(task, (row["commit"][:7],))
            compared = row["task"] == task and row["who"] in ("ours", "careful") and row["commit"][:7] in known
            if compared and not (row["more"] or row.get("paced")):
                pairs.setdefault((row["budget"], row["seed"], row["commit"]), {})[row["who"]] = row
        longest = max((budget for (budget, *_), pair in pairs.items() if len(pair) == 2), default=0)
        both = [pair for (budget, *_), pair in pairs.items() if len(pair) == 2 and budget == longest]
        if not both:
            continue
        images = len(both[0]["ours"]["hits"])
        scores = {who: [float(iou(pair[who])) for pair in both] for who in ("ours", "careful")}
        draws, wider = [], math.sqrt(len(both) / (len(both) - 1)) if len(both) > 1 else 1.0
        for _ in range(SEED_DRAWS):
            chosen = rng.integers(images, size=(RESAMPLES // SEED_DRAWS, images))
            each = np.stack([iou(pair["ours"], chosen) - iou(pair["careful"], chosen) for pair in both])
            seeds = each[rng.integers(len(both), size=len(both))].mean(0)
            draws.append(each.mean(0) + wider * (seeds - each.mean(0)))  # of few seeds, draws vary too little
        gain = statistics.mean(scores["ours"]) - statistics.mean(scores["careful"])
        every = np.concatenate(draws)
        if both[0]["ours"]["part"] == "test":
            gains.append(gain)
            drawn.append(every)
        shown = [f"{statistics.mean(s):.3f} ({', '.join(f'{x:.3f}' for x in s)})" for s in scores.values()]
        between = "{:+.3f} to {:+.3f}".format(*np.percentile(every, [2.5, 97.5]))
        about = f"{task}, {both[0]['ours']['part']} | {longest} | {len(both)} | {images}"
        lines.append(f"| {about} | {' | '.join(shown)} | {gain:+.3f} | {between} |")
    if len(gains) > 1:
        sets = rng.integers(len(drawn), size=(RESAMPLES, len(drawn)))
        means = np.stack(drawn)[sets, rng.integers(drawn[0].size, size=sets.shape)].mean(1)
        between = "{:+.3f} to {:+.3f}".format(*np.percentile(means, [2.5, 97.5]))
        lines.append(f"| mean of {len(gains)} test splits | | | | | | **{statistics.mean(gains):+.3f}** | {between} |")
    return "\n".join(lines)


def run(task: str, who: str, seed: int, budget: int, epochs: int | None, more: list[str]) -> dict[str, Any]:
    """Train and score; what is kept of it."""
    if who == "peer":
        found, said = peer(task, seed, budget, epochs)
    elif who == "careful":
        found, said = careful(task, seed, budget)
    else:
        extra = ["encoder.pretrained=false"] if who == "random" else []
        found, said = ours(task, seed, budget, epochs, [*more, *extra])
    scores = {name: None if math.isnan(value) else value for name, value in found.metrics.items()}
    return {"paced": bool(epochs), **said, "scores": scores, **machine(), **counts(found)}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="DATA", choices=TASKS, help=", ".join(TASKS))
    parser.add_argument("--who", nargs="+", choices=["ours", "peer", "careful", "random"], default=["ours", "peer"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, help="seconds; default: 600 to 3600 by the data set")
    parser.add_argument("--epochs", type=int, help="train for these instead, as a quiet machine does in the budget")
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--out", type=Path, default=RAW / "accuracy.jsonl")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--lead", action="store_true", help="only print how far ours is ahead of careful")
    parser.add_argument("--commit", default="", help="whose rows count, as it begins: others are as if not there")
    # Taken out first: behind `--seeds 0` they would be seeds.
    typed = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    arguments = parser.parse_intermixed_args([word for word in sys.argv[1:] if word not in typed])
    tasks = arguments.tasks
    if arguments.epochs and "careful" in arguments.who:
        parser.error("--epochs: careful trains by the clock alone")
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    rows = [row for row in rows if row["commit"].startswith(arguments.commit)]
    if arguments.lead:
        print(lead(rows, tasks))
        return
    for task in tasks:
        budget = arguments.budget or TASKS[task].budget
        for seed in arguments.seeds if not arguments.table else []:
            for who in arguments.who:
                more = typed if who in ("ours", "random") else []
                about = {"task": task, "who": who, "seed": seed, "budget": budget, "more": " ".join(more)}
                if any(about.items() <= row.items() for row in rows):
                    continue
                rows.append({**about, **run(task, who, seed, budget, arguments.epochs, more)})
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table([row for row in rows if row["task"] in tasks]))


if __name__ == "__main__":
    main()
