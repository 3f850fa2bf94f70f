"""`detrkit.export` and `detrkit export`: what is written and what is not; the file in place of its checkpoint."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.cli import main
from detrkit.data.tools.shapes import write_shapes
from detrkit.exporting import gates, measuring
from detrkit.runtimes.model import ExportedModel
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import save_model
from helpers.small_models import small_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[2]


def test_the_report_says_what_was_compared(files):
    report = json.loads((files / "detr.onnx.report.json").read_text())
    assert report["files"] == ["detr.onnx"] and report["bytes"] == (files / "detr.onnx").stat().st_size
    assert len(report["gates"]) >= 7 and report["largest differences"]["logits"] < 1e-3
    assert report["PyTorch"]["seconds"] > 0 and report["exported"]["seconds"] > 0
    assert report["runtime"].startswith("onnxruntime ")
    page = (files / "detr.onnx.report.md").read_text()
    assert "| 8 images padded to" in page and "short side has 128 pixels" in page


def test_nothing_else_is_written(files):
    assert {p.name for p in files.iterdir()} == {
        *("detr.safetensors", "detr.onnx", "detr.onnx.report.md", "detr.onnx.report.json", "photos")
    }


def test_the_file_says_what_it_is(files):
    from detrkit.models.spec import ModelSpec
    from detrkit.utils.download import sha256

    content = onnx.load(files / "detr.onnx")
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    assert ModelSpec.from_json(metadata["detrkit"]) == small_model("detr-r50")[1]
    info = json.loads(metadata["detrkit_export"])
    assert info["source"] == "detr.safetensors" and info["sha256"] == sha256(files / "detr.safetensors")
    assert json.loads(metadata["class_names"])[3] == "class 3"
    assert "longest side to at most 192" in metadata["preprocessing"]
    assert [i.name for i in content.graph.input] == ["images", "padding_mask"]
    dims = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in content.graph.input]
    assert all(isinstance(dim, str) for dim in (dims[0][0], *dims[0][2:], *dims[1]))  # free
    operators = {node.op_type for node in content.graph.node}
    assert "BatchNormalization" not in operators and not {n.domain for n in content.graph.node} - {"", "ai.onnx"}


def test_predictions_are_those_of_the_checkpoint(files):
    original, exported = detrkit.load(files / "detr.safetensors"), detrkit.load(files / "detr.onnx")
    assert isinstance(exported.model, ExportedModel)
    assert exported.spec == original.spec
    results = zip(original.predict(files / "photos"), exported.predict(files / "photos"), strict=True)
    for expected, found in results:
        assert len(expected) > 0
        assert found.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-2, rtol=0)  # pixels


def test_an_exported_model_keeps_no_attention(files):
    with pytest.raises(DetrkitError, match="an exported model keeps no attention"):
        detrkit.explain(detrkit.load(files / "detr.onnx"), files / "photos" / "0.png")


def test_results_of_other_weights_are_told_apart(files, tmp_path):
    from detrkit.cli.predict_journal import digest

    content = onnx.load(files / "detr.onnx")
    content.producer_name = "another"
    onnx.save(content, tmp_path / "other.onnx")
    first, second = detrkit.load(files / "detr.onnx"), detrkit.load(tmp_path / "other.onnx")
    assert digest(first) == digest(detrkit.load(files / "detr.onnx")) != digest(second)


def test_weights_are_not_taken_from_an_exported_file(files):
    from detrkit.weights.checkpoint import load_model

    with pytest.raises(DetrkitError, match=r"detr\.onnx: an exported model.*give the checkpoint"):
        load_model(files / "detr.onnx")
    with pytest.raises(DetrkitError, match="exported one already"):
        detrkit.export(detrkit.load(files / "detr.onnx"), files / "again.onnx")


def test_evaluation_gives_the_metrics_of_the_checkpoint(files, tmp_path):
    data = write_shapes(tmp_path / "shapes", images={"train": 1, "val": 4}, sides=(64, 96), classes=5, seed=1)
    classes = detrkit.open_dataset(data, split="val").classes
    names = ClassList.contiguous({i: name for i, name in enumerate([*classes.names, "x", "y"])})
    exported = detrkit.load(files / "detr.onnx").model
    original = detrkit.load(files / "detr.safetensors").model
    spec = replace(small_model("detr-r50")[1], classes=names)
    expected = detrkit.evaluate((original, spec), data, device="cpu")
    found = detrkit.evaluate((exported, spec), data, device="cpu")
    np.testing.assert_allclose(found.stats, expected.stats, atol=1e-3)
    assert found.detections == expected.detections


def test_a_colleague_needs_onnxruntime_numpy_and_pillow_alone(files):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from onnx_numpy import detect
    finally:
        sys.path.pop(0)
    detector = detrkit.load(files / "detr.safetensors")
    for photo in sorted((files / "photos").iterdir()):
        expected = detector.predict(photo, threshold=0.5)
        found = detect(str(files / "detr.onnx"), str(photo), 0.5)
        assert [name for name, _, _ in found] == expected.names
        np.testing.assert_allclose([score for _, score, _ in found], expected.scores, atol=1e-3)
        np.testing.assert_allclose([box for _, _, box in found], expected.boxes, atol=0.2)
    source = (ROOT / "examples" / "onnx_numpy.py").read_text()
    assert "detrkit" not in [line.split()[1] for line in source.splitlines() if line.startswith(("import", "from"))]


def test_a_failed_gate_leaves_no_file(tmp_path, monkeypatch, capsys):
    model, spec = small_model("detr-r50")
    save_model(tmp_path / "detr.safetensors", model, spec)
    monkeypatch.setitem(gates.TOLERANCES, "boxes", -1.0)
    assert main(["export", str(tmp_path / "detr.safetensors"), "--out", str(tmp_path / "detr.onnx")]) == 2
    error = capsys.readouterr().err
    assert "boxes differ by" in error and "no file was written" in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["detr.safetensors"]


def test_a_file_is_replaced_with_force_alone(files, capsys):
    words = ["export", str(files / "detr.safetensors"), "--out", str(files / "detr.onnx")]
    before = (files / "detr.onnx").stat().st_mtime_ns
    assert main(words) == 2
    assert "detr.onnx exists already: name another file, or pass force (--force)" in capsys.readouterr().err
    assert (files / "detr.onnx").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--out", "model.tflite"], "must end with .onnx or .xml or .pt2"),
        (["--out", "model.onnx", "--format", "openvino"], "must end with .xml"),
        (["--out", "model.onnx", "--fixed", "640"], "height and width in pixels are expected, such as 640x640"),
        (["--out", "model.onnx", "--fixed", "0x64"], "height and width in pixels are expected"),
        (["--out", "model.onnx", "--batch", "0"], "--batch 0"),
        (["--out", "model.onnx", "--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_refused_at_once(words, reason, files, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(files / "detr.safetensors"), *words]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_command(files, tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else real(name, *a))
    with pytest.raises(DetrkitError, match=r"onnxscript is not installed: pip install 'detrkit\[export\]'"):
        detrkit.export(files / "detr.safetensors", tmp_path / "detr.onnx")


def test_a_model_of_half_precision_is_refused(tmp_path):
    model, spec = small_model("detr-r50")
    with pytest.raises(DetrkitError, match="the model is bfloat16 on cpu"):
        detrkit.export((model.bfloat16(), spec), tmp_path / "detr.onnx")


@pytest.mark.parametrize("fixed", [(0, 64), (64,), (64.5, 64), (70_000, 64), (True, 64), 64, "640x640"])
def test_a_fixed_size_is_two_sides_in_pixels(fixed, tmp_path):
    with pytest.raises(ValueError, match=r"^fixed"):
        detrkit.export(tmp_path / "none.safetensors", tmp_path / "model.onnx", fixed=fixed)


def test_a_fixed_size_needs_a_mask_or_squares(tmp_path):
    for name, changes, size in [
        ("rtdetr-r18", {}, (64, 96)),
        ("detr-r50", {"backbone": "presnet10"}, (96, 96)),
    ]:
        with pytest.raises(DetrkitError, match="fixed="):
            detrkit.export(small_model(name, **changes), tmp_path / "model.onnx", fixed=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".xml", ".pt2"])
def test_other_formats_predict_likewise(suffix, files, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino")
    report = detrkit.export(files / "detr.safetensors", tmp_path / f"detr{suffix}", timing=False)
    assert set(report.files) <= {p.name for p in tmp_path.iterdir()}
    original, exported = detrkit.load(files / "detr.safetensors"), detrkit.load(tmp_path / f"detr{suffix}")
    for photo in sorted((files / "photos").iterdir()):
        expected, found = original.predict(photo), exported.predict(photo)
        assert found.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-2, rtol=0)


@pytest.mark.slow
def test_masks_of_a_panoptic_model_are_predicted(tmp_path):
    model, spec = small_model("detr-r50-panoptic")
    detrkit.export((model, spec), tmp_path / "masks.onnx", timing=False)
    exported = detrkit.load(tmp_path / "masks.onnx")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (120, 170, 3), dtype=np.uint8))
    detector = detrkit.Detector(model, spec, device="cpu")
    expected, found = detector.predict(image, threshold=0.0), exported.predict(image, threshold=0.0)
    assert found.masks.shape == expected.masks.shape
    assert (found.masks == expected.masks).float().mean() > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suffix"), [("detr", ".onnx"), ("deformable-detr", ".xml")])
def test_trained_models_have_the_same_ap(name, suffix, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino")
    settings = {"objects": (1, 5), "object_size": (0.2, 0.5)}
    data = write_shapes(tmp_path / "shapes", images={"train": 1, "val": 30}, sides=(192, 256), seed=8, **settings)
    weights = ROOT / "examples" / "tour" / f"{name}.safetensors"
    report = detrkit.export(weights, tmp_path / f"model{suffix}", data=data, timing=False)
    assert report.accuracy is not None and report.accuracy.images == 30
    assert report.accuracy.model > 0.3 and abs(report.accuracy.drop) <= 0.1


def test_a_lower_ap_leaves_no_file(files, tmp_path, monkeypatch):
    found = iter([0.5, 0.49])

    class Result:
        def __init__(self) -> None:
            self.AP, self.images = next(found), 4

    monkeypatch.setattr(measuring, "evaluate", lambda *args, **settings: Result())
    exported = detrkit.load(files / "detr.onnx")
    model = detrkit.load(files / "detr.safetensors").model
    with pytest.raises(DetrkitError, match=r"AP falls by 1\.00 points \(50\.00 in PyTorch, 49\.00 in onnxruntime"):
        measuring.check_accuracy(model, exported.model, exported.spec, "my_data", split="val", images=4, max_drop=0.1)


def test_the_command_evaluates_and_predicts_what_was_exported(files, tmp_path, capsys):
    """With its pictures: an exported model has no parameters that say where it is."""
    from detrkit.cli import main

    data = write_shapes(tmp_path / "set", images={"train": 1, "val": 2}, sides=(96, 128), seed=3)
    annotations = data / "annotations" / "instances_val2017.json"
    document = json.loads(annotations.read_text())
    for i, category in enumerate(document["categories"]):
        category["name"] = f"class {i}"
    annotations.write_text(json.dumps(document))
    assert main(["eval", str(files / "detr.onnx"), str(data), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.md").exists() and "AP" in capsys.readouterr().out
    assert main(["predict", str(files / "detr.onnx"), str(data / "val2017"), "--out", str(tmp_path / "drawn")]) == 0
    assert main(["explain", str(files / "detr.onnx"), str(data / "val2017"), "--out", str(tmp_path / "maps")]) == 2
    assert "explain the checkpoint" in capsys.readouterr().err
