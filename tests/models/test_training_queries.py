"""Queries that take part in training alone, denoising and one-to-many ones: exact padding, losses, capture."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.layers import set_checkpointing
from detrkit.layers.denoising import DenoisingLayout
from detrkit.models.criterion import Normalizers, build_criterion
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model
from helpers.weights import randomize

DINO, HYBRID = "dino-r50-4scale", "h-deformable-detr-r50"
SMALL = {
    "num_classes": 4,
    "backbone": "resnet10",
    "backbone_width": 8,
    "backbone_norm": "group",
    "hidden_dim": 32,
    "nheads": 2,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 2,
}
MODELS = {
    DINO: {"num_queries": 12, "dn_number": 3},
    HYBRID: {"num_queries": 12, "num_queries_one2many": 20, "k_one2many": 3},
}
GROUPS = 6  # of denoising queries: twice `dn_number`
SIZES, COUNTS = [(70, 90), (16, 17), (96, 64)], [3, 0, 1]  # the second image has fewer cells than queries


def _model(name, **options):
    return randomize(build_model(name, **SMALL, **MODELS[name], **options))


def _images(sizes=SIZES):
    return [goldens.image(f"training queries {i}", *size) for i, size in enumerate(sizes)]


def _targets(counts, sizes=SIZES):
    generator = torch.Generator().manual_seed(5)
    made = []
    for count, size in zip(counts, sizes, strict=False):
        boxes = 0.2 + 0.5 * torch.rand(count, 4, generator=generator)
        masks = torch.rand(count, *size, generator=generator) > 0.5
        made.append(Target(torch.randint(4, (count,), generator=generator), boxes, masks))
    return made


def _noise(layout):
    """A noise mapping for a batch, and one for each image alone, whose queries get the same."""
    generator = torch.Generator().manual_seed(7)
    queries = len(layout.image)
    draw, new = torch.rand(queries, generator=generator), torch.randint(4, (queries,), generator=generator)
    sign, part = torch.randn(queries, 4, generator=generator), torch.rand(queries, 4, generator=generator)

    def mapping(rows):
        return {
            "noise_label_draw": draw[rows],
            "noise_new_label": new[rows][draw[rows] < 0.25],
            "noise_sign": sign[rows],
            "noise_part": part[rows],
        }

    return mapping(torch.ones(queries, dtype=torch.bool)), [mapping(layout.image == i) for i in range(len(COUNTS))]


@pytest.mark.parametrize("name", MODELS)
def test_in_training_an_image_does_not_depend_on_its_batch(name):
    """Outputs are the same, and the loss of a batch is the sum of the images' losses: padding counts nothing."""
    model, criterion = _model(name).double().train(), build_criterion(name, num_classes=4)
    images, targets = [image.double() for image in _images()], _targets(COUNTS)
    layout = DenoisingLayout.of(COUNTS, 3, torch.device("cpu"))
    assert layout.groups == GROUPS
    of_batch, of_images = _noise(layout)
    options = [{"noise": of_batch}, *({"noise": one} for one in of_images)] if name == DINO else [{}] * 4
    normalizers = Normalizers(float(sum(COUNTS)), 1.0)
    together = model(images, targets, **options[0])
    losses = criterion(together, targets, normalizers=normalizers)
    sums = dict.fromkeys(losses, torch.zeros((), dtype=torch.float64))
    for i in range(3):
        alone = model(images[i : i + 1], targets[i : i + 1], **options[1 + i])
        count = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[i, :count], alone.logits[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(together.boxes[i, :count], alone.boxes[0], rtol=0, atol=1e-9)
        assert (together.logits[i, count:] < -1e3).all()
        if name == DINO:
            own = layout.position[layout.image == i]
            torch.testing.assert_close(
                together.denoising.outputs.boxes[i, own], alone.denoising.outputs.boxes[0], rtol=0, atol=1e-9
            )
            assert len(alone.denoising.outputs.logits[0]) == 2 * GROUPS * COUNTS[i] == len(own)
            own_slots = torch.zeros(layout.size, dtype=torch.bool).index_fill(0, own, True)
            assert (together.denoising.outputs.logits[i, ~own_slots] < -1e3).all()
        for term, value in criterion(alone, targets[i : i + 1], normalizers=normalizers).items():
            sums[term] = sums[term] + value.detach()
    compared = [term for term in losses if term.startswith("loss")]
    assert len(compared) >= 15
    for term in compared:
        assert losses[term].item() == pytest.approx(sums[term].item(), rel=1e-5, abs=1e-9), term
    means = [term for term in losses if term.startswith("cardinality_error")]
    assert len(means) >= 5
    for term in means:
        assert losses[term].item() == pytest.approx(sums[term].item() / 3), term


def test_with_published_padding_empty_slots_are_background():
    model, criterion = _model(DINO, padding="official").train(), build_criterion(DINO, num_classes=4)
    targets = _targets(COUNTS)
    outputs = model(_images(), targets)
    branch = outputs.denoising.outputs
    losses = criterion(outputs, targets)
    # the focal loss (Lin et al. 2017, Eq. 5) of all slots, of which each positive is its object's class
    labels = torch.cat([t.labels for t in targets])
    positive = torch.zeros_like(branch.logits)
    place = (outputs.denoising.image, outputs.denoising.query, labels[outputs.denoising.target])
    positive[place] = 1.0
    p = branch.logits.sigmoid()
    pt = torch.where(positive > 0, p, 1 - p)
    alpha = torch.where(positive > 0, 0.25, 0.75)
    wanted = (-alpha * (1 - pt) ** 2 * pt.log()).sum() / (GROUPS * sum(COUNTS))
    assert positive.sum() == GROUPS * sum(COUNTS)
    torch.testing.assert_close(losses["loss_ce_dn"], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("name", MODELS)
def test_every_batch_has_the_same_terms_and_reaches_every_parameter(name, masks):
    """Also one without objects, or whose images have fewer cells than queries, or fewer than objects."""
    model, criterion = _model(name, masks=masks).train(), build_criterion(name, num_classes=4)
    names = set()
    cases = [([2, 0], [(64, 64), (40, 72)]), ([0, 0], [(64, 64), (40, 72)]), ([30, 1], [(20, 33), (33, 20)])]
    if not masks:  # whose norms need more than a cell
        cases.append(([2], [(8, 8)]))
    for counts, sizes in cases:
        model.zero_grad()
        targets = _targets(counts, sizes)
        if max(counts) > 12:
            with pytest.warns(UserWarning, match="30 objects but the model only 12 queries") as warned:
                losses = criterion(model(_images(sizes), targets), targets)
                criterion(model(_images(sizes[::-1]), targets[::-1]), targets[::-1])
            assert len(warned) == 1
        else:
            losses = criterion(model(_images(sizes), targets), targets)
        criterion.total(losses).backward()
        assert all(value.isfinite() for value in losses.values())
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        names.add(tuple(losses))
    assert len(names) == 1


def test_without_denoising_every_parameter_still_takes_part():
    model, criterion = _model(DINO).train(), build_criterion(DINO, num_classes=4)
    model.dn_number = 0
    targets = _targets([2], [(48, 48)])
    outputs = model(_images([(48, 48)]), targets)
    assert outputs.denoising is None
    criterion.total(criterion(outputs, targets)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not model.label_embed.weight.grad.any()


@pytest.mark.parametrize("name", MODELS)
def test_capture_is_of_the_matching_queries(name):
    """In training the queries before or behind them are left out, and what is kept is what eval mode keeps."""
    sizes = [(70, 90), (33, 20), (96, 64)]
    model, images, targets = _model(name, masks=True), _images(sizes), _targets(COUNTS, sizes)
    with torch.no_grad():
        evaluated = model.eval()(images, capture=True)
        trained = model.train()(images, targets, capture=True)
    torch.testing.assert_close(trained.logits, evaluated.logits, rtol=0, atol=1e-4)
    one, other = trained.capture, evaluated.capture
    assert list(one.stages) == list(other.stages)
    pairs = [(one.stages[key], other.stages[key]) for key in one.stages]
    pairs += [(getattr(one, key), getattr(other, key)) for key in ("logits", "boxes", "references", "proposal_index")]
    for parts in ("decoder_attention", "query_attention", "decoder_locations", "encoder_attention"):
        pairs += zip(getattr(one, parts), getattr(other, parts), strict=True)
    assert one.logits.shape[:3] == (2, 3, 12) and one.query_attention[0].shape == (3, 2, 12, 12)
    for got, wanted in pairs:
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_fewer_queries_give_the_best_of_more(name):
    """`num_queries` lowered at inference: in eval mode the queries are the best tokens, and the first contents."""
    model = _model(name).eval()
    with torch.inference_mode():
        more = model(_images(), capture=True)
        model.num_queries = 5
        fewer = model(_images(), capture=True)
    assert fewer.logits.shape == (3, 5, 4)
    assert torch.equal(fewer.capture.proposal_index, more.capture.proposal_index[:, :5])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_no_bit(name):
    def step(on):
        torch.manual_seed(3)
        model, criterion = _model(name, dropout=0.1).train(), build_criterion(name, num_classes=4)
        set_checkpointing(model, on)
        targets = _targets(COUNTS)
        losses = criterion(model(_images(), targets), targets)
        criterion.total(losses).backward()
        return losses, [p.grad for p in model.parameters() if p.requires_grad]

    (losses, gradients), (again, same) = step(False), step(True)
    assert all(torch.equal(losses[key], again[key]) for key in losses)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


@pytest.mark.parametrize("name", list(MODELS))
def test_queries_from_padding_are_never_matched(name):
    """An image with fewer cells than queries, and more objects than cells, has in a batch the losses it has alone."""
    model, criterion = _model(name, aux_loss=True).train(), build_criterion(name, num_classes=4)
    if name == DINO:
        model.dn_number = 0
    sizes = [(96, 96), (16, 17)]
    images, targets = _images(sizes), _targets([0, 14], sizes)
    together, alone = (criterion(model(i, t), t) for i, t in ((images, targets), (images[1:], targets[1:])))
    nothing = criterion(
        model(images[:1], targets[:1]), targets[:1]
    )  # of the large image: all its queries are background
    for term in (term for term in alone if "loss" in term):
        objects = 14 * (3 if "one2many" in term else 1)
        expected = alone[term] + nothing[term] / objects
        torch.testing.assert_close(together[term], expected, rtol=1e-4, atol=1e-5, msg=term)
        assert float(expected.detach()) < 100
