"""The table of published checkpoints against what its sources say."""

from __future__ import annotations

import re

import pytest

from detrkit.models.pretrained import FIGURES, PUBLISHED
from detrkit.models.registry import ARCHITECTURES

# README of Deformable DETR
DEFORMABLE = {
    "deformable-detr-r50-single-scale": (0.394, 0.206, 0.430, 0.555),
    "deformable-detr-r50-single-scale-dc5": (0.415, 0.241, 0.453, 0.560),
    "deformable-detr-r50": (0.445, 0.271, 0.476, 0.596),
    "deformable-detr-r50-refine": (0.462, 0.283, 0.492, 0.615),
    "deformable-detr-r50-two-stage": (0.469, 0.296, 0.501, 0.616),
}


def test_every_model_has_a_row():
    assert list(PUBLISHED) == list(ARCHITECTURES)
    assert all(ARCHITECTURES[name].row is row and row.model == name for name, row in PUBLISHED.items())


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=lambda row: row.model)
def test_rows(row):
    assert all(name in FIGURES and 0.1 < value < 0.9 for name, value in row.figures.items())
    assert set(row.published) <= set(row.figures) and "AP" in row.published
    # what the report measured with the official code is what was published
    assert all(abs(row.reproduced[n] - v) < 0.0011 for n, v in row.published.items() if n in row.reproduced)
    panoptic = "panoptic" in row.model
    assert row.evaluation.data == ("panoptic" if panoptic else "coco") and row.evaluation.images == 5000
    assert (row.evaluation.threshold == 0.85) == panoptic and row.evaluation.padding == "official"
    if row.model.startswith("deformable"):
        assert row.url is None and row.sha256 is None and row.page and row.file.endswith("-checkpoint.pth")
        assert tuple(row.published[name] for name in ("AP", "APs", "APm", "APl")) == DEFORMABLE[row.model]
    else:
        assert row.url == f"https://dl.fbaipublicfiles.com/detr/{row.file}"
        assert re.fullmatch(r"[\w-]+-([0-9a-f]{8})\.pth", row.file)[1] == row.sha256
        dc5 = row.evaluation.batch_size == 1 and not panoptic and row.model != "detr-demo"
        assert dc5 == ("dc5" in row.model and not panoptic)


def test_reproduced_figures():
    """A sample of the report's figures: boxes of one model, segments of another."""
    assert PUBLISHED["detr-r101-dc5"].reproduced == {
        **{"AP": 0.449, "AP50": 0.647, "AP75": 0.477, "APs": 0.237, "APm": 0.495, "APl": 0.623}
    }
    segments = PUBLISHED["detr-r50-dc5-panoptic"].reproduced
    assert [segments[n] for n in ("PQ", "SQ", "RQ")] == [0.446, 0.798, 0.549]
    assert [segments[n] for n in ("PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st")] == [
        *(0.494, 0.805, 0.606),
        *(0.373, 0.787, 0.464),
    ]
    # what batches do to DC5 stands beside the row
    assert "36.0 at batch 2" in PUBLISHED["detr-r50-dc5"].note
