"""The small parts against the official code: boxes, masks, position encodings, clipping and AdamW."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import goldens
from detrkit.layers import SinePositionEncoding
from detrkit.ops import boxes as ops
from detrkit.structures.batch import Batch


def _close(got, want, atol):
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=atol)


def test_box_ops():
    data = {k: torch.from_numpy(v) for k, v in goldens.arrays("box_ops.npz").items()}
    a, b = data["boxes_a_xyxy"], data["boxes_b_xyxy"]
    _close(ops.cxcywh_to_xyxy(data["boxes_a_cxcywh"]), a, 1e-6)
    _close(ops.xyxy_to_cxcywh(a), data["boxes_a_cxcywh"], 1e-6)
    overlap, union = ops.iou(a, b)
    _close(overlap, data["iou"], 1e-6)
    _close(union, data["union"], 1e-6)
    _close(ops.pairwise_generalized_iou(a, b), data["giou"], 1e-6)
    _close(torch.stack([ops.generalized_iou(a[i], b[i]) for i in range(18)]), data["giou"].diagonal(), 1e-6)
    masks = data["masks"]
    _close(ops.masks_to_boxes(masks), data["masks_to_boxes"], 0)
    assert ops.masks_to_boxes(torch.zeros_like(masks[:2])).tolist() == [[0, 0, 0, 0]] * 2
    assert ops.masks_to_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize(("family", "offset"), [("detr", 0.0), ("deformable", 0.5)])
def test_sine_position_encoding(family, offset):
    data = goldens.arrays(f"{family}_position_encoding.npz")
    mask = torch.from_numpy(data["mask"])
    sine = SinePositionEncoding(256, offset=offset)(mask).masked_fill(mask[..., None], 0.0)
    _close(sine.permute(0, 3, 1, 2), data["sine"], 5e-6)


@pytest.mark.parametrize("stride", [8, 16, 32, 64])
def test_padding_masks(stride):
    data = goldens.arrays("padding_masks.npz")
    for case in range(3):
        sizes = data[f"case{case}_sizes"].tolist()
        batch = Batch.from_images([torch.ones(3, h, w) for h, w in sizes])
        want = data[f"case{case}_stride{stride}"]
        got = F.interpolate(batch.mask()[:, None].float(), size=want.shape[1:])[:, 0].bool()
        assert np.array_equal(got.numpy(), want)


def test_adamw_and_clipping():
    """torch's own, in the published groups: what the engine's optimiser has to be.

    The file was written after the official run had clipped the gradients and moved the weights in place: `grads_*` are
    the clipped gradients and `init_*` equal `final_*`. Adam's steps do not depend on where they start but for the
    decay, so the movement over the five steps is checked: the largest one is recorded in the index (there it is the
    difference between a float32 run from the moved weights and the weights), all of them against the formula.
    """
    (case,) = goldens.cases("optimizer")
    data = goldens.arrays(case["file"])
    names = [k.removeprefix("init_") for k in data if k.startswith("init_")]
    weights = {n: torch.nn.Parameter(torch.from_numpy(data[f"init_{n}"].copy())) for n in names}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in weights.items() if "backbone" not in n]},
            {"params": [p for n, p in weights.items() if "backbone" in n], "lr": case["lr_backbone"]},
        ],
        lr=case["lr"],
        betas=tuple(case["betas"]),
        eps=case["eps"],
        weight_decay=case["weight_decay"],
    )
    steps = len(data["grad_norms"])
    for step in range(steps):
        if step == steps - 1:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        scale = max(1.0, (data["grad_norms"][step] + 1e-6) / case["max_norm"])  # undoes the clipping
        for name, p in weights.items():
            p.grad = torch.from_numpy(data[f"grads_{name}"][step] * scale) if f"grads_{name}" in data else None
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), case["max_norm"])
        assert norm.item() == pytest.approx(data["grad_norms"][step], rel=1e-10)
        optimizer.step()

    moved = {n: p.detach().numpy() - data[f"init_{n}"] for n, p in weights.items()}
    recorded = case["tolerance"]["fp32_vs_fp64"]["final"]
    assert max(np.abs(m).max() for m in moved.values()) == pytest.approx(recorded, abs=2e-7)
    assert not moved["head.unused"].any()
    for name in names:
        if f"grads_{name}" in data:
            lr = case["lr_backbone"] if "backbone" in name else case["lr"]
            want = _adamw(data[f"init_{name}"], data[f"grads_{name}"], [lr] * (steps - 1) + [0.1 * lr], case)
            np.testing.assert_allclose(weights[name].detach().numpy(), want, rtol=0, atol=1e-10)


def _adamw(p, gradients, rates, case):
    """Loshchilov & Hutter 2019, Algorithm 2."""
    first, second = case["betas"]
    m = v = np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = first * m + (1 - first) * g
        v = second * v + (1 - second) * g * g
        update = m / (1 - first**t) / (np.sqrt(v / (1 - second**t)) + case["eps"])
        p = p - lr * case["weight_decay"] * p - lr * update
    return p
