"""Command lines: every key with values of every kind, and words in any company, to the first step of a training.

`make fuzz MINUTES=60`. The seed of what failed is printed; `SEGSWEEP_FUZZ_SEED` repeats it.
"""

import os
import random
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import TINY
from hydra._internal.hydra import Hydra
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import train
from segsweep.compose import GROUPS, KEYS
from segsweep.config.sweeper import PREFIX
from segsweep.errors import Asked
from segsweep.process import DEBUG
from segsweep.runs import journal

pytestmark = pytest.mark.fuzz

HERE = Path(__file__).parent

SEED = int(os.environ.get("SEGSWEEP_FUZZ_SEED", random.SystemRandom().randrange(2**32)))
TRIES = 25  # of a key at a time
CODES = {0, 2, 3, 4, 5, 6, 7}
# They say where files lie: anywhere. What they say is tried by tests of their own.
ELSEWHERE = ("hydra.run.dir", "hydra.sweep.dir", f"{PREFIX}storage", f"{PREFIX}dry", "tracking.uri")
SEARCH = ["-m", "hydra/sweeper=optuna", "optim.lr=1e-3,1e-2"]
SEARCHES = re.compile("hydra|sweeps|defaults")
HUGE = [10**6, 10**12, -(10**12), 2**63, 10**30]
NUMBERS = st.one_of(st.integers(-3, 9), st.sampled_from(HUGE), st.floats(-2, 2))
ODD = [*(HERE / "values.txt").read_text().split(), "", "a b", "\udcfc", "\x00", "\x1b[2J", "x" * 300]
ATOMS = st.one_of(NUMBERS.map(str), st.sampled_from(ODD), st.text(max_size=8).map(lambda text: text.replace("\n", " ")))
VALUES = st.one_of(
    ATOMS,
    st.lists(ATOMS, max_size=4).map(lambda items: f"[{','.join(items)}]"),
    st.dictionaries(ATOMS, ATOMS, max_size=3).map(lambda d: "{" + ",".join(f"{k}:{v}" for k, v in d.items()) + "}"),
)
TRIED = [name for name in KEYS if name not in ELSEWHERE]
NAMES = st.one_of(
    st.sampled_from(TRIED),
    st.sampled_from(GROUPS),
    st.sampled_from(["hydra", "hydra.job.name", "hydra.verbose", "hydra/launcher", "hydra.searchpath", "x", "data."]),
    st.text("abc./_-", min_size=1, max_size=9),
)
FLAGS = (HERE / "flags.txt").read_text().split()
WORDS = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), NAMES, VALUES), st.sampled_from(FLAGS)
)


@pytest.fixture
def started(pairs, tmp_path, outputs, monkeypatch, capsys):
    """Runs a command line up to the first step; what is wrong with how it ended, or nothing."""

    def one_step(state, step, batches, validate, train_config, *_, **__):
        epoch = batches.epoch(1)  # by name: it has to live while a batch is made
        step(state, next(epoch), train_config.grad_accum)
        raise Asked

    monkeypatch.delenv(DEBUG)
    monkeypatch.setattr("segsweep.training.run.fit", one_step)
    monkeypatch.setattr("segsweep.sweeping.run.run", lambda plan: [])  # what a sweep is begun with is checked before
    monkeypatch.chdir(tmp_path)
    # Hydra composes everything once more to learn this. Words without these cannot change it.
    whole = Hydra.get_mode

    def mode(hydra, config_name, overrides):
        return whole(hydra, config_name, overrides) if any(map(SEARCHES.search, overrides)) else None

    monkeypatch.setattr(Hydra, "get_mode", mode)
    root = pairs()
    base = [*TINY, "data=folder", f"data.root={root}", "data.size=[32,32]", "train.batch_size=4", "train.epochs=1"]
    base += ["tracking=none"]

    def run(words):
        try:
            code = train.main([*base, *words])
        except SystemExit as left:  # of Hydra's own flags
            code = left.code if isinstance(left.code, int) else 2
        said = capsys.readouterr().err
        if code not in CODES or "Traceback" in said:
            return f"{words}: code {code}: {said[-600:]}"
        tops = [path for path in outputs.iterdir() if path.name != "cache"] if outputs.exists() else []
        made = [path for top in tops for path in (top, *top.rglob("*")) if path.is_dir()]
        kept = all(any(journal.exists(place) for place in (path, *path.parents)) for path in made)
        for top in tops:  # the next command line finds nothing of this one
            shutil.rmtree(top) if top.is_dir() else top.unlink()
        return "" if not code or kept else f"{words}: code {code}, and left {sorted(map(str, made))}"

    return run


def fuzzed(strategy, started, found, number):
    """Try a strategy's words; count them, and keep what was wrong."""

    @seed(number)
    @settings(max_examples=TRIES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def tried(words):
        found["tries"] += 1
        if wrong := started(words):
            found[f"wrong: {wrong}"] += 1
            print(f"\nwrong: {wrong}", file=sys.__stderr__, flush=True)  # whoever stops a long run has it

    tried()


def report(found):
    """Say how much was tried; fail with all that was wrong."""
    wrong = [name for name in found if name.startswith("wrong: ")]
    print(f"{found['tries']} command lines, {len(found) - 1 - len(wrong)} keys, {len(wrong)} wrong")
    assert not wrong, "\n".join([f"SEGSWEEP_FUZZ_SEED={SEED}", *wrong])


def test_a_value_of_any_kind_for_any_key(started, in_time):
    found, rounds = Counter(), 0
    while in_time():
        order = random.Random(SEED + rounds).sample(TRIED, len(TRIED))
        for i, name in enumerate(order):
            if not in_time():
                break
            beside = SEARCH if name.startswith(PREFIX) else []
            words = VALUES.map(lambda value, name=name, beside=beside: [*beside, f"{name}={value}"])
            fuzzed(words, started, found, SEED + 1000 * rounds + i)
            found[name] += TRIES
        rounds += 1
    report(found)


def test_words_in_any_company(started, in_time):
    found, rounds = Counter(), 0
    while in_time():
        fuzzed(st.lists(WORDS, min_size=1, max_size=4), started, found, SEED + rounds)
        rounds += 1
    report(found)
