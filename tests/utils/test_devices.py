"""Devices: names as torch has them, the automatic choice, and what is missing. No test needs a GPU or a Mac."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from detrkit.cli import _parse, main
from detrkit.config import RunConfig, TrainConfig, load_config
from detrkit.engine.environment import training_device
from detrkit.engine.relations import check_config
from detrkit.engine.setup import make_fabric
from detrkit.utils.devices import as_device, copies_overlap, default_device, device_reason
from detrkit.utils.errors import SettingError

COMMANDS = ("eval a b", "predict a b", "bench", "compare a b", "reproduce", "study shapes-four", "train d")


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have devices: `machine(cuda=2)`, `machine(mps=True)`, `machine(xpu=True)`."""

    def pretend(*, cuda=0, mps=False, xpu=False, built=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: mps and built)
        other = torch.device("xpu") if xpu else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: other)
        real = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, device=None, **more: real(*size, **more))

    return pretend


@pytest.mark.parametrize(
    ("have", "chosen"),
    [({"cuda": 2, "mps": True}, "cuda"), ({"mps": True}, "mps"), ({"xpu": True}, "xpu"), ({}, "cpu")],
)
def test_auto_takes_cuda_then_mps_then_what_torch_offers_then_the_cpu(machine, have, chosen):
    machine(**have)
    assert default_device() == as_device("auto") == as_device(None) == torch.device(chosen)


@pytest.mark.parametrize(
    ("have", "name", "device"),
    [
        ({"cuda": 2}, "0", "cuda:0"),
        ({"cuda": 2}, "1", "cuda:1"),
        ({"cuda": 2}, "cuda", "cuda"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
        ({"mps": True}, "0", "mps:0"),
        ({"mps": True}, "mps", "mps"),
        ({"xpu": True}, "0", "xpu:0"),
        ({}, "cpu", "cpu"),
    ],
)
def test_names_are_torchs(machine, have, name, device):
    machine(**have)
    assert as_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("have", "name", "reason"),
    [
        ({"built": False}, "cuda", "this build of torch has no CUDA"),
        ({}, "cuda", "torch sees no CUDA device (`nvidia-smi` shows whether the driver does)"),
        ({}, "0", "device 0, which is cuda:0: not available on this machine: torch sees no CUDA device"),
        ({"cuda": 2}, "cuda:2", "torch sees 2 of this kind, cuda:0 to cuda:1"),
        (
            {"cuda": 1},
            "3",
            "device 3, which is cuda:3: not available on this machine: torch sees 1 of this kind, cuda:0",
        ),
        ({}, "mps", "this build of torch has no MPS, which is for Macs with Apple silicon"),
        ({}, "meta", "it holds no values"),
        ({}, "abacus", "torch has none of that name here"),
    ],
)
def test_what_is_missing_is_said(machine, have, name, reason):
    machine(**have)
    with pytest.raises(SettingError) as error:
        as_device(name)
    said = str(error.value)
    assert reason in said and said.endswith("; use cpu, or leave it out") and said.startswith(f"device {name}")


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1", "mps", "xpu", "0", "7"])
def test_every_command_takes_every_name(name):
    assert device_reason(name) is None
    for words in COMMANDS:
        command = _parse([*words.split(), "--device", name])
        assert (command.config.run.device if words == "train d" else command.device) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpu", "not a device of torch: did you mean cuda, or mps on a Mac?"),
        ("GPU:0", "not a device of torch: did you mean cuda, or mps on a Mac?"),
        ("metal", "not a device of torch: did you mean mps?"),
        ("cuda 1", "not available: choose auto, cpu, cuda, cuda:1, mps, xpu, or the number of a GPU"),
        ("0,1", "not available: choose auto, cpu"),
    ],
)
def test_a_wrong_name_is_one_line_before_anything_is_imported(capsys, name, reason):
    assert main(["train", "d", "--device", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"detrkit: error: --device {name}: {reason}") and len(err.splitlines()) == 1


def test_settings_take_the_names_and_old_ones(tmp_path):
    for name in ("auto", "cpu", "cuda", "mps", "cuda:1", "'0'"):
        (tmp_path / "a.yaml").write_text(f"run:\n  device: {name}\n")
        config = load_config(tmp_path / "a.yaml")
        check_config(config)
        assert config.run.device == name.strip("'")
    with pytest.raises(SettingError, match=r"run\.device is 'gpu': not a device of torch"):
        check_config(TrainConfig(run=RunConfig(device="gpu")))


@pytest.mark.parametrize(
    ("have", "options", "device"),
    [
        ({"cuda": 2}, {"name": "auto"}, "cuda"),
        ({"cuda": 2}, {"name": "auto", "several": True}, "cuda"),
        ({"cuda": 2}, {"name": "1"}, "cuda:1"),
        ({"mps": True}, {"name": "auto"}, "mps"),
        ({"mps": True}, {"name": "auto", "several": True}, "cpu"),
        ({"mps": True}, {"name": "auto", "precision": "bf16"}, "cpu"),
        ({"xpu": True}, {"name": "auto"}, "cpu"),
        ({}, {"name": "auto"}, "cpu"),
        ({"cuda": 2}, {"name": "cpu"}, "cpu"),
    ],
)
def test_training_takes_what_fabric_has(machine, have, options, device):
    machine(**have)
    assert training_device(**options) == torch.device(device)


@pytest.mark.parametrize(
    ("have", "options", "reason"),
    [
        ({"xpu": True}, {"name": "xpu"}, "device xpu: detrkit trains on cpu, cuda, mps"),
        ({"mps": True}, {"name": "mps", "precision": "bf16"}, "on MPS detrkit computes in fp32"),
        ({"mps": True}, {"name": "mps", "several": True}, "MPS is one device for one process"),
        ({"cuda": 2}, {"name": "cuda:1", "several": True}, "write cuda without a number"),
        ({}, {"name": "cuda"}, "torch sees no CUDA device"),
    ],
)
def test_training_says_what_it_does_not_take(machine, have, options, reason):
    machine(**have)
    with pytest.raises(SettingError, match=reason):
        training_device(**options)


@pytest.mark.parametrize(
    ("name", "accelerator", "devices"),
    [("mps", "mps", 1), ("0", "mps", [0]), ("auto", "mps", 1), ("cpu", "cpu", 1)],
)
def test_fabric_is_made_for_the_device(machine, monkeypatch, name, accelerator, devices):
    machine(mps=True)
    made = {}
    monkeypatch.setattr("detrkit.engine.setup.Fabric", lambda **options: made.update(options))
    monkeypatch.setattr("detrkit.engine.setup.launch", lambda fabric, timeout: None)
    make_fabric(TrainConfig(run=RunConfig(device=name)))
    assert made["accelerator"] == accelerator and made["devices"] == devices and made["precision"] == "32-true"


def test_only_copies_to_cuda_overlap():
    assert copies_overlap("cuda:1") and not copies_overlap("mps") and not copies_overlap(torch.device("cpu"))


@pytest.mark.slow
def test_the_command_lets_torch_fall_back_to_the_cpu_for_what_mps_lacks():
    code = (
        "import os; from detrkit.cli import main; main(['--version']); print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["detrkit", *done.stdout.split()[1:2], "1"]
