"""Prediction in tiles by a model whose answers are known, and by models of every kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.detector import Detector
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.tiling.predicting import MaskMemoryError, predict_tiles
from detrkit.tiling.tiles import Tiling
from detrkit.utils.errors import DetrkitError, SettingError
from helpers.seeing import CLASSES, found_boxes, picture, seeing_detector
from helpers.small_models import small_model

# tiles of 64 with an overlap of 16 begin at 0, 48, 96, 144, 192 and 236 of 300 pixels
ON_A_SEAM = (52, 10, 62, 22)  # whole in two tiles
ACROSS = (40, 30, 60, 42)  # part in the first tile, part in the second
LARGE = (20, 80, 250, 130)  # no tile has the whole of it


def test_an_object_on_a_seam_comes_once():
    detector = seeing_detector()
    boxes = [ON_A_SEAM, ACROSS, (100, 50, 115, 60), (230, 5, 245, 20)]
    found = detector.predict(picture(300, 64, boxes), tile=64, overlap=0.25)
    assert found_boxes(found) == sorted(boxes)
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.image.size == (300, 64) and found.classes == CLASSES


def test_every_place_of_an_object_gives_one_box():
    """An object of 15 pixels is moved over three seams, in both directions: one box, at its place."""
    detector = seeing_detector(least=6)  # in the whole image, at its short side of 64, it has 5.3
    for place in range(30, 130, 3):
        box = (place, place + 5, place + 15, place + 20)
        found = detector.predict(picture(180, 180, [box]), tile=64, overlap=0.25)
        assert found_boxes(found) == [box], place


@pytest.mark.parametrize("whole", [True, False])
def test_an_object_larger_than_a_tile_comes_once(whole):
    """Of the whole image, or, where that misses it, joined of its parts in twelve tiles."""
    least = 4 if whole else 12  # it is 50 pixels high, 10.7 in the whole image at its short side of 64
    detector = seeing_detector(least=least)
    found = detector.predict(picture(300, 300, [LARGE]), tile=64, overlap=0.25)
    assert len(found) == 1
    assert np.abs(found.boxes[0].numpy() - np.array(LARGE)).max() <= (5 if whole else 0)
    assert (found.tiles[0] == -1) == whole


def test_small_objects_are_found_in_tiles_alone():
    detector = seeing_detector(least=4)
    boxes = [(10 + 60 * k, 20 + 50 * k, 20 + 60 * k, 30 + 50 * k) for k in range(5)]
    image = picture(400, 400, boxes)
    assert len(detector.predict(image)) == 0
    assert found_boxes(detector.predict(image, tile=64)) == sorted(boxes)


def test_an_image_no_larger_than_a_tile_is_predicted_plainly_to_the_bit():
    model, spec = small_model("deformable-detr-r50-two-stage", size=96)
    detector = Detector(model, spec, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    plain, tiled = detector.predict(pixels, threshold=0.0), detector.predict(pixels, threshold=0.0, tile=100)
    assert torch.equal(plain.boxes, tiled.boxes) and torch.equal(plain.scores, tiled.scores) and tiled.tiles is None
    assert detector.predict(pixels, threshold=0.0, tile=99).tiles is not None


def test_results_do_not_depend_on_the_batch_size_and_keep_the_order_of_the_images():
    detector = seeing_detector()
    images = [picture(64, 64, [(5, 5, 20, 20)]), picture(300, 64, [ACROSS]), picture(64, 64, []), picture(64, 200, [])]
    expected = [[(5.0, 5.0, 20.0, 20.0)], [ACROSS], [], []]
    for batch_size in (1, 2, 5, 100):
        detector.model.batches.clear()
        results = detector.predict(images, tile=64, overlap=0.25, batch_size=batch_size)
        assert [found_boxes(one) for one in results] == expected
        assert max(detector.model.batches) <= batch_size
        assert [one.image.size for one in results] == [image.size for image in images]


def test_tiles_have_the_models_own_preprocessing():
    detector = seeing_detector(size=32)
    detector.predict(picture(300, 64, []), tile=64, overlap=0.25)
    assert detector.model.inputs == [(32, 150), *[(32, 32)] * 6]


def test_a_tiled_detector_cuts_in_every_call_and_the_argument_wins():
    detector = seeing_detector().tiled(64, 0.25)
    image = picture(300, 64, [])
    detector.predict(image)
    assert len(detector.model.inputs) == 7
    detector.model.inputs.clear()
    detector.predict(image, tile=300)
    assert len(detector.model.inputs) == 1
    assert next(iter(detector.stream([image]))).tiles is not None
    assert detector.resized(32).tiling == detector.tiling  # other changes keep the tiles
    assert detector.tiled(None).predict(image).tiles is None and detector.tiling is not None


def test_what_the_threshold_left_out_is_known_in_pixels_of_the_image():
    detector = seeing_detector()
    found = detector.predict(picture(300, 64, [(230, 5, 245, 20)]), tile=64, threshold=0.999)
    assert len(found) == 0 and found.near_miss.box == pytest.approx((230, 5, 245, 20))
    assert found.near_miss.name == "bright" and found.draw().size == (300, 64)


@pytest.mark.parametrize("name", ["detr-r50", "deformable-detr-r50", "rtdetr-r18"])
def test_models_predict_in_tiles(name):
    model, spec = small_model(name, size=64)
    detector = Detector(model, spec, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    found = detector.predict(pixels, tile=80, threshold=0.0)
    assert len(found) and (found.scores.diff() <= 0).all() and found.scores.dtype == torch.float32
    assert found.queries.max() < 20 and found.tiles.max() < 9 and found.tiles.min() >= -1
    # a detection's query index is that of the forward pass over its tile
    tile, query = found.tiles[0], found.queries[0]
    x, y = (0, 0) if tile < 0 else [(x, y) for y in (0, 64, 70) for x in (0, 64, 120)][int(tile)]
    piece = pixels if tile < 0 else pixels[y : y + 80, x : x + 80]
    alone = detector.predict(np.ascontiguousarray(piece), threshold=0.0)
    same = ((alone.queries == query) & (alone.labels == found.labels[0])).nonzero()[0, 0]
    assert torch.allclose(alone.scores[same], found.scores[0], atol=1e-5)


def test_masks_move_with_their_boxes():
    model, spec = small_model("detr-r50", size=64, masks=True)
    detector = Detector(model, spec, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    found = detector.predict(pixels, tile=80, overlap=0.25, threshold=0.0)
    assert found.masks.shape == (len(found), 100, 150) and found.masks.dtype == torch.bool
    windows = [(x, y) for y in (0, 20) for x in (0, 60, 70)]
    whole = detector.predict(pixels, threshold=0.0)
    checked = 0
    for number in range(len(found)):
        tile = int(found.tiles[number])
        if tile < 0:
            expected = whole.masks[whole.queries == found.queries[number]][0]
            assert torch.equal(found.masks[number], expected)
        else:
            x, y = windows[tile]
            alone = detector.predict(np.ascontiguousarray(pixels[y : y + 80, x : x + 80]), threshold=0.0)
            expected = alone.masks[alone.queries == found.queries[number]][0]
            inside = found.masks[number, y : y + 80, x : x + 80]
            assert (inside & expected == expected).all()  # joined parts have more
        checked += 1
    assert checked == len(found)


def test_masks_of_an_image_have_a_budget():
    """Each piece has one object, everywhere: 150 x 100 + 6 x 80 x 80 pixels of parts, and 7 masks of 150 x 100."""
    batches = []

    def detect(pieces):
        batches.append(len(pieces))
        return [one(sum(batches) - len(pieces) + k, piece) for k, piece in enumerate(pieces)]

    def one(label, piece):
        box, masks = torch.tensor([[0.0, 0.0, *piece.size]]), torch.ones(1, piece.height, piece.width, dtype=torch.bool)
        return Detections(box, torch.tensor([0.9]), torch.tensor([label]), masks=masks)

    def predicted(budget):
        batches.clear()
        tiling = Tiling(80, 0.25, max_mask_bytes=budget)
        return predict_tiles(Image.new("RGB", (150, 100)), tiling, detect, batch_size=2)

    parts, masks = 150 * 100 + 6 * 80 * 80, 7 * 150 * 100
    found = predicted(parts + masks)
    assert found.masks.shape == (7, 100, 150) and found.masks.sum((1, 2)).tolist() == [15_000] + [6_400] * 6
    with pytest.raises(MaskMemoryError, match=r"tiles of 80 pixels, overlap 0\.25 take 158,400 bytes or more, and may"):
        predicted(parts + masks - 1)
    assert batches == [2, 2, 2, 1]
    with pytest.raises(MaskMemoryError, match="choose a greater threshold"):
        predicted(150 * 100 + 80 * 80 - 1)
    assert batches == [2]  # as soon as the parts alone are too large


def test_a_panoptic_model_has_no_tiles():
    stuff = ClassList(tuple("abcdefg"), tuple(range(7)), (True,) * 6 + (False,))
    model, spec = small_model("detr-r50-panoptic", size=64)
    detector = Detector(model, replace(spec, classes=stuff), device="cpu")
    with pytest.raises(SettingError, match="tile: a panoptic model assigns every pixel"):
        detector.predict(Image.new("RGB", (100, 100)), tile=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, "tile is 0: must be at least 32"),
        ({"tile": 64.5}, "tile is 64.5: must be a whole number"),
        ({"tile": "640"}, "tile is '640': must be a whole number"),
        ({"tile": 64, "overlap": 1}, "overlap is 1: must be at most 0.9"),
    ],
)
def test_values_out_of_range_are_one_clear_line(arguments, message):
    with pytest.raises(DetrkitError, match=message):
        seeing_detector().predict(picture(100, 100, []), **arguments)
