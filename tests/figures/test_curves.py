"""The figure of a training: there, on white, whatever the classes and however short the training."""

import io
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from segsweep.figures.curves import plain, training


@pytest.mark.parametrize("classes", [2, 11, 40])
@pytest.mark.parametrize("epochs", [1, 50])
def test_every_training_has_a_figure(classes, epochs, tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 1000, (classes, classes))
    matrix[-1] = 0  # in no mask
    rows = [
        {
            "epoch": i + 1,
            "train/loss": 1 / (i + 1),
            "val/loss": None if i == 3 else 1.1 / (i + 1),
            "val/iou": i / 60,
            "lr": 1e-3,
        }
        for i in range(epochs)
    ]
    training(
        tmp_path / "figures" / "x.png",
        rows,
        rows[-1],
        matrix,
        [f"a long class {i}" for i in range(classes)],
    )
    pixels = np.array(Image.open(tmp_path / "figures" / "x.png").convert("RGB"))
    assert (pixels[0, 0] == 255).all()
    assert 0.02 < (pixels != 255).any(2).mean() < 0.9
    border = np.concatenate([pixels[:, :3].ravel(), pixels[:, -3:].ravel(), pixels[:2].ravel(), pixels[-2:].ravel()])
    assert (border == 255).all()  # no name is cut off


def test_an_epoch_without_a_score(tmp_path):
    rows = [{"epoch": 1, "train/loss": 1.0, "val/loss": None, "val/iou": None, "lr": 1e-3}]
    training(tmp_path / "x.png", rows, None, np.ones((2, 2), int), ["background", "foreground"])
    assert (tmp_path / "x.png").exists()


def test_names_are_no_formulas():
    for name in (r"$\frac{a$", "$x$", "a$b"):
        figure, file = Figure(), io.StringIO()
        figure.text(0, 0, plain(name))
        with mpl.rc_context({"svg.fonttype": "none"}):
            figure.savefig(file, format="svg")
        assert name in "".join(ElementTree.fromstring(file.getvalue()).itertext())
