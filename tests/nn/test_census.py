"""Shapes on `meta` say nothing about learning: one smallest encoder of each kind really trains, at an odd size."""

import csv
from pathlib import Path

import pytest
import torch
from timm.models import _registry
from torch.nn import functional as F

from segsweep.nn import UNet

CENSUS = Path(__file__).parents[2] / "docs" / "encoders.csv"
LARGEST = 120.0  # million parameters: a training step of these fits 24 GB and a minute


def counted():
    with CENSUS.open(newline="") as file:
        return list(csv.DictReader(file))


def smallest_of_each_kind():
    """Of each module of timm and pattern of strides."""
    kinds = {}
    for row in sorted(counted(), key=lambda row: float(row["parameters"])):
        kinds.setdefault((_registry._model_to_module[row["encoder"]], row["strides"]), row["encoder"])
    return sorted(kinds.values())


def learns(name, size, steps=8):
    torch.manual_seed(0)
    model = UNet(name).train()
    pixels = torch.rand(2, 3, *size) * 255
    truth = (pixels.mean(1, keepdim=True) > 127).float()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(pixels), truth)
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert all(torch.isfinite(torch.tensor(losses)))
    assert min(losses[1:]) < losses[0], losses
    return model


# Of timm's own heads, which feature extraction leaves in: no map depends on them.
UNUSED = ("encoder.timm.body.norm.", "encoder.timm.model.weights")


def without_gradient(model):
    """Parameters that are trained although the loss does not depend on them."""
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    return [name for name in missing if not name.startswith(UNUSED)]


def test_the_census_counts_all_of_timm_and_all_run():
    rows = counted()
    assert len(rows) == len({row["encoder"] for row in rows}) == 1371
    assert {row["runs"] for row in rows} == {"yes"}


@pytest.mark.parametrize("name", [r["encoder"] for r in counted() if r["encoder"].startswith("test_")])
def test_tiny_encoders_learn_at_an_odd_size(name):
    assert not without_gradient(learns(name, (75, 101)))


@pytest.mark.census
@pytest.mark.parametrize("name", smallest_of_each_kind())
def test_the_smallest_of_each_kind_learns_at_an_odd_size(name):
    assert not without_gradient(learns(name, (75, 101)))
