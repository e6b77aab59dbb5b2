"""Work that threads do before its results are asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(jobs: Iterable[Callable[[], T]], workers: int, depth: int) -> Generator[T, None, None]:
    """Run jobs in threads and yield their results in the jobs' order, some computed ahead.

    Closing the generator ends the threads; jobs that have not begun are dropped. What a job raises is raised here, at
    its place in the order.

    Args:
        workers: threads.
        depth: results that may wait, so many are in memory at most.
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
