"""Shares, stability and the guarantees of the split."""

from pathlib import Path

import numpy as np
import pytest

from segsweep.data.datasets import Sample
from segsweep.data.split import assign, place
from segsweep.errors import DataError

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
