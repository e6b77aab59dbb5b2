"""Register a trained model in MLflow: an exported model that runs without segsweep, and a model card."""

import tempfile
from pathlib import Path

import torch

from segsweep.console import SCORES
from segsweep.data.dataset import Dataset
from segsweep.data.store import Watch, unwatched
from segsweep.inference.evaluate import FOLDER, read_evaluation
from segsweep.inference.export import Exported, Sizes, export, preparation
from segsweep.inference.find import Found
from segsweep.inference.running import without_views
from segsweep.nn.checkpoint import ModelInfo, describe
from segsweep.nn.weights import about as pretrained
from segsweep.paths import program
from segsweep.runs import journal
from segsweep.runs.records import Run
from segsweep.tracking import registry

LICENCES = {"package": "Apache-2.0", "file": "the licence of the file that they came from"}
USE = """\
## Intended use

Images similar to the training images: the same camera, scale and kind of object. A person must check the results.

## Limits

The model gives a result for every image, also for an image that is very different from the training images. \
The logits are not calibrated probabilities. \
The scores are for the data above. Objects that are much smaller or larger than in these data may be missed. \
Not tested for medical or safety-critical decisions."""


def register(
    found: Found, name: str, uri: str | None = None, data: Dataset | None = None, watch: Watch = unwatched
) -> tuple[registry.Registered, Exported]:
    """Export a run's model as `export` does, and make it the champion of a registered model of this name.

    Args:
        found: the model; its run is sent to MLflow first, where it is not there yet.
        uri: MLflow's tracking URI, typed by this user; default: the run's own.

    Returns:
        the version in the registry, and the program, whose file is there no longer.

    Raises:
        ConfigError: a model without a run, one whose own tracking URI is not this user's, one that cannot be exported,
            or a name that MLflow does not take.
        mlflow.exceptions.MlflowException: the server cannot be reached or refuses.
    """
    folder = found.run
    info, run = describe(found.model), journal.started(folder)
    registry.check(folder, uri, name)
    with tempfile.TemporaryDirectory() as made:
        program = Path(made) / "model.pt2"
        done = export(found.model, program, "pt2", data, watch, rounds=0)
        card = model_card(name, folder, info, run, done.sizes)
        channels = (info.model.in_channels, info.model.num_classes)
        tags = {"data_digest": run.starts[-1].data_digest, "sizes": str(done.sizes)}
        registered = registry.register(folder, uri, name, program, channels, str(torch.__version__), card, tags)
    return registered, done


def model_card(name: str, folder: Path, info: ModelInfo, run: Run, sizes: Sizes) -> str:
    """Return the model card of a run in Markdown, after Mitchell et al. 2019 (arXiv:1810.03993)."""
    start, (low, high), (height, width) = run.starts[-1], info.range, info.size
    channels, logits = info.model.in_channels, info.model.num_classes
    rule = f"above 0 is {info.classes[-1]}" if logits == 1 else "the largest logit is the class"
    images = ", ".join(f"{start.images[part]} {part}" for part in ("train", "val", "test") if start.images.get(part))
    prepared = f"are to be {preparation(info)}" if info.resamples else f"go in {preparation(info)}"
    return f"""\
# U-Net on {info.encoder}: {", ".join(info.classes)}

Semantic segmentation: a class for each pixel.

```python
import mlflow

model = mlflow.pytorch.load_model("models:/{name}@{registry.CHAMPION}")
logits = model(pixels)
```

- **Input** `pixels`: float32 `b {channels} h w`, values from {low:g} to {high:g}; normalisation is inside.
- **Output** `logits`: `b {logits} h w`; {rule}.
- **Sizes**: {sizes}. Trained on {height}x{width} (resize={info.resize}).
- **Images** {prepared}.

## Data

{start.asked.data.name}, digest `{start.data_digest}`: {images} images.

## Scores

{_scores(folder, run, info)}

{USE}

## Weights

The encoder started from: {start.weights_source}. {_licence(info.encoder, start.weights_source)} \
The data may have terms of their own.

## Made by

segsweep {start.segsweep}, commit {start.commit or "unknown"}{" with changes" * start.dirty}, \
torch {start.torch}, seed {start.settings.train.seed}:

```
{f"{program()} {start.command}".rstrip()}
```
"""


def _scores(folder: Path, run: Run, info: ModelInfo) -> str:
    """Return a table for each split: with 95 % intervals where the run has been evaluated, else the training's own."""
    lines = ["| split | metric | value | 95 % over images |", "|---|---|---|---|"]
    ended = run.end.metrics if run.end else {}
    for split in ("val", "test"):
        found = read_evaluation(folder / FOLDER / split)
        if found and (found.own, found.epoch, found.split, found.tta) != (True, info.epoch, split, info.tta):
            found = None  # of other images or views, or of an earlier model
        for name, title in SCORES.items():
            value = found.metrics.get(name) if found else ended.get(f"{split}/{name}")
            low, high = found.intervals.get(name, (None, None)) if found else (None, None)
            if value is not None:
                between = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else "not computed"
                lines.append(f"| {split} | {title} | {value:.4f} | {between} |")
    if views := without_views(info):
        lines += ["", f"The {views}."]
    return "\n".join(lines)


def _licence(encoder: str, source: str) -> str:
    if source == "random":
        return "It contains no weights from others."
    if source in LICENCES:
        return f"Licence of the pretrained weights: {LICENCES[source]}."
    licence = pretrained(encoder).license
    return f"Licence of the pretrained weights, as timm has it: {licence or 'unknown: look at their source'}."
