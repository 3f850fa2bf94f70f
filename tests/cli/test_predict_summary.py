"""What `detrkit predict` says at its end: totals, and why nothing was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli import main
from detrkit.detector import Detector, load
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections, NearMiss
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, save_model

OPTIONS = {
    "backbone": "resnet10", "backbone_width": 8, "backbone_norm": "group", "hidden_dim": 32, "nheads": 4,
    "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1, "num_queries": 4,
}  # fmt: skip
SPEC = ModelSpec("detr-r50", OPTIONS, num_classes=2, classes=ClassList(("cat", "d[/]g"), (1, 2)), size=32, max_size=64)
SUGGESTED = {"general": 0.01, "f1": 0.6, "classes": {"cat": 0.02}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint without and one with suggested thresholds, and 14 images."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    model = SPEC.build()
    save_model(folder / "plain.safetensors", model, SPEC)
    save_model(folder / "run.safetensors", model, replace(SPEC, training={"epoch": 3, "score_thresholds": SUGGESTED}))
    (folder / "photos").mkdir()
    for i in range(14):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i:02d}.png")
    return folder


def predicted(folder, capsys, weights, *options):
    assert main(["predict", str(folder / weights), str(folder / "photos"), "--out", str(folder / "out"), *options]) == 0
    return capsys.readouterr().out


def test_nothing_found_says_the_best_score_and_what_to_try(folder, capsys):
    text = predicted(folder, capsys, "plain.safetensors", "--no-pictures", "--threshold", "0.9")
    assert "0 objects in 14 images" in text
    assert "nothing was found: nothing above 0.9; best score 0." in text
    assert text.count("nothing above 0.9; best score 0.") == 12 + 1  # for each image of the table, and once for all
    assert "... and 2 more (--verbose lists all)" in text
    assert len(text.splitlines()) <= 25
    text = predicted(folder, capsys, "plain.safetensors", "--no-pictures", "--threshold", "0.9", "--verbose")
    assert text.count("nothing above 0.9; best score 0.") == 14 + 1 and "more" not in text


def test_suggested_thresholds_are_the_default_of_a_run(folder, capsys):
    text = predicted(folder, capsys, "run.safetensors", "--no-pictures")
    assert "score above the suggested thresholds (--threshold auto): cat 0.02, others 0.01" in text
    assert text == predicted(folder, capsys, "run.safetensors", "--no-pictures", "--threshold", "auto")
    text = predicted(folder, capsys, "run.safetensors", "--no-pictures", "--threshold", "0.9")
    assert "; suggested threshold 0.01: --threshold auto" in text


def test_thresholds_of_a_model_that_has_learned_little_are_called_so(folder, capsys):
    poor = "expect many wrong and many missed objects"
    assert poor not in predicted(folder, capsys, "run.safetensors", "--no-pictures")
    training = {"epoch": 1, "score_thresholds": {"general": 0.01, "f1": 0.064, "classes": {}}}
    torch.manual_seed(0)
    save_model(folder / "poor.safetensors", SPEC.build(), replace(SPEC, training=training))
    assert f"F1 was 6% where they were measured: {poor}" in predicted(
        folder, capsys, "poor.safetensors", "--no-pictures"
    )
    assert poor not in predicted(folder, capsys, "poor.safetensors", "--no-pictures", "--threshold", "0.5")


def test_thresholds_of_classes_that_the_model_does_not_have_are_not_listed(folder, capsys):
    classes = {**SUGGESTED["classes"], **{f"class {k}": 0.5 for k in range(1000)}}
    training = {"score_thresholds": {**SUGGESTED, "classes": classes}}
    save_model(folder / "more.safetensors", SPEC.build(), replace(SPEC, training=training))
    text = predicted(folder, capsys, "more.safetensors", "--no-pictures")
    assert "(--threshold auto): cat 0.02, others 0.01\n" in text


def test_auto_without_a_suggestion_is_one_line(folder, capsys):
    out = folder / "none"
    photos = str(folder / "photos")
    assert main(["predict", str(folder / "plain.safetensors"), photos, "--threshold", "auto", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "threshold auto: this checkpoint holds no suggested thresholds" in error and "such as 0.5" in error
    assert not out.exists() or not any(out.iterdir())


def test_each_class_has_its_threshold(folder):
    detector = load(folder / "run.safetensors", device="cpu")
    assert isinstance(detector, Detector) and detector.suggested_thresholds is not None
    assert detector.threshold == 0.01
    image = folder / "photos" / "00.png"
    everything = detector.predict(image, threshold=0.0)
    limits = torch.tensor([0.02, 0.01])[everything.labels]
    by_hand = everything.select(everything.scores > limits)
    for results in (detector.predict(image), detector.predict(image, threshold="auto")):
        assert results.scores.tolist() == by_hand.scores.tolist() and results.labels.tolist() == by_hand.labels.tolist()
    plain = load(folder / "plain.safetensors", device="cpu")
    assert plain.suggested_thresholds is None and plain.threshold == 0.5
    with pytest.raises(DetrkitError, match="threshold auto: this checkpoint holds no"):
        plain.predict(image, threshold="auto")
    with pytest.raises(ValueError, match="threshold is 'low'"):
        plain.predict(image, threshold="low")  # type: ignore[call-overload]


def test_near_miss_is_the_best_relative_to_its_threshold():
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 6, 6]])
    found = Detections(boxes, torch.tensor([0.2, 0.3, 0.1]), torch.tensor([0, 1, 0]), classes=SPEC.classes)
    assert found.above(0.1).near_miss is None and len(found.above(0.1)) == 2
    assert found.above(0.5).near_miss == ("d[/]g", pytest.approx(0.3), 0.5, 1, (1.0, 1.0, 5.0, 5.0))
    assert found.above([0.25, 0.9]).near_miss == ("cat", pytest.approx(0.2), 0.25, 0, (0.0, 0.0, 4.0, 4.0))
    assert str(found.above(0.5).near_miss) == "nothing above 0.5; best score 0.30 (d[/]g)"
    assert found.select(torch.zeros(3, dtype=torch.bool)).above(0.5).near_miss is None


@pytest.mark.parametrize(
    ("score", "threshold", "words"),
    [
        (0.5281, 0.53, "nothing above 0.53; best score 0.528 (cat)"),  # not "0.53"
        (0.52996, 0.53, "nothing above 0.53; best score 0.52996 (cat)"),
        (0.53, 0.53, "nothing above 0.53; best score 0.53 (cat)"),
        (0.00996, 0.01, "nothing above 0.01; best score 0.00996 (cat)"),
        (0.52999999, 0.53, "nothing above 0.53; best score 0.530000 (cat)"),
    ],
)
def test_near_miss_shows_that_it_is_below_its_threshold(score, threshold, words):
    assert str(NearMiss("cat", score, threshold, 0)) == words


def test_a_damaged_suggestion_is_refused(folder):
    wrong = replace(SPEC, training={"score_thresholds": {"general": 3.0, "f1": 0.1}})
    save_model(folder / "wrong.safetensors", SPEC.build(), wrong)
    with pytest.raises(DetrkitError, match=r"training.score_thresholds: general is 3.0: must be at most 1"):
        load(folder / "wrong.safetensors")
