"""What an explanation computes: never the attention of all cells to all cells."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import detrkit
from helpers.datasets import picture
from helpers.explained import detector_of


class Largest(TorchDispatchMode):
    """Records the most elements that an operator's result has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_the_mode_sees_large_tensors():
    detector = detector_of("detr-r50", size=512, backbone_stage=3)
    with Largest() as largest, torch.no_grad():
        detector.outputs([picture(512, 512, 1)], capture=True).outputs.capture.encoder_attention  # noqa: B018
    assert largest.elements == 4 * (64 * 64) ** 2  # heads x S x S


@pytest.mark.parametrize("kind", ["detr-r50", "deformable-detr-r50-two-stage"])
def test_no_map_of_all_cells_to_all_cells_is_made(kind):
    """4096 cells of stride 8: a head's S x S weights are 17 million numbers, the backbone's largest map has 0.5."""
    options = {"backbone_stage": 3} if kind == "detr-r50" else {}
    detector = detector_of(kind, size=512, **options)
    image = picture(512, 512, 1)
    with Largest() as predicted:
        detector.predict(image, threshold=0.0)
    with Largest() as largest:
        explanation = detrkit.explain(detector, image, threshold=0.0)
        assert explanation.grid == (64, 64)
        for layer in range(2):
            explanation.cross_attention(0, layer)
            explanation.self_attention(200, 100, layer)
    assert largest.elements <= predicted.elements < 2**21 < 4096**2


@pytest.mark.parametrize("kind", ["detr-r50", "deformable-detr-r50-two-stage", "instance"])
def test_what_is_kept(kind):
    """Attention alone keeps no maps of the backbone and no tokens; what it keeps equals the full capture."""
    detector = detector_of(kind)
    image = picture(100, 140, 1)
    full = detector.outputs([image], capture=True).outputs.capture
    kept = detector.outputs([image], capture="attention").outputs.capture
    assert kept.stages == {} and "backbone.2" in full.stages and "encoder.1" in full.stages
    for name in ("logits", "boxes", "references", "padding"):
        assert torch.equal(getattr(kept, name), getattr(full, name)), name
    for name in ("encoder_attention", "decoder_attention", "query_attention", "encoder_locations", "decoder_locations"):
        pairs = list(zip(getattr(kept, name), getattr(full, name), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs), name
    assert len(kept.encoder_attention) == 2 and len(kept.decoder_attention) == 3
    assert kept.feature_shapes == full.feature_shapes
