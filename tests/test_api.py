"""Python's front door: what the command line does, as objects and exceptions."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import segsweep
from segsweep.api import _words
from segsweep.compose import PARSER, configuration
from segsweep.errors import ConfigError, DataError
from segsweep.paths import ROOT
from segsweep.runs import journal

TINY = {
    "encoder": "test_resnet",
    "encoder.pretrained": False,
    "train.device": "cpu",
    "train.precision": "fp32",
    "data": "folder",
    "data.size": [32, 48],
    "data.resize": "pad",
    "data.passes": 1,
    "train.batch_size": 4,
    "tracking": "none",
}


def test_values_come_back_from_hydras_grammar_as_they_are():
    values = ["a b", "1e3", "null", "${x}", "it's", True, None, 3, 1e-4, ["a,b", 2], np.float64(0.001), np.int64(3)]
    for word, value in zip(_words({f"k{i}": v for i, v in enumerate(values)}), values, strict=True):
        read = PARSER.parse_override(word).value()
        assert str(read).replace("\\$", "$") == str(value), word
    classes = {"Gebäude, hoch": np.int64(8), "x": [np.uint8(1), 2]}
    assert (
        configuration(["data=folder", *_words({"data.classes": classes, "data.root": Path("/a b")})]).data.classes
        == classes
    )
    for size in ([np.int64(32), 48], (32, np.float32(48).astype(int)), np.array([32, 48])):
        assert _words({"data.size": size}) == ["data.size=[32,48]"]
    assert _words({"encoder": segsweep.choice("resnet18", "resnet34")}) == ["encoder=choice(resnet18,resnet34)"]
    assert _words({"encoder": segsweep.weights("vit_small*", "*.dino")}) == ["encoder=weights(vit_small*,*.dino)"]
    assert _words({"optim.lr": segsweep.interval(1e-4, 1e-2, log=True)}) == ["optim.lr=tag(log,interval(0.0001,0.01))"]


def test_a_training_is_what_the_command_line_records(pairs, tmp_path, outputs):
    root = pairs()
    run = segsweep.train({**TINY, "data.root": root, "train.epochs": 2}, tmp_path / "a folder")
    assert run.folder == tmp_path / "a folder"
    assert run.record.end.status == "complete"
    assert list(run.epochs.index) == [1, 2]
    assert run.metrics["val/iou"] == max(run.epochs["val/iou"])
    assert f"data.root={root}" in run.record.start.command
    assert (run.folder / ".hydra" / "config.yaml").exists()
    with Image.open(run.folder / "figures" / "augmented.png") as sheet:
        assert sheet.width > 500
    assert "data:image/png;base64," in run._repr_html_()
    further = segsweep.train({"resume": run.folder, "train.epochs": 3})
    assert len(further.epochs) == 3
    assert segsweep.train({**TINY, "data.root": root, "train.epochs": 1}).folder.is_relative_to(outputs)


def test_what_is_refused_raises_and_leaves_nothing(pairs, trained, tmp_path):
    with pytest.raises(ConfigError, match="Closest: resnet"):
        segsweep.train({**TINY, "data.root": pairs(), "encoder": "resnet43"}, tmp_path / "run")
    with pytest.raises(ConfigError, match="nowhere"):
        segsweep.train({**TINY, "data.root": tmp_path / "nowhere"}, tmp_path / "run")
    with pytest.raises(ConfigError, match="no such key"):
        segsweep.train({**TINY, "data.root": pairs(), "optim.learning_rate": 1}, tmp_path / "run")
    with pytest.raises(ConfigError, match="no such run"):
        segsweep.load("nothing")
    with pytest.raises(ConfigError, match=r"^device=gpu: must be auto, cpu"):
        segsweep.load(trained.folder, device="gpu")
    with pytest.raises(ConfigError, match=r"optim\.lr: has several values: segsweep\.sweep tries each"):
        segsweep.train({**TINY, "optim.lr": segsweep.choice(1e-3, 1e-2)}, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^values must be texts, numbers"):
        segsweep.choice({1, 2})
    for wrong in ({1, 2}, [object()], {"a": b"x"}):
        with pytest.raises(ConfigError, match=r"^data\.classes: values must be texts, numbers"):
            segsweep.train({**TINY, "data.classes": wrong}, tmp_path / "run")
    for key in ("sweeps", "hydra/sweeper"):
        with pytest.raises(ConfigError, match=rf"{key}: not a key of segsweep.train: segsweep\.sweep takes it"):
            segsweep.train({**TINY, key: "optuna"}, tmp_path / "run")
    with pytest.raises(ConfigError, match="give the folder as folder="):
        segsweep.train({**TINY, "hydra.run.dir": "run"})
    with pytest.raises(ConfigError, match="Drop one of the two"):
        segsweep.train({"resume": tmp_path / "run"}, tmp_path / "run")
    for keys in ({"hydra.sweeper.dry": True}, {"hydra.sweep.dir": "run"}):
        with pytest.raises(ConfigError, match=r"dry: a dry run returns no result|folder as folder="):
            segsweep.sweep({**TINY, **keys}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_script_without_a_guard_runs_once(pairs, tmp_path):
    keys = {**TINY, "data.root": str(pairs()), "train.epochs": 1}
    search = f"{{**{keys}, 'optim.lr': segsweep.choice(1e-3, 1e-2)}}, 'search', n_trials=1, finalists=0, slots=1"
    script = tmp_path / "a.py"
    script.write_text(f"open('begun', 'a').write('x')\nimport segsweep\nsegsweep.sweep({search})\n")
    subprocess.run([sys.executable, script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "begun").read_text() == "x"
    assert journal.read(tmp_path / "search" / "0").end.status == "complete"


def test_a_model_predicts_files_and_pixels_alike(trained, tmp_path):
    model = segsweep.load(trained.folder)
    assert model.classes == ["background", "foreground"]
    path = sorted((trained.root / "images").rglob("*.png"))[0]
    found, pixels = model.predict(path), np.array(Image.open(path))
    assert found.classes.shape == pixels.shape[:2] and found.classes.dtype == np.uint8
    assert found.probabilities.shape == (1, *pixels.shape[:2])
    assert (found.classes == (found.probabilities[0] > 0.5)).all()
    assert (model.predict(pixels).classes == found.classes).all()
    assert found._repr_png_().startswith(b"\x89PNG")
    found.save(tmp_path / "mask.png")
    assert (np.array(Image.open(tmp_path / "mask.png")) == found.classes).all()
    model.predictor.info = replace(model.predictor.info, nodata=7)
    pixels[:4] = 7
    blank = model.predict(pixels)
    assert (blank.classes[:4] == 255).all() and np.isnan(blank.probabilities[:, :4]).all()
    assert (blank.classes[4:] < 2).all()
    with pytest.raises(DataError, match="image: float64 pixels"):
        model.predict(pixels / 255)
    with pytest.raises(DataError, match=r"image: .* of one image, not 2 x 40 x 48 x 3"):
        model.predict(np.stack([pixels, pixels]))


def test_pixels_without_data_have_no_class(trained, tmp_path):
    pixels = np.array(Image.open(trained.root / "images" / "003.png"))
    pixels[:20] = 7
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(42113, "s", 0, "7", True)])
    found = segsweep.load(trained.folder).predict(tmp_path / "a.tif")
    assert (found.classes[:20] == 255).all() and np.isnan(found.probabilities[:, :20]).all()
    assert (found.classes[20:] < 2).all() and np.isfinite(found.probabilities[:, 20:]).all()


def test_gaps_in_an_array_are_filled_as_those_in_a_file(trained, tmp_path):
    model = segsweep.load(trained.folder)
    model.predictor.info = replace(model.predictor.info, dtype="float32", nodata=-3.4e38)
    pixels = np.array(Image.open(trained.root / "images" / "003.png")).astype(np.float32)
    pixels[:10], pixels[10:15], pixels[15:20] = -3.4e38, np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    array, file = model.predict(pixels), model.predict(tmp_path / "a.tif")
    for name in ("image", "classes", "probabilities"):
        assert np.array_equal(getattr(array, name), getattr(file, name), equal_nan=True)
    assert np.allclose(array.image[:20], pixels[20:].mean((0, 1)))
    assert (array.classes[:20] == 255).all() and np.isnan(array.probabilities[:, :20]).all()
    assert (array.classes[20:] < 2).all() and np.isfinite(array.probabilities[:, 20:]).all()


def test_a_search_ranks_and_loads_its_winner(pairs, tmp_path):
    keys = {**TINY, "data.root": pairs(), "train.epochs": 1, "optim.lr": segsweep.choice(1e-3, 1e-2)}
    found = segsweep.sweep(keys, tmp_path / "search", n_trials=2, finalists=1, repeats=1, slots=1)
    assert set(found.trials["optim.lr"]) == {"0.001", "0.01"}
    assert len(found.ranking) == 1
    assert journal.read(found.winner.folder).end.status == "complete"
    assert found.winner.folder.parent.name == "finalists"
    assert "report.html" in found._repr_html_()
    assert found.load().classes == ["background", "foreground"]
    with pytest.raises(ConfigError, match="nothing is varied"):
        segsweep.sweep(
            {**TINY, "data.root": pairs(name="other"), "optim.lr": 1e-3, "train.epochs": 1}, tmp_path / "none"
        )
