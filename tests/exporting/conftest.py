"""One export that the tests of this folder share: it takes more time than all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.weights.checkpoint import save_model
from helpers.small_models import small_model


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with a checkpoint, its export and three photographs of different shapes."""
    folder = tmp_path_factory.mktemp("exported")
    model, spec = small_model("detr-r50")
    # formula weights prefer no class: with a steeper head there are detections
    with torch.no_grad():
        model.class_head.weight.mul_(40)
        model.class_head.bias[-1] -= 40
    save_model(folder / "detr.safetensors", model, spec)
    detrkit.export(folder / "detr.safetensors", folder / "detr.onnx")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i, (w, h) in enumerate([(200, 150), (120, 260), (90, 90)]):
        cells = rng.integers(0, 255, (h // 10, w // 10, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((w, h)).save(folder / "photos" / f"{i}.png")
    return folder
