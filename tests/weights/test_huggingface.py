"""Hugging Face weights in and out. tests/models/test_transformers_peer.py has transformers itself read them."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import goldens
from detrkit.convert import WeightsError, load_huggingface, to_huggingface
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR
from detrkit.utils.errors import DetrkitError

SMALL = {"backbone": "resnet18", "hidden_dim": 128, "dim_feedforward": 32, "num_queries": 5, "num_classes": 3}
LAYERS = {"enc_layers": 2, "dec_layers": 3}
KINDS = {
    "detr": (DETR, {}),
    "learned": (DETR, {"position_embedding": "learned"}),
    "resnet50": (DETR, {"backbone": "resnet50", "dilation": True}),
    "masks": (DETR, {"masks": True}),
    "single-scale": (DeformableDETR, {"num_feature_levels": 1}),
    "multi-scale": (DeformableDETR, {}),
    "refine": (DeformableDETR, {"with_box_refine": True}),
    "two-stage": (DeformableDETR, {"with_box_refine": True, "two_stage": True}),
}


def build(name, seed=None, **options):
    kind, own = KINDS[name]
    model = kind(**SMALL | LAYERS | own | options)
    return model if seed is None else goldens.fill(model, seed)


def assert_same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["timm", "resnet"])
@pytest.mark.parametrize("name", KINDS)
def test_there_and_back_through_a_file(name, backbone, tmp_path):
    source, target = build(name, seed=0), build(name)
    if name == "resnet50" and backbone == "resnet":
        with pytest.raises(DetrkitError, match=r"no dilation \(DC5\): use backbone='timm'"):
            to_huggingface(source, backbone=backbone)
        return
    save_file(to_huggingface(source, backbone=backbone), tmp_path / "model.safetensors")
    load_huggingface(target, load_file(tmp_path / "model.safetensors"))
    assert_same(source, target)


def test_names_of_the_published_files():
    """As facebook/detr-resnet-50 and SenseTime/deformable-detr-with-box-refine-two-stage have them."""
    detr, deformable = to_huggingface(build("detr")), to_huggingface(build("two-stage"))
    masks = to_huggingface(build("masks"))
    assert {f"detr.{name}" for name in detr} < set(masks)
    assert {
        "bbox_attention.q_linear.weight",
        "bbox_attention.k_linear.bias",
        "mask_head.lay1.weight",
        "mask_head.gn5.bias",
        "mask_head.out_lay.bias",
        "mask_head.adapter3.weight",
    } <= set(masks)
    assert {
        "model.backbone.conv_encoder.model.conv1.weight",
        "model.backbone.conv_encoder.model.layer4.1.bn2.running_var",
        "model.input_projection.bias",
        "model.query_position_embeddings.weight",
        "model.encoder.layers.0.self_attn.k_proj.weight",
        "model.encoder.layers.0.self_attn.out_proj.bias",
        "model.encoder.layers.1.fc1.weight",
        "model.encoder.layers.1.final_layer_norm.weight",
        "model.decoder.layers.2.encoder_attn.v_proj.bias",
        "model.decoder.layers.2.encoder_attn_layer_norm.bias",
        "model.decoder.layers.2.self_attn_layer_norm.bias",
        "model.decoder.layers.2.final_layer_norm.bias",
        "model.decoder.layernorm.weight",
        "class_labels_classifier.weight",
        "bbox_predictor.layers.2.bias",
    } <= set(detr)
    assert {
        "model.level_embed",
        "model.input_proj.3.1.weight",
        "model.encoder.layers.0.self_attn.sampling_offsets.bias",
        "model.decoder.layers.0.encoder_attn.value_proj.weight",
        "model.decoder.layers.0.self_attn.q_proj.weight",
        "model.decoder.class_embed.3.bias",
        "model.decoder.bbox_embed.3.layers.0.weight",
        "model.enc_output_norm.weight",
        "model.pos_trans.weight",
        "class_embed.3.bias",
        "bbox_embed.3.layers.0.weight",
    } <= set(deformable)


@pytest.mark.slow
def test_the_three_norms_of_a_decoder_layer_keep_their_places():
    """Published numbers go 2, 1, 3 in Deformable DETR, where DETR has 1, 2, 3."""
    for name, order in (("detr", (1, 2, 3)), ("multi-scale", (2, 1, 3))):
        model = build(name, seed=1)
        state = to_huggingface(model)
        layers = model.decoder.layers if name == "detr" else model.decoder
        for theirs, number in zip(("self_attn", "encoder_attn", "final"), order, strict=True):
            norm = getattr(layers[1], f"norm{number}")
            assert torch.equal(state[f"model.decoder.layers.1.{theirs}_layer_norm.weight"], norm.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_names_inside_transformers(name):
    """A state dict of a model in memory: transformers 5 names it otherwise than its files."""
    source, target = build(name, seed=2), build(name)
    state = {
        key.replace("backbone.conv_encoder", "backbone").replace(".fc", ".mlp.fc").replace("out_proj", "o_proj"): value
        for key, value in to_huggingface(source).items()
    }
    for key in ("model.backbone.model.conv1.weight", "model.encoder.layers.0.mlp.fc1.weight"):
        assert ("detr." if name == "masks" else "") + key in state
    load_huggingface(target, state)
    assert_same(source, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "left_out"), [("multi-scale", r"embed\.[12]\."), ("two-stage", r"^\w+_embed")])
def test_copies_of_a_head_may_be_left_out(name, left_out):
    source, target = build(name, seed=3), build(name)
    state = to_huggingface(source)
    fewer = {key: value for key, value in state.items() if not re.search(left_out, key)}
    assert len(fewer) < len(state)
    load_huggingface(target, fewer)
    assert_same(source, target)


def test_class_heads_tied_by_transformers():
    source, target = build("refine", seed=4), build("refine")
    state = {k: v for k, v in to_huggingface(source).items() if not k.startswith(("class_embed.1", "class_embed.2"))}
    load_huggingface(target, state)
    for head in target.class_heads:
        assert torch.equal(head.weight, source.class_heads[0].weight)
    del state["class_embed.0.bias"]
    with pytest.raises(WeightsError, match=r"missing \(3\): class_embed\.0\.bias, class_embed\.1\.bias"):
        load_huggingface(target, state)
    state = to_huggingface(source)
    del state["class_embed.1.weight"]  # two of three were not tied
    with pytest.raises(WeightsError, match=r"missing \(1\): class_embed\.1\.weight"):
        load_huggingface(target, state)


@pytest.mark.slow
def test_what_does_not_fit():
    state = to_huggingface(build("detr", backbone="resnet34"))
    with pytest.raises(WeightsError, match="of a resnet34, the model has a resnet18"):
        load_huggingface(build("detr"), state)
    state = to_huggingface(build("detr", enc_layers=3, num_queries=9))
    with pytest.raises(WeightsError) as error:
        load_huggingface(build("detr"), state)
    assert "enc_layers=3" in str(error.value) and "num_queries=9" in str(error.value)
    state = to_huggingface(build("detr"))
    del state["model.encoder.layers.0.self_attn.q_proj.bias"]
    with pytest.raises(WeightsError, match=r"missing \(1\): transformer\.encoder\.layers\.0\.self_attn\.in_proj_bias"):
        load_huggingface(build("detr"), state)
    state = to_huggingface(build("detr"))
    state["model.encoder.layers.0.self_attn.k_proj.weight"] = torch.zeros(128, 64)
    with pytest.raises(WeightsError, match=r"left over \(3\): .*self_attn\.q_proj\.weight"):
        load_huggingface(build("detr"), state)
    with pytest.raises(WeightsError, match="no weights found"):
        load_huggingface(build("detr"), {"config": 1})


@pytest.mark.slow
def test_models_that_transformers_does_not_have():
    with pytest.raises(DetrkitError, match=r"no DETR with transformer\.encoder\.norm\.weight"):
        to_huggingface(build("detr", pre_norm=True))
    with pytest.raises(DetrkitError, match="backbone_norm='group'"):
        to_huggingface(build("detr", backbone_norm="group"))
    with pytest.raises(DetrkitError, match="32 groups, this model in 16"):
        load_huggingface(build("refine", hidden_dim=64), {})
    with pytest.raises(DetrkitError, match="two_stage and without with_box_refine"):
        to_huggingface(build("multi-scale", two_stage=True))
    with pytest.raises(DetrkitError, match="no Deformable DETR with masks"):
        to_huggingface(build("multi-scale", masks=True))
    with pytest.raises(TypeError, match="DETRdemo has no Hugging Face names"):
        to_huggingface(DETRdemo())
    with pytest.raises(ValueError, match="backbone is 'torchvision': choose timm or resnet"):
        to_huggingface(build("detr"), backbone="torchvision")


def test_trained_batch_norms_lose_their_counters():
    model = build("detr", backbone_norm="batch")
    state = to_huggingface(model)
    assert not any(name.endswith("num_batches_tracked") for name in state)
    load_huggingface(build("detr", backbone_norm="batch"), state)


def test_channels_last_weights_become_contiguous():
    state = to_huggingface(build("detr").to(memory_format=torch.channels_last))
    assert all(tensor.is_contiguous() for tensor in state.values())
