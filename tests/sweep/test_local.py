"""Processes on slots: started, read, stopped, killed, adopted; and which slots there are."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.sweep.backends import local as module
from segsweep.sweep.backends.local import CLAIM, OUTPUT, LocalWorkers, Slot, slots

FAKE = Path(__file__).with_name("fake_train.py")
SLOTS = (Slot(0), Slot(1))


@pytest.fixture
def workers(tmp_path):
    made = LocalWorkers(tmp_path, SLOTS, program=FAKE, preloaded=["segsweep.runs.journal"])
    yield made
    made.close()


def begin(workers, name, *overrides, slot=SLOTS[0]):
    workers.start(name, [*overrides, f"hydra.run.dir='{workers.folder / name}'"], slot)


def until_over(workers, seconds=30.0):
    """All records and the exit code of each trial."""
    records, codes, end = {}, {}, time.monotonic() + seconds
    while workers._living and time.monotonic() < end:
        for report in workers.wait(0.2):
            records.setdefault(report.name, []).extend(report.records)
            if report.ended:
                codes[report.name] = report.exit_code
    return records, codes


def test_trials_run_side_by_side_and_report_each_record_once(workers, tmp_path):
    begin(workers, "0", "best=0.8", slot=SLOTS[0])
    begin(workers, "1", "best=0.4", slot=SLOTS[1])
    assert workers.free() == []
    records, codes = until_over(workers)
    assert codes == {"0": 0, "1": 0}
    assert workers.free() == list(SLOTS)
    for name in ("0", "1"):
        assert records[name] == journal.read(tmp_path / name)
        assert [r["kind"] for r in records[name]] == ["start", *["epoch"] * 4, "end"]


def test_a_trial_has_a_session_and_an_output_of_its_own(workers, tmp_path):
    begin(workers, "0", "seconds=nonsense")
    _, codes = until_over(workers)
    assert codes == {"0": 1}
    assert "could not convert string to float: 'nonsense'" in (tmp_path / "0" / OUTPUT).read_text()


def test_the_slot_says_what_the_process_sees(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Slot(0, ("2", "3"), 4).environment == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "2,3"}
    assert Slot(0, (), 2).environment == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Slot(0, (), 2).environment == {"OMP_NUM_THREADS": "7"}


def test_stopping_is_reported_as_an_end(workers, tmp_path):
    begin(workers, "0", "seconds=60")
    while not journal.exists(tmp_path / "0"):
        workers.wait(0.1)
    workers.stop("0")
    _, codes = until_over(workers)
    assert codes == {"0": 143}
    assert not journal.holder(tmp_path / "0" / CLAIM)


def test_what_does_not_stop_is_killed(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('x', 'w'); time.sleep(60)"
    )
    workers.program = stubborn
    monkeypatch.chdir(tmp_path)
    begin(workers, "0")
    while not journal.holder(tmp_path / "0" / CLAIM):
        time.sleep(0.02)
    time.sleep(0.3)
    started = time.monotonic()
    workers.stop("0")
    _, codes = until_over(workers)
    assert codes["0"] == -signal.SIGKILL
    assert time.monotonic() - started < 20


def test_closing_leaves_nothing_running(tmp_path):
    workers = LocalWorkers(tmp_path, SLOTS, program=FAKE, preloaded=["segsweep.runs.journal"])
    begin(workers, "0", "seconds=60")
    begin(workers, "1", "seconds=60", slot=SLOTS[1])
    workers.close()
    assert not any(journal.holder(tmp_path / name / CLAIM) for name in ("0", "1"))


CONTROLLER = """
import sys
from pathlib import Path
from segsweep.sweep.backends.local import LocalWorkers, Slot
folder, program = Path(sys.argv[1]), Path(sys.argv[2])
workers = LocalWorkers(folder, [Slot(0), Slot(1)], program=program, preloaded=["segsweep.runs.journal"])
workers.start("0", ["best=0.8", "seconds=0.5", f"hydra.run.dir='{folder / '0'}'"], Slot(1))
while True:
    for report in workers.wait(1.0):
        print(len(report.records), flush=True)
"""


def test_a_killed_controllers_trial_is_adopted_on_its_slot(workers, tmp_path):
    controller = subprocess.Popen([sys.executable, "-c", CONTROLLER, str(tmp_path), str(FAKE)], stdout=subprocess.PIPE)
    controller.stdout.readline()
    controller.kill()
    controller.wait()
    controller.stdout.close()
    assert not workers.adopt("1")
    assert workers.adopt("0")
    assert workers.free() == [SLOTS[0]]
    records, codes = until_over(workers)
    assert codes == {"0": None}  # nobody can wait for another's child
    assert [r["kind"] for r in records["0"]] == ["start", *["epoch"] * 4, "end"]
    assert not workers.adopt("0")


def test_a_trial_is_no_rank_whatever_the_controllers_environment_says(workers, tmp_path):
    """The fork server keeps the environment it began with: the controller is a fresh process."""
    ranks = [
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
        *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"),
    ]
    kept = ["SLURM_PROCID", "MASTER_KEY", "MY_RANK"]
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(tmp_path), str(FAKE)],
        stdout=subprocess.PIPE,
        env={**os.environ, **dict.fromkeys([*ranks, *kept], "1")},
    )
    controller.stdout.readline()
    controller.kill()
    controller.wait()
    controller.stdout.close()
    assert workers.adopt("0")
    seen = set(journal.read(tmp_path / "0")[0]["environment"])
    assert not seen & set(ranks)
    assert seen >= {*kept, "OMP_NUM_THREADS"}


def test_an_adopted_trial_can_be_stopped(workers, tmp_path):
    controller = subprocess.Popen([sys.executable, "-c", CONTROLLER, str(tmp_path), str(FAKE)], stdout=subprocess.PIPE)
    controller.stdout.readline()
    controller.kill()
    controller.wait()
    controller.stdout.close()
    assert workers.adopt("0")
    workers.stop("0")
    records, _ = until_over(workers)
    assert records["0"][-1]["kind"] != "end"


def test_a_late_child_gives_way(tmp_path, workers):
    """A child of a killed controller that comes to life after another has taken its folder over."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / CLAIM).write_text(json.dumps({"attempt": "newer", "slot": 0}))
    context = multiprocessing.get_context("forkserver")
    argv = [f"hydra.run.dir='{tmp_path / '0'}'"]
    late = context.Process(target=module.train, args=(FAKE, argv, tmp_path / "0", {"attempt": "older", "slot": 0}, {}))
    late.start()
    late.join()
    assert late.exitcode == module.LATE
    assert not journal.exists(tmp_path / "0")


def test_a_call_returns_what_the_function_returns(workers):
    assert workers.call("math:hypot", 3, 4) == 5
    with pytest.raises(ConfigError, match="not a timm model"):
        workers.call("segsweep.catalog:check", "resnt34")
    with pytest.raises(RuntimeError, match="ValueError"):
        workers.call("math:sqrt", -1)
    with pytest.raises(RuntimeError, match="it died"):
        workers.call("os:_exit", 1)


SHADOWED = """
import sys
from pathlib import Path
from segsweep.sweep.backends.local import LocalWorkers
print(LocalWorkers(Path(sys.argv[1]), [], preloaded=["colorsys"]).call("math:hypot", 3, 4))
"""


def test_files_in_the_working_folder_shadow_nothing(tmp_path):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('the wrong one')")
    command = [sys.executable, "-P", "-c", SHADOWED, str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "5.0", ran.stderr


@pytest.mark.parametrize(
    ("given", "visible", "expected"),
    [
        ("auto", "0,1,2", [("0",), ("1",), ("2",)]),
        ("auto", "GPU-aa,GPU-bb", [("GPU-aa",), ("GPU-bb",)]),
        (4, "0,1", [("0",), ("1",), ("0",), ("1",)]),
        ([0, 0, 1], "4,5", [("4",), ("4",), ("5",)]),
        ([[0, 1], [2, 3]], "0,1,2,3", [("0", "1"), ("2", "3")]),
        (3, "", [(), (), ()]),
    ],
)
def test_slots(given, visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [slot.devices for slot in slots(given)] == expected


def test_a_cpus_threads_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(module, "cores", lambda: 16)
    assert [slot.threads for slot in slots("auto")] == [4, 4, 4, 4]
    assert [slot.threads for slot in slots(2)] == [8, 8]
    assert [slot.threads for slot in slots(32)] == [1] * 32
    monkeypatch.setattr(module, "cores", lambda: 2)
    assert [slot.threads for slot in slots("auto")] == [2]


def test_gpus_are_left_alone_on_request(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert slots(2, on_cpu=True)[1].devices == ()


@pytest.mark.parametrize("given", [0, -1, True, "two", [], [[]], [0, 7], [[0, 9]], 1.5, None])
def test_slots_that_are_not_there_are_refused(given, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.slots="):
        slots(given)


def test_gpus_are_counted_without_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1'\necho 'GPU 1: B (UUID: y)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert module.gpus() == ["0", "1"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert module.gpus() == []
