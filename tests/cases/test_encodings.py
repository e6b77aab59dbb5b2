"""Sets in random encodings, formats and layouts: the mask that training sees is the one that was drawn.

120 sets by default; `SEGSWEEP_SETS=500 pytest tests/cases/test_encodings.py` draws 500. `generator.drawn(folder, seed)`
writes one of them again.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from generator import ENCODINGS, LAYOUTS, LOSSY, DataSet, drawn
from scenes import shown

from segsweep.config.schema import DataConfig
from segsweep.data.dataset import Dataset, open_dataset
from segsweep.data.labels import VOID
from segsweep.errors import ConfigError, first_line

SETS = int(os.environ.get("SEGSWEEP_SETS", "120"))
NEVER_REFUSED = ("index", "0 and 255", "colours", "palettes", "1-bit", "MinIsWhite", "16-bit ids")
AGREED, OFF = 0.99, 0.005  # of lossy sets: pixels that are right, and the share of a class may be off


@dataclass(frozen=True)
class Outcome:
    """What became of a set."""

    encoding: str
    refused: str = ""
    wrong: str = ""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@cache
def outcome(place: Path, seed: int) -> Outcome:
    """Draw a set, open it with the words that belong to it, and compare."""
    folder = place / str(seed)
    data = drawn(folder, seed)
    try:
        dataset = open_dataset(DataConfig(**data.words), workers=2)
    except ConfigError as error:
        return Outcome(data.encoding, refused=f"seed {seed}: {data}: {first_line(error)} ...")
    finally:
        shutil.rmtree(folder)
    wrong = "; ".join(_differences(data, dataset))
    return Outcome(data.encoding, wrong=wrong and f"seed {seed}: {data}: {wrong}")


def _differences(data: DataSet, dataset: Dataset) -> Iterator[str]:
    if dataset.labels.names != data.names:
        yield f"classes {dataset.labels.names}, not {data.names}"
    found = {s.mask: dataset.labels.table[dataset.store.mask(i).numpy()] for i, s in enumerate(dataset.samples)}
    if found.keys() != {path.resolve() for path in data.right}:
        yield f"masks {sorted(found)}"
        return
    pairs = [(found[path.resolve()], right) for path, right in data.right.items()]
    equal = np.mean(np.concatenate([(classes == right).ravel() for classes, right in pairs]))
    if equal < (1 if data.exact else AGREED):
        yield f"{1 - equal:.2%} of the pixels differ"
    for index in (*range(len(data.names)), VOID):
        is_, was = (np.mean(np.concatenate([(pair[i] == index).ravel() for pair in pairs])) for i in (0, 1))
        if abs(is_ - was) > (0 if data.exact else OFF):
            yield f"class {index} on {is_:.2%}, drawn {was:.2%}"


def seeds(encoding: str) -> list[int]:
    return [seed for seed in range(SETS) if tuple(ENCODINGS)[seed % len(ENCODINGS)] == encoding]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_mask_that_training_sees_is_the_one_that_was_drawn(place, encoding):
    wrong = [told for seed in seeds(encoding) if (told := outcome(place, seed).wrong)]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(seeds(encoding))} sets:", *wrong])


@pytest.mark.parametrize("encoding", NEVER_REFUSED)
def test_what_has_one_meaning_is_never_refused(place, encoding):
    refused = [told for seed in seeds(encoding) if (told := outcome(place, seed).refused)]
    assert not refused, "\n".join([f"{len(refused)} of {len(seeds(encoding))} sets:", *refused])


def test_one_set_in_twenty_may_be_refused(place):
    refused = [told for seed in range(SETS) if (told := outcome(place, seed).refused)]
    assert len(refused) <= 0.05 * SETS, "\n".join([f"{len(refused)} of {SETS} sets:", *refused])


# The generator itself


def test_a_seed_draws_the_same_set(tmp_path):
    for seed in range(len(ENCODINGS)):
        one, other = drawn(tmp_path / "one" / str(seed), seed), drawn(tmp_path / "other" / str(seed), seed)
        for (path, right), (twin, same) in zip(one.right.items(), other.right.items(), strict=True):
            assert np.array_equal(right, same)
            assert path.read_bytes() == twin.read_bytes()


def test_sets_differ_in_all_that_they_may(tmp_path):
    sets = [drawn(tmp_path / str(seed), seed) for seed in range(5 * len(ENCODINGS))]
    assert {data.encoding for data in sets} == set(ENCODINGS)
    assert {data.layout for data in sets} == set(LAYOUTS)
    assert {path.suffix for data in sets for path in data.right} == {".png", ".tif", ".bmp", ".gif", ".jpg"}
    assert {len(data.names) for data in sets} == {2, 3, 4, 5}
    assert {len(data.right) for data in sets} == {4, 5, 6, 7, 8}
    assert {"classes", "binarize", "threshold"} <= {word for data in sets for word in data.words}


def by_hand(data: DataSet, pixels: np.ndarray) -> np.ndarray:
    """Read what a viewer shows with the words that are typed, as a person would: none of the product's rules."""
    if data.encoding == "alpha":
        pixels = pixels[..., -1]
    elif pixels.ndim == 3:
        pixels = pixels[..., :3] // (257 if pixels.max() > 255 else 1)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    classes = data.words.get("classes")
    if classes is None or (isinstance(classes, list) and len(classes) == 2):
        found = (pixels != 0).any(2).astype(np.int64)
    else:
        found = np.zeros(pixels.shape[:2], np.int64)
        for name, value in classes.items() if isinstance(classes, dict) else zip(classes, range(9), strict=False):
            found[(pixels == value).all(2)] = data.names.index(name)
    if data.encoding == "index":
        found[(pixels == VOID).all(2)] = VOID
    found[np.isnan(pixels).any(2)] = VOID
    return found


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name not in LOSSY])
def test_what_was_drawn_is_what_a_person_reads(tmp_path, encoding):
    for seed in seeds(encoding)[:10]:
        data = drawn(tmp_path / str(seed), seed)
        for path, right in data.right.items():
            assert np.array_equal(by_hand(data, shown(path)), right), f"seed {seed}: {data}: {path}"


@pytest.mark.parametrize("encoding", LOSSY)
def test_what_is_lost_leaves_the_mask_in_sight(tmp_path, encoding):
    """Cut in the middle by hand, or taken to the nearest colour, a lossy set is within what it may differ."""
    for seed in seeds(encoding)[:8]:
        data = drawn(tmp_path / str(seed), seed)
        for path, right in data.right.items():
            pixels = shown(path)
            grey = pixels if pixels.ndim == 2 else pixels[..., 0] if (pixels == pixels[..., :1]).all() else None
            if grey is not None:
                assert np.mean((grey >= 128) == right) >= AGREED
