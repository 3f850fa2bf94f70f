"""What differs on a GPU: the matcher's L1 cost, transfers, generators, autocast. Skipped without one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import goldens
from detrkit.engine import train
from detrkit.models.criterion import build_criterion
from detrkit.structures.outputs import Outputs
from helpers.tiny import MODEL, losses, tiny_config

pytestmark = pytest.mark.gpu


def test_losses_and_matches_are_those_of_the_cpu():
    data = goldens.arrays("criterion_detr_main.npz")
    outputs = Outputs(torch.from_numpy(data["in_pred_logits"]), torch.from_numpy(data["in_pred_boxes"]))
    targets = goldens.targets(data)
    criterion = build_criterion("detr-r50", num_classes=outputs.logits.shape[-1] - 1)
    expected, pairs = criterion(outputs, targets), criterion.matcher(outputs, targets)
    there, moved = outputs.to("cuda"), [t.to("cuda") for t in targets]
    found = criterion.to("cuda")(there, moved)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=2e-5, atol=1e-6)
    for (q, t), (other_q, other_t) in zip(criterion.matcher(there, moved), pairs, strict=True):
        assert torch.equal(q, other_q) and torch.equal(t, other_t)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_trains_and_resumes(shapes, tmp_path, precision):
    config = tiny_config(
        shapes,
        tmp_path / "run",
        model=dataclasses.replace(MODEL, dropout=0.1),
        optim={"ema": 0.9},
        run={"device": "cuda", "precision": precision},
    )
    train(config)
    train(config.changed(optim={"epochs": 4}), resume=True)
    values = [v for _, v in losses(tmp_path / "run")]
    assert len(values) == 4 * 6
    assert sum(values[-6:]) < sum(values[:6])
