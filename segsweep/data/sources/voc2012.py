"""`voc2012`: photographs with 20 kinds of objects."""

from segsweep.config.schema import DataConfig
from segsweep.data.source import Pairs, Sample, existing, lines, torchvision_root

NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow "
    "diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
)
READS = ()
CLASSES = {name: value for value, name in enumerate(NAMES.split())}


def find(data: DataConfig) -> Pairs:
    """Find PASCAL VOC 2012 segmentation (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/), its train and val."""
    root = torchvision_root("VOCSegmentation", data, year="2012", image_set="trainval") / "VOCdevkit" / "VOC2012"
    listed = root / "ImageSets" / "Segmentation"
    rows = [(key, split) for split in ("train", "val") for key in lines(listed / f"{split}.txt")]
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    samples = [Sample(key, images / f"{key}.jpg", masks / f"{key}.png", split) for key, split in rows]
    return existing(samples, CLASSES)
