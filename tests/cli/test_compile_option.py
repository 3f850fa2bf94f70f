"""`--compile` of predict and serve. The compiler is stood in for: tests/models/test_compiled_forward.py has it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from detrkit.cli import main
from detrkit.detector import Detector
from detrkit.models.compiled import PASSES, compiled_forward
from detrkit.serve.warming import check_compiled, warm_up
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import save_model
from helpers.compiler import Compiler
from helpers.explained import detector_of
from helpers.small_models import small_model


@pytest.fixture
def compiler(monkeypatch):
    return Compiler().install(monkeypatch)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for k in range(PASSES + 2):
        pixels = np.random.default_rng(k).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{k:02}.png")
    detector = detector_of("detr-r50", size=32)
    return save_model(tmp_path / "a.safetensors", detector.model, detector.spec)


def test_predict(photos, compiler, capsys):
    words = ["predict", str(photos), "photos", "--device", "cpu", "--threshold", "0", "--no-pictures"]
    assert main([*words, "--out", "plain"]) == 0
    capsys.readouterr()
    assert main([*words, "--out", "fast", "--batch-size", "1", "--compile"]) == 0
    assert "1 image of 48 x 32 pixels: compiled 2.00 times as fast" in " ".join(capsys.readouterr().out.split())
    assert compiler.graphs == 1 and compiler.passes == PASSES // 2 - 1 + 2
    want, got = (json.loads((photos.parent / name / "predictions.json").read_text()) for name in ("plain", "fast"))
    assert want.keys() == got.keys()
    for name in want:
        for a, b in zip(want[name], got[name], strict=True):
            np.testing.assert_allclose(a["box"], b["box"], atol=1e-3)


def test_shards(photos, compiler, capsys):
    words = ["predict", str(photos), "photos", "--device", "cpu", "--shards", "1", "--out", "found", "--compile"]
    assert main([*words, "--engine", "ray"]) == 2
    assert "--compile: the workers of Ray do not compile" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--batch-size", "1"]) == 0
    assert "compiled 2.00 times as fast" in " ".join(capsys.readouterr().out.split())


def test_serve_compiles_before_it_takes_requests(compiler, caplog):
    detector = Detector(*small_model("rtdetrv2-r18", size=64), device="cpu").compiled()
    check_compiled(detector)
    with caplog.at_level(logging.INFO, "detrkit.compile"):
        warm_up(detector, 4)
    assert [line.split(" of ")[0] for line in caplog.messages] == ["1 image", "4 images"]
    forward = compiled_forward(detector.model)
    assert [(size.shape[0], trial.chosen) for size, trial in forward.trials.items()] == [
        (1, "compiled"),
        (4, "compiled"),
    ]
    image = Image.new("RGB", (64, 64))
    for _ in range(PASSES):
        detector.predict([image] * 2, batch_size=2)
    assert compiler.graphs == 2
    with pytest.raises(DetrkitError, match="resizes images to many sizes: leave it out"):
        check_compiled(detector_of("detr-r50", size=64))
