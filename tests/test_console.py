from pathlib import Path

import pytest

from segsweep import console


def test_an_epoch_of_several_passes_is_told():
    part = {"images": 20, "groups": 20, "empty masks": 0, "shares": {"background": 0.9, "cell": 0.1, "void": 0.0}}
    summary = {
        "parts": {"train": part}, "sizes": {(64, 64): 20}, "channels": {1: 20}, "dtype": "uint8", "range": (0, 255),
        "copies": 0, "digest": "0123",
    }  # fmt: skip
    assert "shows each training image 9 times, 180 in all" in console.data_summary(summary, 9)
    assert "an epoch" not in console.data_summary(summary)


@pytest.mark.parametrize(
    ("share", "shown"), ((0.753, "75 %"), (1.0, "100 %"), (0.0082, "0.82 %"), (0.00004, "0.004 %"))
)
def test_the_share_of_the_peak_is_never_rounded_to_nothing(share, shown):
    summary = {
        "images": {"train": 8},
        "repeats": 1,
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
    assert f"210.0 images/s in bf16, {shown} of the machine's convolution peak" in said
    assert "peak" not in console.result(Path("run"), summary | {"perf/peak_share": None}, "10 epochs")
