"""The parts of benchmarks/gpu.py that need no GPU: its budget, its cells, its table. It must run unattended."""

import json
import time

import pytest

MACHINE = {"gpu": "NVIDIA H200", "torch": "2.11", "timm": "1.0", "peer": "0.6", "commit": "0123456789", "dirty": True}


@pytest.fixture
def gpu(benchmark):
    """benchmarks/gpu.py."""
    return benchmark("gpu")


def cells_of(gpu, path, again=False):
    return gpu.Cells(path, lambda: {**MACHINE, "date": "2026-11-28"}, again)


def test_a_budget_ends_what_runs(gpu):
    with pytest.raises(gpu.TimeIsUp), gpu.Budget(0.01).enforced():
        time.sleep(5)
    with pytest.raises(gpu.TimeIsUp), gpu.Budget(0).enforced():
        raise AssertionError
    with gpu.Budget(5).share(0.5).enforced():
        pass
    assert 2 < gpu.Budget(5).share(0.5).left() < 2.5
    assert gpu.Budget(5, started=time.perf_counter() - 4).left() < 1


def test_a_cell_is_kept_at_once_and_measured_once(gpu, tmp_path):
    path, key = tmp_path / "raw" / "cells.jsonl", {"encoder": "e", "batch": 2, "way": "w"}
    cells = cells_of(gpu, path)
    cells.measure(gpu.Budget(5), lambda: {"rate": 1.0}, **key, round=1)
    cells.measure(gpu.Budget(5), lambda: {}["missing"], **key, round=2)
    cells.measure(gpu.Budget(0), lambda: {"rate": 1.0}, **key, round=3)
    with path.open("a") as file:
        file.write('{"encoder": "e", "bat')  # killed while it wrote
    later = cells_of(gpu, path)
    assert later.has(**key, round=1)
    assert not later.has(**key, round=2), "what failed is tried again"
    assert not later.has(**key, round=3), "time was up"
    later.measure(gpu.Budget(5), lambda: {"rate": 2.0}, **key, round=2)
    assert [row["rate"] for row in gpu.read(path) if "rate" in row] == [1.0, 2.0]
    assert not cells_of(gpu, path, again=True).has(**key, round=1)


def test_the_table_takes_ratios_round_by_round_within_a_session(gpu):
    def row(session, way, number, **found):
        return {
            "encoder": "resnet34",
            "batch": 10,
            "size": 256,
            "way": way,
            "round": number,
            "session": session,
            **found,
        }

    rows = [
        {"session": "1", "machine": {**MACHINE, "date": "2026-11-28"}},
        row("1", "ours, eager", "build", seconds=5.0, gflop=100.0),
        *(row("1", "peer, eager", number, rate=rate) for number, rate in ((1, 100.0), (2, 200.0))),
        *(row("1", "ours, eager", number, rate=rate) for number, rate in ((1, 150.0), (2, 260.0))),
        row("1", "ours, eager", "profile", gpu_ms=10.0, kernels=900.4, launches=910.0),
        row("1", gpu.PEAK, 1, rate=500.0),
        row("1", "ours, compiled", "build", error="OutOfMemoryError: 1 | 2"),
        row("2", "peer, eager", 1, rate=400.0),  # gone on with later
        row("2", "ours, CUDA graph", 1, rate=800.0),
    ]
    text = gpu.table(rows)
    assert "NVIDIA H200 · torch 2.11" in text
    assert "commit 0123456 with uncommitted changes" in text
    assert "205 (150 to 260) | 1.40 (1.30 to 1.50) | 3.0% | 20% | 910, 900 | 5 |" in text
    assert "| ours, CUDA graph | 800 | 2.00 |" in text
    assert "OutOfMemoryError: 1 / 2" in text
    assert len({line.count("|") for line in text.splitlines()[2:]}) == 1


def test_trainings_are_measured_while_all_are_at_work(gpu):
    def journal(*times):
        epochs = [{"kind": "epoch", "time": t, "perf/images_per_s": 10.0, "perf/data_share": 0.1} for t in times]
        return [{"kind": "start"}, *epochs]

    found = gpu.together([journal(1, 3, 5, 7), journal(2, 4, 6, 8)], images=16)
    assert found == {"rate": 20.0, "epoch_rate": 16.0, "data_share": 0.1}
    with pytest.raises(RuntimeError, match="less than an epoch"):
        gpu.together([journal(1, 3), journal(3, 5)], images=16)


def test_trials_of_a_packed_sweep_are_compared_one_by_one(gpu):
    def journal(lr, begin, end, iou):
        epochs = [{"kind": "epoch", "time": end - 1, "best/val_iou": iou}] * 2
        start = {"kind": "start", "time": begin, "settings": {"optim": {"lr": lr}}}
        ended = [start, *epochs, {"kind": "end", "time": end, "status": "complete"}]
        # As of a sweep's winner, whose test split is scored in the end.
        return ended + [{**start, "time": 100}, {**ended[-1], "time": 120}] * (iou == 0.5)

    alone = gpu.trials_of([journal(0.1, 0, 10, 0.5), journal(0.2, 10, 20, 0.7)], 2)
    assert alone == {"trials": 2, "at_once": 1, "seconds": 20, "epochs": 4, "scores": [0.5, 0.7]}
    packed = gpu.trials_of([journal(0.2, 1, 12, 0.6), journal(0.1, 1, 11, 0.5)], 2)
    assert packed["at_once"] == 2
    for journals in ([journal(0.1, 0, 10, 0.5)], [journal(0.1, 0, 10, 0.6)[:-1], journal(0.2, 0, 10, 0.5)]):
        with pytest.raises(RuntimeError, match="1 of 2 trials are complete"):
            gpu.trials_of(journals, 2)
    key = {"encoder": "e", "batch": 2, "size": 32, "round": 1, "session": "1"}
    rows = [{**key, "way": way, **found} for way, found in ((gpu.SERIAL, alone), (gpu.PACKED, packed))]
    text = gpu.table([{"session": "1", "machine": {**MACHINE, "date": "2026-11-28"}}, *rows])
    assert "| sweep, packed | 655 | 2 | 4 | 0.1000 | 1.82 |" in text


def test_a_trace_says_what_the_gpu_does_in_a_step(gpu):
    trace = [
        {"cat": "kernel", "name": "conv", "ts": 0, "dur": 3000.0},
        {"cat": "gpu_memset", "name": "Memset", "ts": 5, "dur": 1000.0},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 0, "dur": 9000.0},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernelExC", "ts": 0, "dur": 1.0},
        {"cat": "cuda_runtime", "name": "cudaDeviceSynchronize", "ts": 0, "dur": 1.0},
        {"ph": "M", "name": "process_name"},
    ]
    assert gpu.gpu_work(json.loads(json.dumps(trace)), steps=2) == {"gpu_ms": 2.0, "kernels": 1.0, "launches": 0.5}
    with pytest.raises(RuntimeError, match="no kernels"):
        gpu.gpu_work(trace[2:], steps=2)
