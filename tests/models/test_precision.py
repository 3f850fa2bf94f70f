"""Precision of a detector: bfloat16 where the device computes it, float32 and one line elsewhere."""

from __future__ import annotations

import warnings

import pytest
import torch

from detrkit.detector import Detector
from detrkit.models.precision import usable_precision
from detrkit.ops import dense
from detrkit.utils.errors import DetrkitError
from helpers.small_models import small_model

CPU = torch.device("cpu")


@pytest.fixture
def detector():
    return Detector(*small_model("detr-r50"), device="cpu")


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.skipif(not dense.has_bf16_kernels(), reason="this CPU has no instructions for bfloat16")
def test_bfloat16_is_the_model_with_rounded_weights(detector, image):
    half = detector.in_precision("bf16")
    assert half.dtype == torch.bfloat16 and detector.dtype == torch.float32
    state = half.model.state_dict()
    for name, tensor in detector.model.state_dict().items():
        want = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert torch.equal(state[name], want), name
    single, rounded = (one.predict(image, threshold=0) for one in (detector, half))
    assert rounded.boxes.dtype == torch.float32 and len(rounded) == len(single)
    assert 0 < (rounded.scores.sort().values - single.scores.sort().values).abs().max() < 0.05


def test_a_processor_without_it_computes_in_float32_and_says_so(detector, image, monkeypatch):
    monkeypatch.setattr(dense, "has_bf16_kernels", lambda: False)
    with pytest.warns(UserWarning, match="this CPU has no instructions for bfloat16: computing in float32"):
        same = detector.in_precision("bf16")
    assert same is detector


def test_float32_is_the_same_detector_and_says_nothing(detector):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detector.in_precision("fp32") is detector
        assert usable_precision("fp32", CPU) == "fp32"


def test_another_precision_is_refused(detector):
    with pytest.raises(DetrkitError, match="precision is 'fp16': must be fp32 or bf16"):
        detector.in_precision("fp16")
