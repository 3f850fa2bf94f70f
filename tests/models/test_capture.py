"""What a model looked at is a product of its own, and asking for it changes nothing."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.structures.batch import Batch
from detrkit.weights.build import build_model

SMALL = {"hidden_dim": 64, "dim_feedforward": 128, "enc_layers": 2, "dec_layers": 3, "num_queries": 10}


@pytest.mark.parametrize("name", ["detr-r50", "detr-demo"])
def test_attention(name):
    model = build_model(name, backbone="resnet18", **SMALL).eval()
    images = [goldens.image("a", 97, 131), goldens.image("b", 70, 90)]
    with torch.inference_mode():
        plain, captured = model(images), model(images, capture=True)
    assert plain.capture is None
    for a, b in zip([plain, *plain.aux], [captured, *captured.aux], strict=True):
        assert torch.equal(a.logits, b.logits) and torch.equal(a.boxes, b.boxes)

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strides", "coordinates"),
    [
        ("deformable-detr-r50-single-scale", [32], [2, 2, 2]),
        ("deformable-detr-r50-single-scale-dc5", [16], [2, 2, 2]),
        ("deformable-detr-r50", [8, 16, 32, 64], [2, 2, 2]),
        ("deformable-detr-r50-refine", [8, 16, 32, 64], [2, 4, 4]),
        ("deformable-detr-r50-two-stage", [8, 16, 32, 64], [4, 4, 4]),
        ("h-deformable-detr-r50", [8, 16, 32, 64], [4, 4, 4]),
        ("dino-r50-4scale", [8, 16, 32, 64], [4, 4, 4]),
        ("dino-r50-5scale", [4, 8, 16, 32, 64], [4, 4, 4]),
    ],
)
def test_sampling_points_and_weights(name, strides, coordinates):
    """At the published initialization: equal weights, and points on one ray a head (Deformable DETR, Sec. A.4)."""
    model = build_model(name, **SMALL, nheads=4, enc_n_points=3, dec_n_points=2).eval()
    images = [goldens.image("a", 97, 131), goldens.image("b", 70, 90)]
    with torch.inference_mode():
        plain, captured = model(images), model(images, capture=True)
    assert plain.capture is None
    for a, b in zip([plain, *plain.aux], [captured, *captured.aux], strict=True):
        assert torch.equal(a.logits, b.logits) and torch.equal(a.boxes, b.boxes)

    capture = captured.capture
    shapes, *valid = ([(-(-h // s), -(-w // s)) for s in strides] for h, w in [(97, 131), (97, 131), (70, 90)])
    assert capture.feature_shapes == shapes
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    assert capture.padding.shape == (2, tokens)
    assert len(capture.encoder_locations) == len(capture.encoder_attention) == 2
    assert len(capture.decoder_locations) == len(capture.decoder_attention) == len(capture.query_attention) == 3
    for weights in capture.encoder_attention:
        assert weights.shape == (2, tokens, 4, levels, 3)
        assert torch.allclose(weights, torch.tensor(1 / (levels * 3)), rtol=1e-6)
    for weights in capture.decoder_attention:
        assert weights.shape == (2, 10, 4, levels, 2)
        assert torch.allclose(weights, torch.tensor(1 / (levels * 2)), rtol=1e-6)
    for weights in capture.query_attention:
        assert weights.shape == (2, 4, 10, 10)
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)

    references = [capture.stages["init_reference"], *capture.stages["inter_references"][:-1]]  # of each layer
    assert [reference.shape[-1] for reference in references] == coordinates
    for i, own in enumerate(valid):
        cells = torch.cat([_centres(h, w) / torch.tensor(size[::-1]) for (h, w), size in zip(shapes, own, strict=True)])
        for locations in capture.encoder_locations:
            torch.testing.assert_close(locations[i], _points(cells, shapes, own, 3), rtol=0, atol=1e-5)
        for locations, reference in zip(capture.decoder_locations, references, strict=True):
            torch.testing.assert_close(locations[i], _points(reference[i], shapes, own, 2), rtol=0, atol=1e-5)


STAGES = {
    "detr-r50": {"backbone_norm": "group"},
    "detr-demo": {},
    "deformable-detr-r50": {"num_feature_levels": 4},
    "deformable-detr-r50-single-scale": {"masks": True},
    "deformable-detr-r50-two-stage": {"backbone_stages": (3, 5), "num_feature_levels": 3},
    "h-deformable-detr-r50": {"num_feature_levels": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_recorded(name):
    """Each stage is what its own part makes of the one before it."""
    model = build_model(name, backbone="resnet18", **SMALL, **STAGES[name]).eval()
    batch = Batch.from_images([goldens.image("a", 97, 131)])
    with torch.inference_mode():
        out = model(batch, capture=True)
        stages, deformable = out.capture.stages, hasattr(model, "projections")
        projections = list(model.projections) if deformable else [model.input_projection]
        tokens, position = out.capture.padding.shape[1], {}
        maps = model.backbone(batch, every_stage=True)
        assert [n for n in stages if n.startswith("backbone.")] == [
            "backbone.2",
            "backbone.3",
            "backbone.4",
            "backbone.5",
        ]
        for s, (feature, padding) in enumerate(maps, 2):
            assert torch.equal(stages[f"backbone.{s}"], feature)
            assert feature.shape[1:] == (64 * 2 ** (s - 2), -(-97 // 2**s), -(-131 // 2**s))
            position[s] = None if name == "detr-demo" else model.position_encoding(padding).permute(0, 3, 1, 2)
        read = model.stages if deformable else (5,)
        for level, projection in enumerate(projections):
            got = stages[f"projection.{level}"]
            assert got.shape[2:] == stages[f"position.{level}"].shape[2:] == out.capture.feature_shapes[level]
            if level < len(read):
                want = projection(stages[f"backbone.{read[level]}"])
                want = model.projection_norms[level](want) if deformable else want
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)  # other kernels
                if name != "detr-demo":
                    assert torch.equal(stages[f"position.{level}"], position[read[level]])
        assert f"projection.{len(projections)}" not in stages
        for i in range(2):
            assert stages[f"encoder.{i}"].shape == (1, tokens, 64)
        assert not torch.equal(stages["encoder.0"], stages["encoder.1"])
        memory = stages["memory"] if deformable else stages["memory"].flatten(2).transpose(1, 2)
        norm = None if deformable else model.encoder.norm
        assert torch.equal(memory, stages["encoder.1"] if norm is None else norm(stages["encoder.1"]))
        for i, layer in enumerate([*out.aux, out] if out.aux else [None, None, out]):
            state = stages[f"decoder.{i}"]
            assert torch.equal(stages["queries"][i], state if deformable else model.decoder.norm(state))
            if layer is not None:
                head = model.class_heads[i if model.with_box_refine else 0] if deformable else model.class_head
                torch.testing.assert_close(head(stages["queries"][i]), layer.logits, rtol=0, atol=2e-6)


def _centres(h, w):
    """(h * w, 2) xy of the cells' centres, in cells."""
    return torch.tensor([(x + 0.5, y + 0.5) for y in range(h) for x in range(w)])


def _points(references, shapes, valid, points):
    """(N, 4, L, points, 2): around (N, 2) points in steps of a cell, around (N, 4) boxes in shares of half a box."""
    rays = torch.tensor([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])  # of four heads
    steps = torch.arange(1, points + 1)[:, None] * rays[:, None]  # (4, points, 2)
    levels = []
    for (h, w), (valid_h, valid_w) in zip(shapes, valid, strict=True):
        size, ratio = torch.tensor([w, h]), torch.tensor([valid_w / w, valid_h / h])
        center = (references[:, :2] * ratio)[:, None, None]  # (N, 1, 1, 2)
        if references.shape[1] == 2:
            levels.append(center + steps / size)
        else:
            levels.append(center + steps / points * (references[:, 2:] * ratio)[:, None, None] / 2)
    return torch.stack(levels, 2)


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
        plain, captured = model(images), model(images, capture=True)
    assert plain.aux == captured.aux == []
    assert torch.equal(plain.logits, captured.logits) and torch.equal(plain.boxes, captured.boxes)
    capture = captured.capture
    assert capture.stages["queries"].shape == (3, 1, 10, 64) and capture.logits.shape[:3] == (3, 1, 10)
    assert torch.equal(capture.logits[-1], plain.logits) and torch.equal(capture.boxes[-1], plain.boxes)


def test_to_moves_everything():
    model = build_model("detr-r50", backbone="resnet18", **SMALL).eval()
    with torch.inference_mode():
        out = model([goldens.image("a", 64, 96)], capture=True)
    moved = out.to("meta")
    tensors = [moved.logits, moved.aux[0].boxes, *moved.capture.decoder_attention, *moved.capture.stages.values()]
    assert all(t.device.type == "meta" for t in tensors)
    assert out.logits.device.type == "cpu"
