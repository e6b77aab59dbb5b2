"""The demo shows what `segsweep predict` writes, on a page that asks nothing of other machines."""

import json
import os
import signal
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from segsweep.commands import app as cli
from segsweep.errors import DataError
from segsweep.inference import demo
from segsweep.inference.find import find
from segsweep.inference.predict import Predictor, find_images, predict


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained.folder / "best.safetensors", device="cpu", precision="fp32")


def test_the_mask_is_the_one_that_predict_writes(predictor, trained, tmp_path):
    image = trained.root / "images" / "003.png"
    (outcome,) = predict(predictor, find_images([str(image)]), tmp_path / "masks")
    seen = demo.segment(predictor, image, tmp_path)
    np.testing.assert_array_equal(seen.decided(0.5), np.array(Image.open(outcome.mask)))
    assert seen.name == "003"
    assert seen.decided(0.5).any()


def test_a_higher_threshold_leaves_less(predictor, trained, tmp_path):
    seen = demo.segment(predictor, trained.root / "images" / "003.png", tmp_path)
    areas = [int(seen.decided(threshold).sum()) for threshold in (0.01, 0.5, 0.99)]
    assert areas[0] > areas[1] > areas[2]
    probabilities = predictor.decided(np.array(Image.open(trained.root / "images" / "003.png")))[1][0]
    np.testing.assert_array_equal(seen.decided(0.3), probabilities > 0.3)


def test_several_classes_have_no_threshold(tmp_path):
    classes = np.array([[0, 2], [1, 2]], np.uint8)
    seen = demo.Segmented("x", np.zeros((2, 2, 3), np.uint8), None, classes, tmp_path)
    assert seen.decided(0.9) is classes
    assert demo.shares(classes, ["a", "b", "c"]) == {"a": 0.25, "b": 0.25, "c": 0.5}


@pytest.mark.parametrize("logits", [None, np.array([[3.0, 3.0], [-3.0, 3.0]], np.float32)])
def test_pixels_without_data_are_of_no_class(logits, tmp_path):
    nowhere = np.array([[True, False], [False, False]])
    classes = None if logits is not None else np.array([[1, 1], [0, 1]], np.uint8)
    seen = demo.Segmented("x", np.zeros((2, 2, 3), np.uint8), logits, classes, tmp_path, nowhere)
    assert seen.decided(0.5).tolist() == [[255, 1], [0, 1]]
    assert demo.shares(seen.decided(0.5), ["a", "b"]) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert demo.painted(seen, seen.decided(0.5), 0.5).shape == (640, 640, 3)


@pytest.mark.parametrize(("side", "shown"), [(64, 640), (500, 500), (2048, 2048), (5000, 1667)])
def test_what_is_shown_fits_a_screen(side, shown, tmp_path):
    seen = demo.Segmented("x", np.zeros((side, 40, 3), np.uint8), None, np.zeros((side, 40), np.uint8), tmp_path)
    assert demo.painted(seen, seen.decided(0.5), 0.5).shape[0] == shown


def test_what_is_no_image_is_told(predictor, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.png"):
        demo.segment(predictor, tmp_path / "notes.png", tmp_path)


def test_names_of_classes_are_text():
    assert "<script>" not in demo._legend({"<script>": 1.0})


def test_it_is_served_to_this_machine_until_it_is_stopped(trained, tmp_path):
    """In a process of its own, as Gradio leaves an event loop behind."""
    pytest.importorskip("gradio", reason="needs pip install -e '.[demo]'")
    command = [sys.executable, "-m", "segsweep", "demo", str(trained.folder), "--device=cpu", "--port=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as run:
        address = run.stdout.readline().removeprefix("demo").strip()
        assert address.startswith("http://127.0.0.1:")
        with urlopen(f"{address}config", timeout=20) as answer:
            config = json.load(answer)
        for header in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Host": "127.0.0.1.evil.example"}):
            with pytest.raises(HTTPError, match="403"):
                urlopen(Request(f"{address}config", headers=header), timeout=20)
        kept = [path for path in tmp_path.rglob("*") if path.is_file()]  # thumbnails
        assert kept and all(path.relative_to(tmp_path).parts[0].startswith("segsweep-demo-") for path in kept)
        assert all(place.stat().st_mode & 0o077 == 0 for place in tmp_path.iterdir())
        busy = cli.main(["demo", str(trained.folder), "--device=cpu", f"--port={address.split(':')[2].strip('/')}"])
        run.send_signal(signal.SIGTERM)
        assert run.wait(20) == 0
    assert busy == 2
    assert not config["analytics_enabled"]
    shown = {component["props"].get("elem_id") for component in config["components"]}
    assert shown >= {"image", "threshold", "opacity", "overlay", "shares", "mask", "examples"}
    assert not list(tmp_path.iterdir())


def test_examples_are_validation_images_that_are_there(trained, tmp_path):
    shown = demo.examples(find(str(trained.folder)))
    assert shown
    assert all(path.is_file() for path in shown)
    assert demo.examples(find(str(trained.folder / "best.safetensors"))) == shown


def test_no_run_is_told(capsys):
    assert cli.main(["demo", "nowhere"]) == 2
    assert "nowhere: no such run" in capsys.readouterr().err
    assert cli.main(["demo"]) == 2
    assert "no trained model there" in capsys.readouterr().err
