"""segsweep: which backbone and which learning rate are best for my segmentation data?

    run = segsweep.train({"data": "folder", "data.root": "cells", "optim.lr": 1e-3})
    found = segsweep.sweep({"data": "folder", "data.root": "cells"}, n_trials=8)
    segsweep.load(run.folder).predict("scan.png").classes

`segsweep.choice`, `segsweep.weights` and `segsweep.interval` give the values that a sweep tries.
`segsweep train --help` lists the keys.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segsweep.api import choice, interval, load, sweep, train, weights

__all__ = ["__version__", "choice", "interval", "load", "sweep", "train", "weights"]

# Large maps on a CPU come in huge pages, where Linux gives them on request. In small ones a training step spends a
# fifth of its time on page faults: maps beyond glibc's 32 MB are given back and fetched anew each time. Here, since
# torch looks once, at its first tensor of any size.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Load the functions of `segsweep.api` when they are first used."""
    if name in __all__:
        from segsweep import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
