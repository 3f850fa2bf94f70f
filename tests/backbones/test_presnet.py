"""PResNet-vd: transformers' numbers, exact padding, files of ImageNet weights by their own names."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import RTDetrResNetConfig
from transformers.models.rt_detr.modeling_rt_detr_resnet import RTDetrResNetBackbone

from detrkit.backbones import build_backbone
from detrkit.layers.norms import FrozenBatchNorm2d
from detrkit.structures.batch import Batch
from detrkit.utils.errors import SettingError
from helpers.weights import randomize

PARTS = {"branch2a": "layer.0", "branch2b": "layer.1", "branch2c": "layer.2", "short.conv": "shortcut.1"}


def _theirs(name):
    """transformers' name of one of ours."""
    if m := re.fullmatch(r"conv1\.conv1_(\d)(.+)", name):
        name = f"embedder.embedder.{int(m[1]) - 1}{m[2]}"
    name = name.replace("res_layers.", "encoder.stages.").replace(".blocks.", ".layers.")
    for ours, theirs in PARTS.items():
        name = name.replace(f".{ours}.conv.", f".{theirs}.conv.").replace(f".{ours}.norm.", f".{theirs}.norm.")
    name = name.replace(".short.conv.", ".shortcut.conv.").replace(".short.norm.", ".shortcut.norm.")
    return name.replace(".conv.", ".convolution.").replace(".norm.", ".normalization.")


@pytest.mark.parametrize(("name", "norm"), [("presnet18", "batch"), ("presnet50", "frozen")])
@torch.no_grad()
def test_as_transformers(name, norm):
    ours = randomize(build_backbone(name, norm=norm, width=8, stages=(3, 4, 5))).eval()
    bottleneck = name == "presnet50"
    config = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * 2**i * (4 if bottleneck else 1) for i in range(4)],
        depths=[3, 4, 6, 3] if bottleneck else [2, 2, 2, 2],
        layer_type="bottleneck" if bottleneck else "basic",
        out_indices=[2, 3, 4],
    )
    theirs = RTDetrResNetBackbone(config).eval()
    state = {_theirs(n): t for n, t in ours.body.state_dict().items()}
    state |= {n: t for n, t in theirs.state_dict().items() if n.endswith("num_batches_tracked")}
    theirs.load_state_dict(state)
    images = torch.rand(2, 3, 96, 64)
    maps = [x for x, _ in ours(Batch(images, [(96, 64)] * 2))]
    for a, b in zip(maps, theirs(images).feature_maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch():
    backbone = randomize(build_backbone("presnet10", norm="batch", width=8, stages=(3, 4, 5))).eval()
    images = [torch.rand(3, 70, 90), torch.rand(3, 33, 47), torch.rand(3, 96, 64)]
    together = backbone(Batch.from_images(images))
    for i, image in enumerate(images):
        for (x, mask), (alone, _) in zip(together, backbone(Batch.from_images([image])), strict=True):
            h, w = alone.shape[2:]
            torch.testing.assert_close(x[i, :, :h, :w], alone[0], rtol=1e-5, atol=1e-6)
            assert not mask[i, :h, :w].any() and mask[i].sum() == mask[i].numel() - h * w


def test_imagenet_weights(tmp_path):
    source = randomize(build_backbone("presnet18", norm="batch", width=8))
    path = tmp_path / "weights.pth"
    path.touch()
    backbone = build_backbone("presnet18", norm="frozen", width=8, stages=(3,))
    weights = backbone.pretrained_weights(path, lambda _: dict(source.body.state_dict()))
    kept = {n for n in weights.state if not n.endswith("num_batches_tracked")}
    assert kept == set(backbone.body.state_dict()) and not any("res_layers.2" in n for n in kept)
    with pytest.raises(SettingError, match=r"not downloaded, for want of a hash .*/ResNet18_vd_pretrained_from_paddle"):
        backbone.pretrained_weights(None, lambda _: {})
    with pytest.raises(SettingError, match="presnet10 has no ImageNet weights"):
        build_backbone("presnet10", width=8).pretrained_weights(None, lambda _: {})


def test_what_is_frozen():
    frozen = build_backbone("presnet50", width=8, stages=(5,))
    frozen.freeze_early_layers()
    assert not any(p.requires_grad for p in frozen.body.conv1.parameters())
    assert all(p.requires_grad for p in frozen.body.res_layers.parameters())
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules()) == 3 + 3 * 16 + 4
    trained = build_backbone("presnet18", norm="batch", width=8, stages=(5,))
    trained.freeze_early_layers()
    assert all(p.requires_grad for p in trained.parameters())


def test_options_it_does_not_have():
    for options, message in (
        ({"dilation": True}, "no dilated"),
        ({"width": 7}, "half as many channels: such as 6 or 8"),
        ({"norm": "other"}, "unknown backbone norm 'other'"),
        ({"norm": "group", "width": 22}, "half a width that 32 divides"),
    ):
        with pytest.raises(SettingError, match=message):
            build_backbone("presnet18", **options)
