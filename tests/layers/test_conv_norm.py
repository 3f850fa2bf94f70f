"""Convolutions with their norms: parallel ones are one in inference, exactly; in training they are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detrkit.layers.conv_norm import ConvNorm, added
from helpers.weights import randomize


def apart(branches, x):
    return sum(branch.norm(branch.conv(x)) for branch in branches)


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@torch.no_grad()
def test_branches_are_one_convolution(activation):
    branches = randomize(nn.ModuleList([ConvNorm(8, 12, 3), ConvNorm(8, 12, 1)])).eval()
    after = {"none": lambda y: y, "relu": F.relu, "silu": F.silu}[activation]
    for side in (12, 12, 12, 9, 12):  # from the second time on in the order that suits the size
        x = torch.randn(2, 8, side, side)
        got = added(list(branches), x, activation=activation)
        torch.testing.assert_close(got, after(apart(branches, x)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_changed_branch_is_seen():
    branches = randomize(nn.ModuleList([ConvNorm(4, 4, 3), ConvNorm(4, 4, 1)])).eval()
    x = torch.randn(1, 4, 6, 6)
    for change in (
        lambda: branches[1].conv.weight.mul_(2),
        lambda: branches[1].norm.running_mean.add_(1),
        lambda: branches[0].norm.weight.mul_(-1),
    ):
        added(list(branches), x)
        change()
        torch.testing.assert_close(added(list(branches), x), apart(branches, x), rtol=1e-5, atol=1e-5)


def test_in_training_each_branch_has_its_own_statistics():
    layer = ConvNorm(3, 5, 3, stride=2, activation="relu").train()
    x = torch.randn(4, 3, 9, 9)
    y = layer(x)
    expected = F.relu(F.batch_norm(F.conv2d(x, layer.conv.weight, stride=2, padding=1), None, None, training=True))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert layer.norm.num_batches_tracked == 1


def test_gradients_in_eval_mode_are_those_of_the_parts():
    branches = randomize(nn.ModuleList([ConvNorm(3, 4, 3), ConvNorm(3, 4, 1)])).eval().double()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    parameters = [x, *branches.parameters()]
    ours = torch.autograd.grad(added(list(branches), x, activation="silu").sin().sum(), parameters)
    theirs = torch.autograd.grad(F.silu(apart(branches, x)).sin().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
