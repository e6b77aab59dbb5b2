"""How a model is run: precision, layout, compilation, recomputation. It changes speed and memory, not the model."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segsweep import console
from segsweep.engine.device import keep_compiled
from segsweep.errors import first_line
from segsweep.nn.decoder import set_doubling


@dataclass(frozen=True)
class Execution:
    """How a model is run."""

    precision: torch.dtype = torch.float32  # autocast's data type; float32 switches it off
    channels_last: bool = True  # the memory layout of images and of convolutions' weights
    compile: bool = False  # the training's forward and backward passes go through torch.compile
    doubling: bool = True  # the decoder's upsampling is joined with its convolution: fewer products, more calls
    graphs: bool = False  # what is compiled is replayed as CUDA graphs; untried: no GPU has measured it yet

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def prepare(self, model: nn.Module) -> nn.Module:
        """Bring the model's weights into the layout and choose how it computes; return it."""
        model.to(memory_format=self.layout)
        set_doubling(model, self.doubling)
        if self.precision != torch.float32 and next(model.parameters()).device.type == "cpu":
            for module in model.modules():
                if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                    _keep_fp32(module)
        return model

    def forward(self, model: Callable[..., Tensor], image: Tensor) -> Tensor:
        """Return the model's output for an image `b c h w`."""
        with torch.autocast(image.device.type, self.precision, enabled=self.precision != torch.float32):
            logits: Tensor = model(image.contiguous(memory_format=self.layout))
            return logits

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return what a training calls in place of this function; compiled for one size of images, which it has."""
        if not self.compile:
            return function
        if not self.graphs:
            return _compiled(function)
        replayed = _compiled(function, mode="reduce-overhead")

        def call(*given: Any) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            result: Tensor = replayed(*given).clone()  # the next call overwrites what this one gave
            return result

        return call

    def making(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """Return what to call in place of the program that makes batches on the device.

        It is compiled where the training is. Height and width of the windows, which come first, differ from batch to
        batch, and it is one program for all. Where the compiler fails, it is called as it is, and a line says so.
        """
        if not self.compile:
            return program
        called = _compiled(program)

        def call(images: Tensor, masks: Tensor, *given: Any) -> Any:
            nonlocal called
            if called is not program:
                for windows in (images, masks):
                    torch._dynamo.mark_dynamic(windows, (1, 2))
                try:
                    return called(images, masks, *given)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    console.note(f"note: torch.compile failed, so batches are made without it: {first_line(error)}")
                    called = program
            return program(images, masks, *given)

        return call


PLAIN = Execution()


def _compiled(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """Compile for constant sizes; what was compiled of the same code before, for another training, is no part of it."""
    keep_compiled()
    # torch 2.11 has no such switch: there, frozen epochs and the others share a count of compilations.
    own = {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
    compiled: Any = torch.compile
    result: Callable[..., Any] = compiled(function, dynamic=False, **own, **how)
    return result


class _Fp32:
    """A convolution outside of autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = super().forward(x.float()).to(x.dtype)  # type: ignore[misc]
            return result


def _keep_fp32(module: nn.Conv2d) -> None:
    """On CPUs bf16 gradients of strided depthwise convolutions take up to five times as long as those in fp32."""
    kind: Any = type(module)
    if not issubclass(kind, _Fp32):  # another class keeps names, weights and copies as they are
        module.__class__ = type(f"Fp32{kind.__name__}", (_Fp32, kind), {})


def checkpoint_gradients(model: nn.Module, image: Tensor) -> set[nn.Module]:
    """Keep fewer activations for the backward pass and compute the others again (https://arxiv.org/abs/1604.06174).

    Every part of the model that has timm's switch `set_grad_checkpointing` gets it set; return those that took it. A
    BatchNorm that sees a batch twice would move its statistics twice, so its momentum is set to what gives the same in
    two moves. Gradients and statistics stay as they are.

    Args:
        image: `b c h w`, small: what one forward and backward pass are tried with.
    """
    switched: set[nn.Module] = set()
    for module in model.modules():
        if hasattr(module, "set_grad_checkpointing"):
            switch: Any = module.set_grad_checkpointing
            try:
                switch(True)
                switched.add(module)
            except (AssertionError, NotImplementedError):  # timm: "gradient checkpointing not supported"
                continue
            for part in module.children():  # timm before 1.0.31 has a stem's activation overwrite its own saved input
                if getattr(part, "inplace", False):
                    part.inplace = False  # type: ignore[assignment]
    seen: Counter[nn.Module] = Counter()

    def count(module: nn.Module, *_: Any) -> None:
        seen[module] += 1

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    try:
        with unchanged(model):
            model.train()(image).float().mean().backward()
    finally:
        for hook in hooks:
            hook.remove()
    for norm in norms:
        if seen[norm] == 2:
            set_momentum(norm, lambda own: 1 - (1 - own) ** 0.5)
    return switched


def set_momentum(model: nn.Module, of: Callable[[float], float]) -> None:
    """Set each BatchNorm's momentum to a function of what it is; those that average over everything stay."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.momentum is not None:
            module.momentum = of(module.momentum)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Let a model be trained on anything in this context: its buffers, mode and the random state come back."""
    modes, buffers = [(m, m.training) for m in model.modules()], {n: b.clone() for n, b in model.named_buffers()}
    gpus = {tensor.get_device() for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(sorted(gpus)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])
            model.zero_grad(set_to_none=True)
            for module, training in modes:
                module.training = training
