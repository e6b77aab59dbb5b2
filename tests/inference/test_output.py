"""What `segsweep predict` writes: GeoTIFFs stay where they are on the ground, and masks may hold the user's own values.

Files are read back by Pillow, which has no part in writing TIFFs.
"""

import numpy as np
import pytest
import tifffile
import torch
from conftest import read_mask
from PIL import Image

from segsweep.commands import app as cli
from segsweep.config.schema import DecoderConfig
from segsweep.data.images import read_image
from segsweep.data.labels import labels
from segsweep.errors import ConfigError
from segsweep.figures.pictures import COLORS
from segsweep.inference.geotiff import Georeference, georeference
from segsweep.inference.output import INDICES, MaskForm
from segsweep.inference.predict import Predictor, find_images, predict
from segsweep.nn import UNet
from segsweep.nn.checkpoint import describe, save_model

NAMES = ("sea", "land", "city")
TAGS = {
    33550: ("d", 3, (0.5, 0.25, 0.0)),  # ModelPixelScale
    33922: ("d", 6, (0.0, 0.0, 0.0, 4.5e5, 5.4e6, 0.0)),  # ModelTiepoint
    34735: ("H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1026, 34737, 8, 0, 2057, 34736, 1, 0)),  # GeoKeyDirectory
    34736: ("d", 1, (6378137.0,)),  # GeoDoubleParams
    34737: ("s", 0, "UTM 32N|"),  # GeoAsciiParams
}
NODATA = (42113, "s", 0, "-9999", True)
TURNED = {34264: ("d", 16, (0.5, 0.1, 0, 4.5e5, 0.1, -0.5, 0, 5.4e6, 0, 0, 0, 0, 0, 0, 0, 1))}  # ModelTransformation
NAMED = TAGS | {34737: ("s", 0, "Gauß-Krüger| ".encode("latin-1"))}  # TIFF knows ASCII alone


def model_file(path, classes=NAMES, **more):
    """An untrained model that says all its classes."""
    torch.manual_seed(0)
    model = UNet("test_resnet", len(classes) if len(classes) > 2 else 1, decoder=DecoderConfig(width=[8] * 5))
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    how = {"size": (64, 64), "resize": "crop", "precision": "fp32", "channels_last": True}
    save_model(path, model, classes=classes, **how, **more)
    return path


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def write_geotiff(path, stored, tags=TAGS, orientation=1):
    extra = [(code, *tag, True) for code, tag in tags.items()] + [NODATA]
    if orientation != 1:
        extra.append((274, "H", 1, orientation, True))
    kind = "rgb" if stored.shape[2:] == (3,) else "minisblack"
    planes = {"planarconfig": "contig"} if stored.ndim == 3 else {}
    tifffile.imwrite(path, stored, photometric=kind, **planes, extratags=extra, metadata=None)
    return path


def tags_of(path, codes):
    with Image.open(path) as image:
        return {code: image.tag_v2.get(code) for code in codes}


def stored_pixels(path):
    """What lies in the file, whatever its orientation says."""
    with tifffile.TiffFile(path) as file:
        return file.pages.first.asarray()


def run(model, image, out, *words):
    assert cli.main(["predict", str(model), str(image), "-o", str(out), "--device=cpu", *words]) == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("model") / "m.safetensors", values=[0, 7, 300])


@pytest.mark.parametrize("tags", [TAGS, TURNED, NAMED], ids=["tiepoint", "transformation", "name"])
@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_the_mask_of_a_geotiff_is_one_with_the_same_georeference(model, tmp_path, tags, suffix):
    picture = noise(48, 70, 3)
    Image.fromarray(picture).save(tmp_path / "plain.png")
    image = write_geotiff(tmp_path / f"geo{suffix}", picture, tags)
    run(model, image, tmp_path / "out", "--probabilities")
    run(model, tmp_path / "plain.png", tmp_path / "out", "--probabilities")
    for written in (tmp_path / "out" / "geo.tif", tmp_path / "out" / "probabilities" / "geo.tif"):
        wanted = tags_of(image, tags)
        assert None not in wanted.values()
        assert tags_of(written, tags) == wanted
        assert tags_of(written, [NODATA[0]]) == {NODATA[0]: None}  # of the image alone
    with Image.open(tmp_path / "out" / "geo.tif") as mask, Image.open(tmp_path / "out" / "plain.png") as plain:
        assert mask.mode == plain.mode == "P"
        np.testing.assert_array_equal(mask, plain)
        np.testing.assert_array_equal(np.array(mask.getpalette()).reshape(-1, 3)[:3], COLORS[:3])
    assert len(np.unique(read_mask(tmp_path / "out" / "geo.tif"))) > 1
    geo, plain = (tifffile.imread(tmp_path / "out" / "probabilities" / f"{name}.tif") for name in ("geo", "plain"))
    np.testing.assert_array_equal(geo, plain)
    with tifffile.TiffFile(tmp_path / "out" / "probabilities" / "geo.tif") as file:
        assert (len(file.pages), file.pages.first.samplesperpixel) == (1, 3)  # bands, as GDAL reads them


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_geotiff_has_its_mask_on_the_same_stored_grid(model, tmp_path, orientation):
    """Pillow says how the file is looked at; that picture, saved plainly, has the same mask."""
    image = write_geotiff(tmp_path / "geo.tif", noise(40, 70, 3), orientation=orientation)
    with Image.open(image) as opened:
        seen = np.asarray(opened)
    assert seen.shape[:2] == ((40, 70) if orientation < 5 else (70, 40))
    Image.fromarray(seen).save(tmp_path / "plain.png")
    run(model, image, tmp_path / "out", "--probabilities", "--overlay")
    run(model, tmp_path / "plain.png", tmp_path / "out", "--probabilities", "--overlay")
    written = tmp_path / "out" / "geo.tif"
    assert tags_of(written, TAGS) == tags_of(image, TAGS)
    assert stored_pixels(written).shape == (40, 70)
    with Image.open(written) as mask, Image.open(tmp_path / "out" / "plain.png") as plain:
        np.testing.assert_array_equal(mask, plain)
    np.testing.assert_array_equal(read_mask(written), read_mask(tmp_path / "out" / "plain.png"))
    maps = stored_pixels(tmp_path / "out" / "probabilities" / "geo.tif")
    np.testing.assert_array_equal(maps.argmax(0), stored_pixels(written))
    overlays = [read_image(tmp_path / "out" / "overlays" / f"{name}.jpg") for name in ("geo", "plain")]
    np.testing.assert_array_equal(*overlays)


def test_a_view_is_upright_and_writes_to_its_place():
    stored = np.arange(6).reshape(2, 3)
    seen = {  # by hand: what is stored as 0 1 2 / 3 4 5
        1: [[0, 1, 2], [3, 4, 5]],
        2: [[2, 1, 0], [5, 4, 3]],
        3: [[5, 4, 3], [2, 1, 0]],
        4: [[3, 4, 5], [0, 1, 2]],
        5: [[0, 3], [1, 4], [2, 5]],
        6: [[3, 0], [4, 1], [5, 2]],
        7: [[5, 2], [4, 1], [3, 0]],
        8: [[2, 5], [1, 4], [0, 3]],
    }
    for orientation, wanted in seen.items():
        ground = Georeference(orientation=orientation)
        np.testing.assert_array_equal(ground.upright(stored), wanted)
        maps = np.zeros((2, *ground.stored(np.shape(wanted))))
        ground.upright(maps)[:, 0] = 1
        assert (maps[0] == np.isin(stored, wanted[0])).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (1, np.uint16), (5, np.float32)])
def test_upright_is_how_images_are_read(tmp_path, orientation, channels, dtype):
    stored = noise(12, 20, channels).astype(dtype)
    image = write_geotiff(tmp_path / "geo.tif", np.squeeze(stored), orientation=orientation)
    ground = georeference(image)
    np.testing.assert_array_equal(ground.upright(stored[..., 0]), read_image(image)[..., 0])


def test_other_files_have_no_georeference(tmp_path):
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "plain.tif")
    (tmp_path / "damaged.tif").write_bytes(write_geotiff(tmp_path / "geo.tif", noise(40, 40, 3)).read_bytes()[:100])
    for name in ("plain.tif", "damaged.tif", "none.tif", "geo.png"):
        assert georeference(tmp_path / name) is None
    (tmp_path / "geo.tif").rename(tmp_path / "a.tif")
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "a.png")
    found = dict(find_images([str(tmp_path / "a.png"), str(tmp_path / "a.tif"), str(tmp_path / "plain.tif")]))
    assert [target.name for target in found.values()] == ["a.png", "a.tif", "plain.png"]
    with pytest.raises(ConfigError, match=r"both masks would be a\.tif"):
        find_images([str(tmp_path / "a.png"), str(tmp_path / "a.tif")], suffix=".tif")


def test_two_images_do_not_write_one_overlay_or_one_map(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    write_geotiff(tmp_path / "in" / "scene.tif", noise(40, 40, 3))
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "in" / "scene.png")
    for more in ("--overlay", "--probabilities"):
        assert cli.main(["predict", str(trained.folder), "in", "-o", "out", more]) == 2
        said = capsys.readouterr().err
        assert "scene.tif and " in said or "scene.png and " in said
        assert "both would write" in said
        assert not (tmp_path / "out").exists()
    assert cli.main(["predict", str(trained.folder), "in", "-o", "out"]) == 0


def test_two_classes_in_a_geotiff(tmp_path):
    model = model_file(tmp_path / "m.safetensors", NAMES[:2])
    image = write_geotiff(tmp_path / "geo.tif", noise(40, 48, 3))
    run(model, image, tmp_path / "out", "--probabilities")
    maps = tifffile.imread(tmp_path / "out" / "probabilities" / "geo.tif").reshape(40, 48)
    np.testing.assert_array_equal(maps > 0.5, read_mask(tmp_path / "out" / "geo.tif") == 1)


@pytest.mark.parametrize(
    ("values", "mode", "suffix", "told"),
    [
        ([0, 128, 255], "L", ".png", "0 sea, 128 land, 255 city"),
        ([0, 7, 300], "I;16", ".png", "0 sea, 7 land, 300 city"),
        ([300, 7, 255], "I;16", ".png", "300 sea, 7 land, 255 city"),
        ([-1, 7, 255], np.int16, ".tif", "-1 sea, 7 land, 255 city"),
        ([0, 7, 70_000], np.uint32, ".tif", "0 sea, 7 land, 70000 city"),
        ([-1, 7, 300], np.int32, ".tif", "-1 sea, 7 land, 300 city"),
        ([0, [255, 0, 0], [0, 0, 255]], "RGB", ".png", "[0, 0, 0] sea, [255, 0, 0] land, [0, 0, 255] city"),
    ],
)
@pytest.mark.parametrize("geo", [False, True])
def test_masks_may_hold_the_trainings_own_values(tmp_path, values, mode, suffix, told, geo, capsys):
    model, picture = model_file(tmp_path / "m.safetensors", values=values), noise(40, 48, 3)
    image = write_geotiff(tmp_path / "1.tif", picture) if geo else tmp_path / "1.png"
    if not geo:
        Image.fromarray(picture).save(image)
    run(model, image, tmp_path / "indices")
    run(model, image, tmp_path / "own", "--values", "original")
    suffix = ".tif" if geo else suffix
    (indices,) = (tmp_path / "indices").iterdir()
    (own,) = (tmp_path / "own").iterdir()
    assert own.name == f"1{suffix}"
    if suffix == ".png":
        with Image.open(own) as written:
            pixels = np.asarray(written)
            assert written.mode == mode
    else:
        pixels = tifffile.imread(own)
        assert pixels.dtype == {"L": np.uint8, "I;16": np.uint16, "RGB": np.uint8}.get(mode, mode)
    classes = read_mask(indices)
    assert len(np.unique(classes)) > 1
    for index, value in enumerate(values):
        wanted = [0, 0, 0] if mode == "RGB" and value == 0 else value
        assert (pixels[classes == index] == wanted).all()
    if geo:
        assert tags_of(own, TAGS) == tags_of(image, TAGS)
    assert f"classes         {told}" in capsys.readouterr().out


def test_a_model_that_does_not_know_its_values_says_so(tmp_path, capsys):
    model = model_file(tmp_path / "m.safetensors")
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "1.png")
    typed = ["predict", str(model), str(tmp_path / "1.png"), "-o", str(tmp_path / "out")]
    assert cli.main([*typed, "--values", "original"]) == 2
    assert "the model's file does not say which mask values" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(typed) == 0


def test_colours_beside_large_numbers_fit_no_file(tmp_path):
    info = describe(model_file(tmp_path / "m.safetensors", values=[0, 300, [255, 0, 0]]))
    with pytest.raises(ConfigError, match="one file cannot hold both"):
        MaskForm.original(info)


def test_the_most_frequent_value_of_a_class_stands_for_it():
    merged = {"wall": [1, 2], "cell": [3, 4], "none": 9}
    assert labels({0: 50, 1: 3, 2: 5, 3: 8, 4: 1}, merged).originals == (0, 2, 3, 9)
    assert labels({0: 50, 255: 3}).originals == (0, 255)
    colours = [(0, 0, 0), (255, 0, 0), (0, 9, 0)]
    named = {"sky": [255, 0, 0], "tree": [0, 9, 0]}
    assert labels({0: 50, 1: 3, 2: 5}, named, values=colours).originals == ((0, 0, 0), (255, 0, 0), (0, 9, 0))


@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_without_data_have_no_class(tmp_path, orientation, capsys):
    """The gaps are filled by hand with their channel's mean, and the model is run on that."""
    model = model_file(tmp_path / "m.safetensors", dtype="float32")
    picture = noise(40, 64, 3).astype(np.float32)
    picture[3:9, 30:] = -9999  # the tag's value
    picture[20:22, 5, 1] = np.nan  # in one channel
    image = write_geotiff(tmp_path / "geo.tif", picture, orientation=orientation)
    run(model, image, tmp_path / "out", "--probabilities", "--overlay")
    gaps = np.zeros((40, 64), bool)
    gaps[3:9, 30:] = gaps[20:22, 5] = True
    filled = picture.copy()
    for channel in range(3):
        lacking = ~(filled[..., channel] >= 0)
        filled[lacking, channel] = filled[~lacking, channel].mean(dtype=np.float64)
    seen = np.rot90(filled, -1) if orientation == 6 else filled
    wanted = Predictor(model, device="cpu").decided(seen)[1]
    wanted = np.rot90(wanted, 1, (1, 2)) if orientation == 6 else wanted
    mask, maps = (stored_pixels(tmp_path / "out" / name) for name in ("geo.tif", "probabilities/geo.tif"))
    assert (mask[gaps] == 255).all()
    np.testing.assert_array_equal(mask[~gaps], wanted.argmax(0)[~gaps])
    assert np.isnan(maps[:, gaps]).all()
    np.testing.assert_allclose(maps[:, ~gaps], wanted[:, ~gaps], atol=1e-6)
    assert tags_of(tmp_path / "out" / "geo.tif", [NODATA[0]]) == {NODATA[0]: "255"}
    assert tags_of(tmp_path / "out" / "probabilities" / "geo.tif", [NODATA[0]]) == {NODATA[0]: "nan"}
    painted = read_image(tmp_path / "out" / "overlays" / "geo.jpg")
    assert painted.shape == ((64, 40, 3) if orientation == 6 else (40, 64, 3))
    said = capsys.readouterr().out
    assert (
        f"no data         {gaps.sum()} of the images' pixels have no data; they are 255 in the masks, which is no class"
        in said
    )


@pytest.mark.parametrize(
    ("values", "void", "dtype"),
    [
        ([0, 7, 9], 255, np.uint8),
        ([0, 128, 255], 254, np.uint8),
        ([0, 255, 300], 254, np.uint16),
        ([-1, 7, 9], 255, np.int16),
        ([0, [255, 0, 255], [0, 0, 255]], [255, 255, 255], np.uint8),
        ([0, [255, 255, 255], [254, 254, 254]], [253, 253, 253], np.uint8),
    ],
)
@pytest.mark.parametrize("geo", [False, True])
def test_among_the_trainings_own_values_no_data_has_one_that_is_free(tmp_path, values, void, dtype, geo, capsys):
    model = model_file(tmp_path / "m.safetensors", values=values, nodata=7)
    picture = noise(32, 32, 3).clip(8)
    picture[:5] = 7
    image = write_geotiff(tmp_path / "1.tif", picture) if geo else tmp_path / "1.png"
    if not geo:
        Image.fromarray(picture).save(image)
    run(model, image, tmp_path / "own", "--values", "original")
    (own,) = (tmp_path / "own").iterdir()
    pixels = np.asarray(Image.open(own)) if own.suffix == ".png" else stored_pixels(own)
    assert pixels.dtype == dtype
    assert (pixels[:5] == void).all()
    classes = [(pixels == v).reshape(32, 32, -1).all(2) for v in values]
    assert not classes[1][:5].any()
    assert np.sum(classes, 0)[5:].all()  # all others are of a class
    assert f"160 of the images' pixels have no data; they are {np.max(void)} in the masks" in capsys.readouterr().out
    if geo:
        assert tags_of(own, [NODATA[0]]) == {NODATA[0]: f"{void}" if isinstance(void, int) else None}


def test_a_large_mask_is_written_in_its_strips(tmp_path):
    """Rows come in bands from tiles; a palette TIFF is compressed."""
    predictor = Predictor(model_file(tmp_path / "m.safetensors", NAMES[:2]), device="cpu", tile=64)
    image = write_geotiff(tmp_path / "geo.tif", noise(150, 130, 3), orientation=8)
    (done,) = predict(predictor, find_images([str(image)]), tmp_path / "out", form=INDICES)
    pixels = predictor.picture(image).pixels
    assert pixels.shape == (130, 150, 3)
    np.testing.assert_array_equal(read_mask(done.mask), predictor.decided(pixels)[1][0] > 0.5)
    assert done.mask.stat().st_size < 150 * 130
