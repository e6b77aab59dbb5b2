"""Pictures of predictions: their size, what is painted and what is left alone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from segsweep.figures.pictures import (
    COLORS,
    FRAME,
    HEADER,
    MARGIN,
    PALETTE,
    SMALLEST,
    STRIPES,
    WIDEST,
    Compared,
    caption,
    comparison,
    overlay,
)
from segsweep.metrics import examples

NAMES = ("background", "cell", "border")
VOID = 255


def grey(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 255, height * width).reshape(height, width, 1).astype(np.uint8)


def square(height: int, width: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((height, width), np.int64)
    mask[height // 4 : height // 2, width // 4 : width // 2] = value
    return mask


def compared(image, truth, prediction, low=0, high=255):
    return comparison([Compared("input", image, truth, prediction)], NAMES, low, high)


def panels(sheet: Image.Image, width: int, height: int) -> list[np.ndarray]:
    lefts, bottom = [MARGIN + i * (width + MARGIN) for i in range(4)], sheet.height - MARGIN
    return [np.array(sheet.crop((left, bottom - height, left + width, bottom))) for left in lefts]


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(200, 300, 1), (40, 48, 4), (192, 100, 1), (400, 399, 1), (800, 400, 0.5), (1, 1, SMALLEST), (100, 50, 2)],
)
def test_a_sheet_holds_three_panels_of_a_sensible_size(height, width, factor, channels):
    image = np.repeat(grey(height, width), channels, axis=2)
    mask = square(height, width)
    sheet = compared(image, mask, mask)
    assert sheet.mode == "RGB"
    strip = HEADER + int(height * factor) + MARGIN
    assert sheet.width >= 4 * width * factor + 5 * MARGIN
    assert sheet.height > strip  # a legend above
    assert np.array(sheet)[:-strip].min() < 255
    assert SMALLEST <= max(height, width) * factor <= WIDEST / 4


def test_a_strip_of_an_image_has_a_picture_too():
    mask = np.zeros((2, 6000), np.int64)
    assert compared(grey(2, 6000), mask, mask).width > WIDEST


def test_grey_and_its_rgb_give_the_same_sheet():
    mask = square(200, 220)
    one = compared(grey(200, 220), mask, mask)
    three = compared(np.repeat(grey(200, 220), 3, axis=2), mask, mask)
    assert one.tobytes() == three.tobytes()


def test_the_first_panel_is_the_input_stretched_from_low_to_high():
    image = np.array([[[-5.0], [0.0]], [[50.0], [400.0]]], np.float32).repeat(100, 0).repeat(100, 1)
    mask = np.zeros((200, 200), np.int64)
    first = panels(compared(image, mask, mask, 0, 100), 200, 200)[0]
    corners = first[[0, 0, 199, 199], [0, 199, 0, 199], 0]
    assert corners.tolist() == [0, 0, 127, 255]


def test_without_foreground_all_panels_are_the_input():
    nothing = np.zeros((200, 220), np.int64)
    first, second, third, _ = panels(compared(grey(200, 220), nothing, nothing), 220, 200)
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_truth_and_prediction_are_painted_on_their_own_panels():
    truth, prediction = square(200, 220, 1), square(200, 220, 2)
    image = np.repeat(grey(200, 220), 3, axis=2)
    _, second, third, _ = panels(compared(image, truth, prediction), 220, 200)
    assert np.array_equal(second, overlay(image, truth))
    assert np.array_equal(third, overlay(image, prediction))


@pytest.mark.parametrize("names", (NAMES[:2], NAMES))
def test_errors_are_told_apart(names):
    truth, prediction = np.zeros((200, 220), np.int64), np.zeros((200, 220), np.int64)
    truth[:50], truth[150:] = len(names) - 1, VOID
    prediction[100:120], prediction[180:] = 1, 1
    sheet = comparison([Compared("input", grey(200, 220), truth, prediction)], names, 0, 255)
    errors = panels(sheet, 220, 200)[3]
    assert (errors[:50] == COLORS[len(names) - 1]).all()  # missed
    striped = (errors[100:120] == STRIPES).all(-1)
    assert 0.4 < striped.mean() < 0.6
    assert (errors[150:] == 0).all()
    rest = errors[120:150]
    assert (rest == rest[..., :1]).all()  # grey: right


def test_a_class_in_the_place_of_another_is_wrong():
    truth = square(200, 220, 1)
    errors = panels(compared(grey(200, 220), truth, 2 * truth), 220, 200)[3]
    assert (errors[truth == 1] == COLORS[1]).all()
    assert (errors[truth == 0] < 255).all()


def test_what_stands_above_a_narrow_panel_is_not_cut_off_and_a_line_is_around_it():
    white = np.full((200, 20, 1), 255, np.uint8)
    sheet = np.array(compared(white, np.zeros((200, 20), int), np.zeros((200, 20), int)))
    assert sheet.shape[1] > 150 + 3 * 20  # "prediction · no IoU (empty)" is as long
    frame = (sheet == FRAME).all(-1)
    assert frame.sum() >= 4 * 2 * (200 + 20)


def test_examples_are_the_worst_the_middle_and_the_best_with_something_to_see():
    good, empty = [[90, 0], [0, 10]], [[100, 0], [0, 0]]

    def part(found):
        return [[90, 0], [10 - found, found]]

    matrices = np.array([part(i) for i in (5, 1, 9, 3, 7)] + [empty, [[90, 10], [0, 0]], good])
    chosen = examples(matrices)
    assert chosen == [(6, "worst"), (1, "worst"), (0, "median"), (4, "median"), (2, "best"), (7, "best")]
    assert examples(np.array([empty, empty])) == []
    assert [place for place, _ in examples(np.array([good]))] == [0]


@pytest.mark.parametrize(
    ("classes", "truth", "prediction", "said"),
    [
        (2, [0, 1, 1, 0], [0, 1, 0, 0], "IoU 0.5000"),
        (2, [0, 0, 0, 0], [0, 0, 1, 1], "IoU 0.0000"),  # something found in nothing
        (2, [0, 0, 0, 0], [0, 0, 0, 0], "no IoU (empty)"),
        (2, [0, 0, VOID, VOID], [0, 0, 1, 1], "no IoU (empty)"),
        (2, [VOID] * 4, [0, 0, 1, 1], "no IoU (void)"),
        (2, [1, 1, 1, VOID], [0, 1, 0, 0], "IoU 0.3333"),
        (3, [0, 0, 1, 1], [0, 0, 1, 2], "mean IoU 0.5000"),  # (1 + 1/2 + 0) / 3
        (3, [0, 0, 0, 0], [0, 0, 0, 2], "mean IoU 0.3750"),  # (3/4 + 0) / 2
        (3, [0, 0, 0, 0], [0, 0, 0, 0], "mean IoU 1.0000"),
        (3, [VOID] * 4, [0, 1, 2, 2], "no IoU (void)"),
    ],
)
def test_the_caption_is_an_images_own_score(classes, truth, prediction, said, monkeypatch):
    truth, prediction = (np.array(mask).reshape(2, 2) for mask in (truth, prediction))
    assert caption(truth, prediction, classes) == said
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, at, text, **how: drawn.append(text))
    comparison([Compared("input", grey(2, 2), truth, prediction)], NAMES[:classes], 0, 255)
    assert f"prediction · {said}" in drawn


def test_panels_may_lie_in_a_square():
    truth, prediction = square(200, 220), square(200, 220, 2)
    image = np.repeat(grey(200, 220), 3, axis=2)
    sheet = comparison([Compared("input", image, truth, prediction)], NAMES, 0, 255, columns=2)
    assert sheet.width == 2 * 220 + 3 * MARGIN
    below = np.array(sheet)[-200 - MARGIN : -MARGIN]
    assert np.array_equal(below[:, MARGIN : MARGIN + 220], overlay(image, prediction))


def test_rows_are_stacked_above_one_legend():
    mask = square(200, 220)
    row = Compared("a very long name of an image that does not fit " * 3, grey(200, 220), mask, mask)
    one, three = comparison([row], NAMES, 0, 255), comparison([row] * 3, NAMES, 0, 255)
    assert three.width == one.width
    assert three.height - one.height == 2 * (200 + HEADER + MARGIN)


def test_void_is_dark_on_both_panels():
    truth = square(200, 220, VOID)
    image = np.full((200, 220, 1), 200, np.uint8)
    first, second, third, _ = panels(compared(image, truth, np.ones_like(truth)), 220, 200)
    assert (first == 200).all()
    for panel in (second, third):
        assert (panel[truth == VOID] == 60).all()
    assert (second[truth != VOID] == 200).all()
    assert (third[truth != VOID] != 200).any(axis=1).all()


def test_neither_arrays_is_changed():
    image, truth, prediction = grey(200, 220), square(200, 220, VOID), square(200, 220)
    copies = image.copy(), truth.copy(), prediction.copy()
    compared(image, truth, prediction)
    for before, after in zip(copies, (image, truth, prediction), strict=True):
        assert np.array_equal(before, after)


def test_a_constant_image_has_a_picture():
    mask = square(200, 220)
    compared(np.full((200, 220, 1), 7, np.uint8), mask, mask, 7, 7)


@pytest.mark.parametrize("dtype", (np.uint8, np.int64))
def test_overlay_leaves_the_background_alone_and_paints_the_rest(dtype):
    rgb = np.random.default_rng(0).integers(0, 60, (40, 50, 3)).astype(np.uint8)
    mask = np.random.default_rng(1).choice([0, 0, 0, 1, 2, VOID], size=(40, 50)).astype(dtype)
    painted = overlay(rgb, mask)
    assert painted.dtype == np.uint8
    assert np.array_equal(painted[mask == 0], rgb[mask == 0])
    coloured = (mask == 1) | (mask == 2)
    assert (painted[coloured] != rgb[coloured]).any(axis=1).all()


def test_borders_are_drawn_in_full_colour_and_insides_mixed():
    rgb = np.full((40, 50, 3), 100, np.uint8)
    mask = square(40, 50, 2)
    painted = overlay(rgb, mask, opacity=0.5)
    edge = find_boundaries(mask, connectivity=1, mode="inner")
    inside = (mask == 2) & ~edge
    assert (painted[edge] == PALETTE[2]).all()
    np.testing.assert_allclose(painted[inside], np.tile((np.array(PALETTE[2]) + 100) / 2, (inside.sum(), 1)), atol=0.5)


def test_every_class_has_a_colour():
    classes = np.arange(256).reshape(16, 16)
    painted = overlay(np.full((16, 16, 3), 255, np.uint8), classes)
    assert (painted[classes > 0] != 255).any(axis=1).all()


def test_no_foreground_class_looks_like_the_background():
    rgb = np.full((2, 2, 3), 255, np.uint8)
    colours = {tuple(overlay(rgb, np.full((2, 2), c), opacity=1.0)[0, 0]) for c in range(1, 20)}
    assert PALETTE[0] not in colours
