"""Models by name: options, weights of every kind, and refusals."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace

import pytest
import torch
import torchvision

from detrkit.convert import WeightsError, to_official
from detrkit.models import registry
from detrkit.models.pretrained import PUBLISHED
from detrkit.utils.errors import DetrkitError
from detrkit.weights import build as module
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, save_model

TINY = {
    "backbone": "resnet18",
    "hidden_dim": 32,
    "dim_feedforward": 64,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 5,
}


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Gives a state dict the rank of published weights: writes it and registers its hash under a name."""

    def publish(name, model, options=TINY):
        file = tmp_path / "new.pth"
        torch.save({"model": to_official(model)}, file)
        prefix = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        file = file.rename(tmp_path / f"{name}-{prefix}.pth")
        known = registry.architecture(name)
        row = replace(known.row, file=file.name, url=f"https://dl.fbaipublicfiles.com/detr/{file.name}", sha256=prefix)
        monkeypatch.setitem(PUBLISHED, name, row)
        arch = replace(known, options={**options, **known.options})
        monkeypatch.setitem(registry.ARCHITECTURES._entries, name, arch)
        return file

    return publish


@pytest.mark.parametrize("name", ["detr-r50", "detr-r50-dc5", "detr-r101", "detr-r101-dc5", "detr-demo"])
def test_published_counts_and_dilation(name):
    with torch.device("meta"):
        model = build_model(name)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    published = {"detr-r50": 41_302_368, "detr-r101": 60_242_272}  # official log files, `n_parameters`
    if name in published:
        assert trainable == published[name]
    assert model.class_head.out_features == 92
    assert model.backbone.strides == [16 if name.endswith("dc5") else 32]
    assert model.backbone.padding == "exact"


@pytest.mark.parametrize("name", ["detr-r50-panoptic", "detr-r50-dc5-panoptic", "detr-r101-panoptic"])
def test_published_count_of_the_mask_head(name):
    with torch.device("meta"):
        model = build_model(name)
        boxes = build_model(name, masks=False)
    trainable = sum(p.numel() for p in model.segmentation.parameters() if p.requires_grad)
    assert trainable == 1_333_657
    assert sum(p.numel() for p in model.parameters()) == trainable + sum(p.numel() for p in boxes.parameters())
    assert model.class_head.out_features == boxes.class_head.out_features == 251
    assert model.backbone.strides == [4, 8, 16, 16 if "dc5" in name else 32]
    assert boxes.segmentation is None and boxes.backbone.strides == model.backbone.strides[-1:]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("deformable-detr-r50-single-scale", 33_844_193),
        ("deformable-detr-r50-single-scale-dc5", 33_844_193),
        ("deformable-detr-r50", 39_847_265),
        ("deformable-detr-r50-refine", 40_627_260),
        ("deformable-detr-r50-two-stage", 40_959_129),
    ],
)
def test_published_counts_of_deformable_detr(name, count):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_options_reach_the_model():
    model = build_model("detr-r50", num_classes=7, padding="official", **TINY, pre_norm=True, nheads=4)
    assert model.class_head.out_features == 8 and model.queries.num_embeddings == 5
    assert model.backbone.padding == "official" and model.encoder.norm is not None
    assert len(model.decoder.layers) == 2 and model.encoder.layers[0].self_attention.heads == 4


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown model 'detr-r5': choose one of detr-r50"):
        build_model("detr-r5")
    with pytest.raises(TypeError, match=r"detr-r50 takes no argument num_querys: choose from .*num_queries"):
        build_model("detr-r50", num_querys=1)
    with pytest.raises(TypeError, match="detr-demo takes no argument dilation"):
        build_model("detr-demo", dilation=True)
    with pytest.raises(ValueError, match="at least one class"):
        build_model("detr-r50", num_classes=0)
    with pytest.raises(ValueError, match="weights or backbone_weights"):
        build_model("detr-r50", weights="x", backbone_weights="imagenet")
    with pytest.raises(ValueError, match="dilation=True and backbone='resnet18': torchvision dilates"):
        build_model("detr-r50-dc5", backbone="resnet18")


def test_official_file(tmp_path):
    source = build_model("detr-r50", **TINY)
    torch.save({"model": to_official(source)}, tmp_path / "a.pth")
    assert same(build_model("detr-r50", weights=tmp_path / "a.pth", **TINY), source)
    with pytest.raises(WeightsError, match="num_queries=5"):
        build_model("detr-r50", weights=tmp_path / "a.pth", **TINY | {"num_queries": 6})


def test_published_by_download_and_by_hash(published, monkeypatch, tmp_path):
    torch.manual_seed(1)
    source = build_model("detr-r50", **TINY)
    file = published("detr-r50", source)
    asked = []

    def fake(url, *, sha256_prefix):
        asked.append((url, sha256_prefix))
        return file

    monkeypatch.setattr(module, "download", fake)
    assert same(build_model("detr-r50", weights="published"), source)
    assert asked == [(f"https://dl.fbaipublicfiles.com/detr/{file.name}", file.stem.rsplit("-", 1)[1])]


@pytest.mark.slow
def test_dc5_file_in_a_plain_model_is_an_error(published):
    options = TINY | {"backbone": "resnet50"}
    source = build_model("detr-r50-dc5", **options)
    file = published("detr-r50-dc5", source, options)
    # the tensors fit; only the file's hash tells
    with pytest.raises(DetrkitError, match=r"weights of detr-r50-dc5 with dilation=True, but the model is detr-r50"):
        build_model("detr-r50", weights=file, **options)
    assert same(build_model("detr-r50", weights=file, **options, dilation=True), source)
    assert same(build_model("detr-r50-dc5", weights=file), source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("detr-r50-panoptic", "detr-r50", "with masks=True, but the model is detr-r50 with masks=False"),
        ("detr-r50", "detr-r50-panoptic", "with masks=False, but the model is detr-r50-panoptic with masks=True"),
        ("detr-r50-dc5-panoptic", "detr-r50-panoptic", "dilation=True, but the model is detr-r50-panoptic"),
        ("detr-r101", "detr-r50", "with backbone='resnet101', but the model is detr-r50 with backbone='resnet50'"),
        ("detr-r101-panoptic", "detr-r50-panoptic", "with backbone='resnet101', but"),
        ("detr-demo", "detr-r50", "weights of detr-demo, not of detr-r50"),
    ],
)
def test_published_files_of_other_models(published, name, other, reason):
    options = {k: v for k, v in TINY.items() if k != "backbone"}
    file = published(name, build_model(name, **options), options)
    with pytest.raises(DetrkitError, match=reason) as error:
        build_model(other, weights=file, **options)
    assert "\n" not in str(error.value)
    with pytest.raises(DetrkitError, match=f"these are the published weights of {name}, not of {other}"):
        load_model(file, name=other)
    if name != "detr-demo":
        dilation = "dc5" not in name
        with pytest.raises(DetrkitError, match=f"the file says dilation={not dilation}, not dilation={dilation}"):
            load_model(file, options={"dilation": dilation})


def test_own_checkpoint_declares_its_options(tmp_path):
    source = build_model("detr-r50", **TINY, nheads=4)
    path = save_model(tmp_path / "a.safetensors", source, ModelSpec("detr-r50", {**TINY, "nheads": 4}))
    assert same(build_model("detr-r50", weights=path, **TINY, nheads=4), source)
    assert same(build_model("detr-r50", weights=tmp_path / "a.safetensors", **TINY, nheads=4, dropout=0.0), source)
    with pytest.raises(DetrkitError, match="nheads=4, but the model is detr-r50 with nheads=8"):
        build_model("detr-r50", weights=path, **TINY)
    with pytest.raises(DetrkitError, match="weights of detr-r50, not of detr-demo"):
        build_model("detr-demo", weights=path)


def test_official_training_checkpoint_declares_its_arguments(tmp_path):
    source = build_model("detr-r50", **TINY, pre_norm=True)
    arguments = argparse.Namespace(**TINY, pre_norm=True, dilation=False, masks=False, lr=1e-4)
    torch.save({"model": to_official(source), "args": arguments, "epoch": 2}, tmp_path / "checkpoint.pth")
    assert same(build_model("detr-r50", weights=tmp_path / "checkpoint.pth", **TINY, pre_norm=True), source)
    arguments.nheads = 4
    torch.save({"model": to_official(source), "args": arguments}, tmp_path / "checkpoint.pth")
    with pytest.raises(DetrkitError, match="nheads=4"):
        build_model("detr-r50", weights=tmp_path / "checkpoint.pth", **TINY, pre_norm=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["official", "detrkit"])
def test_another_number_of_classes_starts_a_new_head(tmp_path, caplog, kind):
    source = build_model("detr-r50", **TINY)
    if kind == "official":
        path = tmp_path / "a.pth"
        torch.save({"model": to_official(source)}, path)
    else:
        path = save_model(tmp_path / "a.safetensors", source, ModelSpec("detr-r50", TINY))
    model = build_model("detr-r50", num_classes=3, weights=path, **TINY)
    assert "starts anew: 92 rows in the file, 4 here" in caplog.text
    ours, theirs = model.state_dict(), source.state_dict()
    assert model.class_head.out_features == 4
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs if not k.startswith("class_head."))
    save_model(tmp_path / "b.safetensors", model, ModelSpec("detr-r50", TINY, num_classes=3))
    # without asking for another number it is strict
    with pytest.raises(WeightsError, match=r"class_head.weight is \(4, 32\), the model has \(92, 32\)"):
        build_model("detr-r50", weights=tmp_path / "b.safetensors", **TINY)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_weights(tmp_path, monkeypatch, norm, suffix):
    torch.manual_seed(3)
    resnet = torchvision.models.resnet18()
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(resnet.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(resnet.state_dict(), path)
    model = build_model("detr-r50", backbone_weights=path, backbone_norm=norm, backbone_stage=4, **TINY)
    for name, tensor in model.backbone.body.state_dict().items():
        assert torch.equal(tensor, resnet.state_dict()[name]), name

    asked = []
    monkeypatch.setattr(
        "detrkit.backbones.resnet.download", lambda url, **options: asked.append((url, options)) or path
    )
    build_model("detr-r50", backbone_weights="imagenet", **TINY)
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", {"sha256_prefix": "f37072fd"})]

    with pytest.raises(WeightsError, match="missing"):
        build_model("detr-r50", backbone_weights=path, **TINY | {"backbone": "resnet34"})
    with pytest.raises(ValueError, match="batch statistics"):
        build_model("detr-r50", backbone_weights=path, backbone_norm="group", **TINY)
