"""What tracking costs, whether it loses anything, and what looking costs.

    nice python benchmarks/tracking.py --name tracking-cpu

- steps: how long steps of 50 ms take with MLflow on SQLite, with a server on loopback, and without. They sleep, while a
  journal is written and MLflow is told after each epoch, with four pictures, as `segsweep/training/run.py` does after
  the best; and how much processor time goes beside them;
- starts: 16 processes bring a finished run to MLflow at once, on an empty folder, round by round; how many arrive;
- trainings: 8 whole trainings started at once on an empty folder;
- pages: seconds until `segsweep ui` and plain `mlflow ui` answer, and the memory of their processes.

`--only steps` etc. measures a part. What is known is written as soon as it is, after each round of starts.
"""

import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib import request

from measure import ROOT, interleaved, keep, parser

PARTS = ("pages", "trainings", "steps", "starts")
STEP, STEPS, EPOCHS = 0.05, 100, 2
STARTED, TRAININGS = 16, 8
TINY = ("encoder=test_resnet", "encoder.pretrained=false", "train.device=cpu", "train.precision=fp32")

options = parser(__doc__)
options.add_argument("--only", choices=PARTS)
options.add_argument("--rounds", type=int, default=20, help="of starts")


def finished_run(place: Path) -> Path:
    """The folder of a small training that MLflow has not seen; all others here are made from it."""
    folder = place / "template"
    shapes = ["data.count=40", "train.epochs=1", "train.batch_size=4", "tracking=none"]
    subprocess.run(
        [sys.executable, "train.py", *TINY, *shapes, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        env=os.environ | {"SEGSWEEP_OUTPUTS": str(place / "template-outputs")},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return folder


def training(template: Path, uri: str | None, processor: list[float]) -> float:
    """Milliseconds that a step takes, with its share of the records and of what MLflow is asked meanwhile.

    Args:
        processor: gets the milliseconds of processor time a step, the tracking thread's included.
    """
    from segsweep.runs.journal import Journal, started
    from segsweep.tracking.background import Background
    from segsweep.tracking.run import sync

    run = started(template)
    start, epoch, end = run.starts[0], run.epochs[0], run.end
    assert end
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        track = Background() if uri else None
        with Journal(folder) as book:
            book.write(replace(start, run=os.urandom(8).hex()))
            began, worked = time.perf_counter(), time.process_time()
            for number in range(1, EPOCHS + 1):
                for _ in range(STEPS):
                    time.sleep(STEP)
                for path in (template / "predictions").glob("*/*.png"):
                    drawn = folder / "predictions" / path.parent.name / f"{number:04d}.png"
                    drawn.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, drawn)
                book.write(replace(epoch, epoch=number, time=time.time()))
                if track:
                    track.ask(folder, lambda: sync(folder, uri))
            took = time.perf_counter() - began
            book.write(replace(end, time=time.time()))
        if track:
            track.ask(folder, lambda: sync(folder, uri))
            problem = track.close()
            assert not problem, problem
        used = time.process_time() - worked  # with what was sent at the end
    processor.append(1000 * used / (EPOCHS * STEPS))
    return 1000 * took / (EPOCHS * STEPS)


def steps(template: Path, place: Path, repeats: int) -> dict[str, Any]:
    from segsweep.tracking import server as ui

    database, served = f"sqlite:///{place / 'mlflow.db'}", f"sqlite:///{place / 'served.db'}"
    with ui.server(served, port=0) as (address, _):
        uris = {"no tracking": None, "SQLite": database, "server": address}
        processor: dict[str, list[float]] = {name: [] for name in uris}
        found = interleaved(
            {name: partial(training, template, uri, processor[name]) for name, uri in uris.items()}, repeats
        )
    results: dict[str, Any] = {"steps": STEPS, "epochs": EPOCHS, "seconds a step": STEP, "ms a step": found}
    results["ms of processor time a step"] = {name: values[1:] for name, values in processor.items()}
    bare = found.pop("no tracking")
    for name, values in found.items():
        shares = [100 * (value / base - 1) for value, base in zip(values, bare, strict=True)]
        more = statistics.median(processor[name][1:]) - statistics.median(processor["no tracking"][1:])
        print(
            f"{name:34}{statistics.median(shares):7.2f} % of a step ({min(shares):.2f} to {max(shares):.2f}), "
            f"{more:.2f} ms of processor time"
        )
    found["no tracking"] = bare
    return results


def recorded(database: Path, expected: int) -> int:
    """How many runs MLflow has whole: finished, and with the metrics of their epoch."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=4 * expected)
    return sum(run.info.status == "FINISHED" and "val/iou" in run.data.metrics for run in runs)


def _start(folder: Path, outputs: Path, barrier: Any) -> None:
    os.environ["SEGSWEEP_OUTPUTS"] = str(outputs)
    from segsweep.tracking.run import sync

    barrier.wait()
    sync(folder)


def starts(template: Path, place: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Trackers as processes, all at once, where there is no database yet; after each round what is known."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow"])
    start, *rest = [json.loads(line) for line in (template / "metrics.jsonl").read_text().splitlines()]
    found, seconds = [], []
    for number in range(rounds):
        outputs = place / f"starts-{number}"
        barrier = context.Barrier(STARTED)
        processes = []
        for i in range(STARTED):
            folder = outputs / f"run-{i}"
            folder.mkdir(parents=True)
            lines = [json.dumps(record) + "\n" for record in [start | {"run": f"{number}-{i}"}, *rest]]
            (folder / "metrics.jsonl").write_text("".join(lines))
            processes.append(context.Process(target=_start, args=(folder, outputs, barrier)))
        began = time.perf_counter()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        seconds.append(time.perf_counter() - began)
        found.append(recorded(outputs / "mlflow.db", STARTED))
        print(f"  round {number + 1:2}: {found[-1]} of {STARTED} in {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        shutil.rmtree(outputs)
        yield {"recorded": found, "of": STARTED, "seconds": seconds}
    print(f"recorded                          {sum(found)} of {STARTED * rounds}")


def trainings(place: Path) -> dict[str, Any]:
    """Whole trainings, started as a shell loop would start them."""
    outputs = place / "trainings"
    typed = [*TINY, "data.count=40", "train.epochs=1", "train.batch_size=4", "tracking.timeout=300"]
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "train.py", *typed, f"train.seed={i}"],
            cwd=ROOT,
            env=os.environ | {"SEGSWEEP_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for i in range(TRAININGS)
    ]
    codes = [training.wait() for training in running]
    took = time.perf_counter() - began
    found = recorded(outputs / "mlflow.db", TRAININGS)
    print(f"whole trainings                   {found} of {TRAININGS} in {took:.0f} s")
    return {"recorded": found, "of": TRAININGS, "exit codes": codes, "seconds": took}


def memory(group: int) -> tuple[int, float, float]:
    """How many processes a session has, and their memory together in MB: RSS, and with shared pages counted once."""
    count, rss, pss = 0, 0.0, 0.0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) == group:
                rows = dict(row.split(":") for row in (process / "smaps_rollup").read_text().splitlines()[1:])
                count, rss = count + 1, rss + int(rows["Rss"].split()[0]) / 1000
                pss += int(rows["Pss"].split()[0]) / 1000
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
    return count, rss, pss


@contextmanager
def running(command: list[str], place: Path, outputs: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A command in a session of its own, ended with all of it."""
    process = subprocess.Popen(
        command,
        cwd=place,
        env=os.environ | {"SEGSWEEP_OUTPUTS": str(outputs), "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def page(command: list[str], port: int, place: Path, outputs: Path) -> dict[str, float]:
    """Seconds until a page answers, and then its processes and their memory."""
    began = time.perf_counter()
    with running([*command, "--port", str(port)], place, outputs) as process:
        while True:
            try:
                with request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, f"{command}: ended"
                time.sleep(0.05)
        took = time.perf_counter() - began
        time.sleep(10)  # what is started later counts, too
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        sessions = {process.pid, *(os.getsid(int(child)) for child in children)}
        count, rss, pss = map(sum, zip(*map(memory, sessions), strict=True))
    return {"seconds": took, "processes": count, "rss_mb": rss, "pss_mb": pss}


def pages(place: Path, repeats: int) -> dict[str, Any]:
    from segsweep.ports import available

    outputs = place / "pages"
    outputs.mkdir()
    shutil.copy(place / "mlflow.db", outputs / "mlflow.db")
    plain = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{outputs / 'mlflow.db'}"]
    commands = {"segsweep ui": [sys.executable, "-m", "segsweep", "ui"], "mlflow ui": plain}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            found[name].append(page(command, available("127.0.0.1", 0, ""), outputs, outputs))
            print(f"  {name:34}{found[name][-1]}", file=sys.stderr, flush=True)
    for name, rows in found.items():
        usual = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(f"{name:34}" + "".join(f"{key} {value:.1f}   " for key, value in usual.items()))
    return found


def main() -> None:
    chosen = options.parse_args()
    wanted = [chosen.only] if chosen.only else PARTS
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        os.environ["SEGSWEEP_OUTPUTS"] = str(place)
        template = finished_run(place)
        from segsweep.tracking.client import connected

        connected(f"sqlite:///{place / 'mlflow.db'}")
        measure: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "pages": lambda: [pages(place, chosen.repeats)],
            "trainings": lambda: [trainings(place)],
            "steps": lambda: [steps(template, place, chosen.repeats)],
            "starts": lambda: starts(template, place, chosen.rounds),
        }
        results: dict[str, Any] = {}
        for name in wanted:
            for known in measure[name]():
                results[name] = known
                if chosen.name:
                    keep(chosen.name, results)


if __name__ == "__main__":
    main()
