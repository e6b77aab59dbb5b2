"""Hydra's stock Optuna sweeper on a world that takes no time. Runs in an environment of its own:

    python -m venv stock && stock/bin/pip install hydra-optuna-sweeper==1.3.0
    stock/bin/python benchmarks/stock.py --world synthetic --seeds 0 200 --trials 96 --slots 4

Its own code draws the trials, batch by batch; only its launcher is replaced by one that adds up the time: a batch takes
as long as its slowest trial. It goes on until the time of so many whole trainings is over. For each seed one JSON line:
`events`, a list of [seconds, encoder, lr], and `busy`.
"""

import argparse
import tempfile
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import optuna
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import OmegaConf
from worlds import MOST, World, replayed, told, world


class Over(Exception):
    """The time is over."""


class Launcher:
    """In place of Hydra's: knows the answers, and how long they would have taken."""

    def __init__(self, world: World, until: float):
        self.world, self.until, self.clock, self.busy = world, until, 0.0, 0.0
        self.events: list[tuple[float, str, float]] = []

    def launch(self, batches: Any, initial_job_idx: int) -> list[Any]:
        if self.clock >= self.until:
            raise Over
        returned, costs = [], []
        for i, overrides in enumerate(batches):
            values = dict(override.split("=", 1) for override in overrides)
            encoder, lr = values["encoder"], float(values["optim.lr"])
            costs.append(self.world.startup(encoder) + self.world.seconds(encoder) * self.world.epochs)
            iou = max(self.world.curve(encoder, lr, initial_job_idx + i))
            returned.append(SimpleNamespace(return_value=iou, status=None))
            if self.clock + costs[-1] <= self.until:
                self.events.append((self.clock + costs[-1], encoder, lr))
        self.clock += max(costs)
        self.busy += sum(costs)
        return returned


def replay(world: World, seed: int, trials: int, slots: int) -> dict[str, Any]:
    """One sweep, in the time of so many whole trainings."""
    launcher = Launcher(world, world.budget(trials, slots))
    encoders = ",".join(world.encoders)
    sweeper = OptunaSweeperImpl(
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=False),
        direction="maximize",
        storage=None,
        study_name=None,
        n_trials=MOST * trials,
        n_jobs=slots,
        max_failure_rate=0.0,
        search_space=None,
        custom_search_space=None,
        params=OmegaConf.create(
            {"encoder": f"choice({encoders})", "optim.lr": f"tag(log, interval({world.low}, {world.high}))"}
        ),
    )
    sweeper.launcher = launcher
    sweeper.hydra_context = SimpleNamespace(config_loader=None)
    sweeper.job_idx = 0
    with tempfile.TemporaryDirectory() as folder:  # it writes its result there
        sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": folder}}})
        with suppress(Over):
            sweeper.sweep([])
    return {"seed": seed, "events": launcher.events, "makespan": launcher.clock, "busy": launcher.busy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    replayed(parser)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for seed in range(*options.seeds):
        made = world(options.world, seed)
        print(told(replay(made, seed, options.trials, options.slots), made, options), flush=True)


if __name__ == "__main__":
    main()
