"""A frozen norm folded into its convolution: the same numbers, never those of weights that are gone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detrkit.backbones import build_backbone
from detrkit.layers.folding import _KEPT, fold, fold_for_good
from detrkit.layers.norms import FrozenBatchNorm2d
from detrkit.ops.dense import convolve
from detrkit.structures.batch import Batch
from helpers.small_models import small_model


def pair():
    """A convolution and a frozen norm of random values."""
    random = torch.Generator().manual_seed(0)
    convolution, norm = nn.Conv2d(8, 16, 3, padding=1, bias=False), FrozenBatchNorm2d(16)
    for tensor in norm.buffers():
        tensor.copy_(torch.rand(16, generator=random) + 0.5)
    return convolution, norm


def apart(convolution, norm, x):
    return norm(convolution(x))


def folded(convolution, norm, x):
    return convolve(x, *fold([(convolution, norm)], x), padding=(1, 1))


def picture(side=12):
    return torch.randn(1, 8, side, side, generator=torch.Generator().manual_seed(side))


@torch.no_grad()
def test_one_convolution_does_both():
    convolution, norm = pair()
    for side in (12, 12, 12, 9, 9, 12):  # from the second time on in the order that suits the size
        x = picture(side)
        torch.testing.assert_close(folded(convolution, norm, x), apart(convolution, norm, x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_kept_until_a_tensor_changes():
    convolution, norm = pair()
    x = picture()
    first = fold([(convolution, norm)], x)[1]
    assert fold([(convolution, norm)], x)[1] is first
    changes = [
        lambda: convolution.weight.mul_(2),
        lambda: norm.running_var.add_(1),
        lambda: norm.load_state_dict({k: v + 1 for k, v in norm.state_dict().items()}),
        lambda: setattr(convolution, "weight", nn.Parameter(torch.ones_like(convolution.weight))),
        lambda: norm.bias.fill_(3),
        lambda: setattr(norm, "eps", 0.1),
    ]
    for change in changes:
        for _ in range(3):
            folded(convolution, norm, x)
        change()
        torch.testing.assert_close(folded(convolution, norm, x), apart(convolution, norm, x), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["fused", "foreach"])
def test_a_step_of_the_optimizer_is_seen(implementation):
    # a fused one, that of a training, does not raise the version counter of what it changes
    convolution, norm = pair()
    optimizer = torch.optim.AdamW(convolution.parameters(), lr=0.1, **{implementation: True})
    x = picture()
    for _ in range(3):
        with torch.inference_mode():
            want = apart(convolution, norm, x)
            torch.testing.assert_close(folded(convolution, norm, x), want, atol=1e-4, rtol=1e-5)
        folded(convolution, norm, x).square().mean().backward()
        optimizer.step()


def test_training_that_froze_its_weights_afterwards_is_seen():
    convolution, norm = pair()
    x = picture()
    optimizer = torch.optim.SGD(convolution.parameters(), lr=0.1, fused=True)
    convolution.requires_grad_(False)
    with torch.inference_mode():
        before = folded(convolution, norm, x)
    convolution.requires_grad_(True)
    folded(convolution, norm, x).square().mean().backward()
    optimizer.step()
    convolution.requires_grad_(False)
    with torch.inference_mode():
        after = folded(convolution, norm, x)
        torch.testing.assert_close(after, apart(convolution, norm, x), atol=1e-4, rtol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_gradient_of_the_weight():
    convolution, norm = pair()
    x = picture()
    got, want = (
        torch.autograd.grad(way(convolution, norm, x).square().sum(), convolution.weight)[0] for way in (folded, apart)
    )
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_frozen_layers_of_a_learning_model_use_what_was_kept_in_inference():
    convolution, norm = pair()
    convolution.requires_grad_(False)
    x = picture()
    with torch.inference_mode():
        folded(convolution, norm, x)
        folded(convolution, norm, x)
    head = nn.Conv2d(16, 1, 1)
    head(folded(convolution, norm, x)).sum().backward()
    assert head.weight.grad is not None


def test_copies_and_saved_models_hold_none_of_it():
    convolution, norm = pair()
    with torch.no_grad():
        folded(convolution, norm, picture())
        other = copy.deepcopy(convolution)
        other.weight.zero_()
        assert folded(other, norm, picture()).std() < folded(convolution, norm, picture()).std()
    assert set(convolution.state_dict()) == {"weight"}
    kept = len(_KEPT)
    del other
    assert len(_KEPT) == kept - 1


@pytest.mark.slow
@torch.no_grad()
def test_stages_that_are_returned_are_not_written_over():
    for name in ("resnet18", "resnet50"):
        backbone = build_backbone(name, stages=(2, 3, 4, 5), width=16).eval()
        batch = Batch.from_images([torch.randn(3, 64, 80), torch.randn(3, 50, 64)])
        together = backbone(batch)
        for stage in (2, 3, 4):
            alone = build_backbone(name, stages=(stage,), width=16).eval()
            alone.load_state_dict({k: v for k, v in backbone.state_dict().items() if k in alone.state_dict()})
            torch.testing.assert_close(together[stage - 2][0], alone(batch)[0][0])


@pytest.mark.parametrize("name", ["detr-r50", "rtdetr-r18", "rtdetrv2-r50"])
@torch.no_grad()
def test_folded_for_good_the_model_computes_the_same_without_its_norms(name):
    model, _ = small_model(name)
    batch = Batch.from_images([torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(1))])
    expected = model(batch)
    changed = copy.deepcopy(model)
    fold_for_good(changed, lambda: changed(batch))
    torch.testing.assert_close(changed(batch).logits, expected.logits, atol=1e-4, rtol=0)
    for norm in changed.modules():  # nothing reads the statistics any more
        if isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            norm.running_mean.fill_(1e6)
    torch.testing.assert_close(changed(batch).logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(batch).logits, expected.logits, atol=1e-4, rtol=0)
