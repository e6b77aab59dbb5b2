"""What a U-Net on a timm encoder costs and how it is run, measured on the `meta` device: shapes without arithmetic."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from segsweep.errors import ConfigError
from segsweep.nn.encoder import encoder_traits
from segsweep.nn.unet import UNet

REFERENCE = (256, 256)


@dataclass(frozen=True)
class Survey:
    """A row of the table of encoders."""

    encoder: str
    parameters: float  # of the encoder, in millions
    gflop: float  # of the whole U-Net, one forward pass at 256x256; a multiply-add counts as two
    decoder_share: float  # of the gflop, 0 to 1
    strides: str  # of the maps the decoder uses, finest first
    channels: str  # of these maps
    input_size: str  # "any", or the one height x width it runs at, on a resized image
    switches: str  # timm's arguments that let it take any size


def survey(name: str, sizes: Sequence[tuple[int, int]] = ()) -> Survey:
    """Build a U-Net on the encoder and run it, at 256x256 and then at `sizes`, in one instance.

    Raises:
        ConfigError: no such model.
        RuntimeError: the logits have another size than the image.
    """
    measured = encoder_traits(name)
    with torch.device(measured.device):
        model = UNet(name).eval().requires_grad_(False)
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                _run(model, REFERENCE)
            for size in sizes:
                _run(model, size)
    by_part = counter.get_flop_counts()
    encoder = sum(by_part.get("UNet.encoder", {}).values())
    total = counter.get_total_flops()
    return Survey(
        encoder=name,
        parameters=round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 3),
        gflop=round(total / 1e9, 3),
        decoder_share=round(1 - encoder / total, 3),
        strides=" ".join(f"{m.stride:g}" for m in measured.maps),
        channels=" ".join(str(m.channels) for m in measured.maps),
        input_size="x".join(map(str, measured.native)) if measured.fixed else "any",
        switches=" ".join(f"{key}={value}" for key, value in measured.switches),
    )


def _run(model: UNet, size: tuple[int, int]) -> None:
    logits = model(torch.zeros(1, model.in_channels, *size))
    if tuple(logits.shape) != (1, model.num_classes, *size):
        raise RuntimeError(f"logits {tuple(logits.shape)} for an image of {size[0]}x{size[1]}")


def training_gib(names: Sequence[str], size: tuple[int, int] = REFERENCE) -> dict[str, float]:
    """Count the memory of a training step of a U-Net on each encoder, with one image, in GiB.

    Weights, gradients, Adam's two averages, and what is kept for the backward pass, in fp32. A device needs more for
    its libraries and for what operators work with.

    Raises ConfigError: no such model.
    """
    return {name: _training_bytes(name, size) / 2**30 for name in names}


def _training_bytes(name: str, size: tuple[int, int]) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        storages.append(storage)  # else its address may be another's soon
        return tensor

    storages: list[torch.UntypedStorage] = []
    with torch.device(encoder_traits(name).device):
        model = UNet(name).train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model(torch.zeros(1, model.in_channels, *size))
    del logits
    own = {parameter.untyped_storage()._cdata: parameter.untyped_storage().nbytes() for parameter in model.parameters()}
    return sum(nbytes for place, nbytes in kept.items() if place not in own) + 4 * sum(own.values())


def surveys(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Survey several encoders; rows as `docs/encoders.csv` has them, by name, without those that timm does not have."""
    found = {}
    for name in names:
        with suppress(ConfigError):
            found[name] = {key: str(value) for key, value in vars(survey(name)).items()}
    return found
