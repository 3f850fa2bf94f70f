"""The building blocks against torch's own and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from detrkit.layers import (
    MLP,
    Decoder,
    Encoder,
    FrozenBatchNorm2d,
    GroupNorm,
    LearnedPositionEncoding,
    MultiHeadAttention,
    SinePositionEncoding,
)
from detrkit.layers import attention as attention_module


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("same_key", [False, True])
def test_attention_equals_torch(seed, capture, same_key):
    torch.manual_seed(seed)
    ours, theirs = MultiHeadAttention(48, 6), nn.MultiheadAttention(48, 6, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours.load_state_dict(theirs.state_dict())
    key, value = torch.randn(2, 2, 11, 48)
    query = key if same_key else torch.randn(2, 5, 48)
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[1, 7:] = True
    got, weights = ours(query, key, value, key_padding_mask=padding, capture=capture)
    want, averaged = theirs(query, key, value, key_padding_mask=padding)
    assert torch.allclose(got, want, atol=1e-6)
    if capture:
        assert torch.allclose(weights.full().mean(1), averaged, atol=1e-6)
        assert torch.allclose(weights.rows(1, [4, 2]).mean(0), averaged[1, [4, 2]], atol=1e-6)
    else:
        assert weights is None


def test_attention_does_not_see_padded_keys():
    attention = MultiHeadAttention(16, 4)
    query, key, value = torch.randn(1, 3, 16), torch.randn(1, 6, 16), torch.randn(1, 6, 16)
    padding = torch.tensor([[False] * 4 + [True] * 2])
    got, _ = attention(query, key, value, key_padding_mask=padding)
    want, _ = attention(query, key[:, :4], value[:, :4])
    assert torch.allclose(got, want, atol=1e-6)


def test_attention_needs_heads_that_divide():
    with pytest.raises(ValueError, match="5 heads do not divide a width of 16"):
        MultiHeadAttention(16, 5)


def test_attention_dropout_only_in_training():
    attention = MultiHeadAttention(16, 4, dropout=0.5)
    x = torch.randn(1, 8, 16)
    assert not torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])
    assert not torch.equal(attention(x, x, x, capture=True)[0], attention(x, x, x, capture=True)[0])
    attention.eval()
    assert torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])


def _rename(name):
    return (
        name.replace("self_attention", "self_attn")
        .replace("cross_attention", "multihead_attn")
        .replace("feed_forward.", "")
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor")
@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_equals_torch(pre_norm):
    """Without positions it is `nn.Transformer` (the demo model's), but for the final norm after every layer."""
    torch.manual_seed(2)
    theirs = nn.Transformer(32, 4, 2, 3, 64, batch_first=True, norm_first=pre_norm).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.2)
    encoder = Encoder(2, 32, 4, 64, dropout=0.1, pre_norm=pre_norm, final_norm=True).eval()
    decoder = Decoder(3, 32, 4, 64, dropout=0.1, pre_norm=pre_norm).eval()
    for ours, part in ((encoder, theirs.encoder), (decoder, theirs.decoder)):
        state = part.state_dict()
        ours.load_state_dict({name: state[_rename(name)] for name in ours.state_dict()})
    source, queries = torch.randn(2, 9, 32), torch.randn(2, 5, 32)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 6:] = True
    memory, _, _ = encoder(source, pos_embed=None, key_padding_mask=padding)
    states, _, _, _ = decoder(queries, memory, pos_embed=None, query_pos=None, key_padding_mask=padding)
    with torch.no_grad():
        want = theirs(source, queries, src_key_padding_mask=padding, memory_key_padding_mask=padding)
    assert states.shape == (3, 2, 5, 32)
    assert torch.allclose(states[-1], want, atol=1e-5)


def test_position_enters_queries_and_keys_not_values():
    """With one token there is nothing to choose: its position cannot matter."""
    encoder = Encoder(1, 16, 2, 32, dropout=0.0, pre_norm=False, final_norm=False)
    x = torch.randn(1, 1, 16)
    a, _, _ = encoder(x, pos_embed=torch.zeros(1, 1, 16), key_padding_mask=None)
    b, _, _ = encoder(x, pos_embed=torch.randn(1, 1, 16), key_padding_mask=None)
    assert torch.allclose(a, b, atol=1e-6)


def test_frozen_batch_norm_equals_batch_norm_in_eval_mode():
    theirs = nn.BatchNorm2d(6)
    for tensor in (theirs.weight, theirs.bias, theirs.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(theirs.running_var, 0.5, 2)
    ours = FrozenBatchNorm2d(6)
    ours.load_state_dict(theirs.state_dict())  # the counter is ignored
    x = torch.randn(2, 6, 5, 4)
    assert torch.allclose(ours.train()(x), theirs.eval()(x), atol=1e-5)
    peer = torchvision.ops.FrozenBatchNorm2d(6)
    peer.load_state_dict(theirs.state_dict())
    assert torch.allclose(ours(x), peer(x), atol=1e-6)
    assert not list(ours.parameters())


@pytest.mark.parametrize("channels", [8, 12])
def test_group_norm_over_valid_positions(channels):
    norm = GroupNorm(4, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 + 2 * torch.randn(2, channels, 7, 6)
    keep = torch.zeros(2, 1, 7, 6, dtype=torch.bool)
    keep[0, :, :5, :4], keep[1, :, :7, :3] = True, True
    got = norm(x, keep)
    for i, (h, w) in enumerate([(5, 4), (7, 3)]):
        want = F.group_norm(x[i : i + 1, :, :h, :w], 4, norm.weight, norm.bias)
        assert torch.allclose(got[i : i + 1, :, :h, :w], want, atol=1e-5)
    assert torch.allclose(norm(x, torch.ones_like(keep)), norm(x), atol=1e-5)


def test_sine_encoding_closed_form():
    padding = torch.ones(1, 5, 6, dtype=torch.bool)
    padding[:, :3, :4] = False
    got = SinePositionEncoding(16)(padding)
    for row, column, channel in [(0, 0, 0), (2, 3, 1), (1, 2, 5), (2, 1, 8), (0, 3, 15)]:
        index, count = (row, 3) if channel < 8 else (column, 4)
        angle = (index + 1) / (count + 1e-6) * 2 * math.pi / 10000 ** (2 * (channel % 8 // 2) / 8)
        want = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
        assert got[0, row, column, channel].item() == pytest.approx(want, abs=1e-6)
    assert torch.allclose(got[:, :3, :4], SinePositionEncoding(16)(torch.zeros(1, 3, 4, dtype=torch.bool)), atol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4"):
        SinePositionEncoding(6)


def test_learned_encoding():
    encoding = LearnedPositionEncoding(8, entries=5)
    got = encoding(torch.zeros(2, 3, 4, dtype=torch.bool))
    assert got.shape == (2, 3, 4, 8)
    assert torch.equal(got[1, 2, 3], torch.cat([encoding.col_embed.weight[3], encoding.row_embed.weight[2]]))
    with pytest.raises(ValueError, match="position_entries=6"):
        encoding(torch.zeros(1, 6, 4, dtype=torch.bool))


def test_mlp():
    mlp = MLP(6, 10, 4, layers=3)
    want = nn.Sequential(mlp.layers[0], nn.ReLU(), mlp.layers[1], nn.ReLU(), mlp.layers[2])
    x = torch.randn(2, 3, 6)
    assert torch.equal(mlp(x), want(x))


def _attended(part, monkeypatch, *, dropout):
    """Output, gradients of query, key and value, and bytes kept for them, with at most `part` weights together."""
    monkeypatch.setattr(attention_module, "ATTENTION_CHUNK", part)
    torch.manual_seed(0)
    attention = MultiHeadAttention(32, 4, dropout=dropout).train()
    query, key, value = (torch.randn(2, n, 32, requires_grad=True) for n in (40, 50, 50))
    padding = torch.zeros(2, 50, dtype=torch.bool)
    padding[1, 30:] = True
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, _ = attention(query, key, value, key_padding_mask=padding)
    weighed = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * weighed).sum(), (query, key, value))
    return out, gradients, sum(kept.values()), (weighed, value, attention)


def test_large_attention_in_parts_is_the_same(monkeypatch):
    whole, gradients, kept, _ = _attended(2**24, monkeypatch, dropout=1e-9)  # so small that nothing is dropped
    for part in (2 * 40 * 50, 3 * 2 * 40 * 50):  # one head at a time; three and one
        out, same, fewer, _ = _attended(part, monkeypatch, dropout=1e-9)
        torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(same, gradients, rtol=1e-5, atol=1e-6)
        assert fewer < kept / 2


def test_attention_in_parts_drops_the_same_weights_in_the_backward_pass(monkeypatch):
    """Output is linear in the values: but for biases, it is what its gradient with respect to them says."""
    out, (_, _, gradient), _, (weighed, value, attention) = _attended(2 * 40 * 50, monkeypatch, dropout=0.5)
    assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()
    assert (out * weighed).sum().item() == pytest.approx((gradient * value).sum().item(), rel=1e-4)
