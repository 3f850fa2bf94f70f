"""Deformable attention with a number of points for each level, and with whole cells (RT-DETRv2)."""

from __future__ import annotations

import pytest
import torch

from detrkit.layers.deformable import MSDeformAttention
from helpers.weights import randomize

SHAPES = [(6, 9), (3, 5), (2, 3)]
TOKENS = sum(h * w for h, w in SHAPES)


def inputs(batch=2, queries=7):
    reference = torch.rand(batch, queries, 1, 4).expand(-1, -1, 3, -1)
    return torch.randn(batch, queries, 16), reference, torch.randn(batch, TOKENS, 16)


def read_cells(value, locations, weights):
    """Sum of the cells that the rule of RT-DETRv2 chooses, one after the other."""
    b, _, h, d = value.shape
    out = torch.zeros(b, locations.shape[1], h, d)
    start = 0
    for level, (height, width) in enumerate(SHAPES):
        x = (locations[..., level, :, 0] * width + 0.5).to(torch.int64).clamp(0, width - 1)
        y = (locations[..., level, :, 1] * height + 0.5).to(torch.int64).clamp(0, height - 1)
        for i, q, head, p in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
            cell = value[i, start + int(y[i, q, head, p]) * width + int(x[i, q, head, p]), head]
            out[i, q, head] += weights[i, q, head, level, p] * cell
        start += height * width
    return out.flatten(2)


@torch.no_grad()
def test_discrete_sampling_reads_cells():
    query, reference, memory = inputs()
    layer = randomize(MSDeformAttention(16, 2, levels=3, points=3, discrete=True))
    smooth = MSDeformAttention(16, 2, levels=3, points=3)
    smooth.load_state_dict(layer.state_dict())
    got = layer(query, reference, memory, SHAPES, padding_mask=None)
    plain = smooth(query, reference, memory, SHAPES, padding_mask=None)
    outside = (plain.sampling_locations < 0) | (plain.sampling_locations > 1)
    assert outside.any() and not outside.all()
    value = layer.value_proj(memory).unflatten(-1, (2, -1))
    expected = layer.output_proj(read_cells(value, plain.sampling_locations, plain.attention_weights))
    torch.testing.assert_close(got.output, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got.output, plain.output, atol=1e-2)
    assert not any(p.requires_grad for p in layer.sampling_offsets.parameters())


@torch.no_grad()
def test_discrete_sampling_stays_in_the_valid_part():
    """An image in the corner of larger maps, whose other cells would be read otherwise."""
    query, reference, memory = inputs(batch=1)
    layer = randomize(MSDeformAttention(16, 2, levels=3, points=3, discrete=True))
    alone = layer(query, reference, memory, SHAPES, padding_mask=None).output
    larger = [(h + 2, w + 1) for h, w in SHAPES]
    maps, mask = [], []
    for part, (h, w), (height, width) in zip(memory.split([h * w for h, w in SHAPES], 1), SHAPES, larger, strict=True):
        map_, padded = torch.full((1, height, width, 16), 99.0), torch.ones(1, height, width, dtype=torch.bool)
        map_[:, :h, :w], padded[:, :h, :w] = part.view(1, h, w, 16), False
        maps.append(map_.flatten(1, 2))
        mask.append(padded.flatten(1))
    ratios = torch.tensor([[(w / W, h / H) for (h, w), (H, W) in zip(SHAPES, larger, strict=True)]])
    scaled = reference * ratios.repeat(1, 1, 2)[:, None]
    padded = layer(
        query, scaled, torch.cat(maps, 1), larger, padding_mask=torch.cat(mask, 1), valid_ratios=ratios
    ).output
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_points_by_level_are_those_of_equal_levels_that_weigh_nothing():
    query, reference, memory = inputs()
    points = (3, 1, 2)
    layer = randomize(MSDeformAttention(16, 2, levels=3, points=points))
    got = layer(query, reference, memory, SHAPES, padding_mask=None)
    assert got.sampling_locations.shape == (2, 7, 2, 3, 3, 2)
    torch.testing.assert_close(got.attention_weights.sum((-1, -2)), torch.ones(2, 7, 2))
    assert [(got.attention_weights[..., level, :] > 0).any((0, 1, 2)).sum().item() for level in range(3)] == [3, 1, 2]
    # offsets are in half boxes, divided into as many steps as the level has points (RT-DETRv2's num_points_scale)
    offsets = layer.sampling_offsets(query).view(2, 7, 2, 6, 2).split(points, 3)
    for level, offset in enumerate(offsets):
        expected = reference[:, :, level, None, None, :2] + (
            offset / points[level] * reference[:, :, level, None, None, 2:] * 0.5
        )
        torch.testing.assert_close(got.sampling_locations[:, :, :, level, : points[level]], expected)


def test_a_number_for_every_level():
    with pytest.raises(ValueError, match=r"points are \[1, 2\]: give one number, or one for each of 3"):
        MSDeformAttention(16, 2, levels=3, points=(1, 2))
    rays = MSDeformAttention(16, 4, levels=3, points=(2, 1, 1)).sampling_offsets.bias.view(4, 4, 2)
    torch.testing.assert_close(rays[0], torch.tensor([[1.0, 0], [2, 0], [1, 0], [1, 0]]))
