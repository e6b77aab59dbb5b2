"""Work that threads, or a GPU beside its training, do before its results are asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def prefetch(jobs: Iterable[Callable[[], T]], workers: int, depth: int) -> Generator[T, None, None]:
    """Run jobs in threads and yield their results in the jobs' order; up to `depth` computed ones wait in memory.

    Closing the generator ends the threads and drops jobs that have not begun. What a job raises is raised at its place.
    """
    pool = ThreadPoolExecutor(workers, "prefetch")
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def on_side_stream(
    items: Iterable[T], tensors: Callable[[T], Iterable[Tensor]], side: torch.cuda.Stream, gpu: torch.device
) -> Iterator[T]:
    """Have a GPU make each item on a stream beside its own, one ahead, while it works with the one before.

    What was launched before the first item is asked for is done before any is made.

    Args:
        tensors: returns what of an item lies on the GPU.
        side: the same each time, since each stream keeps memory of its own.
    """
    side.wait_stream(torch.cuda.current_stream(gpu))
    iterator = iter(items)

    def begun() -> tuple[T, torch.cuda.Event] | None:
        with torch.cuda.stream(side):
            for item in iterator:
                return item, side.record_event()
        return None

    following = begun()
    while following:
        item, made = following
        following = begun()
        using = torch.cuda.current_stream(gpu)
        using.wait_event(made)
        for tensor in tensors(item):
            tensor.record_stream(using)  # its memory is the side stream's, which may use it again only after that
        yield item
