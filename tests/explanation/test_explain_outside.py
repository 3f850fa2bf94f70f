"""Models of other packages: those that keep their attention are explained, the others are told what they lack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import detrkit
from detrkit.detector import Detector
from detrkit.models.registry import ARCHITECTURES
from detrkit.structures.outputs import Capture
from detrkit.utils.errors import SettingError
from detrkit.weights.checkpoint import ModelSpec
from helpers.datasets import picture
from helpers.grid import Grid

LAYERS, QUERIES, HEADS, LABELS = 2, 5, 2, 3


class TorchAttention(detrkit.DetectionModel):
    """A model with torch's own attention, whose weights are tensors, and patches of 16 pixels."""

    def __init__(self, *, num_classes: int = LABELS, num_queries: int = QUERIES, drop: str = "") -> None:
        super().__init__()
        self.num_classes, self.num_queries, self.drop = num_classes, num_queries, drop
        self.patches = nn.Conv2d(3, 8, 16, stride=16)
        self.queries = nn.Parameter(torch.randn(num_queries, 8))
        self.attention = nn.ModuleList(nn.MultiheadAttention(8, HEADS, batch_first=True) for _ in range(LAYERS))
        self.class_head, self.box_head = nn.Linear(8, num_classes), nn.Linear(8, 4)

    def forward(self, images, targets=None, capture=False, defer_masks=None):
        batch = images if isinstance(images, detrkit.Batch) else detrkit.Batch.from_images(images)
        features = self.patches(batch.images)  # (B, D, h, w)
        h, w = features.shape[2:]
        memory = features.flatten(2).transpose(1, 2)
        x, hs, weights = self.queries.expand(len(batch), -1, -1), [], []
        first = self.box_head(x).sigmoid()
        for layer in self.attention:
            attended, attention = layer(x, memory, memory, average_attn_weights=False)
            x = x + attended
            hs.append(x)
            weights.append(attention)  # (B, H, Q, S)
        states = torch.stack(hs)
        logits, boxes = self.class_head(states), self.box_head(states).sigmoid()
        outputs = detrkit.Outputs(logits[-1], boxes[-1])
        if capture:
            outputs.capture = Capture(
                decoder_weights=weights,
                feature_shapes=[(h, w)],
                padding=torch.zeros(len(batch), h * w, dtype=torch.bool),
                logits=logits,
                boxes=boxes,
                references=torch.cat([first[None], boxes]),
            )
            if self.drop:
                setattr(outputs.capture, self.drop, getattr(Capture(), self.drop))
        return outputs


class Points(TorchAttention):
    """Sampled points on two levels, and no encoder."""

    def forward(self, images, targets=None, capture=False, defer_masks=None):
        outputs = super().forward(images, targets, capture, defer_masks)
        if outputs.capture is not None:
            size = (len(outputs.logits), self.num_queries, HEADS, 2, 3)  # (B, Q, H, L, P)
            cells = outputs.capture.padding.shape[1]
            outputs.capture = replace(
                outputs.capture,
                decoder_weights=[torch.full(size, 1 / 6)] * LAYERS,
                decoder_locations=[torch.full((*size, 2), 0.5)] * LAYERS,
                feature_shapes=[*outputs.capture.feature_shapes, (1, 1)],
                padding=torch.zeros(size[0], cells + 1, dtype=torch.bool),
            )
        return outputs


@pytest.fixture
def detector_with(monkeypatch):
    """Registers a model class for the test, and makes a detector of it."""
    monkeypatch.setattr(ARCHITECTURES, "_entries", dict(ARCHITECTURES._entries))

    def make(model_class, **options):
        detrkit.register_model("outside", activation="sigmoid")(model_class)
        torch.manual_seed(0)
        spec = ModelSpec("outside", options, num_classes=LABELS, size=64)
        return Detector(spec.build(), spec, device="cpu")

    return make


def test_weights_that_are_tensors(detector_with):
    detector = detector_with(TorchAttention)
    image = picture(64, 96, 1)
    explanation = detrkit.explain(detector, image, threshold=0.0)
    capture = detector.outputs([image], capture=True).outputs.capture
    assert explanation.grid == (4, 6) and explanation.heads == HEADS and explanation.decoder_layers == LAYERS
    assert torch.equal(explanation.detections.boxes, detector.predict(image, threshold=0.0).boxes)
    for i, query in enumerate(explanation.queries.tolist()):
        weights = capture.decoder_weights[1][0, :, query].view(HEADS, 4, 6)
        assert torch.allclose(explanation.cross_attention(i), weights.mean(0))
        assert torch.equal(explanation.cross_attention(i, 1, 1), weights[1])
        assert torch.equal(explanation.layer_boxes(i)[-1], explanation.detections.boxes[i])
    with pytest.raises(SettingError, match="outside has no attention in its encoder, or keeps none"):
        explanation.self_attention(0, 0)
    assert explanation.proposal(0) is None


def test_points_without_an_encoder(detector_with):
    explanation = detrkit.explain(detector_with(Points), picture(64, 96, 1), threshold=0.0)
    points, weights = explanation.sampling_points(0, 0)
    assert points.shape == (HEADS, 2, 3, 2) and torch.allclose(points, torch.tensor([48.0, 32.0]))
    assert torch.allclose(weights.sum((1, 2)), torch.ones(HEADS))
    want = torch.zeros(4, 6)
    want[1:3, 2:4] = 0.25  # the center of the image lies between four cells
    torch.testing.assert_close(explanation.cross_attention(0), want)
    with pytest.raises(SettingError, match="outside has no attention in its encoder"):
        explanation.encoder_points(0, 0)


def test_a_model_that_keeps_nothing(detector_with):
    detector = detector_with(Grid)
    with pytest.raises(SettingError) as raised:
        detrkit.explain(detector, picture(64, 64, 1))
    assert str(raised.value) == (
        "these outputs of outside hold no attention: call detector.outputs(images, capture=True); a model of your own "
        "has to keep it (docs/extending.md)"
    )


@pytest.mark.parametrize("field", ["decoder_weights", "feature_shapes", "padding", "logits", "boxes", "references"])
def test_what_a_capture_lacks_is_named(field, detector_with):
    detector = detector_with(TorchAttention, drop=field)
    with pytest.raises(SettingError) as raised:
        detrkit.explain(detector, picture(64, 64, 1))
    assert str(raised.value) == (
        f"the capture of outside has no {field}: its forward must keep them (docs/extending.md)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: {"logits": c.logits[1:]},
            r"has len\(logits\) 1, not 2: it has 2 layers of decoder_weights and 16 cells",
        ),
        (lambda c: {"references": c.boxes}, r"has len\(references\) 2, not 3"),
        (lambda c: {"feature_shapes": [(4, 5)]}, r"has padding\.shape\[1\] 16, not 20"),
        (lambda c: {"decoder_locations": [torch.zeros(1)]}, r"has len\(decoder_locations\) 1, not 2"),
        (lambda c: {"feature_shapes": [(3, 4), (2, 2)]}, "the model attends to 2 whole maps at once"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message, detector_with, monkeypatch):
    detector = detector_with(TorchAttention)
    forward = TorchAttention.forward

    def changed(self, *args, **keywords):
        outputs = forward(self, *args, **keywords)
        if outputs.capture is not None:
            outputs.capture = replace(outputs.capture, **change(outputs.capture))
        return outputs

    monkeypatch.setattr(TorchAttention, "forward", changed)
    with pytest.raises(SettingError, match=message):
        detrkit.explain(detector, picture(64, 64, 1))
