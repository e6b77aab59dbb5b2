"""The processes that train one model together. Standard library only; torch is named in types alone."""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

JSON = TypeVar("JSON")  # a value that JSON has


class World:
    """One process: it agrees with itself.

    Whoever lets several processes train together overrides the methods. Every process calls the same ones in the same
    order; what differs between processes (a clock, a free folder, a measured speed) must not decide anything before it
    has gone through one of them, or the others wait for ever.
    """

    rank: int = 0  # of this process, from 0, which alone writes files and speaks
    size: int = 1  # number of processes

    def agreed(self, value: JSON) -> JSON:
        """Return the value of rank 0, in every process. It is one that JSON has."""
        return value

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set in at least one process."""
        return flag

    def summed(self, tensor: "Tensor") -> "Tensor":
        """Return the sum of all processes' tensors, which have one shape and data type."""
        return tensor


SINGLE = World()
