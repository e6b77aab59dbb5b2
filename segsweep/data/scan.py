"""Look at every file's header before anything is decoded, and list all that is wrong at once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from segsweep.data import images
from segsweep.data.datasets import Sample, refuse
from segsweep.errors import DataError


def check(samples: Sequence[Sample], workers: int | None = None) -> None:
    """Refuse files that are no images and masks of another size than their image.

    Raises:
        DataError: with a line for each file.
    """
    with ThreadPoolExecutor(workers) as pool:
        problems = [problem for problem in pool.map(_problem, samples) if problem]
    refuse(problems, "every image and its mask must be readable and of one size")


def _problem(sample: Sample) -> str | None:
    try:
        of_image, of_mask = images.size(sample.image), images.size(sample.mask)
    except DataError as error:
        return str(error)
    if of_image != of_mask:
        return f"{sample.mask}: {of_mask[1]}x{of_mask[0]} pixels, its image has {of_image[1]}x{of_image[0]}"
    return None
