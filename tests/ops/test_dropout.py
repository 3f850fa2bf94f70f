"""Dropout: how many values, which scale, whose gradient, which generator."""

from __future__ import annotations

import pytest
import torch

from detrkit.layers.dropout import Dropout
from detrkit.ops.dropout import dropout


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_share_and_scale(share):
    torch.manual_seed(0)
    n = 1_000_001  # not a multiple of four
    y = dropout(torch.ones(n), share)
    dropped = float((y == 0).double().mean())
    assert abs(dropped - share) < 4 * (share * (1 - share) / n) ** 0.5 + 2**-16
    kept = y[y != 0]
    assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - share), abs=1e-4)
    # neighbors come from one random number: they must not know of each other
    zero = (y[: n // 4 * 4] == 0).view(-1, 4).double()
    together = (zero.T @ zero / len(zero))[~torch.eye(4, dtype=torch.bool)]
    assert float((together - share**2).abs().max()) < 0.002


def test_gradient_goes_where_the_values_went():
    torch.manual_seed(0)
    x = torch.randn(4, 7, 9, requires_grad=True)
    y = dropout(x, 0.3)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad * x, y)
    assert 0.1 < float((grad == 0).float().mean()) < 0.5


def test_the_seed_decides():
    torch.manual_seed(3)
    first, second = dropout(torch.ones(100), 0.5), dropout(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(100), 0.5), first) and not torch.equal(first, second)


def test_nothing_is_dropped_outside_of_training():
    x = torch.randn(50)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0) is x
    layer = Dropout(0.5)
    assert layer.eval()(x) is x and not torch.equal(layer.train()(x), x)
    assert dropout(torch.empty(0), 0.5).shape == (0,)
