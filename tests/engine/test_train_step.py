"""One training step: what it returns, and that it leaves the weights alone when something is not finite."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric

from detrkit.config import OptimConfig
from detrkit.engine.optim import build_optimizer
from detrkit.engine.processes import StopSignals
from detrkit.engine.train_step import TrainStep
from detrkit.models.criterion import build_criterion
from detrkit.models.matcher import NonFiniteError
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model
from helpers.tiny import MODEL


def parts(seed):
    """Two batches of two images with up to three objects."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for counts in ((3, 1), (0, 2)):
        images = [torch.randn(3, 64, 64, generator=random) for _ in counts]
        targets = [
            Target(
                torch.randint(4, (n,), generator=random),
                torch.rand(n, 4, generator=random) * 0.4 + 0.2,
                image_id=f"{len(found)}.{b}",
            )
            for b, n in enumerate(counts)
        ]
        found.append((Batch.from_images(images), targets))
    return found


def setup(seed, clip):
    """A training step of a tiny model, and the model."""
    torch.manual_seed(seed)
    model = build_model("detr-r50", num_classes=4, backbone_norm="group", **MODEL.overrides()).train()
    fabric = Fabric(accelerator="cpu", devices=1)
    config = OptimConfig(lr=1e-2, lr_backbone=1e-2)
    wrapped, optimizer = fabric.setup(model, build_optimizer(model, config))
    criterion = build_criterion("detr-r50", num_classes=4)
    train_step = TrainStep(
        fabric,
        wrapped,
        optimizer,
        criterion,
        queries=8,
        clip_max_norm=clip,
        all_reduce_mean=StopSignals(world=1).all_reduce_mean,
    )
    return train_step, model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_norm_is_that_before_clipping(seed):
    train_step, model = setup(seed, clip=0.1)
    values = train_step(parts(seed))
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-4)
    free, same = setup(seed, clip=0.0)
    assert "grad_norm" not in free(parts(seed))
    whole = torch.cat([p.grad.flatten() for p in same.parameters() if p.grad is not None]).norm()
    assert values["grad_norm"] == pytest.approx(whole.item(), rel=1e-4)
    weighted = {"ce": 1.0, "bbox": 5.0, "giou": 2.0}
    total = sum(weighted[k.split("_")[1]] * v for k, v in values.items() if k.startswith("loss_"))
    assert values["loss"] == pytest.approx(total, rel=1e-5)


def test_a_step_asks_the_device_for_its_numbers_once():
    train_step, _ = setup(2, clip=0.1)
    asked = []
    mean = train_step.all_reduce_mean
    train_step.all_reduce_mean = lambda terms: asked.append(set(terms)) or mean(terms)
    values = train_step(parts(2))
    assert asked == [set(values)]


@pytest.mark.parametrize("broken, named", [("gradient", "the gradient"), ("loss", "loss_giou")])
def test_what_is_not_finite_is_named_and_moves_nothing(monkeypatch, broken, named):
    train_step, model = setup(3, clip=0.1)
    before = weights(model)
    if broken == "gradient":
        model.class_head.weight.register_hook(lambda grad: grad * torch.nan)
    else:
        forward = train_step.criterion.forward

        def infinite(*args, **kwargs):
            terms = forward(*args, **kwargs)
            return terms | {"loss_giou": terms["loss_giou"] * torch.inf}

        monkeypatch.setattr(train_step.criterion, "forward", infinite)
    with pytest.raises(NonFiniteError) as caught:
        train_step(parts(3))
    assert caught.value.what == named
    assert caught.value.images == ["0.0", "0.1", "1.0", "1.1"]
    assert torch.equal(weights(model), before)
