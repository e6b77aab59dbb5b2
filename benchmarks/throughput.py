"""Images/s of a training step and of whole epochs, beside segmentation_models_pytorch on the same encoder.

    pip install -e ".[bench]"
    python benchmarks/throughput.py resnet34 --name throughput-resnet34-cpu

What takes turns, on the same PNG files, size and batch:

    peer        its notebook's loop: DataLoader, fp32, contiguous, Adam, Dice loss, a U-Net of fixed decoder widths
    tuned       the same in bf16 and channels_last (on a GPU with TF32)
    compiled    tuned, through torch.compile (--compile)
    ours        segsweep with the peer's decoder widths, its skip at full resolution and augmentation on top
    ours auto   segsweep with decoder.width=auto
    ours auto, compiled    the same with train.compile=true (--compile)

`step` repeats one batch that lies ready: no data. `epoch` is training and validation over the files, each image decoded
by the peer's loader anew and by us from the store. The machine's convolution peak is measured in the same rounds.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from measure import interleaved, keep, parser, summary

WIDTHS = [256, 128, 64, 32, 16]  # the peer's
PEER_LR, LR = 2e-4, 1e-3
PEAK = "convolution peak, TFLOP/s"

options = parser(__doc__)
options.add_argument("encoder", nargs="?", default="resnet34")
options.add_argument("--size", type=int, default=256)
options.add_argument("--batch", type=int, default=8)
options.add_argument("--images", type=int, default=40, help="of an epoch; a fifth is for validation")
options.add_argument("--compile", action="store_true")
options.add_argument("--device", default="auto")
options.add_argument("--only", choices=["step", "epoch"])


def files(count: int) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Pairs for training and validation: the embedded `shapes`, which any machine can make."""
    from segsweep.config.schema import DataConfig
    from segsweep.data.source import source

    found = source("shapes").find(DataConfig(count=max(count, 10))).samples
    train = [(s.image, s.mask) for s in found if s.split == "train"]
    val = [(s.image, s.mask) for s in found if s.split == "val"]
    return train, val


class Files:
    """The peer's data set, as its notebook has it: a file is decoded and resized when it is asked for."""

    def __init__(self, pairs: list[tuple[Path, Path]], size: int):
        self.pairs, self.size = pairs, size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import numpy as np
        from PIL import Image

        image, mask = self.pairs[index]
        side = (self.size, self.size)
        pixels = np.asarray(Image.open(image).convert("RGB").resize(side, Image.Resampling.BILINEAR))
        truth = np.asarray(Image.open(mask).resize(side, Image.Resampling.NEAREST)) > 0
        return pixels.transpose(2, 0, 1).astype("float32"), truth[None].astype("float32")


def peer(encoder: str, size: int, batch: int, where: Any, tuned: bool, compiled: bool) -> tuple[Callable, Callable]:
    """Its step on a ready batch and its epoch over files, as functions that give images/s."""
    import segmentation_models_pytorch as smp
    import torch
    from torch.utils.data import DataLoader

    from segsweep.engine import device

    name = encoder if encoder in smp.encoders.encoders else f"tu-{encoder}"
    model = smp.Unet(name, encoder_weights=None, classes=1).to(where)
    layout = torch.channels_last if tuned else torch.contiguous_format
    model = model.to(memory_format=layout)
    called = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), PEER_LR)
    loss = smp.losses.DiceLoss("binary", from_logits=True)
    mean, std = torch.tensor([123.7, 116.3, 103.5]), torch.tensor([58.4, 57.1, 57.4])
    mean, std = mean.view(1, 3, 1, 1).to(where), std.view(1, 3, 1, 1).to(where)

    def forward(image: Any) -> Any:
        image = ((image.to(where) - mean) / std).contiguous(memory_format=layout)
        with torch.autocast(where.type, torch.bfloat16, enabled=tuned):
            return called(image).float()

    def train(image: Any, mask: Any) -> None:
        optimizer.zero_grad()
        loss(forward(image), mask.to(where)).backward()
        optimizer.step()

    ready = 255 * torch.rand(batch, 3, size, size), (torch.rand(batch, 1, size, size) > 0.5).float()

    def step() -> float:
        model.train()
        return timed(where, 2, lambda: train(*ready)) * batch

    def epoch(train_files: list, val_files: list) -> float:
        workers = min(8, os.cpu_count() or 1)
        loader = partial(DataLoader, batch_size=batch, num_workers=workers)
        started = time.perf_counter()
        model.train()
        for image, mask in loader(Files(train_files, size), shuffle=True, drop_last=True):
            train(image, mask)
        model.eval()
        with torch.no_grad():
            for image, mask in loader(Files(val_files, size)):
                logits = forward(image)
                smp.metrics.get_stats((logits.sigmoid() > 0.5).long(), mask.to(where).long(), "binary")
        device.synchronize(where)
        return len(train_files) // batch * batch / (time.perf_counter() - started)

    return step, epoch


def ours(
    encoder: str, size: int, batch: int, where: Any, width: Any, count: int, compiled: bool
) -> tuple[Callable, Callable, Any, Any]:
    """The same of segsweep: its own loop, store, augmentation, loss, optimizer and evaluation."""
    import torch

    from segsweep.compose import configuration
    from segsweep.config.schema import DecoderConfig, OptimConfig
    from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches
    from segsweep.data.geometry import Canvas
    from segsweep.engine import device, losses
    from segsweep.engine.scorer import Scorer
    from segsweep.engine.step import TrainStep
    from segsweep.nn import UNet
    from segsweep.training import optim
    from segsweep.training.autotune import Workload, tune
    from segsweep.training.build import load
    from segsweep.training.loop import fit
    from segsweep.training.state import TrainState

    typed = ["data=shapes", f"data.count={count}", f"data.size=[{size},{size}]", f"train.batch_size={batch}"]
    # What a plan would decide.
    typed += ["augmentation.scale=0.25", "augmentation.translate=0.05", "train.grad_accum=1"]
    config = configuration([*typed, "optim.schedule=constant", "optim.warmup=0", f"train.compile={compiled}"])
    data = load(config.data)
    data.store.to(where)
    model = UNet(encoder, decoder=DecoderConfig(width)).to(where)
    tuned = tune(
        model,
        ["benchmark", encoder, model.architecture.decoder.width],
        Workload((size, size), 3, batch, expected_images=1e6),
        config.train,
        where,
    )
    optimizer = optim.build(OptimConfig(lr=LR, encoder_lr_scale=1.0), model)
    loss = losses.build({"ce": 0.5, "dice": 0.5})
    pixels, canvas = Pixels(data.store, data.labels, where), Canvas((size, size), "pad")
    train = TrainBatches(pixels, data.parts["train"], canvas, Sampling(batch), config.augmentation)
    if compiled:
        train = replace(train, compiled=tuned.execution.making)
    val = EvalBatches(pixels, data.parts["val"], canvas, batch)
    state = TrainState(model, optimizer, torch.amp.GradScaler(where.type, enabled=False))
    train_step, scorer = TrainStep(tuned.execution, loss, config.train.grad_clip), Scorer(tuned.execution)
    with closing(train.epoch(1)) as steps:
        ready = list(next(steps))

    def one() -> None:
        train_step(state, ready, 1)

    def validate(model: Any) -> Any:
        return scorer.evaluate(model, val, loss, data.labels.names)

    def step() -> float:
        tuned.execution.prepare(model).train()
        return timed(where, 2, one) * batch

    def epoch(train_files: list, val_files: list) -> float:
        started = time.perf_counter()
        once = replace(config.train, epochs=state.progress.epoch + 1)
        for last in fit(state, train_step, train, validate, once, config.optim):
            shares.append(last.metrics["perf/data_share"])
        device.synchronize(where)
        return len(train) * batch / (time.perf_counter() - started)

    shares: list[float] = []
    return step, epoch, (tuned, model), shares


def timed(where: Any, times: int, action: Callable[[], None]) -> float:
    """How often a second."""
    from segsweep.engine import device

    device.synchronize(where)
    started = time.perf_counter()
    for _ in range(times):
        action()
    device.synchronize(where)
    return times / (time.perf_counter() - started)


def main() -> None:
    given = options.parse_args()
    import torch

    from segsweep.engine import device

    warnings.simplefilter("ignore")
    where = device.find(given.device)
    device.set_threads()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    common = (given.encoder, given.size, given.batch, where)
    count = round(given.images / 0.6)
    made: dict[str, Any] = {}
    for name, settings in {"peer": (False, False), "tuned": (True, False), "compiled": (True, True)}.items():
        if name == "compiled" and not given.compile:
            continue
        try:
            made[name] = peer(*common, *settings)
            made[name][0]()
        except Exception as error:  # the peer does not build every encoder
            made.pop(name, None)
            print(f"{name} does not run: {type(error).__name__}: {error}")
    execution = {}
    kinds: dict[str, tuple[Any, bool]] = {"ours": (WIDTHS, False)} if made else {}
    kinds["ours auto"] = ("auto", False)
    if given.compile:
        kinds["ours auto, compiled"] = ("auto", True)
    for name, (width, compiled) in kinds.items():
        *made[name], execution[name], shares = ours(*common, width, count, compiled)
        made[name].append(shares)
    train, val = files(count)
    reference = "peer" if "peer" in made else "ours auto"
    results: dict[str, Any] = {}
    if given.only != "epoch":
        kind = execution["ours auto"][0].execution.precision
        steps = {name: parts[0] for name, parts in made.items()}
        steps[PEAK] = lambda: device.measured_peak(where, kind) / 1e12
        results["step"] = interleaved(steps, given.repeats)
        print(f"\nstep, images/s\n{summary(results['step'], reference)}")
    if given.only != "step":
        epochs = {name: partial(parts[1], train, val) for name, parts in made.items()}
        results["epoch"] = interleaved(epochs, given.repeats)
        print(f"\nepoch, images/s\n{summary(results['epoch'], reference)}")
    for name, (tuned, model) in execution.items():
        flops = 6 * model.macs((given.size, given.size))
        chosen = f"{device.named(tuned.execution.precision)}, channels_last={tuned.execution.channels_last}"
        about = {"chosen": chosen, "probed": tuned.rates, "gflop": flops / 1e9}
        if "step" in results:
            rounds = zip(results["step"][name], results["step"][PEAK], strict=True)
            about["peak_share"] = statistics.median(rate * flops / 1e12 / peak for rate, peak in rounds)
        about["data_share"] = made[name][2]
        results[f"{name}: how"] = about
        print(f"{name}: {about}")
    if given.name:
        keep(given.name, results)


if __name__ == "__main__":
    main()
