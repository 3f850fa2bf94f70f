"""`PostProcessor`: its settings, and that each is what the name says; masks have tests of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detrkit.models.postprocess import PostProcessor, postprocess
from detrkit.models.spec import ModelSpec
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Outputs

CLASSES = ClassList(("a", "b", "c"), (4, 5, 9))


def outputs(queries=4, classes=3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, queries, classes, generator=generator)
    return Outputs(logits, torch.rand(2, queries, 4, generator=generator))


@pytest.mark.parametrize(
    ("name", "activation", "segment_threshold"),
    [("detr-r50", "softmax", 0.85), ("detr-r50-panoptic", "softmax", 0.85), ("deformable-detr-r50", "sigmoid", 0.4)],
)
def test_the_settings_of_a_checkpoint(name, activation, segment_threshold):
    made = PostProcessor.of(ModelSpec(name, num_classes=3, classes=CLASSES))
    assert made == PostProcessor(activation=activation, classes=CLASSES, segment_threshold=segment_threshold)


@pytest.mark.parametrize(("top_k", "expected"), [(5, 5), (100, 12), (None, 12)])
def test_sigmoid_gives_the_best_pairs_of_query_and_class(top_k, expected):
    out = outputs()
    found = PostProcessor(activation="sigmoid", top_k=top_k).detections(out, [(10, 20), (30, 40)])
    for i, one in enumerate(found):
        best = out.logits[i].sigmoid().flatten().sort(descending=True)
        assert len(one) == expected
        # a kernel may compute the last few of a row another way than in the middle of a batch
        torch.testing.assert_close(one.scores, best.values[:expected], rtol=1e-6, atol=0)
        assert torch.equal(one.labels, best.indices[:expected] % 3)
        assert torch.equal(one.queries, best.indices[:expected] // 3)
        cx, cy, w, h = out.boxes[i, best.indices[0] // 3].tolist()
        width, height = [(20, 10), (40, 30)][i]
        box = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
        assert one.boxes[0].tolist() == pytest.approx(box, abs=1e-5)


def test_more_queries_than_a_hundred_are_all_detected():
    out = outputs(queries=120)
    counts = [len(PostProcessor(activation="sigmoid", top_k=k).detections(out, [(9, 9)] * 2)[0]) for k in (None, 100)]
    assert counts == [120, 100]


def test_a_threshold_keeps_what_is_above():
    out = outputs()
    every = PostProcessor(classes=CLASSES).detections(out, [(10, 20), (30, 40)])
    middle = float(every[0].scores.sort().values[1])
    some = PostProcessor(classes=CLASSES, threshold=middle).detections(out, [(10, 20), (30, 40)])
    assert [len(one) for one in every] == [4, 4] and len(some[0]) == 2
    assert torch.equal(some[0].scores, every[0].scores[every[0].scores > middle]) and some[0].classes is CLASSES
    above = every[0].scores > middle
    assert some[0].queries.tolist() == above.nonzero()[:, 0].tolist() and every[1].queries.tolist() == [0, 1, 2, 3]
    every[0].queries += 1  # the images share no memory
    assert every[1].queries.tolist() == [0, 1, 2, 3]


def test_images_come_one_by_one():
    out, sizes = outputs(), [(10, 20), (30, 40)]
    one_by_one = PostProcessor().iter_detections(out, sizes)
    assert iter(one_by_one) is one_by_one
    for one, other in zip(one_by_one, postprocess(out, sizes), strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"^activation is 'relu': choose softmax or sigmoid$"):
        PostProcessor(activation="relu")
    with pytest.raises(ValueError, match=r"^duplicates is 'kept': choose merged or published$"):
        replace(PostProcessor(), duplicates="kept")
    with pytest.raises(ValueError, match=r"^1 image sizes for a batch of 2$"):
        PostProcessor().detections(outputs(), [(1, 1)])
