"""A study small enough to run in seconds: two models, two epochs, thirteen images that it makes for itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

TINY: dict[str, Any] = {
    "title": "Tiny",
    "source": "made up for a test.",
    "generate": {"images": {"train": 13, "val": 5}, "seed": 1, "options": {"sides": [48, 64], "classes": 3}},
    "train": {
        "data": {"size": 64, "batch_size": 2, "workers": 0},
        "model": {
            "backbone": "resnet10",
            "backbone_width": 8,
            "backbone_weights": "random",
            "hidden_dim": 32,
            "nheads": 2,
            "dim_feedforward": 32,
            "enc_layers": 1,
            "dec_layers": 2,
            "num_queries": 8,
            "dropout": 0.1,
        },
        "optim": {"epochs": 2, "lr": 1e-3, "lr_backbone": 1e-3, "ema": 0.9},
        "run": {"device": "cpu", "log_every": 1, "tensorboard": False, "seed": 3},
    },
    "members": [
        {
            "name": "detr",
            "title": "DETR",
            "model": {"name": "detr-r50", "backbone_stage": 4},
            "optim": {"lr": 5e-4},
            "published": {"mAP": 0.232, "small": 0.101, "classes": {"circle": 0.587}},
        },
        {
            "name": "two-stage",
            "title": "++ two-stage",
            "model": {
                "name": "deformable-detr-r50-two-stage",
                "backbone_stages": [3, 4],
                "num_feature_levels": 2,
            },
        },
    ],
}


def tiny_study(folder: Path, **changes: Any) -> Path:
    """Writes the study's YAML; `changes` replace whole sections, or fields of those under `train`."""
    plain = copy.deepcopy(TINY)
    for name, value in changes.items():
        if name in plain["train"]:
            plain["train"][name].update(value)
        else:
            plain[name] = value
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(plain))
    return file
