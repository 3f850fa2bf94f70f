"""What each query predicts over many images, against sums by hand and against `predict`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from detrkit.explanation import queries as module
from detrkit.explanation.queries import QuerySlots
from detrkit.models.postprocess import PostProcessor
from detrkit.structures.outputs import Outputs
from helpers.explanations import KINDS, noise, tiny_detector


def outputs(boxes, scores, *, two_stage=False) -> Outputs:
    """Of a softmax model with one class: (B, Q, 4) boxes and (B, Q) scores."""
    scores = torch.tensor(scores)
    logits = torch.stack([scores, 1 - scores], -1).log()
    encoder = Outputs(logits, torch.tensor(boxes)) if two_stage else None
    return Outputs(logits, torch.tensor(boxes), encoder=encoder)


def test_counts_means_and_deviations_by_hand():
    slots = QuerySlots(PostProcessor(threshold=0.5))
    slots.add(outputs([[[0.2, 0.4, 0.1, 0.1], [0.9, 0.9, 0.2, 0.2]]], [[0.6, 0.1]]))
    slots.add(
        outputs(
            [[[0.4, 0.6, 0.1, 0.3], [0.7, 0.9, 0.2, 0.2]], [[0.6, 0.8, 0.1, 0.5], [0.5, 0.9, 0.2, 0.2]]],
            [[0.9, 0.2], [0.4, 0.7]],
        )
    )
    assert slots.images == 3 and slots.counts.tolist() == [2, 1] and slots.by_use() == [0, 1]
    numbers = slots.numbers()
    assert numbers["images"] == 3 and numbers["slot"] == "learned query"
    first, second = numbers["queries"]
    assert first["detections"] == 2 and first["mean_box"] == [0.4, 0.6, 0.1, 0.3]
    assert first["std_box"] == pytest.approx([0.1633, 0.1633, 0, 0.1633], abs=2e-4)  # sqrt(2 / 3 * 0.04)
    assert first["mean_box_detected"] == [0.3, 0.5, 0.1, 0.2] and first["std_box_detected"][0] == 0.1
    assert second["mean_box_detected"] == [0.5, 0.9, 0.2, 0.2] and second["std_box_detected"] == [0, 0, 0, 0]
    json.dumps(numbers, allow_nan=False)


def test_a_slot_without_detections():
    slots = QuerySlots(PostProcessor(threshold=0.5))
    slots.add(outputs([[[0.2, 0.4, 0.1, 0.1]]], [[0.5]]))
    (row,) = slots.numbers()["queries"]
    assert row["detections"] == 0 and row["mean_box_detected"] is None and row["mean_box"][0] == 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_predict(kind):
    detector = tiny_detector(kind)
    images = [noise(96, 64, seed=k) for k in range(4)]
    scores = torch.cat([one.scores for one in detector.predict(images, threshold=0.0)]).sort(descending=True).values
    few = scores[2:12]  # of at least 20; the threshold lies in the widest gap, out of reach of rounding
    gap = int((few[:-1] - few[1:]).argmax())
    threshold = float(few[gap] + few[gap + 1]) / 2
    slots = QuerySlots.of(detector, threshold)
    for part in (images[:1], images[1:]):
        slots.add(detector.outputs(part).outputs)
    want = torch.zeros(5, dtype=torch.int64)
    for one in detector.predict(images, threshold=threshold):
        want[one.queries.unique()] += 1
    assert 0 < int(want.sum()) < 20 and slots.counts.tolist() == want.tolist()
    assert slots.two_stage == (kind == "two-stage")
    assert slots.numbers()["slot"] == ("rank of a proposal" if kind == "two-stage" else "learned query")


def test_memory_is_bounded_and_numbers_are_of_all(monkeypatch):
    monkeypatch.setattr(module, "_KEPT_IMAGES", 8)
    slots = QuerySlots(PostProcessor(threshold=0.5))
    for k in range(100):
        slots.add(outputs([[[k / 100, 0.5, 0.1, 0.1]]], [[0.9]]))
    kept = [round(float(boxes[0, 0]) * 100) for boxes in slots._boxes]
    assert kept == list(range(0, 100, kept[1])) and len(kept) <= 8  # evenly over all images
    assert slots.counts.tolist() == [100] and slots.numbers()["queries"][0]["mean_box"][0] == 0.495
    slots.draw()


def test_the_picture_has_a_point_for_each_image_at_its_place():
    slots = QuerySlots(PostProcessor(threshold=0.5))
    slots.add(outputs([[[0.25, 0.75, 0.01, 0.01], [0.5, 0.5, 1.0, 1.0]]], [[0.9, 0.1]]))
    one, both = np.asarray(slots.draw([0])), slots.draw()
    square = one[6 + 2 : 6 + 198, 6 + 2 : 6 + 198]
    marked = np.argwhere((square != 255).any(-1)) + 2
    assert np.abs(marked.mean(0) - [150, 50]).max() < 1.5
    assert both.width == 6 + 2 * 206


def test_many_slots_are_smaller_squares():
    slots = QuerySlots(PostProcessor(threshold=0.5))
    slots.add(outputs(np.full((1, 40, 4), 0.5, np.float32), np.full((1, 40), 0.7, np.float32)))
    assert slots.draw().width == 6 + 5 * 206  # the 20 with the most detections
    assert slots.draw(range(40)).width == 6 + 15 * 118


def test_what_cannot_be_drawn():
    slots = QuerySlots(PostProcessor(threshold=0.5))
    with pytest.raises(ValueError, match="no image was added"):
        slots.draw()
    slots.add(outputs([[[0.2, 0.4, 0.1, 0.1]]], [[0.5]]))
    with pytest.raises(ValueError, match=r"queries \[1\]: choose 0 to 0"):
        slots.draw([1])
