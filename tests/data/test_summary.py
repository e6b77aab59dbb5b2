"""What a data set holds, as a person reads it."""

from segsweep.data.summary import DataSummary, PartSummary

PART = PartSummary(20, 18, 3, {"background": 0.9, "cell": 0.1, "void": 0.0}, {"background": 20, "cell": 17, "void": 0})
VALUES = {"background": ["0"], "cell": ["[255,0,0]", *map(str, range(10))], "void": []}
PARTS = {"train": PART, "val": PART}
SUMMARY = DataSummary("0123", {(48, 64): 20}, {1: 12, 4: 8}, "uint8", (0.0, 255.0), 0, PARTS, VALUES)


def test_every_number_stands_below_its_part():
    rows = {line[:16].strip(): line[16:].split() for line in SUMMARY.table().splitlines()}
    assert rows["images"] == ["20", "20"]
    assert (rows["groups"], rows["empty masks"]) == (["18", "18"], ["3", "3"])
    assert rows["cell"] == ["10.00", "%", "in", "17"] * 2
    assert rows["width x height"] == ["64x48", "(20)"]
    assert " ".join(rows["pixels"]) == "uint8, 0 to 255; grey (12), 4 channels (8)"
    assert rows["copies"] == ["none"]
    assert " ".join(rows["mask values"]) == "background = 0; cell = [255,0,0], 0, 1, 2, 3, 4, ..."
