"""The same weights give the same outputs in Hugging Face's implementation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import goldens
from detrkit.convert import load_huggingface, to_huggingface
from detrkit.models.detr import DETR
from detrkit.structures.batch import Batch

transformers = pytest.importorskip("transformers")

VARIANTS = [
    "detr_resnet50",
    "detr_resnet50_panoptic",
    "deformable_multi_scale",
    "deformable_refine",
    "deformable_two_stage",
]
# width 128: transformers normalizes projections in 32 groups whatever the width
SMALL = {"hidden_dim": 128, "dim_feedforward": 128, "enc_layers": 2, "dec_layers": 3, "num_queries": 12}
PUBLISHED = {"hidden_dim": 256, "enc_layers": 6, "dec_layers": 6}
# one image; two that fill the batch one way each; two of odd sizes, each padded in one direction
SIZES = [[(128, 160)], [(160, 128), (96, 160)], [(97, 133), (121, 75)]]


def peer(ours, sizes, folder, backbone="resnet"):
    """transformers' model with the weights of ours, read from a file as its users do.

    Args:
        ours: a DETR or a Deformable DETR with a ResNet-50.
        sizes: hidden_dim, dim_feedforward, enc_layers, dec_layers of it.
        folder: where the file is written.
        backbone: "resnet" for transformers' own, "timm" for timm's.
    """
    options = {
        "use_pretrained_backbone": False,
        "d_model": sizes["hidden_dim"],
        "encoder_layers": sizes["enc_layers"],
        "decoder_layers": sizes["dec_layers"],
        "encoder_ffn_dim": sizes["dim_feedforward"],
        "decoder_ffn_dim": sizes["dim_feedforward"],
        "num_queries": ours.num_queries,
        "num_labels": ours.num_classes,
    }
    if backbone == "timm":
        options |= {"backbone": "resnet50", "dilation": ours.backbone.strides[-1] == 16}
    else:
        config = transformers.ResNetConfig(
            embedding_size=64,
            hidden_sizes=[256, 512, 1024, 2048],
            depths=[3, 4, 6, 3],
            layer_type="bottleneck",
            out_features=[f"stage{stage - 1}" for stage in ours.backbone.stages],
        )
        options |= {"use_timm_backbone": False, "backbone": None, "backbone_config": config}
    if isinstance(ours, DETR):
        segmentation = ours.segmentation is not None
        kind = transformers.DetrForSegmentation if segmentation else transformers.DetrForObjectDetection
        # with auxiliary losses every decoder layer would be given normed states
        config = transformers.DetrConfig(**options, auxiliary_loss=False)
    else:
        kind = transformers.DeformableDetrForObjectDetection
        config = transformers.DeformableDetrConfig(
            **options,
            num_feature_levels=len(ours.projections),
            with_box_refine=ours.with_box_refine,
            two_stage=ours.two_stage,
            two_stage_num_proposals=ours.num_queries,
            auxiliary_loss=True,
        )
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    save_file(to_huggingface(ours, backbone=backbone), folder / "model.safetensors", metadata={"format": "pt"})
    theirs, found = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found  # nothing missing, left over or of another shape
    return theirs.eval()


def differences(ours, theirs, images):
    """The largest differences of logits, boxes and, of models that have them, masks, by what they are outputs of."""
    batch = Batch.from_images(images)
    # auxiliary outputs come with a loss alone, and a loss with objects
    objects = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])} for _ in images]
    auxiliary = theirs.config.auxiliary_loss
    with torch.inference_mode():
        a = ours(batch)
        b = theirs(batch.images, pixel_mask=(~batch.mask()).long(), labels=objects if auxiliary else None)
    assert float(a.logits.std(1).mean()) > 0.1  # queries differ, so equality says something
    pairs = {"last": ((a.logits, b.logits), (a.boxes, b.pred_boxes))}
    if a.masks is not None:
        pairs["last"] += ((a.masks, b.pred_masks),)
    if auxiliary:
        for i, (layer, other) in enumerate(zip(a.aux, b.auxiliary_outputs, strict=True)):
            pairs[f"layer {i}"] = (layer.logits, other["logits"]), (layer.boxes, other["pred_boxes"])
    if a.encoder is not None:
        proposals = b.enc_outputs_coord_logits.sigmoid()
        pairs["encoder"] = (a.encoder.logits, b.enc_outputs_class), (a.encoder.boxes, proposals)
    found = {name: [float((x - y).abs().max()) for x, y in pair] for name, pair in pairs.items()}
    print({name: [f"{d:.1e}" for d in pair] for name, pair in found.items()})
    return found


def assert_small(found, *, logits, boxes, masks):
    for name, worst in found.items():
        assert all(d <= most for d, most in zip(worst, (logits, boxes, masks), strict=False)), (name, worst)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", [*VARIANTS, "deformable_single_scale"])
def test_same_outputs(variant, seed, tmp_path):
    kind, options = goldens.VARIANTS[variant]
    ours = goldens.fill(kind(**SMALL, **options | {"num_classes": 7}, padding="official"), seed).eval()
    theirs = peer(ours, SMALL, tmp_path)
    for sizes in SIZES:
        images = [goldens.image(f"peer{seed}-{i}", *size) for i, size in enumerate(sizes)]
        assert_small(differences(ours, theirs, images), logits=3e-5, boxes=5e-6, masks=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_outputs_at_the_published_size(variant, tmp_path):
    """On the goldens' pictures, whose proposals differ enough to have one order."""
    ours = goldens.model(variant)
    goldens.set_padding(ours, "official")
    hidden = 2048 if isinstance(ours, DETR) else 1024
    theirs = peer(ours, PUBLISHED | {"dim_feedforward": hidden}, tmp_path)
    (case,) = (c for c in goldens.cases("model_forward") if c["file"] == f"{variant}__batch.npz")
    assert_small(differences(ours, theirs, goldens.images(case)), logits=6e-5, boxes=1e-5, masks=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["detr_resnet50_dc5", "detr_resnet50_dc5_panoptic", "deformable_single_scale_dc5"])
def test_dc5(variant, tmp_path):
    """Which transformers has with timm's ResNet alone."""
    pytest.importorskip("timm")
    kind, options = goldens.VARIANTS[variant]
    ours = goldens.fill(kind(**SMALL, **options | {"num_classes": 7}, padding="official"), 4).eval()
    theirs = peer(ours, SMALL, tmp_path, backbone="timm")
    images = [goldens.image(f"dc5-{i}", *size) for i, size in enumerate(SIZES[-1])]
    assert_small(differences(ours, theirs, images), logits=3e-5, boxes=5e-6, masks=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_transformers_writes(variant, tmp_path):
    kind, options = goldens.VARIANTS[variant]
    if transformers.__version__ < "5" and "with_box_refine" in options:
        pytest.skip("transformers 4 takes its shared heads for a mistake and saves nothing")
    ours, again = (kind(**SMALL, **options | {"num_classes": 7}) for _ in range(2))
    theirs = peer(goldens.fill(ours, 5), SMALL, tmp_path / "read")
    theirs.save_pretrained(tmp_path / "written")
    for state in (load_file(tmp_path / "written" / "model.safetensors"), theirs.state_dict()):
        load_huggingface(again, state)
        assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in again.state_dict().items())
        for tensor in again.state_dict().values():
            tensor.zero_()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_captured_attention(variant, tmp_path):
    """In double precision: sharp attention makes more of single's noise than of a fault in the last digit.

    Position encodings are single in one or both. Where a whole row or column is padding, a Deformable DETR's are sines
    of millions, which are noise: what its padding's tokens look at is left out, as nothing reads them.
    """
    kind, options = goldens.VARIANTS[variant]
    ours = goldens.fill(kind(**SMALL, **options | {"num_classes": 7}, padding="official"), 3).eval()
    theirs = peer(ours, SMALL, tmp_path).double()
    theirs.set_attn_implementation("eager")  # which alone returns weights
    batch = Batch.from_images([goldens.image(f"attention{i}", *size).double() for i, size in enumerate(SIZES[-1])])
    with torch.inference_mode():
        capture = ours.double()(batch, capture=True).capture
        other = theirs(batch.images, pixel_mask=(~batch.mask()).long(), output_attentions=True)
    looking = ~capture.padding
    assert 0 < looking.sum() < looking.numel()
    encoder = capture.encoder_attention, other.encoder_attentions
    if kind is not DETR:
        encoder = tuple([layer[looking] for layer in layers] for layers in encoder)
    for mine, others in (
        encoder,
        (capture.decoder_attention, other.cross_attentions),
        (capture.query_attention, other.decoder_attentions),
    ):
        worst = max(float((a - b).abs().max()) for a, b in zip(mine, others, strict=True))
        print(f"{worst:.1e}")
        assert worst <= 3e-6  # of weights up to 1
