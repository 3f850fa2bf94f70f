"""Checkpoints: what is written is what is read, and anything else is one clear line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from detrkit.convert import to_official
from detrkit.models import registry
from detrkit.models.settings import constructor_defaults
from detrkit.structures.classes import ClassList
from detrkit.structures.coco_classes import COCO_91, COCO_250
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, published_spec, save_model, save_official
from detrkit.weights.files import STATE_FORMAT
from detrkit.weights.infer import infer_model

TINY = {"backbone": "resnet18", "hidden_dim": 32, "dim_feedforward": 64, "enc_layers": 1, "dec_layers": 1}
SPEC = ModelSpec(
    "detr-r50",
    TINY | {"backbone_weights": "imagenet"},
    num_classes=2,
    classes=ClassList(("cat", "dog"), (17, 18)),
    size=320,
    max_size=None,
    padding="official",
    training={"epoch": 3, "metrics": {"AP": 0.25}},
)


@pytest.fixture
def model():
    return SPEC.build()


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_spec_there_and_back():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert ModelSpec.from_json(json.loads(SPEC.to_json())) == SPEC
    panoptic = replace(SPEC, classes=ClassList(("sky", "dog"), (3, 18), (False, True)))
    assert ModelSpec.from_json(panoptic.to_json()) == panoptic != SPEC
    assert ModelSpec.from_json(ModelSpec("detr-r50").to_json()) == ModelSpec("detr-r50")
    with pytest.raises(DetrkitError, match="later detrkit"):
        ModelSpec.from_json(json.loads(SPEC.to_json()) | {"version": 99})
    for bad in ("{}", "not json", '{"version": 1, "classes": null, "mean": [0], "std": [1], "colour": 1}'):
        with pytest.raises(DetrkitError, match="not a detrkit model description"):
            ModelSpec.from_json(bad)


def test_build_does_not_ask_for_the_first_weights(model):
    # backbone_weights="imagenet" says where training started; loading must not download anything
    assert model.class_head.out_features == 3 and model.backbone.padding == "official"


def test_safetensors_there_and_back(model, tmp_path):
    path = save_model(tmp_path / "new" / "a.safetensors", model, SPEC)
    loaded, spec = load_model(path)
    assert same(loaded, model) and spec == SPEC and not loaded.training
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["detrkit"])["classes"]["names"] == ["cat", "dog"]
    save_model(path, model.state_dict(), SPEC)
    assert same(load_model(path)[0], model)


def test_a_compiled_model_is_saved_as_a_plain_one(model, tmp_path):
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    path = save_model(tmp_path / "a.safetensors", wrapped, SPEC)
    assert same(load_model(path)[0], model)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())


def test_shared_and_strided_tensors(tmp_path):
    weight = torch.rand(4, 6)
    state = {"a": weight, "b": weight, "view": weight[1:], "turned": weight.T, "half": weight.half()}
    path = save_model(tmp_path / "a.safetensors", state, SPEC)
    with safe_open(path, framework="pt") as file:
        for name, tensor in state.items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_a_failed_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = save_model(tmp_path / "a.safetensors", model, SPEC)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detrkit.weights.checkpoint.save_file", full)
    with pytest.raises(DetrkitError, match="No space left"):
        save_model(path, model, SPEC)
    assert path.read_bytes() == before and len(os.listdir(tmp_path)) == 1


def test_run_directory(model, tmp_path):
    with pytest.raises(DetrkitError, match="no weights in this directory"):
        load_model(tmp_path)
    save_model(tmp_path / "last.safetensors", model, SPEC)
    assert same(load_model(tmp_path)[0], model)
    best = SPEC.build()
    save_model(tmp_path / "best.safetensors", best, SPEC)
    assert same(load_model(tmp_path)[0], best)


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
def test_training_state(model, tmp_path, averaged):
    average = SPEC.build()
    content = {
        "format": STATE_FORMAT,
        "spec": SPEC.to_json(),
        "model": model.state_dict(),
        "ema": average.state_dict() if averaged else None,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 3,
    }
    torch.save(content, tmp_path / "last.pt")
    loaded, spec = load_model(tmp_path)
    assert same(loaded, average if averaged else model) and spec == SPEC


@pytest.mark.slow
def test_official_file_asks_for_what_its_tensors_do_not_tell(tmp_path, caplog):
    path = tmp_path / "a.pth"
    model = build_model("detr-r50", num_classes=5, num_queries=7, enc_layers=2)
    torch.save({"model": to_official(model)}, path)
    asks = r"dilation.* does not show in its weights; say it once: detrkit convert \S+a\.pth a\.safetensors --dilation"
    with pytest.raises(DetrkitError, match=asks):
        load_model(path)
    plain = {"num_queries": 7, "enc_layers": 2}
    for given, name, options in (
        ({"name": "detr-r50"}, "detr-r50", plain),
        ({"name": "detr-r50-dc5"}, "detr-r50-dc5", plain),
        ({"options": {"dilation": False}}, "detr-r50", plain),
        ({"options": {"dilation": True, "nheads": 4}}, "detr-r50-dc5", plain | {"nheads": 4}),
        ({"name": "detr-r50", "options": {"dilation": False}}, "detr-r50", plain),
    ):
        caplog.clear()
        loaded, spec = load_model(path, **given)
        assert same(loaded, model) and (spec.name, spec.options) == (name, options)
        assert spec.num_classes == 5 and spec.classes is None
        assert loaded.backbone.strides == [16 if "dc5" in name else 32]
        assert ("does not say nheads: taken as 8" in caplog.text) == ("nheads" not in options)
    for given, message in (
        ({"name": "detr-r101"}, r"a\.pth: weights of detr-r50, not of detr-r101"),
        ({"name": "detr-r50", "options": {"dilation": True}}, "weights of detr-r50-dc5, not of detr-r50"),
        ({"name": "deformable-detr-r50"}, "weights of detr-r50, not of deformable-detr-r50"),
        ({"name": "x"}, "unknown model 'x'"),
        ({"options": {"num_queries": 8, "dilation": False}}, r"the file says num_queries=7, not num_queries=8"),
        ({"options": {"widthh": 8, "dilation": False}}, "takes no argument widthh"),
    ):
        with pytest.raises(DetrkitError, match=message):
            load_model(path, **given)
    torch.save({"some.weight": torch.zeros(2)}, path)
    with pytest.raises(DetrkitError, match="the tensors are of none of the models detr-r50, "):
        load_model(path)


VARIANTS = [
    ("detr-r50", {}),
    ("detr-r50", {"pre_norm": True, "position_embedding": "learned", "position_entries": 20, "backbone_width": 16}),
    ("detr-r50", {"backbone_norm": "group", "num_queries": 9, "dec_layers": 2}),
    ("detr-r50-panoptic", {"nheads": 4}),
    ("detr-demo", {}),
    ("deformable-detr-r50-single-scale", {"hidden_dim": 64}),
    ("deformable-detr-r50", {"num_feature_levels": 3}),
    ("deformable-detr-r50-refine", {"dec_layers": 2}),
    ("deformable-detr-r50", {"position_embedding": "learned", "position_entries": 20}),
    ("deformable-detr-r50-two-stage", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tensors_tell_everything_else(tmp_path, name, options):
    model = build_model(name, num_classes=3, **TINY | options)
    torch.save(to_official(model), tmp_path / "a.pth")
    loaded, spec = load_model(tmp_path / "a.pth")  # a ResNet-18 has no DC5 form
    assert spec.name == name and spec.num_classes == 3 and same(loaded, model)
    assert {option: spec.options.get(option) for option in options} == options


@pytest.mark.slow
def test_every_published_model_is_told_from_its_tensors():
    for name, known in registry.ARCHITECTURES.items():
        with torch.device("meta"):
            state = to_official(build_model(name))
        inferred = infer_model(state)
        assert inferred.needs_dilation == (name != "detr-demo" and not name.startswith("rtdetr"))
        if inferred.needs_dilation:
            inferred.options["dilation"] = known.options.get("dilation", False)
        assert inferred.name == name
        defaults = dict(constructor_defaults(known.build)) | dict(known.options)
        assert all(defaults[option] == value for option, value in inferred.options.items()), name


@pytest.mark.slow
@pytest.mark.parametrize("dilation", [False, True])
def test_official_training_checkpoint_says_what_it_is(tmp_path, dilation):
    options = {k: v for k, v in TINY.items() if k != "backbone"} | {"backbone": "resnet50", "pre_norm": True}
    name = "detr-r50-dc5" if dilation else "detr-r50"
    model = build_model(name, **options)
    arguments = argparse.Namespace(**options, dilation=dilation, masks=False, num_queries=100, lr=1e-4, device="cuda")
    torch.save({"model": to_official(model), "args": arguments, "epoch": 1}, tmp_path / "checkpoint.pth")
    loaded, spec = load_model(tmp_path / "checkpoint.pth")
    assert spec.name == name and same(loaded, model)
    other = "detr-r50" if dilation else "detr-r50-dc5"
    with pytest.raises(DetrkitError, match="dilation"):
        load_model(tmp_path / "checkpoint.pth", name=other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Namespace", "dict"])
def test_arguments_of_the_deformable_main(tmp_path, kind):
    """Which has arguments that are not its model's, and no pre_norm."""
    given = {**TINY, "hidden_dim": 64, "dilation": False, "masks": False, "num_feature_levels": 4}
    given |= {"with_box_refine": True, "two_stage": True, "num_queries": 40, "nheads": 4}
    given |= {"enc_n_points": 2, "dec_n_points": 3, "dropout": 0.1}
    model = build_model("deformable-detr-r50", num_classes=5, **given)
    arguments = {**given, "position_embedding": "sine", "lr": 2e-4, "frozen_weights": None, "resume": ""}
    arguments = argparse.Namespace(**arguments) if kind == "Namespace" else arguments
    torch.save({"model": to_official(model), "args": arguments}, tmp_path / "checkpoint.pth")
    loaded, spec = load_model(tmp_path / "checkpoint.pth")
    assert spec.name == "deformable-detr-r50-two-stage" and same(loaded, model)
    assert loaded.num_queries == 40 and loaded.encoder[0].self_attention.points == 2
    with pytest.raises(DetrkitError, match="the file says dilation=False, not dilation=True"):
        load_model(tmp_path / "checkpoint.pth", options={"dilation": True})
    with pytest.raises(DetrkitError, match="two-stage, not of deformable-detr-r50-refine"):
        load_model(tmp_path / "checkpoint.pth", name="deformable-detr-r50-refine")


def test_arguments_of_a_panoptic_training(tmp_path):
    model = build_model("detr-r50", num_classes=5, masks=True, **TINY)
    arguments = argparse.Namespace(**TINY, masks=True, dilation=False, num_queries=100, frozen_weights="a.pth")
    torch.save({"model": to_official(model), "args": arguments}, tmp_path / "a.pth")
    loaded, spec = load_model(tmp_path / "a.pth")
    assert spec.name == "detr-r50-panoptic" and spec.num_classes == 5 and same(loaded, model)
    with pytest.raises(DetrkitError, match="detr-r50-panoptic with masks=True, but the model is detr-r50 with masks=F"):
        build_model("detr-r50", num_classes=5, weights=tmp_path / "a.pth", **TINY)


def test_official_file_of_our_own_comes_back_whole(model, tmp_path):
    path = save_official(tmp_path / "a.pth", model, SPEC)
    loaded, spec = load_model(path)
    assert same(loaded, model) and spec == SPEC
    content = torch.load(path, weights_only=True)  # what official code reads
    assert list(content["model"]) == list(to_official(model))


@pytest.mark.slow
def test_published_file_is_recognised(tmp_path, monkeypatch):
    model = build_model("detr-demo")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in to_official(model).items()}, tmp_path / "x.pth")
    monkeypatch.setattr("detrkit.weights.files.sha256", lambda _: "da2a99e9" + "0" * 56)
    loaded, spec = load_model(tmp_path / "x.pth")
    assert spec.name == "detr-demo" and spec.max_size is None
    assert spec.classes == COCO_91 and spec.training["published"] == "detr_demo-da2a99e9.pth"
    assert next(loaded.parameters()).dtype == torch.float32
    assert torch.equal(loaded.class_head.weight, model.class_head.weight.half().float())
    with pytest.raises(DetrkitError, match="published weights of detr-demo, not of detr-r50"):
        load_model(tmp_path / "x.pth", name="detr-r50")


def test_published_classes():
    assert published_spec("detr-r50").classes == COCO_91
    assert published_spec("detr-r50-dc5-panoptic").classes == COCO_250


def test_coco_names():
    assert len(COCO_91) == 91 and COCO_91.names.count("N/A") == 11
    assert [COCO_91.names[i] for i in (1, 17, 44, 90)] == ["person", "cat", "bottle", "toothbrush"]
    assert COCO_91.ids == tuple(range(91))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_foreign_and_damaged_files(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DetrkitError, match="no such weights file"):
        load_model("nothing.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.pth", "text.safetensors"):
        with pytest.raises(DetrkitError, match=f"^{name}: .*not a"):
            load_model(name)
    for suffix in ("pth", "safetensors", "pdparams"):
        (tmp_path / f"empty.{suffix}").write_bytes(b"")
        (tmp_path / f"page.{suffix}").write_text("\n<!DOCTYPE html><title>Sign in</title>")  # what a browser saved
        for name, message in (("empty", "empty; get the file once more"), ("page", "a web page, not weights; get ")):
            with pytest.raises(DetrkitError, match=f"^{name}.{suffix}: {message}"):
                load_model(f"{name}.{suffix}")
    path = save_model("whole.safetensors", model, SPEC)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-1000])
    torch.save({"model": to_official(model)}, "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-1000])
    for name in ("cut.safetensors", "cut.pth"):
        with pytest.raises(DetrkitError, match=f"^{name}: damaged"):
            load_model(name)
    save_file({"a": torch.zeros(1)}, "foreign.safetensors")
    with pytest.raises(DetrkitError, match="not written by detrkit"):
        load_model("foreign.safetensors")
    torch.save({"epoch": 3}, "other.pth")
    with pytest.raises(DetrkitError, match="no weights found"):
        load_model("other.pth")
    torch.save({"model": Evil()}, "evil.pth")
    with open("evil.pkl", "wb") as file:
        pickle.dump(Evil(), file)
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(DetrkitError, match=f"^{name}: "):
            load_model(name)
    assert not (tmp_path / "evil").exists()


def test_code_hidden_in_the_arguments_of_a_training_checkpoint(tmp_path, monkeypatch):
    """A Namespace may be in a file, and nothing that it could smuggle in."""
    monkeypatch.chdir(tmp_path)
    state = to_official(build_model("detr-r50", **TINY))
    hidden = argparse.Namespace(**TINY, dilation=False, device=Evil())
    for content in ({"model": state, "args": hidden}, {"model": state, "args": Evil()}, {"model": {"a": Evil()}}):
        torch.save(content, "evil.pth")
        with pytest.raises(DetrkitError, match=r"^evil\.pth: holds more than .* \(posix\.mkdir\)") as error:
            load_model("evil.pth")
        assert "\n" not in str(error.value) and not (tmp_path / "evil").exists()


def test_spec_that_contradicts_its_weights(model, tmp_path):
    path = save_model(tmp_path / "a.safetensors", model, ModelSpec("detr-r50", TINY | {"dec_layers": 2}))
    with pytest.raises(DetrkitError, match=r"a\.safetensors: these weights do not fit"):
        load_model(path)
    path = save_model(tmp_path / "b.safetensors", nn.Linear(1, 1), ModelSpec("detr-r5"))
    with pytest.raises(DetrkitError, match="unknown model 'detr-r5'"):
        load_model(path)


def test_registry_hashes():
    for known in registry.ARCHITECTURES.values():
        if known.weights is not None:
            assert len(known.sha256_prefix) == 8
            assert registry.published_file(known.sha256_prefix + "0" * 56) is known.row
    assert registry.published_file("0" * 64) is None
