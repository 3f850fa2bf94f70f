"""Whole models in bfloat16 on a CPU, by oneDNN's kernels and, as on processors that these fail on, by PyTorch's own."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.ops import dense
from detrkit.weights.build import build_model

SMALL = {"backbone": "resnet18", "hidden_dim": 64, "dim_feedforward": 64, "enc_layers": 1, "dec_layers": 1}
MODELS = {
    "detr-r50": {"position_embedding": "learned"},
    "detr-r50-panoptic": {},
    "deformable-detr-r50": {"masks": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["oneDNN", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_float32_to_bfloat16(name, kernels, monkeypatch):
    if kernels == "oneDNN" and not dense.has_bf16_kernels():
        pytest.skip("oneDNN has no bfloat16 kernels for this processor")
    if kernels == "own":
        monkeypatch.setattr(dense, "has_bf16_kernels", lambda: False)
    torch.manual_seed(0)
    model = build_model(name, **SMALL, **MODELS[name], num_queries=9, num_classes=4, dropout=0.0).eval()
    images = [goldens.image("bf16", 96, 128), goldens.image("bf16 too", 70, 90)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        # with oneDNN off PyTorch's convolutions and products take the way that they take without its kernels
        with torch.backends.mkldnn.flags(enabled=kernels == "oneDNN" or dtype == torch.float32):
            model.to(dtype).zero_grad()
            with torch.no_grad():
                out = model([image.to(dtype) for image in images])
            again = model([image.to(dtype) for image in images])
            (again.logits.float().sum() + again.boxes.float().sum()).backward()
        assert out.logits.dtype == dtype
        head = (model.class_head if hasattr(model, "class_head") else model.class_heads[0]).weight
        results.append([out.logits.float(), out.boxes.float(), head.grad.float()])
    for single, half in zip(*results, strict=True):
        assert (single - half).abs().max() <= 0.04 * single.abs().max()
