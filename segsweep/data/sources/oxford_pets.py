"""`oxford_pets`: cats and dogs."""

from segsweep.config.schema import DataConfig
from segsweep.data.source import Pairs, Sample, existing, lines, torchvision_root

READS = ()
CLASSES = {"background": 2, "pet": 1}


def find(data: DataConfig) -> Pairs:
    """Find Oxford-IIIT Pet (Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/), with its own test split.

    Trimaps: 1 the pet, 2 background, 3 the border, which does not count.
    """
    root = torchvision_root("OxfordIIITPet", data, split="trainval", target_types="segmentation") / "oxford-iiit-pet"
    rows = [
        (line.split(" ")[0], split)
        for name, split in (("trainval", "train"), ("test", "test"))
        for line in lines(root / "annotations" / f"{name}.txt")
    ]
    trimaps = root / "annotations" / "trimaps"
    samples = [Sample(k, root / "images" / f"{k}.jpg", trimaps / f"{k}.png", split) for k, split in rows]
    return existing(samples, CLASSES)
