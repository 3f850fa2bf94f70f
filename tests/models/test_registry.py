"""The table of models against what was published."""

from __future__ import annotations

import pytest

from detrkit.models.registry import ARCHITECTURES, architecture, list_models

# README of the official repository: file, box AP
PUBLISHED = {
    "detr-r50": ("detr-r50-e632da11.pth", 0.420),
    "detr-r50-dc5": ("detr-r50-dc5-f0fb7ef5.pth", 0.433),
    "detr-r101": ("detr-r101-2c7b67e5.pth", 0.435),
    "detr-r101-dc5": ("detr-r101-dc5-a2e86def.pth", 0.449),
    "detr-r50-panoptic": ("detr-r50-panoptic-00ce5173.pth", 0.388),
    "detr-r50-dc5-panoptic": ("detr-r50-dc5-panoptic-da08f1b1.pth", 0.402),
    "detr-r101-panoptic": ("detr-r101-panoptic-40021d53.pth", 0.401),
    "detr-demo": ("detr_demo-da2a99e9.pth", 0.40),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows(name):
    known = architecture(name)
    assert (known.weights, known.published["AP"]) == PUBLISHED[name]
    assert known.sha256_prefix == PUBLISHED[name][0][-12:-4]
    assert known.num_classes == (250 if "panoptic" in name else 91) and known.activation == "softmax"
    assert known.options.get("masks", False) == ("panoptic" in name) == ("PQ" in known.published)
    assert known.options.get("dilation", False) == ("dc5" in name)
    assert known.max_size == (None if name == "detr-demo" else 1333)


def test_published_masks():
    rows = {name: (row["AP_segm"], row["PQ"]) for name in PUBLISHED if "PQ" in (row := architecture(name).published)}
    assert rows == {
        "detr-r50-panoptic": (0.311, 0.434),
        "detr-r50-dc5-panoptic": (0.319, 0.446),
        "detr-r101-panoptic": (0.330, 0.451),
    }


def test_names():
    assert list_models() == list(ARCHITECTURES)
    assert set(PUBLISHED) <= set(list_models())
    assert all(name == known.name for name, known in ARCHITECTURES.items())
    with pytest.raises(ValueError, match=r"unknown model 'detr': choose one of detr-r50, "):
        architecture("detr")
