"""Class weights in the losses, against torch's cross-entropy and the focal loss written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from detrkit.models.criterion import build_criterion
from detrkit.structures.outputs import Outputs, Target

CLASSES, QUERIES = 4, 7
WEIGHTS = (0.5, 3.0, 1.0, 7.0)


def case(columns: int):
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(2, QUERIES, columns, generator=generator)
    boxes = torch.rand(2, QUERIES, 4, generator=generator) * 0.5 + 0.2
    targets = [
        Target(torch.tensor(labels), torch.rand(len(labels), 4, generator=generator) * 0.5 + 0.2)
        for labels in ([1, 3, 0], [3, 2])
    ]
    return logits, boxes, targets


def assigned(criterion, logits, boxes, targets):
    """(B, Q) label of the object that each query is matched to, CLASSES for none."""
    matches = criterion.matcher.match(logits[None], boxes[None], targets)
    labels = torch.cat([t.labels for t in targets])
    result = torch.full(logits.shape[:2], CLASSES)
    result[matches.image[0], matches.query[0]] = labels[matches.target[0]]
    return result


def test_cross_entropy_of_matched_queries_is_weighted_and_the_divisor_is_not():
    logits, boxes, targets = case(CLASSES + 1)
    criterion = build_criterion("detr-r50", num_classes=CLASSES, class_weights=WEIGHTS)
    labels = assigned(criterion, logits, boxes, targets)
    weight = torch.tensor([*WEIGHTS, 0.1])
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight, reduction="sum")
    expected = total / (5 + 0.1 * (2 * QUERIES - 5))  # published: 1 a matched query, 0.1 any other
    assert criterion(Outputs(logits, boxes), targets)["loss_ce"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5)])
def test_positives_of_the_focal_loss_are_weighted(alpha, gamma):
    logits, boxes, targets = case(CLASSES)
    criterion = build_criterion(
        "deformable-detr-r50", num_classes=CLASSES, class_weights=WEIGHTS, focal_alpha=alpha, focal_gamma=gamma
    )
    labels = assigned(criterion, logits, boxes, targets)
    p = logits.double().sigmoid()
    positive = F.one_hot(labels, CLASSES + 1)[..., :CLASSES].bool()
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    of_positives = weight * alpha * (1 - p) ** gamma * -p.log()
    of_negatives = (1 - alpha) * p**gamma * -(1 - p).log()
    expected = torch.where(positive, of_positives, of_negatives).sum() / 5  # published: the number of objects
    assert criterion(Outputs(logits, boxes), targets)["loss_ce"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("name", "columns"), [("detr-r50", CLASSES + 1), ("deformable-detr-r50", CLASSES)])
def test_weights_of_one_change_nothing_and_zero_leaves_a_class_out(name, columns):
    logits, boxes, targets = case(columns)
    plain = build_criterion(name, num_classes=CLASSES)(Outputs(logits, boxes), targets)
    ones = build_criterion(name, num_classes=CLASSES, class_weights=[1.0] * CLASSES)(Outputs(logits, boxes), targets)
    assert {k: float(v) for k, v in ones.items()} == pytest.approx({k: float(v) for k, v in plain.items()}, rel=1e-6)
    heavy = build_criterion(name, num_classes=CLASSES, class_weights=[1.0, 1.0, 1.0, 50.0])
    other = heavy(Outputs(logits, boxes), targets)
    assert other["loss_ce"] > 2 * plain["loss_ce"]
    assert other["loss_bbox"] == plain["loss_bbox"] and other["loss_giou"] == plain["loss_giou"]


def test_proposals_have_no_class_and_no_weight():
    logits, boxes, targets = case(CLASSES)
    encoder = Outputs(logits + 0.3, boxes)
    results = [
        build_criterion("deformable-detr-r50-two-stage", num_classes=CLASSES, class_weights=weights)(
            Outputs(logits, boxes, encoder=encoder), targets
        )
        for weights in (None, (9.0, 1.0, 1.0, 1.0))
    ]
    assert results[0]["loss_ce_enc"] == results[1]["loss_ce_enc"]
    assert results[0]["loss_ce"] < results[1]["loss_ce"]


def test_the_number_of_weights_is_that_of_the_labels():
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        build_criterion("detr-r50", num_classes=3, class_weights=(1.0, 2.0))
