"""A trained model in MLflow's registry: a program that runs without segsweep, and a card that says what it is."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segsweep.console import SCORES
from segsweep.data.dataset import Dataset
from segsweep.inference.evaluate import FOLDER
from segsweep.inference.export import Comparison, Sizes, export, preparation
from segsweep.inference.find import Found
from segsweep.nn.checkpoint import describe
from segsweep.nn.weights import about as pretrained
from segsweep.runs import journal
from segsweep.tracking import registry
from segsweep.training.loop import Watch


@dataclass(frozen=True)
class Registration:
    """A version in the registry, the champion before it (or ""), its run and tracking URI; as `Exported` the rest."""

    version: str
    before: str
    run: str
    uri: str
    sizes: Sizes
    images: str
    comparison: Comparison


def register(
    found: Found,
    name: str,
    uri: str | None = None,
    data: Dataset | None = None,
    watch: Watch = lambda items, *_: items,
) -> Registration:
    """Export a run's model with torch.export, verify it, and make it the champion of a registered model.

    Args:
        found: the model; its run is sent to MLflow first, where it is not there yet.
        name: of the registered model.
        uri: MLflow's tracking URI; default: the run's own, as `segsweep sync` has it.
        data: whose validation images are compared; None: random pixels.
        watch: wraps the iterator over the batches; also given their number and a title.

    Raises:
        ConfigError: a model without a run, one that cannot be exported, or a name that MLflow does not take.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    folder = found.run
    about, records = describe(found.model), journal.read(folder)
    registry.check(folder, uri, name)
    with tempfile.TemporaryDirectory() as made:
        program = Path(made) / "model.pt2"
        done = export(found.model, program, "pt2", data, watch, rounds=0)
        card = model_card(name, folder, about, records, done.sizes)
        channels = (about["model"]["in_channels"], about["model"]["num_classes"])
        tags = {"data_digest": journal.last_start(records)["data_digest"], "sizes": str(done.sizes)}
        registered = registry.register(folder, uri, name, program, channels, str(torch.__version__), card, tags)
    return Registration(**vars(registered), sizes=done.sizes, images=done.images, comparison=done.comparison)


def model_card(
    name: str, folder: Path, about: Mapping[str, Any], records: Sequence[dict[str, Any]], sizes: Sizes
) -> str:
    """What the model is, in Markdown, after Mitchell et al. 2019 (https://arxiv.org/abs/1810.03993).

    Args:
        name: of the registered model.
        folder: of the run.
        about: what the model's file says of it.
        records: the run's journal.
        sizes: that the program takes.
    """
    start, encoder, classes = journal.last_start(list(records)), about["model"]["name"], about["classes"]
    low, high = about.get("range", (0, 255))
    data = start["config"]["data"]
    one = about["model"]["num_classes"] == 1
    rule = f"above 0 is {classes[-1]}" if one else "the largest logit is the class"
    images = ", ".join(f"{start[f'data/{part}']} {part}" for part in ("train", "val", "test") if start[f"data/{part}"])
    lines = [
        f"# U-Net on {encoder}: {', '.join(classes)}",
        "",
        "Semantic segmentation: a class for each pixel.",
        "",
        "```python",
        "import mlflow",
        "",
        f'model = mlflow.pytorch.load_model("models:/{name}@{registry.CHAMPION}")',
        "logits = model(pixels)",
        "```",
        "",
        f"- **Input** `pixels`: float32 `b {about['model']['in_channels']} h w`, values from {low:g} to {high:g}; "
        "normalisation is inside.",
        f"- **Output** `logits`: `b {about['model']['num_classes']} h w`; {rule}.",
        f"- **Sizes**: {sizes}. Trained on {about['size'][0]}x{about['size'][1]} (resize={about['resize']}).",
        f"- **Images** are to be {preparation(about)}."
        if about["resize"] != "crop"
        else "- **Images** go in as they are.",
        "",
        "## Data",
        "",
        f"{data['name']}, digest `{start['data_digest']}`: {images} images.",
        "",
        "## Scores",
        "",
        *_scores(folder, records, about.get("epoch")),
        "",
        "## Intended use",
        "",
        "Images like those it was trained on: the same camera, scale and kind of object, with a person who looks at "
        "what it says.",
        "",
        "## Limits",
        "",
        "It gives an answer for every image, also for one unlike all it has seen; logits are no calibrated "
        "probabilities. The scores hold for the data above. Objects much smaller or larger than there may be missed. "
        "Not tested for medical or safety-critical decisions.",
        "",
        "## Weights",
        "",
        f"The encoder started from: {start['weights_source']}. {_licence(encoder, start['weights_source'])} "
        "The data may have terms of their own.",
        "",
        "## Made by",
        "",
        f"segsweep {start['segsweep']}, commit {start['commit'] or 'unknown'}{' with changes' * bool(start['dirty'])}, "
        f"torch {start['torch']}, seed {start['config']['train']['seed']}:",
        "",
        "```",
        f"python train.py {start['command']}".rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _scores(folder: Path, records: Sequence[dict[str, Any]], epoch: int | None) -> list[str]:
    """A table for each split: with 95 % intervals where the run has been evaluated, else the training's own."""
    lines = ["| split | metric | value | 95 % over images |", "|---|---|---|---|"]
    end = records[-1] if records[-1]["kind"] == "end" else {}
    for split in ("val", "test"):
        path = folder / FOLDER / split / "metrics.json"
        evaluated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not evaluated.get("own") or evaluated["epoch"] != epoch:
            evaluated = {}  # of other images, or of an earlier model
        values = evaluated.get("metrics", {name: end.get(f"{split}/{name}") for name in SCORES})
        for name, title in SCORES.items():
            if values.get(name) is not None:
                low, high = evaluated.get("intervals", {}).get(name, (None, None))
                between = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else "not computed"
                lines.append(f"| {split} | {title} | {values[name]:.4f} | {between} |")
    return lines


def _licence(encoder: str, source: str) -> str:
    if source == "random":
        return "Nobody else's weights are in it."
    if source == "package":
        return "Licence of the pretrained weights: Apache-2.0."
    if source == "file":
        return "Licence of the pretrained weights: that of the file they came from."
    licence = pretrained(encoder).license
    return f"Licence of the pretrained weights, as timm has it: {licence or 'unknown: look at their source'}."
