"""No float64 tensor arises where a device computes, as MPS has none: every operator's result is looked at, on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrkit.detector import Detector
from detrkit.models.criterion import build_criterion
from detrkit.ops.ms_deform import ms_deform_backend
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec

SMALL = {
    "backbone": "resnet10",
    "backbone_width": 8,
    "backbone_norm": "group",
    "hidden_dim": 32,
    "nheads": 2,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 10,
}


class NoDoubles(TorchDispatchMode):
    """Raises an error at the first operator that returns a float64 tensor, but for copies to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise AssertionError(f"{function} makes a float64 tensor, which MPS does not have")
        return result


def test_doubles_would_be_seen():
    with pytest.raises(AssertionError, match="float64"), NoDoubles():
        torch.ones(2).double()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("detr-r50", {}),
        ("detr-r50", {"masks": True}),
        ("deformable-detr-r50-two-stage", {"num_feature_levels": 3}),
        ("deformable-detr-r50-two-stage", {"num_feature_levels": 3, "masks": True}),
    ],
)
def test_prediction_and_training_compute_in_float32(name, options):
    model = build_model(name, num_classes=4, **SMALL, **options)
    batch = Batch.from_images([torch.randn(3, 64, 80), torch.randn(3, 72, 64)])
    masks = torch.rand(2, 64, 80) > 0.5 if options.get("masks") else None
    targets = [
        Target(torch.tensor([1, 2]), torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.4, 0.4, 0.3, 0.3]]), masks=masks),
        Target(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), masks=None if masks is None else masks[:0, :72, :64]
        ),
    ]
    criterion = build_criterion(name, num_classes=4)
    # the plain path, which a device without kernels of its own takes
    with ms_deform_backend("reference"), NoDoubles():
        losses = criterion(model.train()(batch), targets)
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    detector = Detector(model, ModelSpec(name, SMALL | options, num_classes=4, size=64, max_size=96), device="cpu")
    image = np.zeros((48, 64, 3), np.uint8)
    with ms_deform_backend("reference"), NoDoubles():
        detector.predict(image, threshold=0.0)
