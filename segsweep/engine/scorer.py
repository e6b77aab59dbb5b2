"""How a model is scored: one way for validation, test, evaluation, prediction and demo."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segsweep import metrics
from segsweep.data.batches import Batch, EvalBatches
from segsweep.data.geometry import Size, strips
from segsweep.data.store import Watch, unwatched
from segsweep.data.windows import alike
from segsweep.engine.casting import AtOnce
from segsweep.engine.counting import matrices, pair_counts
from segsweep.engine.device import Fetched, searching
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
        losses_sent: list[tuple[Sequence[int], Fetched]] = []
        counts_sent: list[tuple[Sequence[int], Fetched]] = []
        masks: dict[int, Fetched] = {}
        at_once = AtOnce(model.eval(), self.execution.precision)
        with searching(batches.sizes == 1), at_once.applied():
            for batch, logits in self.iter_logits(model, batches):
                own = torch.func.vmap(loss)(logits[:, None], batch.mask[:, None])
                losses_sent.append((batch.indices, Fetched(own)))
                for same, prediction in own_grids(batch, logits):
                    indices, target = [batch.indices[i] for i in same], torch.stack([batch.targets[i] for i in same])
                    counts_sent.append((indices, Fetched(pair_counts(prediction, target, len(names)))))
                    for index, mask in zip(indices, prediction, strict=True):
                        if index in show:
                            masks[index] = Fetched(mask.to(torch.uint8))
        # No batch has waited for the device until here.
        losses: dict[int, float] = {}
        counted: dict[int, NDArray[np.int64]] = {}
        for of, sent in losses_sent:
            losses |= zip(of, sent.get().tolist(), strict=True)
        for of, sent in counts_sent:
            counted |= zip(of, matrices(sent.get(), len(names)), strict=True)
        predictions = {index: mask.get() for index, mask in masks.items()}
        scores: dict[str, float] = {}
        if parts := batches.world.gathered((losses, counted, predictions)):
            losses, counted, predictions = (
                {k: v for one in kind for k, v in one.items()} for kind in zip(*parts, strict=True)
            )
            counted = {index: counted[index] for index in batches.indices}  # in an order that no process decides
            mean = math.fsum(losses.values()) / max(len(losses), 1)
            scores = {"loss": mean, **metrics.scores(list(counted.values()), names)}
        return Evaluation(batches.world.agreed(scores), predictions, counted)


def own_grid(batch: Batch, logits: Tensor, i: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of one image of a batch on its mask's own pixel grid, from the top down: rows, `k rows w`."""
    height, width = batch.targets[i].shape
    return strips(logits[i].float(), batch.placements[i], (height, width))


def own_grids(batch: Batch, logits: Tensor) -> Iterator[tuple[list[int], Tensor]]:
    """Yield predictions `n h w` on the masks' own pixel grids, images of one size and placement together.

    With them the places of these images in the batch.
    """
    logits = logits.float()
    for same in alike(_grid(batch, i) for i in range(len(batch.indices))):
        chosen = logits if len(same) == len(logits) else torch.stack([logits[i] for i in same])
        height, width = batch.targets[same[0]].shape
        parts = [predict(part) for _, part in strips(chosen, batch.placements[same[0]], (height, width))]
        yield same, parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _grid(batch: Batch, i: int) -> Hashable:
    """What images that are brought to their grids together have alike."""
    placement = batch.placements[i]
    return batch.targets[i].shape, placement.linear.tobytes(), placement.center.tobytes()
