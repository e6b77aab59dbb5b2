"""Shares, stability and the guarantees of the split."""

from pathlib import Path

import numpy as np
import pytest

from segsweep.data.source import Sample
from segsweep.data.split import SPLIT, apart, assign, fold_of, group, joined, place, read_split, stratified
from segsweep.errors import ConfigError, DataError

TWO, THREE = (0.8, 0.2), (0.6, 0.2, 0.2)


def made(keys, split=None):
    return [Sample(str(key), Path("images") / f"{key}.png", Path("masks") / f"{key}.png", split) for key in keys]


def parted(samples, shares=TWO, seed=0, pattern=None, folds=None, fold=0):
    """The parts as a run makes them, but for images that are copies."""
    groups = group(samples, pattern)
    return assign(samples, groups, shares, seed, fold_of(samples, groups, folds, seed) if folds else None, fold)


def part_of_key(samples, shares=TWO, seed=0, pattern=None):
    parts = parted(samples, shares, seed, pattern)
    return {samples[i].key: part for part, indices in parts.items() for i in indices}


@pytest.mark.parametrize("shares", [TWO, THREE])
@pytest.mark.parametrize("n", [3, 4, 10, 200])
def test_every_image_is_in_exactly_one_part_and_every_part_has_one(shares, n):
    for seed in range(30):
        parts = parted(made(range(n)), shares, seed)
        assert list(parts) == ["train", "val", "test"][: len(shares)]
        assert sorted(i for indices in parts.values() for i in indices) == list(range(n))
        assert all(parts.values())


@pytest.mark.parametrize("shares", [TWO, THREE, (0.5, 0.5), (0.98, 0.01, 0.01)])
def test_parts_of_many_images_have_about_their_shares(shares):
    parts = parted(made(range(2000)), shares)
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
    for indices in parted(made(range(300)), THREE).values():
        assert indices == sorted(indices)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    samples = made(range(200))
    assert parted(samples, TWO, 3) == parted(samples, TWO, 3)
    assert parted(samples, TWO, 3) != parted(samples, TWO, 4)


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
        assert parted(samples, shares) == expected


def test_a_given_split_without_test_has_none():
    parts = parted(made(range(4), "train") + made(range(4, 6), "val"), THREE)
    assert parts == {"train": [0, 1, 2, 3], "val": [4, 5]}


@pytest.mark.parametrize(("shares", "of_train"), [(TWO, 0.2), (THREE, 0.25)])
def test_val_is_hashed_out_of_train_when_only_train_is_given(shares, of_train):
    parts = parted(made(range(2000), "train"), shares)
    assert list(parts) == ["train", "val"]
    assert sorted(parts["train"] + parts["val"]) == list(range(2000))
    assert abs(len(parts["val"]) / 2000 - of_train) < 0.03


def test_val_is_hashed_out_of_train_and_the_given_test_is_left_alone():
    samples = made(range(50), "test") + made(range(50, 250), "train")
    parts = parted(samples, THREE)
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
        parted(made(range(n), split), shares)


def test_one_image_for_each_part_is_enough():
    for seed in range(30):
        assert {len(indices) for indices in parted(made(range(3)), THREE, seed).values()} == {1}


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
    parts = parted(samples, shares, seed, pattern=r"^(.*)_")
    assert apart(parts, group(samples, r"^(.*)_")) == {}
    assert sorted(i for part in parts.values() for i in part) == list(range(60))
    assert all(parts[part] for part in ("train", "val", "test")[: len(shares)])


def test_a_group_stays_where_it_is_when_others_come():
    few, many = (grouped([f"clip{n}" for n in range(count)]) for count in (40, 80))
    before, after = (parted(samples, pattern="clip[0-9]+") for samples in (few, many))
    placed = {many[i].key: part for part, indices in after.items() for i in indices}
    assert all(placed[few[i].key] == part for part, indices in before.items() for i in indices)


def test_every_image_is_validated_on_in_exactly_one_fold():
    samples = grouped([f"clip{n}" for n in range(11)])
    seen = []
    for fold in range(5):
        parts = parted(samples, pattern="clip[0-9]+", folds=5, fold=fold)
        assert apart(parts, group(samples, "clip[0-9]+")) == {}
        assert not set(parts["train"]) & set(parts["val"])
        assert len(parts["train"]) + len(parts["val"]) == 33
        seen += parts["val"]
    assert sorted(seen) == list(range(33))


def test_folds_are_of_about_equal_size():
    samples = grouped([f"{n}" for n in range(50)], each=1)
    assert {len(parted(samples, folds=5, fold=fold)["val"]) for fold in range(5)} == {10}


def test_folds_leave_a_given_test_split_alone():
    samples = grouped("abcdef", split="train") + grouped("gh", split="val") + grouped("xyz", split="test")
    for fold in range(3):
        assert parted(samples, folds=3, fold=fold)["test"] == list(range(24, 33))


def test_a_group_that_came_with_the_sample_wins():
    samples = [Sample(str(i), Path("a"), Path("b"), group="left" if i < 5 else "right") for i in range(10)]
    parts = parted(samples)
    assert sorted(map(len, parts.values())) == [5, 5]


def test_fewer_groups_than_parts_is_an_error_that_counts_them():
    with pytest.raises(DataError, match="30 images in 1 group cannot"):
        parted(grouped(["clip"], each=30), pattern="clip")
    with pytest.raises(DataError, match="cannot be split into 7 folds"):
        parted(grouped("abc"), pattern="[abc]", folds=7)


def test_a_pattern_that_is_none_or_finds_nothing_is_refused():
    with pytest.raises(ConfigError, match="not a regular expression"):
        group(grouped("ab"), "(")
    with pytest.raises(DataError, match="no group in 6 of 6"):
        group(grouped("ab"), "z+")


def test_a_given_split_that_pulls_groups_apart_is_found_out():
    samples = grouped("ab", split="train") + grouped("bc", split="val")
    assert apart(parted(samples), group(samples, "^[a-z]")) == {"b": ["train", "val"]}


def test_a_group_is_what_the_first_parenthesis_finds_or_else_the_match_or_else_the_key():
    samples = made(["p1/s1_a", "p1/s2_b"])
    assert group(samples) == ["p1/s1_a", "p1/s2_b"]
    assert group(samples, "s[0-9]") == ["s1", "s2"]
    assert group(samples, "(p[0-9])/(s[0-9])") == ["p1", "p1"]


def test_only_samples_without_a_group_need_one_from_the_pattern():
    samples = [Sample("x", Path("x"), Path("x"), group="mine"), *made(["clip1_a"])]
    assert group(samples, "clip[0-9]") == ["mine", "clip1"]


def drawn(seed):
    """A random data set: keys, groups of uneven size and pixels, some of which are copies."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(8, 80))
    groups = [f"g{g}" for g in rng.integers(0, rng.integers(6, n + 1), n)]
    contents = [f"c{c}" for c in rng.integers(0, rng.integers(n // 2, 20 * n), n)]
    return rng, made(f"{name}_{i}" for i, name in enumerate(groups)), groups, contents


def components(groups, contents):
    """Sets of samples connected by group or content, by flooding: the slow way."""
    left, found = set(range(len(groups))), []
    while left:
        reached, edge = set(), {min(left)}
        while edge:
            reached |= edge
            names, pixels = {groups[i] for i in reached}, {contents[i] for i in reached}
            edge = {i for i in left - reached if groups[i] in names or contents[i] in pixels}
        found.append(reached)
        left -= reached
    return found


def by_name(names):
    return {frozenset(i for i, other in enumerate(names) if other == name) for name in names}


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_joined_groups_are_those_connected_by_group_or_copies(first):
    for seed in range(first, first + 100):
        _, _, groups, contents = drawn(seed)
        found = joined(groups, contents)
        assert by_name(found) == {frozenset(part) for part in components(groups, contents)}
        assert all(min(groups[i] for i in part) == found[min(part)] for part in components(groups, contents))


def test_joined_groups_do_not_depend_on_the_order():
    for seed in range(50):
        rng, _, groups, contents = drawn(seed)
        order = rng.permutation(len(groups))
        turned = joined([groups[i] for i in order], [contents[i] for i in order])
        assert turned == [joined(groups, contents)[i] for i in order]


def test_groups_without_copies_are_left_as_they_are():
    for seed in range(20):
        _, _, groups, _ = drawn(seed)
        assert joined(groups, [str(i) for i in range(len(groups))]) == groups


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_in_any_split_no_group_and_no_copy_is_apart_and_every_part_has_some(first):
    for seed in range(first, first + 100):
        rng, samples, groups, contents = drawn(seed)
        together = joined(groups, contents)
        shares = [TWO, THREE, (0.9, 0.05, 0.05)][rng.integers(3)]
        if len(set(together)) < len(shares):
            with pytest.raises(DataError, match="cannot be split"):
                assign(samples, together, shares, seed)
            continue
        parts = assign(samples, together, shares, seed)
        assert apart(parts, groups) == apart(parts, contents) == {}
        assert sorted(i for part in parts.values() for i in part) == list(range(len(samples)))
        assert list(parts) == ["train", "val", "test"][: len(shares)]
        assert all(parts.values())
        assert all(part == sorted(part) for part in parts.values())


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_where_they_are_when_any_others_come(seed):
    rng = np.random.default_rng(seed)
    names = [f"g{g}" for g in rng.integers(0, 60, 200)]
    few = made(f"{name}_{i}" for i, name in enumerate(names))
    more = made([*(f"{name}_{200 + i}" for i, name in enumerate(names)), *(f"h{i % 40}_{i}" for i in range(100))])
    mixed = [(few + more)[i] for i in rng.permutation(len(few) + len(more))]
    before, after = (part_of_key(samples, THREE, seed, "^[gh][0-9]+") for samples in (few, mixed))
    assert before.items() <= after.items()


def test_a_copy_with_a_later_name_moves_nothing():
    for seed in range(50):
        samples = made(f"a{i:03d}" for i in range(100))
        contents = [f"c{i}" for i in range(100)]
        before = assign(samples, joined([s.key for s in samples], contents), TWO, seed)
        more = [*samples, *made(["z"])]
        after = assign(more, joined([s.key for s in more], [*contents, "c7"]), TWO, seed)
        assert {part: [i for i in indices if i < 100] for part, indices in after.items()} == before
        assert any({7, 100} <= set(indices) for indices in after.values())


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("shares", [TWO, THREE, (0.98, 0.01, 0.01), (0.01, 0.98, 0.01)])
def test_tiny_sets_have_a_group_for_each_part_and_move_as_few_as_need_be(n, shares):
    if n < len(shares):
        return
    names = ["train", "val", "test"][: len(shares)]
    for seed in range(40):
        parts = parted(made(range(n)), shares, seed)
        assert all(parts[name] for name in names)
        placed = [place(str(i), seed) for i in range(n)]
        hashed = np.searchsorted(np.cumsum(shares)[:-1], placed, side="right")
        moved = sum(i not in parts[names[part]] for i, part in enumerate(hashed))
        assert moved <= len(shares) - len(set(hashed))


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_folds_part_the_images_within_the_greedy_bound_and_pull_no_group_apart(first):
    for seed in range(first, first + 100):
        rng, samples, groups, contents = drawn(seed)
        together = joined(groups, contents)
        folds = int(rng.integers(2, 7))
        if len(set(together)) < folds:
            with pytest.raises(DataError, match="cannot be split"):
                fold_of(samples, together, folds, seed)
            continue
        found = fold_of(samples, together, folds, seed)
        assert set(found) == set(range(folds))
        assert all(len({found[i] for i in part}) == 1 for part in by_name(together))
        sizes = np.bincount(found, minlength=folds)
        assert sizes.max() - sizes.min() <= max(map(len, by_name(together)))
        validated = [assign(samples, together, TWO, seed, found, fold) for fold in range(folds)]
        assert sorted(i for parts in validated for i in parts["val"]) == list(range(len(samples)))
        for parts in validated:
            assert sorted(parts["train"] + parts["val"]) == list(range(len(samples)))
            assert apart(parts, groups) == apart(parts, contents) == {}


def test_folds_depend_on_the_seed_and_not_on_the_order():
    samples = made(range(60))
    groups = group(samples)
    assert fold_of(samples, groups, 5, 1) == fold_of(samples, groups, 5, 1) != fold_of(samples, groups, 5, 2)
    turned = samples[::-1]
    assert fold_of(turned, groups[::-1], 5, 1) == fold_of(samples, groups, 5, 1)[::-1]


def test_given_folds_are_kept_and_a_given_test_split_has_none():
    given = [Sample(str(i), Path("a"), Path("b"), "test" if i > 7 else None, fold=i % 2) for i in range(10)]
    found = fold_of(given, group(given), 2)
    assert found == [0, 1, 0, 1, 0, 1, 0, 1, None, None]
    assert assign(given, group(given), TWO, 0, found, 1) == {"train": [0, 2, 4, 6], "val": [1, 3, 5, 7], "test": [8, 9]}


@pytest.mark.parametrize(("fold", "said"), [(3, "no image is in"), (-1, "no image is in")])
def test_a_fold_without_images_is_refused(fold, said):
    samples = made(range(9))
    with pytest.raises(DataError, match=rf"data\.fold={fold}: {said} that fold"):
        parted(samples, folds=3, fold=fold)


def test_a_fold_that_has_all_images_is_refused():
    with pytest.raises(DataError, match=r"no image is outside that fold"):
        assign(made(range(4)), list("abcd"), folds=[0, 0, 0, 0], fold=0)


@pytest.mark.parametrize("given", [("test",), ("val", "test"), ("val",)])
def test_a_given_split_without_train_is_refused(given):
    samples = [sample for part in given for sample in made([f"{part}{i}" for i in range(3)], part)]
    with pytest.raises(DataError, match="train"):
        parted(samples)


def test_names_that_are_no_utf_8_have_a_place():
    assert 0 <= place(b"Z\xfcrich".decode("utf-8", "surrogateescape")) < 1


@pytest.mark.parametrize("name", ["", " ", "two\nlines", 'say "hi"', "Zürich", "細胞", "a" * 5000])
def test_any_name_has_a_place(name):
    assert 0 <= place(name) < 1
    assert place(name) == place(name)


def skewed(seed, images=120, groups=120, classes=3):
    """Samples, their groups and pixels: half of the images have some of a class, a few of them most of it."""
    rng = np.random.default_rng(seed)
    there = rng.random((images, classes - 1)) < 0.5
    pixels = np.minimum(rng.lognormal(6, 1.5, there.shape), 20_000).astype(np.int64) * there
    pixels = np.column_stack([65_536 - pixels.sum(1), pixels])
    return made(range(images)), [f"g{g}" for g in rng.integers(0, groups, images)], pixels


def farthest(parts, pixels, shares):
    """How far a part is from its share of some class's pixels, at most."""
    found = [pixels[indices].sum(0) / pixels.sum(0) for indices in parts.values()]
    return np.abs(np.array(found) - np.array(shares)[:, None]).max()


@pytest.mark.parametrize("seed", range(10))
def test_a_stratified_split_has_its_shares_of_every_class_where_the_hash_has_not(seed):
    samples, groups, pixels = skewed(seed)
    parts = assign(samples, groups, THREE, seed, pixels=pixels)
    assert farthest(parts, pixels, THREE) < 0.03
    assert np.allclose([len(indices) / 120 for indices in parts.values()], THREE, atol=0.03)
    assert apart(parts, groups) == {}
    assert sorted(i for part in parts.values() for i in part) == list(range(120))
    hashed = [farthest(assign(samples, groups, THREE, s), pixels, THREE) for s in range(10)]
    assert np.median(hashed) > 0.08


@pytest.mark.parametrize("seed", range(20))
def test_each_stratified_group_goes_where_chi_squared_becomes_least_and_the_last_ones_to_empty_parts(seed):
    """Against the formula, summed anew for every group and part."""
    _, groups, pixels = skewed(seed, images=40, groups=4 + seed)
    shares = np.array(THREE)
    held = np.column_stack([pixels, np.ones(len(groups))]) / [*pixels.sum(0), len(groups)]
    found = stratified(groups, pixels, THREE, seed)
    assert found.keys() == set(groups)
    parts = np.zeros((3, held.shape[1]))
    used = set()
    for left, (name, part) in zip(range(len(found), 0, -1), found.items(), strict=True):
        own = held[[group == name for group in groups]].sum(0)
        missed = []
        for other in range(3):
            there = parts + own * (np.arange(3) == other)[:, None]
            missed.append((((there - shares[:, None]) ** 2).sum(1) / shares).sum())
        empty = {0, 1, 2} - used
        allowed = empty if len(empty) == left else {0, 1, 2}
        assert part in allowed
        assert missed[part] == pytest.approx(min(missed[other] for other in allowed))
        parts[part] += own
        used.add(part)
    assert used == {0, 1, 2}


def test_stratified_groups_stay_together_and_few_large_ones_are_shared_out_as_well_as_they_can_be():
    for seed in range(20):
        samples, groups, pixels = skewed(seed, groups=12)
        parts = assign(samples, groups, THREE, seed, pixels=pixels)
        assert apart(parts, groups) == {}
        assert list(parts) == ["train", "val", "test"] and all(parts.values())
    # By hand: two groups hold all of the class, so one part has none of it.
    pixels = np.array([[50, 50], [50, 50], *[[100, 0]] * 8])
    parts = assign(made(range(10)), [str(i) for i in range(10)], (0.5, 0.5), pixels=pixels)
    assert [len({0, 1} & set(indices)) for indices in parts.values()] == [1, 1]
    assert [len(indices) for indices in parts.values()] == [5, 5]


def test_a_stratified_split_depends_on_the_seed_and_not_on_the_order():
    samples, groups, pixels = skewed(0)
    found = assign(samples, groups, THREE, 1, pixels=pixels)
    assert found == assign(samples, groups, THREE, 1, pixels=pixels) != assign(samples, groups, THREE, 2, pixels=pixels)
    turned = assign(samples[::-1], groups[::-1], THREE, 1, pixels=pixels[::-1])
    assert {part: sorted(119 - i for i in indices) for part, indices in turned.items()} == found


@pytest.mark.parametrize("n", range(2, 9))
def test_tiny_stratified_sets_have_a_group_for_each_part(n):
    for shares in (TWO, THREE, (0.98, 0.01, 0.01), (0.01, 0.98, 0.01)):
        pixels = np.column_stack([np.full(n, 100), np.arange(n) == 0, np.zeros(n)]).astype(
            np.int64
        )  # a class is absent
        if n >= len(shares):
            parts = assign(made(range(n)), [str(i) for i in range(n)], shares, pixels=pixels)
            assert all(parts.values()) and len(parts) == len(shares)
        else:
            with pytest.raises(DataError, match="cannot be split"):
                assign(made(range(n)), [str(i) for i in range(n)], shares, pixels=pixels)


@pytest.mark.parametrize("seed", range(5))
def test_stratified_folds_have_equal_shares_and_leave_a_given_test_split_alone(seed):
    samples, groups, pixels = skewed(seed, groups=1000)
    given = [Sample(s.key, s.image, s.mask, "test" if i < 20 else "train") for i, s in enumerate(samples)]
    folds = fold_of(given, groups, 4, seed, pixels)
    assert folds[:20] == [None] * 20
    of = {str(fold): [i for i, other in enumerate(folds) if other == fold] for fold in range(4)}
    trained = np.where(np.arange(120)[:, None] < 20, 0, pixels)
    assert farthest(of, trained, [0.25] * 4) < 0.06
    assert apart(of, groups) == {}


def test_a_given_split_is_not_stratified_but_where_it_lacks_val_or_is_cut_into_folds():
    samples, groups, pixels = skewed(0)
    train = [Sample(s.key, s.image, s.mask, "train") for s in samples]
    parts = assign(train, groups, (0.75, 0.25), pixels=pixels)
    assert farthest(parts, pixels, (0.75, 0.25)) < 0.03
    split = [*train[:100], *(Sample(s.key, s.image, s.mask, "val") for s in samples[100:])]
    with pytest.raises(ConfigError, match=r"their own split, so there is nothing to stratify\. Drop it, or add"):
        assign(split, groups, pixels=pixels)
    assert set(fold_of(split, groups, 3, pixels=pixels)) == {0, 1, 2}
    folds = [Sample(s.key, s.image, s.mask, fold=i % 2) for i, s in enumerate(samples)]
    with pytest.raises(ConfigError, match=r"their own folds, so there is nothing to stratify\. Drop it\."):
        fold_of(folds, groups, 2, pixels=pixels)


@pytest.mark.parametrize("content", [b"\x87\xff", b"key,split\na,train\n", b"key,split,image,mask\na,train\n"])
def test_a_damaged_record_of_the_split_is_one_line(tmp_path, content):
    (tmp_path / SPLIT).write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        read_split(tmp_path)
