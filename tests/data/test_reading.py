"""How the masks of a set are read, from what all of them hold."""

import numpy as np
import pytest

from segsweep.data import masks
from segsweep.data.masks import ALPHA, ALPHA_SHIFT, NO_DATA, OTHERS, Entry, code
from segsweep.data.reading import KEPT, Census, decide, two_ends

RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 200, 0), (0, 0, 0), (255, 255, 255)


def census(*files):
    """Of masks, each a dict of values and how many pixels they have, all of them in areas."""
    all_codes = np.unique([code(value) for file in files for value in file])
    counts = [sum(file[value] for file in files for value in file if code(value) == one) for one in all_codes]
    arrays = [np.array(sorted(code(value) for value in file)) for file in files]
    return Census(all_codes, np.array(counts), np.array(counts), np.zeros(len(counts), int), arrays)


def seen(reading, *values):
    return [masks.value(int(found)) for found in reading.final(np.array([code(value) for value in values]))]


def test_numbers_are_themselves():
    reading = decide(census({0: 9, 1: 1}, {0: 5, 255: 5}))
    assert seen(reading, 0, 1, 255) == [0, 1, 255]
    assert reading.notes == ()


def test_palettes_that_agree_are_read_by_number_and_keep_their_colours():
    one, two = Entry(0, BLACK), Entry(1, RED)
    reading = decide(census({one: 9, two: 1}, {one: 9}, {two: 1, Entry(2, GREEN): 3}))
    assert reading.by == "number"
    assert seen(reading, one, two) == [one, two]
    assert reading.notes == ("masks: palettes are read by index",)


@pytest.mark.parametrize(
    "other",
    [{Entry(1, BLACK): 9, Entry(0, RED): 1}, {Entry(0, BLACK): 9, Entry(1, GREEN): 2}, {Entry(2, RED): 3}],
    ids=["swapped", "different colours", "another number"],
)
def test_palettes_that_differ_are_read_by_colour(other):
    reading = decide(census({Entry(0, BLACK): 9, Entry(1, RED): 1}, other))
    assert reading.by == "colour"
    assert seen(reading, *other) == [entry.color for entry in other]
    assert "different colours in different files" in reading.notes[0]


def test_a_palette_that_has_one_colour_twice_is_no_picture_of_its_classes():
    lazy = [Entry(0, BLACK), Entry(1, BLACK), Entry(2, BLACK)]
    reading = decide(census(dict.fromkeys(lazy, 5), {lazy[0]: 9}))
    assert seen(reading, *lazy) == lazy


def test_grey_palettes_that_differ_are_read_by_level():
    reading = decide(census({Entry(0, BLACK): 9, Entry(1, WHITE): 1}, {Entry(1, BLACK): 9, Entry(0, WHITE): 1}))
    assert seen(reading, Entry(0, BLACK), Entry(0, WHITE), Entry(1, WHITE)) == [0, 255, 255]


def test_among_coloured_files_palettes_and_greys_are_colours():
    reading = decide(census({RED: 5, BLACK: 5}, {Entry(3, RED): 5}, {0: 3, 255: 1}))
    assert seen(reading, RED, Entry(3, RED), 0, 255) == [RED, RED, BLACK, WHITE]


def alpha(level, beside=255):
    return ALPHA | level << ALPHA_SHIFT | beside


def raw(*files):
    """A census of codes."""
    codes, counts = np.unique(np.concatenate(files), return_counts=True)
    return Census(codes, counts, counts, counts * 0, [np.unique(file) for file in files])


def test_the_alpha_counts_where_nothing_else_differs():
    reading = decide(raw(np.array([alpha(0), alpha(255)]), np.array([alpha(0)])))
    assert reading.alpha
    assert reading.final(np.array([alpha(0), alpha(255)])).tolist() == [0, 255]


@pytest.mark.parametrize("holed", [[alpha(0, 0), NO_DATA], [alpha(0, 0), alpha(255, 0), NO_DATA], [NO_DATA]])
def test_the_alpha_of_black_masks_counts_though_some_pixels_have_no_data(holed):
    reading = decide(raw(np.array([alpha(0, 0), alpha(255, 0)]), np.array(holed)))
    assert reading.final(np.array([alpha(0, 0), alpha(255, 0), NO_DATA])).tolist() == [0, 255, NO_DATA]


def test_an_alpha_that_is_the_same_everywhere_does_not_count():
    assert not decide(raw(np.array([alpha(255)]), np.array([alpha(255)]))).alpha


def test_beside_flat_masks_a_shape_in_the_alpha_has_the_colour_beside_it():
    shape, flat = np.array([alpha(0), alpha(40), alpha(200), alpha(255)]), np.array([0, 255])
    reading = decide(raw(shape, flat))
    assert reading.final(shape).tolist() == [0, 0, 255, 255]
    assert reading.final(flat).tolist() == [0, 255]
    red = np.array([alpha(0, code(RED)), alpha(255, code(RED))])
    two = decide(raw(red, np.array([alpha(0, code(GREEN))])))
    assert [masks.value(int(c)) for c in two.final(red)] == [BLACK, RED]


def test_a_black_shape_in_the_alpha_does_not_count_beside_other_masks():
    reading = decide(raw(np.array([alpha(0, 0), alpha(255, 0)]), np.array([0, 255])))
    assert reading.final(np.array([alpha(0, 0), alpha(255, 0)])).tolist() == [0, 0]
    assert "alpha channel" in reading.notes[0]


def test_too_many_values_are_kept_together_but_for_named_ones_and_the_most_frequent():
    many = {0: 10_000, 70_000: 1, **{1000 + i: 500 - i for i in range(400)}}
    reading = decide(census(many), named=[70_000])
    assert len(reading.kept) == KEPT
    assert seen(reading, 0, 1000, 70_000) == [0, 1000, 70_000]
    assert reading.final(np.array([1399, NO_DATA])).tolist() == [OTHERS, NO_DATA]


def smoothed(low, high, n=20, blends=40, third=None, ramps=0.8):
    """The census of two ends with blends between, and perhaps a third value of its own."""
    between = np.linspace(low + 1, high - 1, blends).astype(int)
    numbers = np.unique([low, high, *between, *([third] if third else [])])
    ends = np.isin(numbers, [low, high])
    counts = np.where(ends, 50 * n, n // 10 + 1) + np.where(numbers == third, 5 * n, 0)
    ramp = np.where(ends | (numbers == third), 0, ramps * counts).astype(int)
    return Census(numbers, counts, np.where(ends, counts - 5, 0), ramp, [numbers])


@pytest.mark.parametrize(("low", "high", "ends"), [(0, 255, (0, 255)), (2, 253, (0, 255)), (0, 128, (0, 128))])
def test_two_ends_with_blends_between_are_cut_in_the_middle(low, high, ends):
    found = smoothed(low, high)
    assert two_ends(found) == ends
    reading = decide(found)
    middle = sum(ends) / 2
    assert reading.final(found.codes).tolist() == [ends[int(value >= middle)] for value in found.codes]
    assert "cut at" in reading.notes[0]


def test_masks_with_two_ends_are_not_cut_where_that_is_not_wanted():
    found = smoothed(0, 255)
    reading = decide(found, cut=False)
    assert reading.final(found.codes).tolist() == found.codes.tolist()
    assert reading.middle == 128


def test_what_lies_between_no_neighbours_is_not_cut():
    assert two_ends(smoothed(0, 255, ramps=0.1)) is None


def test_a_third_value_between_two_ends_is_kept_apart_by_its_name_and_refused_without():
    found = smoothed(0, 255, third=128)
    assert decide(found).final(np.array([0, 128, 255])).tolist() == [0, 128, 255]
    reading = decide(found, named=[128, 255])
    assert reading.final(np.array([0, 20, 70, 128, 180, 200, 255])).tolist() == [0, 0, 128, 128, 128, 255, 255]
    assert "nearest of 0, 128, 255" in reading.notes[0]


@pytest.mark.parametrize(
    "values",
    [
        {0: 900, 1: 50, 255: 50},
        {0: 700, **{i: 10 for i in range(1, 21)}, 255: 60},  # classes beside a void border
        {0: 900, **{i: 3 for i in range(1, 255)}},  # numbered objects
        {0: 400, 128: 300, 255: 300},
        {0: 900, 20: 90, **{i: 1 for i in range(1, 20)}},
        {i: 10 for i in range(0, 250, 10)},
    ],
)
@pytest.mark.parametrize("areas", [True, False])
def test_labels_are_never_cut(values, areas):
    codes, counts = np.array(list(values)), np.array(list(values.values()))
    assert two_ends(Census(codes, counts, counts // 2 if areas else counts * 0, counts * 0, [codes])) is None


def test_blends_are_the_nearer_of_the_two_they_lie_between_and_other_colours_stay():
    solid = {BLACK: 5000, RED: 1000, GREEN: 800}
    way = {(int(255 * t), 0, 0): 4 for t in np.linspace(0.02, 0.98, 20)}
    way |= {(int(255 * (1 - t)), int(200 * t), 0): 4 for t in np.linspace(0.02, 0.98, 20)}
    rare = {(0, 0, 255): 150}
    values = solid | way | rare
    codes = np.array(sorted(map(code, values)))
    counts = np.array([next(n for value, n in values.items() if code(value) == c) for c in codes])
    flat = np.array([counts[i] if masks.value(int(c)) in solid else 0 for i, c in enumerate(codes)])
    ramp = np.array([counts[i] if masks.value(int(c)) in way else 0 for i, c in enumerate(codes)])
    reading = decide(Census(codes, counts, flat, ramp, [codes]))
    assert seen(reading, *solid, *rare) == [*solid, *rare]
    for color, found in zip(way, seen(reading, *way), strict=True):
        distances = {end: np.linalg.norm(np.subtract(color, end)) for end in solid}
        assert distances[found] <= min(distances[end] for end in solid if end != BLACK or color[1] == 0) + 1e-9
    # A line one or two pixels wide has no areas, but it lies between no neighbours.
    thin = code((128, 0, 0))
    codes, counts = np.append(codes, thin), np.append(counts, 90)
    flat, ramp = np.append(flat, 0), np.append(ramp, 0)
    for named in ([], [thin]):
        assert seen(decide(Census(codes, counts, flat, ramp, [codes]), named), (128, 0, 0)) == [(128, 0, 0)]


def test_a_few_colours_without_areas_are_no_blends():
    values = {BLACK: 500, RED: 90, **{(20 * i, 0, 0): 3 for i in range(1, 12)}}
    codes = np.array(sorted(map(code, values)))
    flat = np.where(np.isin(codes, [code(BLACK), code(RED)]), 80, 0)
    reading = decide(Census(codes, np.full(len(codes), 90), flat, flat * 0 + 90, [codes]))
    assert seen(reading, *values) == list(values)
