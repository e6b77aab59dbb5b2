"""What mask values mean."""

import numpy as np
import pytest

from segsweep.data.labels import VOID, Hints, labels
from segsweep.errors import ConfigError, DataError


def meaning(found):
    """Class of each value that is one."""
    return {value: int(index) for value, index in enumerate(found.table) if index != VOID}


def test_zero_and_one_are_background_and_foreground():
    assert meaning(labels({0: 90, 1: 10})) == {0: 0, 1: 1}


def test_zero_and_255_are_background_and_foreground():
    assert meaning(labels({0: 90, 255: 10})) == {0: 0, 255: 1}


def test_255_beside_zero_and_one_is_void():
    assert meaning(labels({0: 90, 1: 10, 255: 5})) == {0: 0, 1: 1}


@pytest.mark.parametrize("counts", [{1: 10}, {255: 10}])
def test_masks_may_be_all_foreground(counts):
    assert 1 in meaning(labels(counts)).values()


@pytest.mark.parametrize("ignored", [2, 7, 128, 254])
def test_another_void_value_can_be_said_beside_zero_and_one(ignored):
    assert meaning(labels({0: 90, 1: 10, ignored: 5}, ignore_index=ignored)) == {0: 0, 1: 1}


def test_another_void_value_can_be_said_beside_zero_and_255():
    assert meaning(labels({0: 90, 255: 10, 128: 5}, ignore_index=128)) == {0: 0, 255: 1}


@pytest.mark.parametrize("ignored", [0, 1])
def test_a_value_said_to_be_void_is_no_class_without_classes_either(ignored):
    try:
        found = labels({0: 90, 1: 10}, ignore_index=ignored)
    except DataError:
        return
    assert ignored not in meaning(found)


def test_values_without_a_pixel_are_not_there():
    assert meaning(labels({0: 90, 1: 10, 2: 0})) == {0: 0, 1: 1}


def test_a_binary_task_has_one_logit_and_names():
    found = labels({0: 90, 1: 10})
    assert found.names == ("background", "foreground")
    assert found.logits == 1


def test_the_table_has_an_entry_for_each_of_256_values():
    for found in (labels({0: 1, 1: 1}), labels({0: 1, 1: 1}, ["a", "b", "c"])):
        assert found.table.shape == (256,)
        assert found.table.dtype == np.uint8


def test_three_values_without_classes_are_refused_naming_the_values_and_the_key():
    with pytest.raises(DataError) as refused:
        labels({0: 50, 1: 25, 2: 25})
    message = str(refused.value)
    for said in ("0 (50 %)", "1 (25 %)", "2 (25 %)", "data.classes=[c0,c1,c2]", "data.ignore_index"):
        assert said in message


@pytest.mark.parametrize("counts", [{0: 1, 2: 1, 3: 1}, {0: 1, 1: 1, 3: 1, 255: 1}, {1: 1, 2: 1}, {0: 1, 7: 1, 255: 1}])
def test_values_that_are_not_binary_need_classes(counts):
    with pytest.raises(DataError, match=r"data\.classes"):
        labels(counts)


def test_many_values_are_cut_short_in_the_message():
    with pytest.raises(DataError) as refused:
        labels(dict.fromkeys(range(200), 1))
    assert "200 in all" in str(refused.value)
    assert len(str(refused.value)) < 600


def test_classes_take_the_values_from_zero():
    found = labels({0: 1, 1: 1, 2: 1, 255: 1}, ["sky", "sea", "land"])
    assert found.names == ("sky", "sea", "land")
    assert found.logits == 3
    assert meaning(found) == {0: 0, 1: 1, 2: 2}


def test_a_class_may_be_absent():
    assert meaning(labels({0: 1, 2: 1}, ["sky", "sea", "land"])) == {0: 0, 1: 1, 2: 2}


def test_two_classes_are_a_binary_task_with_names():
    found = labels({0: 1, 1: 1}, ["ground", "cell"])
    assert found.logits == 1
    assert found.names == ("ground", "cell")


def test_classes_with_another_void_value():
    assert meaning(labels({0: 1, 1: 1, 2: 1, 9: 1}, ["a", "b", "c"], ignore_index=9)) == {0: 0, 1: 1, 2: 2}


def test_a_class_value_that_is_void_is_refused_with_a_line_that_works():
    counts = {0: 1, 1: 1, 2: 1}
    with pytest.raises(ConfigError, match=r"'data\.classes=\{b:1,c:2\}' data\.ignore_index=0"):
        labels(counts, ["a", "b", "c"], ignore_index=0)
    assert meaning(labels(counts, {"b": 1, "c": 2}, ignore_index=0)) == {1: 0, 2: 1}
    with pytest.raises(ConfigError, match="2 is also a value of the class c"):
        labels(counts, {"b": 1, "c": 2}, ignore_index=2)


def test_values_beyond_the_classes_are_refused_with_what_to_type():
    with pytest.raises(DataError) as refused:
        labels({0: 1, 1: 1, 2: 1, 7: 1}, ["a", "b"])
    message = str(refused.value)
    for said in (
        "2, 7 is none of the 2 data.classes",
        "0 to 1",
        "'data.classes={background:0,c1:1,c2:2,c3:7}'",
    ):
        assert said in message


def test_255_is_beyond_the_classes_when_another_value_is_void():
    with pytest.raises(DataError, match="255 is none of"):
        labels({0: 1, 1: 1, 255: 1}, ["a", "b"], ignore_index=9)


@pytest.mark.parametrize("counts", [{0: 10}, {0: 10, 1: 0}, {}])
def test_masks_without_foreground_are_refused(counts):
    with pytest.raises(DataError, match="all pixels of all masks are background"):
        labels(counts)


SCENE = {"sky": 0, "road": 3, "car": 8}
SEEN = {0: 50, 3: 30, 8: 15, 11: 5}


def test_a_source_knows_its_classes():
    found = labels(SEEN, ignore_index=11, known=SCENE)
    assert found.names == ("sky", "road", "car")
    assert meaning(found) == {0: 0, 3: 1, 8: 2}


def test_one_known_class_is_a_binary_task_against_the_rest():
    found = labels(SEEN, ["car"], 11, SCENE)
    assert found.names == ("background", "car")
    assert found.logits == 1
    assert meaning(found) == {0: 0, 3: 0, 8: 1}


def test_some_known_classes_leave_a_background():
    found = labels(SEEN, ["car", "road"], 11, SCENE)
    assert found.names == ("background", "car", "road")
    assert meaning(found) == {0: 0, 8: 1, 3: 2}


def test_values_may_be_merged():
    found = labels({0: 1, 1: 1, 2: 1, 3: 1}, {"ground": [0, 1], "thing": [2, 3]})
    assert found.names == ("ground", "thing")
    assert meaning(found) == {0: 0, 1: 0, 2: 1, 3: 1}


def test_one_value_by_name_is_a_binary_task_even_if_it_is_all_there_is():
    assert labels({7: 10}, {"cell": 7}).names == ("background", "cell")


def test_a_class_that_the_source_does_not_have_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match="Closest: car"):
        labels(SEEN, ["caar"], 11, SCENE)


def test_one_name_without_a_value_is_refused_with_the_line_to_type():
    with pytest.raises(ConfigError, match=r"data\.classes=\{cell:1\}"):
        labels({0: 1, 1: 1}, ["cell"])


@pytest.mark.parametrize("foreground", range(1, 256))
def test_one_value_beside_zero_is_the_foreground_whatever_it_is(foreground):
    assert meaning(labels({0: 90, foreground: 10})) == {0: 0, foreground: 1}
    assert meaning(labels({foreground: 10})) == {0: 0, foreground: 1}


@pytest.mark.parametrize("foreground", [1, 7, 128])
def test_a_void_value_said_beside_any_foreground_does_not_count(foreground):
    assert meaning(labels({0: 90, foreground: 10, 255: 5}, ignore_index=255)) == {0: 0, foreground: 1}


RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
COLOURS = [BLACK, BLUE, GREEN, RED, WHITE]


def by_value(found, values):
    """Class of each value that is one."""
    return {value: int(index) for value, index in zip(values, found.table, strict=False) if index != VOID}


def in_store(*present, values=COLOURS):
    """Counts and values as a store of coloured masks has them."""
    return {"counts": {values.index(value): 10 for value in present}, "values": values}


@pytest.mark.parametrize("other", [RED, WHITE])
def test_black_and_one_other_colour_are_background_and_foreground(other):
    found = labels(**in_store(BLACK, other))
    assert found.names == ("background", "foreground")
    assert by_value(found, COLOURS) == {BLACK: 0, other: 1}


def test_a_colour_that_does_not_count_leaves_black_and_one_other():
    found = labels(**in_store(BLACK, RED, WHITE), ignore_index=list(WHITE))
    assert by_value(found, COLOURS) == {BLACK: 0, RED: 1}


def test_classes_by_colour_in_their_order_and_the_rest_is_background():
    found = labels(**in_store(*COLOURS), classes={"car": list(RED), "tree": list(GREEN)})
    assert found.names == ("background", "car", "tree")
    assert by_value(found, COLOURS) == {BLACK: 0, BLUE: 0, WHITE: 0, RED: 1, GREEN: 2}


def test_classes_for_all_colours_leave_no_background():
    given = {"a": list(RED), "b": list(BLACK)}
    found = labels(**in_store(BLACK, RED), classes=given)
    assert found.names == ("a", "b")
    assert by_value(found, COLOURS) == {RED: 0, BLACK: 1}


def test_colours_may_be_merged_and_one_not_count():
    given = {"ground": [list(BLACK), list(GREEN)], "thing": [list(RED), list(BLUE)]}
    found = labels(**in_store(*COLOURS), classes=given, ignore_index=list(WHITE))
    assert found.names == ("ground", "thing")
    assert by_value(found, COLOURS) == {BLACK: 0, GREEN: 0, RED: 1, BLUE: 1}


def test_three_numbers_are_three_values_to_merge_where_masks_are_no_colours():
    found = labels({0: 5, 1: 5, 2: 5, 3: 5}, {"thing": [1, 2, 3]})
    assert meaning(found) == {0: 0, 1: 1, 2: 1, 3: 1}


def test_several_colours_without_classes_are_refused_with_the_line_to_type_by_frequency():
    with pytest.raises(DataError) as refused:
        labels({0: 60, 1: 10, 3: 30}, values=COLOURS)
    message = str(refused.value)
    for said in ("[0,0,0] (60 %)", "[255,0,0] (30 %)", "background:[0,0,0],c1:[255,0,0],c2:[0,0,255]", "binarize=true"):
        assert said in message
    assert "[0,255,0]" not in message


def test_names_without_colours_are_refused_with_the_line_to_type():
    with pytest.raises(DataError) as refused:
        labels({0: 60, 3: 35, 4: 5}, ["sky", "car"], values=COLOURS)
    assert "'data.classes={sky:[0,0,0],car:[255,0,0]}' and so on" in str(refused.value)
    found = labels({0: 60, 3: 40}, ["sky", "car"], values=COLOURS)
    assert by_value(found, COLOURS) == {BLACK: 0, RED: 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [({"a": [1, 2], "b": [2, 3]}, "2 is given to a and to b"), ({"a": 1, "b": 1}, "1 is given to a and to b")],
)
def test_a_value_given_twice_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        labels({0: 1, 1: 1, 2: 1}, given)


def test_a_colour_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"\[255,0,0\] is given to a and to b"):
        labels(**in_store(BLACK, RED), classes={"a": list(RED), "b": list(RED)})


def test_classes_that_no_mask_has_are_refused_with_what_they_have():
    with pytest.raises(DataError, match=r"no mask holds 5, 6; they hold 0 \(50 %\), 1 \(50 %\)"):
        labels({0: 1, 1: 1}, {"a": 5, "b": 6})
    with pytest.raises(DataError, match=r"no mask holds \[0,255,0\]"):
        labels(**in_store(BLACK, RED), classes={"a": list(GREEN)})


def test_values_beyond_a_byte_have_classes_as_others():
    values = [0, 300, 65535]
    found = labels({0: 10, 1: 5, 2: 5}, {"cell": 300}, ignore_index=65535, values=values)
    assert by_value(found, values) == {0: 0, 300: 1}


def test_the_mask_with_a_value_beyond_the_classes_is_named_by_where():
    asked = []

    def where(stored):
        asked.append(stored)
        return " (masks/b.png)"

    with pytest.raises(DataError, match=r"7 is none of the 3 data\.classes.*\(masks/b\.png\)"):
        labels({0: 1, 1: 1, 2: 1, 7: 1}, ["a", "b", "c"], where=where)
    with pytest.raises(DataError, match=r"\(masks/b\.png\)"):
        labels({0: 1, 1: 1, 2: 1}, ["a", "b"], values=[0, 1, 300], where=where)
    assert asked == [7, 2]


@pytest.mark.parametrize("values", [None, [BLACK, RED]])
def test_the_table_is_void_wherever_no_value_is(values):
    found = labels({0: 5, 1: 5}, values=values)
    assert found.table.shape == (256,)
    assert (found.table[2:] == VOID).all()


def test_smoothed_masks_are_told_to_be_cut():
    with pytest.raises(DataError, match=r"as in JPEG masks.*data\.threshold=128"):
        smoothed = {0: 500, 255: 400, **dict.fromkeys(range(1, 9), 1), **dict.fromkeys(range(247, 255), 1)}
        labels(smoothed, hints=Hints(middle=128))


def test_what_is_left_over_counts_as_background_also_where_a_class_is_called_so():
    found = labels({0: 10, 1: 10, 2: 10}, {"background": 0, "cell": 2})
    assert found.names == ("background", "cell")
    assert meaning(found) == {0: 0, 1: 0, 2: 1}


@pytest.mark.parametrize(("classes", "originals"), [({"car": 8}, (0, 8)), ({"car": 8, "sky": 0}, (1, 8, 0))])
def test_black_stands_for_background_however_many_pixels_other_values_of_it_have(classes, originals):
    assert labels({0: 20, 1: 50, 8: 10}, classes).originals == originals


def test_a_class_called_background_is_the_first_so_that_the_other_is_scored():
    found = labels({0: 90, 255: 10}, {"cell": 255, "background": 0})
    assert found.names == ("background", "cell")
    assert meaning(found) == {0: 0, 255: 1}


def test_classes_by_index_that_end_with_background_are_scored_by_the_other():
    found = labels({0: 10, 1: 90}, ["cell", "background"])
    assert found.names == ("background", "cell")
    assert meaning(found) == {0: 1, 1: 0}


def test_of_several_classes_background_comes_first_and_the_others_stay():
    found = labels({0: 1, 1: 1, 2: 1}, ["a", "b", "background"])
    assert found.names == ("background", "a", "b")
    assert found.originals == (2, 0, 1)


@pytest.mark.parametrize("classes", [["void", "road", "car"], {"matrix": 0, "void": 1, "grain": 2}])
def test_no_class_is_called_as_ignored_pixels_are(classes):
    with pytest.raises(
        ConfigError, match=r"leave it out and type data\.ignore_index=VALUE; to learn it, give it another"
    ):
        labels({0: 1, 1: 1, 2: 1}, classes)


def test_a_void_colour_where_masks_have_none_is_refused_or_does_nothing():
    try:
        found = labels({0: 90, 1: 10}, ignore_index=[1, 2, 3])
    except ConfigError as refused:
        assert "data.ignore_index" in str(refused)
        assert "all pixels of all masks are background" not in str(refused)
        return
    assert meaning(found) == {0: 0, 1: 1}


@pytest.mark.parametrize("seed", range(50))
def test_any_naming_gives_each_value_the_class_that_names_it(seed):
    rng = np.random.default_rng(seed)
    values = rng.choice(255, rng.integers(3, 12), replace=False).tolist()
    sets = np.array_split(rng.permutation(values), rng.integers(2, len(values)))
    given = {f"c{i}": group.tolist() for i, group in enumerate(sets[: rng.integers(1, len(sets) + 1)])}
    left = [value for value in values if value not in np.concatenate(sets[: len(given)])]
    void = int(rng.choice([255, *left[:1]]))
    found = labels(dict.fromkeys(values, 1), given, ignore_index=void)
    named = {value: name for name, group in given.items() for value in group}
    rest = [value for value in values if value not in named and value != void]
    assert (found.names[0] == "background") == bool(rest or len(given) == 1)
    for value in range(256):
        expected = VOID
        if value != void and value in named:
            expected = found.names.index(named[value])
        elif value in rest:
            expected = 0
        assert found.table[value] == expected


def test_a_stray_value_is_told_with_a_mask_that_holds_it():
    with pytest.raises(DataError, match=r"The rarest is 7 \(m7\.png\)\.$"):
        labels({0: 90, 1: 9, 7: 1}, where=lambda stored: f" (m{stored}.png)")
