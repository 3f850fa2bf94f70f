"""Whatever a checkpoint says of itself: one clear line or a model, within bounded time and memory.

`pytest` runs some examples of each kind; `python tests/fuzz/run_long.py --minutes 12 state hub` runs each
for so long.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from detrkit.config import OptimConfig
from detrkit.convert import to_official
from detrkit.engine.fine_tune import load_first_weights
from detrkit.engine.optim import build_optimizer
from detrkit.engine.saving import restore
from detrkit.engine.state import Progress, load_state, rng_state
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, save_huggingface
from detrkit.weights.files import METADATA_KEY, STATE_FORMAT
from helpers.changes import ODD_NUMBERS, change_bytes, change_disk, change_value, odd_values, places
from helpers.limits import bounds, one_line

OPTIONS = {"backbone": "resnet10", "backbone_width": 8, "backbone_norm": "batch", "hidden_dim": 32, "nheads": 4}
OPTIONS |= {"dim_feedforward": 16, "enc_layers": 1, "dec_layers": 1, "num_queries": 5}
SPEC = ModelSpec("detr-r50", OPTIONS, 2, ClassList(("cat", "dog"), (1, 2)), size=64, max_size=96, training={"epoch": 3})
EXAMPLES = int(os.environ.get("DETRKIT_FUZZ_EXAMPLES", "12"))  # each takes 0.1 to 0.4 s
STEPS = 3  # of an epoch
Case = tuple[dict[str, bytes], list[tuple[str, str]]]


@cache
def made() -> Any:
    torch.manual_seed(1)
    return SPEC.build().eval()


def trainer() -> Any:
    """What `restore` needs of one."""
    model = SPEC.build()
    optimizer = build_optimizer(model, OptimConfig())
    return SimpleNamespace(
        folder=Path("run"), world=1, rank=0, steps_per_epoch=STEPS, model=model, optimizer=optimizer, average=None
    )


@cache
def training_state() -> bytes:
    one = trainer()
    for parameter in one.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one.optimizer.step()
    part = {"images": 3, "files": "a", "sizes": "b", "boxes": "c", "labels": "d"}
    stream = io.BytesIO()
    content = {
        "format": STATE_FORMAT,
        "spec": json.loads(SPEC.to_json()),
        "data": {"train": part, "val": None},
        "model": dict(one.model.state_dict()),
        "ema": None,
        "ema_updates": 0,
        "optimizer": one.optimizer.state_dict(),
        "generators": [rng_state()],
        "world_size": 1,
        "progress": vars(Progress(epoch=1, batch=2, step=5, sums={"loss": 1.0})).copy(),
    }
    torch.save(content, stream)
    return stream.getvalue()


@st.composite
def odd_tensors(draw: Callable[[Any], Any]) -> Any:
    kind = draw(st.sampled_from(["nan", "inf", "scalar", "rows", "half", "int8", "complex", "sparse", "meta", "many"]))
    return {
        "nan": lambda: torch.full((32,), torch.nan),
        "inf": lambda: torch.full((3, 32), torch.inf),
        "scalar": lambda: torch.tensor(1.0),
        "rows": lambda: torch.zeros(draw(st.sampled_from([0, 1, 7])), 32),
        "half": lambda: torch.zeros(32, dtype=torch.bfloat16),
        "int8": lambda: torch.zeros(32, dtype=torch.int8),
        "complex": lambda: torch.zeros(32, dtype=torch.complex64),
        "sparse": lambda: torch.zeros(32, 32).to_sparse(),
        "meta": lambda: torch.zeros(10**9, device="meta"),
        "many": lambda: torch.zeros(1).expand(draw(st.sampled_from([10**6, 10**9, 10**12]))),  # of one number
    }[kind]()


odd_numbers = st.sampled_from([n for n in ODD_NUMBERS if not isinstance(n, int) or abs(n) < 2**200])


def changed_value(draw: Callable[[Any], Any], value: Any) -> Any:
    """As `change_value`; what is nested so deep already that Python cannot look through it stays."""
    try:
        return change_value(draw, value)
    except RecursionError:
        return value


def change_content(draw: Callable[[Any], Any], value: Any) -> Any:
    """One to three values changed in nested dicts and lists that hold tensors, too."""
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            value = changed_value(draw, value)
            continue
        try:
            *front, last = draw(st.sampled_from(places(value) or [("model",)]))
        except RecursionError:
            return value
        parent = value
        for key in front:
            parent = parent[key]
        if isinstance(parent, (dict, list)) and parent:
            parent[last] = draw(st.one_of(odd_tensors(), odd_values, odd_numbers))
    return value


def change_spec(draw: Callable[[Any], Any]) -> str:
    """A spec as a text, most often JSON."""
    plain = json.loads(SPEC.to_json())
    kind = draw(st.sampled_from(["values"] * 6 + ["option", "option", "numbers", "numbers", "text", "deep"]))
    if kind == "values":
        for _ in range(draw(st.integers(1, 3))):
            plain = changed_value(draw, plain)
    elif kind == "option":
        names = [*OPTIONS, "masks", "dilation", "pre_norm", "position_embedding", "position_entries", "backbone_stage"]
        plain["options"][draw(st.sampled_from([*names, "dropout", "two_stage", "aux_loss"]))] = draw(odd_values)
    elif kind == "numbers":  # each in its range, which together may be a model of terabytes
        sizes = st.sampled_from([1, 4, 32, 64, 1000, 4096, 65_536])
        for name in ("hidden_dim", "dim_feedforward", "backbone_width", "num_queries", "enc_layers", "dec_layers"):
            if draw(st.booleans()):
                plain["options"][name] = min(draw(sizes), 1000 if "layers" in name else 65_536)
        plain["num_classes"] = draw(st.sampled_from([1, 2, 91, 1_000_000]))
        plain["classes"] = draw(st.sampled_from([None, plain["classes"]]))
    elif kind == "deep":
        depth = draw(st.sampled_from([50, 900, 100_000]))
        return json.dumps(plain).replace('"epoch": 3', '"epoch": ' + "[" * depth + "]" * depth)
    text = json.dumps(plain)
    return change_bytes(draw, text.encode()).decode("utf-8", "replace") if kind == "text" else text


def saved(content: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def safetensors_case(draw: Callable[[Any], Any]) -> dict[str, bytes]:
    state = dict(made().state_dict())
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(state)))
        tensor = draw(odd_tensors())
        if tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.numel() < 10**4:
            state[name] = tensor.contiguous()
    metadata = {"format": "pt", METADATA_KEY: change_spec(draw)}
    try:
        return {"a.safetensors": save(state, metadata=metadata)}
    except UnicodeEncodeError:
        return {"a.safetensors": save(state)}


def state_case(draw: Callable[[Any], Any]) -> dict[str, bytes]:
    content = torch.load(io.BytesIO(training_state()), weights_only=True)
    if draw(st.integers(0, 3)) == 0:
        content["spec"] = change_spec(draw)
    else:
        part = draw(st.sampled_from([None, None, "progress", "progress", "optimizer", "generators", "data", "spec"]))
        if part is None:
            content = change_content(draw, content)
        else:
            content[part] = change_content(draw, content[part])
    return {"a.pt": saved(content, _use_new_zipfile_serialization=draw(st.booleans()))}


def official_case(draw: Callable[[Any], Any]) -> dict[str, bytes]:
    state = dict(to_official(made()))
    arguments = {**OPTIONS, "dilation": False, "masks": False, "pre_norm": False, "lr": 1e-4, "output_dir": "x"}
    key = draw(st.sampled_from(["model", "state_dict", "ema", "net", "module", "x"]))
    content: Any = {key: state, "args": arguments, "epoch": 3, "best": 0.5}
    if draw(st.booleans()):
        content["ema"] = {"module": dict(state), "updates": 3}
    if draw(st.booleans()):
        content[METADATA_KEY] = change_spec(draw)
    content = change_content(draw, content)
    given = content.get("args") if isinstance(content, dict) else None
    if isinstance(given, dict) and all(isinstance(name, str) for name in given) and draw(st.booleans()):
        content["args"] = argparse.Namespace(**given)
    return {"a.pth": saved(content, _use_new_zipfile_serialization=draw(st.booleans()))}


@cache
def hub_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = save_huggingface(Path(folder) / "a", build_model("detr-r50", num_classes=2, **OPTIONS), SPEC)
        return {f"a/{file.name}": file.read_bytes() for file in path.iterdir()}


def hub_case(draw: Callable[[Any], Any]) -> dict[str, bytes]:
    files = dict(hub_files())
    if draw(st.integers(0, 3)) == 0:
        index = {"weight_map": {"class_labels_classifier.bias": "model.safetensors", "x": "model.safetensors"}}
        files["a/model.safetensors.index.json"] = json.dumps(change_value(draw, index)).encode()
        files["a/part.safetensors"] = files.pop("a/model.safetensors")
    for name in ("a/config.json", "a/preprocessor_config.json"):
        if draw(st.booleans()):
            value = json.loads(files[name])
            for _ in range(draw(st.integers(1, 3))):
                value = changed_value(draw, value)
            files[name] = json.dumps(value).encode()
    return files


CASES = {"safetensors": safetensors_case, "state": state_case, "official": official_case, "hub": hub_case}


@st.composite
def cases(draw: Callable[[Any], Any], kind: str) -> Case:
    files = CASES[kind](draw)
    name = draw(st.sampled_from(sorted(files)))
    how = draw(st.sampled_from(["as it is"] * 8 + ["bytes", "bytes", "empty", "folder", "loop", "pipe"]))
    if how == "bytes":
        files[name] = change_bytes(draw, files[name])
    elif how == "empty":
        files[name] = b""
    return files, [(how, name)] if how in ("folder", "loop", "pipe") else []


def built(path: Path) -> Any:
    return build_model("detr-r50", num_classes=2, weights=path, **OPTIONS)


def read(path: Path) -> None:
    """All that reads a checkpoint."""
    for load in (load_model, load_first_weights, built):
        try:
            load(path)
        except DetrkitError as error:
            one_line(error, lists=True)
            # a refusal must not come from an allocation that failed
            assert "allocate" not in str(error), str(error)
    if path.suffix == ".pt":
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        try:
            one = trainer()
            restore(one, load_state(path))
            one.optimizer.step()
        except DetrkitError as error:
            one_line(error)
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", CASES)
def test_any_files_are_read_or_refused_in_one_line(kind: str) -> None:
    logging.disable(logging.WARNING)

    @settings(
        max_examples=EXAMPLES,
        derandomize="DETRKIT_FUZZ_EXAMPLES" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(cases(kind))
    def run(case: Case) -> None:
        files, on_disk = case
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                (Path(folder) / name).write_bytes(data)
            change_disk(Path(folder), on_disk)
            with bounds(30):  # 1000 layers take 3 s on the meta device, three times
                read(next(Path(folder).iterdir()))

    try:
        run()
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_unchanged_files_are_read(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    save_file(dict(made().state_dict()), tmp_path / "a.safetensors", metadata={METADATA_KEY: SPEC.to_json()})
    (tmp_path / "a.pt").write_bytes(training_state())
    (tmp_path / "a.pth").write_bytes(saved({"model": to_official(made()), "args": {**OPTIONS, "dilation": False}}))
    (tmp_path / "a").mkdir()
    for name, data in hub_files().items():
        (tmp_path / name).write_bytes(data)
    for name in ("a.safetensors", "a.pt", "a.pth", "a"):
        model, spec = load_model(tmp_path / name)
        assert spec.num_classes == 2 and model.num_queries == 5
        assert load_first_weights(tmp_path / name).left_over == []
    one = trainer()
    restore(one, load_state(tmp_path / "a.pt"))
    assert one.progress == Progress(epoch=1, batch=2, step=5, sums={"loss": 1.0})
