"""last.pt is input: each of its fields is checked before anything is built, and what does not fit is one line."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detrkit.config import OptimConfig
from detrkit.engine.optim import build_optimizer, moving_average
from detrkit.engine.saving import restore
from detrkit.engine.state import Progress, load_state, rng_state, save_state
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, load_model

OPTIONS = {"backbone": "resnet10", "backbone_width": 8, "backbone_norm": "group", "hidden_dim": 32, "nheads": 4}
OPTIONS |= {"dim_feedforward": 16, "enc_layers": 1, "dec_layers": 1, "num_queries": 5}
SPEC = ModelSpec("detr-r50", OPTIONS, 2, size=64, max_size=96)


def trainer(*, ema=False):
    """As far as `restore` looks at one."""
    model = SPEC.build()
    average = moving_average(model, 0.9) if ema else None
    optimizer = build_optimizer(model, OptimConfig())
    return SimpleNamespace(
        folder=Path("run"), world=1, rank=0, steps_per_epoch=3, model=model, optimizer=optimizer, average=average
    )


@pytest.fixture(scope="module")
def saved():
    one = trainer()
    for parameter in one.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    one.optimizer.step()
    part = {"images": 3, "files": "a", "sizes": "b", "boxes": "c", "labels": "d"}
    return {
        "spec": SPEC.to_json(),
        "config": "",
        "data": {"train": part, "val": None},
        "model": one.model.state_dict(),
        "ema": None,
        "ema_updates": 0,
        "optimizer": one.optimizer.state_dict(),
        "generators": [rng_state()],
        "world_size": 1,
        "progress": vars(Progress(epoch=1, batch=3, step=6, sums={"loss": 1.0}, learned=float("nan"))),
    }


def changed(saved, path, value):
    """A copy with the value at a path such as "progress.batch" replaced, or removed where it is ...; items too."""
    state = copy.deepcopy(saved)
    *front, last = (int(part) if part.isdigit() else part for part in path.split("."))
    parent = state
    for key in front:
        parent = parent[key]
    if value is ...:
        del parent[last]
    else:
        parent[last] = value
    return state


def test_a_state_there_and_back(saved, tmp_path):
    save_state(tmp_path / "last.pt", saved)
    state = load_state(tmp_path / "last.pt")
    one = trainer()
    restore(one, state)
    assert all(torch.equal(tensor, saved["model"][name]) for name, tensor in one.model.state_dict().items())
    moments = one.optimizer.state_dict()["state"]
    assert all(torch.equal(moments[k]["exp_avg"], v["exp_avg"]) for k, v in saved["optimizer"]["state"].items())
    assert one.progress.batch == 3 and one.progress.sums == {"loss": 1.0}
    assert torch.equal(torch.get_rng_state(), saved["generators"][0]["torch"])
    assert list(random.getstate()[1]) == list(saved["generators"][0]["python"][1])
    assert np.array_equal(np.random.get_state()[1], saved["generators"][0]["numpy"][1].numpy())


NAN = float("nan")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("spec", ..., r"spec is missing"),
        ("spec", 3, r"not a detrkit model description \(it is 3"),
        ("spec", "x", r"not a detrkit model description"),
        ("model", ..., r"model is missing"),
        ("model", [1], r"model is \[1\]: must be an object"),
        ("model.class_head.bias", 3, r"model\.class_head\.bias is 3"),
        ("model.class_head.bias", torch.zeros(9), r"do not fit the model .*class_head\.bias is \(9,\)"),
        ("model.class_head.bias", torch.full((3,), NAN), r"a tensor holds NaN or infinite values: class_head\.bias"),
        ("optimizer", ..., r"optimizer is missing"),
        ("optimizer.param_groups", "x", r"optimizer\.param_groups is 'x': must be a list"),
        ("optimizer.param_groups.0.base_lr", NAN, r"optimizer\.param_groups\.0\.base_lr is nan"),
        ("optimizer.state.0.exp_avg", 3, r"optimizer\.state\.0\.exp_avg is 3"),
        ("generators", ..., r"generators is missing"),
        ("generators", [], r"generators are of 0 processes, world_size is 1"),
        ("generators.0.python", "x", r"generators\.0\.python is 'x'"),
        ("generators.0.numpy.2", 10**6, r"generators\.0\.numpy\.2 is 1000000: must be at most 624"),
        ("world_size", ..., r"world_size is missing"),
        ("world_size", "1", r"world_size is '1': must be a whole number"),
        ("progress", ..., r"progress is missing"),
        ("progress", [1], r"progress is \[1\]: must be an object"),
        ("progress.colour", 1, r"progress\.colour is not known"),
        ("progress.epoch", -1, r"progress\.epoch is -1: must be at least 0"),
        ("progress.step", "6", r"progress\.step is '6': must be a whole number"),
        ("progress.best", NAN, r"progress\.best is nan"),
        ("data.train.files", ..., r"data\.train\.files is missing"),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_named(saved, tmp_path, path, value, reason):
    part = path.split(".", 1)
    state = changed(saved, path, value) if part[0] != "model" or len(part) < 2 else copy.deepcopy(saved)
    if part[0] == "model" and len(part) == 2:  # names of tensors have points in them
        state["model"][part[1]] = value
    save_state(tmp_path / "last.pt", state)
    with pytest.raises(
        DetrkitError, match=rf"last\.pt: damaged \(.*{reason}.*\); start a new run.*--init-from"
    ) as error:
        load_state(tmp_path / "last.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["data", "config", "ema", "ema_updates"])
def test_states_of_earlier_versions_have_fewer_parts(saved, tmp_path, part):
    save_state(tmp_path / "last.pt", changed(saved, part, ...))
    restore(trainer(), load_state(tmp_path / "last.pt"))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("progress.batch", 4, r"progress\.batch is 4, an epoch of this run has 3 steps"),
        ("world_size", 2, r"the run had 2 process\(es\), now there are 1"),
        ("optimizer.param_groups.0.betas", "x", r"its optimizer has betas='x', this one betas="),
        ("optimizer.state.0.exp_avg", torch.zeros(3, 3), r"'exp_avg' of parameter 0 is not of the parameter's shape"),
        ("optimizer.state.0.exp_avg_sq", torch.tensor(NAN), r"NaN or infinite values: exp_avg_sq of parameter 0"),
        ("optimizer.param_groups.0.params", [0], r"its optimizer has a parameter \d+ more than this one"),
        ("generators.0.torch", torch.zeros(5, dtype=torch.uint8), r"a random generator is damaged"),
        ("generators.0.python", (3, (1, 2), None), r"a random generator is damaged"),
        ("generators.0.numpy.1", torch.zeros(4), r"a random generator is damaged"),
    ],
)
def test_what_does_not_fit_the_run_is_one_line(saved, path, value, reason):
    state = changed(saved, path, value)
    with pytest.raises(DetrkitError, match=rf"^run/last\.pt: .*{reason}") as error:
        restore(trainer(), state)
    assert "\n" not in str(error.value)


def test_a_run_with_an_average_needs_one(saved):
    with pytest.raises(DetrkitError, match=r"no moving average of the weights"):
        restore(trainer(ema=True), copy.deepcopy(saved))
    one = trainer(ema=True)
    restore(one, copy.deepcopy(saved) | {"ema": saved["model"], "ema_updates": 7})
    assert int(one.average.n_averaged) == 7


def test_a_state_as_weights_needs_its_model_and_spec_alone(saved, tmp_path):
    save_state(tmp_path / "last.pt", {"spec": SPEC.to_json(), "model": saved["model"]})
    assert load_model(tmp_path / "last.pt")[1] == SPEC
    for part, reason in (("spec", "not a detrkit model description"), ("model", "no weights found")):
        save_state(tmp_path / "last.pt", {"spec": SPEC.to_json(), "model": saved["model"], part: None})
        with pytest.raises(DetrkitError, match=re.escape(f"{tmp_path / 'last.pt'}: {reason}")):
            load_model(tmp_path / "last.pt")
