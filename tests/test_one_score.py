"""One run, one number for each image: in captions, `compare`, images.csv, val_matrices, the result, and by hand.

By hand is: the files of masks that `segsweep predict` wrote as it comes, against the files of the data set, in numpy.
"""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import train_once, write_pairs
from PIL import Image, ImageDraw

from segsweep import console, metrics
from segsweep.commands import app as cli
from segsweep.engine import device as devices
from segsweep.errors import ConfigError
from segsweep.nn.checkpoint import describe
from segsweep.paths import load_json
from segsweep.runs import journal
from segsweep.sweeping.report import number

VALUES = {"two": [0, 1], "three": [0, 7, 200]}  # mask values, by class
RUNS = {
    "two": ["train.precision=bf16", "encoder=test_efficientnet", "train.epochs=6"],
    "three": [
        *("data.classes={left:7,right:200}", "data.ignore_index=255", "train.epochs=8"),
        *("train.tta=hflip", "data.resize=crop", "data.size=[32,32]", "data.tile=[32,40]"),
    ],
}


def write_three(root):
    """Give each object two halves, of one validation image none, and some void pixels."""
    for path in (root / "masks").rglob("*.png"):
        mask, place = np.array(Image.open(path)), root / "images" / path.relative_to(root / "masks")
        columns = np.flatnonzero(mask.any(0))
        mask[:, columns[:10]] *= 7
        mask[:, columns[10:]] *= 200
        mask[0, :5] = 255
        image = np.array(Image.open(place))
        image[mask == 200, 1] = 0
        Image.fromarray(image).save(place)
        Image.fromarray(np.zeros_like(mask) if path.stem == "val003" else mask).save(path)


def computes_in_bf16():
    try:
        return bool(devices.precision("bf16", torch.device("cpu")))
    except ConfigError:
        return False


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """A run, the captions that were drawn in it, and its predicted masks."""
    place, kind, typed = tmp_path_factory.mktemp("run"), request.param, [*RUNS[request.param]]
    root = write_pairs(place)(8, splits=("train", "val"))
    if kind == "three":
        write_three(root)
    drawn, draw, masks = [], ImageDraw.ImageDraw.text, place / "masks"

    def text(pen, at, said, **how):
        drawn.append(said)
        draw(pen, at, said, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_OUTPUTS", str(place / "outputs"))
        patch.setattr(ImageDraw.ImageDraw, "text", text)
        if kind == "two" and not computes_in_bf16():
            typed.remove("train.precision=bf16")
        folder = train_once(place, root, "data.size=[48,64]", "optim.lr=2e-2", *typed)
        for command in (["predict", folder, root / "images" / "val", "-o", masks], ["evaluate", folder]):
            assert cli.main([*map(str, command), "--device=cpu"]) == 0
    captions = {}
    for title, said in zip(drawn, drawn[2:], strict=False):
        if said.startswith("prediction · "):
            captions[title] = said.removeprefix("prediction · ")  # the last is of the best epoch
    return SimpleNamespace(folder=folder, root=root, masks=masks, captions=captions, values=VALUES[kind])


def by_hand(run, key):
    """Count hits, unions and target pixels of each class in an image, `3 k`."""
    truth, found = (np.asarray(Image.open(where / f"{key}.png")) for where in (run.root / "masks" / "val", run.masks))
    truth, found = truth[truth != 255], found[truth != 255]
    pairs = [(truth == value, found == index) for index, value in enumerate(run.values)]
    return np.array([[np.sum(a & b) for a, b in pairs], [np.sum(a | b) for a, b in pairs], [a.sum() for a, _ in pairs]])


def own_score(run, key):
    hits, unions, _ = by_hand(run, key)
    if len(hits) == 2:
        return hits[1] / unions[1]
    return np.mean([h / u for h, u in zip(hits, unions, strict=True) if u])


def keys(run):
    return list(metrics.read_validation(run.folder).keys)


def test_predicted_masks_give_the_reported_score_to_the_last_digit(run):
    hits, unions, targets = np.sum([by_hand(run, key) for key in keys(run)], axis=0)
    ious = (hits / unions)[targets > 0]
    reported = journal.read(run.folder).best.metrics
    assert reported["val/iou"] == (ious[1] if len(run.values) == 2 else ious.sum() / len(ious))
    assert 0.05 < reported["val/iou"] < 0.99
    assert reported["val/iou_image"] == pytest.approx(np.mean([own_score(run, key) for key in keys(run)]), rel=1e-12)


def test_every_place_says_the_same_number_of_an_image(run, capsys):
    kept = metrics.read_validation(run.folder)
    assert cli.main(["compare", str(run.folder), str(run.folder), "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    with (run.folder / "evaluations" / "val" / "images.csv").open() as file:
        table = {row["key"]: float(row["iou"]) for row in csv.DictReader(file)}
    assert len(kept.keys) == 8
    for key, matrix in zip(kept.keys, kept.matrices, strict=True):
        wanted = own_score(run, key)
        assert metrics.image_iou(matrix) == table[key] == pytest.approx(wanted, rel=1e-12)
        assert f"| {key} | {number(wanted)} | {number(wanted)} |" in said
        if key in run.captions:
            assert run.captions[key] == f"{'mean ' * (len(run.values) > 2)}IoU {wanted:.4f}"
    assert len(run.captions) >= 6  # those of worst.png
    assert len({*table.values()}) > 4


def test_the_result_names_the_image_with_the_lowest_score(run):
    lowest = min(keys(run), key=lambda key: own_score(run, key))
    summary = load_json((run.folder / "summary.json").read_text())
    image = run.root / "images" / "val" / f"{lowest}.png"
    said = console.result(run.folder, summary, "over")
    assert re.search(rf"^lowest IoU +{own_score(run, lowest):.4f} +{re.escape(str(image))}$", said, re.MULTILINE)


def test_the_models_file_keeps_how_it_was_scored_and_what_its_masks_held(run):
    info, start = describe(run.folder / "best.safetensors"), journal.read(run.folder).start
    ran = start.execution
    assert (info.precision, info.channels_last) == (ran.precision, ran.channels_last)
    assert (info.tta, info.tile) == (("hflip", (32, 40)) if len(run.values) == 3 else ("none", (1024, 1024)))
    assert info.values == run.values
    assert info.nodata == "tag"  # what auto becomes
