"""What mask values mean."""

import numpy as np
import pytest

from segsweep.data.labels import VOID, labels
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


@pytest.mark.parametrize("counts", [{0: 1, 2: 1}, {0: 1, 1: 1, 3: 1, 255: 1}, {0: 1, 128: 1}, {1: 1, 2: 1}])
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


def test_a_class_value_that_is_void_does_not_count():
    assert meaning(labels({0: 1, 1: 1, 2: 1}, ["a", "b", "c"], ignore_index=0)) == {1: 1, 2: 2}


def test_values_beyond_the_classes_are_refused_with_what_to_type():
    with pytest.raises(DataError) as refused:
        labels({0: 1, 1: 1, 2: 1, 7: 1}, ["a", "b"])
    message = str(refused.value)
    for said in ("2, 7 is none of the 2 data.classes", "0 to 1", "data.ignore_index=255"):
        assert said in message


def test_255_is_beyond_the_classes_when_another_value_is_void():
    with pytest.raises(DataError, match="255 is none of"):
        labels({0: 1, 1: 1, 255: 1}, ["a", "b"], ignore_index=9)


@pytest.mark.parametrize("counts", [{0: 10}, {0: 10, 1: 0}, {}])
def test_masks_without_foreground_are_refused(counts):
    with pytest.raises(DataError, match="every mask is empty"):
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
