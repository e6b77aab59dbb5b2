"""Benchmarks are run by hand, so tests see that they still begin."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segsweep.catalog import RATES as RATES_OF_KINDS

FOLDER = Path(__file__).parents[1] / "benchmarks"
RATES = {"tf_efficientnet_lite0": (1e-3, 3e-3, 9e-3), "vit_small_patch14_dinov2": (1e-4, 4e-4)}


@pytest.fixture
def sweep(benchmark):
    """benchmarks/sweep.py."""
    return benchmark("sweep")


@pytest.fixture
def bench(sweep, tmp_path):
    """A data set of SegSweep-Bench: the second rate of each encoder is its best, and known with three seeds."""
    path, rows = tmp_path / "bench.jsonl", []
    for encoder, rates in RATES.items():
        for i, lr in enumerate(rates):
            top = 0.8 - 0.1 * abs(i - 1) - 0.05 * (encoder != "tf_efficientnet_lite0")
            for more in (0.0, 0.004, -0.004)[: 3 if i == 1 else 1]:
                iou = [top * share + more for share in (0.5, 0.8, 0.9, 1.0)]
                rows.append(
                    {"group": "g", "encoder": encoder, "lr": f"{lr:g}", "iou": iou, "seconds": [2.0] * 4, "cpu": "A"}
                )
    path.write_text("\n".join(map(json.dumps, rows)))
    return sweep.Bench(path, "g", 0)


def test_no_benchmark_hides_a_module_of_python():
    """Their folder is the first on the path of each that is run."""
    assert not {path.stem for path in FOLDER.glob("*.py")} & sys.stdlib_module_names


def test_a_recorded_world_lies_between_what_was_recorded(bench):
    lite = RATES["tf_efficientnet_lite0"]
    assert bench.final("tf_efficientnet_lite0", lite[1]) == pytest.approx(0.8)
    assert bench.final("tf_efficientnet_lite0", (lite[0] * lite[1]) ** 0.5) == pytest.approx(0.75)
    assert bench.final("tf_efficientnet_lite0", 1.0) == pytest.approx(0.7)
    found = {bench.curve("tf_efficientnet_lite0", lite[1], trial)[-1] for trial in range(50)}
    # Two of three seeds lie 0.004 beside the mean; of three the differences are too small by the root of 2/3.
    assert min(found) == pytest.approx(0.8 - 0.004 * 1.5**0.5)
    assert max(found) == pytest.approx(0.8 + 0.004 * 1.5**0.5)


def test_who_does_not_know_kinds_searches_the_ranges_of_all(sweep):
    kinds = RATES_OF_KINDS.values()
    assert (sweep.Bench.low, sweep.Bench.high) == (min(kind.low for kind in kinds), max(kind.high for kind in kinds))


def test_seconds_of_another_processor_are_brought_to_those_of_the_usual_one(sweep, tmp_path):
    def row(encoder: str, lr: str, cpu: str, seconds: float) -> str:
        curve = {"iou": [0.5, 0.6], "seconds": [seconds] * 2, "startup": seconds}
        return json.dumps({"group": "g", "encoder": encoder, "lr": lr, "cpu": cpu, **curve})

    path = tmp_path / "bench.jsonl"
    of_both = [row("lite0", "1e-3", "A", 2.0), row("lite0", "2e-3", "A", 2.0), row("lite0", "1e-3", "B", 3.0)]
    path.write_text("\n".join([*of_both, row("vgg16", "1e-3", "B", 6.0)]))
    world = sweep.Bench(path, "g", 0)
    assert world.seconds("lite0") == pytest.approx(2.0)
    assert world.seconds("vgg16") == world.startup("vgg16") == pytest.approx(4.0)
    path.write_text("\n".join([*of_both[:2], row("vgg16", "1e-3", "B", 6.0)]))
    assert "weights that B has in common with the others" in sweep.Bench(path, "g", 0).unfinished


def test_every_rival_is_replayed_on_recorded_curves(sweep, bench):
    rows = [
        sweep.ours(bench, 0, 6, 2, "curves"),
        sweep.plain_optuna(bench, 0, 6, 2),
        sweep.plain_optuna(bench, 0, 6, 2, seeded=True),
    ]
    assert bench.budget(6, 2) == 6 / 2 * 4 * 2.0
    assert [len(row["events"]) for row in rows[1:]] == [6, 6]
    assert rows[0]["epochs"] > 20  # the same time, and what is pruned makes room for more
    for row in (rows[0], rows[2]):  # the default rate of the better encoder is tried first, and is near its best
        assert sweep.reached(row, bench) == 8.0
    seconds, share = sweep.oracle(bench)
    assert seconds == 8.0
    assert 0 < share < 0.5
    line = sweep.summary("ours", rows[:1], rows[1:2], lambda seed: bench, 6, 2)
    assert line.startswith("| ours | ")
    late = {**rows[0], "events": [(99.0, "vit_small_patch14_dinov2", 1e-4)]}
    assert sweep.summary("late", [late], rows[1:2], lambda seed: bench, 6, 2).startswith("| late | 0.00 ")


def test_the_recorded_curves_load_as_their_document_says():
    root = FOLDER.parent
    code = "\n".join(re.findall(r"```python\n(.*?)```", (root / "docs" / "bench.md").read_text(), re.DOTALL))
    assert "read_json" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "tf_efficientnet_lite0" in done.stdout
    rows = map(json.loads, (FOLDER / "raw" / "bench.jsonl").read_text().splitlines())
    told = set(
        re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", (root / "docs" / "bench.md").read_text(), re.M)))
    )
    assert told - {"startup"} == set().union(*rows) - {"startup"}  # which the first rows lack


def test_a_step_and_its_batch_take_half_the_calls_they_once_took(benchmark, monkeypatch, capsys):
    """Of resnet34 with images that are padded 1,033 at first; with crops 829, of which the network's layers are 310."""
    monkeypatch.setattr(sys, "argv", ["calls.py", "resnet34"])
    benchmark("calls").main()
    found = {name: int(number) for name, number in re.findall(r"^(.*\S) +(\d+)$", capsys.readouterr().out, re.M)}
    step = found["resnet34: step, upsampled plainly"] + found["running average"] + found["warp and colour"]
    assert step + found["cutting 32 windows, pad"] <= 1033 // 2
    assert step + found["cutting 32 windows, crop"] <= 465
