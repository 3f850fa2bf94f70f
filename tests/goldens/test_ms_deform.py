"""The sampling operator, the attention around it and their gradients against the official ones, in float64."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.layers.deformable import MSDeformAttention
from detrkit.ops import ms_deform_attn
from goldens import filler

CASES = [c["file"] for c in goldens.cases("msda_op")]


def _tensors(file):
    data = {k: torch.from_numpy(v) for k, v in goldens.arrays(file).items()}
    return data, [(int(h), int(w)) for h, w in data["shapes"]]


def _close(got, want, atol=1e-12):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize("file", CASES)
def test_operator_and_gradients(file):
    data, shapes = _tensors(file)
    value, locations, weights = (data[k].requires_grad_() for k in ("value", "locations", "weights"))
    out = ms_deform_attn(value, shapes, locations, weights)
    _close(out, data["output"])
    out.backward(data["grad_output"])
    _close(value.grad, data["grad_value"])
    _close(weights.grad, data["grad_weights"])
    if "exact_grid" not in file:  # on a pixel centre the slope depends on which side counts
        _close(locations.grad, data["grad_locations"], atol=1e-10)


@pytest.mark.parametrize("reference", ["ref2", "ref4"])
def test_module_and_gradients(reference):
    """References as points (encoder, first decoder layer) and as boxes (refinement), with padded values."""
    (case,) = goldens.cases("msda_module")
    data, shapes = _tensors(case["file"])
    module = MSDeformAttention(case["d_model"], case["n_heads"], levels=len(shapes), points=case["n_points"]).double()
    module.load_state_dict(
        {
            name: torch.from_numpy(filler.fill(f"msda_module.{name}", tensor.shape))
            for name, tensor in module.state_dict().items()
        }
    )
    query, memory, points = (data[k].requires_grad_() for k in ("query", "input_flatten", reference))
    out, locations, weights = module(query, points, memory, shapes, padding_mask=data["padding_mask"])
    _close(out, data[f"{reference}_output"])
    assert locations.shape == (*query.shape[:2], 8, 3, 4, 2) and weights.shape == locations.shape[:-1]

    out.backward(data[f"{reference}_grad_output"])
    _close(query.grad, data[f"{reference}_grad_query"])
    _close(memory.grad, data[f"{reference}_grad_input"])
    _close(points.grad, data[f"{reference}_grad_ref"], atol=1e-10)
    for name in ("sampling_offsets", "attention_weights"):
        norm = module.get_parameter(f"{name}.weight").grad.norm()
        torch.testing.assert_close(norm, data[f"{reference}_grad_{name}_weight_norm"], rtol=1e-12, atol=0)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="value has 5 positions"):
        ms_deform_attn(torch.zeros(1, 5, 1, 2), [(2, 2)], torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1))
