"""Gradient checkpointing changes what is kept for the backward pass, and nothing that comes out of it."""

from __future__ import annotations

import pytest
import torch

from detrkit.layers import set_checkpointing
from detrkit.models.criterion import build_criterion
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model

MODELS = [
    ("detr-r50", {}),
    ("detr-r50", {"backbone": "resnet18"}),  # whose blocks change their input where padding is cleared
    ("detr-r50-dc5", {}),
    ("detr-r50-panoptic", {}),
    ("deformable-detr-r50", {}),
    ("deformable-detr-r50-two-stage", {}),
]
SMALL = {"hidden_dim": 32, "nheads": 4, "dim_feedforward": 64, "num_queries": 10, "num_classes": 4}


def _step(name: str, options: dict[str, str], *, on: bool) -> tuple[dict[str, float], dict[str, torch.Tensor], int]:
    """Losses, gradients, and the bytes that the forward pass kept outside of what is computed again."""
    torch.manual_seed(0)
    model = build_model(name, **SMALL, **options, dropout=0.1).train()
    criterion = build_criterion(name, num_classes=4)
    set_checkpointing(model, on)
    batch = Batch.from_images([torch.randn(3, 96, 128), torch.randn(3, 64, 100)])
    masks = (torch.rand(2, 96, 128) > 0.5) if "panoptic" in name else None
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])
    target = Target(boxes=boxes, labels=torch.tensor([1, 2]), masks=masks)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(batch)
        held = sum(kept.values())
        losses = criterion(outputs, [target, target])
        total = criterion.total(losses)
    total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: v.item() for n, v in losses.items()}, gradients, held


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_same_gradients_from_less(name, options):
    losses, gradients, kept = _step(name, options, on=False)
    again, same, fewer = _step(name, options, on=True)
    # dropout too is that of the first time; several threads may add in another order
    assert again == pytest.approx(losses, rel=1e-5)
    assert gradients.keys() == same.keys() and len(same) > 100
    for key, gradient in gradients.items():
        torch.testing.assert_close(same[key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    print(f"{kept / 2**20:.1f} -> {fewer / 2**20:.1f} MiB")
    assert fewer < kept / 3


def test_nothing_is_computed_twice_without_gradients():
    model = build_model("detr-r50", **SMALL).eval()
    set_checkpointing(model)
    calls = []
    model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model([torch.randn(3, 64, 64)])
    assert len(calls) == 1
