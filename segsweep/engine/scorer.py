"""How a model is scored: one way for validation, test, evaluation, prediction and demo."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segsweep import metrics
from segsweep.data.batches import Batch, EvalBatches
from segsweep.data.geometry import Size, strips
from segsweep.data.store import Watch, unwatched
from segsweep.engine.counting import confusion_matrices
from segsweep.engine.execution import PLAIN, Execution
from segsweep.engine.losses import Loss
from segsweep.nn.tiles import tiled
from segsweep.nn.unet import predict

# The dimensions of `b c h w` that are mirrored in each view, by `train.tta`.
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {"none": ((),), "hflip": ((), (3,)), "flips": ((), (3,), (2,), (2, 3))}


@dataclass(frozen=True)
class Evaluation:
    """What the scoring of some images gave."""

    metrics: dict[str, float]  # scores by name without the split's prefix; loss is the mean of the images' own
    predictions: dict[int, Tensor]  # the predicted masks that were asked for, uint8 `h w` by sample
    matrices: dict[int, NDArray[np.int64]]  # the confusion matrix of each image by sample, int64 `k k`, targets in rows


@dataclass(frozen=True)
class Scorer:
    """Runs models on whole images."""

    execution: Execution = PLAIN
    tta: str = "none"  # none, hflip or flips: logits are averaged over mirrored views
    tile: Size | None = None  # height and width beyond which a canvas is run in overlapping tiles; None: always whole
    watch: Watch = unwatched  # wraps the iterator over the batches

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Run the model on all views of an image `b c h w` and return their mean logits, `b k h w`."""

        def forward(part: Tensor) -> Tensor:
            return self.execution.forward(model, part)

        limit = self.tile or (image.shape[2], image.shape[3])
        views = [tiled(forward, image.flip(view), limit).flip(view) for view in FLIPS[self.tta]]
        return views[0] if len(views) == 1 else torch.stack(views).float().mean(0)

    def iter_logits(self, model: nn.Module, batches: EvalBatches) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each batch with its logits `b k h w` on the canvas. Gradients are the caller's to switch off."""
        model.eval()
        for batch in self.watch(batches, len(batches), "scoring"):
            yield batch, self.logits(model, batch.image)

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, batches: EvalBatches, loss: Loss, names: Sequence[str], show: Sequence[int] = ()
    ) -> Evaluation:
        """Score each image on its mask's own pixel grid, whatever canvas the model saw.

        `names` are the classes'; the predictions of the samples `show` are kept. Of several processes each scores its
        own batches; all get the metrics, and the first one what is of each image.
        """
        losses: dict[int, float] = {}
        matrices: dict[int, NDArray[np.int64]] = {}
        predictions: dict[int, Tensor] = {}
        for batch, logits in self.iter_logits(model, batches):
            own = [loss(logits[i : i + 1], batch.mask[i : i + 1]) for i in range(len(batch.indices))]
            predicted = [
                torch.cat([predict(part[None])[0] for _, part in own_grid(batch, logits, i)])
                for i in range(len(batch.indices))
            ]
            matrices |= zip(batch.indices, confusion_matrices(predicted, batch.targets, len(names)), strict=True)
            losses |= zip(batch.indices, torch.stack(own).tolist(), strict=True)
            for index, prediction in zip(batch.indices, predicted, strict=True):
                if index in show:
                    predictions[index] = prediction.to(torch.uint8).cpu()
        scores: dict[str, float] = {}
        if parts := batches.world.gathered((losses, matrices, predictions)):
            losses, matrices, predictions = (
                {k: v for one in kind for k, v in one.items()} for kind in zip(*parts, strict=True)
            )
            matrices = {index: matrices[index] for index in batches.indices}  # in an order that no process decides
            mean = math.fsum(losses.values()) / max(len(losses), 1)
            scores = {"loss": mean, **metrics.scores(list(matrices.values()), names)}
        return Evaluation(batches.world.agreed(scores), predictions, matrices)


def own_grid(batch: Batch, logits: Tensor, i: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of one image of a batch on its mask's own pixel grid, from the top down: rows, `k rows w`."""
    height, width = batch.targets[i].shape
    return strips(logits[i].float(), batch.placements[i], (height, width))
