"""`ExportedModel` around a graph by hand, and files that are no exports: one line each."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import detrkit
from detrkit.runtimes.metadata import ExportInfo, preprocessing_words, read_metadata
from detrkit.runtimes.model import ExportedModel
from detrkit.runtimes.sessions import check_archive, choose_runtime
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import MASKED_LOGIT
from detrkit.utils.errors import DetrkitError, ImageSizeError
from helpers.small_models import small_model

INFO = ExportInfo(
    detrkit="0.1.0",
    format="onnx",
    inputs=("images", "padding_mask"),
    outputs=("logits", "boxes"),
    least_side=33,
    largest_side=200,
    fixed=None,
    batch=None,
    num_queries=2,
    num_select=None,
    activation="softmax",
    threshold=0.5,
    source="",
    sha256="",
)


class Recorder:
    """A session that keeps the shapes of its inputs, and returns the mean of each image as logit and its valid size."""

    runtime, metadata = "by hand", {}

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs):
        images = inputs["images"]
        self.shapes.append(images.shape)
        mask = inputs.get("padding_mask", np.zeros((len(images), *images.shape[2:]), bool))
        sums = images.sum((1, 2, 3), keepdims=True)[:, :, :, 0].repeat(2, 1)  # (B, 2, 1)
        valid = np.stack([(~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)], -1)
        boxes = np.concatenate([valid, valid], -1)[:, None].repeat(2, 1).astype(np.float32)
        return {"logits": sums, "boxes": boxes}


def model_of(**changes) -> ExportedModel:
    return ExportedModel(Recorder(), replace(INFO, **changes), small_model("detr-r50")[1])


def batch_of(*sizes: tuple[int, int]) -> Batch:
    return Batch.from_images([torch.full((3, h, w), float(i + 1)) for i, (h, w) in enumerate(sizes)])


def test_small_images_are_padded_to_the_least_side_and_the_mask_says_so():
    model = model_of()
    outputs = model(batch_of((20, 50), (10, 40)))
    assert model.session.shapes == [(2, 3, 33, 50)]
    assert outputs.boxes[:, 0, :2].tolist() == [[20, 50], [10, 40]]  # height and width of the valid part


def test_images_beyond_the_largest_side_are_refused():
    with pytest.raises(ImageSizeError, match="at least 33 and at most 200 pixels, the image has 40 x 201"):
        model_of()(batch_of((40, 201)))


def test_a_fixed_size_pads_and_a_fixed_number_fills_up():
    model = model_of(fixed=(64, 96), batch=2)
    outputs = model(batch_of((60, 90), (64, 50), (10, 96)))
    assert model.session.shapes == [(2, 3, 64, 96)] * 2
    assert outputs.boxes[:, 0, :2].tolist() == [[60, 90], [64, 50], [10, 96]]
    assert outputs.logits[:, 0, 0].tolist() == [3 * 60 * 90, 2 * 3 * 64 * 50, 3 * 3 * 10 * 96]
    with pytest.raises(ImageSizeError, match="takes images of 64 x 96 pixels"):
        model(batch_of((65, 90)))


def test_without_a_mask_images_of_one_size_run_together_in_their_order():
    model = model_of(inputs=("images",), least_side=1)
    outputs = model(batch_of((40, 50), (50, 40), (40, 50)))
    assert model.session.shapes == [(2, 3, 40, 50), (1, 3, 50, 40)]
    assert outputs.logits[:, 0, 0].tolist() == [3 * 2000, 2 * 3 * 2000, 3 * 3 * 2000]


def test_parts_with_fewer_queries_are_filled_up_with_none():
    from detrkit.runtimes.model import _joined

    parts = [
        {"logits": np.ones((1, 3, 2)), "boxes": np.ones((1, 3, 4))},
        {"logits": np.ones((1, 1, 2)), "boxes": np.ones((1, 1, 4))},
    ]
    joined = _joined(parts, [1, 0])
    assert joined["logits"][:, :, 0].tolist() == [[1, MASKED_LOGIT, MASKED_LOGIT], [1, 1, 1]]
    assert joined["boxes"].shape == (2, 3, 4)


def test_metadata_come_back_as_they_were():
    spec = small_model("detr-r50")[1]
    assert read_metadata(INFO.metadata(spec)) == (INFO, spec)
    assert "resize to exactly 128 x 128" in preprocessing_words(small_model("rtdetr-r18")[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"detrkit": None}, "it has no description"),
        ({"detrkit_export": None}, "it has no description"),
        ({"detrkit_export": "{"}, "malformed JSON"),
        ({"detrkit_export": "[]"}, "an object expected"),
        ({"version": 2}, "exported by a later detrkit .format 2.: upgrade"),
        ({"version": True}, "version is True"),
        ({"least_side": -1}, "least_side is -1"),
        ({"inputs": ["images", "weather"]}, "its inputs are"),
        ({"outputs": ["boxes"]}, "outputs"),
        ({"num_queries": "many"}, "num_queries"),
    ],
)
def test_wrong_metadata_are_one_line(change, reason):
    metadata: dict = dict(INFO.metadata(small_model("detr-r50")[1]))
    for key, value in change.items():
        if key.startswith("detrkit"):
            metadata[key] = value
        else:
            metadata["detrkit_export"] = json.dumps(json.loads(metadata["detrkit_export"]) | {key: value})
    with pytest.raises(DetrkitError, match=reason) as error:
        read_metadata(metadata)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html></html>", b"PK\x03\x04 nothing"])
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_damaged_files_are_one_line(suffix, content, tmp_path):
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}[suffix])
    file = tmp_path / f"model{suffix}"
    file.write_bytes(content)
    with pytest.raises(DetrkitError, match=rf"model\{suffix}: ") as error:
        detrkit.load(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "folder.onnx").mkdir()
    for name in ("none.onnx", "folder.onnx"):
        with pytest.raises(DetrkitError, match=name):
            detrkit.load(tmp_path / name)


def test_onnx_of_others_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "other.onnx",
    )
    with pytest.raises(DetrkitError, match=r"other\.onnx: no exported model of detrkit: it has no description"):
        detrkit.load(tmp_path / "other.onnx")


class _Code:
    def __reduce__(self):
        return (print, ("code was run",))


def _archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return path


def test_archives_that_could_run_code_are_refused(tmp_path, capsys):
    pickled = io.BytesIO()
    torch.save(_Code(), pickled)
    config = json.dumps({"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}).encode()
    for name, members in {
        "legacy": {"m__data__weights__model_dot_pt": pickled.getvalue()},
        "inputs": {"m__data__sample_inputs__model_dot_pt": pickled.getvalue()},
        "config": {"m__data__weights__model_weights_config_dot_json": config},
        "object": {"m__data__constants__custom_obj_0": b""},
        "compiled": {"m__data__aotinductor__model__model_dot_so": b""},
    }.items():
        with pytest.raises(DetrkitError, match="which could run code: export the model again"):
            check_archive(_archive(tmp_path / f"{name}.pt2", **members))
    assert "code was run" not in capsys.readouterr().out


def test_runtimes_are_chosen_by_what_is_installed(monkeypatch):
    import importlib.util

    installed: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object() if name in installed else None)
    with pytest.raises(DetrkitError, match=r"onnxruntime is not installed: pip install 'detrkit\[export\]'"):
        choose_runtime("onnx")
    installed.add("openvino")
    assert choose_runtime("onnx") == "openvino"
    installed.add("onnxruntime")
    assert choose_runtime("onnx") == "onnxruntime"
    assert choose_runtime("torch") == "torch"
    with pytest.raises(DetrkitError, match="onnxruntime does not run files of openvino"):
        choose_runtime("openvino", "onnxruntime")
