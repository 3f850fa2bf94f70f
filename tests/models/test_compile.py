"""torch.compile takes a whole model as one graph, which computes the same."""

from __future__ import annotations

import pytest
import torch

from detrkit.weights.build import build_model

SMALL = {"num_classes": 5, "enc_layers": 1, "dec_layers": 1, "dim_feedforward": 64, "num_queries": 20}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr-r50", "deformable-detr-r50"])
def test_one_graph(name):
    torch.manual_seed(0)
    model = build_model(name, **SMALL).eval()
    x = torch.randn(1, 3, 96, 128)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: model(list(x)).logits, backend="eager", fullgraph=True)  # no break is allowed
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(list(x)).logits, atol=1e-4, rtol=1e-4)
