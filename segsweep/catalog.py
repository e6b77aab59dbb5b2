"""timm's model names and weights without importing timm (10 s): for completion, closest names, early refusals, tables.

`timm_names.txt` is written by `python benchmarks/names.py`: a first line with timm's version, then one architecture a
line, followed by its kind and its pretrained tags. `docs/weights.csv` says how each set of weights was made.
"""

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path

from segsweep.errors import ConfigError, closest, suggestion
from segsweep.paths import ROOT

CENSUS = ROOT / "docs" / "encoders.csv"
WEIGHTS = ROOT / "docs" / "weights.csv"
UNPUBLISHED = "unpublished"  # what nobody says of a set of weights
VARIED = re.compile(r"weights\((.*)\)")  # encoder='weights(vit_small*,convnext_tiny*)'
_FILE = Path(__file__).with_name("timm_names.txt")


@dataclass(frozen=True)
class Rates:
    """Learning rates of an encoder's kind with Adam or AdamW."""

    lr: float  # peak of the decoder, which learns from nothing
    low: float  # where a sweep looks for it, from here
    high: float  # to here
    encoder_lr_scale: float  # the pretrained encoder's as a multiple of lr; random weights learn as fast as the decoder
    source: str  # who says so

    def at(self, position: float) -> float:
        """Return the rate at a position in the range, 0 to 1, of equal ratios."""
        return float(self.low * (self.high / self.low) ** position)

    def position(self, lr: float) -> float:
        """Return where a rate lies: the inverse of `at`."""
        return math.log(lr / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class Pretraining:
    """How a set of weights came about, as far as it is published; benchmarks/weights.py reads it from timm's names."""

    weights: str  # timm's name with its tag
    default: str = ""  # "yes": what the architecture's name alone means
    data: str = UNPUBLISHED  # images, in the order in which they were seen: ImageNet-21k > ImageNet-1k
    objective: str = UNPUBLISHED
    licence: str = UNPUBLISHED
    gated: str = UNPUBLISHED  # "yes": the hub gives them to those alone who have accepted the licence there
    input_size: str = UNPUBLISHED  # height x width of the images at the end of the pretraining

    @property
    def columns(self) -> dict[str, str]:
        """What a table says of it, by column."""
        return {
            "pretrained on": self.data,
            "objective": self.objective,
            "licence": self.licence,
            "gated": self.gated,
            "trained at": self.input_size,
        }


# Convolutional and plain: measured, docs/log.md. Pretrained weights of the others were not to be had where it was done;
# their encoder's rate, lr x encoder_lr_scale, is what papers fine-tune with: 6e-5 to 1e-4 for Swin, MiT and ConvNeXt
# (https://arxiv.org/abs/2103.14030, https://arxiv.org/abs/2105.15203, https://arxiv.org/abs/2201.03545). SegFormer's
# decoder has ten times its encoder's. Plain ViTs' encoder rate is BEiT's, too: 3e-5 to 5e-5
# (https://arxiv.org/abs/2106.08254).
RATES = {
    "convolutional": Rates(3e-3, 3e-4, 1e-2, 1.0, "measured with tf_efficientnet_lite0 on two data sets"),
    "hierarchical": Rates(1e-3, 1e-4, 5e-3, 0.1, "Swin's, SegFormer's and ConvNeXt's papers fine-tune"),
    "plain": Rates(5e-4, 1e-4, 6e-3, 0.1, "measured with DINOv2's ViT-S on six data sets"),
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


@cache
def pretrainings() -> dict[str, Pretraining]:
    """Return how each set of weights came about, by timm's name with its tag."""
    if not WEIGHTS.is_file():
        return {}
    with WEIGHTS.open(newline="", encoding="utf-8") as file:
        rows = [{key: row[key] for key in vars(Pretraining("")) if key in row} for row in csv.DictReader(file)]
    return {row["weights"]: Pretraining(**row) for row in rows}


@cache
def _usual() -> dict[str, str]:
    return {name.partition(".")[0]: name for name, known in pretrainings().items() if known.default}


def tagged(name: str) -> str:
    """Return a model's name with the tag of its weights: `resnet34` means timm's `resnet34.a1_in1k`.

    As it is where it has a tag, or where timm has no weights for it.
    """
    return name if "." in name else _usual().get(name, name)


def pretraining(name: str) -> Pretraining:
    """Return how a model's weights came about; what is not known is unpublished."""
    full = tagged(name)
    return pretrainings().get(full) or Pretraining(full)


def matching(pattern: str) -> list[str]:
    """List the architectures that a shell-style pattern names, or has weights of; ConfigError if there are none."""
    wanted = pattern.lower()
    found = {name for name in architectures() if fnmatchcase(name, wanted)}
    found |= {name.partition(".")[0] for name in pretrainings() if "." in wanted and fnmatchcase(name, wanted)}
    if not found:
        hint = suggestion(pattern.strip("*?"), architectures(), n=3)
        raise ConfigError(f"{pattern}: there is no timm model with such a name.{hint} Try 'resnet*'.")
    return sorted(found)


def matching_weights(patterns: Iterable[str]) -> list[str]:
    """List the sets of weights, with their tags, that shell-style patterns name, in the patterns' order.

    A pattern names weights (`vit_small*.dino`), or an architecture, and then all of its weights (`resnet34`).

    Raises ConfigError: a pattern names none.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        wanted = pattern.strip().lower()
        named = [n for n in pretrainings() if fnmatchcase(n, wanted) or fnmatchcase(n.partition(".")[0], wanted)]
        if not named:
            hint = suggestion(wanted.replace("*", ""), [*architectures(), *pretrainings()], n=3)
            raise ConfigError(f"weights({pattern.strip()}): timm has no such weights.{hint} List: segsweep encoders")
        found |= dict.fromkeys(named)
    return list(found)


def expanded(word: str) -> str:
    """Say `encoder=weights(PATTERN,...)` in Hydra's grammar: a choice among the weights that the patterns name.

    Any other word is returned as it is. Raises ConfigError: a pattern names none.
    """
    key, equals, text = word.partition("=")
    asked = VARIED.fullmatch(text.strip("'\""))
    if key not in ("encoder", "encoder.name") or not asked:
        return word
    return f"{key}{equals}choice({','.join(matching_weights(asked[1].split(',')))})"


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
