"""Boxes, scores and labels against the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import goldens
from detrkit.models.postprocess import panoptic, postprocess
from detrkit.structures.outputs import Outputs

PIXELS = 1e-4  # share of the pixels that may differ; the official float32 and float64 runs differ in none


@pytest.mark.parametrize(("family", "scores"), [("detr", "softmax"), ("deformable", "sigmoid")])
def test_published_postprocessing(family, scores):
    data = goldens.arrays(f"post_{family}_bbox.npz")
    outputs = Outputs(torch.from_numpy(data["in_pred_logits"]), torch.from_numpy(data["in_pred_boxes"]))
    found = postprocess(outputs, [tuple(s) for s in data["target_sizes"].tolist()], activation=scores)
    for i, detections in enumerate(found):
        np.testing.assert_allclose(detections.scores.numpy(), data["scores"][i], rtol=0, atol=1e-6)
        assert detections.labels.tolist() == data["labels"][i].tolist()  # so the order is the same too
        np.testing.assert_allclose(detections.boxes.numpy(), data["boxes"][i], rtol=1e-6, atol=1e-4)


def _outputs(data):
    return Outputs(*(torch.from_numpy(data[f"in_pred_{part}"]) for part in ("logits", "boxes", "masks")))


def _sizes(rows):
    return [tuple(size) for size in rows.tolist()]


def test_published_instance_masks():
    data = goldens.arrays("post_detr_segm.npz")
    sizes, input_sizes = _sizes(data["orig_target_sizes"]), _sizes(data["max_target_sizes"])
    found = postprocess(_outputs(data), sizes, input_sizes=input_sizes, official=True)
    for i, detections in enumerate(found):
        np.testing.assert_allclose(detections.scores.numpy(), data[f"img{i}_scores"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(detections.boxes.numpy(), data[f"img{i}_boxes"], rtol=1e-6, atol=1e-4)
        assert detections.labels.tolist() == data[f"img{i}_labels"].tolist()
        want = goldens.unpacked(data, f"img{i}_masks")[:, 0]
        assert detections.masks.shape == want.shape
        different = (detections.masks != want).float().mean()
        print(f"image {i}: {different:.1e} of the pixels, {want.float().mean():.2f} inside")
        assert different <= PIXELS and 0.05 < want.float().mean() < 0.95


@pytest.mark.parametrize("file", ["post_detr_panoptic.npz", "post_detr_panoptic_no_target_size.npz"])
def test_published_panoptic(file):
    data = goldens.arrays(file)
    outputs = _outputs(goldens.arrays("post_detr_panoptic.npz"))
    input_sizes = _sizes(data["processed_sizes"])
    sizes = _sizes(data["target_sizes"]) if "target_sizes" in data else input_sizes
    things = [category <= 90 for category in range(250)]
    found = panoptic(outputs, input_sizes=input_sizes, target_sizes=sizes, things=things, official=True)
    assert len(found) == 3 and [len(result) for result in found] == [5, 0, 3]
    for i, result in enumerate(found):
        want = torch.from_numpy(data[f"img{i}_id_map"]).int()
        assert result.id_map.dtype == torch.int32 and result.id_map.shape == want.shape
        assert (result.id_map != want).float().mean() <= PIXELS
        rows = data[f"img{i}_segments"].tolist()
        assert [[s.id, int(s.thing), s.label] for s in result.segments] == [row[:3] for row in rows]
        for segment, (*_, area) in zip(result.segments, rows, strict=True):
            assert abs(segment.area - area) <= PIXELS * want.numel() and segment.score > 0.85


def test_wrong_sizes_and_kinds():
    outputs = Outputs(torch.zeros(2, 3, 5), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="1 image sizes for a batch of 2"):
        postprocess(outputs, [(1, 1)])
    with pytest.raises(ValueError, match="choose softmax or sigmoid"):
        postprocess(outputs, [(1, 1)] * 2, activation="other")
    assert len(postprocess(outputs, [(1, 1)] * 2, activation="sigmoid", top_k=100)[0]) == 15
