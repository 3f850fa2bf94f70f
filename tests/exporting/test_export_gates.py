"""The gates of an export: every model passes them in every format, and planted differences do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.exporting import fitting
from detrkit.exporting.export import passed_gates
from detrkit.exporting.fitting import Room
from detrkit.exporting.gates import batches_of
from detrkit.exporting.graph import record
from detrkit.exporting.writers import write
from detrkit.runtimes.model import ExportedModel, load_exported
from detrkit.structures.batch import Batch
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import load_model
from helpers.small_models import small_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def exported(name: str, folder: Path, kind: str, **options) -> tuple:
    """A small model with its file, opened in the runtime."""
    model, spec = small_model(name)
    recorded = record(model, spec, format=kind, **options)
    return model, load_exported(write(recorded, folder, "model")[0])[0], recorded.spec


@pytest.fixture
def detr(files) -> tuple:
    model, _ = load_model(files / "detr.safetensors")
    return model, *load_exported(files / "detr.onnx")


@pytest.fixture(scope="module")
def two_stage(tmp_path_factory) -> tuple:
    return exported("dino-r50-4scale", tmp_path_factory.mktemp("two-stage"), "onnx", postprocess=True)


class Changed:
    """A session whose inputs or outputs are changed, as by a mistake of an exporter."""

    def __init__(self, session, inputs=lambda arrays: arrays, outputs=lambda arrays: arrays) -> None:
        self.session, self.inputs, self.outputs = session, inputs, outputs
        self.runtime, self.metadata = session.runtime, session.metadata

    def run(self, inputs):
        return self.outputs(self.session.run(self.inputs(inputs)))


def with_session(file: ExportedModel, spec, **changes) -> ExportedModel:
    return ExportedModel(Changed(file.session, **changes), file.info, spec)


def test_batches_are_one_two_and_eight_square_and_not_padded_and_not(detr):
    _, file, spec = detr
    batches = batches_of(file.info, spec)
    assert {len(batch) for batch in batches} == {1, 2, 8}
    single = [batch[0] for batch in batches if len(batch) == 1]
    assert any(h == w for h, w in single) and any(h != w for h, w in single)
    assert len(set(batches[3])) == 8  # all of another size, so that all but one are padded


def test_of_a_fixed_size_batches_have_room_in_memory(detr, monkeypatch):
    """DETR DC5 at 800 x 1333 takes 10 GiB an image in ONNX Runtime: batches of eight were killed by the system."""
    model, file, spec = detr
    fixed = ExportedModel(file.session, replace(file.info, fixed=(96, 128)), spec)
    everything = [gate.name for gate in passed_gates(model, fixed, spec)]
    assert "8 images padded to 96 x 128" in everything
    monkeypatch.setattr(Room, "fits", lambda self, images: min(images, 3))
    few = [gate.name for gate in passed_gates(model, fixed, spec)]
    assert "3 images padded to 96 x 128" in few and "8 images padded to 96 x 128" not in few
    assert any("alone and in a batch" in name for name in few)


def test_room_is_what_the_memory_has_left(monkeypatch):
    """An image takes 1.5 GiB, 10 GiB are free: three fifths of that are 4 images."""
    peaks = iter([1024.0, 1024.0 + 1536.0])
    monkeypatch.setattr(fitting, "peak_mib", lambda device: next(peaks))
    monkeypatch.setattr(fitting, "available_memory", lambda: 10 * 2**30)
    room = Room()
    assert room.fits(8) == 8  # nothing is known yet
    with room.measure(1):
        pass
    assert [room.fits(count) for count in (1, 2, 8)] == [1, 2, 4]
    monkeypatch.setattr(fitting, "available_memory", lambda: 2**30)
    assert room.fits(8) == 1


def test_the_file_computes_what_pytorch_computes(detr):
    model, file, spec = detr
    gates = passed_gates(model, file, spec)
    assert len(gates) >= 7
    assert all(gate.differences["boxes"] < 2e-5 for gate in gates)  # far within what passes, 1e-4


@pytest.mark.slow
def test_chosen_tokens_are_compared_by_their_scores_and_queries_by_equal_tokens(two_stage):
    model, file, spec = two_stage
    gates = passed_gates(model, file, spec)
    detections = [gate for gate in gates if gate.name.startswith("detections of")]
    compared = [gate for gate in gates if gate not in detections and "alone and in a batch" not in gate.name]
    assert len(detections) == len(compared) >= 5
    assert all("token scores" in gate.differences for gate in compared), [(g.name, g.differences) for g in compared]


def test_a_wrong_epsilon_is_caught(detr):
    model, file, spec = detr
    norms = [module for module in model.encoder.modules() if isinstance(module, torch.nn.LayerNorm)]
    norms[0].eps = 1e-2
    with pytest.raises(DetrkitError, match=r"^the exported file computes other numbers: logits differ by .* for "):
        passed_gates(model, file, spec)


def test_a_dropped_mask_is_caught(detr):
    model, file, spec = detr
    blind = with_session(file, spec, inputs=lambda a: {**a, "padding_mask": np.zeros_like(a["padding_mask"])})
    with pytest.raises(DetrkitError, match="padded to"):
        passed_gates(model, blind, spec)


def test_a_batch_baked_in_is_caught(detr):
    model, file, spec = detr

    def first_alone(arrays):
        return {name: np.repeat(array[:1], len(array), 0) for name, array in arrays.items()}

    with pytest.raises(DetrkitError, match="for 2 images"):
        passed_gates(model, with_session(file, spec, outputs=first_alone), spec)


def test_another_order_of_the_classes_is_caught(detr):
    model, file, spec = detr
    swapped = with_session(file, spec, outputs=lambda a: {**a, "logits": np.roll(a["logits"], 1, -1)})
    with pytest.raises(DetrkitError, match="logits differ"):
        passed_gates(model, swapped, spec)


def test_not_a_number_is_caught(detr):
    model, file, spec = detr
    broken = with_session(file, spec, outputs=lambda a: {**a, "boxes": a["boxes"] * np.float32("nan")})
    with pytest.raises(DetrkitError, match="boxes differ by nan"):
        passed_gates(model, broken, spec)


@pytest.mark.slow
def test_other_tokens_are_caught_by_their_scores(two_stage):
    model, file, spec = two_stage

    def worst(arrays):
        return {**arrays, "proposal_index": np.zeros_like(arrays["proposal_index"])}

    with pytest.raises(DetrkitError, match=r"(logits|boxes|token scores) differ"):
        passed_gates(model, with_session(file, spec, outputs=worst), spec)


# other formats and models with masks are in test_export_files, all models and formats in `benchmarks/export.py --small`
@pytest.mark.slow
def test_a_model_of_squares_passes_in_openvino_with_its_post_processing(tmp_path):
    pytest.importorskip("openvino")
    gates = passed_gates(*exported("rtdetrv2-r18", tmp_path, "openvino", postprocess=True))
    assert len(gates) >= 6 and any(gate.name.startswith("detections of") for gate in gates)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fixed", "batch"),
    [("detr-r50", (128, 192), 2), ("rtdetr-r18", (160, 160), None)],
)
def test_fixed_sizes_take_smaller_images_and_any_number_of_them(name, fixed, batch, tmp_path):
    model, file, spec = exported(name, tmp_path, "onnx", fixed=fixed, batch=batch)
    passed_gates(model, file, spec)
    assert max(spec.size, spec.max_size or 0) <= max(fixed)


@pytest.mark.slow
def test_padding_as_published_is_exported_as_it_is(tmp_path):
    model, spec = small_model("detr-r50")
    spec = replace(spec, padding="official")
    model.backbone.padding = "official"
    recorded = record(model, spec, format="onnx")
    file = load_exported(write(recorded, tmp_path, "model")[0])[0]
    passed_gates(model, file, spec)


@pytest.mark.slow
def test_a_backbone_without_masks_runs_images_of_one_size_together(tmp_path):
    model, spec = small_model("detr-r50", backbone="presnet10")
    recorded = record(model, spec, format="onnx")
    assert recorded.info.inputs == ("images",)
    file = load_exported(write(recorded, tmp_path, "model")[0])[0]
    passed_gates(model, file, spec)
    batch = Batch.from_images([torch.randn(3, h, w) for h, w in [(80, 100), (100, 70), (80, 100)]])
    with torch.no_grad():
        torch.testing.assert_close(file(batch).logits, model(batch).logits, atol=1e-3, rtol=0)


def test_a_model_that_needs_numbers_is_refused_in_one_line():
    class Counting(type(small_model("detr-r50")[0])):
        def forward(self, images, *args, **options):
            return super().forward(images, *args, **options) if len(images) else None

    model, spec = small_model("detr-r50")
    model.__class__ = Counting
    with pytest.raises(DetrkitError, match=r"detr-r50 cannot be recorded as a graph \(.*use `count`\)"):
        record(model, spec, format="onnx")
