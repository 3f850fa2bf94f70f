"""A model and a dataset small enough to train in a second."""

from __future__ import annotations

import csv
from pathlib import Path

from detrkit.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig

MODEL = ModelConfig(
    name="detr-r50",
    backbone="resnet10",
    backbone_width=8,
    backbone_stage=4,
    backbone_weights="random",
    hidden_dim=32,
    nheads=2,
    dim_feedforward=32,
    enc_layers=1,
    dec_layers=2,
    num_queries=8,
    dropout=0.0,
)
# options of a DETR that predicts within milliseconds
SMALLEST = {
    "backbone": "resnet10",
    "backbone_width": 8,
    "backbone_norm": "group",
    "hidden_dim": 32,
    "nheads": 4,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 4,
}


def tiny_config(path: Path, out: Path, /, *, model: ModelConfig = MODEL, **sections: dict) -> TrainConfig:
    """Two epochs over tiny images; `sections` change fields."""
    config = TrainConfig(
        data=DataConfig(path=str(path), size=64, batch_size=2, workers=0),
        model=model,
        optim=OptimConfig(epochs=2, lr=1e-3, lr_backbone=1e-3),
        run=RunConfig(out=str(out), device="cpu", log_every=1, tensorboard=False, pictures=False, seed=3),
    )
    return config.changed(**sections)


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, total loss) of every line of steps.csv."""
    with (folder / "steps.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
