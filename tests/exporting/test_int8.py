"""INT8 of a trained detector: which layers, what is written, and what the gate of AP refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detrkit
from detrkit.data.tools.shapes import write_shapes
from detrkit.exporting.export import export
from detrkit.exporting.int8.onnx import quantize_onnx
from detrkit.runtimes.metadata import ExportInfo, read_metadata
from detrkit.utils.errors import DetrkitError, SettingError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[2]
TRAINED = ROOT / "examples" / "tour" / "detr.safetensors"  # AP 51 on such shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "shapes"
    write_shapes(folder, images={"train": 20, "val": 30}, sides=(140, 192), seed=5)
    return folder


def test_int8_is_refused_for_torch_before_anything_is_read(tmp_path):
    with pytest.raises(SettingError, match="INT8 is written for onnx and openvino"):
        export(tmp_path / "none.safetensors", tmp_path / "detr.pt2", int8="nowhere")


def test_a_description_without_int8_is_of_float32():
    plain = {
        **{"version": 1, "detrkit": "0", "format": "onnx", "inputs": ["images"], "outputs": ["logits", "boxes"]},
        **{"least_side": 17, "largest_side": None, "fixed": None, "batch": None, "num_queries": 20},
        **{"num_select": None, "activation": "softmax", "threshold": 0.5, "source": "", "sha256": ""},
    }
    assert ExportInfo.from_json(json.dumps(plain)).int8 == ()
    assert ExportInfo.from_json(json.dumps({**plain, "int8": ["backbone"]})).int8 == ("backbone",)
    with pytest.raises(DetrkitError, match="int8"):
        ExportInfo.from_json(json.dumps({**plain, "int8": ["decoder"]}))


def test_convolutions_that_share_a_bias_are_quantized(tmp_path):
    """ONNX Runtime's tool names the copies of a shared bias after it, b0 and b1, which here are names already."""
    import onnxruntime

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=(4, 4, 3, 3)).astype(np.float32), f"w{i}") for i in range(3)
    ]
    bias = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "b")
    names = ["images", "b0", "b1", "logits"]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}", "b"], [names[i + 1]], name=f"conv{i}", pads=[1, 1, 1, 1])
        for i in range(3)
    ]
    shape = [1, 4, 8, 8]
    ends = [[helper.make_tensor_value_info(name, kind, shape)] for name in ("images", "logits")]
    graph = helper.make_graph(nodes, "shared", *ends, initializer=[*weights, bias])
    opset = [helper.make_opsetid("", 20)]
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), source)
    image = {"images": rng.normal(size=shape).astype(np.float32)}
    quantize_onnx(source, target, [image], ["conv0", "conv1", "conv2"], {"key": "value"})
    before, after = (onnxruntime.InferenceSession(path).run(None, image)[0] for path in (source, target))
    assert 0 < np.abs(before - after).max() < 0.05 * np.abs(before).max()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_trained_detector_in_int8(suffix, shapes, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("nncf")
    file = tmp_path / f"detr{suffix}"
    # on 30 images a point of AP is one object
    report = detrkit.export(TRAINED, file, int8=shapes, calibration_images=10, max_drop=3.0, timing=False)
    check = report.reduced
    assert check is not None and check.calibration_images == 10 and check.images == 30
    assert check.precision == "INT8" and check.computed == "20 layers of backbone and encoder"
    assert check.drop <= 3.0 and check.float_ap > 0.25
    written = sum(path.stat().st_size for path in tmp_path.glob("detr.*") if path.suffix in (suffix, ".bin"))
    assert report.size == written < 0.8 * check.float_bytes
    detector = detrkit.load(file)
    info = detector.model.info
    assert info.int8 == ("backbone", "encoder")
    assert pytest.approx(check.ap) == detrkit.evaluate(detector, shapes).AP
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*report.files, f"{file.name}.report.md", f"{file.name}.report.json"]
    )
    assert "in INT8" in (tmp_path / f"{file.name}.report.md").read_text()
    if suffix == ".onnx":
        assert_decoder_in_float(file)


def assert_decoder_in_float(file: Path) -> None:
    """Convolutions of the backbone read 8 bits, and nothing of the decoder and the heads does."""
    model = onnx.load(file)
    made_by = {output: node for node in model.graph.node for output in node.output}
    quantized = {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm", "Add")
        and any(made_by[name].op_type == "DequantizeLinear" for name in node.input[:1] if name in made_by)
    }
    scopes = {
        node.name: next((p.value for p in node.metadata_props if p.key.endswith("name_scopes")), "")
        for node in model.graph.node
    }
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert set(convolutions) <= quantized
    assert any("model.encoder" in scopes[name] for name in quantized)
    assert not [name for name in quantized if "model.decoder" in scopes[name] or "_head" in scopes[name]]
    read_metadata({prop.key: prop.value for prop in model.metadata_props})


@pytest.mark.slow
def test_a_broken_calibration_is_refused(shapes, tmp_path):
    black = tmp_path / "black"
    write_shapes(black, images={"train": 4, "val": 1}, sides=(140, 192), seed=5)
    for path in (black / "train2017").iterdir():
        Image.new("RGB", Image.open(path).size).save(path)
    file = tmp_path / "out" / "detr.onnx"
    with pytest.raises(DetrkitError) as refused:
        export(TRAINED, file, int8=black, data=shapes, timing=False)
    message = str(refused.value)
    assert "INT8 costs" in message and "at most 0.5 pass" in message and "\n" not in message
    assert "the backbone alone" in message and "the encoder alone" in message
    assert not any(file.parent.iterdir())
