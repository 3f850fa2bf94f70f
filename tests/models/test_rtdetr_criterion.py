"""The losses of RT-DETR against transformers' and against their formulas, on random outputs.

transformers counted denoising queries in the main loss until PR 48528 (September 2026). The release in use here,
5.23.0, has the change, so that all terms are equal; an older one differs in loss_vfl, loss_bbox and loss_giou of the
last layer.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from detrkit.layers.denoising import DenoisingLayout
from detrkit.models.rtdetr_criterion import RTDETRCriterion, rtdetr_criterion
from detrkit.ops.boxes import cxcywh_to_xyxy, iou
from detrkit.structures.outputs import Denoising, Outputs, Target

CLASSES, QUERIES, LAYERS, GROUPED = 5, 13, 3, 4
COUNTS = ([3, 0, 5], [0, 2, 1], [0, 0, 0])
OURS = {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def targets_of(counts, generator):
    return [
        Target(torch.randint(CLASSES, (n,), generator=generator), 0.2 + 0.5 * torch.rand(n, 4, generator=generator))
        for n in counts
    ]


class Problem:
    """Random outputs of a batch, with leaves to differentiate by, and its targets."""

    def __init__(self, counts, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.targets = targets_of(counts, generator)
        self.layout = DenoisingLayout.of(counts, GROUPED, torch.device("cpu"))
        size, images = self.layout.size, len(counts)
        self.logits = 2 * torch.randn(LAYERS, images, size + QUERIES, CLASSES, generator=generator)
        self.boxes = 0.1 + 0.7 * torch.rand(LAYERS, images, size + QUERIES, 4, generator=generator)
        self.encoder_logits = 2 * torch.randn(images, QUERIES, CLASSES, generator=generator)
        self.encoder_boxes = 0.1 + 0.7 * torch.rand(images, QUERIES, 4, generator=generator)
        self.leaves = [self.logits, self.boxes, self.encoder_logits, self.encoder_boxes]
        for leaf in self.leaves:
            leaf.requires_grad_()

    def gradients(self, loss):
        return torch.autograd.grad(loss, self.leaves, allow_unused=True, materialize_grads=True)

    @property
    def outputs(self):
        first, layout = self.layout.size, self.layout
        positive = (~layout.negative).nonzero()[:, 0]

        def layers(logits, boxes):
            made = [Outputs(x, b) for x, b in zip(logits, boxes, strict=True)]
            made[-1].aux = made[:-1]
            return made[-1]

        outputs = layers(self.logits[:, :, first:], self.boxes[:, :, first:])
        outputs.encoder = Outputs(self.encoder_logits, self.encoder_boxes)
        outputs.denoising = Denoising(
            layers(self.logits[:, :, :first], self.boxes[:, :, :first]),
            layout.groups,
            layout.image[positive],
            layout.position[positive],
            layout.target[positive],
        )
        return outputs


def their_losses(problem):
    """The weighted terms of transformers under our names, and their sum."""
    transformers = pytest.importorskip("transformers")
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

    config = transformers.RTDetrV2Config(num_labels=CLASSES)
    layout, counts = problem.layout, [len(t) for t in problem.targets]
    positive = ~layout.negative
    meta = {
        "dn_positive_idx": [layout.position[positive & (layout.image == image)] for image in range(len(counts))],
        "dn_num_group": layout.groups,
        "dn_num_split": [layout.size, QUERIES],
    }
    total, terms, _ = RTDetrForObjectDetectionLoss(
        problem.logits[-1],
        [{"class_labels": t.labels, "boxes": t.boxes} for t in problem.targets],
        "cpu",
        problem.boxes[-1],
        config,
        outputs_class=problem.logits.transpose(0, 1),
        outputs_coord=problem.boxes.transpose(0, 1),
        enc_topk_logits=problem.encoder_logits,
        enc_topk_bboxes=problem.encoder_boxes,
        denoising_meta_values=meta if layout.size else None,  # as their model: none without objects
    )
    last = LAYERS - 1
    names = {f"_aux_{i}": f"_{i}" for i in range(last)} | {f"_aux_{last}": "_enc", f"_dn_{last}": "_dn"}
    renamed = {}
    for name, value in terms.items():
        base, _, suffix = name.replace("_aux", " _aux").replace("_dn", " _dn").partition(" ")
        renamed[base + names.get(suffix, suffix)] = value
    return renamed, total


@pytest.mark.parametrize("counts", COUNTS)
def test_terms_and_gradients_are_those_of_transformers(counts):
    problem = Problem(counts)
    criterion = rtdetr_criterion(num_classes=CLASSES)
    losses = criterion(problem.outputs, problem.targets)
    theirs, their_total = their_losses(problem)
    weighted = {
        name: value * weight for name, value in losses.items() for base, weight in OURS.items() if name.startswith(base)
    }
    if not problem.layout.size:  # ours are there in every batch, so that processes have the same terms
        assert all(weighted.pop(name) == 0 for name in list(weighted) if "_dn" in name)
    assert set(weighted) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(weighted[name], value, rtol=1e-5, atol=1e-6, msg=name)
    total = criterion.total(losses)
    torch.testing.assert_close(total, their_total, rtol=1e-5, atol=1e-5)
    for ours, others in zip(problem.gradients(total), problem.gradients(their_total), strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("class_loss", ["vfl", "mal", "focal"])
@pytest.mark.parametrize("class_weights", [None, (0.5, 3.0, 1.0, 7.0, 1.0)])
def test_class_terms_are_the_formulas(class_loss, class_weights):
    """VFL: Zhang et al. 2021, Eq. 2; MAL: DEIM, Sec. 3.3; focal: Lin et al. 2017, Eq. 5; in double precision."""
    problem = Problem([3, 0, 5], seed=1)
    criterion = rtdetr_criterion(num_classes=CLASSES, class_loss=class_loss, class_weights=class_weights)
    outputs, targets = problem.outputs, problem.targets
    indices = criterion.matcher(outputs, targets)
    expected = 0.0
    for image, (target, (queries, objects)) in enumerate(zip(targets, indices, strict=True)):
        matched = dict(zip(queries.tolist(), objects.tolist(), strict=True))
        for query in range(QUERIES):
            for label in range(CLASSES):
                p = float(outputs.logits[image, query, label].detach().double().sigmoid())
                obj = matched.get(query)
                if obj is None or target.labels[obj] != label:
                    scale, gamma = (1.0, 1.5) if class_loss == "mal" else (0.75, 2.0)
                    expected += scale * p**gamma * -float(torch.tensor(1 - p).log())
                    continue
                corners = [
                    cxcywh_to_xyxy(b.detach().double()[None]) for b in (outputs.boxes[image, query], target.boxes[obj])
                ]
                q = float(iou(*corners)[0])
                aims = {"vfl": (q, q), "mal": (q**1.5, 1.0), "focal": (1.0, 0.25 * (1 - p) ** 2)}
                aim, weight = aims[class_loss]
                entropy = -aim * float(torch.tensor(p).log()) - (1 - aim) * float(torch.tensor(1 - p).log())
                expected += (1.0 if class_weights is None else class_weights[label]) * weight * entropy
    losses = criterion(outputs, targets)
    assert losses[f"loss_{class_loss}"].item() == pytest.approx(expected / 8, rel=1e-5)


def test_quality_has_no_gradient():
    """The class term moves no box, and p^gamma of a negative is a weight alone."""
    problem = Problem([2, 1])
    losses = rtdetr_criterion(num_classes=CLASSES)(problem.outputs, problem.targets)
    class_term = sum(value for name, value in losses.items() if name.startswith("loss_vfl"))
    of_logits, of_boxes, *of_encoder = problem.gradients(class_term)
    assert of_logits.any() and of_encoder[0].any()
    assert not of_boxes.any() and not of_encoder[1].any()
    logit = torch.tensor([[[[1.3]]]], requires_grad=True)
    alone = RTDETRCriterion(num_classes=1, matcher=rtdetr_criterion(num_classes=1).matcher, weights={})
    empty = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
    alone(Outputs(logit[0], torch.rand(1, 1, 4)), empty)["loss_vfl"].backward()
    p = torch.tensor(1.3).sigmoid()
    torch.testing.assert_close(logit.grad.squeeze(), 0.75 * p**2 * p)  # of -log(1 - p) the derivative is p


def test_a_poor_match_is_learned_by_mal_and_not_by_vfl():
    """DEIM, Fig. 3: at an IoU of 0.05 and a score of 0.9, VFL's gradient nearly vanishes."""
    target = [Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))]
    side = 0.2 * 0.05**0.5  # a box inside that has 1/20 of its area
    gradients = {}
    for class_loss in ("vfl", "mal"):
        logit = torch.tensor([[[0.9]]]).logit().requires_grad_()
        outputs = Outputs(logit, torch.tensor([[[0.5, 0.5, side, side]]]))
        rtdetr_criterion(num_classes=1, class_loss=class_loss)(outputs, target)[f"loss_{class_loss}"].backward()
        gradients[class_loss] = float(logit.grad)
    assert gradients["vfl"] == pytest.approx(0.05 * (0.9 - 0.05), rel=1e-4)
    assert gradients["mal"] == pytest.approx(0.9 - 0.05**1.5, rel=1e-4)


def test_settings():
    criterion = rtdetr_criterion(num_classes=3, class_loss="mal", focal_alpha=0.5, focal_gamma=3.0, cls_loss_coef=2.0)
    assert (criterion.alpha, criterion.gamma, criterion.weights["loss_mal"]) == (0.5, 3.0, 2.0)
    matcher = criterion.matcher
    assert (matcher.alpha, matcher.gamma) == (0.25, 2.0)
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (2.0, 5.0, 2.0)
    with pytest.raises(ValueError, match="class_loss is 'bce': choose one of vfl, mal, focal"):
        rtdetr_criterion(num_classes=3, class_loss="bce")


def test_extreme_logits_are_finite():
    """Of padded slots, whose loss is 0, and of probabilities that round to 1."""
    for class_loss in ("vfl", "mal", "focal"):
        logits = torch.tensor([[[-1e4, 1e4, -200.0, 90.0]]]).mT.requires_grad_()  # (1, 4, 1)
        outputs = Outputs(logits, torch.full((1, 4, 4), 0.3))
        empty = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
        loss = rtdetr_criterion(num_classes=1, class_loss=class_loss)(outputs, empty)[f"loss_{class_loss}"]
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
        assert logits.grad[0, 0] == logits.grad[0, 2] == 0
        wanted = F.softplus(torch.tensor(1e4)) + F.softplus(torch.tensor(90.0))
        assert loss.item() == pytest.approx((1.0 if class_loss == "mal" else 0.75) * float(wanted), rel=1e-6)
