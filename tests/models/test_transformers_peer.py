"""The same weights give the same outputs in Hugging Face's implementation."""

from __future__ import annotations

import re

import pytest
import torch

import goldens
from detrkit.build import build_model
from detrkit.convert import load_official
from goldens import filler

transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HIDDEN, QUERIES, LABELS = 2, 64, 128, 12, 7


def official_name(name):
    """The official name of a Hugging Face parameter; q, k and v are packed afterwards."""
    if m := re.match(r"(?:model\.)?backbone\.(?:conv_encoder\.)?model\.(.*)", name):
        rest = m[1].replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        rest = re.sub(
            r"encoder\.stages\.(\d)\.layers\.(\d+)\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.",
            rest,
        )
        rest = re.sub(r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}", rest)
        rest = re.sub(r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}", rest)
        rest = rest.replace(".shortcut.convolution", ".downsample.0").replace(
            ".shortcut.normalization", ".downsample.1"
        )
        return f"backbone.0.body.{rest}"
    name = name.removeprefix("model.")
    for theirs, official in (
        ("class_labels_classifier", "class_embed"),
        ("bbox_predictor", "bbox_embed"),
        ("query_position_embeddings", "query_embed"),
        ("input_projection", "input_proj"),
        ("decoder.layernorm", "transformer.decoder.norm"),
    ):
        if name.startswith(theirs):
            return name.replace(theirs, official)
    name = f"transformer.{name}"
    name = name.replace(".encoder_attn_layer_norm", ".norm2").replace(".encoder_attn", ".multihead_attn")
    name = name.replace(".self_attn_layer_norm", ".norm1")
    name = name.replace(".final_layer_norm", ".norm3" if ".decoder." in name else ".norm2")
    name = name.replace(".mlp.fc1", ".linear1").replace(".mlp.fc2", ".linear2")
    name = name.replace(".fc1", ".linear1").replace(".fc2", ".linear2").replace(".o_proj", ".out_proj")
    return name


def fill(model):
    """Gives a Hugging Face model the values of the goldens' formula; returns the official state dict."""
    state, packed = {}, {}
    for name, tensor in model.state_dict().items():
        official = official_name(name)
        if m := re.search(r"\.([qkv])_proj\.", official):
            packed.setdefault(official.replace(m[0], ".in_proj_"), {})[m[1]] = tensor
        else:
            state[official] = torch.from_numpy(filler.fill(official, tensor.shape))
            tensor.copy_(state[official])
    for official, parts in packed.items():
        shape = (3 * len(parts["q"]), *parts["q"].shape[1:])
        state[official] = torch.from_numpy(filler.fill(official, shape))
        for part, values in zip("qkv", state[official].chunk(3), strict=True):
            parts[part].copy_(values)
    return state


@pytest.fixture(scope="module")
def peers():
    backbone = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[256, 512, 1024, 2048],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
        out_features=["stage4"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=QUERIES,
        num_labels=LABELS,
    )
    theirs = transformers.DetrForObjectDetection(config).eval()
    state = fill(theirs)
    ours = build_model(
        "detr-r50",
        num_classes=LABELS,
        hidden_dim=WIDTH,
        enc_layers=LAYERS,
        dec_layers=LAYERS,
        dim_feedforward=HIDDEN,
        nheads=4,
        num_queries=QUERIES,
        padding="official",
    ).eval()
    load_official(ours, state)
    return ours, theirs


@pytest.mark.parametrize("sizes", [[(128, 160)], [(160, 128), (96, 160)], [(97, 133), (121, 75)]])
def test_same_outputs(peers, sizes):
    ours, theirs = peers
    images = [goldens.image(f"peer{i}", *size) for i, size in enumerate(sizes)]
    pixels = torch.zeros(len(images), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    mask = torch.zeros(len(images), *pixels.shape[-2:], dtype=torch.int64)
    for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        pixels[i, :, :h, :w], mask[i, :h, :w] = image, 1
    with torch.inference_mode():
        a, b = ours(images), theirs(pixels, pixel_mask=mask)
    differences = [float((x - y).abs().max()) for x, y in ((a.logits, b.logits), (a.boxes, b.pred_boxes))]
    print(differences)
    assert differences[0] <= 2e-5 and differences[1] <= 5e-6
    assert float(a.logits.std(1).mean()) > 0.1  # queries differ, so equality says something
