"""Masks in formats that segsweep does not read: their names, and the line that converts them."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from segsweep.data.source import to_type
from segsweep.paths import load_json

LOOKED_AT = 10_000  # files of a folder
COCO_OF_YOLO = (
    "import supervision as sv; "
    "sv.DetectionDataset.from_yolo('IMAGES', 'LABELS', 'data.yaml', force_masks=True)"
    ".as_coco(annotations_path='coco.json')"
)
TIFF_OF_NPY = (  # true and false as 1 and 0: tifffile writes them the other way round
    "import sys, numpy, tifffile; "
    "[tifffile.imwrite(f[:-4] + '.tif', numpy.load(f) + numpy.uint8(0)) for f in sys.argv[1:]]"
)
ADVICE = {
    "coco": "is COCO. Type data=coco",
    "labelme": (
        "is a file of LabelMe. Convert it to COCO: pip install labelme2coco; labelme2coco DIR; then data=coco "
        "data.images=DIR "
        "data.annotations=runs/labelme2coco/dataset.json"
    ),
    "label studio": (
        "is a file of Label Studio. Export it there as COCO, then data=coco data.images=DIR data.annotations=FILE; or "
        "brush "
        "labels as PNG: label-studio-converter export -i FILE -c CONFIG.xml -o DIR -f BRUSH_TO_PNG"
    ),
    "yolo": (
        f'has polygons of YOLO. Convert them to COCO: pip install supervision; python -c "{COCO_OF_YOLO}"; then '
        "data=coco data.images=IMAGES data.annotations=coco.json"
    ),
    "yolo boxes": "has boxes of YOLO. Masks cannot be made from boxes: outlines are needed.",
    "numpy": f'is a numpy array. Convert it to TIFF: python -c "{TIFF_OF_NPY}" DIR/*.npy',
    "nifti": "is a NIfTI volume. Save its slices as PNG or TIFF: numpy.asarray(nibabel.load(FILE).dataobj)[..., i]",
    "dicom": "is DICOM. Save its pixels as PNG or TIFF: pydicom.dcmread(FILE).pixel_array",
}
KINDS = {".npy": "numpy", ".nii": "nifti", ".nii.gz": "nifti", ".dcm": "dicom"}  # by the end of a file's name


def converter(folder: Path, images: Path | None = None) -> str:
    """Say what the files below a folder are and what makes images, or COCO, of them; empty where nobody knows.

    `images` is the folder of their images, where it is another.
    """
    for path in islice(_files(folder), LOOKED_AT):
        if kind := _kind(path):
            found = f"{path.name} {ADVICE[kind]}"
            places = {"images": images, "annotations": path} if images else {"root": folder}
            return f"{found} {to_type(**places)}" if kind == "coco" else found
    return ""


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, each folder's in their order before those of its folders; hidden ones left out."""
    for above, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(above, name) for name in sorted(names) if not name.startswith("."))


def _kind(path: Path) -> str | None:
    try:
        if path.suffix.lower() == ".json":
            return _of_json(load_json(path.read_bytes()))
        if path.suffix.lower() == ".txt":
            return _of_text(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing that can be read
        return None
    return next((kind for ending, kind in KINDS.items() if path.name.lower().endswith(ending)), None)


def _of_json(found: object) -> str | None:
    first = found[0] if isinstance(found, list) and found else found
    fields = first.keys() if isinstance(first, dict) else set()
    if first is not found:
        return "label studio" if fields >= {"annotations", "data"} else None
    if fields >= {"shapes", "imagePath"}:
        return "labelme"
    return "coco" if fields >= {"images", "annotations"} else None


def _of_text(text: str) -> str | None:
    """YOLO's lines: a class and four numbers of a box, or a class and the points of a polygon."""
    first = next((line.split() for line in text.splitlines() if line.strip()), [])
    if len(first) < 5 or not all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", word) for word in first):
        return None
    return "yolo" if len(first) >= 7 else "yolo boxes"
