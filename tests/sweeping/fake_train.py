"""A training that only pretends: keeps a journal as train.py does, in milliseconds. Run by tests of the sweep.

Its IoU rises towards `best` (an override); `epochs`, `seconds` an epoch, and how it fails can be overridden, too.
"""

import errno
import os
import shlex
import time
import uuid
from dataclasses import replace
from pathlib import Path

from segsweep.config.schema import EncoderConfig, OptimConfig, RunConfig, TrainConfig
from segsweep.config.settings import Settings
from segsweep.errors import Asked, Terminated
from segsweep.process import failed, terminable
from segsweep.runs.journal import Journal, read
from segsweep.runs.locks import FolderLock
from segsweep.runs.records import End, EpochRecord, ExecutionRecord, Start
from segsweep.runs.stop import Sign


def config(encoder="resnet18", lr=1e-3, **train):
    return RunConfig(encoder=EncoderConfig(encoder), optim=OptimConfig(lr=lr), train=TrainConfig(**train))


def start(asked, micro_batch=16, **changes):
    """The first record of a training that was asked for so."""
    about = {
        "run": "x",
        "time": time.time(),
        "execution": ExecutionRecord("cpu", 1, "bf16", True, False, micro_batch),
        "weights_source": "package",
        "parameters": 11_000_000,
        "input_size": (256, 256),
        "classes": ["background", "foreground"],
        "data_digest": "0123456789",
        "images": {"train": 8, "val": 4, "test": 4},
    }
    return Start(asked=asked, settings=Settings.of(asked), **(about | changes))


def epoch(number, iou, **metrics):
    metrics = {"val/iou": iou, "perf/seconds": 0.02 * number, "perf/images_per_s": 1.0} | metrics
    return EpochRecord(number, time.time(), metrics)


def end(status="complete", reason="", error=None, **metrics):
    return End(time.time(), status, reason, error, metrics)


def main(argv):
    given = dict(arg.split("=", 1) for arg in argv)
    try:
        with terminable():
            return _train(given)
    except OSError as error:
        line, code = failed(error)
        print(f"train.py: {line}")
        return code
    except Terminated:
        return 143


def _train(given):
    resumed = "resume" in given
    folder = Path(given["resume" if resumed else "hydra.run.dir"].strip("'"))
    lock, sign = FolderLock(folder), Sign(folder)
    (folder / "environment").write_text("\n".join(os.environ))
    before = read(folder)
    assert bool(before.records) == resumed, (given, before)
    if resumed:
        given = dict(arg.split("=", 1) for arg in shlex.split(before.start.command)) | given
    time.sleep(float(given.get("waits", 0)))
    if refused := given.get("refuses"):
        print("train.py: masks: no such folder.")
        return int(refused)
    best, total = float(given.get("best", 0.5)), int(given.get("train.epochs", 4))
    batch, grad_accum = int(given.get("train.batch_size", 16)), int(given.get("train.grad_accum", 1))
    asked = config(epochs=total, batch_size=batch, grad_accum=grad_accum)
    with Journal(folder) as book:
        name = before.start.run if resumed else uuid.uuid4().hex
        began = start(asked, batch // grad_accum, run=name)
        book.write(replace(began, command=shlex.join(f"{k}={v}" for k, v in given.items() if k != "resume")))
        if batch // grad_accum > int(given.get("fits", 1024)) or ("crowded" in given and not resumed):
            book.write(end("failed", f"the memory is too small for train.batch_size={batch}.", "out_of_memory"))
            return 4
        for number in range(len(before.epochs) + 1, total + 1):
            time.sleep(float(given.get("seconds", 0.02)))
            if given.get("nan") == str(number):
                book.write(end("failed", "NaN in the loss.", "non_finite"))
                return 5
            if given.get("full") == str(number) and not resumed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "last.pt"))
            if given.get("dies") == str(number):
                os.kill(os.getpid(), int(given.get("signal", 9)))
            (folder / "best.safetensors").write_bytes(b"a model")
            book.write(epoch(number, best * (1 - 0.5 ** (number * float(given.get("speed", 1))))))
            if sign.is_up() and number < total:
                book.write(end("stopped", str(Asked())))
                return 0
        tested = {"test/iou": best} if given.get("train.test") == "true" else {}
        book.write(end(reason=f"{total} epochs", **tested))
    lock.release()
    return 0
