"""A run with a network of timm: trained, resumed, evaluated, fine-tuned; its description follows the network."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from detrkit.config import ModelConfig
from detrkit.engine import evaluate, train
from detrkit.engine.setup import chosen_model, load_source, make_model
from detrkit.engine.splits import open_splits
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import load_model, save_model
from helpers.tiny import MODEL, losses, tiny_config
from helpers.weights import randomize

timm = pytest.importorskip("timm")

TIMM = dataclasses.replace(MODEL, backbone="timm:test_resnet", backbone_width=None)


@pytest.fixture(scope="module")
def done(shapes, tmp_path_factory):
    """A run of two epochs."""
    return train(tiny_config(shapes, tmp_path_factory.mktemp("runs") / "timm", model=TIMM))


@pytest.mark.slow
def test_the_checkpoint_says_what_the_network_expects(done):
    model, spec = load_model(done.folder)
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)  # of timm's weights, not torchvision's
    assert spec.options["backbone"] == model.backbone.name == "timm:test_resnet"
    assert spec.options["backbone_norm"] == model.backbone.norm == "batch"  # from random weights
    assert all(p.requires_grad for p in model.backbone.parameters())


def test_evaluation_of_the_checkpoint_is_that_of_the_run(done, shapes):
    metrics = evaluate(done.best, shapes, device="cpu")
    assert list(metrics.stats) == list(done.metrics.stats)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(done, shapes, tmp_path):
    config = tiny_config(shapes, tmp_path / "run", model=TIMM)
    train(config.changed(optim={"epochs": 1}))
    train(config, resume=True)
    assert losses(tmp_path / "run") == losses(done.folder)


def test_fine_tuning(done, shapes, tmp_path):
    config = tiny_config(
        shapes, tmp_path / "run", model=ModelConfig(num_queries=5), run={"init_from": str(done.folder)}
    )
    data, source = open_splits(config).train, load_source(config)
    model, spec, report = make_model(config, data, source)
    assert spec.options["backbone"] == "timm:test_resnet" and spec.mean == (0.5, 0.5, 0.5)
    trained, _ = load_model(done.folder)
    assert report.new == [] and list(report.adapted) == ["queries.weight"]
    ours, theirs = model.backbone.state_dict(), trained.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # to another kind of backbone, whose width and norm are its own, and back
    config = config.changed(model={"backbone": "resnet10"})
    assert make_model(config, data, source)[1].options["backbone_norm"] == "group"
    model, spec, report = make_model(config, data, source)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert report.new and all(name.startswith(("backbone.", "input_projection.")) for name in report.new)
    save_model(tmp_path / "narrow.safetensors", *_narrow(shapes, tmp_path))
    config = tiny_config(
        shapes, tmp_path / "run", model=ModelConfig(), run={"init_from": str(tmp_path / "narrow.safetensors")}
    )
    source = load_source(config)
    assert chosen_model(config, source)[1]["backbone_width"] == 8
    config = config.changed(model={"backbone": "timm:test_convnext"})
    assert "backbone_width" not in chosen_model(config, source)[1]
    assert make_model(config, data, source)[1].options["backbone_norm"] == "batch"


def _narrow(shapes, folder):
    config = tiny_config(shapes, folder / "narrow")
    return make_model(config, open_splits(config).train)[:2]


def test_pretrained_weights_of_a_file(shapes, tmp_path):
    network = randomize(timm.create_model("test_convnext"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    options = {"backbone": "timm:test_convnext", "backbone_weights": str(tmp_path / "weights.pth")}
    config = tiny_config(shapes, tmp_path / "run", model=dataclasses.replace(TIMM, **options))
    model, spec, _ = make_model(config, open_splits(config).train)
    assert torch.equal(model.backbone.body.state_dict()["stem_0.weight"], network.state_dict()["stem.0.weight"])
    assert model.backbone.norm == "frozen" and "backbone_norm" not in spec.options


def test_one_line_before_anything_is_written(shapes, tmp_path):
    config = tiny_config(shapes, tmp_path / "run", model=ModelConfig(backbone="timm:test_resnt"))
    with pytest.raises(DetrkitError, match=r"^unknown backbone 'timm:test_resnt' \(timm:test_resnet\?\)"):
        train(config)
    assert not (tmp_path / "run").exists()
