"""Official weights in and out."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.convert import WeightsError, load_official, to_official
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR
from detrkit.utils.errors import DetrkitError

SMALL = {"backbone": "resnet18", "hidden_dim": 32, "dim_feedforward": 64, "enc_layers": 1, "dec_layers": 1}


@pytest.mark.slow
@pytest.mark.parametrize("variant", goldens.VARIANTS)
def test_there_and_back_is_the_identity(variant):
    state = goldens.filled(variant)
    back = to_official(goldens.model(variant))
    assert list(back) == [name for name, *_ in goldens.entries(variant)]  # order too
    for name, tensor in back.items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DETR, DETRdemo])
def test_content_with_model_key_prefix_and_half_precision(kind):
    source, target = kind(**SMALL), kind(**SMALL)
    state = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in to_official(source).items()}
    load_official(target, {"model": state, "epoch": 3})
    for name, tensor in to_official(target).items():
        assert tensor.dtype == to_official(source)[name].dtype
        assert torch.equal(tensor, state[f"module.{name}"].to(tensor.dtype)), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: name.replace("transformer.", "transformer._orig_mod."),  # one part was compiled
    ],
    ids=["compiled", "compiled, distributed", "distributed, compiled", "distributed twice", "a part compiled"],
)
def test_names_of_wrapped_models(wrap):
    source, target = DETR(**SMALL), DETR(**SMALL)
    load_official(target, {"model": {wrap(name): tensor for name, tensor in to_official(source).items()}})
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_a_tensor_under_two_names():
    state = to_official(DETR(**SMALL))
    state["_orig_mod.query_embed.weight"] = state["query_embed.weight"] + 1
    with pytest.raises(WeightsError, match=r"query_embed\.weight is there twice, wrapped"):
        load_official(DETR(**SMALL), state)


def test_learned_positions_have_official_names():
    model = DETR(**SMALL, position_embedding="learned")
    names = list(to_official(model))
    assert names[-2:] == ["backbone.1.row_embed.weight", "backbone.1.col_embed.weight"]
    load_official(DETR(**SMALL, position_embedding="learned"), to_official(model))


def test_learned_positions_of_deformable_models_have_official_names():
    """One table for all levels, listed behind the backbone as every part of the official `Joiner`."""
    options = {**SMALL, "position_embedding": "learned", "position_entries": 7}
    source, target = DeformableDETR(**options), DeformableDETR(**options)
    state = to_official(source)
    assert list(state)[-2:] == ["backbone.1.row_embed.weight", "backbone.1.col_embed.weight"]
    assert state["backbone.1.row_embed.weight"].shape == (7, 16)
    assert state["backbone.1.row_embed.weight"].min() >= 0 and state["backbone.1.row_embed.weight"].max() <= 1
    load_official(target, state)
    assert torch.equal(target.position_encoding.col_embed.weight, source.position_encoding.col_embed.weight)


def test_batch_norm_counters():
    frozen, counted = DETR(**SMALL), DETR(**SMALL, backbone_norm="batch")
    state = to_official(counted)
    assert "backbone.0.body.bn1.num_batches_tracked" in state
    load_official(frozen, state)  # torchvision's files carry the counters
    load_official(counted, to_official(frozen))  # and a frozen model's do not
    assert list(state) == list(to_official(counted))


def test_message_names_what_is_wrong():
    model = DETR(**SMALL)
    state = dict(to_official(model))
    state["class_embed.weight"] = torch.zeros(251, 32)
    state["surplus.weight"] = state.pop("query_embed.weight")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_official(model, state)
    message = str(error.value)
    assert "missing (1): query_embed.weight" in message
    assert "left over (1): surplus.weight" in message
    assert "class_embed.weight is (251, 32), the model has (92, 32)" in message
    assert "num_classes=250" in message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # nothing half loaded
    assert isinstance(error.value, DetrkitError) and isinstance(error.value, RuntimeError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"backbone": "resnet34"}, "of a resnet34"),
        ({"num_queries": 7}, "num_queries=7"),
        ({"dec_layers": 3}, "dec_layers=3"),
        ({"enc_layers": 2}, "enc_layers=2"),
    ],
)
def test_hints(options, hint):
    with pytest.raises(WeightsError, match=hint):
        load_official(DETR(**SMALL), to_official(DETR(**SMALL | options)))


def test_weights_with_and_without_masks():
    """Hints look behind the official prefix, which moves every name of a detector with masks."""
    boxes, masks = DETR(**SMALL), DETR(**SMALL, masks=True)
    with pytest.raises(WeightsError, match=r"panoptic .* build the model with masks=True"):
        load_official(boxes, to_official(masks))
    with pytest.raises(WeightsError, match="the weights have no masks: build the model with masks=False"):
        load_official(masks, to_official(boxes))
    with pytest.raises(WeightsError) as error:
        load_official(
            masks, to_official(DETR(**SMALL | {"num_queries": 7, "enc_layers": 2}, masks=True, num_classes=250))
        )
    for hint in ("num_queries=7", "enc_layers=2", "251 rows (COCO panoptic): build the model with num_classes=250"):
        assert hint in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options", "adapters"),
    [
        (DETR, {"backbone_stage": 4}, {"mask_head.adapter1.weight": (16, 128), "mask_head.adapter2.weight": (8, 64)}),
        (DeformableDETR, {"hidden_dim": 64}, {"mask_head.adapter1.weight": (32, 256), "mask_head.lay5.weight": (4, 8)}),
    ],
)
def test_masks_of_other_models_have_official_names(kind, options, adapters):
    source, target = (kind(**SMALL | options, masks=True) for _ in range(2))
    state = to_official(source)
    assert {name.split(".")[0] for name in state} == {"detr", "bbox_attention", "mask_head"}
    assert all(state[name].shape[:2] == shape for name, shape in adapters.items())
    assert ("mask_head.adapter3.weight" in state) == (kind is DeformableDETR)
    load_official(target, state)
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def test_resnet101_weights_in_a_resnet50():
    meta = {"hidden_dim": 32, "dim_feedforward": 64, "enc_layers": 1, "dec_layers": 1}
    with torch.device("meta"):
        small, deep = DETR(**meta), DETR(**meta, backbone="resnet101")
    with pytest.raises(WeightsError, match="weights are of a resnet101, the model has a resnet"):
        load_official(small, to_official(deep))


def test_demo_and_detr_are_told_apart():
    with pytest.raises(WeightsError, match="demo model"):
        load_official(DETR(**SMALL), to_official(DETRdemo(**SMALL)))


@pytest.mark.parametrize("content", [{}, {"model": None}, {"epoch": 1}, [1, 2]])
def test_no_weights(content):
    with pytest.raises(WeightsError, match="no weights found"):
        load_official(DETR(**SMALL), content)


def test_other_modules_have_no_official_names():
    with pytest.raises(TypeError, match="Linear has no official names"):
        to_official(torch.nn.Linear(1, 1))


DEFORMABLE = {
    "backbone": "resnet18",
    "hidden_dim": 64,
    "dim_feedforward": 64,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 5,
    "num_classes": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, {"class_embed.1.bias", "query_embed.weight", "transformer.reference_points.bias"}),
        ({"num_feature_levels": 1}, {"class_embed.1.bias", "input_proj.0.1.bias"}),
        ({"with_box_refine": True}, {"transformer.decoder.bbox_embed.1.layers.2.bias", "bbox_embed.1.layers.2.bias"}),
        (
            {"with_box_refine": True, "two_stage": True},
            {"transformer.decoder.class_embed.2.bias", "transformer.pos_trans_norm.bias", "class_embed.2.bias"},
        ),
    ],
)
def test_deformable_lists_shared_heads_as_often_as_the_official_code(options, heads):
    source, target = DeformableDETR(**DEFORMABLE | options), DeformableDETR(**DEFORMABLE | options)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    state = to_official(source)
    assert heads <= set(state)
    load_official(target, {"model": state})
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def test_copies_of_a_shared_head_must_agree():
    model = DeformableDETR(**DEFORMABLE)
    state = to_official(model)
    state["class_embed.1.bias"] = state["class_embed.1.bias"] + 1
    with pytest.raises(WeightsError, match=r"class_embed\.1\.bias differs"):
        load_official(model, state)
