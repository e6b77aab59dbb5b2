"""Where the time of a training step goes, by operation.

python benchmarks/step_profile.py resnet34
python benchmarks/step_profile.py tf_efficientnet_lite0 --size 128 --precision bf16
"""

from contextlib import closing

from measure import parser

options = parser(__doc__)
options.add_argument("encoder", nargs="?", default="tf_efficientnet_lite0")
options.add_argument("--size", type=int, default=256)
options.add_argument("--batch", type=int, default=8)
options.add_argument("--precision", default="auto", help="fp32, bf16, fp16; auto: what train.precision=auto takes")
options.add_argument("--contiguous", action="store_true", help="instead of channels_last")
options.add_argument("--rows", type=int, default=15)
options.add_argument("--shapes", action="store_true", help="tell operations on tensors of different shapes apart")


def main() -> None:
    given = options.parse_args()
    import torch
    from torch.profiler import ProfilerActivity, profile

    from segsweep.compose import configuration
    from segsweep.config.schema import OptimConfig
    from segsweep.data.batches import Pixels, Sampling, TrainBatches
    from segsweep.data.geometry import Canvas
    from segsweep.engine import device, losses
    from segsweep.engine.execution import Execution
    from segsweep.engine.step import TrainStep
    from segsweep.nn import UNet
    from segsweep.training import optim
    from segsweep.training.build import load
    from segsweep.training.state import TrainState

    where = device.find("auto")
    device.set_threads()
    config = configuration(["data=shapes", "augmentation.scale=0.25", "augmentation.translate=0.05"])  # as a plan would
    data = load(config.data)
    data.store.to(where)
    model = UNet(given.encoder).to(where).train()
    execution = Execution(device.precision(given.precision, where), channels_last=not given.contiguous)
    execution.prepare(model)
    optimizer = optim.build(OptimConfig(lr=1e-3, encoder_lr_scale=1.0), model)
    loss = losses.build({"ce": 0.5, "dice": 0.5})
    scaler = torch.amp.GradScaler(where.type, enabled=execution.precision == torch.float16)
    state, step = TrainState(model, optimizer, scaler), TrainStep(execution, loss, config.train.grad_clip)
    train = TrainBatches(
        Pixels(data.store, data.labels, where),
        data.parts["train"],
        Canvas((given.size, given.size), "pad"),
        Sampling(given.batch),
        config.augmentation,
    )
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (where.type == "cuda")
    with closing(train.epoch(1)) as steps:
        for number, micro_batches in enumerate(steps):
            if number < 2:
                step(state, micro_batches, 1)
                continue
            with profile(activities=activities, record_shapes=given.shapes) as found:
                step(state, micro_batches, 1)
                device.synchronize(where)
            break
    on_gpu = where.type == "cuda"

    def own(event: object) -> float:
        return (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3  # type: ignore[attr-defined]

    events = sorted(found.key_averages(group_by_input_shape=given.shapes), key=own, reverse=True)
    total = sum(map(own, events))
    print(f"one step of {given.batch} images of {given.size}x{given.size}: {total:.0f} ms on {device.describe(where)}")
    for event in events[: given.rows]:
        shapes = f"  {event.input_shapes}" if given.shapes else ""
        print(f"{own(event):9.1f} ms{100 * own(event) / total:6.1f} %{event.count:6}  {event.key[:60]}{shapes}")


if __name__ == "__main__":
    main()
