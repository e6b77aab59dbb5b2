"""Batches on the device: windows cut from the store, warped once, coloured.

Everything random is drawn on the CPU for the global batch from (seed, epoch, step) and sliced by rank: no generator
state has to be kept, and any number of devices sees the same training.
"""

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from segsweep.data import augment
from segsweep.data.geometry import Placement, Size, canvas, place
from segsweep.data.labels import VOID, Labels
from segsweep.data.prefetch import ahead
from segsweep.data.store import Store
from segsweep.data.windows import Windows, cut, stack, warp

T = TypeVar("T")

THREADS = 4  # that prepare batches, unless told otherwise: cutting windows is light work, decoding files is not
ORDER, DRAWS, NOISE, SPOTS = 0, 1, 2, 3  # purposes of randomness, so that no two share a stream


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        image: `b c h w` float32, on the scale of the stored data type.
        mask: `b h w` int64, class indices; VOID where there is no image or no label.
        indices: of the samples in the store.
        placements: where each canvas lies on its image.
        targets: for evaluation: each sample's class indices on its own pixel grid, `h w` int64, VOID where they do not
            count.
    """

    image: Tensor
    mask: Tensor
    indices: tuple[int, ...]
    placements: tuple[Placement, ...]
    targets: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class _Prepared:
    """What the host makes of a micro-batch; targets: whole masks, for evaluation."""

    indices: tuple[int, ...]
    placements: tuple[Placement, ...]
    windows: Windows
    targets: tuple[Tensor, ...] = ()


class Source:
    """What both kinds of batches share: the store, its labels, and how a canvas is laid over an image.

    A micro-batch has two halves: the host cuts windows out of the store, in threads and some batches ahead, and the
    device does the rest.
    """

    def __init__(
        self, store: Store, labels: Labels, size: Size, resize: str, device: torch.device, workers: int | None = None
    ):
        self.store = store
        self.size = size
        self.resize = resize
        self.device = device
        self.labels = labels
        self.workers = workers or min(THREADS, os.cpu_count() or 1)
        self.table = torch.from_numpy(labels.table).long().to(device)

    def _ahead(self, jobs: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
        """The jobs' results in their order, some computed ahead; at once where the pixels are on the device."""
        if self.store.on_device:
            return (job() for job in jobs)
        return ahead(jobs, self.workers, self.workers)

    def _windows(self, indices: Sequence[int], placements: Sequence[Placement], whole: bool = False) -> "_Prepared":
        """The host's half: cut one window for each sample."""
        read = [self.store.pair(i) for i in indices]
        windows = stack([cut(*pair, p) for pair, p in zip(read, placements, strict=True)], self.store.channels)
        if self.device.type == "cuda" and not self.store.on_device:
            windows = windows.pinned()
        return _Prepared(tuple(indices), tuple(placements), windows, tuple(mask for _, mask in read) if whole else ())

    def _batch(self, prepared: "_Prepared") -> Batch:
        """The device's half: warp and label. All canvases have one size."""
        image, values, inside = warp(prepared.windows, prepared.placements[0].canvas, self.device)
        mask = torch.where(inside, self.table.index_select(0, values.flatten().int()).view_as(inside), VOID)
        targets = tuple(
            self.table.index_select(0, target.to(self.device, non_blocking=True).flatten().int()).view(target.shape)
            for target in prepared.targets
        )
        return Batch(image, mask, prepared.indices, prepared.placements, targets)


class TrainBatches(Source):
    """Augmented batches of the training split.

    An epoch is one or more passes over the samples, each in an order of its own; the last batch is filled up from the
    next pass, so that all batches are full.

    Args:
        indices: of the training samples.
        size: height and width of the canvas.
        resize: pad, squash or crop.
        batch_size: the global batch, over all ranks and micro-batches.
        repeats: passes in an epoch.
        accumulate: micro-batches a batch is cut into.
        augmentation: the arguments of `segsweep.data.augment.draw`.
        rarity: of each of `indices`: a pass shows them as often, up to a common factor; default: each once.
        foreground: share of crops that are laid over a pixel of a random class of their image; of two classes, of the
            foreground.
        rank, world: this process's share of every batch.
        workers: threads that prepare batches ahead.
    """

    def __init__(
        self,
        store: Store,
        labels: Labels,
        indices: Sequence[int],
        *,
        size: Size,
        resize: str,
        batch_size: int,
        seed: int,
        device: torch.device,
        repeats: int = 1,
        accumulate: int = 1,
        augmentation: Mapping[str, float] | None = None,
        rarity: Sequence[float] | None = None,
        foreground: float = 0.0,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
    ):
        super().__init__(store, labels, size, resize, device, workers)
        self.indices = np.asarray(indices)
        self.batch_size = batch_size
        self.repeats = repeats
        self.accumulate = accumulate
        self.augmentation = dict(augmentation or {})
        self.rarity = None if rarity is None else np.asarray(rarity) / sum(rarity)
        self.foreground = foreground
        self.seed = seed
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(self.repeats * len(self.indices) / self.batch_size)

    def epoch(self, number: int) -> Iterator[Iterator[Batch]]:
        """The steps of epoch `number`, each an iterator over its micro-batches."""
        rng = np.random.default_rng([ORDER, self.seed, number])
        needed = len(self) * self.batch_size
        order = np.concatenate([self._shuffled(rng) for _ in range(math.ceil(needed / len(self.indices)))])
        jobs = (
            partial(self._prepared, number, step, part, order[step * self.batch_size : (step + 1) * self.batch_size])
            for step in range(len(self))
            for part in range(self.accumulate)
        )
        with closing(self._ahead(jobs)) as prepared:
            for _ in range(len(self)):
                yield (self._augmented(*next(prepared)) for _ in range(self.accumulate))

    def _shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """As many samples as there are, in random order; by rarity with systematic resampling."""
        if self.rarity is None:
            return rng.permutation(self.indices)
        n = len(self.indices)
        chosen = np.searchsorted(np.cumsum(self.rarity), (np.arange(n) + rng.random()) / n).clip(max=n - 1)
        return rng.permutation(self.indices[chosen])

    def _prepared(self, epoch: int, step: int, part: int, chosen: np.ndarray) -> tuple[_Prepared, augment.Draws, int]:
        """One micro-batch's windows, its draws and the seed of its noise."""
        rows = np.array_split(np.arange(len(chosen))[self.rank :: self.world], self.accumulate)[part]
        indices = chosen[rows].tolist()
        rng = np.random.default_rng([DRAWS, self.seed, epoch, step])
        draws = augment.draw(rng, len(chosen), **self.augmentation)[rows]
        if self.foreground:
            spots = np.random.default_rng([SPOTS, self.seed, epoch, step]).random((len(chosen), 3))[rows]
            windows = [self._spotted(i, w, s) for i, w, s in zip(indices, draws.window, spots, strict=True)]
            draws = replace(draws, window=np.stack(windows))
        placements = []
        for i, index in enumerate(indices):
            row = self.store.rows[index]
            base = place((row.height, row.width), self.size, self.resize, draws.window[i])
            shift = base.linear @ (draws.shift[i] * self.size[::-1])
            placements.append(Placement(base.linear @ draws.linear[i], base.center + shift, self.size))
        seed = np.random.SeedSequence([NOISE, self.seed, epoch, step, part, self.rank]).generate_state(1)[0]
        return self._windows(indices, placements), draws, int(seed)

    def _spotted(self, index: int, window: np.ndarray, spot: np.ndarray) -> np.ndarray:
        """Where a crop lies so that it holds a certain pixel, `window` saying where in the crop."""
        chance, which, pixel = spot
        table, row = self.labels.table, self.store.rows[index]
        classes = sorted(
            {int(table[value]) for value in row.values} - {VOID} - ({0} if self.labels.logits == 1 else set())
        )
        if chance >= self.foreground or not classes:
            return window
        found = np.flatnonzero(table[self.store.host_mask(index)] == classes[int(which * len(classes))])
        y, x = divmod(int(found[int(pixel * len(found))]), row.width)
        space = np.array(self.size[::-1])
        room = np.maximum(np.array([row.width, row.height]) - space, 0)
        first = np.clip(np.ceil((x, y) - window * space), 0, room)
        return (first + 0.5) / (room + 1)

    def _augmented(self, prepared: _Prepared, draws: augment.Draws, noise_seed: int) -> Batch:
        batch = self._batch(prepared)
        low, high = self.store.range
        image = augment.recolor(batch.image, draws, low, high)
        image = augment.blurred(image, draws.blur, self.augmentation.get("blur", 0.0))
        image = augment.noised(image, draws.noise, low, high, noise_seed)
        return replace(batch, image=image)


class EvalBatches(Source):
    """Every sample once, whole and without augmentation.

    With resize=crop an image is its own canvas; images of one size share a batch.

    Args:
        indices: of the samples, in the order they are given back but for the grouping by size.
        batch_size: largest number of canvases; fewer where they are larger than `size`.
        workers: threads that prepare batches ahead.
    """

    def __init__(
        self,
        store: Store,
        labels: Labels,
        indices: Sequence[int],
        *,
        size: Size,
        resize: str,
        batch_size: int,
        device: torch.device,
        workers: int | None = None,
    ):
        super().__init__(store, labels, size, resize, device, workers)
        self.indices = list(indices)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self._plan())

    def __iter__(self) -> Iterator[Batch]:
        jobs = (partial(self._prepared, size, chosen) for size, chosen in self._plan())
        with closing(self._ahead(jobs)) as prepared:
            for part in prepared:
                yield self._batch(part)

    def _prepared(self, size: Size, chosen: Sequence[int]) -> _Prepared:
        own = [(self.store.rows[i].height, self.store.rows[i].width) for i in chosen]
        return self._windows(chosen, [place(image, size, self.resize) for image in own], whole=True)

    def _plan(self) -> list[tuple[Size, list[int]]]:
        """The batches: the canvas and the samples of each."""
        by_canvas: dict[Size, list[int]] = {}
        for index in self.indices:
            row = self.store.rows[index]
            by_canvas.setdefault(canvas((row.height, row.width), self.size, self.resize), []).append(index)
        area = self.size[0] * self.size[1]
        batches = []
        for size, indices in by_canvas.items():
            n = max(1, min(self.batch_size, self.batch_size * area // (size[0] * size[1])))
            batches += [(size, indices[start : start + n]) for start in range(0, len(indices), n)]
        return batches
