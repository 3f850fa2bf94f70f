"""Masks and panoptic results: right for padded batches, and in cases small enough to be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from detrkit.models.instance_masks import instance_masks, largest
from detrkit.models.postprocess import panoptic, postprocess
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Outputs

# as the model gets them, and as the files have them; the second is padded on both sides
PROCESSED = [(128, 96), (98, 64), (122, 96)]
ORIGINAL = [(256, 192), (75, 49), (122, 96)]
THINGS = (True, False, True, False, False)
CLASSES = ClassList(("cat", "sky", "dog", "grass", "sea"), (7, 3, 1, 4, 5), THINGS)


def outputs(seed=0, queries=12):
    """Of a batch of three, and of its images alone: smooth masks, of which some queries are sure."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, queries, 6, generator=generator) * 4
    boxes = torch.rand(3, queries, 4, generator=generator) * 0.2 + 0.4
    height, width = (-(-side // 4) for side in largest(PROCESSED))
    cells = [(-(-h // 4), -(-w // 4)) for h, w in PROCESSED]
    together = Outputs(logits, boxes, torch.zeros(3, queries, height, width), mask_sizes=cells)
    alone = []
    for i, (h, w) in enumerate(cells):
        smooth = F.interpolate(torch.randn(1, queries, 5, 4, generator=generator) * 2, size=(h, w), mode="bicubic")
        together.masks[i, :, :h, :w] = smooth[0]
        alone.append(Outputs(logits[i, None], boxes[i, None], smooth, mask_sizes=cells[i : i + 1]))
    return together, alone


def whole(out):
    """The same as a model with padding="official" gives them."""
    return Outputs(out.logits, out.boxes, out.masks)


def of(masks, labels, *, scores=None, classes=5):
    """Outputs of one image: (Q, h, w) masks, and a label (or no object, -1) and a score for each query."""
    logits = torch.full((1, len(labels), classes + 1), -20.0)
    for query, label in enumerate(labels):
        p = 0.99 if scores is None else scores[query]
        logits[0, query, label] = 0.0
        logits[0, query, label - 1] = np.log((1 - p) / p)
    return Outputs(logits, torch.full((1, len(labels), 4), 0.5), torch.as_tensor(masks, dtype=torch.float32)[None])


def grid(rows):
    """Masks from a drawing: query k is largest where the digit k stands."""
    drawn = torch.tensor([[int(c) for c in row] for row in rows])
    return torch.stack([(drawn == k) * 2.0 - 1.0 for k in range(int(drawn.max()) + 1)])


def ids(result, step=1):
    """The map as digits; `step` takes one pixel of so many each way."""
    return ["".join(map(str, row[::step])) for row in result.id_map.tolist()[::step]]


# batches


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_panoptic_of_a_batch_is_that_of_single_images(seed):
    together, alone = outputs(seed)
    options = {"things": THINGS}
    batch = panoptic(together, input_sizes=PROCESSED, target_sizes=ORIGINAL, **options)
    official = panoptic(whole(together), input_sizes=PROCESSED, target_sizes=ORIGINAL, **options, official=True)
    shifted = 0.0
    for i, out in enumerate(alone):
        (single,) = panoptic(out, input_sizes=PROCESSED[i : i + 1], target_sizes=ORIGINAL[i : i + 1], **options)
        assert len(single) >= 2  # there is something to compare
        assert batch[i].id_map.shape == single.id_map.shape == ORIGINAL[i]
        assert torch.equal(batch[i].id_map, single.id_map) and batch[i].segments == single.segments
        # nor need the outputs say which part is the image's
        (plain,) = (
            r
            for k, r in enumerate(panoptic(whole(together), input_sizes=PROCESSED, target_sizes=ORIGINAL, **options))
            if k == i
        )
        assert torch.equal(plain.id_map, single.id_map)
        # what the published way of enlarging makes of the same masks, with its ids moved by one
        shifted = max(shifted, float((official[i].id_map + 1 != single.id_map).float().mean()))
    assert shifted > 0.05


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_instance_masks_of_a_batch_are_those_of_single_images(scores):
    together, alone = outputs(3)
    batch = postprocess(together, ORIGINAL, input_sizes=PROCESSED, activation=scores, top_k=20)
    official = postprocess(whole(together), ORIGINAL, input_sizes=PROCESSED, activation=scores, top_k=20, official=True)
    for i, out in enumerate(alone):
        (single,) = postprocess(out, ORIGINAL[i : i + 1], input_sizes=PROCESSED[i : i + 1], activation=scores, top_k=20)
        assert batch[i].masks.shape == single.masks.shape == (len(single), *ORIGINAL[i])
        assert batch[i].masks.dtype == torch.bool and batch[i].labels.tolist() == single.labels.tolist()
        assert torch.equal(batch[i].masks, single.masks) and 0.2 < single.masks.float().mean() < 0.8
        # the published way cuts off the padding, too, but after enlarging: borders move a little
        different = (official[i].masks != single.masks).float().mean()
        assert 0 < different <= 0.05 if i else different == 0
    assert len(batch[0]) == (12 if scores == "softmax" else 20)


def test_deferred_masks_are_made_for_confident_queries_alone():
    together, _ = outputs(1)
    asked = []

    class Deferred:
        def of(self, queries):
            asked.extend(len(q) for q in queries)
            return together.masks_of(queries)

    deferred = Outputs(together.logits, together.boxes, mask_sizes=together.mask_sizes, deferred_masks=Deferred())
    for threshold in (0.85, 0.5):
        options = {"input_sizes": PROCESSED, "target_sizes": ORIGINAL, "things": THINGS, "threshold": threshold}
        a, b = panoptic(deferred, **options), panoptic(together, **options)
        assert all(torch.equal(x.id_map, y.id_map) and x.segments == y.segments for x, y in zip(a, b, strict=True))
    assert sum(asked[:3]) < sum(asked[3:]) < 3 * 12


# by hand


def test_stuff_of_a_class_is_one_segment():
    """Two masks of sky, one of grass and a cat: the second sky keeps its pixels, under the id of the first."""
    out = of(grid(["0011", "0011", "2233", "2233"]), [1, 0, 1, 3], scores=[0.9, 0.95, 0.97, 0.88])
    (result,) = panoptic(out, input_sizes=[(16, 16)], target_sizes=[(8, 8)], classes=CLASSES)
    assert ids(result, 2) == ["1122", "1122", "1133", "1133"]
    assert result.id_map.dtype == torch.int32 and result.names == ["sky", "cat", "grass"]
    assert [(s.id, s.label, s.area, s.thing) for s in result.segments] == [
        (1, 1, 32, False),
        (2, 0, 16, True),
        (3, 3, 16, False),
    ]
    assert [s.score for s in result.segments] == pytest.approx([0.97, 0.95, 0.88], abs=1e-6)
    assert [s.query for s in result.segments] == [2, 1, 3]  # of the sky the one whose score it has
    assert all("query" not in entry for entry in [*result.to_json(), *result.segments_info()])


def test_things_of_a_class_are_several():
    masks = grid(["001122", "001122", "001122"])
    (stuff,) = panoptic(of(masks, [0, 0, 2]), input_sizes=[(12, 24)], target_sizes=[(3, 6)], things=[False] * 5)
    (things,) = panoptic(of(masks, [0, 0, 2]), input_sizes=[(12, 24)], target_sizes=[(3, 6)])
    assert ids(stuff) == ["111122"] * 3 and ids(things) == ["112233"] * 3
    assert all(s.thing for s in things.segments) and not any(s.thing for s in stuff.segments)
    assert things.classes is None and things.names == ["class 0", "class 0", "class 2"]


def test_small_segments_are_given_away_until_there_is_none():
    """Those of 5 pixels stay; the pixels of the others go to the next largest mask."""
    masks = grid(["000000", "000000", "001122", "001222"])
    masks[0, 2:] = -0.5  # next in line for the pixels of the others
    (result,) = panoptic(of(masks, [0, 2, 2]), input_sizes=[(16, 24)], target_sizes=[(4, 6)])
    assert ids(result) == ["111111", "111111", "111122", "111222"]
    assert [(s.id, s.area) for s in result.segments] == [(1, 19), (2, 5)]
    halves = of(grid(["000000", "000000", "001122", "001122"]), [0, 1, 1])
    (merged,) = panoptic(halves, input_sizes=[(16, 24)], target_sizes=[(4, 6)], things=THINGS)
    assert [(s.label, s.area) for s in merged.segments] == [(0, 16), (1, 8)]  # halves of stuff are counted together
    (counted,) = panoptic(halves, input_sizes=[(16, 24)], target_sizes=[(4, 6)])
    assert [s.area for s in counted.segments] == [24]  # and halves of things apart
    (larger,) = panoptic(halves, input_sizes=[(16, 24)], target_sizes=[(8, 12)])
    assert [s.area for s in larger.segments] == [64, 16, 16]  # in pixels of the result


def test_pixels_of_a_dropped_segment_may_save_another():
    masks = grid(["000000", "000000", "000011", "000222"])
    masks[2, 2, 4:] = 0.5  # the two pixels of query 1 fall to query 2, which has three of its own
    (both,) = panoptic(of(masks, [0, 2, 2], scores=[0.9, 0.8, 0.9]), input_sizes=[(16, 24)], target_sizes=[(4, 6)])
    assert [s.area for s in both.segments] == [19, 5]
    # where all of them are seen at once, both are too small
    (one,) = panoptic(of(masks, [0, 2, 2]), input_sizes=[(16, 24)], target_sizes=[(4, 6)])
    assert [s.area for s in one.segments] == [24]


def test_what_is_published_differs_with_duplicates_alone():
    drawn = grid(["000111", "000111", "222333", "222333"])
    sizes = {"input_sizes": [(16, 24)], "target_sizes": [(4, 6)], "things": THINGS}
    (ours,), (theirs,) = (panoptic(of(drawn, [0, 2, 0, 2]), **sizes, official=o) for o in (False, True))
    assert torch.equal(ours.id_map, theirs.id_map + 1) and [s.area for s in theirs.segments] == [6] * 4
    assert [s.id for s in theirs.segments] == [0, 1, 2, 3]
    # sky is found twice: published, the pixels of the second go to the next largest mask, here the dog's
    drawn[1, 2:, :3] = 0.5
    (ours,), (theirs,) = (panoptic(of(drawn, [1, 2, 1, 2]), **sizes, official=o) for o in (False, True))
    assert ids(ours) == ["111222", "111222", "111333", "111333"]
    assert ids(theirs) == ["000111", "000111", "111222", "111222"]
    assert [s.query for s in theirs.segments] == [0, 1, 3]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_published_duplicates_in_a_batch(seed):
    """What published figures were measured with, one image at a time, in a batch of different sizes."""
    together, alone = outputs(seed)
    options = {"things": (False,) * len(THINGS), "threshold": 0.0}  # so many of few kinds of stuff that they meet
    batch = panoptic(together, input_sizes=PROCESSED, target_sizes=ORIGINAL, **options, duplicates="published")
    ours = panoptic(together, input_sizes=PROCESSED, target_sizes=ORIGINAL, **options)
    for i, out in enumerate(alone):
        one = {"input_sizes": PROCESSED[i : i + 1], "target_sizes": ORIGINAL[i : i + 1]}
        (official,) = panoptic(whole(out), **one, **options, official=True)
        assert torch.equal(batch[i].id_map, official.id_map + 1)
        assert [s.area for s in batch[i].segments] == [s.area for s in official.segments]
    assert any(not torch.equal(a.id_map, b.id_map) for a, b in zip(batch, ours, strict=True))
    with pytest.raises(ValueError, match="choose merged or published"):
        panoptic(together, input_sizes=PROCESSED, target_sizes=ORIGINAL, duplicates="kept")


def test_nothing_to_show():
    """Neither a query below the threshold nor one that says "no object" is a segment; all is void then."""
    masks = grid(["0011", "0011", "0011"])
    for out in (of(masks, [0, 2], scores=[0.84, 0.6]), of(masks, [5, 5])):
        for official in (False, True):
            (result,) = panoptic(out, input_sizes=[(12, 16)], target_sizes=[(6, 5)], official=official)
            assert result.segments == [] and result.id_map.tolist() == [[0] * 5] * 6
    (result,) = panoptic(
        of(masks, [0, 2], scores=[0.84, 0.6]), input_sizes=[(12, 16)], target_sizes=[(6, 5)], threshold=0.8
    )
    assert ids(result) == ["11111"] * 6
    (result,) = panoptic(of(masks[:, :1, :2], [0, 2]), input_sizes=[(4, 8)], target_sizes=[(1, 2)], threshold=0.8)
    assert result.segments == []  # every segment was too small


def test_sigmoid_scores_have_no_class_for_no_object():
    out = of(grid(["0011"] * 4), [0, 4], classes=4)
    out.logits = out.logits + 2.0  # the last class is one like the others
    (result,) = panoptic(
        out, input_sizes=[(16, 16)], target_sizes=[(4, 4)], activation="sigmoid", things=THINGS, threshold=0.8
    )
    assert [(s.label, s.thing) for s in result.segments] == [(0, True), (4, False)]
    assert [s.score for s in result.segments] == pytest.approx([torch.tensor(2.0).sigmoid().item()] * 2)


def test_maps_are_resized_as_pillow_does():
    """Nearest pixel, not interpolated ids."""
    out = of(torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(2)), [0] * 6)
    (map_,) = panoptic(out, input_sizes=[(32, 32)], target_sizes=[(32, 32)])
    for size in [(32, 48), (17, 90), (31, 7)]:
        (result,) = panoptic(out, input_sizes=[(32, 32)], target_sizes=[size])
        picture = Image.fromarray(map_.id_map.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(result.id_map.numpy(), np.asarray(picture)) and len(result) == 6


def test_an_instance_mask_by_hand():
    """A straight edge: logits fall evenly from left to right and cross 0 in the middle."""
    logits = torch.linspace(3.5, -3.5, 8).expand(1, 4, 8)
    masks = instance_masks(logits, input_size=(14, 32), target_size=(7, 16))
    assert masks.shape == (1, 7, 16) and masks[0, :, :8].all() and not masks[0, :, 8:].any()
    padded = F.pad(logits, (0, 3, 0, 2))
    assert torch.equal(instance_masks(padded, input_size=(14, 32), target_size=(7, 16), covered=(24, 44)), masks)
    assert instance_masks(logits[:0], input_size=(14, 32), target_size=(7, 16)).shape == (0, 7, 16)
    many = instance_masks(
        logits.repeat(40, 1, 1), input_size=(14, 32), target_size=(7, 16)
    )  # more than are enlarged at once
    assert torch.equal(many, masks.expand(40, -1, -1))


def test_bad_arguments():
    out = of(grid(["01"]), [0, 2])
    with pytest.raises(ValueError, match="2 image sizes for a batch of 1"):
        panoptic(out, input_sizes=[(4, 8)] * 2, target_sizes=[(1, 2)])
    with pytest.raises(ValueError, match="2 image sizes for a batch of 1"):
        postprocess(out, [(4, 8)], input_sizes=[(1, 2)] * 2)
    with pytest.raises(ValueError, match="2 labels are marked as things or stuff, the model has 5"):
        panoptic(out, input_sizes=[(4, 8)], target_sizes=[(1, 2)], things=[True, False])
    with pytest.raises(ValueError, match="choose softmax or sigmoid"):
        panoptic(out, input_sizes=[(4, 8)], target_sizes=[(1, 2)], activation="other")
    with pytest.raises(ValueError, match="masks=True"):
        panoptic(Outputs(out.logits, out.boxes), input_sizes=[(4, 8)], target_sizes=[(1, 2)])
    assert postprocess(out, [(1, 2)])[0].masks is None  # nobody said how large the image was
