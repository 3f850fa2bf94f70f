"""Half precision of a trained detector: who may ask for it, what computes in it, and what the gate of AP refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import detrkit
from detrkit.data.tools.shapes import write_shapes
from detrkit.exporting import half as half_precision
from detrkit.exporting.export import export
from detrkit.runtimes import sessions
from detrkit.runtimes.metadata import ExportInfo
from detrkit.utils.errors import DetrkitError, SettingError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TRAINED = Path(__file__).parents[2] / "examples" / "tour" / "detr.safetensors"  # AP 51 on such shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "shapes"
    write_shapes(folder, images={"val": 30}, sides=(140, 192), seed=5)
    return folder


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("detr.pt2", {"half": "fp16", "data": "d"}, "name the file .onnx or .xml"),
        ("detr.onnx", {"half": "bf16", "data": "d"}, "ONNX Runtime computes it on no CPU"),
        ("detr.onnx", {"half": "fp16"}, "name a dataset with data"),
        ("detr.onnx", {"half": "fp16", "int8": "d"}, "choose one of them"),
    ],
)
def test_what_cannot_be_in_half_is_refused_before_anything_is_read(name, options, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        export(tmp_path / "none.safetensors", tmp_path / name, **options)


def test_a_cpu_without_the_instructions_is_told(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(half_precision, "computes_half", lambda half: False)
    with pytest.raises(DetrkitError, match="this CPU does not compute in bf16") as refused:
        export(tmp_path / "none.safetensors", tmp_path / "detr.xml", half="bf16", data="d")
    assert "\n" not in str(refused.value)


def test_a_file_for_another_cpu_runs_in_float32_and_says_so(tmp_path, monkeypatch):
    metadata = {"detrkit_export": json.dumps({"half": "bf16"})}
    monkeypatch.setattr(sessions, "computes_half", lambda half: False)
    with pytest.warns(UserWarning, match="detr.xml: this CPU does not compute in bf16: it runs in float32"):
        assert sessions._precision(tmp_path / "detr.xml", metadata) == "f32"
    monkeypatch.setattr(sessions, "computes_half", lambda half: True)
    assert sessions._precision(tmp_path / "detr.xml", metadata) == "bf16"
    assert sessions._precision(tmp_path / "detr.xml", {}) == "f32"


def test_a_description_without_half_is_of_float32(tmp_path):
    plain = {
        **{"version": 1, "detrkit": "0", "format": "onnx", "inputs": ["images"], "outputs": ["logits", "boxes"]},
        **{"least_side": 17, "largest_side": None, "fixed": None, "batch": None, "num_queries": 20},
        **{"num_select": None, "activation": "softmax", "threshold": 0.5, "source": "", "sha256": ""},
    }
    assert ExportInfo.from_json(json.dumps(plain)).half is None
    assert ExportInfo.from_json(json.dumps({**plain, "half": "fp16"})).half == "fp16"
    with pytest.raises(DetrkitError, match="half"):
        ExportInfo.from_json(json.dumps({**plain, "half": "fp8"}))


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "half"), [(".onnx", "fp16"), (".xml", "bf16")])
def test_a_trained_detector_in_half(suffix, half, shapes, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino")
        if not sessions.computes_half(half):
            pytest.skip("this CPU has no bf16")
    file = tmp_path / f"detr{suffix}"
    report = detrkit.export(TRAINED, file, half=half, data=shapes, max_drop=2.0, timing=False)
    check = report.reduced
    assert check is not None and check.precision == half and check.images == 30 and check.calibration_images == 0
    assert abs(check.drop) <= 2.0 and check.float_ap > 0.25
    written = sum(path.stat().st_size for path in tmp_path.glob("detr.*") if path.suffix in (suffix, ".bin"))
    assert report.size == written < 0.75 * check.float_bytes
    detector = detrkit.load(file)
    assert detector.model.info.half == half
    assert pytest.approx(check.ap) == detrkit.evaluate(detector, shapes).AP
    assert f"in {half}" in (tmp_path / f"{file.name}.report.md").read_text()
    if suffix == ".onnx":
        assert_heads_in_float(file)


def assert_heads_in_float(file):
    """Weights of the backbone and of the decoder's layers have 16 bits; those of the heads, and what is read, 32."""
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        scope = next((p.value for p in node.metadata_props if p.key.endswith("name_scopes")), "")
        if node.op_type == "Conv" and "backbone" in scope:
            assert kinds[node.input[1]] == half
        if node.op_type == "MatMul" and "_head" in scope:
            assert kinds[node.input[1]] == full
    # what stays in float32 is not rounded on its way
    casts = {n.output[0]: (n.input[0], n.attribute[0].i) for n in graph.node if n.op_type == "Cast"}
    assert not [n for n, (source, kind) in casts.items() if kind == full and casts.get(source, ("", 0))[1] == half]
    assert {value.type.tensor_type.elem_type for value in graph.output} == {full}


@pytest.mark.slow
def test_a_drop_that_is_too_large_is_refused(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("detrkit.exporting.reduced.AccuracyGate.ap", lambda self, path: self.float_ap - 0.05)
    with pytest.raises(DetrkitError, match=r"fp16 costs 5\.00 points of AP .* at most 0\.2 pass; no file was written"):
        export(TRAINED, tmp_path / "out" / "detr.onnx", half="fp16", data=shapes, timing=False)
    assert not any((tmp_path / "out").iterdir())
