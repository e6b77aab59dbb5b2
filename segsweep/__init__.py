"""segsweep: which backbone and which learning rate are best for my segmentation data?"""

import os

# Large maps on a CPU come in huge pages, where Linux gives them on request. In small ones a training step spends a
# fifth of its time on page faults: maps beyond glibc's 32 MB are given back and fetched anew each time. Here, since
# torch looks once, at its first tensor of any size.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
