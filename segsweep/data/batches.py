"""Batches on the device: windows cut from the store, warped once, coloured.

Everything random is drawn on the CPU for the global batch from (seed, epoch, step) and sliced by rank: no generator
state has to be kept, and any number of devices sees the same training.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segsweep.data import augment
from segsweep.data.geometry import Placement, Size, place, sample
from segsweep.data.labels import VOID, Labels
from segsweep.data.store import Store

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
class _Windows:
    """What the host prepares of a micro-batch: one window for each canvas, in arrays of one size.

    images: `b h w c` in the store's data type; masks: `b h w`; affine: `b 2 3`; bounds: `b 2 2`; extent: `b 2`, x
    first; targets: whole masks, for evaluation.
    """

    indices: tuple[int, ...]
    placements: tuple[Placement, ...]
    images: Tensor
    masks: Tensor
    affine: Tensor
    bounds: Tensor
    extent: Tensor
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
            yield from (job() for job in jobs)
            return
        pool = ThreadPoolExecutor(self.workers, "batches")
        ahead: deque[Future[T]] = deque()
        try:
            for job in jobs:
                ahead.append(pool.submit(job))
                if len(ahead) > self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _windows(self, indices: Sequence[int], placements: Sequence[Placement], whole: bool = False) -> _Windows:
        """The host's half: cut one window for each sample."""
        read = [self.store.pair(i) for i in indices]
        cut = [_cut(image, mask, p) for (image, mask), p in zip(read, placements, strict=True)]
        height, width = (max(sides) for sides in zip(*(w.mask.shape for w in cut), strict=True))
        images = torch.zeros(
            len(cut), height, width, self.store.channels, dtype=cut[0].image.dtype, device=cut[0].image.device
        )
        masks = torch.zeros(len(cut), height, width, dtype=torch.uint8, device=images.device)
        for i, window in enumerate(cut):
            h, w = window.mask.shape
            images[i, :h, :w] = window.image
            masks[i, :h, :w] = window.mask
        if self.device.type == "cuda" and not self.store.on_device:
            images, masks = images.pin_memory(), masks.pin_memory()
        return _Windows(
            tuple(indices),
            tuple(placements),
            images,
            masks,
            affine=torch.from_numpy(np.stack([w.affine for w in cut])).float(),
            bounds=torch.from_numpy(np.stack([w.bounds for w in cut])).float(),
            extent=torch.tensor([w.mask.shape[::-1] for w in cut]),
            targets=tuple(mask for _, mask in read) if whole else (),
        )

    def _batch(self, windows: _Windows) -> Batch:
        """The device's half: warp and label. All canvases have one size."""
        move = partial(torch.Tensor.to, device=self.device, non_blocking=True)
        images = move(windows.images).permute(0, 3, 1, 2).float()
        masks, affine, bounds, extent = (
            move(t) for t in (windows.masks, windows.affine, windows.bounds, windows.extent)
        )
        x, y = _mapped(windows.placements[0].canvas, affine)
        (left, right), (top, bottom) = bounds.permute(2, 1, 0)[..., None, None]
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        # The outermost pixel centres: beyond them the edge is replicated, whatever the other windows' sizes.
        width, height = extent.float().T[..., None, None]
        half = torch.full_like(width, 0.5)
        x, y = torch.clamp(x, half, width - 0.5), torch.clamp(y, half, height - 0.5)
        image = sample(images, x, y)
        values = masks.flatten(1).gather(1, (y.long() * masks.shape[2] + x.long()).flatten(1)).flatten()
        mask = torch.where(inside, self.table.index_select(0, values.int()).view_as(inside), VOID)
        targets = tuple(
            self.table.index_select(0, move(target).flatten().int()).view(target.shape) for target in windows.targets
        )
        return Batch(image, mask, windows.indices, windows.placements, targets)


class TrainBatches(Source):
    """Augmented batches of the training split.

    An epoch shows every sample; the last batch is filled up from the next shuffle, so that all batches are full.

    Args:
        indices: of the training samples.
        size: height and width of the canvas.
        resize: pad, squash or crop.
        batch_size: the global batch, over all ranks and micro-batches.
        accumulate: micro-batches a batch is cut into.
        augmentation: the arguments of `segsweep.data.augment.draw`.
        rarity: of each of `indices`: an epoch shows them as often, up to a common factor; default: each once.
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
        self.accumulate = accumulate
        self.augmentation = dict(augmentation or {})
        self.rarity = None if rarity is None else np.asarray(rarity) / sum(rarity)
        self.foreground = foreground
        self.seed = seed
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(len(self.indices) / self.batch_size)

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

    def _prepared(self, epoch: int, step: int, part: int, chosen: np.ndarray) -> tuple[_Windows, augment.Draws, int]:
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

    def _augmented(self, windows: _Windows, draws: augment.Draws, noise_seed: int) -> Batch:
        batch = self._batch(windows)
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
        jobs = (partial(self._prepared, canvas, chosen) for canvas, chosen in self._plan())
        with closing(self._ahead(jobs)) as prepared:
            for windows in prepared:
                yield self._batch(windows)

    def _prepared(self, canvas: Size, chosen: Sequence[int]) -> _Windows:
        sizes = [(self.store.rows[i].height, self.store.rows[i].width) for i in chosen]
        return self._windows(chosen, [place(size, canvas, self.resize) for size in sizes], whole=True)

    def _plan(self) -> list[tuple[Size, list[int]]]:
        """The batches: the canvas and the samples of each."""
        by_canvas: dict[Size, list[int]] = {}
        for index in self.indices:
            row = self.store.rows[index]
            own = (max(32, row.height), max(32, row.width))
            by_canvas.setdefault(own if self.resize == "crop" else self.size, []).append(index)
        area = self.size[0] * self.size[1]
        batches = []
        for canvas, indices in by_canvas.items():
            n = max(1, min(self.batch_size, self.batch_size * area // (canvas[0] * canvas[1])))
            batches += [(canvas, indices[start : start + n]) for start in range(0, len(indices), n)]
        return batches


@dataclass(frozen=True)
class _Window:
    """The part of one image that a canvas needs, shrunk by a whole factor where the canvas is coarser.

    image: `h w c` in the store's data type; mask: `h w`; affine: `2 3`, from the canvas to window pixels; bounds:
    `2 2`, first and last corner of the image in window pixels, x first.
    """

    image: Tensor
    mask: Tensor
    affine: np.ndarray
    bounds: np.ndarray


def _cut(image: Tensor, mask: Tensor, placement: Placement) -> _Window:
    size = np.array(mask.shape[::-1])
    # Averaging blocks of whole pixels first keeps the bilinear warp from skipping any: an antialias that costs little.
    factor = np.maximum(1, np.floor(np.linalg.norm(placement.linear, axis=1))).astype(int)
    half = np.abs(placement.linear) @ (np.array(placement.canvas[::-1]) / 2)
    first = np.clip(np.floor(placement.center - half) - factor, 0, size - 1).astype(int)
    last = np.clip(np.ceil(placement.center + half) + factor, first + 1, size).astype(int)
    image = image[first[1] : last[1], first[0] : last[0]]
    mask = mask[first[1] : last[1], first[0] : last[0]]
    if (factor > 1).any():
        image = _shrunk(image, int(factor[0]), int(factor[1]))
        mask = mask[_middles(mask.shape[0], int(factor[1]))][:, _middles(mask.shape[1], int(factor[0]))]
    linear = placement.linear / factor[:, None]
    shift = (placement.center - first) / factor
    bounds = np.stack([(0 - first) / factor, (size - first) / factor])
    return _Window(image, mask, np.concatenate([linear, shift[:, None]], axis=1), bounds)


def _shrunk(image: Tensor, x: int, y: int) -> Tensor:
    """Means of blocks of y by x pixels; smaller blocks at the far edges."""
    pooled = F.avg_pool2d(image.permute(2, 0, 1)[None].float(), (y, x), ceil_mode=True, count_include_pad=False)[
        0
    ].permute(1, 2, 0)
    return pooled if image.dtype.is_floating_point else pooled.round().to(image.dtype)


def _middles(length: int, factor: int) -> slice | Tensor:
    return (torch.arange(0, length, factor) + factor // 2).clamp(max=length - 1) if factor > 1 else slice(None)


def _mapped(canvas: Size, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixel centres of a canvas lie under the maps `b 2 3` from its centre: x and y, `b h w` each."""
    y = torch.arange(canvas[0], device=affine.device)[:, None] + 0.5 - canvas[0] / 2
    x = torch.arange(canvas[1], device=affine.device) + 0.5 - canvas[1] / 2
    by_x, by_y, shift = affine.permute(2, 1, 0)[..., None, None]  # each `2 b 1 1`
    along = by_x * x
    down = by_y * y + shift
    return along[0] + down[0], along[1] + down[1]
