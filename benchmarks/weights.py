"""Every set of pretrained weights of timm, and what was done to make it, into docs/weights.csv.

    python benchmarks/weights.py            # what timm publishes
    python benchmarks/weights.py --hub      # and ask the hub which of them need a click on their licence

The pretraining is read from the names that timm gives (`vit_small_patch16_224.augreg_in21k_ft_in1k`), by the rules
below; where a name tells nothing, the table says so instead of guessing.
"""

import argparse
import csv
import re
from pathlib import Path
from typing import NamedTuple

import measure
import timm
from timm.models import PretrainedCfg, get_pretrained_cfg, list_pretrained

UNPUBLISHED = "unpublished"
COLUMNS = ("weights", "default", "data", "objective", "licence", "gated", "input_size", "hub", "timm")

# A word of a tag -> the images.
IMAGES = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "inw21k": "ImageNet-21k",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "sat493m": "SAT-493M",
    "sa1b": "SA-1B",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
    "laiona": "LAION-Aesthetic",
    "datacomp1b": "DataComp-1B",
    "datacompxl": "DataComp-XL",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "dfndr2b": "DFNDR-2B",
    "webli": "WebLI",
    "merged2b": "Merged-2B",
    "m30m": "Merged-30M",
    "m38m": "Merged-38M",
    "openai": "WIT-400M",
    "yfcc100m": "YFCC-100M",
    "yfcc15m": "YFCC-15M",
    "cc12m": "CC-12M",
    "jft": "JFT-300M",
    "ig1b": "Instagram-1B",
    "swag": "Instagram",
    "seer": "Instagram",
    "bamboo": "Bamboo-69M",
    "pali": "WebLI",
    "pali2": "WebLI",
    "metaclip": "MetaCLIP",
    "metaclip2": "MetaCLIP 2",
}
# Methods that were published with ImageNet-1k, where the tag names no images before a fine-tuning.
ON_IMAGENET = ("mae", "fcmae", "dino")


class Rule(NamedTuple):
    """What a name must hold for an objective: a pattern over `architecture.tag`."""

    pattern: str
    objective: str


# The first that matches counts. A word of a tag stands between `.`, `_` and the end.
RULES = (
    Rule(r"eupe_", "EUPE, distilled from several"),
    Rule(r"dinov3", "DINOv3, self-supervised"),
    Rule(r"dinov2", "DINOv2, self-supervised"),
    Rule(r"[._]dino(_|$)", "DINO, self-supervised"),
    Rule(r"[._](fc)?mae(_|$)", "masked autoencoder"),
    Rule(r"_ijepa$", "I-JEPA, self-supervised"),
    Rule(r"^sam2_|^samvit_", "segmentation with prompts (SAM)"),
    Rule(r"\.mim_|^eva_.*\.(m30m|in22k)_|^beit", "masked image modelling"),
    Rule(r"_tipsv2\.", "image-text (TIPS v2)"),
    Rule(r"_siglip_|\.(v2_)?webli|\.pali2?_", "image-text (SigLIP)"),
    Rule(r"^aimv2_", "autoregressive, image-text (AIMv2)"),
    Rule(r"_radio_", "distilled from several (RADIO)"),
    Rule(r"^(qwen3|gemma4|deepseek)_vit|\.gemma3n|florence2$|^vit_intern", "part of a vision-language model"),
    Rule(
        r"_clip_|[._]clip(_|$)|_clip\.|mclip|_mci|metaclip|\.openai|\.laion|datacomp|\.dfn|merged2b",
        "image-text (CLIP)",
    ),
    Rule(r"[._]swsl_", "semi-weakly supervised (hashtags)"),
    Rule(r"[._]ssl_", "semi-supervised"),
    Rule(r"[._](wsl|swag)_", "weakly supervised (hashtags)"),
    Rule(r"\.seer", "SwAV, self-supervised"),
    Rule(r"[._]ns_jft_", "noisy student"),
    Rule(r"[._](dist|distilled|ssld)_|_dist\.", "supervised, distilled"),
    Rule(r"[._](ap|adv)_", "supervised, adversarial"),
    Rule(r"[._](in1k|in12k|inw?21k|in22k|bamboo)(_|$)", "supervised"),
)


def pretraining(name: str) -> tuple[str, str]:
    """Return the images, in the order in which they were seen, and the objective, as the name tells them."""
    architecture, _, tag = name.partition(".")
    found = next((rule.objective for rule in RULES if re.search(rule.pattern, name)), UNPUBLISHED)
    words = tag.split("_")
    at = words.index("ft") if "ft" in words else len(words)
    images, tuned = ([IMAGES[word] for word in part if word in IMAGES] for part in (words[:at], words[at:]))
    if architecture.startswith("sam2_"):
        images = ["SA-1B", "SA-V"]
    elif not images and any(word in ON_IMAGENET for word in words[:at]):
        images = ["ImageNet-1k"]
    elif not images and tuned:
        images = [UNPUBLISHED]
    if tuned and found != UNPUBLISHED and not found.startswith("supervised"):
        found += ", then supervised"
    images += tuned
    return " > ".join(images) or UNPUBLISHED, found


def row(name: str, gated: str = UNPUBLISHED) -> dict[str, str]:
    known: PretrainedCfg = get_pretrained_cfg(name)
    usual = get_pretrained_cfg(name.partition(".")[0])
    images, objective = pretraining(name)
    licence = known.license or UNPUBLISHED
    return {
        "weights": name,
        "default": "yes" if usual and usual.tag == known.tag else "",
        "data": images,
        "objective": objective,
        "licence": UNPUBLISHED if licence == "unknown" else licence,
        "gated": gated,
        "input_size": "x".join(map(str, known.input_size[-2:])),
        "hub": known.hf_hub_id or "",
        "timm": timm.__version__,
    }


def asked(name: str) -> str:
    """Ask the hub whether the weights need a click on their licence."""
    from huggingface_hub import model_info

    place = get_pretrained_cfg(name).hf_hub_id
    return ("yes" if model_info(place).gated else "no") if place else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=measure.ROOT / "docs" / "weights.csv")
    parser.add_argument("--hub", action="store_true", help="ask the hub which are gated; minutes")
    options = parser.parse_args()
    names = sorted(name for name in list_pretrained() if "." in name)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row(name, asked(name) if options.hub else UNPUBLISHED) for name in names)


if __name__ == "__main__":
    main()
