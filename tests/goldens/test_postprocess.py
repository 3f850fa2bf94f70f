"""Boxes, scores and labels against the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import goldens
from detrkit.models.outputs import Outputs
from detrkit.models.postprocess import postprocess


@pytest.mark.parametrize(("family", "scores"), [("detr", "softmax"), ("deformable", "sigmoid")])
def test_published_postprocessing(family, scores):
    data = goldens.arrays(f"post_{family}_bbox.npz")
    outputs = Outputs(torch.from_numpy(data["in_pred_logits"]), torch.from_numpy(data["in_pred_boxes"]))
    found = postprocess(outputs, [tuple(s) for s in data["target_sizes"].tolist()], scores=scores)
    for i, detections in enumerate(found):
        np.testing.assert_allclose(detections.scores.numpy(), data["scores"][i], rtol=0, atol=1e-6)
        assert detections.labels.tolist() == data["labels"][i].tolist()  # so the order is the same too
        np.testing.assert_allclose(detections.boxes.numpy(), data["boxes"][i], rtol=1e-6, atol=1e-4)


def test_wrong_sizes_and_kinds():
    outputs = Outputs(torch.zeros(2, 3, 5), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="1 image sizes for a batch of 2"):
        postprocess(outputs, [(1, 1)])
    with pytest.raises(ValueError, match="choose softmax or sigmoid"):
        postprocess(outputs, [(1, 1)] * 2, scores="other")
    assert len(postprocess(outputs, [(1, 1)] * 2, scores="sigmoid", top_k=100)[0]) == 15
