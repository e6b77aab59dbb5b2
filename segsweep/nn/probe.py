"""A linear layer on an encoder's maps, at the image's resolution: what frozen features are worth."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segsweep.nn.unet import UNet


class LinearProbe(nn.Module):
    """A U-Net's normalisation and encoder, frozen, with one linear layer in place of the decoder.

    A pixel's features are those of all maps that the decoder would see, finest first, interpolated bilinearly to the
    pixel. The layer runs on the maps, and its output is interpolated: both are linear, so their order is free.

    Attributes:
        weight: float32 `d k`; zero until it is set. bias: `k`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet.eval().requires_grad_(False)
        features = sum(each.channels for each in unet.encoder.maps)
        self.register_buffer("weight", torch.zeros(features, unet.num_classes))
        self.register_buffer("bias", torch.zeros(unet.num_classes))

    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Give the layer its values, of any floating-point type."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def features(self, pixels: Tensor, where: Tensor) -> Tensor:
        """Return the features of some pixels of each image, float32 `b p d`.

        Args:
            pixels: `b c h w`, as `UNet.forward` takes them.
            where: rows and columns, int64 `b p 2`.
        """
        image = self.unet.prepared(pixels)
        size = torch.tensor(image.shape[-2:], device=where.device)
        grid = ((where + 0.5) * 2 / size - 1).flip(-1).float()[:, None]  # x before y; -1 and 1 are the image's edges
        maps = self.unet.encoder(image)
        with torch.autocast(image.device.type, enabled=False):
            found = [
                F.grid_sample(each.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]
                for each in maps
            ]
        return torch.cat(found, 1).transpose(1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels to logits `b k h w`, as `UNet.forward` does."""
        image = self.unet.prepared(pixels)
        maps = self.unet.encoder(image)
        with torch.autocast(image.device.type, enabled=False):
            logits = self.bias[:, None, None].expand(len(image), -1, *image.shape[-2:])
            for each, weight in zip(maps, torch.split(self.weight, [m.shape[1] for m in maps]), strict=True):
                scores = torch.einsum("bchw,ck->bkhw", each.float(), weight)
                logits = logits + F.interpolate(scores, size=image.shape[-2:], mode="bilinear")
        return logits[..., : pixels.shape[-2], : pixels.shape[-1]]
