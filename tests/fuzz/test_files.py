"""Damaged files: of a run, a sweep and the cache some bytes are changed, cut off or zeroed; then commands are run."""

import os
import random
import shutil
import sys
from collections import Counter

import pytest
from conftest import TINY, write_pairs

import train
from segsweep.commands import app
from segsweep.process import DEBUG
from segsweep.runs.locks import LOCK

pytestmark = pytest.mark.fuzz

SEED = int(os.environ.get("SEGSWEEP_FUZZ_SEED", random.SystemRandom().randrange(2**32)))
CODES = {0, 2, 3, 4, 5, 6, 7}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An outputs folder with a run and a sweep of one trial, with one repeat; and the images."""
    place = tmp_path_factory.mktemp("made")
    root = write_pairs(place)(8, ("train", "val", "test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_OUTPUTS", str(place / "outputs"))
        typed = [*TINY, "data=folder", f"data.root={root}", "data.size=[32,32]", "train.batch_size=4", "train.epochs=2"]
        assert train.main([*typed, f"hydra.run.dir={place / 'outputs' / 'run'}"]) == 0
        search = [
            "-m",
            "hydra/sweeper=optuna",
            "optim.lr=1e-3,1e-2",
            "hydra.sweeper.n_trials=1",
            "hydra.sweeper.repeats=1",
        ]
        assert (
            train.main([*typed, *search, "optim.lr=1e-3,1e-2", f"hydra.sweep.dir={place / 'outputs' / 'sweep'}"]) == 0
        )
    return place


def damage(path, rng):
    """Change a file; return what was done."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "zero", "empty", "noise"])
    if kind == "flip":
        for _ in range(rng.randint(1, 20)):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[rng.randrange(len(content) + 1) :]
    elif kind == "zero" and content:
        start = rng.randrange(len(content))
        end = min(len(content), start + rng.randint(1, 4096))
        content[start:end] = bytes(end - start)
    elif kind == "empty":
        content.clear()
    elif kind == "noise":
        content[:] = rng.randbytes(len(content))
    path.write_bytes(content)
    return kind


def test_no_damaged_file_is_more_than_a_line(made, tmp_path, monkeypatch, capsys, in_time):
    monkeypatch.delenv(DEBUG)
    rng, tries, found = random.Random(SEED), Counter(), []
    while in_time():
        outputs = tmp_path / f"{sum(tries.values())}"  # another each time: MLflow keeps databases open
        shutil.copytree(made / "outputs", outputs)
        monkeypatch.setenv("SEGSWEEP_OUTPUTS", str(outputs))
        files = sorted(path for path in outputs.rglob("*") if path.is_file() and path.name != LOCK)
        name = rng.choice(sorted({path.suffix or path.name for path in files}))
        path = rng.choice([path for path in files if name == (path.suffix or path.name)])
        kind = damage(path, rng)
        tries[path.suffix or path.name] += 1
        run, sweep, image = outputs / "run", outputs / "sweep", str(made / "data" / "images" / "test" / "test000.png")
        commands = [
            ["compare", str(outputs)],
            ["compare", str(run), str(sweep / "0")],
            ["report", str(sweep)],
            ["predict", str(run), image, "-o", str(tmp_path / "masks")],
            ["predict", "best", image, "-o", str(tmp_path / "masks")],
            ["predict", str(sweep), image, "-o", str(tmp_path / "masks")],
            ["evaluate", str(run)],
            ["sync", str(outputs)],
            ["train", f"resume={run}", "train.epochs=3"],
            ["train", f"resume={sweep / '0'}"],
        ]
        for words in commands:
            code = app.main(words)
            said = capsys.readouterr().err
            refused = CODES | {1} if words[0] == "sync" else CODES  # 1: not everything was sent
            if code not in refused or "Traceback" in said:
                found.append(f"{kind} in {path}: {words}: code {code}: {said[-800:]}")
                print(f"\nwrong: {found[-1]}", file=sys.__stderr__, flush=True)  # whoever stops a long run has it
        shutil.rmtree(outputs)
    print(f"{sum(tries.values())} files damaged: {dict(tries)}")
    assert not found, "\n".join([f"SEGSWEEP_FUZZ_SEED={SEED}", *found])
