"""The front door: what is typed, what is answered, what is left behind."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import yaml
from conftest import TINY
from PIL import Image
from records import undecided

import train
from segsweep.commands import train as command
from segsweep.data.geometry import Canvas
from segsweep.engine import losses
from segsweep.nn.checkpoint import describe, load_model
from segsweep.runs import journal
from segsweep.tracking.client import tracking_uri
from segsweep.tracking.run import run_id
from segsweep.training.recorder import Recorder
from segsweep.world import SINGLE

ROOT = Path(train.__file__).parent
SMALL = (*TINY, "train.epochs=2", "train.batch_size=4", "data.size=[32,32]", "tracking=none")
AS_OFTEN_AS_EVER = tuple(arg for arg in SMALL if not arg.startswith("data.passes"))


def folder_data(root):
    return ("data=folder", f"data.root={root}")


def run_folders(outputs):
    return sorted(path.parent for path in outputs.rglob(journal.NAME))


def test_a_run_leaves_everything_it_promises(pairs, outputs, capsys):
    code = train.main([*SMALL, *folder_data(pairs(12, ("train", "val", "test")))])
    assert code == 0
    (folder,) = run_folders(outputs)
    for name in (
        "summary.json",
        "split.csv",
        "best.safetensors",
        "last.pt",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    ):
        assert (folder / name).exists(), name
    assert list((folder / "predictions").glob("*/*.png"))
    run = journal.read(folder)
    assert run.records == [run.start, *run.epochs, run.end]
    assert [epoch.epoch for epoch in run.epochs] == [1, 2]
    summary = json.loads((folder / "summary.json").read_text())
    wanted = ("val/iou", "test/iou", "val/dice", "val/accuracy", "perf/images_per_s", "run_id", "weights_source")
    assert all(name in summary for name in wanted)
    assert summary["val/iou"] == max(epoch.iou for epoch in run.epochs)
    assert summary["weights_source"] == "random"
    printed = capsys.readouterr()
    assert str(folder) in printed.out
    assert f"{summary['val/iou']:.4f}" in printed.out
    assert "epoch   2/2" in printed.err


def scored(folder):
    """All that was measured in the epochs but for times."""
    epochs = journal.read(folder).epochs
    return [(one.epoch, {k: v for k, v in one.metrics.items() if not k.startswith("perf/")}) for one in epochs]


def test_decoding_again_and_again_gives_the_same_training(pairs, outputs):
    data = folder_data(pairs(12))
    for cache in ("auto", "none"):
        assert train.main([*SMALL, *data, f"data.cache={cache}", "augmentation=strong"]) == 0
    kept, streamed = run_folders(outputs)
    assert scored(kept) == scored(streamed)


def test_a_training_says_how_fast_it_is_and_what_it_runs_on(pairs, outputs, monkeypatch):
    from segsweep.engine import device
    from segsweep.training import autotune as tuning

    monkeypatch.setattr(tuning, "WORTH", 1)
    monkeypatch.setattr(device, "PEAK_SHAPES", (((8, 16),), ()))
    assert train.main([*SMALL, *folder_data(pairs(12)), "train.grad_accum=2"]) == 0
    (folder,) = run_folders(outputs)
    read = journal.read(folder)
    ran, epoch = read.start.execution, read.epochs[0].metrics
    assert set(ran.rates) == {"fp32 channels_last", "fp32 contiguous"}
    assert (ran.precision, ran.micro_batch, ran.compiled) == ("fp32", 2, False)
    assert isinstance(ran.channels_last, bool)
    assert 0 < epoch["perf/data_share"] < 1
    flops = epoch["perf/tflops"] * 1e12 / epoch["perf/images_per_s"]
    assert flops == pytest.approx(6 * load_model(folder / "best.safetensors").macs((32, 32)))
    assert epoch["perf/peak_share"] == pytest.approx(epoch["perf/tflops"] * 1e12 / ran.peak)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["perf/tflops"] > 0


def test_a_peak_that_is_beaten_says_nothing():
    model = SimpleNamespace(macs=lambda size: 1e9)
    for peak, known in ((1e12, {"perf/peak_share": 0.6}), (0.5e12, {}), (0.0, {})):
        tuned = SimpleNamespace(peak=peak)
        training = SimpleNamespace(canvas=Canvas((8, 8), "pad"), model=model, tuned=tuned, world=SINGLE)
        assert Recorder._work(SimpleNamespace(training=training), 100.0) == pytest.approx({"perf/tflops": 0.6, **known})


def test_what_a_probe_chose_stays_when_a_run_goes_on(pairs, outputs, monkeypatch):
    from segsweep.training import autotune as tuning

    data = folder_data(pairs(80))
    assert train.main([*SMALL, *data, "data.passes=16", "train.epochs=1"]) == 0
    (folder,) = run_folders(outputs)
    before = journal.read(folder).start
    assert before.execution.rates
    monkeypatch.setattr(tuning, "_probe", lambda *_: pytest.fail("probed again"))
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 0
    after = journal.read(folder).start
    assert after.execution == before.execution
    assert after.resumed_after == 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    "typed",
    (
        *((), ("train.compile=true",), ("train.checkpointing=true",), ("train.batch_size=auto",)),
        *(("train.compile=graphs", "train.grad_accum=1"), ("train.side_stream=true", "train.grad_accum=2")),
    ),
)
def test_a_gpu_trains_in_every_way(typed, pairs, outputs, monkeypatch):
    from segsweep.training import autotune as tuning

    monkeypatch.setattr(tuning, "WORTH", 1)
    gpu = ("train.device=cuda", "train.precision=auto")
    assert train.main([*SMALL, *folder_data(pairs(80)), *gpu, *typed]) == 0
    (folder,) = run_folders(outputs)
    run = journal.read(folder)
    assert run.start.execution.device.startswith("cuda")
    ran = run.start.execution
    assert ran.compiled == ("train.compile=true" in typed or ran.graphs)
    assert not ran.graphs or "train.compile=graphs" in typed
    assert all(0 <= epoch.metrics["perf/data_share"] < 1 for epoch in run.epochs)


def test_checkpointing_is_the_same_training(pairs, outputs):
    data = folder_data(pairs(12))
    for checkpointing in ("false", "true"):
        assert train.main([*SMALL, *data, f"train.checkpointing={checkpointing}"]) == 0
    plain, checkpointed = (scored(folder) for folder in run_folders(outputs))
    for (_, one), (_, other) in zip(plain, checkpointed, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-3)


def test_a_split_without_test_has_no_test_score(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(20))]) == 0
    summary = json.loads((run_folders(outputs)[0] / "summary.json").read_text())
    assert "test/iou" not in summary


def test_the_test_split_can_be_scored_later(pairs, outputs, capsys):
    data = folder_data(pairs(12, ("train", "val", "test")))
    assert train.main([*SMALL, *data, "train.test=false"]) == 0
    assert train.main([*SMALL, *data]) == 0
    later, at_once = run_folders(outputs)
    assert "test/iou" not in json.loads((later / "summary.json").read_text())
    assert train.main([f"resume={later}", "train.test=true"]) == 0
    assert scored(later) == scored(at_once)
    found, wanted = (json.loads((folder / "summary.json").read_text()) for folder in (later, at_once))
    assert {k: v for k, v in found.items() if k.startswith("test/")} == {
        k: v for k, v in wanted.items() if k.startswith("test/")
    }
    capsys.readouterr()
    assert train.main([f"resume={later}", "train.test=true"]) == 2
    assert "complete after 2 epochs" in capsys.readouterr().err


def test_several_classes_train(pairs, outputs):
    root = pairs(12, foreground=2)
    code = train.main([*SMALL, *folder_data(root), "data.classes=[ground,grass,tree]"])
    assert code == 0
    end = journal.read(run_folders(outputs)[0]).end.metrics
    assert end["val/iou/grass"] is None  # in no target
    assert end["val/iou/tree"] is not None


def rows_of(folder):
    """What split.csv says, a dict for each row."""
    with (folder / "split.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["key", "split", "group", "fold", "image", "mask", "content"]
        return list(reader)


def parts_of(folder):
    rows = rows_of(folder)
    return {part: [row["key"] for row in rows if row["split"] == part] for part in {row["split"] for row in rows}}


def ran(outputs, *typed, small=SMALL):
    """The folder of a small run, and the metrics of its end."""
    assert train.main([*small, *typed]) == 0
    (folder,) = run_folders(outputs)
    run = journal.read(folder)
    assert all(math.isfinite(epoch.metrics[name]) for epoch in run.epochs for name in ("train/loss", "val/loss"))
    return folder, run.end.metrics


def test_split_csv_tells_where_every_pair_lies(pairs, outputs):
    root = pairs(4, ("train", "val", "test"))
    folder, _ = ran(outputs, *folder_data(root))
    rows = rows_of(folder)
    assert len(rows) == len({row["image"] for row in rows}) == len({row["content"] for row in rows}) == 12
    for row in rows:
        assert Path(row["image"]) == root / "images" / row["split"] / f"{row['key'].rpartition('/')[2]}.png"
        assert Path(row["mask"]) == root / "masks" / row["split"] / f"{row['key'].rpartition('/')[2]}.png"
        assert row["group"]
        assert row["fold"] == ""


@pytest.mark.parametrize("splits", [("",), ("train", "val", "test")], ids=["ours", "given"])
def test_overfit_trains_and_validates_on_the_same_few_images(splits, pairs, outputs):
    root = pairs(12, splits)
    typed = ("debug=overfit", "data.overfit=3", "train.epochs=5", "train.batch_size=10")
    folder, end = ran(outputs, *folder_data(root), *typed, small=AS_OFTEN_AS_EVER)
    parts = parts_of(folder)
    assert parts.keys() == {"train", "val"}
    assert parts["train"] == parts["val"]
    assert len(set(parts["train"])) == 3
    if len(splits) > 1:
        assert all(row["image"].startswith(str(root / "images" / "train")) for row in rows_of(folder))
    assert not [name for name in end if name.startswith("test/")]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"] == {"train": 3, "val": 3}
    start = journal.read(folder).start
    assert start.images == {"train": 3, "val": 3, "test": 0}
    assert start.settings.augmentation.hflip == 0
    assert start.asked.tracking.name == "none"
    assert end["val/iou"] > 0.8  # bright squares are learnt by heart


def test_overfit_shows_its_few_images_until_an_epoch_is_long_enough(pairs, outputs, capsys):
    typed = (*folder_data(pairs(12)), "debug=overfit", "data.overfit=2")
    assert train.main([*AS_OFTEN_AS_EVER, *typed, "train.batch_size=181"]) == 2
    assert "larger than an epoch of 180 images. Try train.batch_size=128, or data.passes=91" in capsys.readouterr().err
    ran(outputs, *typed, "train.batch_size=180", "train.epochs=1", small=AS_OFTEN_AS_EVER)


def test_overfit_sets_what_the_command_line_does_not(capsys):
    assert train.main(["debug=overfit", "--cfg", "job"]) == 0
    plain = yaml.safe_load(capsys.readouterr().out)
    assert (plain["data"]["overfit"], plain["tracking"]["name"]) == (8, "none")
    assert not any(plain["augmentation"].values())
    assert train.main(["debug=overfit", "train.epochs=3", "data.overfit=1", "--cfg", "job"]) == 0
    typed = yaml.safe_load(capsys.readouterr().out)
    assert (typed["train"]["epochs"], typed["data"]["overfit"]) == (3, 1)
    assert train.main(["debug=overfit", "augmentation=light", "tracking=mlflow", "--cfg", "job"]) == 0
    typed = yaml.safe_load(capsys.readouterr().out)
    assert (typed["augmentation"]["hflip"], typed["tracking"]["name"]) == (0.5, "mlflow")


def test_each_fold_is_validated_on_once(pairs, outputs):
    root = pairs(12)
    validated = []
    for fold in range(3):
        typed = (*folder_data(root), "data.folds=3", f"data.fold={fold}", "train.epochs=1")
        assert train.main([*SMALL, *typed]) == 0
        rows = rows_of(run_folders(outputs)[-1])
        assert {row["fold"] == str(fold) for row in rows if row["split"] == "val"} == {True}
        assert {row["fold"] == str(fold) for row in rows if row["split"] == "train"} == {False}
        assert {row["split"] for row in rows} == {"train", "val"}
        assert len(rows) == 12
        validated += [row["key"] for row in rows if row["split"] == "val"]
        assert len(validated) == 4 * (fold + 1)
    assert len(set(validated)) == 12


def test_folds_leave_a_given_test_split_alone(pairs, outputs):
    folder, end = ran(outputs, *folder_data(pairs(6, ("train", "val", "test"))), "data.folds=3", "data.fold=1")
    rows = rows_of(folder)
    tested = [row for row in rows if row["split"] == "test"]
    assert len(tested) == 6
    assert all("/test/" in row["image"] and row["fold"] == "" for row in tested)
    assert {row["fold"] for row in rows if row["split"] == "val"} == {"1"}
    assert {row["fold"] for row in rows if row["split"] == "train"} == {"0", "2"}
    assert "test/iou" in end


@pytest.mark.parametrize(
    "typed",
    [
        ("loss=focal", "loss.gamma=1.5", "loss.pos_weight=auto"),
        ("loss=lovasz",),
        ("loss=jaccard",),
        ("loss=ce_lovasz", "loss.class_weights=[1,3]"),
        ("loss=ce", "loss.dice=0.5", "loss.focal=0.1", "loss.class_weights=auto"),
    ],
    ids=lambda typed: "_".join(t.partition("=")[2] for t in typed[:2]),
)
def test_every_loss_trains(typed, pairs, outputs):
    folder, end = ran(outputs, *folder_data(pairs(12)), *typed, "train.epochs=6", "optim.lr=3e-3", "augmentation=none")
    of_epochs = [epoch.metrics["train/loss"] for epoch in journal.read(folder).epochs]
    assert of_epochs[-1] < of_epochs[0]
    assert end["val/iou"] > 0.2


def test_the_loss_group_is_what_is_trained_with(pairs, outputs):
    folder, _ = ran(outputs, *folder_data(pairs(12)), "loss=focal", "train.epochs=1")
    loss = asdict(journal.read(folder).start.settings.loss)
    assert {name: value for name, value in loss.items() if value} == {"focal": 1.0, "gamma": 2.0}


@pytest.mark.parametrize("loss", sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")))
def test_every_loss_group_composes_and_weighs_something(loss, capsys):
    assert train.main([f"loss={loss}", "--cfg", "job"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)["loss"]
    weights = {name: found[name] for name in losses.TERMS if found[name]}
    assert sum(weights.values()) == 1
    assert weights.keys() == {"ce" if name == "bce" else name for name in loss.split("_")}


def saved(root, kind, pixels):
    """Numbered files: PNG, and TIFF beyond 8 bits."""
    (root / kind).mkdir(parents=True, exist_ok=True)
    for i, each in enumerate(pixels):
        if each.dtype == np.uint8:
            Image.fromarray(each).save(root / kind / f"{i:03d}.png")
        else:
            tifffile.imwrite(root / kind / f"{i:03d}.tif", each, photometric="minisblack")


def squares(n, size=(40, 48)):
    """Masks with the numbers 0, 1 and 2: a square of each of the last two on ground."""
    rng, found = np.random.default_rng(0), []
    for _ in range(n):
        mask = np.zeros(size, np.int64)
        for value in (1, 2):
            top, left = rng.integers(0, 26), rng.integers(0, 10) + 24 * (value - 1)
            mask[top : top + 14, left : left + 14] = value
        found.append(mask)
    return found


def test_numbered_objects_are_one_class_with_binarize(tmp_path, outputs, capsys):
    root, masks = tmp_path / "data", squares(12)
    rng = np.random.default_rng(1)
    saved(root, "images", [((mask > 0) * 120 + rng.integers(0, 80, mask.shape)).astype(np.uint8) for mask in masks])
    objects = [np.where(mask, mask + 300 * i, 0).astype(np.uint16) for i, mask in enumerate(masks)]
    saved(root, "masks", objects)
    assert train.main([*SMALL, *folder_data(root)]) == 3
    assert "data.binarize=true" in capsys.readouterr().err
    folder, end = ran(outputs, *folder_data(root), "data.binarize=true", "data.ignore_index=601")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["classes"] == ["background", "foreground"]
    assert end["val/iou"] == end["val/iou/foreground"]
    assert describe(folder / "best.safetensors").model.num_classes == 1


@pytest.mark.parametrize("void", ((), ("data.ignore_index=[255,255,255]",)), ids=("all", "void"))
def test_coloured_masks_are_classes_by_colour(void, tmp_path, outputs, capsys):
    root, masks = tmp_path / "data", squares(12)
    colours = np.array([[0, 0, 0], [0, 128, 0], [128, 64, 128], [255, 255, 255]], np.uint8)
    if void:
        for mask in masks:
            mask[:3] = 3
    saved(root, "images", [colours[mask] // 2 + 20 for mask in masks])
    saved(root, "masks", [colours[mask] for mask in masks])
    assert train.main([*SMALL, *folder_data(root), *void]) == 3
    assert "Name the classes by colour" in capsys.readouterr().err
    typed = "data.classes={ground:[0,0,0],tree:[0,128,0],road:[128,64,128]}"
    folder, end = ran(outputs, *folder_data(root), typed, *void, "loss=ce_lovasz", "loss.class_weights=auto")
    assert json.loads((folder / "summary.json").read_text())["classes"] == ["ground", "tree", "road"]
    assert all(end[f"val/iou/{name}"] is not None for name in ("ground", "tree", "road"))
    assert describe(folder / "best.safetensors").classes == ["ground", "tree", "road"]


def test_five_channels_of_16_bits_train_and_are_predicted_from_their_percentiles(tmp_path, outputs):
    root, masks = tmp_path / "data", squares(12)
    rng = np.random.default_rng(1)
    levels = np.array([300, 1000, 5000, 200, 40])[:, None, None]
    images = [(levels * (1 + 3 * (m > 0)) + rng.integers(0, 40, (5, *m.shape))).astype(np.uint16) for m in masks]
    for image in images:
        image[:, :2, :2] = 65535  # hot pixels
    saved(root, "images", images)
    saved(root, "masks", [(mask > 0).astype(np.uint8) for mask in masks])
    folder, end = ran(
        outputs, *folder_data(root), "data.normalize=percentile", "train.epochs=6", "optim.lr=3e-3", "augmentation=none"
    )
    assert end["val/iou"] > 0.3  # 0.204 where all is foreground
    trained = [int(key) for key in parts_of(folder)["train"]]
    pixels = np.stack([images[i] for i in trained], 1).reshape(5, -1)
    low, high = np.percentile(pixels, (0.5, 99.5), axis=1)
    model = load_model(folder / "best.safetensors")
    np.testing.assert_allclose(model.low.flatten(), low, rtol=1e-4)
    np.testing.assert_allclose(model.high.flatten(), high, rtol=1e-4)
    image = torch.from_numpy(images[0].astype(np.float32))[None]
    with torch.no_grad():
        assert torch.equal(model(image), model(image.clamp(max=model.high.max())))
    assert train.main([f"resume={folder}", "train.epochs=7"]) == 0
    assert torch.equal(load_model(folder / "best.safetensors").low, model.low)
    assert describe(folder / "best.safetensors").dtype == "uint16"


def test_a_window_is_kept_with_the_model(pairs, outputs):
    folder, _ = ran(outputs, *folder_data(pairs(12)), "data.normalize=window", "data.window=[20,150]")
    info = describe(folder / "best.safetensors")
    assert info.model.normalization.clip == ((20.0,) * 3, (150.0,) * 3)


def test_crops_over_the_foreground_train_and_resume_to_the_same_end(pairs, tmp_path):
    root = pairs(12, size=(70, 80))
    typed = [*SMALL, *folder_data(root), "data.resize=crop", "data.foreground=0.7", "train.epochs=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    schedule = "optim.schedule=constant"
    assert train.main([*typed, schedule, f"hydra.run.dir={whole}"]) == 0
    assert train.main([*typed, schedule, "train.epochs=1", f"hydra.run.dir={cut}"]) == 0
    assert train.main([f"resume={cut}", "train.epochs=2"]) == 0
    assert train.main([*typed, schedule, "data.foreground=0", f"hydra.run.dir={tmp_path / 'plain'}"]) == 0
    one, other, plain = (journal.read(tmp_path / name).epochs[-1].metrics for name in ("whole", "cut", "plain"))
    assert one["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-3)
    assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)
    assert one["val/loss"] == pytest.approx(other["val/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (["encoder=resnt34"], 2, "Try encoder=resnet34"),
        (["encoder=resnet34.nope"], 2, "no pretrained tag"),
        (["optim.lrr=1"], 2, "Try optim.lr=1. "),
        (["+train.epoch=3"], 2, "Try train.epochs=3. "),
        (["optim=adamm"], 2, "Try optim=adam"),
        (["optim.lr=abc"], 2, "optim.lr"),
        (["optim.lr=-1"], 2, "optim.lr=-1"),
        (["data.resize=padd"], 2, "Try data.resize=pad"),
        (["train.batch_size=5", "train.grad_accum=2"], 2, "divisor"),
        (["data=folder", "data.images=/no/where", "data.masks=/no/where"], 2, "data.images=/no/where"),
        (["data=folder"], 2, "data.images=DIR"),
        (["encoder.pretrained=true"], 2, "encoder.weights_file=PATH"),
        (["train.device=cuda:99"], 2, "train.device=auto"),
        (["resume=/no/where"], 2, "no such folder"),
        (["data.group=^(a)"], 2, """"data.group='^(a)'\""""),
        (["lr=1"], 2, "Try optim.lr=1. "),
        (["data=shapes", "data.images=/tmp"], 2, "Add data=folder"),
        (["hydra.run.dir="], 2, "hydra.run.dir is empty"),
        (["lr"], 2, "lr: cannot be read as KEY=VALUE"),
        (["train.batch_size=4096"], 2, "larger than an epoch of 8 images"),
        (["loss=bse"], 2, "Try loss=bce"),
        (["loss.name=ce"], 2, "loss.name: no such key"),
        (["loss.dice_weight=0.3"], 2, "loss.dice_weight: no such key"),
        (["loss.ce=-1"], 2, "loss.ce=-1"),
        (["loss.class_weights=[1,0]"], 2, "loss.class_weights=[1, 0]: must be fading, auto, null or one number"),
        (["loss.pos_weight=0"], 2, "loss.pos_weight=0: must be auto or a number above 0"),
        (["loss.pos_weight=2", "loss.class_weights=auto"], 2, "drop one of the two"),
        (["data.normalize=window"], 2, "'data.window=[0,4095]'"),
        (["data.normalize='window[0,200]'"], 2, "type data.normalize=window 'data.window=[0,200]'"),
        (["data.normalize=percentile", "data.window=[0,200]"], 2, "data.window is given"),
        (["data.window=[200,0]"], 2, "data.window=[200.0, 0.0]: must be [lowest,highest]"),
        (["data.foreground=0.5", "data.resize=pad"], 2, "data.resize=crop"),
        (["optim.name=sgd"], 2, "optim=sgd"),
        (["optim.encoder_lr_scale=x"], 2, "must be auto, or 0 or more"),
        (["data.foreground=1.5", "data.resize=crop"], 2, "data.foreground=1.5: must be auto, or in [0, 1]"),
        (["data.binarize=true", "data.classes=[a,b]"], 2, "drop data.classes"),
        (["data.overfit=0"], 2, "data.overfit=0: must be 1 or more"),
        (["data.fold=3", "data.folds=3"], 2, "data.fold=3: must be in 0..2"),
        (["data.fold=1"], 2, "data.fold=1"),
        (["data.folds=13"], 3, "12 images cannot be split into 13 folds"),
        (["data.folds=1000000000000"], 3, "12 images cannot be split into 1000000000000 folds"),
        (["debug=overfitt"], 2, "Try debug=overfit"),
        (["data.classes={cell:7}"], 3, "no mask holds 7"),
        (["data.ignore_index=1"], 3, "all pixels of all masks are background"),
        (["data.ignore_index=-2.5"], 2, "data.ignore_index=-2.5: must be a mask value, or a colour"),
        (["data=oxford_pets"], 2, "data.root is not given"),
        (["data=voc2012", "data.root=/no/where"], 2, "data.download=true"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_folder(typed, code, said, pairs, outputs, capsys):
    data = () if any(arg.startswith("data=") for arg in typed) else folder_data(pairs(12))
    base = [arg for arg in SMALL if not (arg.startswith("encoder") and any(t.startswith("encoder") for t in typed))]
    if typed == ["encoder.pretrained=true"]:
        base = ["encoder=test_resnet", *SMALL[2:]]
    assert train.main([*base, *data, *typed]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert not [p for p in outputs.rglob("*") if "cache" not in p.relative_to(outputs).parts]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["decoder.width=[8,8]"], "5 widths"),
        (["loss.ce=0", "loss.dice=0"], "every weight is 0. Set one of loss.ce, loss.dice"),
        (["loss.pos_weight=2", "data.classes=[a,b,c]"], "for two classes; these data have 3. Try loss.class_weights"),
        (["loss.pos_weight=auto", "data.classes=[a,b,c]"], "for two classes"),
        (["loss.class_weights=[1,2]", "data.classes=[a,b,c]"], "one for each of the 3 classes, a, b, c"),
        (["loss.class_weights=[1,2,3]"], "one for each of the 2 classes, background, foreground"),
    ],
)
def test_what_does_not_fit_the_data_is_one_line_behind_their_summary_and_leaves_no_folder(
    typed, said, pairs, outputs, capsys
):
    assert train.main([*SMALL, *folder_data(pairs(12)), *typed]) == 2
    error = capsys.readouterr().err
    assert error.count("train.py: ") == 1
    assert said in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not [p for p in outputs.rglob("*") if "cache" not in p.relative_to(outputs).parts]


def test_images_without_masks_are_listed(pairs, outputs, capsys):
    root = pairs(12)
    (root / "masks" / "003.png").unlink()
    (root / "masks" / "007.png").unlink()
    assert train.main([*SMALL, *folder_data(root)]) == 3
    error = capsys.readouterr().err
    assert "003.png" in error
    assert "007.png" in error


def test_one_image_cannot_be_split(pairs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(1))]) == 3
    assert "1 image" in capsys.readouterr().err


def test_a_folder_with_a_run_is_refused_without_resume(pairs, tmp_path, capsys):
    typed = [*SMALL, *folder_data(pairs(12)), f"hydra.run.dir={tmp_path / 'mine'}"]
    assert train.main(typed) == 0
    before = (tmp_path / "mine" / journal.NAME).read_bytes()
    assert train.main(typed) == 2
    assert "resume=" in capsys.readouterr().err
    assert (tmp_path / "mine" / journal.NAME).read_bytes() == before


def test_a_folder_in_use_is_refused(pairs, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    hold = (
        f"import fcntl, time; f = open({str(folder / 'lock')!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert train.main([*SMALL, *folder_data(pairs(12)), f"hydra.run.dir={folder}"]) == 2
        assert "in use" in capsys.readouterr().err
        assert (folder / "lock").exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_users_own_files_survive_a_refusal(pairs, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert train.main([*SMALL, *folder_data(pairs(1)), f"hydra.run.dir={folder}"]) == 3
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_resume_refuses_another_configuration_and_names_it(pairs, outputs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert train.main([f"resume={folder}", "optim.lr=0.5"]) == 2
    assert "optim.lr: auto -> 0.5" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_resume_of_a_complete_run_says_so(pairs, outputs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    assert train.main([f"resume={folder}"]) == 2
    assert "train.epochs=N" in capsys.readouterr().err


def test_resume_goes_further_with_more_patience(pairs, outputs, capsys):
    short = [word for word in SMALL if not word.startswith("train.epochs=")]
    slow = ["optim.lr=1e-9", "train.epochs=9", "train.patience=1"]
    assert train.main([*short, *slow, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    done = len(journal.read(folder).epochs)
    assert done < 9
    for typed in ((), ("train.epochs=20",)):  # it would end at once
        assert train.main([f"resume={folder}", *typed]) == 2
        assert "train longer: train.patience=N, more than 1." in capsys.readouterr().err
    assert train.main([f"resume={folder}", "train.patience=3"]) == 0
    assert len(journal.read(folder).epochs) > done


def test_patience_alone_does_not_end_a_run_again(pairs, outputs, capsys):
    timed = [word for word in SMALL if not word.startswith("train.epochs=")] + ["train.time_budget=0.1"]
    assert train.main([*timed, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    before = (folder / "metrics.jsonl").read_bytes()
    assert train.main([f"resume={folder}", "train.patience=99"]) == 2
    assert "To train longer: train.time_budget=SECONDS." in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_resume_goes_further_with_more_epochs(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 0
    (folder,) = run_folders(outputs)
    assert train.main([f"resume={folder}", "train.epochs=3"]) == 0
    assert train.main([f"resume={folder}", "train.epochs=4"]) == 0
    assert [epoch.epoch for epoch in journal.read(folder).epochs] == [1, 2, 3, 4]
    assert len(run_folders(outputs)) == 1


def test_resume_refuses_changed_data(pairs, outputs, capsys):
    root = pairs(12)
    assert train.main([*SMALL, *folder_data(root)]) == 0
    (folder,) = run_folders(outputs)
    (root / "images" / "000.png").write_bytes((root / "images" / "001.png").read_bytes())
    assert train.main([f"resume={folder}", "train.epochs=3"]) == 3
    assert "data have changed" in capsys.readouterr().err


def test_resume_refuses_changed_data_before_the_first_checkpoint_too(pairs, outputs, capsys):
    root = pairs(12)
    assert train.main([*SMALL, *folder_data(root)]) == 0
    (folder,) = run_folders(outputs)
    path = folder / journal.NAME  # killed in its first epoch
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    (folder / "last.pt").unlink()
    before = (root / "images" / "000.png").read_bytes()
    (root / "images" / "000.png").write_bytes((root / "images" / "001.png").read_bytes())
    assert train.main([f"resume={folder}"]) == 3
    assert "data have changed" in capsys.readouterr().err
    (root / "images" / "000.png").write_bytes(before)
    assert train.main([f"resume={folder}"]) == 0
    assert [epoch.epoch for epoch in journal.read(folder).epochs] == [1, 2]


def test_nan_stops_with_step_and_advice(pairs, outputs, capsys):
    far = ("optim=sgd", "optim.lr=1e30", "train.grad_clip=0", "optim.warmup=0")
    assert train.main([*SMALL, *folder_data(pairs(12)), *far]) == 5
    error = capsys.readouterr().err
    assert "step" in error
    assert "Try optim.lr=" in error
    end = journal.read(run_folders(outputs)[0]).end
    assert (end.status, end.error) == ("failed", "non_finite")


def test_time_budget_alone_sets_the_length(pairs, outputs):
    typed = [arg for arg in SMALL if not arg.startswith("train.epochs")]
    began = time.perf_counter()
    assert train.main([*typed, *folder_data(pairs(12)), "train.time_budget=3"]) == 0
    assert time.perf_counter() - began < 30
    run = journal.read(run_folders(outputs)[0])
    assert run.end.reason == "time budget of 3 s"
    assert len(run.epochs) > 1


@pytest.mark.parametrize("typed", [(), ("data.overfit=3",)], ids=["all", "overfit"])
def test_few_images_are_shown_until_an_epoch_is_long_enough(pairs, outputs, capsys, typed):
    folder, _ = ran(outputs, *folder_data(pairs(12)), "train.epochs=1", *typed, small=AS_OFTEN_AS_EVER)
    start = journal.read(folder).start
    often, images = start.settings.data.passes, start.images["train"]
    assert start.asked.data.passes == "auto"
    assert often == math.ceil(180 / images) > 10
    printed = capsys.readouterr()
    assert f"data.passes={often} " in printed.err
    assert f"{images} train (each {often} times an epoch)" in printed.out
    assert json.loads((folder / "summary.json").read_text())["passes"] == often
    # What was chosen once stays.
    path = folder / journal.NAME
    chosen = f'"passes": {often}, '
    assert path.read_text().count(chosen) == 1
    path.write_text(path.read_text().replace(chosen, '"passes": 2, '))
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 0
    assert journal.read(folder).start.settings.data.passes == 2


def test_patience_ends_early(pairs, outputs):
    typed = [arg for arg in SMALL if not arg.startswith("train.epochs")]
    code = train.main([*typed, *folder_data(pairs(12)), "train.epochs=50", "train.patience=1", "optim.lr=1e-12"])
    assert code == 0
    run = journal.read(run_folders(outputs)[0])
    assert len(run.epochs) < 50
    assert "val/iou has not improved" in run.end.reason


def test_plain_multirun_runs_each_job_in_a_folder_of_its_own(pairs, outputs):
    assert train.main(["-m", *SMALL, *folder_data(pairs(12)), "optim.lr=1e-3,1e-4"]) == 0
    assert len(run_folders(outputs)) == 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["encoder=test_resnet,resnet43"], "encoder=resnet43: "),
        (["tracking=none,file"], "tracking=file: no such option"),
        (["optim.lr=1e-3,1e-2,-1", "data.seed=1,2"], "optim.lr=-1"),
        (["data.seed=0,1", "loss=ce_dice,mse"], "loss=mse: no such option"),
        (["loss=ce_dice,mse", "hydra.sweep.dir=${outputs:}/mine"], "loss=mse: no such option"),
    ],
)
def test_a_wrong_value_of_a_multirun_is_told_before_the_first_training(typed, said, pairs, outputs, capsys):
    assert train.main(["-m", *SMALL, *folder_data(pairs(12)), *typed]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not outputs.exists()


@pytest.mark.parametrize("typed", ["encoder.weights_file=\0", "data.table=a\0b", "data.root=~nobody-at-all/x"])
def test_what_cannot_be_a_path_is_one_line(typed, pairs, outputs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(12)), typed]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{typed.partition('=')[0]}=" in line
    assert "cannot be a path" in line
    assert not run_folders(outputs)


def test_a_search_without_m_trains_nothing(outputs, capsys):
    assert train.main(["hydra/sweeper=optuna", "data.root=a b"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Type python train.py -m hydra/sweeper=optuna 'data.root=a b'")
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("typed", "ordered"),
    [
        ("a=1 --cfg job b=2", "a=1 b=2 --cfg job"),
        ("--cfg=job b=2 ~c", "b=2 ~c --cfg=job"),
        ("a=1 --config-dir=D b=2", "a=1 b=2 --config-dir=D"),
        ("a=1 --config-dir D b=2 -c job c=3", "a=1 b=2 c=3 --config-dir D -c job"),
        ("a=1 --multirun b=1,2", "-m a=1 b=1,2"),
        ("--cfg job a=1 --multi b=2", "-m a=1 b=2 --cfg job"),
        ("-i defaults a=1", "a=1 -i defaults"),
        ("--info a=1", "a=1 --info"),
        ("a=1 --cf job b=2", "a=1 b=2 --cf job"),
    ],
)
def test_keys_and_flags_are_typed_in_any_order(typed, ordered):
    assert command._ordered(typed.split()) == ordered.split()


def test_a_flag_between_keys_is_composed(tmp_path, capsys):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "mine.yaml").write_text("name: resnet18\n")
    words = ["train.epochs=7", "--cfg", "job", "encoder=mine", "--config-dir", str(tmp_path), "train.seed=3"]
    assert train.main(words) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["train"]["epochs"], said["train"]["seed"], said["encoder"]["name"]) == (7, 3, "resnet18")


ONE = "the folder of a single run. Type hydra.run.dir=DIR."
SEVERAL = "the folder of several runs. Type hydra.sweep.dir=DIR."
ELSEWHERE = "paths would mean something else in each run's folder"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("-m hydra.run.dir=x optim.lr=1,2", f"hydra.run.dir=x: not {SEVERAL}"),
        ("hydra.mode=MULTIRUN hydra.run.dir=x", f"hydra.run.dir=x: not {SEVERAL}"),
        ("sweeps=lr_by_encoder hydra.run.dir=x", f"hydra.run.dir=x: not {SEVERAL}"),
        ("hydra.sweep.dir=x", f"hydra.sweep.dir=x: not {ONE}"),
        ("sweeps=lr_by_encoder hydra.mode=RUN hydra.sweep.dir=x", f"hydra.sweep.dir=x: not {ONE}"),
        ("hydra.job.chdir=true", f"hydra.job.chdir=true: {ELSEWHERE}. Drop it."),
        ("-m hydra.job.chdir=true optim.lr=1,2", f"hydra.job.chdir=true: {ELSEWHERE}. Drop it."),
        ("-m hydra/sweeper=optuna --config-dir x", "--config-dir: trials would not find these options."),
        ("sweeps=lr_by_encoder -cd x", "-cd: trials would not find these options."),
    ],
)
def test_what_hydra_would_ignore_or_take_by_half_is_refused(typed, said, outputs, capsys):
    assert train.main(typed.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"train.py: {said}" in line
    assert not outputs.exists()


@pytest.mark.parametrize("name", ["lr_by_encoder", "mine"])
def test_a_question_with_the_mode_of_a_single_run_is_one(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "conf" / "sweeps").mkdir(parents=True)
    (tmp_path / "conf" / "sweeps" / "mine.yaml").write_text("sweeper: {params: {optim.lr: auto}}\n")
    monkeypatch.chdir(tmp_path)
    assert train.main([f"sweeps={name}", "hydra.mode=RUN", "hydra.run.dir=x", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optim"]["lr"] == "auto"


@pytest.mark.parametrize(
    ("word", "completed"),
    [
        ("encoder=convnext_at", ["encoder=convnext_atto", "encoder=convnext_atto_ols", "encoder=convnext_atto_rms"]),
        ("data.si", ["data.size="]),  # a list, and no section
        ("data.size=", []),
    ],
)
def test_completion_knows_encoders_and_keys(word, completed):
    line = f"python train.py {word}"
    env = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "train.py", "-sc", "query=bash"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == completed


def test_any_timm_name_composes_without_a_file(capsys):
    for name in ("resnet34", "vit_small_patch16_dinov3.lvd1689m"):
        train.main([f"encoder={name}", "--cfg", "job"])
        assert f"name: {name}" in capsys.readouterr().out


def test_ctrl_c_keeps_the_checkpoint_and_marks_the_run_killed(pairs, outputs, database):
    typed = [arg for arg in SMALL if not arg.startswith(("train.epochs", "tracking"))]
    command = [sys.executable, "train.py", *typed, *folder_data(pairs(12)), "train.epochs=100000"]
    # A shell starts what runs in its background with Ctrl-C ignored, and so would be the child of tests run there.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heed, **pipes) as child:
        try:
            deadline = time.monotonic() + 120
            while not list(outputs.rglob("last.pt")) and time.monotonic() < deadline and child.poll() is None:
                time.sleep(0.1)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=120)
        finally:
            child.kill()
    assert child.returncode == 130, err
    assert "Traceback" not in err
    (folder,) = run_folders(outputs)
    assert journal.read(folder).end.status == "stopped"
    assert f"resume={folder}" in out
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri())
    assert client.get_run(run_id(folder)).info.status == "KILLED"


def test_a_run_on_relative_and_awkward_paths_resumes_from_elsewhere(pairs, outputs, tmp_path, monkeypatch):
    pairs(12, name="it's my data, ok")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a run's folder"
    typed = ["data=folder", "data.root='it\\'s my data, ok'", "hydra.run.dir='a run\\'s folder'"]
    assert train.main([*SMALL, *typed]) == 0
    monkeypatch.chdir("/")
    assert train.main([f"resume={folder}", "train.epochs=3"]) == 0
    assert len(journal.read(folder).epochs) == 3


def test_out_of_memory_says_what_to_try(pairs, outputs, capsys, monkeypatch):
    from segsweep.engine.step import TrainStep

    def full(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(TrainStep, "__call__", full)
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 4
    assert "Try train.grad_accum=2" in capsys.readouterr().err
    end = journal.read(run_folders(outputs)[0]).end
    assert (end.status, end.error) == ("failed", "out_of_memory")


def test_sigterm_stops_with_143(pairs, outputs, capsys, monkeypatch):
    from segsweep import console

    monkeypatch.setattr(console, "epoch_line", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    lowest = Recorder._lowest

    def again(recorder):
        os.kill(os.getpid(), signal.SIGTERM)
        return lowest(recorder)

    monkeypatch.setattr(Recorder, "_lowest", again)  # a second one, while the end is written down
    assert train.main([*SMALL, *folder_data(pairs(12))]) == 143
    (folder,) = run_folders(outputs)
    end = journal.read(folder).end
    assert (end.status, end.error, end.metrics["best/epoch"]) == ("stopped", None, 1)
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"


def test_an_empty_folder_of_the_users_is_spared_and_one_that_hydra_made_is_not(pairs, tmp_path):
    mine = tmp_path / "a" / "mine"
    mine.mkdir(parents=True)
    refused = [*SMALL, *folder_data(pairs(12)), "train.batch_size=4096"]
    assert train.main([*refused, f"hydra.run.dir={mine}"]) == 2
    assert mine.is_dir()
    assert train.main([*refused, f"hydra.run.dir={tmp_path / 'a' / 'made'}"]) == 2
    assert not (tmp_path / "a" / "made").exists()


def test_a_run_stopped_after_its_last_epoch_is_only_finished(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(12, ("train", "val", "test")))]) == 0
    (folder,) = run_folders(outputs)
    lines = (folder / journal.NAME).read_bytes().splitlines(keepends=True)
    (folder / journal.NAME).write_bytes(b"".join(lines[:-1]))  # killed while the test split was scored
    assert train.main([f"resume={folder}"]) == 0
    run = journal.read(folder)
    assert [epoch.epoch for epoch in run.epochs] == [1, 2]
    assert run.end.tested["test/iou"] == json.loads(lines[-1])["test/iou"]


def test_a_best_model_that_a_kill_kept_back_is_written_on_resuming(pairs, outputs):
    assert train.main([*SMALL, *folder_data(pairs(12)), "train.epochs=1"]) == 0
    (folder,) = run_folders(outputs)
    best = folder / "best.safetensors"
    kept = best.read_bytes()
    best.unlink()
    (folder / journal.NAME).write_bytes((folder / journal.NAME).read_bytes().splitlines(keepends=True)[0])
    assert train.main([f"resume={folder}"]) == 0
    assert best.read_bytes() == kept


def test_resume_takes_flags_and_data_that_moved(pairs, outputs, capsys):
    root = pairs(12)
    assert train.main([*SMALL, *folder_data(root)]) == 0
    (folder,) = run_folders(outputs)
    assert train.main([f"resume={folder}", "--cfg", "job"]) == 0
    assert "test_resnet" in capsys.readouterr().out
    assert train.main(["-m", f"resume={folder}", "optim.lr=1,2"]) == 2


def test_an_encoder_of_ones_own_in_another_config_folder_is_found(tmp_path, capsys):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "mine.yaml").write_text("name: resnet18\n")
    assert train.main(["encoder=mine", "--config-dir", str(tmp_path), "--cfg", "job"]) == 0
    assert "name: resnet18" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["train.seed=-1", "data.seed=-1", "tracking.uri=http://me:secret@host/"])
def test_values_that_would_fail_later_are_refused_early(key, pairs, capsys):
    assert train.main([*SMALL, *folder_data(pairs(12)), key]) == 2
    assert key.partition("=")[0] in capsys.readouterr().err


RECIPE = (
    "train.ema=0.9",
    "train.tta=hflip",
    "train.bn_momentum=0.05",
    "optim.layer_decay=0.7",
    "optim.freeze_epochs=1",
    "encoder.freeze_norm=true",
    "loss.label_smoothing=0.1",
    "data.balance=0.5",
)


@pytest.mark.parametrize(
    ("image", "encoder", "chosen"),
    [
        ((40, 48), "test_resnet", (3e-3, 1.0, "crop")),
        ((24, 30), "test_vit", (5e-4, 1.0, "crop")),
        ((208, 160), "test_convnext", (1e-3, 1.0, "crop")),
    ],
)
def test_what_auto_chose_is_recorded_and_kept(image, encoder, chosen, pairs, outputs, monkeypatch):
    from segsweep import catalog

    data = folder_data(pairs(12, size=image))
    assert train.main([*SMALL, *data, f"encoder={encoder}", "train.epochs=1"]) == 0
    (folder,) = run_folders(outputs)
    monkeypatch.setitem(catalog.RATES, "convolutional", catalog.Rates(1.0, 1.0, 1.0, 1.0, "nobody says"))
    assert train.main([f"resume={folder}", "train.epochs=2"]) == 0
    starts = journal.read(folder).starts
    assert len(starts) == 2
    for start in starts:
        optim, data = start.settings.optim, start.settings.data
        assert (optim.lr, optim.encoder_lr_scale, data.resize) == chosen
        assert undecided(start.settings) == []
        assert (start.asked.optim.lr, start.asked.data.resize) == ("auto", "auto")
    assert describe(folder / "best.safetensors").resize == chosen[2]


def test_pretrained_weights_learn_more_slowly_where_their_kind_does(pairs, outputs, tmp_path):
    from safetensors.torch import save_file

    from segsweep.nn.encoder import Encoder

    weights = {key.removeprefix("timm."): value for key, value in Encoder("test_vit").state_dict().items()}
    path = tmp_path / "vit.safetensors"
    save_file({key.removeprefix("model."): value.contiguous() for key, value in weights.items()}, path)
    typed = ["encoder=test_vit", "encoder.pretrained=true", f"encoder.weights_file={path}", "train.epochs=1"]
    assert train.main([*SMALL, *folder_data(pairs(12)), *typed]) == 0
    (folder,) = run_folders(outputs)
    start = journal.read(folder).start
    assert start.weights_source.startswith("file")
    assert start.settings.optim.encoder_lr_scale == 0.1


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml")))
def test_every_recipe_trains(recipe, pairs, outputs):
    typed = [f"recipe={recipe}", "train.epochs=1"]
    assert train.main([*SMALL, *folder_data(pairs(12)), *typed]) == 0


def test_the_recipes_settings_train_and_resume_to_the_same_end(pairs, outputs, tmp_path):
    typed = [*SMALL, *folder_data(pairs(12)), *RECIPE, "optim.schedule=constant", "optim.warmup=0"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main([*typed, "train.epochs=3", f"hydra.run.dir={whole}"]) == 0
    assert train.main([*typed, "train.epochs=2", f"hydra.run.dir={cut}"]) == 0
    assert train.main([f"resume={cut}", "train.epochs=3"]) == 0
    one, other = (torch.load(f / "last.pt", weights_only=True) for f in (whole, cut))
    assert one["average"]["steps"] == other["average"]["steps"] > 0
    for part in (lambda s: s["model"], lambda s: s["average"]["model"]):
        assert all(torch.equal(part(one)[key], tensor) for key, tensor in part(other).items())
