"""Sheets of examples: image | ground truth | prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn

from detrkit.checkpoint import ModelSpec
from detrkit.data import Dataset
from detrkit.detector import Detector
from detrkit.registry import architecture
from detrkit.visualize import SheetRow, as_detections, comparison_sheet


def shown_above(spec: ModelSpec) -> float:
    """The score from which detections are shown and counted: 0.5, or 0.3 after focal loss, which gives lower scores."""
    return 0.5 if architecture(spec.name).scores == "softmax" else 0.3


def spread(length: int, count: int) -> list[int]:
    """At most `count` positions, evenly over a sequence of that length."""
    count = min(count, length)
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]


def example_sheet(
    model: nn.Module,
    spec: ModelSpec,
    dataset: Dataset,
    *,
    count: int = 8,
    indices: Sequence[int] | None = None,
    threshold: float | None = None,
) -> Image.Image:
    """What a model finds in some images of a dataset, beside the truth.

    Args:
        model: its device is kept.
        spec: of the model.
        dataset: images with objects.
        count: how many images, spread evenly over the dataset.
        indices: these images instead.
        threshold: score above which a detection is drawn; by default `shown_above(spec)`.
    """
    if indices is None:
        indices = spread(len(dataset), count)
    if threshold is None:
        threshold = shown_above(spec)
    training = model.training
    detector = Detector(model, spec)
    rows = []
    for index in indices:
        sample = dataset[index]
        picture = Image.fromarray(sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        truth = as_detections(sample.boxes, sample.labels, dataset.classes)
        found = detector.predict(picture, threshold=threshold)
        name = sample.file.name if sample.file is not None else str(sample.image_id)
        rows.append(SheetRow(picture, truth, found, name))
    model.train(training)
    return comparison_sheet(rows, threshold=threshold)
