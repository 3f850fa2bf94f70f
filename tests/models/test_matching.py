"""The matcher against a plain computation image by image, and the parts of the losses against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from detrkit.models.criterion import build_criterion, focal_loss
from detrkit.models.matcher import FocalMatcher, HungarianMatcher, NonFiniteError
from detrkit.models.outputs import Outputs, Target
from detrkit.ops.boxes import cxcywh_to_xyxy, pairwise_generalized_iou

LAYERS, QUERIES, CLASSES = 3, 12, 7


def problem(seed, counts):
    """Random (L, B, Q, C) logits, (L, B, Q, 4) boxes and targets of so many objects."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(LAYERS, len(counts), QUERIES, CLASSES, generator=generator)
    boxes = torch.rand(LAYERS, len(counts), QUERIES, 4, generator=generator) * 0.8 + 0.1
    targets = [
        Target(
            torch.randint(CLASSES - 1, (n,), generator=generator),
            torch.rand(n, 4, generator=generator) * 0.8 + 0.1,
            image_id=f"image{b}",
        )
        for b, n in enumerate(counts)
    ]
    return logits, boxes, targets


def plain_cost(matcher, logits, boxes, target):
    """(Q, N) cost of one image as the papers write it, in float64."""
    x = logits.double()[:, target.labels]
    if isinstance(matcher, FocalMatcher):
        p = x.sigmoid()
        negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
        klass = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - negative
    else:
        klass = -logits.double().softmax(-1)[:, target.labels]
    boxes, objects = boxes.double(), target.boxes.double()
    l1 = (boxes[:, None] - objects[None]).abs().sum(-1)
    giou = pairwise_generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(objects))
    return matcher.cost_class * klass + matcher.cost_bbox * l1 - matcher.cost_giou * giou


@pytest.mark.parametrize("counts", [(4, 0, 7), (0, 0, 1), (QUERIES, QUERIES + 5, 2), (3,)])
@pytest.mark.parametrize("matcher", [HungarianMatcher(), FocalMatcher(cost_class=2.0)], ids=["softmax", "focal"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.filterwarnings("ignore:image .* has .* objects but the model only")
def test_every_layer_and_image_is_matched_by_itself(counts, matcher, seed):
    logits, boxes, targets = problem(seed, counts)
    matches = matcher.match(logits, boxes, targets)
    starts = np.cumsum([0, *counts])
    for layer in range(LAYERS):
        expected = []
        for b, target in enumerate(targets):
            cost = plain_cost(matcher, logits[layer, b], boxes[layer, b], target)
            for query, found in zip(*linear_sum_assignment(cost), strict=True):
                expected.append([b, int(query), int(starts[b] + found)])
        found = torch.stack([matches.image[layer], matches.query[layer], matches.target[layer]], 1)
        assert found.tolist() == expected


@pytest.mark.parametrize("matcher", [HungarianMatcher(), FocalMatcher()], ids=["softmax", "focal"])
def test_an_output_that_is_not_finite_names_its_image(matcher):
    logits, boxes, targets = problem(3, (2, 3, 1))
    boxes[1, 1, 4, 2] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        matcher.match(logits, boxes, targets)
    assert caught.value.images == ["image1"]


def plain_focal(logits, wanted, alpha, gamma):
    p, y = logits.sigmoid(), wanted.to(logits.dtype)
    right = p * y + (1 - p) * (1 - y)
    weight = alpha * y + (1 - alpha) * (1 - y)
    return weight * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, y, reduction="none")


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_focal_loss_and_its_gradient(alpha, gamma):
    generator = torch.Generator().manual_seed(int(10 * alpha))
    logits = (4 * torch.randn(5, 9, dtype=torch.float64, generator=generator)).requires_grad_()
    wanted = torch.rand(5, 9, generator=generator) < 0.3
    expected = plain_focal(logits, wanted, alpha, gamma)
    found = focal_loss(logits, wanted, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(found, expected)
    weights = torch.rand(5, 9, dtype=torch.float64, generator=generator)
    (slope,) = torch.autograd.grad((found * weights).sum(), logits)
    torch.testing.assert_close(slope, torch.autograd.grad((expected * weights).sum(), logits)[0])


def test_focal_loss_stays_finite_where_the_answer_is_sure():
    logits = torch.tensor([-200.0, -30.0, 30.0, 200.0], requires_grad=True)
    for wanted in (torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        loss = focal_loss(logits, wanted, alpha=0.25, gamma=2.0)
        (slope,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all() and slope.isfinite().all()
        weight, sign = (0.25, -1) if wanted[0] else (0.75, 1)
        wrong = (logits.detach() * sign).clamp(min=0)  # of an error of x the loss is x, of no error 0
        torch.testing.assert_close(loss.detach(), weight * wrong)


@pytest.mark.parametrize("name", ["detr-r50", "deformable-detr-r50"])
def test_cardinality_counts_the_queries_whose_best_class_is_not_the_last(name):
    logits, boxes, targets = problem(4, (2, 5))
    logits[-1, 0, 0] = 0.0  # of equal ones the first is best, which is not the last
    criterion = build_criterion(name, num_classes=CLASSES - (name == "detr-r50"))
    losses = criterion(Outputs(logits[-1], boxes[-1]), targets)
    found = (logits[-1].argmax(-1) != CLASSES - 1).sum(-1)
    assert losses["cardinality_error"].item() == (found - torch.tensor([2, 5])).abs().float().mean().item()
