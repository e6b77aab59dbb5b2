"""How many operations torch dispatches in an eager training step, in making its batch and in scoring: no GPU needed.

python benchmarks/calls.py
python benchmarks/calls.py resnet34 --batch 8

On a GPU an operation that computes is at least one launch, some microseconds of the processor's time: what a step of a
small network waits for. Views and allocations are none and do not count. bf16 as on a GPU, under the CPU's autocast,
whose list of operations differs a little from a GPU's: its LayerNorms cast nothing.
"""

from collections import Counter
from typing import Any
from unittest.mock import patch

from measure import parser
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ENCODERS = ("resnet34", "tf_efficientnet_lite0", "convnext_tiny", "vit_small_patch16_224")
NO_WORK = ("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias", "lift_fresh", "profiler")


class Calls(TorchDispatchMode):
    """Counts operations that compute, by name, while in this context; those of the backward pass, too."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.by_name.total()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition("::")[2].partition(".")[0]
        if not function.is_view and not name.startswith(NO_WORK):
            self.by_name[name] += 1
        return function(*args, **(kwargs or {}))


options = parser(__doc__)
options.add_argument("encoders", nargs="*", default=ENCODERS)
options.add_argument("--batch", type=int, default=32)
options.add_argument("--size", type=int, default=64, help="pixels a side; the numbers do not depend on it")
options.add_argument("--rows", type=int, default=0, help="operations to print for each")


def main() -> None:
    given = options.parse_args()
    import torch

    from segsweep.config.schema import OptimConfig
    from segsweep.data.batches import Batch
    from segsweep.engine import losses
    from segsweep.engine.execution import Execution
    from segsweep.engine.step import TrainStep
    from segsweep.nn import UNet
    from segsweep.training import optim
    from segsweep.training.state import TrainState

    def show(title: str, calls: Calls) -> None:
        print(f"{title:44}{calls.total:6}", flush=True)
        for name, count in calls.by_name.most_common(given.rows):
            print(f"    {name:40}{count:6}")

    loss = losses.build({"ce": 0.5, "dice": 0.5})
    for name in given.encoders:
        for doubling in (True, False):
            torch.manual_seed(0)
            model = UNet(name).train()
            execution = Execution(torch.bfloat16, doubling=doubling)
            execution.prepare(model)
            optimizer = optim.build(OptimConfig(lr=1e-3, encoder_lr_scale=1.0), model)
            average = optim.Average(model, 0.999)
            state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), average)
            step = TrainStep(execution, loss, 1.0)
            image = 255 * torch.rand(2, 3, given.size, given.size)
            batch = Batch(image, (image[:, 0] > 127).long(), (0, 1), ())
            step(state, [batch], 1)  # the optimizer's state
            with Calls() as calls:
                step(state, [batch], 1)
            show(f"{name}: step{'' if doubling else ', upsampled plainly'}", calls)
    with Calls() as calls:
        average.update(model)
    show("running average", calls)
    of_batches(given, show)


def of_batches(given: Any, show: Any) -> None:
    import numpy as np
    import torch

    from segsweep.compose import configuration
    from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches
    from segsweep.data.geometry import Canvas
    from segsweep.data.store import Store
    from segsweep.engine import losses
    from segsweep.engine.scorer import Scorer
    from segsweep.training.build import load

    class First(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[:, :1]

    words = ["data=shapes", f"data.count={5 * given.batch}", f"data.size=[{given.size},{given.size}]"]
    config = configuration([*words, "augmentation.scale=0.25", "augmentation.translate=0.1"])
    data = load(config.data)
    for resize in ("crop", "pad"):
        canvas = Canvas((given.size, given.size), resize)
        pixels = Pixels(data.store, data.labels, torch.device("cpu"))
        train = TrainBatches(pixels, data.parts["train"], canvas, Sampling(given.batch), config.augmentation)
        with Calls() as calls, patch.object(Store, "on_device", property(lambda _: True)):
            host_batch = train._host_batch(1, 0, 0, np.asarray(data.parts["train"][: given.batch]))
        train._augmented(*host_batch)  # what is made once
        show(f"cutting {given.batch} windows, {resize}", calls)
        with Calls() as calls:
            train._augmented(*host_batch)
        show("warp and colour", calls)
        batches = EvalBatches(pixels, data.parts["val"], canvas, given.batch)
        with Calls() as calls:
            Scorer().evaluate(First(), batches, losses.build({"ce": 0.5, "dice": 0.5}), data.labels.names)
        show(f"scoring {len(data.parts['val'])} images of one size, {resize}", calls)


if __name__ == "__main__":
    main()
