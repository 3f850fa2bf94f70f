"""`detrkit predict | models | convert`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli import main
from detrkit.cli.convert import Convert
from detrkit.cli.models import Models
from detrkit.cli.predict import Predict
from detrkit.convert import to_official
from detrkit.data import open_dataset
from detrkit.data.panoptic import read_id_map
from detrkit.data.tools.shapes import write_shapes
from detrkit.detector import Detector
from detrkit.models.registry import ARCHITECTURES
from detrkit.structures.classes import ClassList
from detrkit.structures.coco_classes import COCO_91
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, save_huggingface, save_model

OPTIONS = {
    "backbone": "resnet18",
    "backbone_norm": "group",
    "hidden_dim": 32,
    "dim_feedforward": 64,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 6,
}
SPEC = ModelSpec("detr-r50", OPTIONS, num_classes=2, classes=ClassList(("cat", "dog"), (1, 2)), size=64, max_size=100)


@pytest.fixture
def weights(tmp_path):
    return save_model(tmp_path / "run" / "best.safetensors", SPEC.build(), SPEC)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "c.JPEG")):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def run(weights, *inputs, **options):
    return Predict(str(weights), tuple(map(str, inputs)), device="cpu", **options).run()


def test_predict_writes_pictures_and_json(weights, photos, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run(weights.parent, photos, out=out, threshold=0.2, batch_size=2) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "a.png",
        "b.jpg",
        "c.jpg",
        "detrkit-files.json",
        "predictions.json",
    ]
    found = json.loads((out / "predictions.json").read_text())
    assert list(found) == [str(photos / n) for n in ("a.png", "b.jpg", "c.JPEG")]
    detector = Detector(*load_model(weights), device="cpu")
    for file, rows in found.items():
        want = detector.predict(file, threshold=0.2)
        assert [r["label"] for r in rows] == want.labels.tolist() and [r["name"] for r in rows] == want.names
        assert np.allclose([r["score"] for r in rows], want.scores, atol=1e-3)
        assert np.allclose(np.array([r["box"] for r in rows]).reshape(-1, 4), want.boxes, atol=2e-2)
    printed = capsys.readouterr().out
    assert str(out / "predictions.json") in printed and "a.png" in printed


def test_predict_writes_segments_and_their_ids(photos, tmp_path):
    """The PNGs hold the ids that predictions.json lists; two pictures of one stem do not overwrite each other."""
    classes = ClassList(("cat", "sky"), (1, 92), (True, False))
    spec = replace(SPEC, options={**OPTIONS, "masks": True}, classes=classes)
    torch.manual_seed(0)
    weights = save_model(tmp_path / "panoptic.safetensors", spec.build(), spec)
    Image.open(photos / "b.jpg").save(photos / "a.jpg")
    out = tmp_path / "out"
    assert run(weights, photos, out=out, threshold=0.1, batch_size=3) == 0
    found = json.loads((out / "predictions.json").read_text())
    assert len({entry["ids"] for entry in found.values()}) == len(found) == 4
    detector = Detector(*load_model(weights), device="cpu")
    for file, entry in found.items():
        ids = read_id_map(out / entry["ids"])
        want = detector.predict(file, threshold=0.1)
        assert (ids != want.id_map.numpy()).mean() < 0.002 and ids.shape == Image.open(file).size[::-1]
        assert [(s["id"], s["name"]) for s in entry["segments"]] == [
            (s.id, name) for s, name in zip(want.segments, want.names, strict=True)
        ]
        assert {s["kind"] for s in entry["segments"]} <= {"thing", "stuff"} and entry["segments"]


def test_patterns_sizes_and_repeats(weights, photos, tmp_path):
    out = tmp_path / "out"
    assert run(weights, f"{photos}/*.j*", photos / "b.jpg", out=out, size=32) == 0
    assert list(json.loads((out / "predictions.json").read_text())) == [str(photos / "b.jpg")]


def test_unreadable_picture_is_reported_and_left_out(weights, photos, tmp_path, capsys):
    (photos / "aa.jpg").write_text("not a picture")
    out = tmp_path / "out"
    assert run(weights, photos, out=out) == 1
    assert len(json.loads((out / "predictions.json").read_text())) == 3
    assert "aa.jpg: not an image" in capsys.readouterr().err
    with pytest.raises(DetrkitError, match="no image could be read and written"):
        run(weights, photos / "aa.jpg", out=out)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["missing.jpg"], {}, "missing.jpg: no such file or folder"),
        (["*.nothing"], {}, "no image matches"),
        ([], {}, "no images given"),
    ],
)
def test_predict_refuses(weights, photos, tmp_path, monkeypatch, inputs, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DetrkitError, match=message):
        run(weights, *inputs, **options)
    assert not (tmp_path / "predictions").exists()


def test_predict_refuses_devices_and_folders(weights, photos, tmp_path):
    with pytest.raises(DetrkitError, match="device nowhere: not available on this machine"):
        Predict(str(weights), (str(photos),), device="nowhere").run()
    with pytest.raises(DetrkitError, match="device meta: not available on this machine"):
        Predict(str(weights), (str(photos),), device="meta").run()
    (tmp_path / "file").write_text("")
    with pytest.raises(DetrkitError, match="file is a file: choose another output folder"):
        run(weights, photos, out=tmp_path / "file")


def test_models(capsys):
    assert Models().run() == 0
    printed = capsys.readouterr().out
    for known in ARCHITECTURES.values():
        assert known.name in printed and (known.weights or "") in printed
    row = next(line for line in printed.splitlines() if "e632da11" in line)
    assert all(cell in row for cell in ("41.3", "42.0", "62.4"))


def test_convert_both_ways(weights, tmp_path, capsys):
    model, spec = load_model(weights)
    assert Convert(weights, tmp_path / "a.pth").run() == 0
    assert list(torch.load(tmp_path / "a.pth", weights_only=True)["model"]) == list(to_official(model))
    assert Convert(tmp_path / "a.pth", tmp_path / "b.safetensors").run() == 0
    back, same = load_model(tmp_path / "b.safetensors")
    assert same == spec
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())
    assert f"{tmp_path / 'b.safetensors'}: detr-r50, 2 classes" in capsys.readouterr().out
    with pytest.raises(DetrkitError, match=r"must end with \.pth"):
        Convert(weights, tmp_path / "a.onnx").run()


def test_convert_masks_both_ways(tmp_path):
    options = OPTIONS | {"backbone_norm": "frozen", "nheads": 4}
    spec = ModelSpec("detr-r50-panoptic", options, 2, ClassList(("cat", "sky"), (1, 2), (True, False)))
    source = save_model(tmp_path / "a.safetensors", spec.build(), spec)
    assert Convert(source, tmp_path / "a.pth").run() == 0
    names = list(torch.load(tmp_path / "a.pth", weights_only=True)["model"])
    assert "detr.class_embed.weight" in names and "mask_head.adapter3.bias" in names
    assert Convert(tmp_path / "a.pth", tmp_path / "b.safetensors").run() == 0
    back, same = load_model(tmp_path / "b.safetensors")
    assert same == spec
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in load_model(source)[0].state_dict().items())


@pytest.mark.slow
def test_convert_asks_for_dilation_and_heads(tmp_path, capsys):
    model = build_model("detr-r50", num_classes=4, **{**OPTIONS, "backbone": "resnet50", "backbone_norm": "frozen"})
    torch.save(to_official(model), tmp_path / "a.pth")
    command = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), "--force"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "dilation" in error and "--dilation True or False" in error
    assert main([*command, "--dilation", "True", "--nheads", "2"]) == 0
    spec = load_model(tmp_path / "b.safetensors")[1]
    assert spec.name == "detr-r50-dc5" and spec.options["nheads"] == 2 and spec.num_classes == 4
    assert main([*command, "--dilation", "True", "--model", "detr-r50"]) == 2
    assert "weights of detr-r50-dc5, not of detr-r50" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.pth"), "--dilation", "False"]) == 2
    assert "the file says dilation=True, not dilation=False" in capsys.readouterr().err
    assert main([*command, "--dilation", "True", "--backbone-names", "timm"]) == 2
    assert "--backbone-names is for Hugging Face directories" in capsys.readouterr().err


@pytest.mark.slow
def test_convert_says_what_labels_mean(tmp_path, capsys):
    """Weights of the official code know no class names: a dataset has them, by its ids or in their order."""
    data = write_shapes(tmp_path / "set", images={"train": 4, "val": 2}, sides=(48, 64), classes=2, seed=1)
    known = open_dataset(data, split="train").classes
    options = {**OPTIONS, "backbone_norm": "frozen", "nheads": 8}

    def convert(labels, *extra):
        torch.save({"model": to_official(build_model("detr-r50", num_classes=labels, **options))}, tmp_path / "a.pth")
        return main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors"), "--force", *extra])

    assert convert(2) == 0
    assert "2 classes without names (--classes gives them)" in capsys.readouterr().out
    assert convert(2, "--classes", str(data)) == 0
    assert "2 classes\n" in capsys.readouterr().out
    assert load_model(tmp_path / "a.safetensors")[1].classes == known
    labels = max(known.ids) + 1
    assert labels > 2 and convert(labels, "--classes", str(data)) == 0
    found = load_model(tmp_path / "a.safetensors")[1].classes
    assert found == open_dataset(data, split="train", ids="official").classes and len(found) == labels
    out = tmp_path / "out"
    assert main(["eval", str(tmp_path / "a.safetensors"), str(data), "--out", str(out), "--size", "64"]) == 0
    assert {r["category_id"] for r in json.loads((out / "results.json").read_text())} <= set(known.ids)
    assert convert(91, "--classes", "coco") == 0
    assert load_model(tmp_path / "a.safetensors")[1].classes == COCO_91
    capsys.readouterr()
    for labels, given, message in (
        (90, "coco", "--classes coco: 91 labels, but the weights have 90"),
        (91, "coco-panoptic", "--classes coco-panoptic: 250 labels, but the weights have 91"),
        (1, str(data), f"2 classes with ids up to {max(known.ids)}, but the weights have 1 labels"),
        (2, str(tmp_path / "nowhere"), "nowhere: no such file or folder"),
    ):
        assert convert(labels, "--classes", given) == 2
        assert message in capsys.readouterr().err
    source = str(tmp_path / "a.safetensors")
    assert main(["convert", source, str(tmp_path / "b.pth"), "--classes", "coco"]) == 2
    assert "the file says its classes: leave out --classes coco" in capsys.readouterr().err


@pytest.mark.slow
def test_hugging_face_directory_in_eval_and_training(tmp_path):
    data = write_shapes(tmp_path / "set", images={"train": 4, "val": 2}, sides=(48, 64), classes=2, seed=1)
    options = OPTIONS | {"backbone_norm": "frozen", "hidden_dim": 128}
    names = open_dataset(data, split="train").classes
    spec = ModelSpec("detr-r50", options, 2, names, size=64, max_size=107)
    model = spec.build()
    folder = save_huggingface(tmp_path / "hf", model, spec)
    own = save_model(tmp_path / "own.safetensors", model, spec)
    for source, out in ((folder, "one"), (own, "two")):
        assert main(["eval", str(source), str(data), "--out", str(tmp_path / out), "--device", "cpu"]) == 0
    one, two = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "two"))
    assert one == two and len(one) > 0
    run = tmp_path / "run"
    command = ["train", str(data), "--init-from", str(folder), "--out", str(run), "--epochs", "1", "--device", "cpu"]
    assert main([*command, "--lr", "1e-12", "--lr-backbone", "1e-12", "--batch-size", "2", "--workers", "0"]) == 0
    trained = load_model(run)[0].state_dict()
    # steps of next to no length: what came from the directory is still there
    assert all(torch.allclose(v, trained[k], atol=1e-7) for k, v in model.state_dict().items())
