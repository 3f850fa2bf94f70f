"""What a weights file says of its model, in words and by its tensors, and what contradicts it."""

from __future__ import annotations

import argparse

import pytest
import torch

from detrkit.models.detr import DETR
from detrkit.models.registry import architecture, build_options
from detrkit.utils.errors import DetrkitError
from detrkit.weights import files
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, published_spec, save_model
from detrkit.weights.describe import check, declaration, describe
from detrkit.weights.files import read_weights
from detrkit.weights.official import to_official

SIZE = {"backbone": "resnet18", "hidden_dim": 32, "nheads": 4, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1}
ARGUMENTS = {"hidden_dim": 32, "nheads": 4, "dilation": False, "lr": 1e-4}


@pytest.fixture(scope="module")
def model():
    return build_model("detr-r50", num_classes=3, num_queries=5, **SIZE)


@pytest.fixture
def official(model, tmp_path):
    """Official weights: with the arguments of main.py, or bare."""

    def written(arguments=None):
        content = {"model": to_official(model)}
        if arguments is not None:
            content["args"] = argparse.Namespace(**arguments)
        torch.save(content, tmp_path / "a.pth")
        return read_weights(tmp_path / "a.pth")

    return written


def test_a_file_of_detrkit_says_every_option(model, tmp_path):
    spec = ModelSpec("detr-r50", {**SIZE, "num_queries": 5}, num_classes=3)
    file = read_weights(save_model(tmp_path / "a.safetensors", model, spec))
    declared = declaration(file)
    assert (declared.name, declared.build) == ("detr-r50", DETR)
    assert declared.options["num_queries"] == 5 and declared.options["pre_norm"] is False
    assert describe(file, options={"num_queries": 5}) == spec
    with pytest.raises(DetrkitError, match=r"the file says pre_norm=False, not pre_norm=True: leave it out$"):
        describe(file, options={"pre_norm": True})
    with pytest.raises(DetrkitError, match=r"a\.safetensors: weights of detr-r50, not of detr-r101$"):
        describe(file, name="detr-r101")


def test_arguments_of_the_official_code_say_some_options_and_tensors_the_others(official):
    file = official(ARGUMENTS)
    assert declaration(file) == ("detr-r50", DETR, {"hidden_dim": 32, "nheads": 4, "dilation": False})
    spec = describe(file)
    assert spec.options == {**SIZE, "num_queries": 5} and spec.num_classes == 3
    arch = architecture("detr-r50")
    check(file, arch, build_options(arch, {**SIZE, "num_queries": 7}))  # tensors are compared when they are loaded
    with pytest.raises(
        DetrkitError, match=r"weights of detr-r50 with nheads=4, but the model is detr-r50 with nheads=8"
    ):
        check(file, arch, build_options(arch, {**SIZE, "nheads": 8}))
    with pytest.raises(DetrkitError, match=r"weights of detr-r50, not of deformable-detr-r50$"):
        check(file, architecture("deformable-detr-r50"), {})


def test_bare_official_weights_say_nothing_in_words(official):
    file = official()
    assert declaration(file) is None
    check(file, architecture("detr-demo"), {})
    with pytest.raises(DetrkitError, match=r"the file says num_queries=5, not num_queries=6"):
        describe(file, options={"num_queries": 6})
    assert describe(file, options={"nheads": 4}).options == {**SIZE, "num_queries": 5}
    with pytest.raises(DetrkitError, match=r"weights of detr-r50, not of detr-demo \(dilation and backbone say so\)"):
        describe(file, name="detr-demo")


def test_options_that_are_asked_for_leave_the_file_as_it_is(official):
    file = official()
    before = dict(file.inferred.options)
    describe(file, options={"nheads": 4})
    assert file.inferred.options == before


def test_tensors_are_looked_at_once(official, monkeypatch, tmp_path):
    calls = []
    infer = files.infer_model
    monkeypatch.setattr(files, "infer_model", lambda *arguments: calls.append(1) or infer(*arguments))
    official(ARGUMENTS)
    load_model(tmp_path / "a.pth")
    assert calls == [1]
    build_model("detr-r50", num_classes=3, num_queries=5, weights=tmp_path / "a.pth", **SIZE)
    assert calls == [1, 1]


def test_the_spec_of_published_weights():
    spec = published_spec("detr-r50-panoptic")
    assert (spec.num_classes, len(spec.classes), spec.max_size, spec.options) == (250, 250, 1333, {})
    assert spec.training["published"] == "detr-r50-panoptic-00ce5173.pth" and spec.training["metrics"]["PQ"] == 0.434
    assert published_spec("detr-demo").max_size is None
