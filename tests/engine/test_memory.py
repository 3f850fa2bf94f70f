"""Peak memory: that of the work since the last reset, kept over an interruption."""

from __future__ import annotations

import csv
import os
import signal
import sys

import pytest
import torch

from detrkit.engine import train, trainer
from detrkit.engine.memory import free_unused, peak_mib, reset_peak
from detrkit.engine.trainer import Trainer
from detrkit.utils.errors import Interrupted
from helpers.tiny import tiny_config

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be reset elsewhere")
def test_peak_rises_with_what_is_used_and_is_reset():
    free_unused()
    reset_peak(CPU)
    before = peak_mib(CPU)
    block = torch.ones(200, 2**20, dtype=torch.uint8)
    high = peak_mib(CPU)
    assert 190 < high - before < 260
    del block
    assert peak_mib(CPU) == pytest.approx(high, abs=5)
    free_unused()
    reset_peak(CPU)
    assert peak_mib(CPU) < before + 60


@pytest.mark.slow
def test_peak_of_an_epoch_outlives_an_interruption(shapes, tmp_path, monkeypatch):
    """The steps before the interruption took most."""
    config = tiny_config(shapes, tmp_path / "run")
    logged = Trainer._log_step

    def stop_at_third(self, values):
        logged(self, values)
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log_step", stop_at_third)
        patch.setattr(trainer, "peak_mib", lambda device: 500.0)
        with pytest.raises(Interrupted):
            train(config)
    monkeypatch.setattr(trainer, "peak_mib", lambda device: 100.0)
    train(config, resume=True)
    with (tmp_path / "run" / "epochs.csv").open(newline="") as file:
        assert [float(row["peak_memory_mib"]) for row in csv.DictReader(file)] == [500.0, 100.0]


@pytest.mark.gpu
def test_peak_on_a_gpu_is_what_torch_allocated():
    device = torch.device("cuda")
    block = torch.ones(64, 2**20, dtype=torch.uint8, device=device)
    reset_peak(device)
    before = peak_mib(device)
    more = torch.ones(100, 2**20, dtype=torch.uint8, device=device)
    del more
    assert peak_mib(device) - before == pytest.approx(100, abs=1)
    reset_peak(device)
    assert peak_mib(device) == before
    del block
