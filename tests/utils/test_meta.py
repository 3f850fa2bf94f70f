"""Models on the meta device: the shapes of those with values, no fills, and everything else as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detrkit.models.registry import ARCHITECTURES
from detrkit.utils.meta import on_meta
from detrkit.weights.build import build_model


@pytest.mark.parametrize("name", ["detr-r50", "detr-r50-panoptic", "deformable-detr-r50-two-stage", "rtdetrv2-r18"])
def test_a_model_has_the_tensors_of_the_one_with_values(name):
    small = {"backbone": "presnet10" if name.startswith("rtdetr") else "resnet10", "hidden_dim": 64}
    with on_meta():
        model = build_model(name, num_classes=3, **small)
    expected = build_model(name, num_classes=3, **small)
    assert name in ARCHITECTURES and all(tensor.is_meta for tensor in model.parameters())
    shapes = [{key: (v.shape, v.dtype) for key, v in each.state_dict().items()} for each in (model, expected)]
    assert shapes[0] == shapes[1]


class Seen(TorchDispatchMode):
    """The operators that are run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_fills_are_left_out_on_the_meta_device_alone():
    with Seen() as seen, torch.device("meta"):
        nn.Linear(3, 4)
    assert any("uniform" in name for name in seen.names)
    with Seen() as seen, on_meta():
        layer = nn.Linear(3, 4)
        for fill in (nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.normal_, nn.init.trunc_normal_):
            assert fill(layer.weight) is layer.weight
        assert layer.weight.data.normal_().is_meta
        assert not [name for name in seen.names if "normal" in name or "uniform" in name]
        real = torch.empty(1000, device="cpu")
        assert nn.init.normal_(real) is real and 0.8 < float(real.std()) < 1.2
        assert float(nn.init.constant_(real, 2.0).mean()) == 2
    assert torch.empty(1).device.type == "cpu"
