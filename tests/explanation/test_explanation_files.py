"""The folder of an explanation: which files, what numbers, and nothing of anybody's lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.explanation import explain
from detrkit.explanation.files import central_pixels
from detrkit.explanation.numbers import explanation_numbers
from detrkit.utils.errors import DetrkitError
from helpers.disk import full_disk
from helpers.explained import KINDS as KINDS_OF_ALL
from helpers.explained import detector_of
from helpers.explanations import KINDS, noise, tiny_explanation


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_files(tmp_path, kind):
    e = tiny_explanation(kind)
    written = e.save(tmp_path / "a b", objects=1)
    each = ["boxes", "heads", "map", *(["points"] if e.deformable else [])]
    want = ["encoder.jpg", "explanation.json", "layers.jpg", *(f"object-00-{name}.jpg" for name in each), "objects.jpg"]
    assert sorted(path.name for path in written) == want and all(path.parent == tmp_path / "a b" for path in written)
    assert names(tmp_path / "a b") == ["detrkit-files.json", *want] and names(tmp_path) == ["a b"]
    for path in written:
        if path.suffix == ".jpg":
            with Image.open(path) as image:
                image.load()


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_explanation(kind):
    e = tiny_explanation(kind)
    numbers = json.loads(json.dumps(explanation_numbers(e, [(20.5, 30.0)]), allow_nan=False))
    assert numbers["image"] == {"width": 96, "height": 64}
    assert numbers["model"]["grid"] == list(e.grid) and numbers["model"]["heads"] == 4
    assert numbers["model"]["attention"] == ("whole map" if kind == "plain" else "sampled points")
    assert numbers["near_miss"] is None and len(numbers["detections"]) == len(e)
    for i, one in enumerate(numbers["detections"]):
        assert one["query"] == int(e.queries[i]) and one["name"] == e.detections.names[i]
        assert np.allclose(one["box"], e.detections.boxes[i], atol=0.006)
        assert np.allclose(one["layer_boxes"], e.layer_boxes(i), atol=0.006)
        assert np.allclose(one["layer_boxes"][-1], one["box"], atol=0.02)
        assert np.allclose(one["reference_boxes"], e.reference_boxes(i), atol=0.006)
        assert np.allclose(one["layer_scores"], e.layer_scores(i), rtol=6e-4)
        assert one["layer_scores"][-1] == pytest.approx(one["score"], rel=1e-3)
        attention = np.array(one["attention"])
        assert np.allclose(attention, e.cross_attention(i), rtol=6e-4) and attention.sum() == pytest.approx(1, abs=2e-3)
        for layer in range(2):
            assert one["attention_in_box"][layer] == pytest.approx(e.attention_inside(i, layer), rel=6e-4)
            assert one["weight_outside_image"][layer] == pytest.approx(e.outside(i, layer), rel=6e-4)
            for head in range(4):
                want = e.attention_inside(i, layer, head)
                assert one["attention_in_box_by_head"][layer][head] == pytest.approx(want, rel=6e-4)
        if kind == "plain":
            assert "points" not in one and one["weight_outside_image"] == [0, 0]
        else:
            points, weights = e.sampling_points(i)
            assert np.allclose(one["points"], points, atol=0.006) and np.allclose(one["weights"], weights, rtol=6e-4)
        assert (one["proposal"] is None) == (kind != "two-stage")
    (pixel,) = numbers["pixels"]
    assert (pixel["x"], pixel["y"]) == (20.5, 30) and np.allclose(
        pixel["attention"], e.self_attention(20.5, 30), rtol=6e-4
    )
    assert ("points" in pixel) == e.deformable


def test_the_share_of_the_area_is_of_the_part_inside():
    e = tiny_explanation("plain")
    e.detections.boxes[0] = torch.tensor([-50.0, 16.0, 48.0, 32.0])
    try:
        assert explanation_numbers(e)["detections"][0]["box_share"] == 0.125  # 48 x 16 of 96 x 64
    finally:
        tiny_explanation.cache_clear()


def test_pixels_by_default():
    e = tiny_explanation("plain")
    boxes = e.detections.boxes
    want = ((boxes[:4, :2] + boxes[:4, 2:]) / 2).clamp(torch.zeros(2), torch.tensor([95.99, 63.99]))
    assert torch.allclose(torch.tensor(central_pixels(e)), want)
    nothing = tiny_explanation("plain", threshold=1.0)
    assert central_pixels(nothing) == [(32, 64 / 3), (64, 64 / 3), (32, 128 / 3), (64, 128 / 3)]


def test_nothing_found(tmp_path):
    e = tiny_explanation("two-stage", threshold=1.0)
    assert [path.name for path in e.save(tmp_path / "a")] == ["objects.jpg", "encoder.jpg", "explanation.json"]
    numbers = json.loads((tmp_path / "a/explanation.json").read_text())
    assert numbers["detections"] == [] and numbers["near_miss"]["threshold"] == 1.0 and len(numbers["pixels"]) == 4


def test_no_segments(tmp_path):
    e = explain(detector_of("detr-r50-panoptic", panoptic=True, size=64), noise(), threshold=1.0)
    assert len(e) == 0 and e.detections.near_miss.box is None
    e.save(tmp_path / "a")
    numbers = json.loads((tmp_path / "a/explanation.json").read_text())
    assert numbers["near_miss"]["name"] == e.detections.near_miss.name and numbers["detections"] == []


def test_chosen_pixels_and_no_objects(tmp_path):
    e = tiny_explanation("plain")
    assert len(e.save(tmp_path / "a", pixels=[(3, 4)], objects=0)) == 3
    assert json.loads((tmp_path / "a/explanation.json").read_text())["pixels"][0]["x"] == 3
    with pytest.raises(ValueError, match=r"pixel \(3, 64\) is outside the image"):
        e.save(tmp_path / "b", pixels=[(3, 64)], objects=0)
    with pytest.raises(DetrkitError, match="objects is -1: must be at least 0"):
        e.save(tmp_path / "b", objects=-1)
    assert names(tmp_path) == ["a"]


def test_a_single_pixel_and_what_is_no_pixel(tmp_path):
    e = tiny_explanation("plain")
    e.save(tmp_path / "a", objects=0, pixels=(20.5, 30.0))
    assert [(p["x"], p["y"]) for p in json.loads((tmp_path / "a/explanation.json").read_text())["pixels"]] == [
        (20.5, 30)
    ]
    with pytest.raises(ValueError, match=r"pixel: give \(x, y\), or a list of them"):
        e.save(tmp_path / "b", pixels=[(1, 2, 3)])
    assert names(tmp_path) == ["a"]


def test_a_folder_is_replaced_only_if_it_is_as_it_was_written(tmp_path):
    e = tiny_explanation("plain")
    e.save(tmp_path / "a", objects=2)
    e.save(tmp_path / "a", objects=0, pixels=[])
    assert names(tmp_path / "a") == ["detrkit-files.json", "explanation.json", "objects.jpg"]
    (tmp_path / "a/mine.txt").write_text("mine")
    with pytest.raises(DetrkitError, match=r"holds mine\.txt, which detrkit did not write, so it is not replaced"):
        e.save(tmp_path / "a", objects=0)
    assert (tmp_path / "a/mine.txt").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"mine")
    with pytest.raises(DetrkitError, match=r"a\.jpg is a file; choose another output folder"):
        tiny_explanation("plain").save(tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == b"mine"


def test_a_full_disk_leaves_nothing(tmp_path):
    with full_disk(), pytest.raises(DetrkitError, match="cannot write"):
        tiny_explanation("plain").save(tmp_path / "a", objects=0)
    assert names(tmp_path) == []


def test_with_a_page(tmp_path):
    written = tiny_explanation("two-stage").save(tmp_path / "a", objects=0, pixels=[], page=True)
    assert [path.name for path in written] == ["objects.jpg", "explanation.json", "page.html"]
    assert "<title>a" in (tmp_path / "a/page.html").read_text(encoding="utf-8")
    tiny_explanation("two-stage").save(tmp_path / "a", objects=0, pixels=[])  # the page is of detrkit, too
    assert not (tmp_path / "a/page.html").exists()


def test_a_model_without_encoder_has_no_pictures_of_it(tmp_path):
    e = explain(detector_of("no-encoder"), noise(), threshold=0.0)
    assert "encoder.jpg" not in [path.name for path in e.save(tmp_path / "a", objects=0)]
    assert json.loads((tmp_path / "a/explanation.json").read_text())["pixels"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_ALL)
def test_every_model_is_saved(tmp_path, kind):
    detector = detector_of(kind, panoptic="panoptic" in kind, size=64)
    e = explain(detector, noise(), threshold=0.0)
    written = e.save(tmp_path / "a", objects=1)
    assert len(written) == (e.encoder_layers > 0) + 2 + (len(e) > 0) * (4 + e.deformable)
