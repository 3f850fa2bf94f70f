"""What a model looked at is a product of its own, and asking for it changes nothing."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.build import build_model

SMALL = {"hidden_dim": 64, "dim_feedforward": 128, "enc_layers": 2, "dec_layers": 3, "num_queries": 10}


@pytest.mark.parametrize("name", ["detr-r50", "detr-demo"])
def test_attention(name):
    model = build_model(name, backbone="resnet18", **SMALL).eval()
    images = [goldens.image("a", 97, 131), goldens.image("b", 70, 90)]
    with torch.inference_mode():
        plain, captured = model(images), model(images, capture=True)
    assert plain.capture is None
    assert torch.allclose(plain.logits, captured.logits, rtol=0, atol=2e-5)
    assert torch.allclose(plain.boxes, captured.boxes, rtol=0, atol=5e-6)
    for a, b in zip(plain.aux, captured.aux, strict=True):
        assert torch.allclose(a.logits, b.logits, rtol=0, atol=2e-5)

    capture = captured.capture
    ((h, w),) = capture.feature_shapes
    assert (h, w) == (4, 5) and capture.padding.shape == (2, 20)
    assert capture.padding.unflatten(1, (h, w))[1].logical_not().sum() == 3 * 3  # 70 x 90 pixels
    assert len(capture.encoder_attention) == 2
    assert len(capture.decoder_attention) == len(capture.query_attention) == 3
    for weights, rows in [(a, h * w) for a in capture.encoder_attention] + [(a, 10) for a in capture.decoder_attention]:
        assert weights.shape == (2, 8, rows, h * w)
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert not weights[1][..., capture.padding[1]].any()
        assert weights[0].gt(0).all()
    for weights in capture.query_attention:
        assert weights.shape == (2, 8, 10, 10)
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


def test_capture_and_gradients_agree():
    model = build_model("detr-r50", backbone="resnet18", **SMALL, dropout=0.0).train()
    images = [goldens.image("a", 64, 96)]
    gradients = []
    for capture in (False, True):
        model.zero_grad()
        model(images, capture=capture).logits.square().mean().backward()
        gradients.append(model.encoder.layers[0].self_attention.in_proj_weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-7)


def test_no_auxiliary_outputs_when_not_wanted():
    model = build_model("detr-r50", backbone="resnet18", **SMALL, aux_loss=False).eval()
    images = [goldens.image("a", 64, 96)]
    with torch.inference_mode():
        assert model(images).aux == []
        assert model(images, capture=True).capture.stages["queries"].shape == (3, 1, 10, 64)


def test_to_moves_everything():
    model = build_model("detr-r50", backbone="resnet18", **SMALL).eval()
    with torch.inference_mode():
        out = model([goldens.image("a", 64, 96)], capture=True)
    moved = out.to("meta")
    tensors = [moved.logits, moved.aux[0].boxes, *moved.capture.decoder_attention, *moved.capture.stages.values()]
    assert all(t.device.type == "meta" for t in tensors)
    assert out.logits.device.type == "cpu"
