"""A training that only pretends: keeps a journal as train.py does, in milliseconds. Run by tests of the sweep.

Its IoU rises towards `best` (an override); `epochs`, `seconds` an epoch, and how it fails can be overridden, too.
"""

import os
import sys
import time
from pathlib import Path

from segsweep.errors import Terminated
from segsweep.runs.journal import FolderLock, Journal, epochs, last_start, read


def main(argv):
    given = dict(arg.split("=", 1) for arg in argv)
    resumed = "resume" in given
    folder = Path(given["resume" if resumed else "hydra.run.dir"].strip("'"))
    lock = FolderLock(folder)
    records = read(folder)
    assert bool(records) == resumed, (argv, records)
    if resumed:
        given = last_start(records)["config"] | given
    best, total = float(given.get("best", 0.5)), int(given.get("train.epochs", 4))
    micro_batch = int(given.get("train.batch_size", 16)) // int(given.get("train.accumulate", 1))
    with Journal(folder) as book:
        book.write(
            "start",
            time=time.time(),
            run="x",
            epochs=total,
            config=given | {"train": {"accumulate": int(given.get("train.accumulate", 1)), "time_budget": None}},
            micro_batch=micro_batch,
            pid=os.getpid(),
            environment=sorted(os.environ),
        )
        if micro_batch > int(given.get("fits", 1024)):
            book.write("end", status="failed", reason="out of memory with train.batch_size=16.")
            return 4
        for epoch in range(len(epochs(records)) + 1, total + 1):
            time.sleep(float(given.get("seconds", 0.02)))
            if given.get("nan") == str(epoch):
                book.write("end", status="failed", reason="NaN in the loss.")
                return 5
            if given.get("dies") == str(epoch):
                os.kill(os.getpid(), 9)
            iou = best * (1 - 0.5 ** (epoch * float(given.get("speed", 1))))
            book.write("epoch", epoch=epoch, **{"val/iou": iou, "perf/seconds": 0.02 * epoch, "perf/images_per_s": 1.0})
        book.write("end", time=time.time(), status="complete", reason=f"{total} epochs")
    del lock
    return 0


if __name__ == "__main__":
    import signal

    def terminate(*_):
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = main(sys.argv[1:])
    except Terminated:
        code = 143
    sys.exit(code)
