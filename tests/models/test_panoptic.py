"""Masks: made on request, trained by themselves or with the detector, whatever batch an image is in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import goldens
from detrkit.models import panoptic as module
from detrkit.models.criterion import Normalizers, build_criterion, dice_loss, focal_loss
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Outputs, Target
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model

SMALL = {
    "backbone": "resnet10",
    "backbone_norm": "group",
    "backbone_width": 16,
    "hidden_dim": 32,
    "nheads": 4,
    "dim_feedforward": 64,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 9,
    "num_classes": 5,
    "dropout": 0.0,
    "masks": True,
}
MODELS = {
    "detr": ("detr-r50", {}),
    "detr stage 4": ("detr-r50", {"backbone_stage": 4}),
    "deformable": ("deformable-detr-r50", {"num_feature_levels": 4}),
    "two-stage": ("deformable-detr-r50-two-stage", {"backbone_stages": (3, 4), "num_feature_levels": 3}),
}
# no multiple of 32 or 4; one without objects
SIZES = [(97, 131), (131, 70), (61, 77)]
COUNTS = [3, 0, 2]


def build(name="detr", seed=0, **options):
    """A small model with weights that let every part matter."""
    kind, own = MODELS[name]
    torch.manual_seed(seed)
    model = build_model(kind, **SMALL | own | options)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    if (
        model.segmentation is not None
    ):  # or all masks would look alike: attention is a small share of what the head reads
        model.segmentation.attention.query.weight.data *= 10
        model.segmentation.head.first.weight.data[:, -SMALL["nheads"] :] *= 100
    return model


def criterion(name="detr"):
    return build_criterion(MODELS[name][0], num_classes=SMALL["num_classes"])


def pictures(seed=0):
    return [goldens.image(f"panoptic{seed}-{i}", *size) for i, size in enumerate(SIZES)]


def objects(seed=0):
    """Rectangles with their masks."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count, (h, w) in zip(COUNTS, SIZES, strict=True):
        boxes = torch.rand(count, 4, generator=generator) * 0.3 + torch.tensor([0.3, 0.3, 0.1, 0.1])
        masks = torch.zeros(count, h, w, dtype=torch.bool)
        for mask, (x, y, width, height) in zip(masks, boxes.tolist(), strict=True):
            mask[
                int((y - height / 2) * h) : int((y + height / 2) * h),
                int((x - width / 2) * w) : int((x + width / 2) * w),
            ] = True
        targets.append(Target(torch.randint(5, (count,), generator=generator), boxes, masks))
    return targets


def gradients(model, run):
    model.zero_grad()
    run()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distance(a, b):
    """Of two gradients, relative."""
    assert a.keys() == b.keys()
    whole = torch.stack([g.norm() for g in b.values()]).norm()
    return float(torch.stack([(a[n] - b[n]).norm() for n in a]).norm() / whole)


# made on request


@pytest.mark.parametrize("name", MODELS)
def test_masks_of_chosen_queries(name, monkeypatch):
    model = build(name).eval()
    with torch.inference_mode():
        every = model(pictures())
        deferred = model(pictures(), defer_masks=True)
    assert every.has_masks and deferred.has_masks and deferred.masks is None and every.deferred_masks is None
    assert every.masks.shape == (3, 9, 33, 33)  # 131 pixels at stride 4
    chosen = [torch.tensor([7, 0, 7]), torch.tensor([], dtype=torch.int64), torch.arange(9)]
    for cells in (module.MASK_CELLS_PER_CHUNK, 1):  # all of an image together, and one by one
        monkeypatch.setattr(module, "MASK_CELLS_PER_CHUNK", cells)
        masks = deferred.masks_of(chosen)  # after the model's inference mode has ended
        for i, (h, w) in enumerate(SIZES):
            own = every.masks[i, :, : -(-h // 4), : -(-w // 4)]
            assert masks[i].shape == (len(chosen[i]), *own.shape[1:])
            assert torch.allclose(masks[i], own[chosen[i]], rtol=1e-4, atol=1e-5)
            assert torch.allclose(every.masks_of(chosen)[i], own[chosen[i]])
            outside = every.masks[i].clone()
            outside[:, : own.shape[1], : own.shape[2]] = 0
            assert not outside.any()
    assert float(every.masks.std((2, 3)).min()) > 1e-3 and float(every.masks.std(1).max()) > 1e-2  # no two are alike
    moved = deferred.to("cpu")
    assert moved.deferred_masks is None and torch.allclose(moved.masks, every.masks, rtol=1e-4, atol=1e-5)


def test_training_defers_masks_unless_told_otherwise():
    model = build().train()
    assert model(pictures()).masks is None
    assert model(pictures(), defer_masks=False).masks is not None
    assert model.eval()(pictures()).masks is not None


def test_official_padding_covers_the_batch():
    model = build(padding="official").eval()
    with torch.inference_mode():
        out = model(pictures())
    assert out.mask_sizes is None
    assert out.masks_of([torch.arange(2)] * 3)[2].shape == (2, 33, 33)
    assert out.masks[2, :, 16:, 20:].any()  # as published, padding has logits too


def test_without_masks():
    model = build(masks=False)
    out = model(pictures())
    assert model.segmentation is None and not out.has_masks
    with pytest.raises(ValueError, match="masks=True"):
        out.masks_of([torch.arange(2)] * 3)


def test_attention_is_a_product():
    model = build("deformable").eval()
    with torch.inference_mode():
        attention = model(pictures(), capture=True).capture.stages["mask_attention"]
    assert attention.shape == (3, 9, 4, 5, 5)  # stride 32
    assert torch.allclose(attention.sum((2, 3, 4)), torch.ones(3, 9), atol=1e-5)
    assert not attention[2, ..., 2:, :].any() and not attention[2, ..., 3:].any()  # 61 x 77 pixels


@pytest.mark.parametrize(
    ("options", "channels", "groups"),
    [
        ({"hidden_dim": 256, "nheads": 8}, [264, 264, 128, 64, 32, 16], [8, 8, 8, 8, 8]),
        ({"hidden_dim": 128, "nheads": 4, "backbone_stage": 4}, [132, 132, 64, 32, 16], [4, 8, 8, 8]),
        ({"hidden_dim": 32, "nheads": 2, "backbone_stage": 3}, [34, 34, 16, 8], [2, 8, 8]),
    ],
)
def test_channels_of_the_head(options, channels, groups):
    head = build(**options).segmentation.head
    widths = [head.first.in_channels, head.first.out_channels, *(c.out_channels for c in head.convolutions)]
    assert widths == channels and head.out.in_channels == channels[-1]
    assert [norm.num_groups for norm in head.norms] == groups
    assert [a.in_channels for a in head.adapters] == build(**options).backbone.channels[-2::-1]


def test_too_narrow_for_masks():
    with pytest.raises(ValueError, match="masks need hidden_dim >= 16, not 8"):
        build(hidden_dim=8, nheads=2)


# losses


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name):
    model, loss = build(name).train(), criterion(name)
    losses = loss(model(pictures()), objects())
    assert {"loss_mask", "loss_dice"} <= set(losses) and not any("mask_" in n for n in losses)
    loss.total(losses).backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()}
    # DETR's first decoder layer attends among zeros
    zeros = ("decoder.layers.0.self_attention.", "decoder.layers.0.norm1.weight")
    assert not {n for n in idle if not n.startswith(zeros)}, idle


@pytest.mark.parametrize("name", ["detr", "deformable"])
def test_matched_masks_alone_have_the_gradient_of_all(name):
    model, loss, targets = build(name).train(), criterion(name), objects()
    deferred, every = (
        gradients(model, lambda defer=defer: loss.total(loss(model(pictures(), defer_masks=defer), targets)).backward())
        for defer in (True, False)
    )
    assert distance(deferred, every) <= 1e-5


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_does_not_depend_on_how_a_batch_is_split_or_padded(seed):
    model, loss, targets = build(seed=seed).train(), criterion(), objects(seed)
    images = pictures(seed)
    counts = loss.normalizers(targets, SMALL["num_queries"])

    def run(batches):
        for batch, wanted in batches:
            loss.total(loss(model(batch), wanted, normalizers=counts)).backward()

    whole = gradients(model, lambda: run([(images, targets)]))
    single = gradients(model, lambda: run([([i], [t]) for i, t in zip(images, targets, strict=True)]))
    padded = gradients(model, lambda: run([(Batch.from_images(images, multiple=64), targets)]))
    assert distance(single, whole) <= 1e-4 and distance(padded, whole) <= 1e-4
    norms = [g.norm() for n, g in whole.items() if n.startswith("segmentation.")]
    assert min(norms) > 0


def test_one_image_has_the_published_losses():
    """Where there is no padding, both ways of counting are one."""
    out = build().eval()(pictures()[:1])
    published = replace(out, mask_sizes=None)
    loss, targets = criterion(), objects()[:1]
    a, b = loss(out, targets), loss(published, targets)
    assert a["loss_mask"] == b["loss_mask"] and a["loss_dice"] == b["loss_dice"]
    with torch.inference_mode():
        out = build().eval()(pictures())
    a, b = loss(out, objects()), loss(replace(out, mask_sizes=None), objects())
    assert a["loss_mask"] != b["loss_mask"]  # with padding they are not


def test_no_objects_leave_a_gradient_of_zero():
    """So that every process of several has one for every parameter, and none waits for ever."""
    model, loss = build().train(), criterion()
    empty = [t for t in objects() if not len(t)]
    losses = loss(model(pictures()[1:2]), empty)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    loss.total(losses).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.segmentation.parameters())


def test_more_objects_than_queries():
    model, loss = build(num_queries=2).train(), criterion()
    with pytest.warns(UserWarning, match="has 3 objects but the model only 2 queries"):
        losses = loss(model(pictures()), objects())
    assert all(value.isfinite() for value in losses.values())


def test_targets_without_masks():
    model, targets = build().train(), [replace(t, masks=None, image_id=f"no. {i}") for i, t in enumerate(objects())]
    with pytest.raises(DetrkitError, match=r"image no\. 0: 0 masks for 3 objects.*masks=True"):
        criterion()(model(pictures()), targets)


def test_loss_weights():
    values = build_criterion("detr-r50-panoptic", mask_loss_coef=3.0).weights
    assert (values["loss_mask"], values["loss_dice"]) == (3.0, 1.0)


def test_losses_in_closed_form():
    """A pixel that is half right: focal 0.25 * 0.5^2 * ln 2 of a "yes", 0.75 of a "no"; dice (1 + 1) / (1 + 2 + 1)."""
    logits, wanted = torch.zeros(1, 1, 2), torch.tensor([[[True, False]]])
    focal = focal_loss(logits, wanted, alpha=0.25, gamma=2.0)
    assert focal.flatten().tolist() == pytest.approx([0.0625 * 0.6931472, 0.1875 * 0.6931472])
    assert dice_loss(logits, wanted).item() == pytest.approx(1 - 2 / 3)
    sure = torch.tensor([[[9e3, -9e3]]], requires_grad=True)
    assert dice_loss(sure, wanted).item() == 0 and focal_loss(sure, wanted, alpha=0.25, gamma=2.0).sum() == 0
    against = focal_loss(-sure, wanted, alpha=0.25, gamma=2.0).sum()
    against.backward()
    assert against.item() == pytest.approx(9e3) and sure.grad.isfinite().all()


def test_half_precision():
    """Masks are asked for outside of the model's autocast, and belong to it; losses are summed in float32."""
    model, loss, targets = build().train(), criterion(), objects()
    full = loss(model(pictures()), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(pictures())
    assert out.masks_of([torch.arange(3)] * 3)[0].dtype == torch.bfloat16
    half = loss(out, targets)
    assert half["loss_mask"].dtype == half["loss_dice"].dtype == torch.float32
    for name in ("loss_mask", "loss_dice"):
        assert half[name].item() == pytest.approx(full[name].item(), rel=3e-2), name
    loss.total(half).backward()
    assert all(p.grad.isfinite().all() for p in model.segmentation.parameters())
    shapes = [(3, 9, 6), (3, 9, 4), (3, 9, 33, 33)]
    extreme = Outputs(*(torch.randn(shape).to(torch.float16) * 1e4 for shape in shapes))
    assert all(
        loss(replace(extreme, boxes=out.boxes.detach()), targets)[n].isfinite() for n in ("loss_mask", "loss_dice")
    )


# freezing


@pytest.mark.parametrize("name", ["detr", "two-stage"])
def test_a_frozen_detector_stays_as_it_is(name):
    model = build(name, dropout=0.5, backbone_norm="batch").train()
    before, loss = {n: v.clone() for n, v in model.state_dict().items()}, criterion(name)
    model.freeze_detector()
    assert model.training and model.segmentation.training and not model.backbone.training
    for mode in (True, False, True):
        model.train(mode)
        assert model.training == model.segmentation.training == mode
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        out = model(pictures())
        losses = loss(out, objects())
        optimizer.zero_grad()
        loss.total(losses).backward()
        optimizer.step()
    with torch.inference_mode():
        model.train()
        first, again = model(pictures()), model(pictures())
        assert torch.equal(first.boxes, again.boxes) and torch.equal(first.boxes, model.eval()(pictures()).boxes)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("segmentation."), key
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("segmentation."))


def test_nothing_but_a_detector_to_freeze():
    with pytest.raises(ValueError, match="this model has none: use masks=True"):
        build(masks=False).freeze_detector()


def test_official_divisors_of_masks():
    """Half as many objects, as in one of two processes, are divided by no more than all of them."""
    out, targets, loss = build().eval()(pictures()), objects(), criterion()
    own = loss(out, targets)
    doubled = loss(out, targets, normalizers=Normalizers(2 * sum(COUNTS), 1.0))
    assert doubled["loss_dice"].item() == pytest.approx(own["loss_dice"].item() / 2)


def test_boxes_draw_attention_in_closed_form():
    """Where states and memory say nothing: a Gaussian around the box's center, over the image without its padding."""
    heads, stride, image, shape = 3, 16, (70, 150), (7, 12)
    prior = module.BoxPrior(heads)
    boxes = torch.tensor([[[0.3, 0.6, 0.2, 0.4], [0.8, 0.2, 0.001, 0.5]]])
    found = prior(boxes, boxes.new_tensor([image[::-1]]), shape, stride)
    assert found.shape == (1, 2, heads, 7 * 12)
    sharpness = prior.sharpness.detach().exp()
    for query, (x, y, w, h) in enumerate(boxes[0].tolist()):
        for row, column in ((0, 0), (2, 3), (6, 11)):
            dx = ((column + 0.5) * stride / image[1] - x) / max(w, module.MIN_PRIOR_SIDE)
            dy = ((row + 0.5) * stride / image[0] - y) / h
            expected = -2 * sharpness * (dx**2 + dy**2)
            torch.testing.assert_close(found[0, query, :, row * 12 + column].detach(), expected)


def test_published_masks_have_no_prior():
    assert build("detr").segmentation.prior is None
    assert build("deformable").segmentation.prior.sharpness.shape == (SMALL["nheads"],)
