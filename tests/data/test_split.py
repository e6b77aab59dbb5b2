"""Shares, stability and the guarantees of the split."""

from pathlib import Path

import numpy as np
import pytest

from segsweep.data.datasets import Sample
from segsweep.data.split import apart, assign, group, place
from segsweep.errors import ConfigError, DataError

TWO, THREE = (0.8, 0.2), (0.6, 0.2, 0.2)


def made(keys, split=None):
    return [Sample(str(key), Path("images") / f"{key}.png", Path("masks") / f"{key}.png", split) for key in keys]


def part_of_key(samples, shares=TWO, seed=0):
    return {samples[i].key: part for part, indices in assign(samples, shares, seed).items() for i in indices}


@pytest.mark.parametrize("shares", [TWO, THREE])
@pytest.mark.parametrize("n", [3, 4, 10, 200])
def test_every_image_is_in_exactly_one_part_and_every_part_has_one(shares, n):
    for seed in range(30):
        parts = assign(made(range(n)), shares, seed)
        assert list(parts) == ["train", "val", "test"][: len(shares)]
        assert sorted(i for indices in parts.values() for i in indices) == list(range(n))
        assert all(parts.values())


@pytest.mark.parametrize("shares", [TWO, THREE, (0.5, 0.5), (0.98, 0.01, 0.01)])
def test_parts_of_many_images_have_about_their_shares(shares):
    parts = assign(made(range(2000)), shares)
    assert np.allclose([len(indices) / 2000 for indices in parts.values()], shares, atol=0.03)


@pytest.mark.parametrize("n", [100, 1000])
def test_an_image_keeps_its_part_when_others_are_added(n):
    few, many = part_of_key(made(range(n))), part_of_key(made(range(-n, 2 * n)))
    assert few.items() <= many.items()


@pytest.mark.parametrize("n", [3, 5, 300])
def test_the_order_of_the_images_does_not_matter(n):
    rng = np.random.default_rng(0)
    for seed in range(10):
        expected = part_of_key(made(range(n)), THREE, seed)
        assert part_of_key(made(rng.permutation(n)), THREE, seed) == expected


def test_indices_come_in_the_order_of_the_samples():
    for indices in assign(made(range(300)), THREE).values():
        assert indices == sorted(indices)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    samples = made(range(200))
    assert assign(samples, TWO, 3) == assign(samples, TWO, 3)
    assert assign(samples, TWO, 3) != assign(samples, TWO, 4)


def test_places_depend_on_the_key_and_the_seed_and_lie_evenly_in_the_unit_interval():
    places = np.array([place(str(i)) for i in range(2000)])
    assert (places >= 0).all()
    assert (places < 1).all()
    assert len(set(places)) == 2000
    assert np.allclose(np.sort(places), np.arange(2000) / 2000, atol=0.05)
    assert place("7", 0) != place("7", 1)


def test_a_given_split_is_kept():
    samples = made(range(4), "test") + made(range(4, 10), "train") + made(range(10, 12), "val")
    expected = {"train": list(range(4, 10)), "val": [10, 11], "test": list(range(4))}
    for shares in (TWO, THREE):
        assert assign(samples, shares) == expected


def test_a_given_split_without_test_has_none():
    parts = assign(made(range(4), "train") + made(range(4, 6), "val"), THREE)
    assert parts == {"train": [0, 1, 2, 3], "val": [4, 5]}


@pytest.mark.parametrize(("shares", "of_train"), [(TWO, 0.2), (THREE, 0.25)])
def test_val_is_hashed_out_of_train_when_only_train_is_given(shares, of_train):
    parts = assign(made(range(2000), "train"), shares)
    assert list(parts) == ["train", "val"]
    assert sorted(parts["train"] + parts["val"]) == list(range(2000))
    assert abs(len(parts["val"]) / 2000 - of_train) < 0.03


def test_val_is_hashed_out_of_train_and_the_given_test_is_left_alone():
    samples = made(range(50), "test") + made(range(50, 250), "train")
    parts = assign(samples, THREE)
    assert list(parts) == ["train", "val", "test"]
    assert parts["test"] == list(range(50))
    assert sorted(parts["train"] + parts["val"]) == list(range(50, 250))


def test_val_out_of_a_given_train_is_stable_too():
    few = part_of_key(made(range(100), "train"))
    many = part_of_key(made(range(200), "train") + made([f"t{i}" for i in range(20)], "test"))
    assert few.items() <= many.items()


@pytest.mark.parametrize(("n", "shares", "split"), [(1, TWO, None), (2, THREE, None), (1, TWO, "train")])
def test_fewer_images_than_parts_are_refused(n, shares, split):
    with pytest.raises(DataError, match=rf"{n} images? cannot be split into train and val"):
        assign(made(range(n), split), shares)


def test_one_image_for_each_part_is_enough():
    for seed in range(30):
        assert {len(indices) for indices in assign(made(range(3)), THREE, seed).values()} == {1}


def grouped(groups, each=3, **more):
    return [
        Sample(f"{name}_{i}", Path(f"{name}_{i}.png"), Path(f"{name}_{i}.png"), **more)
        for name in groups
        for i in range(each)
    ]


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.5, 0.3, 0.2)])
@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_ever_apart(shares, seed):
    samples = grouped([f"clip{n}" for n in range(20)])
    parts = assign(samples, shares, seed, pattern=r"^(.*)_")
    assert apart(parts, group(samples, r"^(.*)_")) == {}
    assert sorted(i for part in parts.values() for i in part) == list(range(60))
    assert all(parts[part] for part in ("train", "val", "test")[: len(shares)])


def test_a_group_stays_where_it_is_when_others_come():
    few, many = (grouped([f"clip{n}" for n in range(count)]) for count in (40, 80))
    before, after = (assign(samples, pattern="clip[0-9]+") for samples in (few, many))
    placed = {many[i].key: part for part, indices in after.items() for i in indices}
    assert all(placed[few[i].key] == part for part, indices in before.items() for i in indices)


def test_every_image_is_validated_on_in_exactly_one_fold():
    samples = grouped([f"clip{n}" for n in range(11)])
    seen = []
    for fold in range(5):
        parts = assign(samples, pattern="clip[0-9]+", folds=5, fold=fold)
        assert apart(parts, group(samples, "clip[0-9]+")) == {}
        assert not set(parts["train"]) & set(parts["val"])
        assert len(parts["train"]) + len(parts["val"]) == 33
        seen += parts["val"]
    assert sorted(seen) == list(range(33))


def test_folds_are_of_about_equal_size():
    samples = grouped([f"{n}" for n in range(50)], each=1)
    assert {len(assign(samples, folds=5, fold=fold)["val"]) for fold in range(5)} == {10}


def test_folds_leave_a_given_test_split_alone():
    samples = grouped("abcdef", split="train") + grouped("gh", split="val") + grouped("xyz", split="test")
    for fold in range(3):
        assert assign(samples, folds=3, fold=fold)["test"] == list(range(24, 33))


def test_a_group_that_came_with_the_sample_wins():
    samples = [Sample(str(i), Path("a"), Path("b"), group="left" if i < 5 else "right") for i in range(10)]
    parts = assign(samples)
    assert sorted(map(len, parts.values())) == [5, 5]


def test_fewer_groups_than_parts_is_an_error_that_counts_them():
    with pytest.raises(DataError, match="30 images in 1 group cannot"):
        assign(grouped(["clip"], each=30), pattern="clip")
    with pytest.raises(DataError, match="cannot be split into 7 folds"):
        assign(grouped("abc"), pattern="[abc]", folds=7)


def test_a_pattern_that_is_none_or_finds_nothing_is_refused():
    with pytest.raises(ConfigError, match="not a regular expression"):
        group(grouped("ab"), "(")
    with pytest.raises(DataError, match="no group in 6 of 6"):
        group(grouped("ab"), "z+")


def test_a_given_split_that_pulls_groups_apart_is_found_out():
    samples = grouped("ab", split="train") + grouped("bc", split="val")
    assert apart(assign(samples), group(samples, "^[a-z]")) == {"b": ["train", "val"]}
