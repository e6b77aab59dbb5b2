"""Work that threads do before its results are asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
