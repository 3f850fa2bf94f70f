"""Which label is which class, and which classes are things."""

from __future__ import annotations

import json

import pytest

from detrkit.structures.classes import ClassList
from detrkit.structures.coco_classes import COCO_91, COCO_250, COCO_NAMES, COCO_STUFF_NAMES

NAMES = {200: "boat", 3: "sea", 7: "sky"}
THINGS = {200: True, 3: False, 7: False}


def test_contiguous_labels_keep_what_is_a_thing():
    classes = ClassList.contiguous(NAMES, THINGS)
    assert (classes.names, classes.ids) == (("sea", "sky", "boat"), (3, 7, 200))
    assert classes.things == (False, False, True) and [classes.is_thing(k) for k in range(3)] == [False, False, True]
    plain = ClassList.contiguous(NAMES)
    assert plain.things is None and all(plain.is_thing(k) for k in range(3)) and plain != classes


def test_official_labels_are_the_ids():
    classes = ClassList.official(NAMES, THINGS)
    assert len(classes) == 201 and classes.ids == tuple(range(201))
    assert [k for k in range(201) if classes.names[k] != "N/A"] == [3, 7, 200]
    assert classes.things == (False,) * 200 + (True,)
    assert ClassList.official({1: "a"}).things is None
    assert len(ClassList.official(NAMES, count=250)) == 250 and len(ClassList.official(NAMES, count=5)) == 201


@pytest.mark.parametrize("things", [None, THINGS])
def test_there_and_back(things):
    classes = ClassList.contiguous(NAMES, things)
    plain = json.loads(json.dumps(classes.to_json()))
    assert ClassList.from_json(plain) == classes
    assert ("things" in plain) == (things is not None)  # a detection checkpoint stays what it was


def test_a_class_may_be_called_like_an_unused_label():
    dataset = ClassList.contiguous({1: "N/A", 4: "nan"})
    assert dataset.used == {"N/A": 0, "nan": 1} and not dataset.is_unused(0)
    assert ClassList.from_json(json.loads(json.dumps(dataset.to_json()))) == dataset
    official = ClassList.official({1: "N/A", 2: "cat"})
    assert official.names == ("N/A", "N/A", "cat") and official.used == {"N/A": 1, "cat": 2}
    assert ClassList.from_json(json.loads(json.dumps(official.to_json()))) == official
    # checkpoints written before: whatever is called so is unused
    old = ClassList.from_json({"names": ["N/A", "cat"], "ids": [0, 1]})
    assert old == ClassList.official({1: "cat"}) and old.to_json() == {"names": ["N/A", "cat"], "ids": [0, 1]}


def test_lengths_and_ids_must_fit():
    with pytest.raises(ValueError, match="2 class names but 1 marks of things"):
        ClassList(("a", "b"), (1, 2), (True,))
    with pytest.raises(ValueError, match="2 class names but 3 category ids"):
        ClassList(("a", "b"), (1, 2, 3))
    with pytest.raises(ValueError, match="unique"):
        ClassList(("a", "b"), (1, 1))


def test_coco_panoptic_classes():
    assert len(COCO_250) == 250 and len(COCO_NAMES) == 80 and len(COCO_STUFF_NAMES) == 53
    assert COCO_250.names[:91] == COCO_91.names
    things = [k for k in range(250) if COCO_250.is_thing(k)]
    assert things == sorted(COCO_NAMES)
    assert [COCO_250.names[k] for k in (92, 187, 200, 249)] == ["banner", "sky-other-merged", "rug-merged", "N/A"]
