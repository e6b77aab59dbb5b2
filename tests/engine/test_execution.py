import copy

import pytest
import torch
from torch import nn

from segsweep.engine.execution import PLAIN, Execution, unchanged

BF16 = Execution(torch.bfloat16)


def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2)
    return nn.Sequential(*layers)


def kinds(of):
    """The data type that each layer gives under bf16."""
    found = []
    hooks = [layer.register_forward_hook(lambda layer, given, result: found.append(result.dtype)) for layer in of]
    BF16.forward(of, torch.randn(2, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("channels_last", (True, False))
def test_weights_and_images_are_brought_into_the_layout(channels_last):
    execution = Execution(channels_last=channels_last)
    prepared = execution.prepare(model())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert prepared[0].weight.is_contiguous(memory_format=layout)
    seen = []
    prepared[0].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    for image in (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)):
        execution.forward(prepared, image)
    assert all(image.is_contiguous(memory_format=layout) for image in seen)


def test_depthwise_convolutions_compute_in_fp32_and_go_on_in_half():
    plain, prepared = model(), BF16.prepare(model())
    names = list(plain.state_dict())
    assert kinds(plain) == kinds(prepared) == [torch.bfloat16] * 4
    assert list(prepared.state_dict()) == names
    seen = []
    prepared[1]._conv_forward = lambda x, weight, bias: seen.append((x.dtype, weight.dtype)) or x[..., 1:-1, 1:-1]
    BF16.forward(prepared, torch.randn(2, 3, 16, 16))
    assert seen == [(torch.float32, torch.float32)]


def test_what_is_prepared_is_the_same_model():
    image = torch.randn(2, 3, 16, 16)
    plain, prepared = model(), BF16.prepare(model())
    expected = PLAIN.forward(plain, image)
    assert torch.allclose(PLAIN.forward(prepared, image), expected, atol=1e-6)
    assert torch.allclose(BF16.forward(prepared, image).float(), expected, atol=0.1)
    again = copy.deepcopy(BF16.prepare(prepared))
    again.load_state_dict(plain.state_dict())
    with torch.no_grad():
        again[1].weight.zero_()
    assert prepared[1].weight.abs().sum() > 0, "a copy has weights of its own"


def test_only_training_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **how: ("compiled", how))
    assert Execution(compile=True).compiled(model()) == ("compiled", {"dynamic": False})
    plain = model()
    assert PLAIN.compiled(plain) is plain


def test_what_graphs_give_is_kept_when_they_are_replayed(monkeypatch):
    begun, static = [], torch.zeros(1)
    monkeypatch.setattr(torch, "compile", lambda function, **how: begun.append(how) or (lambda x: static.add_(x)))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append("step"))
    call = Execution(compile=True, graphs=True).compiled(lambda x: x)
    results = [call(torch.ones(1)) for _ in range(2)]
    assert [float(r) for r in results] == [1.0, 2.0]
    assert begun == [{"dynamic": False, "mode": "reduce-overhead"}, "step", "step"]


def test_a_trial_leaves_no_trace():
    tried = model().eval()
    before, random = copy.deepcopy(tried.state_dict()), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), unchanged(tried):
        tried.train()
        tried(torch.randn(2, 3, 16, 16)).mean().backward()
        assert tried[2].running_mean.abs().sum() > 0
        raise ZeroDivisionError
    assert not tried.training
    assert all(torch.equal(value, before[key]) for key, value in tried.state_dict().items())
    assert all(p.grad is None for p in tried.parameters())
    assert torch.equal(torch.get_rng_state(), random)
