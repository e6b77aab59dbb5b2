"""segsweep: which backbone and which learning rate are best for my segmentation data?"""

__version__ = "0.1.0"
