"""`detrkit bench`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image

from detrkit.cli import main
from detrkit.cli.bench import _duration
from detrkit.detector import Detector
from detrkit.ops import dense
from detrkit.weights.checkpoint import ModelSpec, save_model

OPTIONS = {
    "backbone": "resnet18",
    "backbone_norm": "group",
    "hidden_dim": 32,
    "dim_feedforward": 64,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 15,
}
SPEC = ModelSpec("detr-r50", OPTIONS, num_classes=2, size=64, max_size=96)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    return str(save_model(tmp_path / "run" / "best.safetensors", SPEC.build(), SPEC).parent)


def bench(*words):
    return main(["bench", *map(str, words), "--device", "cpu"])


def test_table_adds_up_and_is_in_the_file(weights, tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert bench(weights, "--repeats", 1, "--batch", 2, "--json", file) == 0
    out = capsys.readouterr().out
    record = json.loads(file.read_text())
    assert record["model"] == "detr-r50" and record["weights"] == "trained" and record["turns"] == 1
    assert record["smallest input"] == record["largest input"] == [64, 95]  # of 427 x 640
    for name, seconds in record["parts, s"].items():
        share = 100 * seconds / record["parts together, s"]
        assert re.search(rf"{re.escape(name)} +\S +{1000 * seconds:.1f} +\S +{share:.1f}", out), name
    assert f"{1000 * record['whole without the stopwatch, s']:.1f}" in out
    assert f"images a second: {record['images a second']:.2f}" in out
    # the medians of one iteration are its parts; how they compare with an iteration without the timer is up to the load
    assert sum(record["parts, s"].values()) == pytest.approx(record["parts together, s"], rel=1e-9)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert f"instructions {record['machine']['instructions']}" in out
    rate, operations = record["operations a second of the best matrix product"], record["operations"]
    assert record["floor, s"] == pytest.approx(operations / rate) and 0.01e9 < operations < 1e9
    model = ("backbone", "projection, positions", "encoder", "decoder", "heads")
    assert record["the model, s"] == pytest.approx(sum(record["parts, s"][part] for part in model))
    assert record["share of the floor"] == pytest.approx(record["floor, s"] / record["the model, s"])
    assert f"so it reaches {100 * record['share of the floor']:.0f} % of that rate" in out


@pytest.mark.slow
def test_training_says_what_an_epoch_takes(weights, tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert bench(weights, "--train", "--repeats", 2, "--json", file) == 0
    out = capsys.readouterr().out
    rate = json.loads(file.read_text())["images a second"]
    assert f"an epoch of 118,287 images would take {_duration(118_287 / rate)}" in out
    assert "backward" in out and "optimizer" in out


def test_own_pictures_of_any_size(weights, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for k, size in enumerate([(100, 80), (80, 100), (64, 64)]):
        Image.new("RGB", size, (k, 80, 90)).save(photos / f"{k}.png")
    assert bench(weights, "--images", photos, "--repeats", 2) == 0
    out = capsys.readouterr().out
    assert "3 given images" in out and re.search("64 x 64 to (80 x 64|64 x 80) pixels", out)


def test_a_name_has_random_weights_and_downloads_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert bench("--size", 64, 96, "--repeats", 1) == 0
    out = capsys.readouterr().out
    assert out.startswith("detr-r50, random weights; 8 generated images") and "64 x 96 pixels" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "--batch 0: must be at least 1"),
        (["--repeats", "0"], "--repeats 0: must be at least 1"),
        (["--size", "800", "600"], "--size 800 600: first the short side"),
        (["--size", "8", "600"], "--size 8 600: must be at least 32"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--images", "."], "no images in this folder"),
        (["--json", "nowhere/bench.json"], "there is no folder nowhere"),
        (["no-such-model"], "no-such-model: neither a file nor a model"),
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["--published", "nowhere.safetensors"], "nowhere.safetensors"),
        (["detr-demo", "--size", "1700", "1700"], "resize it to at most 1600 pixels"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("detrkit: error: ") and message in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_one_process_alone(capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}.items():
        monkeypatch.setenv(name, value)
    assert bench() == 2
    assert "start it without torchrun and srun" in capsys.readouterr().err


def test_no_such_device(capsys):
    assert main(["bench", "--device", "cuda:77"]) == 2
    assert "device cuda:77: not available on this machine" in capsys.readouterr().err


def test_durations():
    assert _duration(59 * 60) == "59 min" and _duration(3600 + 180) == "1 h 3 min" and _duration(86_400) == "24 h 0 min"


def test_bfloat16_is_measured_where_there_is_any(weights, tmp_path, capsys, monkeypatch):
    """Said once, and the file has the precision that was computed in; autocast around a detector measured float32."""
    file = tmp_path / "bench.json"
    monkeypatch.setattr(dense, "has_bf16_kernels", lambda: False)
    assert bench(weights, "--repeats", 1, "--precision", "bf16", "--json", file) == 0
    printed = capsys.readouterr()
    assert printed.err.count("this CPU has no instructions for bfloat16: computing in float32") == 1
    assert json.loads(file.read_text())["precision"] == "fp32" and ", fp32" in printed.out
    monkeypatch.undo()
    if dense.has_bf16_kernels():
        seen = []
        stream = Detector.stream

        def noted(self, *args, **options):
            seen.append(self.dtype)
            return stream(self, *args, **options)

        monkeypatch.setattr(Detector, "stream", noted)
        assert bench(weights, "--repeats", 1, "--precision", "bf16", "--json", file) == 0
        assert json.loads(file.read_text())["precision"] == "bf16" and set(seen) == {torch.bfloat16}
