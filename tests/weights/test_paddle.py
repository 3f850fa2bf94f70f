"""PaddleDetection's files: what its own modules computed is what detrkit computes with them (record_paddle.py)."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import goldens
from detrkit.cli.convert import Convert
from detrkit.structures.coco_classes import COCO_NAMES
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import load_model
from helpers.paddle_fill import fill

HERE = Path(__file__).parent
RECORDED = HERE / "paddle"
MODELS = {"detr_r50": "detr-r50", "detr_r101": "detr-r101", "deformable_detr_r50": "deformable-detr-r50"}


def arrays(model):
    """The parameters of a recorded model, by Paddle's names."""
    shapes = json.loads((RECORDED / f"{model}.json").read_text())
    return {name: fill(name, tuple(shape)) for name, shape in shapes.items()}


def saved(path, content, protocol=4):
    """A .pdparams file as paddle.save writes it: a pickle with a table of Paddle's inner names."""
    if isinstance(content, dict):
        content = {**content, "StructuredToParameterName@@": dict.fromkeys(content, "param_0")}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_same_outputs_as_paddle(model, tmp_path):
    path = saved(tmp_path / f"{model}_1x_coco.pdparams", arrays(model))
    loaded, spec = load_model(path)
    assert spec.name == MODELS[model] and spec.options == {} and spec.num_classes == 80
    with torch.inference_mode():
        found = loaded([goldens.image("paddle", 192, 256)])
    recorded = np.load(RECORDED / f"{model}.npz")
    worst = [float(np.abs(getattr(found, k)[0, ::5].numpy() - recorded[k]).max()) for k in ("logits", "boxes")]
    print([f"{w:.1e}" for w in worst])
    assert worst[0] <= 6e-5 and worst[1] <= 1e-5  # as for the official code's numbers
    assert recorded["logits"].std(0).mean() > 0.1  # queries differ, so equality says something
    if model == "detr_r101":
        assert spec.classes is None  # no file of the model zoo
        return
    assert spec.classes.ids == tuple(COCO_NAMES) and spec.classes.names[:2] == ("person", "bicycle")


@pytest.mark.slow
def test_converted_whole(tmp_path, capsys):
    path = saved(tmp_path / "detr_r50_1x_coco.pdparams", arrays("detr_r50"), protocol=2)
    assert Convert(path, tmp_path / "a.safetensors").run() == 0
    assert "detr-r50, 80 classes" in capsys.readouterr().out
    first, second = load_model(path), load_model(tmp_path / "a.safetensors")
    assert first[1].classes == second[1].classes
    state = second[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first[0].state_dict().items())
    with pytest.raises(DetrkitError, match=r"must end with .*\.pth"):
        Convert(path, tmp_path / "a.pdparams").run()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detr_head.mask_head.conv0.0.weight": np.zeros((2, 2, 3, 3), "f")}, "mask head weighs each attention head"),
        ({"backbone.conv1.conv1_1.conv.weight": np.zeros((2, 3, 3, 3), "f")}, "a ResNet-vd"),
        ({"neck.lateral.weight": np.zeros(2, "f")}, r"no DETR or Deformable DETR of PaddleDetection has neck\.lateral"),
        ({"detr_head.score_head.weight": None}, r"(?s)do not fit.*missing \(1\): class_embed\.weight"),
        (
            {"transformer.encoder.layers.2.norm1.bias": None},
            r"(?s)do not fit.*\(1\): transformer\.encoder\.layers\.2\.",
        ),
        ({"backbone.res2.res2a.branch2a.conv.weight": np.array(["a"], object)}, "is no array of numbers"),
        ({"backbone.res2.res2a.branch2a.conv.weight": "text"}, "is no array of numbers"),
    ],
)
def test_what_does_not_fit(tmp_path, change, message):
    content = {k: v for k, v in (arrays("detr_r50") | change).items() if v is not None}
    path = saved(tmp_path / "a.pdparams", content)
    with pytest.raises(DetrkitError, match=message) as error:
        load_model(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.slow
def test_other_forms_of_the_same_arrays(tmp_path):
    """Names beside arrays (paddle.save of tensors), weights under "model", an ordered dictionary."""
    state = arrays("deformable_detr_r50")
    want = load_model(saved(tmp_path / "a.pdparams", state))[0].state_dict()
    for content in (
        {name: (name, array) for name, array in state.items()},
        {"model": state, "epoch": 3},
        OrderedDict(state),
    ):
        path = tmp_path / "b.pdparams"
        path.write_bytes(pickle.dumps(content, 4))
        assert all(torch.equal(tensor, want[name]) for name, tensor in load_model(path)[0].state_dict().items())


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.mkdir, "evil"),
        Evil(eval, "__import__('os').mkdir('evil')"),
        Evil(getattr, os, "mkdir"),
        Evil(np.load, "evil.npy"),
        {"w": Evil(os.system, "mkdir evil")},
    ],
)
def test_code_is_not_run(tmp_path, monkeypatch, evil, protocol):
    monkeypatch.chdir(tmp_path)
    if isinstance(evil, Evil) and evil.reduced[0] is getattr:
        evil = Evil(getattr, 1, "real")  # a module cannot be pickled; a getter is enough to be refused
    Path("evil.pdparams").write_bytes(pickle.dumps(evil, protocol))
    with pytest.raises(DetrkitError, match=r"^evil\.pdparams: holds more than arrays \(") as error:
        load_model("evil.pdparams")
    assert "\n" not in str(error.value) and not Path("evil").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04.", None])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "a.pdparams"
    if content is None:
        content = saved(path, {"a": np.zeros(100)}).read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(DetrkitError, match=r"a\.pdparams: (.*damaged|empty)"):
        load_model(path)
    for whole, message in ((3, "no arrays by name"), ({}, "no weights in this file")):
        saved(path, whole)
        with pytest.raises(DetrkitError, match=message):
            load_model(path)
    saved(path, {"UnpackBigParamInfor@@": {}})
    with pytest.raises(DetrkitError, match="arrays in pieces"):
        load_model(path)
