"""Groups, schedules and the moving average against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detrkit.config import OptimConfig
from detrkit.engine.optim import build_optimizer, lr_factor, moving_average, set_lr
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model

SMALL = {"backbone": "resnet18", "hidden_dim": 32, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1}


def _names(model, optimizer):
    by_id = {id(p): n for n, p in model.named_parameters()}
    return {g["base_lr"]: {by_id[id(p)] for p in g["params"]} for g in optimizer.param_groups}


def test_groups_by_rate():
    model = build_model("deformable-detr-r50-refine", **SMALL)
    groups = _names(model, build_optimizer(model, OptimConfig(lr=1e-3, lr_backbone=2e-5)))
    assert sorted(groups) == pytest.approx([2e-5, 1e-4, 1e-3])
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert groups[2e-5] == {n for n in trainable if n.startswith("backbone.")}
    assert groups[1e-3 * 0.1] == {n for n in trainable if "sampling_offsets" in n or "reference_points" in n}
    assert set().union(*groups.values()) == trainable


def test_backbone_rate_zero_freezes_it():
    model = build_model("detr-r50", **SMALL)
    groups = _names(model, build_optimizer(model, OptimConfig(lr_backbone=0)))
    assert list(groups) == [1e-4]
    assert not any(p.requires_grad for p in model.backbone.parameters())
    with pytest.raises(DetrkitError, match="nothing to train"):
        build_optimizer(model.requires_grad_(False), OptimConfig())


def test_step_schedule_drops_once():
    config = OptimConfig(lr_drop=2, epochs=4)
    assert [lr_factor(config, s, 3) for s in (0, 5, 6, 11)] == [1, 1, 0.1, 0.1]


def test_cosine_schedule_with_warmup():
    config = OptimConfig(schedule="cosine", epochs=10, warmup_steps=4)
    assert lr_factor(config, 0, 10) == pytest.approx(0.25)
    assert lr_factor(config, 50, 10) == pytest.approx(0.5)
    assert lr_factor(config, 75, 10) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert lr_factor(config, 100, 10) == pytest.approx(0.0)


def test_flat_cosine_schedule():
    """Warm-up, flat, then a cosine to a share of the rate; as DEIM's code, whose warm-up is quadratic."""

    def published(step, total, warmup, flat, low):
        if step <= warmup:
            return step / warmup
        if step <= flat:
            return 1.0
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (step - flat) / (total - flat)))

    config = OptimConfig(schedule="flat-cosine", epochs=10, warmup_steps=8, lr_flat=0.6, lr_end=0.5)
    for step in range(100):
        expected = published(step + 1 if step < 8 else step, 100, 8, 60, 0.5)
        assert lr_factor(config, step, 10) == pytest.approx(expected)
    assert lr_factor(config, 200, 10) == pytest.approx(0.5)
    # a shorter run keeps the shares
    assert [lr_factor(config, step, 10, 50) for step in (30, 40, 50)] == pytest.approx([1.0, 0.75, 0.5])


def test_a_cosine_ends_at_a_share_of_the_rate():
    config = OptimConfig(schedule="cosine", epochs=10, lr_end=0.2)
    assert [lr_factor(config, step, 10) for step in (0, 50, 100)] == pytest.approx([1.0, 0.6, 0.2])


def test_a_shorter_schedule_keeps_its_shape():
    """A slower machine than was measured: the cosine ends with the time, a drop keeps its share of the steps."""
    cosine = OptimConfig(epochs=10, warmup_steps=0, schedule="cosine")
    for step in range(61):
        assert lr_factor(cosine, step, 10, 60) == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 60)))
    assert lr_factor(cosine, 70, 10, 60) == pytest.approx(0.0)
    steps = OptimConfig(epochs=10, lr_drop=8, warmup_steps=0, schedule="step")
    assert [lr_factor(steps, step, 10, 50) for step in (0, 39, 40, 49)] == [1, 1, 0.1, 0.1]


def test_set_lr_keeps_the_ratio_of_the_groups():
    model = build_model("detr-r50", **SMALL)
    optimizer = build_optimizer(model, OptimConfig())
    set_lr(optimizer, 0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([5e-6, 5e-5])


def test_moving_average_closed_form():
    model = nn.Linear(1, 1, bias=False)
    average = moving_average(model, decay=0.3)
    values, expected = [2.0, 5.0, -1.0, 4.0], None
    for n, value in enumerate(values):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        if expected is None:
            expected = value
        else:
            decay = min(0.3, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
        assert float(average.module.weight.detach()) == pytest.approx(expected)
    assert torch.is_tensor(average.n_averaged) and int(average.n_averaged) == 4


def test_statistics_of_batch_norms_are_averaged_like_weights():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    average = moving_average(model, decay=0.3)
    expected = None
    for n in range(5):
        model(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(n)) * (n + 1))
        average.update_parameters(model)
        current = {name: tensor.clone() for name, tensor in model[1].named_buffers()}
        decay = 0.0 if expected is None else min(0.3, (1 + n) / (10 + n))
        for name in ("running_mean", "running_var"):
            before = current[name] if expected is None else expected[name]
            current[name] = decay * before + (1 - decay) * current[name]
        expected = current
        for name, tensor in average.module[1].named_buffers():  # the number of batches is copied
            torch.testing.assert_close(tensor, expected[name])
    assert (average.module[1].running_var != model[1].running_var).all()
