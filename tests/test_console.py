from pathlib import Path

import pytest

from segsweep import console


@pytest.mark.parametrize(
    ("share", "shown"), ((0.753, "75 %"), (1.0, "100 %"), (0.0082, "0.82 %"), (0.00004, "0.004 %"))
)
def test_the_share_of_the_peak_is_never_rounded_to_nothing(share, shown):
    summary = {
        "images": {"train": 8},
        "passes": 1,
        "data": "shapes",
        "classes": ["background", "object"],
        "weights_source": "package",
        "input_size": None,
        "encoder": "resnet18",
        "perf/images_per_s": 210.0,
        "perf/peak_share": share,
        "precision": "bf16",
        "status": "complete",
    }
    said = console.result(Path("run"), summary, "10 epochs")
    assert f"210.0 images/s in bf16; {shown} of what this machine can compute" in said
    assert "compute" not in console.result(Path("run"), summary | {"perf/peak_share": None}, "10 epochs")
