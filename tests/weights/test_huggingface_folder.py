"""Directories that transformers reads and writes: the same outputs, without a network, and names that travel."""

from __future__ import annotations

import json
import logging
import os
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import goldens
from detrkit.convert import load_huggingface
from detrkit.detector import load
from detrkit.models.registry import architecture
from detrkit.models.settings import constructor_defaults
from detrkit.structures.batch import Batch
from detrkit.structures.classes import ClassList
from detrkit.structures.coco_classes import COCO_91, COCO_250
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, save_huggingface

CLASSES = ClassList(("cat", "dog", "sky"), (17, 18, 40), (True, True, False))
SMALL = {"hidden_dim": 128, "dim_feedforward": 64, "enc_layers": 2, "dec_layers": 3, "num_queries": 12}
TINY = {"backbone": "resnet18", "hidden_dim": 128, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1}
# name, options, names of the backbone's weights
MODELS = {
    "detr": ("detr-r50", {}, None),
    "detr-timm": ("detr-r50", {}, "timm"),
    "learned": ("detr-r50", {"position_embedding": "learned", "nheads": 4}, None),
    "resnet101": ("detr-r101", {"enc_layers": 1, "dec_layers": 1}, None),
    "narrow-resnet10": ("detr-r50", {"backbone": "resnet10", "backbone_width": 16}, None),
    "dc5": ("detr-r50-dc5", {}, None),
    "panoptic": ("detr-r50-panoptic", {"hidden_dim": 256}, None),
    "narrow-panoptic": ("detr-r50-panoptic", {}, None),
    "panoptic-dc5": ("detr-r50-dc5-panoptic", {"hidden_dim": 256}, None),
    "single-scale": ("deformable-detr-r50-single-scale", {}, None),
    "single-scale-dc5": ("deformable-detr-r50-single-scale-dc5", {}, None),
    "base": ("deformable-detr-r50", {"enc_n_points": 2, "dec_n_points": 3}, None),
    "base-timm": ("deformable-detr-r50", {}, "timm"),
    "deformable-learned": ("deformable-detr-r50-two-stage", {"position_embedding": "learned"}, None),
    "two-stages-read": ("deformable-detr-r50", {"backbone_stages": (4, 5), "num_feature_levels": 3}, None),
    "refine": ("deformable-detr-r50-refine", {}, None),
    "two-stage": ("deformable-detr-r50-two-stage", {}, None),
}
SIZES = [[(128, 160)], [(97, 133), (121, 75)]]


def written(folder, name, options, backbone=None, seed=0, classes=CLASSES):
    """A model with the formula's weights and its directory."""
    spec = ModelSpec(name, options, num_classes=len(classes), classes=classes, size=320, max_size=640)
    model = goldens.fill(spec.build(), seed).eval()
    return model, spec, save_huggingface(folder, model, spec, backbone=backbone)


def whole(spec):
    """All options of a model, also those that have their defaults."""
    known = architecture(spec.name)
    return {**constructor_defaults(known.build), **known.options, **spec.options}


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def in_transformers(folder, monkeypatch, caplog):
    """The directory as transformers' users load it, with no network and nothing to complain of."""
    transformers = pytest.importorskip("transformers")

    def no_network(*_, **__):
        raise AssertionError("from_pretrained went to the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    config = transformers.AutoConfig.from_pretrained(folder)
    (kind,) = config.architectures
    logging.getLogger("transformers").propagate = True
    model, found = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found  # nothing missing, left over or of another shape
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    return model.eval()


def assert_same_outputs(ours, theirs, images, logits=1e-4, boxes=1e-5, masks=3e-4):
    """Rounded otherwise: ours are computed by other kernels, with the backbone's norms folded."""
    goldens.set_padding(ours, "official")
    batch = Batch.from_images(images)
    with torch.inference_mode():
        a, b = ours(batch), theirs(batch.images, pixel_mask=(~batch.mask()).long())
    assert float(a.logits.std(1).mean()) > 0.1  # queries differ, so equality says something
    found = [float((x - y).abs().max()) for x, y in ((a.logits, b.logits), (a.boxes, b.pred_boxes))]
    if a.masks is not None:
        assert float(a.masks.std()) > 0.1
        found.append(float((a.masks - b.pred_masks).abs().max()))
    print([f"{d:.1e}" for d in found])
    assert all(d <= most for d, most in zip(found, (logits, boxes, masks)[: len(found)], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_both_ways(kind, tmp_path, monkeypatch, caplog):
    name, options, backbone = MODELS[kind]
    if backbone == "timm" or "dc5" in kind:
        pytest.importorskip("timm")
    ours, spec, folder = written(tmp_path / "ours", name, SMALL | options, backbone)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    back, read = load_model(folder)
    assert same(back, ours) and read.name == name and whole(read) == whole(spec)
    assert (read.classes, read.size, read.max_size, read.mean) == (CLASSES, 320, 640, spec.mean)
    theirs = in_transformers(folder, monkeypatch, caplog)
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "sky"}
    for i, sizes in enumerate(SIZES):
        assert_same_outputs(ours, theirs, [goldens.image(f"folder{i}-{j}", *size) for j, size in enumerate(sizes)])
    load_huggingface(back, theirs.state_dict())  # whose names in memory are others
    assert same(back, ours)
    theirs.save_pretrained(tmp_path / "theirs")
    again, read = load_model(tmp_path / "theirs")
    assert same(again, ours) and (read.name, read.classes) == (name, CLASSES)
    assert whole(read) == whole(spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("detr_resnet50", "detr-r50"),
        ("detr_resnet50_panoptic", "detr-r50-panoptic"),
        ("deformable_multi_scale", "deformable-detr-r50"),
        ("deformable_refine", "deformable-detr-r50-refine"),
        ("deformable_two_stage", "deformable-detr-r50-two-stage"),
    ],
)
def test_published_sizes(variant, name, tmp_path, monkeypatch, caplog):
    """On the goldens' pictures, whose proposals differ enough to have one order."""
    ours = goldens.model(variant)
    classes = COCO_250 if "panoptic" in variant else COCO_91
    spec = ModelSpec(name, num_classes=len(classes), classes=classes)
    theirs = in_transformers(save_huggingface(tmp_path / "ours", ours, spec), monkeypatch, caplog)
    (case,) = (c for c in goldens.cases("model_forward") if c["file"] == f"{variant}__batch.npz")
    assert_same_outputs(ours, theirs, goldens.images(case), logits=6e-5, boxes=1e-5, masks=6e-4)


@pytest.mark.slow
def test_input_is_prepared_alike(tmp_path):
    transformers = pytest.importorskip("transformers")
    _, _, folder = written(tmp_path / "ours", "detr-r50", TINY)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 1200, 3), dtype=np.uint8))
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    ours = load(folder, device="cpu").processor([picture]).images[0]
    assert theirs[0].shape == ours.shape == (3, 256, 640)  # the longest side counts
    assert float((theirs[0] - ours).abs().max()) < 0.02  # roundings of a resize: 1/255 is 0.0175 normalized
    spec = ModelSpec("detr-r50", TINY, num_classes=2, size=100, max_size=None)
    folder = save_huggingface(tmp_path / "endless", spec.build(), spec)
    assert transformers.AutoImageProcessor.from_pretrained(folder)(picture)["pixel_values"][0].shape == (3, 100, 250)
    assert load_model(folder)[1].max_size is None and load_model(folder)[1].classes is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tiny") / "a", "detr-r50", TINY)[2]


def edited(folder, file="config.json", drop=(), **fields):
    """Changes fields of a configuration file."""
    path = folder / file
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in drop}))


@pytest.mark.slow
def test_published_configuration_of_transformers_4(tmp_path):
    """The fields of facebook/detr-resnet-50-panoptic's config.json: what is default is left out."""
    ours, _, folder = written(
        tmp_path / "a", "detr-r50-dc5-panoptic", SMALL | {"hidden_dim": 256}, "timm", classes=COCO_250
    )
    edited(folder, drop=("detrkit", "backbone_config", "use_timm_backbone", "position_embedding_type"), max_length=20)
    (folder / "preprocessor_config.json").unlink()
    back, spec = load_model(folder)
    assert same(back, ours) and back.backbone.strides[-1] == 16
    assert spec.name == "detr-r50-dc5-panoptic" and spec.classes == COCO_250  # with ids and stuff
    assert (spec.size, spec.max_size) == (800, 1333)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 600, "max_size": 900}))
    assert (load_model(folder)[1].size, load_model(folder)[1].max_size) == (600, 900)


@pytest.mark.slow
def test_other_files_of_weights(tmp_path):
    ours, _, folder = written(tmp_path / "a", "detr-r50", TINY)
    state = load_file(folder / "model.safetensors")
    assert same(load_model(folder / "model.safetensors")[0], ours)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DetrkitError, match=r"no weights in this directory, expected .* config\.json with model\.safe"):
        load_model(folder)
    torch.save(state, folder / "pytorch_model.bin")
    assert same(load_model(folder)[0], ours)
    (folder / "pytorch_model.bin").unlink()
    names = list(state)
    table = {n: f"model-{1 + (i % 2)}.safetensors" for i, n in enumerate(names)}
    for file in set(table.values()):
        save_file({n: state[n] for n in names if table[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert same(load_model(folder)[0], ours)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(DetrkitError, match=r"weight_map: .*model-2\.safetensors is not there"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(DetrkitError, match=r"index\.json: damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../x/model.safetensors", "'../x/model.safetensors' leads out of the folder of the index"),
        ("/etc/hostname", "is an absolute path"),
        ("https://example.org/a/../../../b.safetensors", "leads out of|is not there"),
        ("a\x00b", "holds a control character"),
        (5, "the name of a file in this folder expected, not 5"),
        (None, "the name of a file in this folder expected, not null"),
        (["model.safetensors"], "the name of a file in this folder expected"),
        ("model-1.safetensors", r"model-1\.safetensors is not there"),
        ("pipe", r"pipe is not there \(or no regular file\)"),
        ("folder", r"folder is not there \(or no regular file\)"),
        ("", "is empty"),
    ],
)
def test_an_index_opens_regular_files_of_its_folder_alone(tmp_path, shard, message):
    folder = tmp_path / "a"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (tmp_path / "x").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "x" / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "detr"}')
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"class_labels_classifier.weight": shard}}))
    with pytest.raises(DetrkitError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value) and str(index) in str(error.value)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": 3}', '{"weight_map": {}}', "{", "[" * 100_000])
def test_what_is_no_index(tmp_path, content):
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DetrkitError, match=r"index\.json: ") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_names_that_somebody_changed(tmp_path):
    _, _, folder = written(tmp_path / "a", "detr-r50", TINY)
    edited(folder, id2label={"0": "CAT", "1": "dog", "2": "sky"})
    assert load_model(folder)[1].classes == ClassList(("CAT", "dog", "sky"), (0, 1, 2))
    edited(folder, id2label={str(i): f"LABEL_{i}" for i in range(3)})
    assert load_model(folder)[1].classes is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            "config.json",
            {"model_type": "yolos"},
            "model_type is 'yolos': detrkit has detr, deformable_detr, rt_detr, rt",
        ),
        ("config.json", {"activation_function": "gelu"}, "activation_function is 'gelu': detrkit has 'relu'"),
        ("config.json", {"decoder_ffn_dim": 5}, "decoder_ffn_dim is 5, encoder_ffn_dim 32: detrkit has them equal"),
        ("config.json", {"id2label": {"0": "cat"}}, "id2label names 1 labels, the weights have 3"),
        ("config.json", {"id2label": {"a": "cat"}}, "id2label must name labels by number"),
        ("config.json", {"backbone_config": {"model_type": "swin"}}, "the backbone is 'swin': detrkit has resnet10"),
        ("config.json", {"backbone_config": {"model_type": "resnet", "depths": [9, 9, 9, 9]}}, "the backbone is .*9"),
        ("config.json", {"backbone_config": None, "backbone": "resnet50d"}, "the backbone is 'resnet50d'"),
        (
            "config.json",
            {"backbone_config": {"model_type": "resnet", "embedding_size": None}},
            "backbone_config.embedding_size is None: must be a whole number",
        ),
        ("config.json", {"backbone_config": [1]}, r"backbone_config is \[1\]: must be an object"),
        ("config.json", {"num_queries": 7}, r"these weights do not fit(.|\n)*num_queries=100"),
        ("preprocessor_config.json", {"size": {"height": 8, "width": 9}}, "detrkit resizes by the short side"),
        ("preprocessor_config.json", {"rescale_factor": "a"}, "rescale_factor is 'a': must be a number"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize is false"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor is 1.0: detrkit has 1/255"),
    ],
)
def test_what_detrkit_does_not_have(tiny, tmp_path, file, fields, message):
    folder = tmp_path / "a"
    folder.mkdir()
    for part in tiny.iterdir():  # its configuration is changed, its weights are not
        (folder / part.name).write_bytes(part.read_bytes()) if part.suffix == ".json" else os.link(
            part, folder / part.name
        )
    edited(folder, file, **fields)
    with pytest.raises(DetrkitError, match=message) as error:
        load_model(folder)
    assert str(folder) in str(error.value)


def test_what_transformers_does_not_have(tmp_path):
    for name, options, message in (
        ("detr-r50", {"pre_norm": True}, r"transformer\.encoder\.norm\.weight"),
        ("detr-r50", {"backbone_norm": "group"}, "backbone_norm='group'"),
        ("detr-r50", {"position_embedding": "learned", "position_entries": 9}, "position_entries"),
        ("detr-r50", {"backbone_stage": 4}, "backbone_stage"),
        ("detr-r50-panoptic", {"hidden_dim": 48}, "mask head normalizes in 8 groups"),
        ("deformable-detr-r50", {"masks": True}, "no Deformable DETR with masks"),
        ("detr-demo", {}, "DETRdemo has no Hugging Face names"),
    ):
        spec = ModelSpec(name, TINY | options)
        with pytest.raises(DetrkitError, match=message):
            save_huggingface(tmp_path / "a", spec.build(), spec)
    for options, backbone, message in (
        ({"backbone": "resnet50", "dilation": True}, "resnet", "no dilation"),
        ({"backbone": "resnet10"}, "timm", "timm has no resnet10"),
    ):
        spec = ModelSpec("detr-r50", TINY | options)
        with pytest.raises(DetrkitError, match=message):
            save_huggingface(tmp_path / "a", spec.build(), spec, backbone=backbone)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    spec = ModelSpec("detr-r50", TINY)
    model = spec.build()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(DetrkitError, match="there is something in this directory"):
        save_huggingface(tmp_path / "full", model, spec)

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detrkit.weights.checkpoint.save_file", no_space)
    with pytest.raises(DetrkitError, match="No space left"):
        save_huggingface(tmp_path / "a", model, spec)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


@pytest.mark.slow
def test_wherever_a_checkpoint_is_taken(tmp_path, capsys):
    """`detrkit.load`, predict, convert, and weights of a new model."""
    from detrkit.cli.convert import Convert
    from detrkit.cli.predict import Predict

    ours, spec, folder = written(tmp_path / "a", "detr-r50", TINY)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    found = load(folder, device="cpu").predict(picture, threshold=0.0)
    assert set(found.names) <= set(CLASSES.names) and len(found) > 0
    assert Predict(str(folder), (str(tmp_path / "a.png"),), out=tmp_path / "out", device="cpu", size=32).run() == 0
    assert Convert(folder, tmp_path / "b.safetensors").run() == 0
    assert Convert(tmp_path / "b.safetensors", tmp_path / "c").run() == 0
    assert Convert(tmp_path / "c", tmp_path / "d.pth").run() == 0
    back, read = load_model(tmp_path / "d.pth")
    assert same(back, ours) and read.classes == CLASSES and whole(read) == whole(spec)
    assert "detr-r50, 3 classes" in capsys.readouterr().out
    built = build_model("detr-r50", num_classes=3, weights=folder, **TINY)
    assert same(built, ours)
    with pytest.raises(DetrkitError, match="with hidden_dim=128, but the model is detr-r50 with hidden_dim=64"):
        build_model("detr-r50", num_classes=3, weights=folder, **TINY | {"hidden_dim": 64})
    with pytest.raises(DetrkitError, match="weights of detr-r50, not of detr-r101"):
        load_model(folder, name="detr-r101")
