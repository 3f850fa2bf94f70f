"""`--tile`, `--overlap` and `--num-queries` of the commands: what they pass on, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli import main
from detrkit.detector import load
from detrkit.weights.checkpoint import save_model
from helpers.small_models import small_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model, spec = small_model("rtdetr-r18", size=64)
    return str(save_model(tmp_path_factory.mktemp("model") / "a.safetensors", model, spec))


@pytest.fixture
def image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    Image.fromarray(pixels).save("a.png")
    return "a.png"


def predicted(*words):
    assert main([*words, "--device", "cpu", "--threshold", "0", "--no-pictures"]) == 0
    return json.loads(open("predictions/predictions.json").read())["a.png"]


def test_the_command_predicts_as_the_detector(weights, image):
    words = ["predict", weights, image, "--tile", "64", "--overlap", "0.3", "--num-queries", "5"]
    detector = load(weights, device="cpu").with_num_queries(5)
    expected = detector.predict(image, threshold=0.0, tile=64, overlap=0.3)
    found = predicted(*words)
    assert len(found) == len(expected) > 5
    boxes = torch.tensor([one["box"] for one in found])
    assert torch.allclose(boxes, expected.boxes, atol=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tile", "0"], "--tile 0: must be at least 32"),
        (["--tile", "64.5"], "--tile"),
        (["--tile", "64", "--overlap", "1"], "--overlap 1: must be at most 0.9"),
        (["--overlap", "0.3"], "--overlap 0.3 is that of tiles: give --tile, too"),
        (["--num-queries", "0"], "--num-queries 0: must be at least 1"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "eval"])
def test_wrong_values_are_one_line(weights, image, capsys, command, words, message):
    source = image if command == "predict" else "."
    assert main([command, weights, source, "--device", "cpu", *words]) == 2
    errors = capsys.readouterr().err
    assert message in " ".join(errors.split()) and "Traceback" not in errors


def test_a_model_with_learned_queries_says_so(tmp_path, image, capsys):
    model, spec = small_model("detr-r50", size=64)
    weights = save_model(tmp_path / "detr.safetensors", model, spec)
    assert main(["predict", str(weights), image, "--device", "cpu", "--num-queries", "30"]) == 2
    assert "num_queries is 30: the 20 queries of this model are learned" in " ".join(capsys.readouterr().err.split())
