"""Fewer calls in a step: what autocast and BatchNorm do layer by layer is done for all layers in one.

On a GPU each call costs its launch, some microseconds of the processor's time, however little it computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segsweep.nn.unet import casts_weights


class AtOnce:
    """A model whose weights are cast, and whose BatchNorms count their batches, in one call each.

    Weights, gradients and results are what autocast gives layer by layer, bit for bit.

    Args:
        model: its layers are called one by one; None: nothing is done, since a compiler joins the casts itself, and
            torch's DDP needs the parameters themselves.
        precision: autocast's data type; float32 casts nothing.
    """

    def __init__(self, model: nn.Module | None, precision: torch.dtype):
        modules = [] if model is None else list(model.modules())
        self.precision = precision
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in modules:
            for name, parameter in module.named_parameters(recurse=False):
                owners.setdefault(id(parameter), []).append((module, name))
        self._owners = [own for own in owners.values() if precision != torch.float32 and _all_cast(own)]
        self._weights = [module._parameters[name] for module, name in (own[0] for own in self._owners)]
        self._norms = [m for m in modules if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model's layers use cast weights, while in this context: a forward pass and its backward pass."""
        cast = _Cast.apply(self.precision, *self._weights) if self._weights else ()
        # With a momentum nothing reads the counters but state_dict.
        counting = [m for m in self._norms if m.training and m.momentum is not None]
        counters: list[Any] = [norm._buffers["num_batches_tracked"] for norm in counting]
        if counters:
            torch._foreach_add_(counters, 1)
        try:
            for own, tensor in zip(self._owners, cast, strict=True):
                for module, name in own:
                    module._parameters[name] = tensor
            for norm in counting:
                norm._buffers["num_batches_tracked"] = None
            yield
        finally:
            for own, weight in zip(self._owners, self._weights, strict=True):
                for module, name in own:
                    module._parameters[name] = weight
            for norm, counter in zip(counting, counters, strict=True):
                norm._buffers["num_batches_tracked"] = counter


def _all_cast(owners: list[tuple[nn.Module, str]]) -> bool:
    """Whether all that use a parameter would cast it."""
    return all(casts_weights(module) and name in ("weight", "bias") for module, name in owners)


class _Cast(torch.autograd.Function):
    """Copies of tensors in another data type, and their gradients in the tensors' own."""

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        copies = _copies(tensors, kind)
        ctx.mark_non_differentiable(*(c for c, t in zip(copies, tensors, strict=True) if not t.requires_grad))
        return copies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(_copies([g for g in gradients if g is not None], torch.float32))
        return None, *(None if g is None else next(found) for g in gradients)


def _copies(tensors: Any, kind: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=kind) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
