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
    return Census(all_codes, np.array(counts), np.array(counts), arrays)


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
    ids=["swapped", "another colour", "another number"],
)
def test_palettes_that_differ_are_read_by_colour(other):
    reading = decide(census({Entry(0, BLACK): 9, Entry(1, RED): 1}, other))
    assert reading.by == "colour"
    assert seen(reading, *other) == [entry.color for entry in other]
    assert "another colour from file to file" in reading.notes[0]


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
    return Census(codes, counts, counts, [np.unique(file) for file in files])


def test_the_alpha_counts_where_nothing_else_differs():
    reading = decide(raw(np.array([alpha(0), alpha(255)]), np.array([alpha(0)])))
    assert reading.alpha
    assert reading.final(np.array([alpha(0), alpha(255)])).tolist() == [0, 255]


def test_the_alpha_does_not_count_where_it_or_something_else_varies_not_or_does():
    for others in (np.array([0, 255]), np.array([7])):
        reading = decide(raw(np.array([alpha(0, 7), alpha(255, 7)]), others))
        assert reading.final(np.array([alpha(0, 7), alpha(255, 7)])).tolist() == [7, 7]
    assert not decide(raw(np.array([alpha(255)]), np.array([alpha(255)]))).alpha


def test_too_many_values_are_kept_together_but_for_named_ones_and_the_most_frequent():
    many = {0: 10_000, 70_000: 1, **{1000 + i: 500 - i for i in range(400)}}
    reading = decide(census(many), named=[70_000])
    assert len(reading.kept) == KEPT
    assert seen(reading, 0, 1000, 70_000) == [0, 1000, 70_000]
    assert reading.final(np.array([1399, NO_DATA])).tolist() == [OTHERS, NO_DATA]


def smoothed(low, high, n=20, blends=40):
    """Numbers, counts and flat counts of two ends with blends between."""
    between = np.linspace(low + 1, high - 1, blends).astype(int)
    numbers = np.unique([low, high, *between])
    counts = np.where(np.isin(numbers, [low, high]), 50 * n, n // 10 + 1)
    return numbers, counts, np.where(np.isin(numbers, [low, high]), counts - 5, 0)


@pytest.mark.parametrize(("low", "high", "ends"), [(0, 255, (0, 255)), (2, 253, (0, 255)), (0, 128, (0, 128))])
def test_two_ends_with_blends_between_are_cut_in_the_middle(low, high, ends):
    codes, counts, flat = smoothed(low, high)
    assert two_ends(codes, counts, flat) == ends
    reading = decide(Census(codes, counts, flat, [codes]))
    middle = sum(ends) / 2
    assert reading.final(codes).tolist() == [ends[int(value >= middle)] for value in codes]
    assert "cut at" in reading.notes[0]


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
    assert two_ends(codes, counts, counts // 2 if areas else counts * 0) is None


def test_blends_are_the_nearer_of_the_two_they_lie_between_and_other_colours_stay():
    solid = {BLACK: 5000, RED: 1000, GREEN: 800}
    way = {(int(255 * t), 0, 0): 4 for t in np.linspace(0.02, 0.98, 20)}
    way |= {(int(255 * (1 - t)), int(200 * t), 0): 4 for t in np.linspace(0.02, 0.98, 20)}
    rare = {(0, 0, 255): 150}
    values = solid | way | rare
    codes = np.array(sorted(map(code, values)))
    counts = np.array([next(n for value, n in values.items() if code(value) == c) for c in codes])
    flat = np.array([counts[i] if masks.value(int(c)) in solid else 0 for i, c in enumerate(codes)])
    reading = decide(Census(codes, counts, flat, [codes]))
    assert seen(reading, *solid, *rare) == [*solid, *rare]
    for color, found in zip(way, seen(reading, *way), strict=True):
        distances = {end: np.linalg.norm(np.subtract(color, end)) for end in solid}
        assert distances[found] <= min(distances[end] for end in solid if end != BLACK or color[1] == 0) + 1e-9
    # A thin class is never flat: its name keeps it.
    thin = {(128, 0, 0): 90}
    codes, counts, flat = np.append(codes, code((128, 0, 0))), np.append(counts, 90), np.append(flat, 0)
    reading = decide(Census(codes, counts, flat, [codes]), named=[code((128, 0, 0))])
    assert seen(reading, *thin) == [*thin]


def test_a_few_colours_without_areas_are_no_blends():
    values = {BLACK: 500, RED: 90, **{(20 * i, 0, 0): 3 for i in range(1, 12)}}
    codes = np.array(sorted(map(code, values)))
    flat = np.where(np.isin(codes, [code(BLACK), code(RED)]), 80, 0)
    reading = decide(Census(codes, np.full(len(codes), 90), flat, [codes]))
    assert seen(reading, *values) == list(values)
