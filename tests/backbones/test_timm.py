"""Networks of timm as backbones: what they compute, what they refuse, where their weights come from."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.modules.batchnorm import _BatchNorm

from detrkit.backbones import build_backbone
from detrkit.models.spec import ModelSpec
from detrkit.structures.batch import Batch
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.weights.build import build_model, load_backbone
from helpers.file_server import serving
from helpers.weights import randomize

timm = pytest.importorskip("timm")

SIZES = [(70, 45), (33, 90), (41, 41), (64, 96)]
# convolutions with layer norm, with batch norm, with squeeze-and-excitation, windows (channels last), plain transformer
NETWORKS = {
    "test_convnext": (2, 3, 4, 5),
    "test_resnet": (3, 4, 5),
    "efficientnet_lite0": (3, 4),
    "mobilenetv3_small_050": (4, 5),
    "regnetx_002": (5,),
    "swin_tiny_patch4_window7_224": (3, 4, 5),
    "test_vit": (4,),
}
TINY = {
    "num_classes": 3,
    "hidden_dim": 32,
    "nheads": 2,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 5,
}


def images(sizes=SIZES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_padding_does_not_leak(name):
    backbone = randomize(build_backbone(f"timm:{name}", stages=NETWORKS[name])).double().eval()
    with torch.no_grad():
        together = backbone(Batch.from_images(images()))
        for i, image in enumerate(images()):
            alone = backbone(Batch.from_images([image]))
            for stride, channels, (feature, padding), (own, _) in zip(
                backbone.strides, backbone.channels, together, alone, strict=True
            ):
                h, w = (-(-side // stride) for side in SIZES[i])
                assert own.shape == (1, channels, h, w) and feature.shape == (
                    4,
                    channels,
                    -(-70 // stride),
                    -(-96 // stride),
                )
                assert float((feature[i, :, :h, :w] - own[0]).abs().max()) <= 1e-12 * float(own.abs().max())
                assert not feature[i, :, h:].any() and not feature[i, :, :, w:].any()
                assert not padding[i, :h, :w].any() and padding[i, h:].all() and padding[i, :, w:].all()
        backbone.padding = "official"
        leaking = backbone(Batch.from_images(images()))[-1][0]
    difference = (leaking[2] - together[-1][0][2])[:, : 41 // backbone.strides[-1], : 41 // backbone.strides[-1]]
    assert float(difference.abs().max()) > 1e-6  # so the test would see it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224"])
def test_maps_are_timms(name):
    """On an image of a size that needs no padding, and cut to its cells on another."""
    backbone = randomize(build_backbone(f"timm:{name}", stages=(3, 5))).eval()
    extra = {"dynamic_img_size": True} if "swin" in name else {}
    theirs = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3), **extra).eval()
    theirs.load_state_dict(backbone.body.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = [y.permute(0, 3, 1, 2) if "swin" in name else y for y in theirs(image)]
        ours = backbone(Batch.from_images(list(image)))
        every = backbone(Batch.from_images(list(image)), every_stage=True)
        cut = backbone(Batch.from_images(list(image[..., :60, :90])))
        padded = image.clone()
        padded[..., 60:, :] = padded[..., 90:] = 0
        last = theirs(padded)[1]
    assert torch.equal(ours[0][0], expected[1]) and torch.equal(ours[1][0], expected[3])
    assert all(torch.equal(a, b) for (a, _), b in zip(every, expected, strict=True))
    last = last.permute(0, 3, 1, 2) if "swin" in name else last
    assert cut[0][0].shape[2:] == (8, 12) and torch.equal(cut[0][0], last)


def test_frozen_and_trained_batch_norms():
    frozen, trained = (build_backbone("timm:test_resnet", norm=norm).train() for norm in ("frozen", "batch"))
    batch = Batch.from_images(images(dtype=torch.float32)[:2])
    for backbone, changes in ((frozen, False), (trained, True)):
        before = {name: tensor.clone() for name, tensor in backbone.named_buffers()}
        backbone(batch)[0][0].sum().backward()
        changed = {name for name, tensor in backbone.named_buffers() if not torch.equal(tensor, before[name])}
        assert changed == (set(before) if changes else set())
        factors = [p for m in backbone.modules() if isinstance(m, _BatchNorm) for p in m.parameters()]
        assert factors and all(p.requires_grad == changes for p in factors)
        assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
    assert frozen.state_dict().keys() == trained.state_dict().keys()
    assert frozen.mean == (0.5, 0.5, 0.5) and build_backbone("timm:test_efficientnet").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "stages"), [("efficientnet_lite0", (3, 4)), ("hrnet_w18_small", (4,)), ("test_vit", (4,))]
)
def test_every_trained_parameter_has_a_gradient(name, stages):
    """Processes that train together wait for the gradient of every parameter."""
    backbone = build_backbone(f"timm:{name}", stages=stages, norm="batch")
    sum(feature.sum() for feature, _ in backbone(Batch.from_images(images(dtype=torch.float32)))).backward()
    assert {n for n, p in backbone.named_parameters() if p.grad is None} == {
        n for n, p in backbone.named_parameters() if not p.requires_grad
    }


def test_gradient_checkpointing():
    backbone = randomize(build_backbone("timm:test_convnext", stages=(3, 5))).double()
    gradients = []
    for on in (False, True):
        backbone.zero_grad()
        backbone.checkpointing = on
        sum(feature.square().sum() for feature, _ in backbone(Batch.from_images(images()))).backward()
        gradients.append([p.grad.clone() for p in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dilation():
    plain, dilated = (build_backbone("timm:test_resnet", stages=(4, 5), dilation=d).eval() for d in (False, True))
    assert plain.strides == [16, 32] and dilated.strides == [16, 16]
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in dilated.state_dict().items()}
    with torch.no_grad():
        maps = dilated(Batch.from_images(images(dtype=torch.float32)))
    assert [tuple(m.shape[2:]) for m, _ in maps] == [(5, 6), (5, 6)]


UNLISTED = "timm.list_models() names those of timm"
RESNET = "backbone='timm:test_resnet'"
REFUSED = [
    ({"name": "timm:convnext_tyny"}, f"unknown backbone 'timm:convnext_tyny' (timm:convnext_tiny?): {UNLISTED}"),
    ({"name": "timm:hf-hub:a/b"}, f"unknown backbone 'timm:hf-hub:a/b': {UNLISTED}"),
    ({"name": "timm:local-dir:/x"}, f"unknown backbone 'timm:local-dir:/x': {UNLISTED}"),
    ({"name": "timm:../test_resnet"}, f"unknown backbone 'timm:../test_resnet': {UNLISTED}"),
    (
        {"name": "timm:test_resnet.x"},
        "unknown backbone 'timm:test_resnet.x': timm's weights of test_resnet are r160_in1k",
    ),
    ({"name": "timm:"}, "backbone='timm:': a name must follow the colon"),
    (
        {"norm": "group"},
        f"backbone_norm='group' and {RESNET}: it has norms of its own; choose frozen for pretrained weights or batch "
        "for random ones",
    ),
    ({"width": 32}, f"backbone_width=32 and {RESNET}: it has one width; leave it out or give 64"),
    (
        {"name": "timm:test_vit"},
        "backbone='timm:test_vit' has no stage 5 (stride 32): its stages are 4; masks need all stages from 2",
    ),
    (
        {"name": "timm:test_vit", "stages": (3,)},
        "backbone='timm:test_vit': it has no map of stride 8 or finer; its first stage is 4",
    ),
    (
        {"name": "timm:convmixer_768_32"},
        "backbone='timm:convmixer_768_32': it has no map of stride 32 or finer; its strides are none of 4, 8, 16, 32",
    ),
    (
        {"name": "timm:maxvit_tiny_tf_224"},
        "backbone='timm:maxvit_tiny_tf_224': it does not take images of any size (height (24) must be divisible by "
        "window (7))",
    ),
    (
        {"name": "timm:vgg11", "dilation": True},
        "dilation=True and backbone='timm:vgg11': timm has no dilated (DC5) form of it; leave out dilation",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_is_refused(options, message):
    with pytest.raises(SettingError) as error:
        build_backbone(**{"name": "timm:test_resnet", **options})
    assert str(error.value) == message


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingError) as error:
        build_model("detr-r50", backbone="timm:test_resnet", **TINY)
    assert str(error.value) == "backbone='timm:test_resnet' needs timm: pip install 'detrkit[timm]'"


def test_a_checkpoint_names_no_address():
    spec = json.loads(ModelSpec("detr-r50", {"backbone": "timm:test_resnet", **TINY}).to_json())
    spec["options"].pop("num_classes")
    assert ModelSpec.from_json(spec).options["backbone"] == "timm:test_resnet"
    spec["options"]["backbone"] = "timm:hf-hub:someone/model"
    with pytest.raises(DetrkitError, match="unknown backbone 'timm:hf-hub:someone/model'"):
        ModelSpec.from_json(spec)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """timm's own file of a whole test_convnext, with its classifier."""
    network = randomize(timm.create_model("test_convnext"))
    path = tmp_path_factory.mktemp("weights") / "test_convnext.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def _equal(body, network):
    ours, theirs = body.state_dict(), network.state_dict()
    return all(
        torch.equal(tensor, theirs[name.replace("stages_", "stages.").replace("stem_", "stem.")])
        for name, tensor in ours.items()
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(weights, tmp_path, suffix):
    network, path = weights
    if suffix == ".pth":
        path = tmp_path / "test_convnext.pth"
        torch.save({"model": network.state_dict()}, path)
    state = torch.get_rng_state()
    model = build_model("detr-r50", backbone="timm:test_convnext", backbone_weights=path, **TINY)
    assert _equal(model.backbone.body, network)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    build_model("detr-r50", backbone="timm:test_convnext", **TINY)
    assert torch.equal(torch.get_rng_state(), after)  # loading draws no random numbers


def test_weights_that_do_not_fit(weights, tmp_path):
    network, path = weights
    model = build_model("detr-r50", backbone="timm:test_resnet", **TINY)
    with pytest.raises(DetrkitError, match=r"test_convnext.safetensors: no weights of timm:test_resnet \("):
        load_backbone(model, path)
    some = tmp_path / "some.safetensors"
    save_file({name: t for name, t in network.state_dict().items() if not name.startswith("stages.3.")}, some)
    model = build_model("detr-r50", backbone="timm:test_convnext", **TINY)
    with pytest.raises(
        DetrkitError, match=r"some.safetensors: no weights of timm:test_convnext \(\d+ tensors are missing, as stages_3"
    ):
        load_backbone(model, some)


def test_weights_that_timm_downloads(weights, tmp_path, monkeypatch):
    network, path = weights
    config = timm.get_pretrained_cfg("test_convnext")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    configs = timm.models._registry._model_pretrained_cfgs
    with serving(path.read_bytes(), "/test_convnext.safetensors") as server:
        monkeypatch.setitem(configs, "test_convnext", replace(config, url=server.url, hf_hub_id=None))
        model = build_model("detr-r50", backbone="timm:test_convnext", backbone_weights="imagenet", **TINY)
        assert _equal(model.backbone.body, network) and server.requests == [None]
        server.status[:] = [404] * 9
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
        with pytest.raises(DetrkitError) as error:
            load_backbone(model, "imagenet")
    assert "\n" not in str(error.value) and str(error.value).startswith(
        "the weights of timm:test_convnext cannot be downloaded (HTTPError: HTTP Error 404"
    )
    assert str(error.value).endswith("give the path of a file, or random")
    with pytest.raises(
        SettingError, match="timm has no weights of timm:test_resnet: give the path of a file, or random"
    ):
        monkeypatch.setitem(configs, "test_resnet", replace(config, url="", hf_hub_id=None))
        load_backbone(build_model("detr-r50", backbone="timm:test_resnet", **TINY), "imagenet")
