"""What the table of encoders says, against the models themselves."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from segsweep.errors import ConfigError
from segsweep.nn import UNet
from segsweep.nn.survey import survey, surveys, training_gib


@pytest.mark.parametrize("name", ("test_resnet", "test_vit", "test_convnext", "resnet18"))
def test_numbers_are_those_of_a_real_model(name):
    found = survey(name)
    model = UNet(name).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, 256, 256))
    assert found.gflop == pytest.approx(counter.get_total_flops() / 1e9, abs=1e-3)
    assert found.parameters == pytest.approx(sum(p.numel() for p in model.encoder.parameters()) / 1e6, abs=1e-3)
    with torch.no_grad(), counter:
        model.encoder(torch.zeros(1, 3, 256, 256))
    assert found.decoder_share == pytest.approx(1 - counter.get_total_flops() / 1e9 / found.gflop, abs=2e-3)


@pytest.mark.parametrize("name", ("test_resnet", "test_vit", "test_convnext"))
def test_memory_is_what_a_step_keeps(name):
    """On the CPU, by the tensors that autograd saves."""
    model = UNet(name).train()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.zeros(1, 3, 96, 128))
    saved = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    expected = saved + 16 * sum(parameter.numel() for parameter in model.parameters())
    assert training_gib([name], (96, 128))[name] * 2**30 == pytest.approx(
        expected, rel=0.05
    )  # attention keeps other things there
    assert training_gib([name], (192, 256))[name] > 1.5 * training_gib([name], (96, 128))[name]
    del logits


def test_what_timm_does_not_have_is_left_out_of_several():
    found = surveys(["test_resnet", "resnet18.none", "no_such_model"])
    assert list(found) == ["test_resnet"]
    assert found["test_resnet"]["gflop"] == str(survey("test_resnet").gflop)


def test_a_fixed_size_is_told():
    assert survey("test_mixer" if timm.is_model("test_mixer") else "mixer_s32_224").input_size == "224x224"
    assert survey("test_resnet").input_size == "any"


@pytest.mark.parametrize("name", ("efficientnet_b0", "mobilenetv3_large_100", "mobilenetv3_rw"))
def test_the_decoder_takes_at_most_half(name):
    assert survey(name).decoder_share <= 0.5


def test_models_that_pass_parameters_on_can_be_counted():
    assert survey("pit_ti_224").gflop > 0


@pytest.mark.parametrize(
    ("name", "strides"),
    [("nf_regnet_b2", "2 4 8 16 32"), ("resnet14t", "2 4 8 16 32"), ("vit_small_patch14_dinov2", "14")],
)
def test_strides_are_not_misled_by_a_rounded_native_size(name, strides):
    found = survey(name)
    assert found.strides == strides
    assert found.input_size == "any"


def test_several_sizes_run_through_one_instance():
    survey("test_vit", ((352, 480), (250, 350), (33, 65)))


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ConfigError, match="Closest: resnet34"):
        survey("resnt34")
