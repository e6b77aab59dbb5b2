"""A controller of a sweep whose trainings only pretend: `fake_controller.py ADDRESS FOLDER SETTINGS`.

With an empty address it is the only one. SETTINGS is a JSON object: of the sweeper; and `words`, which all trials have,
`identity`, what the data are said to be.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

from segsweep.config.schema import DataConfig, RunConfig, TrackingConfig, TrainConfig
from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError, Terminated
from segsweep.process import failed, terminable
from segsweep.sweeping import run, sharing, together
from segsweep.sweeping.backends.local import LocalBackend
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.scheduler import drive
from segsweep.sweeping.space import Space, choice, interval

ENCODERS = ["resnet18", "resnet34"]
IDENTITY = {"files": "f", "pixels": "p", "decoders": "d", "weights of resnet18": "1", "weights of resnet34": "2"}


class Backend(LocalBackend):
    """Knows without torch what the data and the weights are."""

    identity: dict[str, str] = IDENTITY

    def call(self, function, *arguments):
        answers = {
            "sources": dict.fromkeys(ENCODERS, "package"),
            "decided_data": [],
            "identity": self.identity,
            "pixels": "digest",
        }
        return answers[function.partition(":")[2]]


def main(address, folder, settings):
    sharing.BEAT, sharing.GRACE, sharing.PAUSE = 1, 4, 0.3  # seconds
    words = tuple(settings.pop("words", ()))
    if host := settings.pop("host", ""):
        sharing.node = lambda: host
    Backend.identity = IDENTITY | settings.pop("identity", {})
    tracking = settings.pop("tracking", None)
    run.TRAINING, run.drive = "fake_train", partial(drive, module="fake_train")
    run.LocalBackend = partial(Backend, preloaded=["segsweep.runs.journal"])
    base = RunConfig(
        data=DataConfig("shapes"),
        train=TrainConfig(epochs=4, seed=5),
        tracking=TrackingConfig("mlflow", uri=tracking, experiment="shared") if tracking else TrackingConfig("none"),
    )
    space = Space((choice("encoder", ENCODERS), interval("best", 0.1, 0.9)), ENCODERS[0])
    sweeper = SweeperConfig(**({"n_trials": 6, "slots": 2, "pruner": "none", "storage": address or None} | settings))
    seeds = {"encoder": "resnet18", "best": 0.5}
    try:
        with terminable():
            begin = together.join if address else run.run
            begin(Plan(Path(folder), "-m hydra/sweeper=optuna", space, seeds, words, base, sweeper))
    except ConfigError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        line, code = failed(error)
        print(f"train.py: {line}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if code == 143 else sys.exit(code)
