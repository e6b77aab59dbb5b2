"""Images/s of crop, flip, rotation and colour jitter on one thread: torchvision v2 on single images beside our batches.

    python benchmarks/augmentation.py --name augmentation-cpu

Both start from decoded uint8 and end with a float32 image and its mask, each image with its own draw: what a training
step consumes. torchvision's transforms run on tensors, as its guide advises.
"""

import time

from measure import interleaved, keep, parser, summary

options = parser(__doc__)
options.add_argument("--side", type=int, default=512, help="of the images")
options.add_argument("--size", type=int, default=256, help="of the canvas")
options.add_argument("--batch", type=int, default=16)


def main() -> None:
    given = options.parse_args()
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    from segsweep.config.schema import AugmentationConfig, DataConfig
    from segsweep.data.batches import Pixels, Sampling, TrainBatches
    from segsweep.data.geometry import Canvas
    from segsweep.data.labels import labels
    from segsweep.data.sources import folder
    from segsweep.data.store import open_store
    from segsweep.paths import cache

    torch.set_num_threads(1)
    root = cache() / "benchmark-augmentation"
    rng = np.random.default_rng(0)
    for i in range(given.batch):
        for kind, shape, top in (("images", (given.side, given.side, 3), 256), ("masks", (given.side, given.side), 2)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, top, shape, np.uint8)).save(root / kind / f"{i}.png")
    store = open_store(folder.find(DataConfig(root=str(root))).samples)
    batches = TrainBatches(
        Pixels(store, labels(store.counts()), torch.device("cpu"), workers=1),
        range(given.batch),
        Canvas((given.size, given.size), "crop"),
        Sampling(given.batch),
        AugmentationConfig(hflip=0.5, rotate=30, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
    )
    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.05)
    transforms = v2.Compose(
        [
            v2.RandomRotation(30),
            v2.RandomCrop(given.size),
            v2.RandomHorizontalFlip(),
            jitter,
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        ]
    )
    pairs = [
        (tv_tensors.Image(store.image(i).permute(2, 0, 1).contiguous()), tv_tensors.Mask(store.mask(i)))
        for i in range(given.batch)
    ]

    def torchvision() -> float:
        started = time.perf_counter()
        for _ in range(2):
            done = [transforms(*pair) for pair in pairs]
            torch.stack([image for image, _ in done]), torch.stack([mask for _, mask in done])
        return 2 * len(pairs) / (time.perf_counter() - started)

    number = 0

    def ours() -> float:
        nonlocal number
        started = time.perf_counter()
        for _ in range(6):
            number += 1
            for step in batches.epoch(number):
                list(step)
        return 6 * len(pairs) / (time.perf_counter() - started)

    found = interleaved({"torchvision v2": torchvision, "ours": ours}, given.repeats)
    print(f"\nimages/s\n{summary(found, 'torchvision v2')}")
    if given.name:
        keep(given.name, found)


if __name__ == "__main__":
    main()
