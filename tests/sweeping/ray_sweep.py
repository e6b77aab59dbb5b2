"""Trainings that only pretend, on a Ray cluster of two nodes, one of which is killed: `ray_sweep.py FOLDER`.

Prints as JSON the trials' states, how often each began, the share of time that slots were used, what was left running.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}

import ray
from ray.cluster_utils import Cluster

from segsweep.runs.trial import Trial
from segsweep.sweeping.backends.ray import RayBackend
from segsweep.sweeping.scheduler import TrialSource, drive

TRIALS, SECONDS = 24, 0.4  # seconds an epoch, of four


class Queue(TrialSource):
    """Trials that begin one after the other."""

    def __init__(self, names):
        super().__init__()
        self.waiting = [Trial(name, "resnet18", [], [f"seconds={SECONDS}"]) for name in names]

    def next(self):
        if not self.waiting:
            return None
        trial = self.waiting.pop(0)
        self.trials[trial.name] = trial
        return trial


def living():
    """Processes of trainings, by their output."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            found += [path] * ("segsweep-ray-" in str(path.readlink()))
        except OSError:
            continue
    return len(found)


def main(folder):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    nodes = [cluster.add_node(num_cpus=2, num_gpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    backend = RayBackend(folder, cluster.address, preloaded=["segsweep.runs.journal"])
    source, began, ended, used, killed = Queue(map(str, range(TRIALS))), {}, 0, [], None
    stop = threading.Event()

    def watch():
        while not stop.wait(0.2):
            used.append((time.monotonic(), sum(bool(actor.job) for actor in backend._actors), len(backend._actors)))

    threading.Thread(target=watch, daemon=True).start()
    for event in drive(source, backend, folder, "fake_train"):
        if event.kind in ("started", "continued"):
            began[event.trial.name] = began.get(event.trial.name, 0) + 1
        ended += event.kind == "complete"
        if ended == 8 and killed is None:
            killed = time.monotonic()
            cluster.remove_node(nodes[0], allow_graceful=False)
    stop.set()
    finalists = Queue(f"finalists/{i}" for i in range(3))  # the loop has let go of the cluster
    left_of_cluster = backend.capacity
    for _ in drive(finalists, backend, folder, "fake_train"):
        pass
    busy = [(at, jobs, actors) for at, jobs, actors in used if actors]
    time.sleep(15)
    left = living()
    ray.shutdown()
    cluster.shutdown()
    found = {
        "finalists": [trial.state for trial in finalists.trials.values()],
        "capacity": left_of_cluster,
        "states": {trial.name: trial.state for trial in source.trials.values()},
        "epochs": {trial.name: len(trial.run.epochs) for trial in source.trials.values()},
        "began": began,
        "used": sum(jobs for _, jobs, _ in busy) / sum(actors for *_, actors in busy),
        "left": left,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)
