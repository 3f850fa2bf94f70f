"""An image's outputs do not depend on what it is batched with."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.models.dino import DINO
from detrkit.models.registry import ARCHITECTURES
from detrkit.structures.batch import Batch
from detrkit.utils.errors import ImageSizeError
from detrkit.weights.build import build_model
from helpers.weights import randomize

# no multiple of 32, each the largest in one direction or smaller in both
SIZES = [(97, 131), (131, 70), (61, 77)]
SMALL = {
    "hidden_dim": 64,
    "dim_feedforward": 128,
    "enc_layers": 2,
    "dec_layers": 2,
    "num_queries": 10,
}


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def worst_difference(model, images):
    """The largest difference relative to the largest value, over logits and boxes of all layers, and masks."""
    with torch.inference_mode():
        together = model(images)
        together_shapes = [max(im.shape[side] for im in images) for side in (1, 2)]
        worst = 0.0
        for i, image in enumerate(images):
            alone = model([image])
            for a, b in zip([together, *together.aux], [alone, *alone.aux], strict=True):
                # a two-stage model has no more queries than an image has cells: those of padding come last
                count = b.logits.shape[1]
                assert (a.logits[i, count:] < -1e3).all()
                worst = max(worst, relative(a.logits[i, :count], b.logits[0]), relative(a.boxes[i, :count], b.boxes[0]))
            if alone.encoder is not None:
                # DINO's first stage gives the tokens chosen, best first; of other models it gives all
                own = torch.arange(count) if isinstance(model, DINO) else _own_tokens(model, together_shapes, image)
                assert len(own) == alone.encoder.logits.shape[1]
                for part in ("logits", "boxes"):
                    a, b = getattr(together.encoder, part)[i, own], getattr(alone.encoder, part)[0]
                    worst = max(worst, relative(a, b))
            if alone.masks is not None:
                h, w = alone.masks.shape[2:]
                assert (h, w) == (-(-image.shape[1] // 4), -(-image.shape[2] // 4))
                worst = max(worst, relative(together.masks[i, :count, :h, :w], alone.masks[0]))
    return worst


def _own_tokens(model, batch_size, image):
    """Indices of an image's own cells among the tokens of all levels of its batch."""
    own, start = [], 0
    for level in range(len(model.projections)):
        stride = 2 ** (level + 3)
        (height, width), (h, w) = ([-(-int(side) // stride) for side in size] for size in (batch_size, image.shape[1:]))
        cells = torch.arange(height * width).view(height, width) + start
        own.append(cells[:h, :w].flatten())
        start += height * width
    return torch.cat(own)


def pictures(seed, sizes=SIZES):
    return [goldens.image(f"exact{seed}-{i}", *size) for i, size in enumerate(sizes)]


PUBLISHED = sorted(set(goldens.VARIANTS) - {"detr_resnet50_prenorm"})
# beside SIZES: two images that fill the batch one way each, and one far smaller than the other
MIXES = {"three": SIZES, "crossed": [(96, 160), (160, 96)], "small beside large": [(33, 47), (160, 131)]}


# checked with random weights below: their goldens are of other sizes than the published ones
WITHOUT_OFFICIAL_WEIGHTS = {"h-deformable-detr-r50", "dino-r50-4scale", "dino-r50-5scale"}


def test_all_models_are_checked():
    options = [(goldens.VARIANTS[variant][0], goldens.VARIANTS[variant][1]) for variant in PUBLISHED]
    # RT-DETR: tests/models/test_rtdetr.py
    others = [(name, known) for name, known in ARCHITECTURES.items() if not name.startswith("rtdetr")]
    checked = [known for name, known in others if name not in WITHOUT_OFFICIAL_WEIGHTS]
    for known in checked:
        classes = {} if known.num_classes == 91 else {"num_classes": known.num_classes}
        assert (known.build, {**known.options, **classes}) in options, known.name
    assert len(PUBLISHED) == len(checked) == 13


@pytest.mark.slow
@pytest.mark.parametrize("variant", PUBLISHED)
def test_official_weights(variant):
    model = goldens.model(variant)
    goldens.set_padding(model, "exact")
    for seed, (mix, sizes) in enumerate(MIXES.items()):
        images = pictures(seed, sizes)
        difference = worst_difference(model, images)
        print(f"{variant}, {mix}: {difference:.1e}")
        assert difference <= 1e-4, mix
    images = pictures(0)
    if variant == "detr_resnet50_dc5":
        goldens.set_padding(model, "official")
        leaked = worst_difference(model, images)
        goldens.set_padding(model, "exact")
        assert leaked > 1e-2  # so the test would see it


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet18", "backbone_norm": "group"},
        {"backbone": "resnet10", "backbone_norm": "group", "backbone_width": 16, "backbone_stage": 4},
        {"backbone": "resnet34", "backbone_norm": "batch", "backbone_stage": 3},
        {"backbone": "resnet50", "backbone_norm": "group", "dilation": True},
        {"backbone": "resnet18", "position_embedding": "learned", "pre_norm": True},
        {"backbone": "resnet10", "backbone_norm": "group", "backbone_width": 16, "backbone_stage": 4, "masks": True},
        {"backbone": "resnet50", "backbone_norm": "group", "dilation": True, "masks": True},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_random_weights(options):
    model = build_model("detr-r50", **SMALL, **options).eval()
    difference = worst_difference(model, pictures(2))
    print(f"{difference:.1e}")
    assert difference <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize(
    "name",
    [
        "deformable-detr-r50",
        "deformable-detr-r50-single-scale-dc5",
        "deformable-detr-r50-refine",
        "deformable-detr-r50-two-stage",
        "h-deformable-detr-r50",
        "dino-r50-4scale",
        "dino-r50-5scale",
    ],
)
def test_deformable(name, masks):
    options = {"backbone_norm": "group", "backbone_width": 16, "backbone": "resnet50", "masks": masks}
    model = build_model(name, **SMALL, **options).eval()
    for parameter in model.parameters():  # published initialization attends to everything alike
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    difference = worst_difference(model, pictures(5))
    print(f"{name}: {difference:.1e}")
    assert difference <= 1e-4


CONVNEXT, RESNET = {"backbone": "timm:test_convnext"}, {"backbone": "timm:test_resnet"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("detr-r50", CONVNEXT),
        ("detr-r50-panoptic", CONVNEXT),
        ("detr-r50-dc5", RESNET),
        ("detr-r50-dc5-panoptic", CONVNEXT),
        ("detr-r50", {"backbone": "timm:test_vit", "backbone_stage": 4}),
        ("detr-demo", RESNET),
        ("deformable-detr-r50", CONVNEXT),
        ("deformable-detr-r50", {**RESNET, "masks": True}),
        ("deformable-detr-r50", {"backbone": "timm:test_vit", "backbone_stages": (4,)}),
        ("deformable-detr-r50-single-scale-dc5", RESNET),
        ("deformable-detr-r50-two-stage", CONVNEXT),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(v) for v in value.values()),
)
def test_networks_of_timm(name, options):
    pytest.importorskip("timm")
    model = randomize(build_model(name, num_classes=91, **SMALL, **options)).double().eval()
    assert worst_difference(model, [picture.double() for picture in pictures(5)]) <= 1e-6  # priors are float32


def test_groupnorm_gradients_do_not_depend_on_the_batch():
    model = build_model("detr-r50", **SMALL, backbone="resnet18", backbone_norm="group", dropout=0.0).train()
    images = pictures(3)

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            out = model(batch)
            (out.logits.square().sum() + out.boxes.square().sum()).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together, alone = gradients([images]), gradients([[image] for image in images])
    assert together.keys() == alone.keys()
    norm = torch.stack([g.norm() for g in alone.values()]).norm()
    assert torch.stack([(together[n] - alone[n]).norm() for n in alone]).norm() <= 1e-4 * norm


def test_padding_to_a_multiple_and_in_order():
    """More padding than needed changes nothing either, nor does the order of the images."""
    model = build_model("detr-r50", **SMALL, backbone="resnet18", backbone_norm="group").eval()
    images = pictures(4)
    with torch.inference_mode():
        plain = model(images)
        wide = model(Batch.from_images(images, multiple=64))
        turned = model(images[::-1])
    assert relative(wide.logits, plain.logits) <= 1e-4 and relative(wide.boxes, plain.boxes) <= 1e-4
    assert relative(turned.logits.flip(0), plain.logits) <= 1e-4


def test_a_batch_of_one_size_has_no_mask():
    batch = Batch.from_images([torch.ones(3, 33, 65)] * 2)
    assert not batch.padded and not batch.mask().any()
    assert Batch.from_images([torch.ones(3, 33, 65), torch.ones(3, 33, 64)]).padded


@pytest.mark.parametrize(
    "bad", [[], [torch.zeros(3, 4)], [torch.zeros(1, 4, 4)], [torch.zeros(3, 4, 4, dtype=torch.uint8)]]
)
def test_what_is_no_batch(bad):
    with pytest.raises(ValueError, match="batch"):
        Batch.from_images(bad)


@pytest.mark.parametrize("two_stage", [False, True])
def test_learned_positions_of_deformable_models(two_stage):
    """Cells are counted from the top left corner, in every level, whatever an image is padded to."""
    name = "deformable-detr-r50-two-stage" if two_stage else "deformable-detr-r50"
    options = {**SMALL, "backbone": "resnet18", "position_embedding": "learned"}
    model = build_model(name, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    assert worst_difference(model, pictures(5)) <= 1e-4


def test_learned_positions_enter_as_the_official_module_gives_them():
    """`PositionEmbeddingLearned` of the official models/position_encoding.py, by the names there."""
    options = {**SMALL, "backbone": "resnet18", "position_embedding": "learned"}
    model = build_model("deformable-detr-r50", **options).eval()
    with torch.inference_mode():
        stages = model([goldens.image("learned", 90, 130)], capture=True).capture.stages
    table = model.position_encoding
    for level, (h, w) in enumerate([(12, 17), (6, 9), (3, 5), (2, 3)]):
        x_emb, y_emb = table.col_embed(torch.arange(w)), table.row_embed(torch.arange(h))
        pos = torch.cat([x_emb.unsqueeze(0).repeat(h, 1, 1), y_emb.unsqueeze(1).repeat(1, w, 1)], -1).permute(2, 0, 1)
        torch.testing.assert_close(stages[f"position.{level}"][0], pos, rtol=0, atol=0)


def test_maps_larger_than_the_learned_table():
    model = build_model(
        "deformable-detr-r50", **SMALL, backbone="resnet18", position_embedding="learned", position_entries=11
    )
    with pytest.raises(ImageSizeError, match=r"a feature map of 12 x 10 cells needs more .*position_entries=12"):
        model([goldens.image("learned", 90, 75)])
