"""Backbones of other packages: registered by name, in every model, with exact padding from the base class."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import detrkit
from detrkit.backbones import BACKBONES, Backbone, build_backbone
from detrkit.convert import to_huggingface, to_official
from detrkit.structures.batch import Batch
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.weights.build import load_backbone
from detrkit.weights.checkpoint import ModelSpec, load_model, save_model
from helpers.weights import randomize

TINY = {"hidden_dim": 32, "nheads": 2, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1, "num_queries": 5}
OPTIONS = {**TINY, "backbone": "halving"}
SIZES = [(70, 45), (33, 90), (41, 41)]
# each model's name, and its options beside the backbone
MODELS = {
    "detr-r50": {},
    "detr-r50-panoptic": {"num_classes": 3},
    "deformable-detr-r50": {"masks": True},
    "deformable-detr-r50-two-stage": {},
    "detr-demo": {},
}


class Halving(Backbone):
    """Five convolutions of stride 2, whose biases make padding no zeros."""

    def __init__(self, name, *, stages, padding, **_):
        super().__init__(name, stages=stages, channels={2: 4, 3: 8, 4: 8, 5: 16}, padding=padding)
        widths = (3, 4, 4, 8, 8, 16)[: 1 + max(stages)]
        self.body = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairwise(widths))

    def maps(self, images: Tensor) -> list[Tensor]:
        maps = []
        for convolution in self.body:
            images = convolution(images).relu()
            maps.append(images)
        return maps[1:]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    assert detrkit.register_backbone("halving")(Halving) is Halving


def images(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, *size, generator=generator, dtype=dtype) for size in SIZES]


@pytest.mark.parametrize("name", MODELS)
def test_in_every_model(name, tmp_path):
    model = randomize(detrkit.build_model(name, **OPTIONS, **MODELS[name])).double().eval()
    pictures = images()
    with torch.no_grad():
        together = model(pictures)
        for i, picture in enumerate(pictures):
            alone = model([picture])
            count = alone.logits.shape[1]  # a two-stage model has no more queries than an image has cells
            assert torch.allclose(together.logits[i, :count], alone.logits[0], rtol=0, atol=1e-9)
            assert torch.allclose(together.boxes[i, :count], alone.boxes[0], rtol=0, atol=1e-9)
            if alone.masks is not None:
                h, w = alone.masks.shape[2:]
                assert torch.allclose(together.masks[i, :count, :h, :w], alone.masks[0], rtol=0, atol=1e-5)
        stages = model(pictures, capture=True).capture.stages
    assert [stages[f"backbone.{s}"].shape[1:] for s in (2, 3, 4, 5)] == [
        (4, 18, 23),
        (8, 9, 12),
        (8, 5, 6),
        (16, 3, 3),
    ]
    model = model.float()
    options = {**OPTIONS, **{k: v for k, v in MODELS[name].items() if k != "num_classes"}}
    spec = ModelSpec(name, options, model.num_classes)
    save_model(tmp_path / "model.safetensors", model, spec)
    loaded, read = load_model(tmp_path / "model.safetensors")
    assert read.options["backbone"] == "halving" and isinstance(loaded.backbone, Halving)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_images_of_one_size_run_together():
    backbone = randomize(build_backbone("halving", stages=(4, 5)))
    ran = []
    backbone.body[0].register_forward_hook(lambda module, inputs, output: ran.append(tuple(inputs[0].shape)))
    batch = Batch.from_images([torch.randn(3, *size) for size in [(70, 45), (33, 90), (65, 64), (96, 1)]])
    maps = backbone(batch)
    assert ran == [(2, 3, 96, 64), (1, 3, 64, 96), (1, 3, 96, 32)]
    assert [tuple(m.shape) for m, _ in maps] == [(4, 8, 6, 6), (4, 16, 3, 3)]
    ran.clear()
    backbone.padding = "official"
    assert backbone(batch)[0][0].shape == (4, 8, 6, 6) and ran == [(4, 3, 96, 96)]


def test_what_the_base_refuses():
    def message(call, kind=SettingError):
        with pytest.raises(kind) as error:
            call()
        return str(error.value)

    def build(**options):
        return lambda: detrkit.build_model("detr-r50", **{**OPTIONS, **options})

    assert message(build(dilation=True)) == (
        "dilation=True and backbone='halving': it has no dilated (DC5) form; leave out dilation"
    )
    assert message(build(backbone_width=32)) == (
        "backbone_width=32 and backbone='halving': it has one width; leave it out or give 64"
    )
    assert message(build(backbone_norm="group")).startswith("backbone_norm='group' and backbone='halving': ")
    assert message(build(backbone="halved")).startswith("unknown backbone 'halved'")
    assert message(lambda: build_backbone("halving", stages=(6,))) == (
        "backbone='halving' has no stage 6 (stride 64): its stages are 2, 3, 4, 5; masks need all stages from 2"
    )
    assert message(lambda: load_backbone(build()(), "imagenet")) == (
        "backbone='halving' has no ImageNet weights: give the path of a file, or random"
    )
    with pytest.raises(ValueError, match="there is a backbone 'halving' already"):
        detrkit.register_backbone("halving")(Halving)
    assert message(lambda: to_official(build()()), DetrkitError) == (
        "the official code has no backbone halving, and no names for it: use a detrkit file (.safetensors)"
    )
    assert message(lambda: to_huggingface(build()()), DetrkitError) == (
        "detrkit has no Hugging Face names for the backbone halving: use a detrkit file (.safetensors)"
    )


def test_a_map_of_another_size_is_an_error():
    backbone = build_backbone("halving", stages=(3,))
    backbone.body[0].stride = (1, 1)
    with pytest.raises(ValueError, match=r"halving: the map of stage 3 has \(8, 16\) cells, \(4, 8\) expected"):
        backbone(Batch.from_images([torch.randn(3, 30, 60)]))


def test_weights_of_a_file(tmp_path):
    backbone = randomize(build_backbone("halving"))
    torch.save(backbone.body.state_dict(), tmp_path / "halving.pth")
    model = detrkit.build_model("detr-r50", **OPTIONS, backbone_weights=tmp_path / "halving.pth")
    assert all(
        torch.equal(tensor, backbone.body.state_dict()[name])
        for name, tensor in model.backbone.body.state_dict().items()
    )
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        DetrkitError, match=r"other.pth: these weights do not fit the model \(halving\):\n  missing \(9\): 0.bias"
    ):
        load_backbone(model, tmp_path / "other.pth")


def test_the_example_of_the_pages():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (example,) = re.findall(r"```python\n(from torch import nn\n.*?)```", page, re.DOTALL)
    exec(example, names := {})
    for name, options in (
        ("detr-r50", {}),
        ("detr-r50", {"backbone_stage": 4}),
        ("deformable-detr-r50", {"backbone_stages": (4, 5)}),
    ):
        model = detrkit.build_model(name, **TINY, **options, backbone="patches").double().eval()
        with torch.no_grad():
            together, alone = model(images()), model(images()[:1])
        assert isinstance(model.backbone, names["Patches"])
        assert torch.allclose(together.boxes[0], alone.boxes[0], rtol=0, atol=1e-9)
