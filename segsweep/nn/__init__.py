"""The model: `UNet` on any timm encoder. Usable on its own, without Hydra or MLflow."""

from segsweep.nn.unet import UNet

__all__ = ["UNet"]
