"""Records a run of an earlier version: PYTHONPATH=EARLIER_CHECKOUT/src python tests/engine/earlier/record.py

Writes beside itself: `run/`, a run stopped by SIGTERM in the middle of its last epoch; `deformable.safetensors`, a
two-stage model with random weights; and `numbers.json`, what that version computed when it predicted, evaluated and
went on. The files here are of commit 4cb82d3, the last one before the rooms of the package were built.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import torch

import detrkit
from detrkit.cli import main as command
from detrkit.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig

HERE = Path(__file__).parent
SHAPES = {"images": {"train": 40, "val": 10}, "sides": (48, 64), "classes": 2, "seed": 1}
SIZE = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 16, "enc_layers": 1, "dec_layers": 2, "dropout": 0.0}
STOP = 90  # of 100 steps


def main() -> None:
    """Write the files; names of modules are those of the earlier version."""
    from detrkit.checkpoint import ModelSpec, save_model
    from detrkit.data.shapes import write_shapes

    from detrkit.engine.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_shapes(Path("set"), **SHAPES)
        stem = {"backbone": "resnet10", "backbone_width": 4, "backbone_stage": 4, "backbone_weights": "random"}
        config = TrainConfig(
            data=DataConfig(path="set", size=64, batch_size=2, workers=0, augment="flip"),
            model=ModelConfig(name="detr-r50", num_queries=6, **SIZE, **stem),
            optim=OptimConfig(epochs=5, lr=3e-3, lr_backbone=3e-3, clip_max_norm=1, ema=0.9),
            run=RunConfig(out="run", device="cpu", log_every=5, tensorboard=False, seed=3),
        )
        logged = Trainer._log_step

        def stop(self: Trainer, *words: object) -> None:
            logged(self, *words)
            if self.progress.step == STOP:
                os.kill(os.getpid(), signal.SIGTERM)

        Trainer._log_step = stop
        try:
            detrkit.train(config)
        except Exception as error:
            print(error)
        Trainer._log_step = logged
        shutil.rmtree(HERE / "run", ignore_errors=True)
        shutil.copytree("run", HERE / "run")

        torch.manual_seed(0)
        options = {"backbone": "resnet10", "backbone_width": 4, "backbone_norm": "group", "backbone_stages": [3, 4]}
        options |= {**SIZE, "hidden_dim": 32, "num_feature_levels": 3, "num_queries": 5}
        model = detrkit.build_model("deformable-detr-r50-two-stage", num_classes=2, **options).eval()
        spec = ModelSpec("deformable-detr-r50-two-stage", options, num_classes=2, size=64, max_size=96)
        save_model(HERE / "deformable.safetensors", model, spec)

        image = sorted(Path("set").rglob("*.jpg"))[0]
        numbers = {"image": image.as_posix()}
        for name in ("run", "deformable.safetensors"):
            detections = detrkit.load(HERE / name, device="cpu").predict(image, threshold=0.0)
            numbers[name] = {
                "scores": detections.scores.tolist(),
                "labels": detections.labels.tolist(),
                "boxes": detections.boxes.tolist(),
            }
        numbers["metrics"] = numerical(detrkit.evaluate("run", "set", device="cpu"))
        assert command(["train", "--resume", "run"]) == 0
        with Path("run/steps.csv").open(newline="") as file:
            numbers["losses"] = {row["step"]: float(row["loss"]) for row in csv.DictReader(file)}
        (HERE / "numbers.json").write_text(json.dumps(numbers) + "\n")


def numerical(metrics: detrkit.evaluation.Metrics) -> dict[str, float]:
    """Return the numbers of all classes together."""
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


if __name__ == "__main__":
    main()
