"""ResNets against torchvision's, whole and in padded batches."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from detrkit.backbones import RESNETS, build_backbone
from detrkit.structures.batch import Batch


def _random_statistics(module):
    for part in module.modules():
        if hasattr(part, "running_var"):
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.running_mean, std=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_all_stages_equal_torchvision(name, norm):
    theirs = getattr(torchvision.models, name)().eval()
    _random_statistics(theirs)
    ours = build_backbone(name, norm=norm, stages=(2, 3, 4, 5)).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.body.load_state_dict(state)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        maps = ours(Batch.from_images(list(x)))
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for i, (feature, padding) in enumerate(maps):
            y = getattr(theirs, f"layer{i + 1}")(y)
            assert torch.allclose(feature, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
            assert feature.shape[1] == ours.channels[i]
            assert feature.shape[2:] == padding.shape[1:] == (-(-65 // ours.strides[i]), -(-97 // ours.strides[i]))
            assert not padding.any()


def test_dc5_dilates_only_the_later_blocks():
    ours = build_backbone("resnet50", dilation=True)
    blocks = [(block.conv2.stride, block.conv2.dilation) for block in ours.body.layer4]
    assert blocks == [((1, 1), (1, 1)), ((1, 1), (2, 2)), ((1, 1), (2, 2))]
    assert ours.strides == [16]


@pytest.mark.parametrize("name", ["resnet10", "resnet18", "resnet34"])
def test_what_cannot_be_dilated(name):
    with pytest.raises(ValueError, match="no dilated"):
        build_backbone(name, dilation=True)


def test_unknown_names():
    with pytest.raises(ValueError, match="resnet10, resnet18"):
        build_backbone("resnet51")
    with pytest.raises(ValueError, match="frozen, group, batch"):
        build_backbone("resnet18", norm="layer")


def test_published_freezing():
    backbone = build_backbone("resnet18")
    backbone.freeze_early_layers()
    trained = {n.split(".")[0] for n, p in backbone.body.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    everything = build_backbone("resnet18", norm="group")
    everything.freeze_early_layers()
    assert all(p.requires_grad for p in everything.parameters())


def test_unused_stages_are_not_built():
    backbone = build_backbone("resnet18", stages=(4,))
    assert not hasattr(backbone.body, "layer4") and not hasattr(backbone.body, "fc")
    assert backbone.strides == [16] and backbone.channels == [256]


def test_narrow_ones():
    narrow, full = build_backbone("resnet10", norm="group", width=16), build_backbone("resnet10", norm="group")
    assert narrow.channels == [128] and full.channels == [512]
    ratio = sum(p.numel() for p in full.parameters()) / sum(p.numel() for p in narrow.parameters())
    assert 14 < ratio < 16.5
    with torch.no_grad():
        ((feature, _),) = narrow(Batch.from_images([torch.randn(3, 64, 64)]))
    assert feature.shape == (1, 128, 2, 2) and 0.01 < float(feature.std()) < 100
    assert "resnet10" in RESNETS


@pytest.mark.parametrize("norm", ["frozen", "group", "batch"])
@pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet50", True)])
def test_padding_does_not_leak(name, dilation, norm):
    torch.manual_seed(4)
    backbone = build_backbone(name, dilation=dilation, norm=norm, width=16, stages=(3, 4, 5)).eval()
    _random_statistics(backbone)
    images = [torch.randn(3, *size) for size in [(70, 45), (33, 90), (41, 41)]]
    with torch.no_grad():
        together = backbone(Batch.from_images(images))
        for i, image in enumerate(images):
            for (feature, padding), (alone, _) in zip(together, backbone(Batch.from_images([image])), strict=True):
                h, w = alone.shape[-2:]
                limit = 2e-5 * float(alone.abs().max())  # 1.1e-5 with AVX-512 on Intel: other tiles, another order
                assert float((feature[i, :, :h, :w] - alone[0]).abs().max()) <= limit
                assert not padding[i, :h, :w].any() and padding[i, h:].all() and padding[i, :, w:].all()
                assert not feature[i, :, h:].any() and not feature[i, :, :, w:].any()
