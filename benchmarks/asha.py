"""Syne Tune's ASHA on a world that takes no time, the same defaults tried first. Runs in an environment of its own:

    python -m venv asha && asha/bin/pip install syne-tune==0.16.0
    asha/bin/python benchmarks/asha.py --world camvid --seeds 0 200 --trials 48 --slots 4 --grace 3

Its own code draws the trials and stops them (the variant that stops, reduction factor 3, one bracket, from the epoch
`--grace` on; https://arxiv.org/abs/1810.05934); only the trainings pretend. It draws until the time of so many whole
trainings is over. For each seed one JSON line, as of stock.py.
"""

import argparse
import datetime
import heapq
import sys
from pathlib import Path
from typing import Any

from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, uniform
from syne_tune.optimizer.baselines import ASHA
from worlds import World, replayed, told, world

sys.path.insert(0, str(Path(__file__).parents[1]))
from segsweep import catalog


def replay(world: World, seed: int, trials: int, slots: int, grace: int) -> dict[str, Any]:
    """One search, in the time of so many whole trainings."""
    scheduler = ASHA(
        {"encoder": choice(list(world.encoders)), "position": uniform(0.0, 1.0)},
        metric="iou",
        time_attr="epoch",
        max_t=world.epochs,
        do_minimize=False,
        random_seed=seed,
        grace_period=grace,
        points_to_evaluate=[
            {"encoder": e, "position": catalog.rates(e).position(catalog.rates(e).lr)} for e in world.encoders
        ],
    )
    due: list[tuple[float, int, int]] = []  # when a trial's next epoch is over, the trial, the epoch
    begun: list[tuple[Trial, str, float]] = []
    clock, busy, epochs, events, until = 0.0, 0.0, 0, [], world.budget(trials, slots)
    while due or clock < until:
        while len(due) < slots and clock < until:
            config = scheduler.suggest().config
            trial = Trial(len(begun), config, datetime.datetime.now(tz=datetime.UTC))
            scheduler.on_trial_add(trial)
            begun.append((trial, config["encoder"], catalog.rates(config["encoder"]).at(config["position"])))
            first = world.startup(config["encoder"]) + world.seconds(config["encoder"])
            heapq.heappush(due, (clock + first, trial.trial_id, 1))
        clock, number, epoch = heapq.heappop(due)
        trial, encoder, lr = begun[number]
        busy += world.seconds(encoder) + (world.startup(encoder) if epoch == 1 else 0.0)
        epochs += 1
        result = {"iou": max(world.curve(encoder, lr, number)[:epoch]), "epoch": epoch}
        decision = scheduler.on_trial_result(trial, result)
        if epoch == world.epochs:
            scheduler.on_trial_complete(trial, result)
            if clock <= until:
                events.append((clock, encoder, lr))
        elif decision == "CONTINUE":
            heapq.heappush(due, (clock + world.seconds(encoder), number, epoch + 1))
        else:
            scheduler.on_trial_remove(trial)
    return {"seed": seed, "events": events, "makespan": clock, "busy": busy, "epochs": epochs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    replayed(parser)
    parser.add_argument("--grace", type=int, default=1, help="epochs before which nothing is stopped")
    options = parser.parse_args()
    if options.world == "synthetic":  # its rates are of no kind of encoder
        parser.error("--world: must be a data set of benchmarks/raw/bench.jsonl")
    for seed in range(*options.seeds):
        made = world(options.world, seed)
        found = replay(made, seed, options.trials, options.slots, options.grace)
        print(told(found, made, options), flush=True)


if __name__ == "__main__":
    main()
