"""The matcher against a plain computation image by image, and the parts of the losses against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from detrkit.models.criterion import build_criterion, focal_loss
from detrkit.models.losses import cardinality_error
from detrkit.models.matcher import FocalMatcher, HungarianMatcher, NonFiniteError
from detrkit.ops.boxes import cxcywh_to_xyxy, pairwise_generalized_iou
from detrkit.structures.outputs import MASKED_LOGIT, Outputs, Target

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cardinality_does_not_count_queries_from_padding(dtype):
    """Their logits are all alike, so that the first class would be the best one."""
    logits = problem(5, (2, 5))[0].to(dtype)
    targets = [Target(torch.zeros(n, dtype=torch.int64), torch.rand(n, 4)) for n in (2, 5)]
    masked = logits.index_fill(2, torch.arange(QUERIES // 2, QUERIES), MASKED_LOGIT)
    expected = cardinality_error(logits[:, :, : QUERIES // 2].float(), targets)
    assert torch.equal(cardinality_error(masked.float(), targets), expected)


def test_the_first_image_with_more_objects_than_queries_is_warned_of():
    logits, boxes, targets = problem(6, (QUERIES + 2, 1, QUERIES + 1))
    matcher = HungarianMatcher()
    with pytest.warns(UserWarning) as warned:
        for _ in range(2):
            matcher.match(logits, boxes, targets)
    said = f"image image0 has {QUERIES + 2} objects but the model only {QUERIES} queries: 2 of them cannot be learned"
    assert len(warned) == 1 and str(warned[0].message).startswith(said)


@pytest.mark.parametrize("columns", [1, 2, 200])
@pytest.mark.parametrize("name", ["detr-r50", "deformable-detr-r50"])
def test_losses_of_few_and_many_classes_equal_a_loop(name, columns):
    generator = torch.Generator().manual_seed(columns)
    classes = columns
    logits = 3 * torch.randn(2, QUERIES, classes + (name == "detr-r50"), generator=generator)
    boxes = torch.rand(2, QUERIES, 4, generator=generator) * 0.8 + 0.1
    labels = [torch.randint(classes, (n,), generator=generator) for n in (3, 5)]
    targets = [Target(own, torch.rand(len(own), 4, generator=generator) * 0.8 + 0.1) for own in labels]
    criterion = build_criterion(name, num_classes=classes)
    losses = criterion(Outputs(logits, boxes), targets)
    pairs = criterion.matcher(Outputs(logits, boxes), targets)

    wrong, cardinality = 0, 0
    for b, (query, target) in enumerate(pairs):
        wrong += int((logits[b, query].argmax(-1) != labels[b][target]).sum())
        # the official formula, of both models
        cardinality += abs(int((logits[b].argmax(-1) != logits.shape[-1] - 1).sum()) - len(labels[b])) / 2
    assert losses["class_error"].item() == pytest.approx(100 * wrong / 8)
    assert losses["cardinality_error"].item() == pytest.approx(cardinality)
    assert losses["loss_ce"].item() == pytest.approx(plain_class_loss(name, logits, labels, pairs), rel=1e-5)


def plain_class_loss(name, logits, labels, pairs, alpha=0.25, gamma=2.0):
    """The class term, query by query, in float64."""
    total = weights = 0.0
    for b, (query, target) in enumerate(pairs):
        right = dict(zip(query.tolist(), labels[b][target].tolist(), strict=True))
        for q, row in enumerate(logits[b].double()):
            if name == "detr-r50":
                weight = 1.0 if q in right else 0.1
                total -= weight * row.log_softmax(-1)[right.get(q, len(row) - 1)].item()
                weights += weight
            else:
                wanted = torch.zeros(len(row), dtype=torch.bool)
                if q in right:
                    wanted[right[q]] = True
                total += plain_focal(row, wanted, alpha, gamma).sum().item()
    return total / (weights or sum(map(len, labels)))


@pytest.mark.parametrize("alpha, gamma", [(0.5, 2.0), (0.9, 2.0), (0.25, 1.0)])
def test_focal_settings_move_the_loss_alone(alpha, gamma):
    """The official matcher has 0.25 and 2 written into it."""
    logits, boxes, targets = problem(5, (4, 6))
    outputs = Outputs(logits[0], boxes[0])
    criterion = build_criterion("deformable-detr-r50", num_classes=CLASSES, focal_alpha=alpha, focal_gamma=gamma)
    pairs = criterion.matcher(outputs, targets)
    for b, (query, target) in enumerate(pairs):
        expected = linear_sum_assignment(plain_cost(criterion.matcher, logits[0, b], boxes[0, b], targets[b]))
        assert [query.tolist(), target.tolist()] == [side.tolist() for side in expected]
    expected = plain_class_loss("deformable", logits[0], [t.labels for t in targets], pairs, alpha, gamma)
    assert criterion(outputs, targets)["loss_ce"].item() == pytest.approx(expected, rel=1e-5)
