"""Files of RT-DETR: of the official code's two versions and of transformers, both ways."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import RTDetrForObjectDetection, RTDetrV2ForObjectDetection

from detrkit.convert import to_official
from detrkit.structures.coco_classes import COCO_80
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, save_huggingface, save_model
from helpers.rtdetr_peer import SMALL, peer, small

OPTIONS = {**{k: v for k, v in SMALL.items() if k != "num_classes"}, "backbone": "presnet10"}


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("name", "points"), [("rtdetr-r18", {}), ("rtdetrv2-r18", {"level_points": (4, 2, 1)})])
def test_official_files(tmp_path, name, points):
    """The averaged weights are taken, whose figures are published; sizes, points and heads show in the tensors."""
    model = small(name, backbone="presnet18", backbone_norm="batch", **points)
    entries = to_official(model)
    second = name.startswith("rtdetrv2")
    assert ("decoder.enc_output.proj.weight" in entries, "decoder.anchors" in entries) == (second, second)
    assert "backbone.res_layers.1.blocks.0.short.conv.conv.weight" in entries
    assert f"encoder.input_proj.0.{'conv' if second else '0'}.weight" in entries
    other = {n: torch.zeros_like(t) for n, t in entries.items()}
    path = tmp_path / "a.pth"
    torch.save({"date": "2024", "last_epoch": 71, "model": other, "ema": {"module": entries, "updates": 5}}, path)
    loaded, spec = load_model(path, options=None if second else {"nheads": 4})
    assert spec.name == name and spec.num_classes == 5 and same(loaded, model)
    assert (spec.size, spec.square, spec.mean) == (640, True, (0.0,) * 3)
    assert spec.options.get("level_points", ()) == points.get("level_points", ())
    # what only inference heeds may be asked for otherwise
    asked = {
        **OPTIONS,
        **points,
        "backbone": "presnet18",
        "backbone_norm": "batch",
        "num_queries": 70,
        "eval_layers": 2,
    }
    saved = save_model(tmp_path / "b.safetensors", loaded, spec)
    again = build_model(name, num_classes=5, weights=saved, **asked)
    assert again.num_queries == 70 and same(again, model)


def test_anchors_are_those_of_the_original_code():
    """Of 640 x 640: level by level the cells' centers, sides of 0.05, 0.1 and 0.2; infinite near the border."""
    entries = to_official(small("rtdetrv2-r18"))
    anchors, valid = entries["decoder.anchors"], entries["decoder.valid_mask"]
    assert anchors.shape == (1, 8400, 4) and valid.shape == (1, 8400, 1) and valid.dtype == torch.bool
    boxes = anchors.sigmoid()
    torch.testing.assert_close(boxes[0, 80 * 40 + 40], torch.tensor([40.5 / 80, 40.5 / 80, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 6400 + 40 * 3 + 5], torch.tensor([5.5 / 40, 3.5 / 40, 0.1, 0.1]))
    assert torch.isinf(anchors[0, 0]).all() and not valid[0, 0] and valid.sum() == 78 * 78 + 1600 + 400
    scale = entries["decoder.decoder.layers.2.cross_attn.num_points_scale"]
    assert scale.tolist() == [0.25] * 12


@pytest.mark.parametrize("name", ["rtdetr-r18", "rtdetrv2-r18"])
@torch.no_grad()
def test_a_folder_of_transformers(tmp_path, name):
    """Its model and image processor are read, and what detrkit writes is read by transformers: the same outputs."""
    reference = peer(name).eval()
    reference.save_pretrained(tmp_path / "theirs")
    processor = {"do_normalize": False, "size": {"height": 96, "width": 96}, "image_mean": [0.5, 0.5, 0.5]}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
    model, spec = load_model(tmp_path / "theirs")
    assert spec.name == name.replace("r18", "r50")  # of a backbone that no published model has
    assert (spec.size, spec.square, spec.max_size) == (96, True, None)
    assert (spec.mean, spec.std) == ((0.0,) * 3, (1.0,) * 3)
    images = torch.rand(1, 3, 96, 128)
    expected = reference(images)
    got = model([images[0]])
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=2e-5)
    folder = save_huggingface(tmp_path / "ours", model, spec)
    kind = RTDetrV2ForObjectDetection if name.startswith("rtdetrv2") else RTDetrForObjectDetection
    back, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    torch.testing.assert_close(back.eval()(images).pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-5)
    written = json.loads((folder / "preprocessor_config.json").read_text())
    assert written["do_normalize"] is False and written["size"] == {"height": 96, "width": 96}
    again, same_spec = load_model(folder)
    assert same(again, model) and same_spec.options == spec.options


def test_names_of_pascal_voc_are_cocos(tmp_path):
    """As PekingU's files have them."""
    model = small("rtdetrv2-r18", num_classes=80)
    spec = ModelSpec("rtdetrv2-r18", OPTIONS, 80, COCO_80, size=640, max_size=None, square=True)
    folder = save_huggingface(tmp_path / "a", model, spec)
    config = json.loads((folder / "config.json").read_text())
    del config["detrkit"]
    voc = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}
    config["id2label"] = {k: voc.get(name, name) for k, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder)[1].classes == COCO_80


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu': detrkit has 'silu'"),
        ({"num_feature_levels": 4}, "num_feature_levels is 4: detrkit has 3"),
        ({"encoder_attention_heads": 2}, "decoder_attention_heads is 4, encoder_attention_heads 2"),
        ({"backbone_config": {"model_type": "hgnet_v2"}}, "the backbone is 'hgnet_v2': detrkit has presnet10"),
    ],
)
def test_models_that_detrkit_does_not_have(tmp_path, changed, message):
    spec = ModelSpec("rtdetrv2-r18", OPTIONS, 5, size=640, max_size=None, square=True)
    folder = save_huggingface(tmp_path / "a", small("rtdetrv2-r18"), spec)
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DetrkitError, match=message):
        load_model(folder)


def test_models_that_transformers_does_not_have(tmp_path):
    for options, message in (
        ({"level_points": (4, 2, 1)}, "samples as many points on every level"),
        ({"eval_layers": 2}, "predicts with all decoder layers, this model with 2 of 3"),
        ({"backbone_norm": "group"}, "has no backbone presnet10 with backbone_norm='group'"),
    ):
        spec = ModelSpec("rtdetrv2-r18", OPTIONS | options, 5, size=640, max_size=None, square=True)
        with pytest.raises(DetrkitError, match=message):
            save_huggingface(tmp_path / "a", small("rtdetrv2-r18", **options), spec)
