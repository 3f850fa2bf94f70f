"""Starting from other weights: which rows of which tensors are taken over."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import MODEL, tiny_config

from detrkit.build import build_model
from detrkit.checkpoint import ModelSpec, load_model, save_model
from detrkit.classes import ClassList
from detrkit.engine import train
from detrkit.engine.fine_tune import init_from

OPTIONS = {**MODEL.options(), "backbone_norm": "group"}


def _model(classes: int, seed: int, **options):
    torch.manual_seed(seed)
    return build_model("detr-r50", num_classes=classes, **{**OPTIONS, **options})


def test_rows_follow_the_class_names():
    source = _model(4, 0)
    spec = ModelSpec("detr-r50", OPTIONS, 4, ClassList(("cat", "N/A", "dog", "cow"), (1, 2, 3, 4)))
    model = _model(3, 1)
    random = model.class_head.weight.clone()
    report = init_from(
        model, ClassList(("dog", "axolotl", "cat"), (0, 1, 2)), source.state_dict(), spec, background=True
    )
    weight, given = model.class_head.weight, source.class_head.weight
    assert torch.equal(weight[0], given[2]) and torch.equal(weight[2], given[0])
    assert torch.equal(weight[1], random[1])
    assert torch.equal(weight[3], given[4])  # no object
    assert report.classes_kept == ["dog", "cat"] and report.classes_new == ["axolotl"]
    assert set(report.adapted) == {"class_head.weight", "class_head.bias"}
    assert report.new == [] and report.unused == []
    state, other = model.state_dict(), source.state_dict()
    assert all(torch.equal(state[k], other[k]) for k in report.kept)
    assert len(report.kept) == len(state) - 2


def test_same_classes_keep_everything():
    source, model = _model(2, 0), _model(2, 1)
    classes = ClassList(("a", "b"), (1, 2))
    report = init_from(model, classes, source.state_dict(), ModelSpec("detr-r50", OPTIONS, 2, classes), background=True)
    assert len(report.kept) == len(model.state_dict()) and not report.adapted


@pytest.mark.parametrize("queries", [5, 11])
def test_queries_of_another_number(queries):
    source, model = _model(2, 0), _model(2, 1, num_queries=queries)
    random = model.queries.weight.clone()
    classes = ClassList(("a", "b"), (1, 2))
    report = init_from(model, classes, source.state_dict(), ModelSpec("detr-r50", OPTIONS, 2, classes), background=True)
    kept = min(queries, 8)
    assert torch.equal(model.queries.weight[:kept], source.queries.weight[:kept])
    assert torch.equal(model.queries.weight[kept:], random[kept:])
    assert list(report.adapted) == ["queries.weight"]


def test_two_stage_objectness_is_not_a_class():
    options = {**OPTIONS, "backbone_stages": (3, 4), "num_feature_levels": 2}
    del options["backbone_stage"]
    source, model = (build_model("deformable-detr-r50-two-stage", num_classes=n, **options) for n in (2, 3))
    spec = ModelSpec("deformable-detr-r50-two-stage", options, 2, ClassList(("a", "b"), (1, 2)))
    init_from(model, ClassList(("x", "b", "a"), (1, 2, 3)), source.state_dict(), spec, background=False)
    assert torch.equal(model.class_heads[0].weight[1], source.class_heads[0].weight[1])
    assert torch.equal(model.class_heads[0].weight[2], source.class_heads[0].weight[0])
    assert torch.equal(model.class_heads[-1].weight[0], source.class_heads[-1].weight[0])
    assert not torch.equal(model.class_heads[-1].weight[2], source.class_heads[-1].weight[0])


def test_other_layers_are_new_and_left_over():
    source, model = _model(2, 0, dec_layers=3), _model(2, 1, hidden_dim=64)
    classes = ClassList(("a", "b"), (1, 2))
    report = init_from(model, classes, source.state_dict(), ModelSpec("detr-r50", OPTIONS, 2, classes), background=True)
    assert "input_projection.weight" in report.new
    assert any(name.startswith("decoder.layers.2.") for name in report.unused)
    state, other = model.state_dict(), source.state_dict()
    assert set(report.kept) == {n for n in state if n in other and state[n].shape == other[n].shape}


def test_training_starts_from_a_checkpoint(shapes, tmp_path):
    """The architecture comes from the checkpoint, and a rate of nothing shows the weights it starts with."""
    source = _model(2, 7)
    spec = ModelSpec("detr-r50", OPTIONS, 2, ClassList(("circle", "unicorn"), (1, 2)), size=64, max_size=107)
    save_model(tmp_path / "source.safetensors", source, spec)
    bare = dataclasses.replace(
        MODEL, **{f.name: None for f in dataclasses.fields(MODEL) if f.name != "backbone_weights"}
    )
    config = tiny_config(
        shapes,
        tmp_path / "run",
        model=bare,
        optim={"epochs": 1, "lr": 1e-12, "lr_backbone": 1e-12, "weight_decay": 0.0},
        run={"init_from": str(tmp_path / "source.safetensors")},
    )
    result = train(config)
    model, trained = load_model(result.best)
    assert trained.options["backbone_width"] == 8 and len(trained.classes) == 3
    row = trained.classes.names.index("circle")
    torch.testing.assert_close(model.class_head.weight[row], source.class_head.weight[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.queries.weight, source.queries.weight, rtol=0, atol=1e-6)
    assert "circle" in (result.folder / "init.txt").read_text()
    (tmp_path / "source.safetensors").unlink()  # going on does not need it any more
    again = train(config.changed(optim={"epochs": 2}), resume=True)
    assert load_model(again.best)[1].training["init_from"].endswith("source.safetensors")
