"""Batches on the device: windows cut from the store, warped once, coloured.

Everything random is drawn on the CPU for the global batch from (seed, epoch, step), then sliced: no generator state has
to be kept, and N processes see what one with N micro-batches sees.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from segsweep.config.schema import AugmentationConfig
from segsweep.data import augment
from segsweep.data.geometry import Canvas, Placement, Size
from segsweep.data.labels import VOID, Labels
from segsweep.data.prefetch import on_side_stream, prefetch
from segsweep.data.store import Store
from segsweep.data.windows import NUMBERS, Points, Windows, alike, centres, cut, needed, stack, warped
from segsweep.world import SINGLE, World, cores

T = TypeVar("T")
Made = tuple[Tensor, Tensor]  # images `b c h w` float32 and class indices `b h w` int64

CUTTERS, DECODERS = 4, 16  # threads at most, unless told otherwise: each holds a micro-batch, and cutting is light
MOST_SPOTS = 512  # pixels of a class in an image that crops may be laid over
ORDER, DRAWS, NOISE, SPOTS = 0, 1, 2, 3  # purposes of randomness, so that no two share a stream


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    image: Tensor  # `b c h w` float32, on the scale of the stored data type
    mask: Tensor  # `b h w` int64, class indices; VOID where there is no image or no label
    indices: tuple[int, ...]  # of the samples in the store
    placements: tuple[Placement, ...]  # where each canvas lies on its image
    targets: tuple[Tensor, ...] = ()  # for evaluation: class indices on each sample's own grid, `h w` int64, or VOID


@dataclass(frozen=True)
class HostBatch:
    """What the host makes of a micro-batch."""

    indices: tuple[int, ...]
    placements: tuple[Placement, ...]
    windows: Windows
    targets: tuple[Tensor, ...] = ()  # whole masks, for evaluation, those of one size together: `n h w`


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels, and where they are used.

    A micro-batch has two halves: the host cuts windows out of the store, in threads and some batches ahead, and the
    device does the rest.
    """

    store: Store
    labels: Labels
    device: torch.device  # where batches are wanted
    workers: int | None = None  # threads that prepare batches ahead; default: up to `CUTTERS`, or `DECODERS` of files

    @cached_property
    def _table(self) -> Tensor:
        return torch.from_numpy(self.labels.table).long().to(self.device, non_blocking=True)

    @cached_property
    def _places(self) -> np.ndarray:
        return np.array([[row.image_offset, row.mask_offset, row.width, row.channels] for row in self.store.rows])

    def size(self, index: int) -> Size:
        """Height and width of a sample."""
        return self.store.rows[index].height, self.store.rows[index].width

    def prefetched(self, jobs: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
        """Yield the jobs' results in their order, some computed ahead; at once where the pixels are on the device."""
        if self.store.on_device:
            return (job() for job in jobs)
        workers = self.workers or min(CUTTERS if self.store.kept_pixels else DECODERS, cores())
        return prefetch(jobs, workers, workers)

    def cut(
        self,
        indices: Sequence[int],
        placements: Sequence[Placement],
        whole: bool = False,
        more: np.ndarray | None = None,
    ) -> HostBatch:
        """Do the host's half: cut one window for each sample.

        Args:
            whole: whole masks come along, too.
            more: `b m` float32, what else the device has to know of each sample.
        """
        if self.store.on_device:
            boxes = [needed(self.size(i), p) for i, p in zip(indices, placements, strict=True)]
            windows = self.store.flat.cut(self._places[indices], boxes).joined(more)
            masks = self._stacked([self.store.mask(i) for i in indices]) if whole else ()
            return HostBatch(tuple(indices), tuple(placements), windows, masks)
        read = [self.store.pair(i) for i in indices]
        parts = [cut(*pair, p) for pair, p in zip(read, placements, strict=True)]
        windows = stack(parts, self.store.channels).joined(more)
        if self.device.type == "cuda":
            windows = windows.pinned()
        masks = self._stacked([mask for _, mask in read]) if whole else ()
        return HostBatch(tuple(indices), tuple(placements), windows, masks)

    def _stacked(self, masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Stack masks of one size, for one copy to the device."""
        stacks = (torch.stack([masks[i] for i in same]) for same in alike(mask.shape for mask in masks))
        return tuple(s.pin_memory() if self.device.type == "cuda" and s.device.type == "cpu" else s for s in stacks)

    def made(self, host_batch: HostBatch, program: Callable[..., Made], *given: Any) -> Batch:
        """Do the device's half. All canvases have one size.

        Args:
            program: `labelled`, or what takes more, `given`, and does more.
        """
        points = centres(host_batch.placements[0].canvas, self.device)
        image, mask = program(*host_batch.windows.on(self.device), points, self._table, *given)
        targets: dict[int, Tensor] = {}
        if host_batch.targets:
            places = alike(self.size(index) for index in host_batch.indices)
            for same, masks in zip(places, host_batch.targets, strict=True):
                found = _classes(masks.to(self.device, non_blocking=True), self._table)
                targets |= zip(same, found.unbind(), strict=True)
        in_order = tuple(targets[i] for i in range(len(targets)))
        return Batch(image, mask, host_batch.indices, host_batch.placements, in_order)


def labelled(images: Tensor, masks: Tensor, numbers: Tensor, points: Points, table: Tensor) -> Made:
    """Warp windows and give their masks the classes of a table; VOID where there is no image. Tensors alone decide."""
    image, values, inside = warped(images, masks, numbers, points)
    return image, torch.where(inside, _classes(values, table), VOID)


def _classes(values: Tensor, table: Tensor) -> Tensor:
    return table.index_select(0, values.flatten().int()).view(values.shape)


def as_it_is(program: Callable[..., Made]) -> Callable[..., Made]:
    """Return what is not compiled."""
    return program


@dataclass(frozen=True)
class Sampling:
    """Which samples a training step sees, and how often."""

    batch_size: int  # global, over all processes and micro-batches
    seed: int = 0  # of the order and of the augmentation
    grad_accum: int = 1  # micro-batches that each process cuts its share of a batch into
    passes: int = 1  # passes over the samples in an epoch
    rarity: Sequence[float] | None = None  # a pass shows each sample as often, up to a factor; default: each once
    foreground: float = 0.0  # share of crops laid over a pixel of an object; which of an image's classes: by `counts`
    counts: Sequence[int] = ()  # pixels of each class: the fewer, the likelier; default: all alike


@dataclass(frozen=True)
class TrainBatches:
    """Augmented batches of the training split.

    An epoch is one or more passes over the samples, each in an order of its own; the last batch is filled up from the
    next pass, so that all batches are full. The processes of `world` share every batch: they take its micro-batches one
    after the other, the first process the first `sampling.grad_accum` of them.
    """

    pixels: Pixels
    indices: Sequence[int]  # of the training samples
    canvas: Canvas
    sampling: Sampling
    augmentation: AugmentationConfig = AugmentationConfig()
    world: World = SINGLE
    compiled: Callable[[Callable[..., Made]], Callable[..., Made]] = as_it_is  # what to call in a program's place
    side_stream: bool = False  # a GPU makes each micro-batch beside the training on the one before

    def __len__(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        return math.ceil(self.sampling.passes * len(self.indices) / self.sampling.batch_size)

    def epoch(self, number: int) -> Iterator[Iterator[Batch]]:
        """Yield the steps of epoch `number`, each an iterator over this process's micro-batches."""
        n = self.sampling.batch_size
        rng = np.random.default_rng([ORDER, self.sampling.seed, number])
        passes = math.ceil(len(self) * n / len(self.indices))
        order = np.concatenate([self._shuffled(rng) for _ in range(passes)])
        jobs = (
            partial(self._host_batch, number, step, part, order[step * n : (step + 1) * n])
            for step in range(len(self))
            for part in range(self.sampling.grad_accum)
        )
        with closing(self.pixels.prefetched(jobs)) as host_batches:
            made: Iterator[Batch] = (self._augmented(*host_batch) for host_batch in host_batches)
            if self.side_stream:
                made = on_side_stream(made, lambda batch: (batch.image, batch.mask), self._side, self.pixels.device)
            for _ in range(len(self)):
                yield islice(made, self.sampling.grad_accum)

    def _shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """As many samples as there are, in random order; by rarity with systematic resampling."""
        indices, rarity = np.asarray(self.indices), self.sampling.rarity
        if rarity is None:
            return rng.permutation(indices)
        n = len(indices)
        shares = np.asarray(rarity) / sum(rarity)
        chosen = np.searchsorted(np.cumsum(shares), (np.arange(n) + rng.random()) / n).clip(max=n - 1)
        return rng.permutation(indices[chosen])

    def _host_batch(self, epoch: int, step: int, part: int, chosen: np.ndarray) -> tuple[HostBatch, int]:
        """One micro-batch's windows, with the numbers of its augmentation, and the seed of its noise."""
        seed, grad_accum, size = self.sampling.seed, self.sampling.grad_accum, self.canvas.size
        group = self.world.rank * grad_accum + part
        rows = np.array_split(np.arange(len(chosen)), self.world.size * grad_accum)[group]
        indices = chosen[rows].tolist()
        draws = augment.draw(np.random.default_rng([DRAWS, seed, epoch, step]), len(chosen), self.augmentation)[rows]
        if self.sampling.foreground:
            spots = np.random.default_rng([SPOTS, seed, epoch, step]).random((len(chosen), 3))[rows]
            windows = [self._spotted(i, w, s) for i, w, s in zip(indices, draws.window, spots, strict=True)]
            draws = replace(draws, window=np.stack(windows))
        placements = []
        for i, index in enumerate(indices):
            base = self.canvas.place(self.pixels.size(index), draws.window[i])
            shift = base.linear @ (draws.shift[i] * size[::-1])
            placements.append(Placement(base.linear @ draws.linear[i], base.center + shift, size))
        # The last 0 keeps the noise of runs from when the rank stood there.
        noise = np.random.SeedSequence([NOISE, seed, epoch, step, group, 0]).generate_state(1)[0]
        return self.pixels.cut(indices, placements, more=self._effects.numbers(draws)), int(noise)

    def _spotted(self, index: int, window: np.ndarray, spot: np.ndarray) -> np.ndarray:
        """Where a crop lies so that it holds a certain pixel, `window` saying where in the crop."""
        chance, which, pixel = spot
        table, row = self.pixels.labels.table, self.pixels.store.rows[index]
        classes = sorted({int(table[value]) for value in row.values} - {VOID, 0})  # 0: the background
        if chance >= self.sampling.foreground or not classes:
            return window
        rarity = np.cumsum([1 / self.sampling.counts[k] if self.sampling.counts else 1 for k in classes])
        found = self._pixels_of(index, classes[int(np.searchsorted(rarity, which * rarity[-1], side="right"))])
        y, x = divmod(int(found[int(pixel * len(found))]), row.width)
        space = self.canvas.extent
        room = np.maximum(np.array([row.width, row.height]) - space, 0)
        first = np.clip(np.ceil((x, y) - window * space), 0, room)
        return np.asarray((first + 0.5) / (room + 1))

    def _pixels_of(self, index: int, wanted: int) -> np.ndarray:
        """Where a class lies in a sample, as indices into its flat mask: some at random, drawn once."""
        if (index, wanted) not in self._spots:
            found = np.flatnonzero(self.pixels.labels.table[self.pixels.store.host_mask(index)] == wanted)
            if len(found) > MOST_SPOTS:
                found = np.random.default_rng([SPOTS, index, wanted]).choice(found, MOST_SPOTS, replace=False)
            self._spots[index, wanted] = found
        return self._spots[index, wanted]

    @cached_property
    def _spots(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def _augmented(self, host_batch: HostBatch, noise_seed: int) -> Batch:
        shape = len(host_batch.indices), self.pixels.store.channels, *self.canvas.size
        noise = self._effects.noise(shape, self.pixels.device, noise_seed)
        return self.pixels.made(host_batch, self._program, noise)

    @cached_property
    def _side(self) -> torch.cuda.Stream:
        stream: torch.cuda.Stream = torch.cuda.Stream(self.pixels.device)  # type: ignore[no-untyped-call]
        return stream

    @cached_property
    def _effects(self) -> augment.Effects:
        return augment.Effects(self.augmentation, self.pixels.store.channels, *self.pixels.store.range)

    @cached_property
    def _program(self) -> Callable[..., Made]:
        """All that the device does with a micro-batch before the model."""
        effects = self._effects

        def made(images: Tensor, masks: Tensor, numbers: Tensor, *given: Any) -> Made:
            *placed, noise = given
            image, mask = labelled(images, masks, numbers, *placed)
            return effects(image, numbers[:, NUMBERS:], noise), mask

        return self.compiled(made)


@dataclass(frozen=True)
class EvalBatches:
    """Every sample once, whole and without augmentation, grouped by size.

    With resize=crop an image is its own canvas; images of one size share a batch. The processes of `world` take the
    batches in turn.
    """

    pixels: Pixels
    indices: Sequence[int]
    canvas: Canvas
    batch_size: int  # largest number of canvases; fewer where they are larger than `canvas.size`
    world: World = SINGLE

    def __len__(self) -> int:
        return len(self._own())

    @property
    def sizes(self) -> int:
        """Return how many sizes its canvases have."""
        return len({canvas.size for canvas, _ in self._plan()})

    def __iter__(self) -> Iterator[Batch]:
        jobs = (partial(self._host_batch, canvas, chosen) for canvas, chosen in self._own())
        with closing(self.pixels.prefetched(jobs)) as host_batches:
            for part in host_batches:
                yield self.pixels.made(part, labelled)

    def _host_batch(self, canvas: Canvas, chosen: Sequence[int]) -> HostBatch:
        return self.pixels.cut(chosen, [canvas.place(self.pixels.size(i)) for i in chosen], whole=True)

    def _own(self) -> list[tuple[Canvas, list[int]]]:
        """This process's batches: whole ones, so that it sees them as one process alone does."""
        return self._plan()[self.world.rank :: self.world.size]

    def _plan(self) -> list[tuple[Canvas, list[int]]]:
        """The canvas and the samples of each batch."""
        by_canvas: dict[Canvas, list[int]] = {}
        for index in self.indices:
            by_canvas.setdefault(self.canvas.whole(self.pixels.size(index)), []).append(index)
        area = math.prod(self.canvas.size)
        batches = []
        for canvas, indices in by_canvas.items():
            n = max(1, min(self.batch_size, self.batch_size * area // math.prod(canvas.size)))
            batches += [(canvas, indices[start : start + n]) for start in range(0, len(indices), n)]
        return batches
