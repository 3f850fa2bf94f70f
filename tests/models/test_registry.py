"""The table of models against what was published."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import detrkit
from detrkit.models.criterion import build_criterion, softmax_criterion
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.detr import DETR
from detrkit.models.registry import (
    ARCHITECTURES,
    THRESHOLDS,
    Thresholds,
    architecture,
    architecture_of,
    list_models,
    register_model,
)
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, save_huggingface, save_official
from detrkit.weights.official import to_official
from helpers.grid import Grid, PlainCriterion

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


@pytest.fixture
def registered(monkeypatch):
    """The registry as it was, after the test."""
    monkeypatch.setattr(ARCHITECTURES, "_entries", dict(ARCHITECTURES._entries))
    return detrkit.register_model


@pytest.fixture
def grid(registered):
    return registered("grid", activation="softmax")(Grid)


def test_what_is_not_said_follows_from_the_activation(registered):
    registered("a", activation="sigmoid", num_classes=7)(Grid)
    registered("b", activation="softmax", thresholds=Thresholds(show=0.2), criterion=PlainCriterion)(Grid)
    a, b = architecture("a"), architecture("b")
    assert a.thresholds == THRESHOLDS["sigmoid"] == Thresholds(predict=0.5, show=0.3, segment=0.4)
    assert (b.thresholds.predict, b.thresholds.show, b.thresholds.segment) == (0.5, 0.2, 0.85)
    assert type(build_criterion("a")) is type(build_criterion("deformable-detr-r50"))
    assert build_criterion("a").num_classes == 7 and build_criterion("b", num_classes=3).eos_coef == 0.5
    with pytest.raises(TypeError, match=r"^b has no loss setting focal_alpha: choose from eos_coef$"):
        build_criterion("b", focal_alpha=0.5)
    assert (a.row, a.weights, a.sha256_prefix, dict(a.published)) == (None, None, None, {})
    with pytest.raises(DetrkitError, match=r"^a: no published weights: give the path of a file$"):
        detrkit.build_model("a", weights="published")


def test_a_model_from_outside_has_the_padding_it_has(grid):
    assert detrkit.build_model("grid").num_classes == 91
    with pytest.raises(ValueError, match="padding is 'official': grid has one kind of padding"):
        detrkit.build_model("grid", padding="official")


def test_names_of_other_code_are_refused_in_one_line(grid, tmp_path):
    model, spec = detrkit.build_model("grid", num_classes=2), ModelSpec("grid", num_classes=2)
    with pytest.raises(TypeError, match="Grid has no official names"):
        to_official(model)
    for save, path in ((save_official, tmp_path / "a.pth"), (save_huggingface, tmp_path / "a")):
        with pytest.raises(DetrkitError, match=r"^Grid has no"):
            save(path, model, spec)
        assert not path.exists()


def test_a_subclass_takes_the_options_of_its_base(registered):
    @registered("my-detr", activation="softmax")
    class MyDETR(DETR):
        def __init__(self, *, scale: float = 1.0, **options) -> None:
            super().__init__(**options)
            self.scale = scale

    with torch.device("meta"):
        model = detrkit.build_model("my-detr", scale=2.0, enc_layers=1, padding="official")
    assert model.scale == 2.0 and len(model.encoder.layers) == 1 and model.backbone.padding == "official"
    assert architecture_of(model) is architecture("my-detr")
    with pytest.raises(ValueError, match="hidden_dim=30 and nheads=8"):
        detrkit.build_model("my-detr", hidden_dim=30)
    with pytest.raises(TypeError, match=r"my-detr takes no argument two_stage: choose from .*scale"):
        detrkit.build_model("my-detr", two_stage=True)


def test_the_architecture_of_a_class_is_its_plainest_variant():
    class Derived(DETR):
        pass

    assert architecture_of(DeformableDETR).name == "deformable-detr-r50"
    assert architecture_of(Derived).name == "detr-r50"
    assert architecture_of(nn.Linear(1, 1)) is None


class NoClasses(detrkit.DetectionModel):
    def __init__(self, *, width: int = 3) -> None:
        super().__init__()


class NoDefault(detrkit.DetectionModel):
    def __init__(self, *, num_classes: int, width: int) -> None:
        super().__init__()


class NoQueries(detrkit.DetectionModel):
    def __init__(self, *, num_classes: int = 91) -> None:
        super().__init__()
        self.num_classes = num_classes


@pytest.mark.parametrize(
    ("names", "kind", "facts", "reason"),
    [
        ("detr-r50", Grid, {}, "there is a model 'detr-r50' already: choose another name, or give replace=True"),
        ({"new": {}, "detr-demo": {}}, Grid, {}, "there is a model 'detr-demo' already"),
        ("", Grid, {}, "'' is no name of a model: use letters"),
        ("a/b", Grid, {}, "'a/b' is no name of a model: use letters, digits"),
        ("new", nn.Linear, {}, "Linear: a model is a subclass of detrkit.DetectionModel"),
        ("new", softmax_criterion, {}, "softmax_criterion: a model is a subclass of detrkit.DetectionModel"),
        ("new", NoClasses, {}, "NoClasses: a model takes num_classes, the number of labels, by keyword"),
        ("new", NoDefault, {}, "NoDefault: the argument width has no default: give every option one"),
        ("new", Grid, {"activation": "tanh"}, "activation is 'tanh': choose one of softmax, sigmoid"),
        ("new", Grid, {"num_classes": 0}, "new: num_classes is 0: must be from 1 to 1,000,000"),
        ("new", Grid, {"max_size": 0}, "new: max_size is 0: must be at least 1 pixel, or None for no limit"),
        ({"new": {"depth": 3}}, Grid, {}, "new takes no argument depth: choose from num_queries, cells"),
        ({"new": {"cells": "4"}}, Grid, {}, "cells is '4': must be a number"),
    ],
)
def test_bad_registrations_are_refused(registered, names, kind, facts, reason):
    before = dict(ARCHITECTURES._entries)
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(reason)}"):
        registered(names, **{"activation": "softmax", **facts})(kind)
    assert ARCHITECTURES._entries == before


def test_a_model_must_say_how_many_queries_it_has(registered):
    registered("new", activation="softmax")(NoQueries)
    with pytest.raises(TypeError, match=r"^NoQueries has no num_queries: set self\.num_queries in its __init__$"):
        detrkit.build_model("new")


def test_a_name_can_be_replaced(grid):
    register_model("grid", activation="sigmoid", replace=True)(Grid)
    assert architecture("grid").activation == "sigmoid" and list_models().count("grid") == 1


def test_architectures_do_not_change(grid):
    assert replace(architecture("grid"), name="other").name == "other"
    with pytest.raises(AttributeError):
        architecture("grid").name = "other"
