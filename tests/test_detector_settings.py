"""A detector gives the same results whatever the program around it has set; the model's own dtype and device decide."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.detector import Detector
from detrkit.structures.classes import ClassList
from detrkit.weights.checkpoint import ModelSpec, save_model
from helpers.tiny import SMALLEST

OPTIONS = SMALLEST | {"dec_layers": 2, "num_queries": 6}
THINGS = ClassList(("a", "b", "c"), (1, 2, 3))
MODELS = {
    "detr": ("detr-r50", {"masks": True}, THINGS),
    "deformable": ("deformable-detr-r50-two-stage", {}, THINGS),
    "panoptic": ("deformable-detr-r50", {"masks": True}, ClassList(("a", "b", "c"), (1, 2, 3), (True, True, False))),
}


@pytest.fixture(scope="module", params=MODELS)
def detector(request):
    name, options, classes = MODELS[request.param]
    spec = ModelSpec(name, {**OPTIONS, **options}, num_classes=3, classes=classes, size=64, max_size=96)
    torch.manual_seed(1)
    model = spec.build()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "class" in key and parameter.ndim == 2:
                parameter.mul_(8)  # scores that differ
    return Detector(model, spec, device="cpu")


@pytest.fixture(scope="module")
def expected(detector):
    return predicted(detector)


def predicted(detector):
    rng = np.random.default_rng(0)
    sizes = ((80, 100), (90, 60))
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return detector.predict(images, threshold=0.0)


def assert_same(results, expected, *, pixels=1e-3, scores=1e-5):
    for one, other in zip(results, expected, strict=True):
        if hasattr(one, "id_map"):
            assert (one.id_map != other.id_map).float().mean() < 1e-3 and one.id_map.dtype == torch.int32
            tensors = [one.id_map]
        else:
            assert one.labels.tolist() == other.labels.tolist()
            torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=pixels)  # and the dtype
            torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=scores)
            tensors = [one.boxes, one.scores, one.labels]
        assert all(t.device.type == "cpu" and not t.is_inference() and not t.requires_grad for t in tensors)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SETTINGS = {
    "double": lambda: default_dtype(torch.float64),
    "half": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "meta within": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "one thread": lambda: threads(1),
    "three threads": lambda: threads(3),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_program_around(detector, expected, setting):
    with SETTINGS[setting]():
        results = predicted(detector)
        for one in results:
            one.draw()
            replace(one, image_id=1).to_coco()
    assert_same(results, expected)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["half", "meta", "meta within", "inference mode"])
def test_a_loaded_model_is_that_of_its_file(detector, expected, tmp_path, setting):
    path = save_model(tmp_path / "a.safetensors", detector.model, detector.spec)
    with SETTINGS[setting]():
        loaded = detrkit.load(path, device="cpu")
    assert loaded.dtype == torch.float32 and not any(p.is_inference() for p in loaded.model.parameters())
    assert_same(predicted(loaded), expected)


@pytest.mark.parametrize(
    ("dtype", "pixels", "scores"),
    [(torch.float64, 1e-3, 1e-5), (torch.float16, 0.2, 5e-3), (torch.bfloat16, None, None)],
)
def test_models_of_other_dtypes(detector, expected, dtype, pixels, scores):
    other = Detector(copy.deepcopy(detector.model).to(dtype), detector.spec, device="cpu")
    assert other.dtype == dtype
    results = predicted(other)
    if pixels is not None and not hasattr(results[0], "id_map"):
        assert_same(results, expected, pixels=pixels, scores=scores)
    for one in results:
        assert hasattr(one, "id_map") or one.boxes.dtype == one.scores.dtype == torch.float32


def test_a_model_of_two_dtypes_is_named(detector):
    mixed = Detector(copy.deepcopy(detector.model), detector.spec, device="cpu")
    mixed.model.backbone.half()
    with pytest.raises(ValueError, match=r"^the model has parameters of float16 and float32: use one dtype, such as"):
        predicted(mixed)


@pytest.mark.gpu
def test_a_gpu_as_the_default_device(detector, expected):
    with default_device("cuda"):
        assert_same(predicted(detector), expected)
    moved = Detector(copy.deepcopy(detector.model), detector.spec, device="cpu")
    moved.model.cuda()  # behind its back
    assert moved.device.type == "cuda" and len(predicted(moved)) == 2
