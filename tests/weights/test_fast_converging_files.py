"""Files of the codes of H-Deformable-DETR and DINO: what they are of, with arguments and without; what does not fit."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detrkit.convert import WeightsError, load_official, to_huggingface, to_official
from detrkit.engine.fine_tune import init_from
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model
from detrkit.weights.infer import infer_model
from helpers.weights import randomize

TINY = {
    **{"backbone": "resnet18", "backbone_width": 8, "hidden_dim": 32, "dim_feedforward": 48, "enc_layers": 1},
    **{"dec_layers": 2, "num_queries": 12},
}
HYBRID = "h-deformable-detr-r50"
TWO_STAGE = "deformable-detr-r50-two-stage"
DINO = "dino-r50-4scale"
# beside the model's sizes, what the two codes save: lists, None, paths; the config's lines that are no model's of ours
DINO_ARGUMENTS = {
    **{"num_select": 7, "dn_number": 5, "dn_label_noise_ratio": 0.4, "dn_box_noise_scale": 1.0, "masks": False},
    **{"dilation": False, "nheads": 4, "enc_n_points": 4, "dec_n_points": 2, "num_feature_levels": 4},
    **{"return_interm_indices": [1, 2, 3], "pe_temperatureH": 20, "pe_temperatureW": 20, "pre_norm": False},
    **{"two_stage_type": "standard", "num_patterns": 0, "transformer_activation": "relu", "decoder_sa_type": "sa"},
    **{"frozen_weights": None, "job_dir": Path("runs/1"), "lr": 1e-4, "position_embedding": "sine"},
}


def tiny(name, num_classes=3, **options):
    return randomize(build_model(name, num_classes=num_classes, **{**TINY, **options}))


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def saved(path, model, arguments, **other):
    content = {"model": to_official(model), "optimizer": {"state": {}}, "epoch": 11, "lr_scheduler": {"gamma": 0.1}}
    torch.save({**content, "args": argparse.Namespace(**arguments), **other}, path)
    return path


def test_training_checkpoint_of_dino(tmp_path, caplog):
    model = tiny(DINO, num_select=7, dn_number=5, dn_label_noise_ratio=0.4, nheads=4, dec_n_points=2)
    averaged = {name: tensor + 1 for name, tensor in to_official(model).items()}
    path = saved(tmp_path / "checkpoint0011_4scale.pth", model, TINY | DINO_ARGUMENTS, ema_model=averaged)
    loaded, spec = load_model(path)
    assert spec.name == DINO and spec.num_classes == 3 and same(loaded, model)
    assert (loaded.num_select, loaded.dn_number, loaded.dn_label_noise_ratio, loaded.dn_box_noise_scale) == (
        7,
        5,
        0.4,
        1,
    )
    assert "taken are the weights under model, not those under ema_model" in caplog.text
    # what only training heeds may be asked for otherwise
    other = build_model(DINO, num_classes=3, weights=path, **TINY, nheads=4, dec_n_points=2, dn_number=50)
    assert other.dn_number == 50 and same(other, model)


@pytest.mark.parametrize(
    ("argument", "value"), [("pe_temperatureH", 10000), ("two_stage_type", "no"), ("transformer_activation", "gelu")]
)
def test_dinos_that_compute_something_else(tmp_path, argument, value):
    """Their tensors fit; only the arguments tell."""
    path = saved(tmp_path / "a.pth", tiny(DINO), TINY | DINO_ARGUMENTS | {argument: value})
    with pytest.raises(DetrkitError, match=rf"a\.pth: trained with {argument}={value!r}: detrkit's DINO has"):
        load_model(path)


@pytest.mark.parametrize(("name", "levels"), [(DINO, 4), ("dino-r50-5scale", 5)])
def test_scales_are_told_by_the_tensors(tmp_path, name, levels):
    model = tiny(name)
    save_file({k: v.clone() for k, v in to_official(model).items()}, tmp_path / "a.safetensors")
    loaded, spec = load_model(tmp_path / "a.safetensors")
    assert spec.name == name and len(loaded.projections) == levels and same(loaded, model)


def test_training_checkpoint_of_hybrid(tmp_path):
    """Only arguments show where one-to-many queries begin."""
    arguments = {k: v for k, v in TINY.items() if k != "num_queries"} | {"num_queries_one2one": 5, "dilation": False}
    arguments |= {"num_queries_one2many": 7, "k_one2many": 2, "lambda_one2many": 0.5, "nheads": 8, "dropout": 0.0}
    arguments |= {"two_stage": True, "with_box_refine": True, "mixed_selection": True, "look_forward_twice": True}
    model = tiny(HYBRID, num_queries=5, num_queries_one2many=7)
    loaded, spec = load_model(saved(tmp_path / "a.pth", model, arguments))
    assert spec.name == HYBRID and same(loaded, model)
    assert (loaded.num_queries, loaded.num_queries_one2many, loaded.k_one2many, loaded.lambda_one2many) == (
        5,
        7,
        2,
        0.5,
    )
    # the same code without the branch
    plain = tiny(TWO_STAGE, mixed_selection=True, look_forward_twice=True)
    arguments |= {"num_queries_one2one": 12, "num_queries_one2many": 0, "k_one2many": 0}
    loaded, spec = load_model(saved(tmp_path / "b.pth", plain, arguments))
    assert spec.name == TWO_STAGE and same(loaded, plain) and loaded.look_forward_twice
    assert spec.options["mixed_selection"] and spec.options["dropout"] == 0 and spec.options["num_queries"] == 12


@pytest.mark.parametrize(
    ("rows", "name", "options"),
    [
        (1800, HYBRID, {"num_queries": 300, "num_queries_one2many": 1500}),
        (300, TWO_STAGE, {"num_queries": 300, "mixed_selection": True}),
        (1200, TWO_STAGE, {"num_queries": 1200, "mixed_selection": True}),
    ],
)
def test_tables_without_arguments(rows, name, options):
    with torch.device("meta"):
        state = to_official(build_model(HYBRID, **{**TINY, "num_queries": rows, "num_queries_one2many": 0}))
    inferred = infer_model(state)
    assert inferred.name == name and {**options, **inferred.options} == inferred.options


def test_rows_of_labels_that_no_class_has(tmp_path):
    """People set dn_labelbook_size apart from num_classes: with 3 classes of their own the table often has 92 rows."""
    model = tiny(DINO)
    state = to_official(model)
    table = state["label_enc.weight"]
    state["label_enc.weight"] = torch.cat([table, torch.randn(88, 32)])
    torch.save({"model": state}, tmp_path / "a.pth")
    assert same(load_model(tmp_path / "a.pth")[0], model)
    state["label_enc.weight"] = table[:3]
    with pytest.raises(WeightsError, match=r"label_enc\.weight is \(3, 32\), the model has \(4, 32\)"):
        load_official(model, state)


@pytest.mark.parametrize(
    ("ours", "theirs", "hint"),
    [
        ((DINO, {}), (DINO, {"num_classes": 5}), "the class head has 5 rows: build the model with num_classes=5"),
        ((DINO, {}), (DINO, {"num_queries": 9}), "build the model with num_queries=9"),
        ((DINO, {}), ("dino-r50-5scale", {}), "5 levels, the model has 4: .* or as dino-r50-4scale or dino-r50-5scale"),
        ((DINO, {}), (TWO_STAGE, {}), "the weights are of no DINO"),
        ((TWO_STAGE, {}), (DINO, {}), "the weights are of a DINO"),
        ((TWO_STAGE, {}), (TWO_STAGE, {"mixed_selection": True}), "build the model with mixed_selection=True"),
        ((HYBRID, {}), (TWO_STAGE, {"mixed_selection": True}), "num_queries=12, or of an h-deformable-detr with"),
        (
            (TWO_STAGE, {"mixed_selection": True}),
            (HYBRID, {"num_queries": 300}),
            "1800 queries are h-deformable-detr-r50's",
        ),
    ],
)
def test_hints(ours, theirs, hint):
    with torch.device("meta"):
        models = [build_model(name, **{"num_classes": 3, **TINY, **options}) for name, options in (ours, theirs)]
    with pytest.raises(WeightsError, match=hint):
        load_official(models[0], to_official(models[1]))


def test_label_table_follows_the_class_names():
    source, model = tiny(DINO, 4), tiny(DINO, 3)
    torch.nn.init.zeros_(model.label_embed.weight)
    spec = ModelSpec(DINO, TINY, 4, ClassList(("cat", "N/A", "dog", "cow"), (1, 2, 3, 4)))
    classes = ClassList(("dog", "axolotl", "cat"), (0, 1, 2))
    report = init_from(model, classes, source.state_dict(), spec, background=False)
    table, given = model.label_embed.weight, source.label_embed.weight
    assert torch.equal(table, torch.stack([given[2], torch.zeros(32), given[0], torch.zeros(32)]))
    # the encoder's head scores classes, too: not an objectness as of Deformable DETR
    for head in (0, 1):
        assert torch.equal(model.class_heads[head].weight[[0, 2]], source.class_heads[head].weight[[2, 0]])
    assert report.adapted["label_embed.weight"] == "2 of 3 classes" and not report.new
    same_classes = init_from(model, spec.classes, source.state_dict(), spec, background=False)
    assert "label_embed.weight" in same_classes.new  # of another number of classes


def test_queries_of_either_kind():
    """The first rows of the one-to-one and of the one-to-many queries; from a model without a branch of the former."""
    model = tiny(HYBRID, num_queries=4, num_queries_one2many=5)
    for name, options, rows, remark in (
        (HYBRID, {"num_queries": 6, "num_queries_one2many": 3}, [0, 1, 2, 3, 6, 7, 8], "4 of 6 one-to-one and 3 of 3"),
        (TWO_STAGE, {"mixed_selection": True, "num_queries": 7}, [0, 1, 2, 3], "the first 4 of 7 queries"),
    ):
        source, before = tiny(name, **options), model.queries.weight.clone()
        spec = ModelSpec(name, {**TINY, **options}, 3)
        report = init_from(model, None, source.state_dict(), spec, background=False)
        expected = before.clone()
        expected[: len(rows)] = source.queries.weight[rows]
        assert torch.equal(model.queries.weight, expected) and remark in report.adapted["queries.weight"]


def test_another_number_of_classes_starts_heads_and_label_table_anew(tmp_path):
    source = tiny(DINO, 5)
    torch.save({"model": to_official(source)}, tmp_path / "a.pth")
    model = build_model(DINO, num_classes=3, weights=tmp_path / "a.pth", **TINY)
    assert model.label_embed.weight.shape == (4, 32) and model.class_heads[1].bias.shape == (3,)
    assert torch.equal(model.queries.weight, source.queries.weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (DINO, {}, "transformers has no DINO: use a detrkit file"),
        (HYBRID, {"num_queries_one2many": 3}, "transformers has no HybridDeformableDETR: use"),
        (TWO_STAGE, {"mixed_selection": True}, "transformers has no Deformable DETR with mixed_selection: use"),
    ],
)
def test_transformers_has_none_of_them(name, options, message):
    with pytest.raises(DetrkitError, match=message):
        to_huggingface(tiny(name, **options))
