"""Starting from other weights: which rows of which tensors are taken over."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from detrkit.config import ModelConfig
from detrkit.convert import to_official
from detrkit.engine import train
from detrkit.engine.fine_tune import init_from, load_first_weights
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, save_model
from helpers.tiny import MODEL, tiny_config

OPTIONS = {**MODEL.overrides(), "backbone_norm": "group"}


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
    assert report.classes_kept == ["dog", "cat"] and report.classes_new == ["axolotl"] and report.nearest == {}
    assert set(report.adapted) == {"class_head.weight", "class_head.bias"}
    assert report.new == [] and report.unused == []
    state, other = model.state_dict(), source.state_dict()
    assert all(torch.equal(state[k], other[k]) for k in report.kept)
    assert len(report.kept) == len(state) - 2
    other = init_from(model, ClassList(("dog", "Cow", "cats"), (0, 1, 2)), source.state_dict(), spec, background=True)
    assert other.nearest == {"Cow": "cow", "cats": "cat"}
    assert (
        "  warning: start anew for another name: 'Cow' ('cow' in the weights), 'cats' ('cat' in the weights); "
        "rename them to keep their rows"
    ) in other.lines()


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


@pytest.mark.slow
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


def _saved_official(path, source, change):
    state = dict(to_official(source))
    change(state)
    torch.save({"model": state}, path)


def _without_class_head(state):
    for name in [n for n in state if n.startswith("class_embed.")]:
        del state[name]


def _without_one_bias_and_with_another_tensor(state):
    del state["bbox_embed.layers.0.bias"]
    state["extra.weight"] = torch.zeros(3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "new", "unused"),
    [
        (_without_class_head, {"class_head.weight", "class_head.bias"}, []),
        (_without_one_bias_and_with_another_tensor, {"box_head.layers.0.bias"}, ["extra.weight"]),
    ],
)
def test_training_starts_from_weights_that_are_not_whole(shapes, tmp_path, change, new, unused, capsys):
    """As after the usual advice, to delete the class head of the published file."""
    source = _model(2, 7, backbone_stage=5)
    _saved_official(tmp_path / "a.pth", source, change)
    config = tiny_config(
        shapes,
        tmp_path / "run",
        model=ModelConfig(name="detr-r50"),
        optim={"epochs": 1, "lr": 1e-12, "lr_backbone": 1e-12, "weight_decay": 0.0},
        run={"init_from": str(tmp_path / "a.pth")},
    )
    result = train(config)
    model, spec = load_model(result.best)
    assert len(spec.classes) == 3 and spec.options["hidden_dim"] == 32
    state, given = model.state_dict(), source.state_dict()
    for name, tensor in state.items():
        if name in new or name.startswith("class_head."):
            continue
        torch.testing.assert_close(tensor, given[name], rtol=0, atol=1e-6)
    assert not torch.allclose(state["box_head.layers.0.bias"], torch.zeros(())) or "box_head.layers.0.bias" not in new
    lines = {line.split(":")[0].strip(): line for line in (result.folder / "init.txt").read_text().splitlines()}
    assert set(lines["new (random)"].partition(": ")[2].split(", ")) == new
    assert (lines["not used"].partition(": ")[2].split(", ") if unused else []) == unused
    assert f"{len(new)} new" in capsys.readouterr().out


@pytest.mark.parametrize("dilation", [False, True])
def test_the_model_asked_for_says_whether_weights_are_dc5(tmp_path, dilation):
    """The published file without its class head says it no more: its hash is another one."""
    _saved_official(tmp_path / "a.pth", _model(2, 7, backbone="resnet50", backbone_stage=5), _without_class_head)
    weights = load_first_weights(tmp_path / "a.pth", dilation=dilation)
    assert weights.spec.name == ("detr-r50-dc5" if dilation else "detr-r50")
    with pytest.raises(DetrkitError, match="whether this is a DC5 model"):
        load_first_weights(tmp_path / "a.pth")


def test_weights_of_something_else_are_not_taken_in_part(tmp_path):
    state = {n if n.startswith("backbone.") else f"old.{n}": t for n, t in _model(2, 7).state_dict().items()}
    path = save_model(tmp_path / "a.safetensors", state, ModelSpec("detr-r50", OPTIONS, 2))
    with pytest.raises(DetrkitError, match=r"a\.safetensors: these weights do not fit the model \(DETR\)"):
        load_first_weights(path)


def test_a_detector_that_is_to_be_frozen_must_be_whole(tmp_path):
    _saved_official(tmp_path / "a.pth", _model(2, 7, backbone_stage=5), _without_class_head)
    with pytest.raises(DetrkitError, match=r"missing \(2\): class_embed\.weight, class_embed\.bias"):
        load_first_weights(tmp_path / "a.pth", whole=True, dilation=False)


def test_classes_are_not_kept_without_a_class_head():
    source, model = _model(4, 0), _model(3, 1)
    state = {n: t for n, t in source.state_dict().items() if not n.startswith("class_head.")}
    spec = ModelSpec("detr-r50", OPTIONS, 4, ClassList(("cat", "N/A", "dog", "cow"), (1, 2, 3, 4)))
    report = init_from(model, ClassList(("dog", "axolotl", "cat"), (0, 1, 2)), state, spec, background=True)
    assert report.classes_kept == [] and report.classes_new == ["dog", "axolotl", "cat"]
    assert report.new == ["class_head.weight", "class_head.bias"]
