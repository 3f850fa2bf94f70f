"""The table of published checkpoints against what its sources say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import detrkit
from detrkit.models.pretrained import FIGURES, PUBLISHED
from detrkit.models.registry import ARCHITECTURES, published_file
from detrkit.structures.coco_classes import COCO_91
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import published_weights
from detrkit.weights.describe import published_spec

# README of Deformable DETR
DEFORMABLE = {
    "deformable-detr-r50-single-scale": (0.394, 0.206, 0.430, 0.555),
    "deformable-detr-r50-single-scale-dc5": (0.415, 0.241, 0.453, 0.560),
    "deformable-detr-r50": (0.445, 0.271, 0.476, 0.596),
    "deformable-detr-r50-refine": (0.462, 0.283, 0.492, 0.615),
    "deformable-detr-r50-two-stage": (0.469, 0.296, 0.501, 0.616),
}


# README of H-Deformable-DETR, of 12 and 36 epochs; of DINO, of 12, 24 and 36
HYBRID = {
    "deformable-detr-r50-two-stage-ffn2048": (0.437, 0.468),
    "deformable-detr-r50-two-stage-tricks": (0.470, 0.490),
    "h-deformable-detr-r50": (0.487, 0.500),
}
# READMEs of rtdetr_pytorch and rtdetrv2_pytorch
SIZES = ("r18", "r34", "r50-m", "r50", "r101")
RTDETR = {
    **dict(zip((f"rtdetr-{size}" for size in SIZES), (0.464, 0.489, 0.513, 0.531, 0.543), strict=True)),
    **dict(zip((f"rtdetrv2-{size}" for size in SIZES), (0.481, 0.499, 0.519, 0.534, 0.543), strict=True)),
}
DINO = {"dino-r50-4scale": (0.490, 0.504, 0.509), "dino-r50-5scale": (0.494, 0.513, 0.512)}


def test_every_model_has_a_row():
    standing = {name: row for name, row in PUBLISHED.items() if name == row.model}
    assert list(standing) == list(ARCHITECTURES)
    assert all(ARCHITECTURES[name].row is row for name, row in standing.items())
    assert all(name == row.name for name, row in PUBLISHED.items())
    # further files of a model are told from the first by their names, and no two rows are of the same file
    assert all(row.name.startswith(f"{row.model}-") for name, row in PUBLISHED.items() if name not in standing)
    assert len({row.file for row in PUBLISHED.values()}) == len(PUBLISHED) == 35


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=lambda row: row.name)
def test_rows(row):
    assert all(name in FIGURES and 0.1 < value < 0.9 for name, value in row.figures.items())
    assert set(row.published) <= set(row.figures) and "AP" in row.published
    # what the report measured with the official code is what was published
    assert all(abs(row.reproduced[n] - v) < 0.0011 for n, v in row.published.items() if n in row.reproduced)
    panoptic = "panoptic" in row.model
    assert row.evaluation.data == ("panoptic" if panoptic else "coco") and row.evaluation.images == 5000
    real_time = row.model.startswith("rtdetr")
    assert (row.evaluation.threshold == 0.85) == panoptic
    assert row.evaluation.padding == ("exact" if real_time else "official")
    assert row.downloadable == row.source.startswith("README and Table 1 of DETR")
    if real_time:
        version = "v0.2" if "rerun" in row.file else "v0.1"
        assert row.url == f"https://github.com/lyuwenyu/storage/releases/download/{version}/{row.file}"
        assert (row.evaluation.size, row.evaluation.max_size, row.evaluation.detections) == (640, None, 300)
        assert row.published["AP"] == RTDETR[row.model] and row.sha256 is None
        assert row.file.startswith(row.model.replace("-r50-m", "-r50vd_m").replace("-", "_"))
    elif row.epochs is not None:
        assert row.evaluation.batch_size is None
    elif row.model.startswith("deformable"):
        assert row.url is None and row.sha256 is None and row.page and row.file.endswith("-checkpoint.pth")
        assert tuple(row.published[name] for name in ("AP", "APs", "APm", "APl")) == DEFORMABLE[row.model]
    else:
        assert row.url == f"https://dl.fbaipublicfiles.com/detr/{row.file}"
        assert re.fullmatch(r"[\w-]+-([0-9a-f]{8})\.pth", row.file)[1] == row.sha256
        dc5 = row.evaluation.batch_size == 1 and not panoptic and row.model != "detr-demo"
        assert dc5 == ("dc5" in row.model and not panoptic)


def test_rows_by_epochs():
    """H-DETR's files have addresses and no hashes; DINO's a page, and the hashes of the two of 12 epochs."""
    for source, figures, epochs in (("H-Deformable-DETR", HYBRID, (12, 36)), ("DINO", DINO, (12, 24, 36))):
        rows = [row for row in PUBLISHED.values() if row.source.startswith(f"README of {source} ")]
        assert [row.name.removesuffix(f"-{row.epochs}ep") for row in rows] == [n for n in figures for _ in epochs]
        assert [row.epochs for row in rows] == [*epochs] * len(figures)
        assert [row.published["AP"] for row in rows] == [ap for aps in figures.values() for ap in aps]
        for row in rows:
            if source == "DINO":
                assert (
                    row.file == f"checkpoint{row.epochs - 1:04}_{row.model[9:]}.pth"
                    and row.evaluation.detections == 300
                )
                assert len(row.sha256 or "") == (64 if row.epochs == 12 else 0)
                assert row.url is None and row.where == row.page
            else:
                release = "https://github.com/HDETR/H-Deformable-DETR/releases/download/v0.1"
                assert row.where == row.url == f"{release}/{row.file}" and row.file.endswith(
                    f"_two_stage_{row.epochs}eps.pth"
                )
                assert row.sha256 is None and row.evaluation.detections == 100
                assert ("hybrid_branch" in row.file, "dp0_mqs_lft" in row.file) == (
                    row.model.startswith("h-"),
                    "ffn2048" not in row.name,
                )


def test_files_that_are_not_downloaded():
    """Neither those without an address nor those without a hash; the message says where to get them."""
    with pytest.raises(
        DetrkitError, match=r"36ep: .* for want of a hash to verify them; get r50_hybrid\S+_36eps\.pth from https"
    ):
        published_weights("h-deformable-detr-r50-36ep")
    with pytest.raises(
        DetrkitError, match=r"want of a fixed address; get checkpoint0023_5scale\.pth from https://drive"
    ):
        detrkit.load("dino-r50-5scale-24ep")


def test_further_file_is_recognized_by_its_hash(monkeypatch):
    """Its spec is that of the model, with the file's own name and metrics."""
    row = replace(PUBLISHED["dino-r50-4scale-36ep"], sha256="5" * 64)
    monkeypatch.setitem(PUBLISHED, row.name, row)
    assert published_file("5" * 64) is row
    spec = published_spec(row.name)
    assert (spec.name, spec.classes) == ("dino-r50-4scale", COCO_91)
    assert spec.training == {"published": "checkpoint0035_4scale.pth", "metrics": {"AP": 0.509}}


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
