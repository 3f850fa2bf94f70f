"""The sampling operator and its gradients against the official ones, in float64."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.ops import ms_deform_attn

CASES = [c["file"] for c in goldens.cases("msda_op")]


@pytest.mark.parametrize("file", CASES)
def test_operator_and_gradients(file):
    data = {k: torch.from_numpy(v) for k, v in goldens.arrays(file).items()}
    value, locations, weights = (data[k].requires_grad_() for k in ("value", "locations", "weights"))
    shapes = [(int(h), int(w)) for h, w in data["shapes"]]
    out = ms_deform_attn(value, shapes, locations, weights)
    torch.testing.assert_close(out, data["output"], rtol=0, atol=1e-12)
    out.backward(data["grad_output"])
    torch.testing.assert_close(value.grad, data["grad_value"], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.grad, data["grad_weights"], rtol=0, atol=1e-12)
    if "exact_grid" not in file:  # on a pixel centre the slope depends on which side counts
        torch.testing.assert_close(locations.grad, data["grad_locations"], rtol=0, atol=1e-10)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="value has 5 positions"):
        ms_deform_attn(torch.zeros(1, 5, 1, 2), [(2, 2)], torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1))
