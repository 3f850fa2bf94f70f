"""Attention weights computed on request: rows are those of the whole, whatever the mask and the dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detrkit.layers.attention import MultiHeadAttention
from detrkit.structures.attention import AttentionWeights
from detrkit.structures.outputs import Capture

B, H, Q, S = 2, 3, 5, 7


def padding():
    mask = torch.zeros(B, S, dtype=torch.bool)
    mask[1, 4:] = True
    return mask


def banned():
    """(Q, S) True where a query must not attend to a key."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(Q, S, generator=generator) < 0.4
    mask[:, 0] = False
    return mask


MASKS = {
    "none": None,
    "padding": ~padding()[:, None, None],  # (B, 1, 1, S)
    "pairs": ~banned(),  # (Q, S)
    "both": ~padding()[:, None, None] & ~banned(),  # (B, 1, Q, S)
}


def weights_with(visible, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(B, H, n, 8, generator=generator).to(dtype) for n in (Q, S))
    return AttentionWeights(q, k, visible)


@pytest.mark.parametrize("mask", MASKS)
def test_rows_are_those_of_the_whole(mask):
    weights = weights_with(MASKS[mask])
    full = weights.full()
    assert full.shape == (B, H, Q, S) and weights.heads == H
    assert torch.allclose(full.sum(-1), torch.ones(()), atol=1e-6)
    hidden = torch.zeros(B, Q, S, dtype=torch.bool)
    if mask in ("padding", "both"):
        hidden |= padding()[:, None]
    if mask in ("pairs", "both"):
        hidden |= banned()
    assert not full[hidden[:, None].expand(-1, H, -1, -1)].any()
    assert full[~hidden[:, None].expand(-1, H, -1, -1)].all()
    for image in (0, 1, -1):
        for chosen in ([3], [4, 0, 4], np.array([1, 2]), torch.tensor([2]), range(Q), []):
            got = weights.rows(image, chosen)
            assert got.shape == (H, len(chosen), S)
            torch.testing.assert_close(got, full[image][:, list(map(int, chosen))], rtol=0, atol=1e-6)


def test_the_layer_and_torch_agree_under_an_attn_mask():
    torch.manual_seed(0)
    ours = MultiHeadAttention(12, H)
    theirs = torch.nn.MultiheadAttention(12, H, batch_first=True)
    theirs.load_state_dict(
        {"in_proj_weight": ours.in_proj_weight, "in_proj_bias": ours.in_proj_bias}
        | {f"out_proj.{name}": value for name, value in ours.out_proj.state_dict().items()}
    )
    x, memory = torch.randn(B, Q, 12), torch.randn(B, S, 12)
    with torch.no_grad():
        got = ours(x, memory, memory, key_padding_mask=padding(), attn_mask=banned(), capture=True)
        _, want = theirs(x, memory, memory, key_padding_mask=padding(), attn_mask=banned(), average_attn_weights=False)
    torch.testing.assert_close(got.attn_weights.full(), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.attn_weights.rows(1, [3, 0]), want[1][:, [3, 0]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "want"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_rows_sum_to_one(dtype, want):
    weights = weights_with(MASKS["both"], dtype)
    for around in (torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with around:
            rows = weights.rows(1, [0, 1])
        assert rows.dtype == want and torch.allclose(rows.sum(-1), torch.ones((), dtype=want), atol=1e-6)
    torch.testing.assert_close(weights.full()[1][:, :2], rows, rtol=0, atol=1e-6)


def test_gradients_reach_the_layer_through_captured_weights():
    """As a loss on attention needs it: the same gradient as through torch's own weights."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, H)
    x = torch.randn(B, Q, 12)
    target = torch.rand(B, H, Q, Q)
    (layer(x, x, x, capture=True).attn_weights.full() * target).sum().backward()
    got = layer.in_proj_weight.grad.clone()
    q, k = (x @ layer.in_proj_weight[i * 12 : (i + 1) * 12].T for i in (0, 1))
    q, k = (t.unflatten(-1, (H, -1)).transpose(1, 2) for t in (q, k))
    layer.zero_grad()
    ((q @ k.transpose(-1, -2) / 2).softmax(-1) * target).sum().backward()
    torch.testing.assert_close(got, layer.in_proj_weight.grad, rtol=1e-4, atol=1e-6)
    assert got[:24].abs().sum() > 0 and not got[24:].any()  # nothing of the values


def test_a_capture_computes_its_attention_at_each_access():
    weights = weights_with(None)
    capture = Capture(encoder_weights=[weights], decoder_weights=[torch.ones(1)])
    assert torch.equal(capture.encoder_attention[0], weights.full())
    assert capture.encoder_attention[0] is not capture.encoder_attention[0]
    assert capture.decoder_attention[0] is capture.decoder_weights[0] and capture.query_attention == []
    moved = capture.to("meta")
    assert moved.encoder_weights[0].q.device.type == moved.encoder_attention[0].device.type == "meta"
