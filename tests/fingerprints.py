"""Fingerprints, made by hand."""

from dataclasses import replace
from typing import Any

from segsweep.data.fingerprint import ClassParts, Fingerprint, Range

CELL = ClassParts(
    "cell", share=0.2, images=40, parts=400, area=900, extent=40, thickness=30, thinnest=20, seen=(1.0,) * 8
)


def fingerprint(size: tuple[float, float] = (512, 512), parts: ClassParts = CELL, **changes: Any) -> Fingerprint:
    """Return the fingerprint of 300 photographs of one height and width and 30 for validation, with these parts."""
    height, width = size
    training, validation = changes.get("training", 300), changes.get("validation", 30)
    found = Fingerprint(
        training=training,
        validation=validation,
        height=Range(height, height, height),
        width=Range(width, width, width),
        scored=int(validation * height * width),
        channels=3,
        lowest=0.0,
        highest=255.0,
        classes=(parts,),
        spread=0.0,
        spread_fitted=0.0,
        looked_at=40,
    )
    return replace(found, **changes)
