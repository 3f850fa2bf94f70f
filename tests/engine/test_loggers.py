"""Loggers of other packages."""

from __future__ import annotations

import pytest
from lightning_fabric.loggers import Logger

import detrkit
from detrkit.engine.loggers import LOGGERS, RunLogs
from detrkit.utils.errors import SettingError
from detrkit.utils.signals import Stopped
from helpers.tiny import losses, tiny_config


class Memory(Logger):
    """Keeps what is logged; fails at a chosen step."""

    name = version = None

    def __init__(self, fails: int | None = None) -> None:
        self.fails, self.metrics, self.settings, self.status = fails, [], {}, None

    def log_hyperparams(self, params):
        self.settings = params

    def log_metrics(self, metrics, step=None):
        if step == self.fails:
            raise ConnectionError("no route to host\nat all")
        self.metrics.append((step, metrics))

    def finalize(self, status):
        self.status = status


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(LOGGERS, "_entries", {})

    def add(name: str, logger: Logger, calls: list | None = None) -> None:
        detrkit.register_logger(name)(lambda config, folder: calls.append((config, folder)) or logger)

    return add


@pytest.mark.slow
def test_a_logger_gets_settings_steps_and_epochs(shapes, tmp_path, register):
    memory, calls = Memory(), []
    register("memory", memory, calls)
    config = tiny_config(shapes, tmp_path / "run", run={"loggers": ("memory",)})
    detrkit.train(config)
    assert calls == [(config, tmp_path / "run")]
    assert memory.settings["optim.lr"] == 1e-3 and memory.settings["run.loggers"] == ("memory",)
    steps = [(step, values["step/loss"]) for step, values in memory.metrics if "step/loss" in values]
    assert dict(steps) == pytest.approx(dict(losses(tmp_path / "run")))
    epochs = [(step, values["epoch"]) for step, values in memory.metrics if "val/AP" in values]
    assert epochs == [(6, 1.0), (12, 2.0)]
    assert memory.status == "success"


@pytest.mark.slow
def test_a_logger_that_fails_is_named_and_the_run_goes_on(shapes, tmp_path, register, capsys):
    good, bad = Memory(), Memory(fails=2)
    register("bad", bad, [])
    register("good", good, [])
    detrkit.train(tiny_config(shapes, tmp_path / "run", optim={"epochs": 1}, run={"loggers": ("bad", "good")}))
    assert "warning: logger bad failed (ConnectionError: no route to host); the run goes on without it" in " ".join(
        capsys.readouterr().out.split()
    )
    assert [step for step, _ in bad.metrics] == [1] and bad.status is None
    assert [step for step, _ in good.metrics] == [1, 2, 3, 4, 5, 6, 6] and good.status == "success"


def test_an_unknown_logger_is_refused_before_anything_is_written(shapes, tmp_path, register):
    register("memory", Memory(), [])
    with pytest.raises(SettingError, match="unknown logger 'wandb': choose one of memory"):
        detrkit.train(tiny_config(shapes, tmp_path / "run", run={"loggers": ("wandb",)}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("error", "status"), [(Stopped(2), "interrupted"), (ValueError("x"), "failed")])
def test_how_a_run_ended_is_told(error, status):
    logs = RunLogs()
    logs.loggers["memory"] = memory = Memory()
    logs.on_error(None, error)
    assert memory.status == status
