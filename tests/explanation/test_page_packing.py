"""The file of a page: quantization, its size, and what it says of what was left out."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import ImageColor

import detrkit
from detrkit.explanation.page import page_html
from detrkit.explanation.page.attention import cells_of_level, tokens
from detrkit.explanation.page.sections import (
    ORIGIN,
    packed_masks,
    quantized_maps,
    quantized_points,
    quantized_weights,
    section,
)
from detrkit.utils.errors import SettingError, WriteError
from detrkit.visualize.attention import OBJECT_COLORS
from helpers.datasets import picture
from helpers.explained import detector_of

HEIGHT, WIDTH = 100, 140


def explained(kind, threshold=0.0, **options):
    return detrkit.explain(detector_of(kind, **options), picture(HEIGHT, WIDTH, 3), threshold=threshold)


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def array_of(text, name):
    described = next(entry for entry in data_of(text)["sections"] if entry["name"] == name)
    payload = re.search(rf'id="section-{re.escape(name)}">([^<]*)<', text)[1]
    values = np.frombuffer(zlib.decompress(base64.b64decode(payload)), described["dtype"])
    return values.reshape(described["shape"])


def test_maps_survive_quantization():
    torch.manual_seed(1)
    maps = (4 * torch.randn(5, 3, 20, 30)).flatten(2).softmax(-1).view(5, 3, 20, 30)
    values, scales = quantized_maps(maps)
    assert values.dtype == np.uint8 and scales.dtype == np.float32 and scales.shape == (5, 3)
    restored = torch.from_numpy(scales)[..., None, None] * (torch.from_numpy(values).float() / 255) ** 2
    assert float(((restored - maps).abs().amax((-2, -1)) / maps.amax((-2, -1))).max()) <= 1 / 254
    assert torch.allclose(restored.sum((-2, -1)), torch.ones(5, 3), atol=0.01)


def test_small_weights_beside_a_large_one_are_kept():
    """In equal steps of 1/255 of the largest, the 3,749 others, half of the attention, would all be 0."""
    map_ = torch.full((1, 50, 75), 0.5 / 3749)
    map_[0, 0, 0] = 0.5
    values, scales = quantized_maps(map_)
    restored = scales[0] * (values[0].astype(float) / 255) ** 2
    assert restored.sum() == pytest.approx(1.0, abs=0.04) and (restored > 0).all()


def test_an_empty_map_stays_empty():
    values, scales = quantized_maps(torch.zeros(1, 2, 2))
    assert not values.any() and scales[0] == 0


def test_weights_of_points_sum_to_one_again():
    torch.manual_seed(2)
    weights = (2 * torch.randn(7, 8, 16)).softmax(-1).view(7, 8, 4, 4)
    squares = torch.from_numpy(quantized_weights(weights)).float() ** 2
    restored = squares / squares.sum((-2, -1), keepdim=True)
    assert float((restored - weights).abs().max()) < 0.006


def test_points_survive_quantization():
    """To 1/2 step; beyond the reach of 16 bits they stay outside of the image."""
    points = torch.tensor([[0.0, 0.0], [1199.0, 800.0], [599.5, 12.25], [-300.0, 900.0], [1e7, -1e7]]).view(
        1, 1, 1, 5, 2
    )
    got = quantized_points(points, (800, 1199), around=None, steps=16384).astype(float)
    restored = torch.from_numpy((got - ORIGIN) / 16384) * torch.tensor([1199.0, 800.0])
    assert float((restored - points)[..., :4, :].abs().max()) <= 0.5 * 1199 / 16384 + 1e-4
    assert restored[0, 0, 0, 4, 0] > 1.9 * 1199 and restored[0, 0, 0, 4, 1] <= -2 * 800
    near = quantized_points(points, (800, 1199), around=torch.tensor([[600.0, 400.0]]), steps=4096).astype(float)
    back = torch.from_numpy((near - ORIGIN) / 4096) * torch.tensor([1199.0, 800.0]) + torch.tensor([600.0, 400.0])
    assert float((back - points)[..., :4, :].abs().max()) <= 0.5 * 1199 / 4096 + 1e-3


def test_masks_and_sections_survive():
    masks = torch.rand(3, 5, 11) > 0.5
    packed = packed_masks(masks)
    assert packed.shape == (3, 5, 2)
    assert np.array_equal(np.unpackbits(packed, axis=-1)[..., :11].astype(bool), masks.numpy())
    values = np.arange(70000, dtype=np.uint16).reshape(7, 10000)
    part = section("a", values)
    assert part.dtype == "uint16" and part.shape == (7, 10000) and part.size == len(part.payload)
    assert np.array_equal(np.frombuffer(zlib.decompress(base64.b64decode(part.payload)), "<u2"), values.flatten())


@pytest.mark.parametrize(("size", "step", "rows", "columns"), [
    ((4, 6), 1, [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]),
    ((4, 7), 3, [1, 3], [1, 4, 6]),  # the last block is cut: its cell is the last one
    ((1, 1), 8, [0], [0]),
])  # fmt: skip
def test_cells_of_a_step(size, step, rows, columns):
    assert tuple(cells_of_level(size, step)) == (rows, columns)


def test_tokens_of_cells():
    """Two padded levels of 4 x 5 and 2 x 3 tokens."""
    assert tokens(cells_of_level((2, 3), 1), [(4, 5), (2, 3)], 0).tolist() == [0, 1, 2, 5, 6, 7]
    assert tokens(cells_of_level((2, 2), 1), [(4, 5), (2, 3)], 1).tolist() == [20, 21, 23, 24]


def test_the_file_says_its_size():
    text = page_html(explained("deformable-detr-r50-two-stage"))
    data = data_of(text)
    assert data["fileBytes"] == len(text.encode("utf-8")) and data["leftOut"] == []
    assert data["cross"]["layers"] == ["heads"] * 3 and data["encoder"]["layers"] == ["heads"] * 2
    assert data["bytes"]["cross"] == sum(
        len(payload) for payload in re.findall(r'id="section-cross[^"]*">([^<]*)<', text)
    )


def test_the_page_asks_for_nothing():
    text = page_html(explained("detr-r50"))
    assert "default-src 'none'" in text and not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "http://" not in text and "https://" not in text


@pytest.mark.parametrize("kind", ["detr-r50", "deformable-detr-r50-two-stage"])
def test_a_smaller_file_holds_less_and_says_what(kind):
    explanation = explained(kind, size=320)
    whole = len(page_html(explanation))
    sizes, left_out = [], []
    for share in (0.9, 0.6, 0.4):
        text = page_html(explanation, max_megabytes=share * whole / 1e6)
        assert len(text) <= share * whole
        sizes.append(len(text))
        left_out.append(data_of(text)["leftOut"])
    assert sizes == sorted(sizes, reverse=True)
    assert all(left_out)  # each says something
    assert any("encoder" in sentence for sentence in left_out[-1])


def test_what_is_kept_of_the_encoder_is_what_the_explanation_says():
    """Every second cell of each level: the points of one of them, read from the file."""
    explanation = explained("deformable-detr-r50-two-stage", size=320)
    text = page_html(explanation, max_megabytes=0.75 * len(page_html(explanation)) / 1e6)
    data = data_of(text)
    cells = data["encoder"]["cells"][0]
    assert len(cells["rows"]) < explanation.grid[0]
    (height, width), layer = explanation.grid, explanation.encoder_layers - 1
    row, column = cells["rows"][1], cells["columns"][2]
    x, y = (column + 0.5) / width * WIDTH, (row + 0.5) / height * HEIGHT
    want = explanation.encoder_points(x, y, layer, level=0)
    got = array_of(text, f"encoder.{layer}.0.xy")[len(cells["columns"]) + 2].astype(float)
    points = (got - ORIGIN) / data["encoder"]["steps"] * [WIDTH, HEIGHT] + [x, y]
    assert np.abs(points - want.points.numpy()).max() < 0.03
    total = sum(h * w for h, w in explanation.maps.levels)
    kept = sum(len(level["rows"]) * len(level["columns"]) for level in data["encoder"]["cells"])
    sentence = f"self-attention of {total - kept:,} of the encoder's {total:,} cells: {kept:,} can be chosen"
    assert sentence in data["leftOut"]


def test_the_encoder_of_one_map_beside_sampled_points():
    """RT-DETR: the cells of the coarsest map alone can be asked for, and have maps; the queries have points."""
    explanation = explained("rtdetrv2-r18", level_points=(4, 2, 1))
    data = data_of(text := page_html(explanation))
    assert data["deformable"] and not data["encoderPoints"] and data["leftOut"] == []
    height, width = explanation.maps.levels[-1]
    assert data["encoder"]["cells"] == [None, None, {"rows": list(range(height)), "columns": list(range(width))}]
    assert data["encoder"]["reach"] == [1.0, 1.0]
    full = explanation.capture.encoder_weights[1].full()[0]  # (H, S, S)
    values, scales = array_of(text, "encoder.1"), array_of(text, "encoder.1.scale")
    assert values.shape == (height * width, 4, height, width)
    for cell, head in ((0, 0), (height * width - 1, 3)):
        got = scales[cell, head] * (values[cell, head] / 255.0) ** 2
        want = full[head, cell].view(height, width).numpy()
        assert np.abs(got - want).max() <= want.max() / 250
    assert data["cross"]["points"] == [4, 2, 1] and array_of(text, "cross.0.xy").shape[1:] == (4, 3, 4, 2)


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_smaller_file_holds_fewer_cells_of_the_one_map(share):
    explanation = explained("rtdetrv2-r18", size=512)
    whole = len(page_html(explanation))
    data = data_of(text := page_html(explanation, max_megabytes=share * whole / 1e6))
    assert len(text) <= share * whole and data["leftOut"]
    total = explanation.maps.levels[-1][0] * explanation.maps.levels[-1][1]
    assert not any(f"of the encoder's {total + 1:,}" in sentence for sentence in data["leftOut"])
    kept = data["encoder"]["cells"]
    assert not kept or kept[:2] == [None, None]


def test_large_maps_are_added_up_in_blocks(monkeypatch):
    monkeypatch.setattr("detrkit.explanation.page.plans.MAX_MAP_CELLS", 20)
    explanation = explained("detr-r50", size=192)  # 6 x 9 cells
    height, width = explanation.grid
    data = data_of(text := page_html(explanation))
    assert "the encoder's single weights: those of 2 x 2 cells are added up" in data["leftOut"]
    assert data["encoder"]["reach"] == [-(-height // 2) * 2 / height, -(-width // 2) * 2 / width]
    values, scales = array_of(text, "encoder.1"), array_of(text, "encoder.1.scale")
    assert values.shape[-2:] == (-(-height // 2), -(-width // 2))
    want = explanation.self_attention(0.0, 0.0, 1, 3)
    corner = scales[0, 3] * (values[0, 3, 0, 0] / 255) ** 2
    assert corner == pytest.approx(float(want[:2, :2].sum()), rel=0.02)
    assert float((scales[0, 3] * (values[0, 3] / 255) ** 2).sum()) == pytest.approx(1, abs=0.02)


def test_objects_have_the_colors_of_the_pictures():
    script = resources.files("detrkit.explanation.page").joinpath("assets/colors.js").read_text(encoding="utf-8")
    listed = re.search(r"OBJECT_COLORS = \[(.*?)\]", script)
    assert listed is not None
    assert tuple(ImageColor.getrgb(color) for color in re.findall(r'"(#\w+)"', listed[1])) == OBJECT_COLORS


@pytest.mark.parametrize("kind", ["detr-r50", "detr-r50-panoptic"])
def test_the_best_detections_are_kept_where_not_all_fit(kind):
    explanation = many_times(explained(kind), 20)
    least = re.search(r"at least ([\d.]+) MB", refused(explanation))
    assert least is not None
    text = page_html(explanation, max_megabytes=float(least[1]) + 0.002)
    data = data_of(text)
    count = len(data["detections"])
    assert 0 < count < len(explanation) and len(text) <= 1e6 * float(least[1]) + 2000
    scores = sorted(explanation.detections.scores.tolist(), reverse=True)
    assert sorted((one["score"] for one in data["detections"]), reverse=True) == pytest.approx(scores[:count], abs=1e-4)
    left = f"{len(explanation) - count} of the {len(explanation)} detections, those of the lowest scores"
    assert left in data["leftOut"]
    by_query = {int(query): i for i, query in enumerate(explanation.queries)}
    for one in data["detections"]:  # numbers stay with their detection
        i = by_query[one["query"]]
        assert one["box"] == pytest.approx(explanation.detections.boxes[i].tolist(), abs=0.01)
        if explanation.panoptic is not None:
            assert one["area"] == explanation.panoptic.segments[i].area


def many_times(explanation, times):
    """Return an explanation with every detection so many times."""
    order = torch.arange(len(explanation)).repeat_interleave(times)
    panoptic = explanation.panoptic
    if panoptic is not None:
        panoptic = dataclasses.replace(panoptic, segments=[panoptic.segments[i] for i in order.tolist()])
    return dataclasses.replace(explanation, detections=explanation.detections.select(order), panoptic=panoptic)


def refused(explanation):
    with pytest.raises(SettingError) as raised:
        page_html(explanation, max_megabytes=0.01)
    return str(raised.value)


def test_a_size_too_small_for_the_detections_is_refused(tmp_path):
    explanation = explained("detr-r50")
    match = r"the page takes at least 0\.\d+ MB with its best detection alone, more than max_megabytes=0.01: allow more"
    with pytest.raises(SettingError, match=match):
        explanation.save_page(tmp_path / "a.html", max_megabytes=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_sizes_out_of_range_are_refused(value):
    with pytest.raises(SettingError, match=r"max_megabytes is .*: give a size in MB above 0, such as 4"):
        page_html(explained("detr-r50"), max_megabytes=value)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(WriteError, match="taken"):
        explained("detr-r50").save_page(tmp_path / "taken" / "page.html")


@pytest.mark.parametrize("kind", ["detr-r50-dc5", "no-encoder", "deformable-detr-r50", "instance", "detr-demo"])
def test_other_models_have_pages(kind):
    explanation = explained(kind, num_queries=5) if kind != "detr-demo" else explained(kind)
    data = data_of(text := page_html(explanation, title="a <photo>"))
    assert len(data["detections"]) == len(explanation) and "<title>a &lt;photo&gt;</title>" in text
    assert len(data["encoder"]["layers"]) == explanation.encoder_layers
    assert (data["maskWidth"] is not None) == (explanation.detections.masks is not None)


def test_numbers_that_are_not_finite_are_zero():
    """As in explanation.json: JSON cannot state them, and a page with them would not open."""
    explanation = explained("detr-r50")
    capture = explanation.capture
    assert capture.boxes is not None and capture.logits is not None
    boxes, logits = capture.boxes.clone(), capture.logits.clone()
    boxes[0], logits[1] = torch.nan, torch.inf
    changed = dataclasses.replace(explanation, capture=dataclasses.replace(capture, boxes=boxes, logits=logits))
    entry = data_of(page_html(changed))["detections"][0]
    assert entry["layerBoxes"][0] == [0, 0, 0, 0] and entry["layerScores"][1] == 0
    assert entry["layerScores"][2] == pytest.approx(float(explanation.layer_scores(0)[2]), abs=6e-5)
