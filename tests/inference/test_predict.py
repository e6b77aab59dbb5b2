"""Prediction: the same pixels as in training, whatever the size and the form of the files."""

import json
import pickle
import shutil

import numpy as np
import pytest
import tifffile
import torch
from conftest import read_mask
from PIL import Image

from segsweep.commands import app as cli
from segsweep.config.schema import DecoderConfig
from segsweep.data.batches import EvalBatches, Pixels
from segsweep.data.geometry import Canvas
from segsweep.data.images import read_image
from segsweep.engine.execution import Execution
from segsweep.engine.scorer import Scorer
from segsweep.errors import ConfigError, DataError
from segsweep.inference.output import probability
from segsweep.inference.predict import Predictor, find_images
from segsweep.nn import UNet
from segsweep.nn.checkpoint import load_model, save_model
from segsweep.runs import journal
from segsweep.training.build import load

CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def images(trained):
    return sorted((trained.root / "images").iterdir())


def model_file(path, resize="crop", size=(64, 64), channels=3, classes=("a", "b"), **more):
    """An untrained model, as a run would leave it."""
    torch.manual_seed(0)
    model = UNet(
        "test_resnet", 1 if len(classes) == 2 else len(classes), channels, decoder=DecoderConfig(width=[8] * 5)
    )
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    save_model(path, model, classes=classes, size=size, resize=resize, range=(0, 255), **more)
    return path


def noise(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def test_masks_are_those_that_training_scored(trained, images, tmp_path):
    """The command line's masks against the predictions of `Scorer.evaluate` on the same images and checkpoint."""
    data = load(journal.started(trained.folder).starts[-1].asked.data)
    val = data.parts["val"]
    pixels = Pixels(data.store, data.labels, torch.device("cpu"))
    batches = EvalBatches(pixels, val, Canvas((48, 64), "pad"), batch_size=4)
    model = load_model(trained.folder / "best.safetensors")
    wanted = Scorer().evaluate(model, batches, lambda *_: torch.zeros(()), data.labels.names, show=val).predictions
    files = [str(data.samples[i].image) for i in val]
    folder = str(trained.folder)
    assert cli.main(["predict", folder, *files, "-o", str(tmp_path), "--device", "cpu", "--precision", "fp32"]) == 0
    for index in val:
        mask = read_mask(tmp_path / f"{data.samples[index].image.stem}.png")
        assert np.array_equal(mask, wanted[index].numpy())
        assert len(np.unique(mask)) == 2  # it learnt something, so equality means something


@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (20, 40), (150, 70), (33, 65)])
def test_logits_are_on_the_images_own_grid_and_the_models(tmp_path, resize, size):
    """What the model says of a canvas, by hand for the simple policies."""
    predictor = Predictor(model_file(tmp_path / "m.safetensors", resize), **CPU)
    image = noise(*size, 3)
    (parts,) = predictor.logits([image])
    rows, logits = zip(*parts, strict=True)
    assert [r for part in rows for r in range(size[0])[part]] == list(range(size[0]))
    whole = torch.cat(logits, dim=1)
    assert whole.shape == (1, *size)
    if resize == "crop" and min(size) >= 32:
        with torch.inference_mode():
            direct = load_model(tmp_path / "m.safetensors")(torch.from_numpy(image).permute(2, 0, 1)[None].float())
        assert torch.allclose(whole, direct[0], atol=1e-3)


@pytest.mark.parametrize("zoom", [0.5, 0.7, 2])
def test_predictions_of_a_zoomed_model_are_those_that_were_scored(trained, tmp_path, zoom):
    data = load(journal.started(trained.folder).starts[-1].asked.data)
    path = model_file(tmp_path / "m.safetensors", size=(48, 64), zoom=zoom)
    canvas = Canvas((48, 64), "crop", zoom)
    batches = EvalBatches(Pixels(data.store, data.labels, torch.device("cpu")), data.parts["val"], canvas, 4)
    scored = Scorer().evaluate(load_model(path), batches, lambda *_: torch.zeros(()), ("a", "b"), data.parts["val"])
    predictor = Predictor(path, **CPU)
    for index, mask in scored.predictions.items():
        image = predictor.accept(data.store.image(index).numpy(), "x")
        (parts,) = predictor.logits([image])
        own = torch.cat([logits for _, logits in parts], dim=1)
        assert own.shape == (1, *mask.shape)
        assert (own[0] > 0).eq(mask).float().mean() > 0.999


def test_images_run_together_are_as_run_alone(tmp_path):
    predictor = Predictor(model_file(tmp_path / "m.safetensors", "pad"), **CPU)
    several = [noise(40, 30, 3), noise(90, 64, 3)[::-1], noise(64, 64, 3)]
    together = [torch.cat([p for _, p in parts], 1) for parts in predictor.logits(several)]
    for image, found in zip(several, together, strict=True):
        alone = torch.cat([p for _, p in predictor.logits([image])[0]], 1)
        assert torch.allclose(found, alone, atol=1e-4)


def test_a_large_image_is_run_in_tiles_that_agree_with_the_whole(tmp_path):
    path = model_file(tmp_path / "m.safetensors")
    image = noise(200, 330, 3)
    whole, tiled = (Predictor(path, **CPU, tile=tile) for tile in (None, 128))
    ours, theirs = whole.decided(image)[1], tiled.decided(image)[1]
    assert ours.shape == theirs.shape == (1, 200, 330)
    assert np.median(np.abs(ours - theirs)) < 0.02  # the encoder's surroundings end earlier
    assert np.abs(ours - theirs).max() > 0
    assert whole.together((200, 330)) == tiled.together((200, 330)) == 1
    assert tiled.together((64, 64)) == 8


def test_rows_of_a_large_image_come_as_they_are_asked_for(tmp_path, monkeypatch):
    predictor = Predictor(model_file(tmp_path / "m.safetensors"), **CPU, tile=64)
    ran = []
    forward = predictor._execution.forward
    monkeypatch.setattr(type(predictor._execution), "forward", lambda _, *a: ran.append(0) or forward(*a))
    (parts,) = predictor.logits([noise(400, 64, 3)])
    assert not ran
    next(parts)
    assert len(ran) == 1


def test_mirrored_views_are_averaged(tmp_path):
    """With all four views a mirrored image has the mirrored answer."""
    predictor = Predictor(model_file(tmp_path / "m.safetensors"), **CPU, tta="flips")
    image = noise(64, 64, 3)
    found = predictor.decided(image)[1]
    assert np.allclose(predictor.decided(image[::-1, ::-1])[1][:, ::-1, ::-1], found, atol=1e-4)
    plain = Predictor(tmp_path / "m.safetensors", **CPU)
    assert not np.allclose(plain.decided(image)[1], found, atol=1e-3)


def test_probabilities():
    assert torch.equal(probability(torch.zeros(1, 2, 2)), torch.full((1, 2, 2), 0.5))
    three = torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 2, 2)
    assert torch.allclose(probability(three).sum(0), torch.ones(2, 2))


def test_everything_asked_for_is_written_in_its_place(tmp_path, capsys):
    path = model_file(tmp_path / "m.safetensors", classes=("sky", "road", "car"), val_iou=0.5)
    for name in ("a/1.png", "a/b/1.jpg", "2.tif"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(50, 70, 3)).save(tmp_path / "in" / name)
    out = tmp_path / "out"
    typed = ["predict", str(path), str(tmp_path / "in"), "-o", str(out), "--overlay", "--probabilities"]
    assert cli.main([*typed, "--precision", "fp32"]) == 0
    assert "3 in" in capsys.readouterr().out
    for name in ("a/1", "a/b/1", "2"):
        with Image.open(out / f"{name}.png") as mask:
            mask.load()
        assert (mask.mode, mask.size) == ("P", (70, 50))
        maps = tifffile.imread(out / "probabilities" / f"{name}.tif")
        assert maps.shape == (3, 50, 70)
        assert np.allclose(maps.sum(0), 1, atol=1e-5)
        assert np.array_equal(maps.argmax(0), np.asarray(mask))
        assert read_image(out / "overlays" / f"{name}.jpg").shape == (50, 70, 3)
    assert not list(out.rglob("*.writing"))
    colors = np.array(mask.getpalette()).reshape(-1, 3)
    assert len(np.unique(colors[:3], axis=0)) == 3


def test_files_are_seen_as_training_sees_them(tmp_path):
    """Grey, turned, transparent and CMYK files of one picture give one answer."""
    predictor = Predictor(model_file(tmp_path / "m.safetensors"), **CPU)
    grey = noise(64, 48, 1)
    colour = np.repeat(grey, 3, axis=2)
    picture = Image.fromarray(colour)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(colour).copy()).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(grey[..., 0]).save(tmp_path / "grey.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([255 - colour, np.zeros_like(grey)]), "CMYK").save(tmp_path / "cmyk.tif")
    wanted = predictor.decided(predictor.accept(colour, "colour"))[1]
    for path in [*sorted(tmp_path.glob("*.png")), tmp_path / "cmyk.tif"]:
        found = predictor.decided(predictor.accept(read_image(path), path))[1]
        assert np.allclose(found, wanted, atol=1e-4), path


@pytest.mark.parametrize(
    ("image", "channels", "more", "said"),
    [
        (noise(64, 64, 5), 3, {}, "5 channels; the model was trained on colour"),
        (noise(64, 64, 3), 1, {}, "colour; the model was trained on grey"),
        (noise(64, 64, 3, high=4096, dtype=np.uint16), 3, {}, "uint16 pixels from 0 to 40.*trained on uint8"),
        (noise(64, 64, 3), 3, {"dtype": "uint16"}, "uint8 pixels from 0 to 255; the model was trained on uint16"),
    ],
)
def test_pixels_that_the_model_cannot_read_are_refused(tmp_path, image, channels, more, said):
    predictor = Predictor(model_file(tmp_path / "m.safetensors", channels=channels, **more), **CPU)
    with pytest.raises(DataError, match=f"^x: {said}"):
        predictor.accept(image, "x")


def test_grey_saved_as_colour_is_grey(tmp_path):
    predictor = Predictor(model_file(tmp_path / "m.safetensors", channels=1), **CPU)
    grey = noise(40, 40, 1)
    assert np.array_equal(predictor.accept(np.repeat(grey, 3, axis=2), "x"), grey)


def test_a_broken_image_does_not_keep_the_others_back(trained, images, tmp_path, capsys):
    given = tmp_path / "in"
    given.mkdir()
    shutil.copy(images[0], given / "1.png")
    (given / "2.png").write_bytes(b"")
    (given / "3.png").write_bytes(images[0].read_bytes()[:200])
    (given / "4.png").write_text("no image")
    shutil.copy(images[1], given / "5.png")
    assert cli.main(["predict", str(trained.folder), str(given), "-o", str(tmp_path / "out")]) == 3
    said = capsys.readouterr()
    assert [name in said.err for name in ("1.png", "2.png: empty", "3.png", "4.png", "5.png")] == [0, 1, 1, 1, 0]
    assert "not done        3 of 5" in said.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.png", "5.png"]


class Malicious:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("content", [pickle.dumps(Malicious()), b"", b"x" * 64, b"PK\x03\x04"])
def test_a_file_that_is_no_model_is_refused_and_nothing_runs(content, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("best.safetensors", "model.pt"):
        (tmp_path / name).write_bytes(content)
        assert cli.main(["predict", name, str(images[0]), "-o", "out"]) == 2
        assert f"{name}: not a safetensors file" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "outputs") == ["best.safetensors", "model.pt"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["nowhere.png"], "nowhere.png: no such file or folder"),
        (["empty"], "no images in it"),
        (["none/*.png"], "no such file or folder"),
        (["in/**.png"], "Patterns are like 'scans/**/*.png'"),
        (["in/1.png", "-o", "in/1.jpg"], "-o in/1.jpg: cannot be written"),
        (["in/1.png", "in/1.jpg"], "both masks would be 1.png"),
        (["in/1.png", "-o", "in"], "would overwrite an image"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_file(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("1.png", "1.jpg"):
        Image.fromarray(noise(40, 40, 3)).save(tmp_path / "in" / name)
    assert cli.main(["predict", "m.safetensors", *typed, *([] if "-o" in typed else ["-o", "out"])]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "in").iterdir())) == 2


def test_patterns_and_several_folders_keep_their_structure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x/1.png", "a/y/1.png", "b/1.png", "b/.hidden/2.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    places = lambda *given: [str(target) for _, target in find_images(given)]  # noqa: E731
    assert places("a") == ["x/1.png", "y/1.png"]
    assert places("a/**/*.png") == places(str(tmp_path / "a/*/*.png")) == ["x/1.png", "y/1.png"]
    assert places("a", "b") == ["a/x/1.png", "a/y/1.png", "b/1.png"]
    assert places("b/1.png") == ["1.png"]
    assert places("b", "b/1.png") == ["1.png"]


def test_masks_below_the_images_are_no_images(tmp_path, caplog):
    model_file(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "in" / "1.png")
    for given in (tmp_path / "in", tmp_path / "in" / "**" / "*.png"):
        typed = [str(tmp_path / "m.safetensors"), str(given), "-o", str(tmp_path / "in" / "masks"), "--overlay"]
        for _ in range(2):
            assert cli.main(["predict", *typed]) == 0
        found = sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "in").rglob("*.*"))
        assert found == ["in/1.png", "in/masks/1.png", "in/masks/overlays/1.jpg"]
    with caplog.at_level("WARNING"):
        assert cli.main(["predict", *typed]) == 0
    assert "1 images left out, because the masks are written there" in caplog.text  # the pattern has PNGs only
    assert find_images([str(tmp_path / "in" / "masks" / "1.png")], tmp_path / "in" / "masks")  # named itself


def test_nothing_is_written_over_an_image(tmp_path, capsys):
    model_file(tmp_path / "m.safetensors")
    (tmp_path / "x" / "overlays").mkdir(parents=True)
    for name in ("a.jpg", "overlays/a.jpg"):
        Image.fromarray(noise(40, 40, 3)).save(tmp_path / "x" / name)
    before = (tmp_path / "x" / "overlays" / "a.jpg").read_bytes()
    typed = [str(tmp_path / "m.safetensors"), str(tmp_path / "x"), "-o", str(tmp_path / "x"), "--overlay"]
    assert cli.main(["predict", *typed]) == 2
    assert "would overwrite an image" in capsys.readouterr().err
    assert (tmp_path / "x" / "overlays" / "a.jpg").read_bytes() == before


def test_only_files_that_predict_wrote_are_replaced(tmp_path, monkeypatch, capsys):
    """The data set's own masks stay, and all else that somebody else made; nothing at all is written then."""
    monkeypatch.chdir(tmp_path)
    model_file(tmp_path / "m.safetensors")
    for name in ("a.png", "broken/a.png", "folder/a.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40, 40, 3)).save(f"images/{name}")
    scale = (33550, "d", 3, (0.5, 0.5, 0.0), True)  # makes it a GeoTIFF
    tifffile.imwrite("images/geo.tif", noise(40, 40, 3), photometric="rgb", metadata=None, extratags=[scale])
    typed = ["predict", "m.safetensors", "images", "-o", "masks", "--overlay", "--probabilities", "--device", "cpu"]
    assert cli.main(typed) == 0
    with (
        Image.open("masks/a.png") as png,
        Image.open("masks/geo.tif") as tiff,
        Image.open("masks/overlays/a.jpg") as jpg,
    ):
        assert (png.text["Software"], tiff.tag_v2[305]) == ("segsweep predict", "segsweep predict")
        assert jpg.info["comment"] == b"segsweep predict"
    assert cli.main(typed) == 0  # its own
    shutil.copytree("masks", "own")
    for other in ("a.png", "geo.tif", "overlays/a.jpg", "probabilities/a.tif", "broken/a.png", "folder/a.png"):
        target = tmp_path / "masks" / other
        target.unlink()
        if other == "folder/a.png":
            target.mkdir()
        elif other == "broken/a.png":
            target.touch()
        else:
            Image.fromarray(noise(40, 40)).save(target)
        before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "masks").rglob("*")}
        assert cli.main(typed) == 2
        said = f"masks/{other}: exists, and predict did not write it. Give another -o DIR."
        assert said in capsys.readouterr().err
        assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "masks").rglob("*")} == before
        shutil.rmtree("masks")
        shutil.copytree("own", "masks")


def test_links_are_images_where_they_lie(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scans").mkdir()
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "elsewhere" / "0.png")
    for name in ("1.png", "2.png"):
        (tmp_path / "scans" / name).symlink_to(tmp_path / "elsewhere" / "0.png")
    assert [str(target) for _, target in find_images([str(tmp_path / "scans")])] == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("error", "resize", "images"),
    [
        (torch.OutOfMemoryError, "crop", 1),
        (MemoryError, "pad", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "pad", 2),
    ],
)
def test_out_of_memory_says_what_to_type(error, resize, images, tmp_path, monkeypatch, capsys):
    model_file(tmp_path / "m.safetensors", resize)
    for name in range(images):
        Image.fromarray(noise(40, 40, 3)).save(tmp_path / f"{name}.png")

    def forward(*_):
        raise error

    monkeypatch.setattr(Execution, "forward", forward)
    typed = [str(tmp_path / "m.safetensors"), str(tmp_path / "*.png"), "-o", str(tmp_path / "out")]
    assert cli.main(["predict", *typed]) == 4
    assert "Try --tile 512" in capsys.readouterr().err


def test_a_model_without_its_range_is_of_8_bits(tmp_path):
    """As the first format was written."""
    path = tmp_path / "m.safetensors"
    save_model(
        path,
        UNet("test_resnet", 1, decoder=DecoderConfig(width=[8] * 5)),
        classes=["a", "b"],
        size=[64, 64],
        resize="pad",
    )
    predictor = Predictor(path, **CPU)
    assert (predictor.range, predictor.info.dtype) == ((0, 255), "uint8")
    predictor.accept(noise(40, 40, 3), "x")
    with pytest.raises(DataError):
        predictor.accept(noise(40, 40, 3).astype(np.float32), "x")


def test_a_tile_is_a_number_of_pixels(capsys):
    for typed in ("16", "-1", "x"):
        with pytest.raises(SystemExit):
            cli.main(["predict", "r", "i", "-o", "o", "--tile", typed])
        assert "from 32" in capsys.readouterr().err


def test_best_is_told(trained, images, tmp_path, capsys):
    run = str(trained.folder.parent)
    assert cli.main(["predict", run, str(images[0]), "-o", str(tmp_path)]) == 0
    assert f"{trained.folder} (val IoU" in capsys.readouterr().err
    assert json.loads((trained.folder / "summary.json").read_text())["status"] == "complete"


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        Predictor(tmp_path / "best.safetensors")
