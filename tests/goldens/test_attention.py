"""What an explanation says of attention against the attention of the official code, over the image without padding."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import goldens
from detrkit.explanation.maps import DeformableMaps, DenseMaps, attention_maps

FILES = sorted(path.stem for path in (goldens.HERE / "attention").glob("*.npz"))
DENSE = [name for name in FILES if name.startswith("detr")]
DEFORMABLE = [name for name in FILES if name.startswith("deformable")]
WEIGHTS = LOCATIONS = 2e-5  # tolerances of the goldens' own page
DEFORMABLE_WEIGHTS = 5e-5
STRIDES = (8, 16, 32, 64)


@cache
def _case(name):
    """The official attention, the sizes of the images, and what our model kept of the same batch."""
    case = next(c for c in goldens.cases("model_forward") if c["file"] == f"{name}.npz")
    with np.load(goldens.HERE / "attention" / f"{name}.npz") as file:
        official = {key: torch.from_numpy(file[key]) for key in file.files}
    model = goldens.model(case["variant"])
    goldens.set_padding(model, "official")
    with torch.inference_mode():
        capture = model(goldens.images(case), capture=True).capture
    return official, [tuple(row[1:]) for row in case["images"]], capture


def _images(names):
    return [pytest.param(name, n, id=f"{name}-{n}") for name in names for n in range(2 if "batch" in name else 1)]


@pytest.mark.parametrize(("name", "number"), _images(DENSE))
def test_maps_are_the_official_weights(name, number):
    official, sizes, capture = _case(name)
    maps = attention_maps(capture, number, sizes[number])
    assert isinstance(maps, DenseMaps)
    h, w = official["feature_shape"].tolist()
    stride = 16 if "dc5" in name else 32
    height, width = (math.ceil(side / stride) for side in sizes[number])
    assert maps.grid == (height, width)
    for layer in _layers(official, "decoder_attention"):
        weights = official[f"decoder_attention_{layer}"][number].view(-1, h, w)[:, :height, :width]
        for query in range(0, len(weights), 9):
            got = maps.of_query(query, layer, "mean")
            torch.testing.assert_close(got, weights[query], rtol=0, atol=WEIGHTS)
            assert float(got.sum()) == pytest.approx(1, abs=1e-5)
            heads = [maps.of_query(query, layer, head) for head in range(8)]
            torch.testing.assert_close(torch.stack(heads).mean(0), weights[query], rtol=0, atol=WEIGHTS)
    tokens = range(0, h * w, 7 if "dc5" in name else 1)  # the rows that the golden holds
    for row, token in enumerate(tokens):
        y, x = divmod(token, w)
        if y >= height or x >= width:
            continue  # padding
        pixel = (x + 0.5) / width * sizes[number][1], (y + 0.5) / height * sizes[number][0]
        want = official["encoder_attention_5"][number, row].view(h, w)[:height, :width]
        got = maps.of_cell(*pixel, 5, "mean", 0)
        torch.testing.assert_close(got, want, rtol=0, atol=WEIGHTS)
        assert float(got.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("name", "number"), _images(DEFORMABLE))
def test_points_are_the_official_locations_in_pixels(name, number):
    official, sizes, capture = _case(name)
    height, width = sizes[number]
    maps = attention_maps(capture, number, (height, width))
    assert isinstance(maps, DeformableMaps)
    padded = [max(size[axis] for size in sizes) for axis in (0, 1)]
    assert capture.feature_shapes == [tuple(math.ceil(side / s) for side in padded) for s in STRIDES]
    scale = _pixels_of_the_padded_maps(capture.feature_shapes, padded, (height, width))  # (L, 2)
    for layer in _layers(official, "decoder_locations"):
        locations = official[f"decoder_locations_{layer}"][number]
        weights = official[f"decoder_weights_{layer}"][number]
        for row, query in enumerate(range(0, 300, 10)):
            points, got = maps.points_of_query(query, layer)
            torch.testing.assert_close(points, locations[row] * scale[:, None], rtol=0, atol=LOCATIONS * max(padded))
            torch.testing.assert_close(got, weights[row], rtol=0, atol=DEFORMABLE_WEIGHTS)
            assert torch.allclose(got.sum((1, 2)), torch.ones(8), atol=1e-5)
    locations, weights = official["encoder_locations_5"][number], official["encoder_weights_5"][number]
    compared = 0
    for row, token in enumerate(range(0, capture.padding.shape[1], 97)):
        if capture.padding[number, token]:
            continue
        level, (y, x) = _place(token, capture.feature_shapes)
        cells = maps.levels[level]
        pixel = (x + 0.5) / cells[1] * width, (y + 0.5) / cells[0] * height
        points, got = maps.points_of_cell(*pixel, 5, level)
        torch.testing.assert_close(points, locations[row] * scale[:, None], rtol=0, atol=LOCATIONS * max(padded))
        torch.testing.assert_close(got, weights[row], rtol=0, atol=DEFORMABLE_WEIGHTS)
        compared += 1
    assert compared > 5


def _layers(official, prefix):
    """The numbers of the layers that a golden holds, the last among them."""
    layers = [int(name.rsplit("_", 1)[1]) for name in official if name.startswith(prefix)]
    assert 5 in layers
    return layers


def _pixels_of_the_padded_maps(shapes, padded, size):
    """(L, 2): what a location of 1 on each level's padded map is in pixels of an image.

    The official code finds the valid part of a map by reducing the padding mask of the pixels to the nearest cell's,
    and takes that part for the image.
    """
    mask = torch.zeros(1, 1, *padded)
    mask[..., : size[0], : size[1]] = 1
    rows = []
    for h, w in shapes:
        valid = F.interpolate(mask, size=(h, w))[0, 0]
        rows.append([w / float(valid[0].sum()) * size[1], h / float(valid[:, 0].sum()) * size[0]])
    return torch.tensor(rows)


def _place(token, shapes):
    """The level of a token, and its row and column there."""
    for level, (h, w) in enumerate(shapes):
        if token < h * w:
            return level, divmod(token, w)
        token -= h * w
    raise AssertionError
