"""Small detectors of every kind, and explanations by them: random weights, milliseconds."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image

from detrkit.detector import Detector
from detrkit.explanation import Explanation, explain
from detrkit.structures.classes import ClassList
from detrkit.weights.checkpoint import ModelSpec
from helpers.tiny import SMALLEST

DEFORMABLE = {**SMALLEST, "num_feature_levels": 2, "dec_layers": 2, "enc_layers": 2, "num_queries": 5}
KINDS = {
    "plain": ("detr-r50", {**SMALLEST, "dec_layers": 2, "enc_layers": 2, "num_queries": 5}),
    "deformable": ("deformable-detr-r50", DEFORMABLE),
    "two-stage": ("deformable-detr-r50-two-stage", DEFORMABLE),
}
CLASSES = ClassList(("cat", "d[/]g"), (1, 2))


@cache
def tiny_detector(kind: str) -> Detector:
    """A detector whose short side is 64 pixels."""
    torch.manual_seed(3)
    name, options = KINDS[kind]
    spec = ModelSpec(name, options, num_classes=2, classes=CLASSES, size=64, max_size=128)
    return Detector(spec.build(), spec, device="cpu")


def noise(width: int = 96, height: int = 64, *, seed: int = 0) -> Image.Image:
    """An image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@cache
def tiny_explanation(kind: str, width: int = 96, height: int = 64, threshold: float = 0.0) -> Explanation:
    """All queries of a small detector, explained for an image of noise."""
    return explain(tiny_detector(kind), noise(width, height), threshold=threshold)
