"""timm's model names without importing timm (10 s): for completion, closest names and early refusals.

`timm_names.txt` is written by `python -m segsweep.nn.names`: a first line with timm's version, then one architecture a
line, followed by its kind and its pretrained tags.
"""

import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path

from segsweep.errors import ConfigError, closest, suggestion
from segsweep.paths import ROOT

CENSUS = ROOT / "docs" / "encoders.csv"
_FILE = Path(__file__).with_name("timm_names.txt")


@dataclass(frozen=True)
class Rates:
    """Learning rates of an encoder's kind with Adam or AdamW."""

    lr: float  # peak of the decoder, which learns from nothing
    low: float  # where a sweep looks for it, from here
    high: float  # to here
    encoder_lr_scale: float  # the pretrained encoder's as a multiple of lr; random weights learn as fast as the decoder
    source: str  # who says so


# Convolutional, with BatchNorm: measured, docs/log.md. The others' pretrained weights were not to be had where it was
# done; their encoder's rate, lr x encoder_lr_scale, is what papers fine-tune with: 6e-5 to 1e-4 for Swin, MiT and
# ConvNeXt (https://arxiv.org/abs/2103.14030, https://arxiv.org/abs/2105.15203, https://arxiv.org/abs/2201.03545), and
# 3e-5 to 5e-5 for plain ViTs (https://arxiv.org/abs/2106.08254); SegFormer's decoder has ten times its encoder's.
RATES = {
    "convolutional": Rates(3e-3, 3e-4, 1e-2, 1.0, "measured with tf_efficientnet_lite0 on two data sets"),
    "hierarchical": Rates(1e-3, 1e-4, 5e-3, 0.1, "Swin's, SegFormer's and ConvNeXt's papers fine-tune"),
    "plain": Rates(5e-4, 5e-5, 3e-3, 0.1, "BEiT's paper fine-tunes"),
}


@cache
def _read() -> tuple[str, dict[str, tuple[str, ...]], dict[str, str]]:
    head, *lines = _FILE.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines]
    kinds = {name: kind for name, kind, *_ in rows}
    return head.removeprefix("# timm "), {name: tuple(tags) for name, _, *tags in rows}, kinds


def architectures() -> list[str]:
    """Every architecture of the listed timm, sorted."""
    return list(_read()[1])


def tags(architecture: str) -> tuple[str, ...]:
    """Its pretrained tags: what may stand after `encoder=architecture.`."""
    return _read()[1].get(architecture, ())


def rates(name: str) -> Rates:
    """Learning rates for an encoder's kind; a convolutional one's for names that the list does not have."""
    return RATES[_read()[2].get(name.partition(".")[0], "convolutional")]


def matching(pattern: str) -> list[str]:
    """List the architectures that a shell-style pattern names; ConfigError if there are none."""
    found = [name for name in architectures() if fnmatchcase(name, pattern.lower())]
    if not found:
        hint = suggestion(pattern.strip("*?"), architectures(), n=3)
        raise ConfigError(f"{pattern}: no timm model is called so.{hint} Try 'resnet*'.")
    return found


def counted() -> dict[str, dict[str, str]]:
    """What `benchmarks/encoders.py` measured with the installed timm of each architecture, by name."""
    if not CENSUS.is_file():
        return {}
    installed = version("timm")
    with CENSUS.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["timm"] == installed and row["runs"] == "yes"]
    return {row["encoder"]: row for row in rows}


def knows(name: str) -> bool:
    """Whether timm has that name; True where the installed timm is another than the listed one, and decides later."""
    listed, known, _ = _read()
    architecture, _, tag = name.partition(".")
    return (architecture in known and (not tag or tag in known[architecture])) or version("timm") != listed


def check(name: str) -> None:
    """Refuse a name that timm does not know, with the closest."""
    if knows(name):
        return
    known = _read()[1]
    architecture, _, tag = name.partition(".")
    if architecture in known:
        there = known[architecture]
        what = f"{architecture} has no pretrained tag {tag!r}"
        near = [f"{architecture}.{other}" for other in closest(tag, there, n=3) or there[:3]] or [architecture]
    else:
        what = "not a timm model"
        near = closest(architecture, known, n=3)
    if not near:
        raise ConfigError(f"encoder={name}: {what}. List them: segsweep encoders")
    raise ConfigError(f"encoder={name}: {what}. Closest: {', '.join(near)}. Try encoder={near[0]}.")
