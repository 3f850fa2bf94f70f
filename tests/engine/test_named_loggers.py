"""Weights & Biases and MLflow, offline: what they get of a run, and what is said where a package is missing."""

from __future__ import annotations

import importlib.util

import pytest
from PIL import Image

import detrkit
from detrkit.config import TrainConfig
from detrkit.engine import named_loggers
from detrkit.engine.relations import check_config
from detrkit.utils.errors import SettingError
from helpers.tiny import tiny_config


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_one_line_with_the_command(name, package, shapes, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == package else find(module))
    with pytest.raises(SettingError) as caught:
        check_config(tiny_config(shapes, tmp_path / "run", run={"loggers": (name,)}))
    expected = f"run.loggers: {name} needs {package}, which is not installed: pip install 'detrkit[{name}]'"
    assert str(caught.value) == expected


def test_an_id_is_used_again_only_by_a_run_that_resumes(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run-id.txt").write_text("abc\n")
    assert named_loggers._saved_id(tmp_path, "wandb") is None
    (tmp_path / "last.pt").write_bytes(b"")
    assert named_loggers._saved_id(tmp_path, "wandb") == "abc"
    assert named_loggers._saved_id(tmp_path, "mlflow") is None


@pytest.mark.slow
def test_mlflow_keeps_metrics_settings_and_pictures_and_goes_on_when_a_run_resumes(tmp_path, monkeypatch):
    pytest.importorskip("pytorch_lightning")
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    for epochs, status in ((1, "interrupted"), (2, "success")):
        logger = named_loggers.mlflow_logger(TrainConfig(), folder)
        logger.log_hyperparams({"optim.lr": 0.001, "optim.epochs": epochs})
        logger.log_metrics({"val/AP": epochs / 10}, 6 * epochs)
        logger.log_image("examples", [Image.new("RGB", (4, 4), "red")], 6 * epochs)
        logger.finalize(status)
        client = tracking.MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("detrkit")
        (run,) = client.search_runs([experiment.experiment_id])  # the same one, when it is resumed
        assert run.info.status == {"interrupted": "KILLED", "success": "FINISHED"}[status]
        (folder / "last.pt").write_bytes(b"")
    assert run.info.run_name == "run" and run.data.params == {"optim.lr": "0.001", "optim.epochs": "1"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val/AP")] == [(6, 0.1), (12, 0.2)]
    pictures = sorted(path.relative_to(path.parents[1]).as_posix() for path in folder.rglob("*.png"))
    assert pictures == ["examples/step-00000006.png", "examples/step-00000012.png"]


@pytest.mark.slow
def test_wandb_gets_metrics_settings_and_pictures(shapes, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_lightning")
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, finished = [], []

    class Looks(detrkit.Callback):
        def on_run_start(self, run):
            self.settings = dict(wandb.run.config)
            log, finish = wandb.run.log, wandb.run.finish
            monkeypatch.setattr(wandb.run, "log", lambda data, *a, **k: (logged.append(data), log(data, *a, **k)))
            monkeypatch.setattr(wandb.run, "finish", lambda *a, **k: (finished.append(k), finish(*a, **k)))

    looks = Looks()
    config = tiny_config(shapes, tmp_path / "run", run={"loggers": ("wandb",), "pictures": True}, optim={"epochs": 1})
    detrkit.train(config, callbacks=[looks])
    assert looks.settings["optim.lr"] == 1e-3
    assert [row["trainer/global_step"] for row in logged if "step/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["trainer/global_step"] for row in logged if "val/AP" in row] == [6]
    assert {"first_batch", "training", "examples"} <= {key for row in logged for key in row}
    assert finished == [{"exit_code": 0}] and wandb.run is None
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))) == 1
