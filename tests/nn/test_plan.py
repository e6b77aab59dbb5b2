"""The plan of a decoder: arithmetic that must hold whatever the encoder's strides."""

import itertools
import math
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segsweep.errors import ConfigError
from segsweep.nn.decoder import Decoder
from segsweep.nn.plan import DecoderPlan, Map, macs, plan

PATTERNS = (
    [2, 4, 8, 16, 32],
    [4, 8, 16, 32],
    [16],
    [14],
    [8],
    [32],
    [16, 32, 64],
    [1, 2, 4, 8, 16, 32],
    [8, 16, 32],
    *(sorted(random.Random(seed).sample([1, 2, 3.5, 4, 5, 7, 8, 14, 16, 28, 32, 64], 3)) for seed in range(12)),
)
BUDGETS = (0.0, 1e2, 1e3, 3e3, 1e4, 3e4, 1e5, math.inf)

each_pattern = pytest.mark.parametrize("strides", PATTERNS, ids=str)


def maps_at(strides: list[float]) -> list[Map]:
    return [Map(24 + 8 * i, float(stride)) for i, stride in enumerate(strides)]


def levels_of(planned: DecoderPlan, maps: list[Map]) -> list[Map]:
    return list(planned.pyramid) or maps


@each_pattern
def test_last_stage_has_stride_one(strides):
    assert plan(maps_at(strides)).stages[-1].stride == 1


@each_pattern
def test_strides_fall_in_steps_of_about_two(strides):
    maps = maps_at(strides)
    planned = plan(maps)
    run = [levels_of(planned, maps)[-1].stride, *(stage.stride for stage in planned.stages)]
    assert all(1 < coarse / fine <= 3 for coarse, fine in itertools.pairwise(run)), run


@each_pattern
def test_each_stage_takes_what_the_one_before_gives(strides):
    maps = maps_at(strides)
    planned = plan(maps)
    given = [levels_of(planned, maps)[-1].channels, *(stage.width for stage in planned.stages)]
    assert [stage.inputs for stage in planned.stages] == given[:-1]


@each_pattern
def test_every_map_below_the_deepest_is_a_skip(strides):
    maps = maps_at(strides)
    planned = plan(maps)
    skips = {stage.stride: stage.skip for stage in planned.stages if stage.skip}
    stem = {stride: width for stride, width in zip((1.0, 2.0), planned.stem, strict=True) if width}
    assert skips == {level.stride: level.channels for level in levels_of(planned, maps)[:-1]} | stem


@each_pattern
def test_stem_gives_just_the_fine_maps_that_the_encoder_lacks(strides):
    maps = maps_at(strides)
    planned = plan(maps)
    there = {level.stride for level in levels_of(planned, maps)}
    served = [any(fine / 1.42 < stride < fine * 1.41 for stride in there) for fine in (1, 2)]
    assert [not width for width in planned.stem] == served


@each_pattern
def test_only_a_single_map_gets_a_pyramid(strides):
    planned = plan(maps_at(strides))
    assert bool(planned.pyramid) == (len(strides) == 1)
    if planned.pyramid:
        assert [level.stride for level in planned.pyramid] == [
            strides[0] * f for f in (0.25, 0.5, 1, 2) if strides[0] * f >= 2
        ]


@each_pattern
def test_explicit_widths_are_kept(strides):
    widths = [40 + 8 * i for i in range(len(plan(maps_at(strides)).stages))]
    assert [stage.width for stage in plan(maps_at(strides), widths, encoder_macs=1.0).stages] == widths


@each_pattern
@pytest.mark.parametrize("off", (-1, 1))
def test_wrong_number_of_widths_is_refused_with_the_right_number(strides, off):
    number = len(plan(maps_at(strides)).stages)
    with pytest.raises(ConfigError, match=rf"decoder\.width=.*takes {number} widths"):
        plan(maps_at(strides), [16] * (number + off))


@each_pattern
@pytest.mark.parametrize("budget", BUDGETS)
def test_auto_costs_no_more_than_the_encoder_unless_at_its_narrowest(strides, budget):
    maps = maps_at(strides)
    planned = plan(maps, "auto", budget)
    assert macs(planned) <= budget or planned == plan(maps, "auto", 0)


@each_pattern
def test_auto_never_gets_narrower_with_a_larger_encoder(strides):
    costs = [macs(plan(maps_at(strides), "auto", budget)) for budget in BUDGETS]
    assert costs == sorted(costs)


def test_auto_is_the_documented_ladder_for_a_large_encoder():
    assert [stage.width for stage in plan(maps_at([2, 4, 8, 16, 32])).stages] == [256, 128, 64, 32, 16]


def test_auto_is_never_below_a_quarter_of_the_ladder_and_eight_channels():
    assert [stage.width for stage in plan(maps_at([2, 4, 8, 16, 32]), "auto", 0).stages] == [32, 16, 8, 8, 8]


@pytest.mark.parametrize(
    ("classes", "widths"),
    [
        (1, [32, 16, 8, 8, 8]),
        (3, [32, 24, 24, 24, 24]),
        (11, [32, 24, 24, 24, 24]),
        (21, [32, 32, 32, 32, 32]),
        (150, [32, 32, 32, 32, 32]),
    ],
)
def test_the_head_has_channels_for_its_classes(classes, widths):
    planned = plan(maps_at([2, 4, 8, 16, 32]), "auto", 0, classes)
    assert [stage.width for stage in planned.stages] == widths


def test_the_rest_is_as_wide_as_for_two_classes():
    maps, budget = maps_at([2, 4, 8, 16, 32]), 6000.0
    two, many = ([stage.width for stage in plan(maps, "auto", budget, k).stages] for k in (1, 20))
    assert many == [max(32, width) for width in two]


@pytest.mark.parametrize("strides", ([2, 4, 8, 16, 32], [4, 8, 16, 32], [1, 2, 4, 8, 16, 32], [8, 16, 32]), ids=str)
@pytest.mark.parametrize("budget", (0.0, math.inf))
def test_macs_are_those_torch_counts(strides, budget):
    maps = maps_at(strides)
    planned = plan(maps, "auto", budget)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder = Decoder(planned, maps, in_channels=3)
        features = [torch.empty(1, m.channels, int(64 / m.stride), int(128 / m.stride)) for m in maps]
        decoder(torch.empty(1, 3, 64, 128), features)
    assert counter.get_total_flops() / 2 / (64 * 128) == pytest.approx(macs(planned))
