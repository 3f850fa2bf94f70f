"""Checkpoints by their name on the Hugging Face Hub, against a server on this machine that speaks as the Hub does."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from huggingface_hub import constants

from detrkit.cli import main
from detrkit.engine.fine_tune import load_first_weights
from detrkit.models.spec import ModelSpec
from detrkit.utils.download import DownloadError
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import load_any, save_huggingface
from detrkit.weights.hub import HubName, download_checkpoint, hub_name
from helpers.hub_server import COMMIT, hub

NAME = "somebody/tiny-detr"
OPTIONS = {
    "backbone": "resnet10",
    "backbone_width": 8,
    "hidden_dim": 32,
    "nheads": 2,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model, and the files of its Hugging Face folder."""
    spec = ModelSpec("detr-r50", OPTIONS, num_classes=3, size=64, max_size=96)
    torch.manual_seed(0)
    built = spec.build().eval()
    folder = save_huggingface(tmp_path_factory.mktemp("hub") / "folder", built, spec)
    return built, {file.name: file.read_bytes() for file in folder.iterdir()}


def point_to(url, monkeypatch):
    """As HF_ENDPOINT does, which huggingface_hub reads when it is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    before = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(before, url))


@pytest.fixture
def server(model, tmp_path, monkeypatch):
    """The Hub with that model, an empty cache, and a working directory without anything."""
    monkeypatch.chdir(tmp_path)
    with hub({NAME: dict(model[1])}) as running:
        point_to(running.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("facebook/detr-resnet-50", HubName("facebook/detr-resnet-50", None)),
        ("facebook/detr-resnet-50@no_timm", HubName("facebook/detr-resnet-50", "no_timm")),
        ("hf://facebook/detr-resnet-50", HubName("facebook/detr-resnet-50", None)),
        ("a/b@refs/pr/3", HubName("a/b", "refs/pr/3")),
        *((path, None) for path in ("best.safetensors", "a/b.pth", "a/b/c", "./a/b", "/a/b", "a/b.safetensors", "~/a")),
        *(
            (path, None)
            for path in ("runs/first", "checkpoints/best", "detr-r50", "a/", "../a", "a b/c", "a/b@", "a/é", "a/-")
        ),
    ],
)
def test_names(text, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(text) == name


def test_what_is_here_is_taken_first(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "facebook").mkdir()
    assert hub_name("runs/first") is None and hub_name("runs/frist") is None
    assert caplog.text == ""
    assert hub_name("facebook/detr-resnet-50") is None
    assert "taken is what is here under this name; hf://facebook/detr-resnet-50 is the model on the Hub" in caplog.text
    assert hub_name("hf://facebook/detr-resnet-50") is not None


def test_a_model_is_downloaded_once_and_is_the_same(server, model, capsys):
    loaded, spec = load_any(NAME)
    assert (spec.name, spec.num_classes, spec.size, spec.max_size) == ("detr-r50", 3, 64, 96)
    for name, tensor in model[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert server.downloads == ["config.json", "preprocessor_config.json", "model.safetensors"]
    size = len(model[1]["model.safetensors"]) / 1e6
    assert f"downloading {NAME}: model.safetensors ({size:.1f} MB)" in capsys.readouterr().err
    assert load_first_weights(f"{NAME}@{COMMIT}").spec.num_classes == 3
    load_any(f"hf://{NAME}")
    assert len(server.downloads) == 3
    assert "downloading" not in capsys.readouterr().err


def test_the_cache_does_without_a_network(server, monkeypatch):
    load_any(NAME)
    asked = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_any(NAME)
    assert len(server.requests) == asked
    with pytest.raises(DownloadError, match=r"somebody/other: no such file or folder, and .*HF_HUB_OFFLINE is set"):
        load_any("somebody/other")


def test_a_cut_download_goes_on(server, model, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept of a cut connection
    server.cut = [10_000, 5_000]
    load_any(NAME)
    ranges = [begin for method, file, begin in server.requests if method == "GET" and file == "model.safetensors"]
    assert ranges == [None, "bytes=10000-", "bytes=15000-"]


def test_other_content_than_the_hub_names_is_refused(server, model):
    server.swapped = bytes(reversed(model[1]["model.safetensors"]))
    with pytest.raises(
        DownloadError, match=r"model.safetensors is not the file that the Hub names: its SHA-256 starts"
    ):
        load_any(NAME)
    server.swapped = None
    load_any(NAME)  # the wrong file has left the cache


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("facebook/detr-resnet-51", "no such file or folder, and no such model on the Hugging Face Hub; a private one"),
        ("facebook/detr-resnet-50-panoptics", "did you mean facebook/detr-resnet-50-panoptic?"),
        (f"{NAME}@v9", "no revision 'v9' in this repository"),
        ("somebody/gated", "its owner asks for agreement: accept the conditions at"),
        ("somebody/other-kind", "its model_type is 'd_fine'; detrkit reads detr, deformable_detr, rt_detr, rt_detr_v2"),
        ("somebody/damaged", "its config.json is damaged"),
        ("somebody/empty", "this repository has no config.json"),
        ("somebody/without-weights", "this repository has no weights: none of model.safetensors, pytorch_model.bin"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_no_download(server, model, name, message):
    config = model[1]["config.json"]
    server.repositories |= {
        "somebody/gated": dict(model[1]),
        "somebody/other-kind": model[1] | {"config.json": json.dumps({"model_type": "d_fine"}).encode()},
        "somebody/damaged": model[1] | {"config.json": b"{"},
        "somebody/empty": {},
        "somebody/without-weights": {"config.json": config},
    }
    server.gated.add("somebody/gated")
    with pytest.raises(DetrkitError) as caught:
        load_any(name)
    assert str(caught.value).startswith(f"{name}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "model.safetensors" not in server.downloads


def test_an_unreachable_hub_is_one_line(server, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(
        DownloadError, match=r"http://127.0.0.1:9 cannot be reached, and the cache .* does not have all of it"
    ):
        download_checkpoint(HubName(NAME, None))


def test_pickled_weights_are_read_as_any_others(server, model, tmp_path):
    from safetensors.torch import load

    torch.save(load(model[1]["model.safetensors"]), tmp_path / "weights.bin")
    pickled = (tmp_path / "weights.bin").read_bytes()
    server.repositories[NAME] = {"config.json": model[1]["config.json"], "pytorch_model.bin": pickled}
    loaded, spec = load_any(NAME)
    assert spec.size == 800  # the published preparation, where the repository states none
    weight = "queries.weight"
    assert torch.equal(loaded.state_dict()[weight], model[0].state_dict()[weight])


def test_commands_take_a_name(server, model, tmp_path, capsys, caplog):
    caplog.set_level(logging.ERROR)
    assert main(["convert", NAME, "tiny.safetensors"]) == 0
    assert load_any("tiny.safetensors")[1].num_classes == 3
    assert main(["compare", NAME, "tiny.safetensors", "--size", "64", "64"]) == 0
    assert main(["convert", "somebody/none", "other.safetensors"]) == 2
    assert "error: somebody/none: no such file or folder" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "other.safetensors").exists()
