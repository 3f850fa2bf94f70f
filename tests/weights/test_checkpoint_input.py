"""A checkpoint is input: what it says is checked before anything is built, and what people have is loaded or named."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from detrkit.cli import main
from detrkit.convert import to_official
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, load_model, save_model
from detrkit.weights.files import METADATA_KEY
from detrkit.weights.pickles import load_pickle

OPTIONS = {"backbone": "resnet10", "backbone_width": 8, "hidden_dim": 32, "nheads": 4}
OPTIONS |= {"dim_feedforward": 16, "enc_layers": 1, "dec_layers": 1, "num_queries": 5}
ARGUMENTS = {**OPTIONS, "dilation": False}
SPEC = ModelSpec("detr-r50", OPTIONS, 2, ClassList(("cat", "dog"), (1, 2)), size=64, max_size=96)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SPEC.build().eval()


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def changed(**fields):
    """The JSON of SPEC with fields changed; those of a model's options in there."""
    plain = json.loads(SPEC.to_json())
    for name, value in fields.items():
        (plain if name in plain else plain["options"])[name] = value
    return plain


NAN, HUGE = float("nan"), 10**400


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("version", "1", r"version is '1': must be a whole number"),
        ("version", True, r"version is True: must be a whole number"),
        ("name", 3, r"name is 3: must be text"),
        ("options", [1], r"options is \[1\]: must be"),
        ("size", "64", r"size is '64': must be a whole number"),
        ("size", None, r"size is None"),
        ("size", NAN, r"size is nan"),
        ("size", 0, r"size is 0: must be at least 1"),
        ("size", 10**9, r"size is 1000000000: must be at most 65,536"),
        ("max_size", HUGE, r"max_size is 1000.*: must be at most 1,000,000"),
        ("mean", [0.1, 0.2], r"mean\.2 is missing|mean is"),
        ("mean", [NAN, 0.0, 0.0], r"mean\.0 is nan: must be a finite number"),
        ("std", [0, 0, 0], r"std\.0 is 0: must be at least 1e-06"),
        ("padding", "mirror", r"padding is 'mirror': must be 'exact' or 'official'"),
        ("num_classes", 0, r"num_classes is 0: must be at least 1"),
        ("num_classes", 3, r"num_classes is 3, but classes names 2"),
        ("classes", "cat", r"classes is 'cat'"),
        ("classes", {"names": [1, 2], "ids": [1, 2]}, r"classes\.names\.0 is 1: must be text"),
        ("classes", {"names": "ab", "ids": [1, 2]}, r"classes\.names is 'ab'"),
        ("classes", {"names": ["a", "b"], "ids": ["1", 2]}, r"classes\.ids\.0 is '1'"),
        ("classes", {"names": ["a", "b"], "ids": [1, 1]}, r"classes is .*: category ids must be unique"),
        (
            "classes",
            {"names": ["a", "b"], "ids": [1, 2], "unused": [7]},
            r"classes is .*: unused labels must be of the 2",
        ),
        ("training", "x", r"training is 'x'"),
        ("enc_layers", 10**7, r"enc_layers is 10000000: must be at most 1,000"),
        ("num_queries", 10**12, r"num_queries is 1000000000000: must be at most"),
        ("hidden_dim", "32", r"hidden_dim is '32': must be a number"),
        ("hidden_dim", None, r"hidden_dim is None: must be a number"),
        ("masks", "no", r"masks is 'no': must be true or false"),
        ("dropout", NAN, r"dropout is nan: must be a finite number"),
        ("backbone", 5, r"backbone is 5: must be text"),
        ("colour", 5, r"detr-r50 takes no argument colour"),
    ],
)
def test_a_description_is_checked_field_by_field(field, value, reason):
    with pytest.raises(DetrkitError, match=rf"^not a detrkit model description \({reason}") as error:
        ModelSpec.from_json(changed(**{field: value}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_description_is_whole():
    for name in json.loads(SPEC.to_json()):
        plain = json.loads(SPEC.to_json())
        del plain[name]
        with pytest.raises(DetrkitError, match=rf"\({name} is (missing|None)"):
            ModelSpec.from_json(plain)
    with pytest.raises(DetrkitError, match=r"\(colour is not known\)"):
        ModelSpec.from_json(json.loads(SPEC.to_json()) | {"colour": 1})
    for text, reason in (
        ("[1]", r"it is \[1\]"),
        ("x", "malformed JSON"),
        ("[" * 10**5 + "]" * 10**5, "nested too deep"),
    ):
        with pytest.raises(DetrkitError, match=rf"^not a detrkit model description.*{reason}"):
            ModelSpec.from_json(text)


def test_a_name_that_is_there_twice_is_said(caplog):
    ModelSpec.from_json(changed(classes={"names": ["cat", "cat"], "ids": [1, 2]}))
    assert "1 class names are there more than once, such as 'cat'" in caplog.text
    caplog.clear()
    ModelSpec.from_json(changed(classes={"names": ["N/A", "N/A"], "ids": [1, 2]}))  # unused ids of published models
    assert caplog.text == ""


def test_sizes_are_compared_with_the_tensors_before_anything_is_built(model, tmp_path):
    """Each is in its range, and together they would be 16 GB, which many machines have."""
    plain = changed(hidden_dim=4096, dim_feedforward=65_536, enc_layers=3, dec_layers=3)
    save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={METADATA_KEY: json.dumps(plain)})
    tracemalloc.start()
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1])
    with pytest.raises(DetrkitError, match=r"a\.safetensors: these weights do not fit the model"):
        load_model(tmp_path / "a.safetensors")
    with open("/proc/self/statm") as file:
        grown = (int(file.read().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    tracemalloc.stop()
    assert grown < 200 << 20


def test_weights_that_are_not_finite_are_named(model, tmp_path):
    for name, value in (("class_head.bias", torch.nan), ("queries.weight", torch.inf), ("queries.weight", -torch.inf)):
        state = {k: v.clone() for k, v in model.state_dict().items()}
        state[name].view(-1)[1] = value
        save_model(tmp_path / "a.safetensors", state, SPEC)
        torch.save({"model": state}, tmp_path / "a.pth")
        with pytest.raises(
            DetrkitError, match=rf"a tensor holds NaN or infinite values: {name}; .* earlier checkpoint"
        ):
            load_model(tmp_path / "a.safetensors")
    state = {k: v.to(torch.int8) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_model(tmp_path / "a.safetensors", state, SPEC)
    with pytest.raises(DetrkitError, match=r"floating-point numbers, which .* \(int8\), and \d+ more are not"):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_weights_of_every_precision_are_looked_at(model, tmp_path, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_model(tmp_path / "a.safetensors", state, SPEC)
    loaded, _ = load_model(tmp_path / "a.safetensors")
    assert torch.equal(loaded.queries.weight, state["queries.weight"].float())
    state["queries.weight"] = torch.full_like(state["queries.weight"].float(), torch.nan).to(dtype)
    save_model(tmp_path / "a.safetensors", state, SPEC)
    with pytest.raises(DetrkitError, match=r"NaN or infinite values: queries\.weight"):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model", "state_dict", "net", "ema", "model_ema", "module", "params", "ema.module"])
def test_weights_under_the_usual_keys(model, tmp_path, caplog, key):
    content = to_official(model)
    for part in reversed(key.split(".")):
        content = {part: content, "epoch": 3}
    torch.save({**content, "args": ARGUMENTS}, tmp_path / "a.pth")
    assert same(load_model(tmp_path / "a.pth")[0], model)
    assert "taken are" not in caplog.text


def test_of_several_weights_it_is_said_which_are_taken(model, tmp_path, caplog):
    state = to_official(model)
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"ema": {"module": other}, "model": state, "args": ARGUMENTS}, tmp_path / "a.pth")
    assert same(load_model(tmp_path / "a.pth")[0], model)
    assert "a.pth: taken are the weights under model, not those under ema.module" in caplog.text


@pytest.mark.parametrize("archive", [True, False])
def test_metadata_beside_the_tensors(model, tmp_path, archive):
    history = collections.defaultdict(list, loss=[np.float64(1.5)])
    content = {
        "model": collections.OrderedDict(to_official(model)),
        "args": argparse.Namespace(**ARGUMENTS, output_dir=Path("x"), lr=np.float32(0.5)),
        "best": np.float64(0.25),
        "count": np.int64(7),
        "flag": np.bool_(True),
        "history": history,
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "array": np.zeros(3),
        "recent": collections.deque([1, 2]),
        "times": {Path("a"), "b"},
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    assert same(load_model(tmp_path / "a.pth")[0], model)
    loaded = load_pickle(tmp_path / "a.pth")
    assert [loaded[name] for name in ("best", "count", "flag", "history")] == [0.25, 7, True, {"loss": [1.5]}]
    assert loaded["args"].lr == 0.5 and loaded["recent"] == [1, 2]


def test_official_names_in_safetensors(model, tmp_path):
    save_file({k: v.clone() for k, v in to_official(model).items()}, tmp_path / "a.safetensors")
    loaded, spec = load_model(tmp_path / "a.safetensors", options={"nheads": 4})
    assert same(loaded, model) and spec.name == "detr-r50" and spec.num_classes == 2


def test_the_folder_of_an_official_training(model, tmp_path, caplog):
    torch.save({"model": to_official(model), "args": ARGUMENTS}, tmp_path / "checkpoint.pth")
    assert same(load_model(tmp_path)[0], model)
    assert f"{tmp_path}: taken is checkpoint.pth" in caplog.text


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin", "pt", "pdparams"])
def test_what_people_have_in_the_place_of_weights_is_named(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    for content, message in (
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "is a Git LFS pointer.*run git lfs pull",
        ),
        (b'{"error": "Entry not found"}', "JSON, not weights .*Entry not found"),
        (b"<!DOCTYPE html><title>Sign in", "a web page, not weights"),
        (b"", "empty; get the file once more"),
    ):
        path.write_bytes(content)
        with pytest.raises(DetrkitError, match=rf"a\.{suffix}: {message}"):
            load_model(path)
    path.unlink()
    os.mkfifo(path)  # would be waited for
    with pytest.raises(DetrkitError, match=rf"a\.{suffix}: not a regular file"):
        load_model(path)


def test_a_file_under_the_suffix_of_another_kind(model, tmp_path):
    save_model(tmp_path / "a.safetensors", model, SPEC).rename(tmp_path / "a.pth")
    with pytest.raises(DetrkitError, match=r"a\.pth: a safetensors file: call it \.safetensors"):
        load_model(tmp_path / "a.pth")
    torch.save({"model": to_official(model)}, tmp_path / "a.safetensors")
    with pytest.raises(DetrkitError, match=r"a\.safetensors: a file of torch\.save: call it \.pth"):
        load_model(tmp_path / "a.safetensors")


def test_other_formats_of_torch_are_named(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)), tmp_path / "a.pt")
    with pytest.raises(
        DetrkitError, match=r"a\.pt: a TorchScript archive, which holds code: save the model's state_dict"
    ):
        load_model(tmp_path / "a.pt")
    with tarfile.open(tmp_path / "b.pth", "w") as tar:  # as PyTorch wrote it before 0.4
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DetrkitError, match=r"b\.pth: of a PyTorch before 0\.4"):
        load_model(tmp_path / "b.pth")


def test_an_archive_larger_than_itself_is_not_unpacked(model, tmp_path):
    torch.save({"model": to_official(model)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        bomb.writestr("bomb/data.pkl", whole.read("a/data.pkl"))
        bomb.writestr("bomb/data/0", bytes(64 << 20))
    with pytest.raises(DetrkitError, match=r"bomb\.pth: its [\d,]+ bytes unpack to 67,\d.* nothing was unpacked"):
        load_model(tmp_path / "bomb.pth")


def test_a_tensor_of_more_values_than_the_file_holds(tmp_path):
    torch.save({"model": {"class_embed.weight": torch.zeros(1).expand(10**12, 32)}}, tmp_path / "a.pth")
    with pytest.raises(DetrkitError, match=r"a\.pth: class_embed\.weight has more values than the file holds"):
        load_model(tmp_path / "a.pth")
    torch.save({"model": {"class_embed.weight": torch.eye(3).to_sparse()}}, tmp_path / "a.pth")
    with pytest.raises(DetrkitError, match=r"a\.pth: holds more than tensors and plain values \(.*sparse"):
        load_model(tmp_path / "a.pth")
    torch.save({"model": {"class_embed.weight": torch.zeros(10**12, device="meta")}}, tmp_path / "a.pth")
    with pytest.raises(DetrkitError, match=r"a\.pth: class_embed\.weight is sparse, quantized or without values"):
        load_model(tmp_path / "a.pth")


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"cposix\nsystem\n" + text(b"touch executed") + b"\x85R", r"\(posix\.system\)|module posix"),
        (b"c__builtin__\neval\n" + text(b"open('executed', 'w')") + b"\x85R", r"\(eval\)"),
        (b"cbuiltins\nexec\n" + text(b"open('executed', 'w')") + b"\x85R", r"\(exec\)"),
        (b"csubprocess\nPopen\n" + text(b"true") + b"\x85R", r"\(subprocess\.Popen\)"),
        (b"cnumpy\nload\n" + text(b"a.npy") + b"\x85R", r"\(numpy\.load\)"),
        (b"cnumpy.core.multiarray\nfromfile\n" + text(b"a") + b"\x85R", r"fromfile\)"),
        (b"cpathlib\nPosixPath\n" + text(b"executed") + b"\x85R" + b"cbuiltins\ngetattr\n", r"\(getattr\)"),
        # nothing of these is executed, but they would fill the memory or take minutes
        (b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x05\x85R", "bytearray"),
        (b"c_codecs\nencode\n" + text(b"x" * 9) + text(b"-PunyCode") + b"\x86R", "text in punycode"),
    ],
)
@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch, program, message, archive):
    monkeypatch.chdir(tmp_path)
    program = b"\x80\x02" + program + b"."
    if archive:
        torch.save({}, "a.pth")
        with zipfile.ZipFile("a.pth") as old:
            entries = {name: old.read(name) for name in old.namelist()} | {"a/data.pkl": program}
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as new:
            for name, data in entries.items():
                new.writestr(name, data)
        Path("a.pth").write_bytes(stream.getvalue())
    else:
        Path("a.pth").write_bytes(program)
    # what is no archive begins with a magic number, which ends the reading of others before anything is looked up
    with pytest.raises(DetrkitError, match=rf"^a\.pth: .*({message}" + ("" if archive else "|damaged") + ")") as error:
        load_model("a.pth")
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_backbone_weights_that_are_none(model, tmp_path):
    save_model(tmp_path / "model.safetensors", model, SPEC)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    for name, message in (
        ("model.safetensors", "these weights do not fit the model"),
        ("cut.safetensors", "damaged, or not a safetensors file"),
        ("other.pth", "no weights found"),
    ):
        with pytest.raises(DetrkitError, match=rf"{name}: {message}"):
            build_model("detr-r50", backbone_weights=tmp_path / name, **OPTIONS)


def test_commands_say_it_in_one_line(model, tmp_path, capsys):
    plain = changed(size="64")
    save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={METADATA_KEY: json.dumps(plain)})
    path, out, image = str(tmp_path / "a.safetensors"), str(tmp_path / "out"), str(tmp_path / "a.png")
    Image.new("RGB", (64, 48)).save(image)
    for words in (
        ["predict", path, image, "--out", out],
        ["convert", path, out],
        ["compare", path, path],
        ["train", image, "--recipe", "finetune", "--init-from", path, "--out", out],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "a.safetensors: not a detrkit model description (size is '64'" in said, said
