"""IoU with the decoder's joined doubling and without, on real data and paired seeds: they differ by rounding alone.

    python benchmarks/doubling.py --epochs 12 --size 128 --name doubling-cpu
    python benchmarks/doubling.py --data kvasir --encoder resnet34 --seeds 0 1 2 3

A pair starts from the same weights and sees the same batches, for so many epochs, so that speed decides nothing; both
are scored by one evaluator after the last epoch, on the test split. A GPU's probe chooses between the two ways.
"""

import statistics
from dataclasses import replace
from typing import Any

from measure import DATA, keep, parser

options = parser(__doc__)
options.add_argument("--data", default="dsb2018", help="a folder of the real data sets")
options.add_argument("--encoder", default="tf_efficientnet_lite0")
options.add_argument("--size", type=int, default=128, help="pixels a side")
options.add_argument("--epochs", type=int, default=12)
options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
options.add_argument("more", nargs="*", help="overrides of both")


def trained(words: list[str], doubling: bool) -> float:
    """Train; the IoU after the last epoch."""
    from segsweep.compose import configuration
    from segsweep.training.build import build
    from segsweep.training.loop import fit

    training = build(configuration(words))
    execution = replace(training.tuned.execution, doubling=doubling)
    training = replace(training, tuned=replace(training.tuned, execution=execution))
    part = training.data.parts["test" if training.scores_test else "val"]

    def validate(model: Any) -> Any:
        return training.evaluate(model, training.shown)

    parts = training.state, training.step(), training.train_batches(), validate
    for epoch in fit(*parts, training.settings.train, training.settings.optim):
        print(f"    epoch {epoch.number}: loss {epoch.metrics['train/loss']:.4f}", flush=True)
    return training.evaluate(training.state.scored, part).metrics["iou"]


def main() -> None:
    given = options.parse_args()
    words = ["data=folder", f"data.root={DATA / given.data}", "data.split=[0.7,0.1,0.2]", "data.resize=pad"]
    words += [f"data.size=[{given.size},{given.size}]", f"encoder={given.encoder}", f"train.epochs={given.epochs}"]
    words += ["train.precision=fp32", "train.deterministic=true", *given.more]  # no probe: both run in the same way
    rows = []
    for seed in given.seeds:
        joined, plain = (trained([*words, f"train.seed={seed}"], doubling) for doubling in (True, False))
        rows.append({"seed": seed, "doubling": joined, "plain": plain})
        print(f"seed {seed}: {joined:.4f} with, {plain:.4f} without", flush=True)
    differences = [row["plain"] - row["doubling"] for row in rows]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    print(f"without - with: mean {statistics.mean(differences):+.4f}, sd {spread:.4f}, {len(differences)} pairs")
    if given.name:
        keep(given.name, rows)


if __name__ == "__main__":
    main()
