"""Where a canvas lies on an image."""

import numpy as np
import pytest
import torch

from segsweep.data.geometry import Canvas, Placement, sample, to_image

SIZES = [((40, 48), (32, 32)), ((37, 53), (64, 41)), ((101, 63), (32, 48)), ((33, 33), (33, 33)), ((31, 90), (45, 32))]
RESIZES = ("pad", "squash", "crop")


def canvas_points(placement):
    """Image points under the canvas's pixel centres: `h w 2`."""
    height, width = placement.canvas
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    return np.stack([x, y], -1) @ placement.linear.T + placement.center


def corners(placement):
    half = np.array(placement.canvas[::-1]) / 2
    return placement.center - placement.linear @ half, placement.center + placement.linear @ half


@pytest.mark.parametrize(("image", "canvas"), SIZES)
def test_pad_shows_the_whole_image_and_keeps_its_aspect(image, canvas):
    placement = Canvas(canvas, "pad").place(image)
    first, last = corners(placement)
    size = np.array(image[::-1])
    assert placement.linear[0, 0] == placement.linear[1, 1]
    assert (first <= 1e-9).all()
    assert (last >= size - 1e-9).all()
    assert np.isclose(last - first, size).any()
    assert np.allclose(first, size - last)


@pytest.mark.parametrize(("image", "canvas"), SIZES)
def test_squash_lays_corner_on_corner(image, canvas):
    first, last = corners(Canvas(canvas, "squash").place(image))
    assert np.allclose(first, 0)
    assert np.allclose(last, image[::-1])


@pytest.mark.parametrize(("image", "canvas"), SIZES)
def test_a_crop_neither_shrinks_nor_enlarges(image, canvas):
    for window in (None, np.array([0.3, 0.8])):
        assert np.array_equal(Canvas(canvas, "crop").place(image, window).linear, np.eye(2))


@pytest.mark.parametrize(("image", "canvas"), SIZES)
def test_a_crop_in_the_middle_lies_pixel_on_pixel(image, canvas):
    assert np.allclose(canvas_points(Canvas(canvas, "crop").place(image)) % 1, 0.5)


@pytest.mark.parametrize(("image", "canvas"), SIZES)
def test_a_crop_anywhere_lies_pixel_on_pixel(image, canvas):
    for window in np.random.default_rng(0).random((20, 2)):
        assert np.allclose(canvas_points(Canvas(canvas, "crop").place(image, window)) % 1, 0.5)


@pytest.mark.parametrize(("image", "canvas"), SIZES)
def test_a_crop_stays_inside_of_images_that_are_larger(image, canvas):
    rng = np.random.default_rng(0)
    for window in rng.random((50, 2)):
        first, last = corners(Canvas(canvas, "crop").place(image, window))
        larger = np.array(image[::-1]) >= canvas[::-1]
        assert (first >= -1e-9)[larger].all()
        assert (last <= np.array(image[::-1]) + 1e-9)[larger].all()


def test_crops_reach_both_ends_of_the_image():
    assert np.allclose(corners(Canvas((32, 32), "crop").place((90, 70), np.array([0.0, 0.0])))[0], 0)
    assert np.allclose(corners(Canvas((32, 32), "crop").place((90, 70), np.array([1.0, 1.0])))[1], (70, 90))


@pytest.mark.parametrize("resize", RESIZES)
def test_a_window_moves_crops_only(resize):
    middle, moved = (Canvas((32, 32), resize).place((90, 70), w) for w in (None, np.array([0.1, 0.2])))
    assert np.array_equal(middle.center, moved.center) == (resize != "crop")


def test_samples_at_pixel_centres_are_the_pixels():
    maps = torch.rand(2, 3, 5, 7)
    x, y = torch.meshgrid(torch.arange(7) + 0.5, torch.arange(5) + 0.5, indexing="xy")
    assert torch.allclose(sample(maps, x.expand(2, -1, -1), y.expand(2, -1, -1)), maps, atol=1e-5)


def test_samples_between_pixels_are_weighted_by_distance():
    maps = torch.tensor([[[[0.0, 10.0], [20.0, 30.0]]]])
    points = torch.tensor([[[[1.0, 0.5], [0.5, 1.0], [1.0, 1.0], [0.75, 0.5]]]])
    assert torch.allclose(sample(maps, *points.unbind(-1)).flatten(), torch.tensor([5.0, 10.0, 15.0, 2.5]), atol=1e-5)


def test_samples_beyond_the_edge_are_the_edge():
    maps = torch.rand(1, 1, 4, 4)
    points = torch.tensor([[[[-50.0, 0.5], [99.0, 3.5], [2.5, -9.0]]]])
    expected = torch.stack([maps[0, 0, 0, 0], maps[0, 0, 3, 3], maps[0, 0, 0, 2]])
    assert torch.allclose(sample(maps, *points.unbind(-1)).flatten(), expected, atol=1e-5)


@pytest.mark.parametrize(("image", "canvas"), SIZES)
@pytest.mark.parametrize("resize", RESIZES)
def test_to_image_undoes_place_for_linear_maps(image, canvas, resize):
    placement = Canvas(canvas, resize).place(image)
    slopes = np.array([[1.0, 0.0], [0.0, 1.0], [0.7, -1.3]])
    on_canvas = torch.from_numpy((canvas_points(placement) @ slopes.T).transpose(2, 0, 1)).float()
    x, y = np.meshgrid(np.arange(image[1]) + 0.5, np.arange(image[0]) + 0.5)
    expected = torch.from_numpy((np.stack([x, y], -1) @ slopes.T).transpose(2, 0, 1)).float()
    back = to_image(on_canvas, placement, image)
    assert back.shape == expected.shape
    first, last = corners(placement)
    margin = np.diag(placement.linear) / 2
    seen = ((np.stack([x, y], -1) >= first + margin) & (np.stack([x, y], -1) <= last - margin)).all(-1)
    assert seen.sum() > 0.5 * np.prod(np.minimum(image, canvas) if resize == "crop" else image)
    assert torch.allclose(back[:, seen], expected[:, seen], atol=1e-3)


@pytest.mark.parametrize("resize", RESIZES)
def test_an_image_of_the_canvas_size_gets_its_maps_back_untouched(resize):
    maps = torch.rand(3, 33, 47)
    assert torch.equal(to_image(maps, Canvas((33, 47), resize).place((33, 47)), (33, 47)), maps)


@pytest.mark.parametrize("image", [(33, 47), (34, 46), (32, 47)])
def test_a_crop_gives_every_image_that_fits_its_own_pixels_back(image):
    canvas = (max(image[0], 40), max(image[1], 60))
    placement = Canvas(canvas, "crop").place(image)
    height, width = image
    whole = torch.rand(1, 200, 200)
    points = np.floor(canvas_points(placement)).astype(int) + 50
    on_canvas = whole[:, points[..., 1], points[..., 0]]
    expected = whole[:, 50 : 50 + height, 50 : 50 + width]
    assert torch.allclose(to_image(on_canvas, placement, image), expected, atol=1e-4)


@pytest.mark.parametrize(("image", "canvas"), SIZES)
@pytest.mark.parametrize("resize", RESIZES)
def test_strips_are_the_whole(image, canvas, resize):
    placement, maps = Canvas(canvas, resize).place(image), torch.rand(2, *canvas)
    whole = to_image(maps, placement, image)
    strips = [to_image(maps, placement, image, slice(top, top + 10)) for top in range(0, image[0], 10)]
    assert torch.allclose(torch.cat(strips, 1), whole, atol=1e-6)
    assert whole.shape == (2, *image)


ZOOMS = (0.3, 0.5, 1.6, 2)


@pytest.mark.parametrize(("image", "canvas"), SIZES)
@pytest.mark.parametrize("zoom", ZOOMS)
def test_a_zoomed_crop_shows_as_many_pixels_fewer_and_stays_inside(image, canvas, zoom):
    laid = Canvas(canvas, "crop", zoom)
    for window in np.random.default_rng(0).random((20, 2)):
        first, last = corners(laid.place(image, window))
        assert np.allclose(last - first, np.array(canvas[::-1]) / zoom)
        room = np.array(image[::-1]) - (last - first)
        assert ((first >= -1e-9) & (last <= np.array(image[::-1]) + 1e-9))[room >= 0].all()
        assert ((first <= 1e-9) & (last >= np.array(image[::-1]) - 1e-9))[room < 0].all()


@pytest.mark.parametrize(("image", "canvas"), SIZES)
@pytest.mark.parametrize("zoom", ZOOMS)
def test_a_whole_zoomed_image_comes_back_to_where_it_was(image, canvas, zoom):
    placement = Canvas(canvas, "crop", zoom).whole(image).place(image)
    slopes = np.array([[1.0, 0.0], [0.0, 1.0], [0.7, -1.3]])
    on_canvas = torch.from_numpy((canvas_points(placement) @ slopes.T).transpose(2, 0, 1)).float()
    x, y = np.meshgrid(np.arange(image[1]) + 0.5, np.arange(image[0]) + 0.5)
    expected = torch.from_numpy((np.stack([x, y], -1) @ slopes.T).transpose(2, 0, 1)).float()
    margin = int(np.ceil(1 / zoom))
    inner = np.s_[:, margin:-margin, margin:-margin]
    assert torch.allclose(to_image(on_canvas, placement, image)[inner], expected[inner], atol=1e-3)


def test_constant_maps_stay_constant_up_to_the_border():
    for resize in RESIZES:
        back = to_image(torch.full((1, 32, 40), 3.0), Canvas((32, 40), resize).place((51, 77)), (51, 77))
        assert torch.allclose(back, torch.tensor(3.0), atol=1e-5)


def test_a_placement_that_is_moved_is_not_taken_for_the_identity():
    maps = torch.rand(1, 8, 8)
    moved = Placement(np.eye(2), np.array([5.0, 4.0]), (8, 8))
    back = to_image(maps, moved, (8, 8))
    assert torch.allclose(back[..., 1:], maps[..., :-1], atol=1e-5)
