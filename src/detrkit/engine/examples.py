"""Sheets of examples: image | ground truth | prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from detrkit.data import Dataset
from detrkit.data.sample import Sample
from detrkit.detector import Detector
from detrkit.models.base import DetectionModel
from detrkit.models.registry import architecture
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult, Prediction, Segment
from detrkit.tiling.tiles import Tiling
from detrkit.utils.devices import device_of
from detrkit.visualize import SheetRow, as_detections, comparison_sheet
from detrkit.weights.checkpoint import ModelSpec

_BELOW = 5  # detections that are drawn of an image in which none is above the threshold


def display_threshold(spec: ModelSpec) -> float:
    """Return the score above which detections of a model are drawn and counted in reports.

    It is the one that the checkpoint suggests for all classes together, else as the model was registered.
    """
    suggested = spec.score_thresholds
    return architecture(spec.name).thresholds.show if suggested is None else suggested.general


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return at most `count` positions, evenly spaced over a sequence of that length."""
    count = min(count, length)
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]


def example_sheet(
    model: DetectionModel,
    spec: ModelSpec,
    dataset: Dataset,
    *,
    count: int = 8,
    indices: Sequence[int] | None = None,
    threshold: float | None = None,
    tiling: Tiling | None = None,
) -> Image.Image:
    """Draw a model's predictions on some images of a dataset beside the ground truth.

    Args:
        model: stays on its device and in its mode.
        spec: of the model.
        dataset: images with objects.
        count: number of images, evenly spaced over the dataset.
        indices: these images instead.
        threshold: score above which something is drawn; by default `display_threshold(spec)`, and for segments
            `Detector.threshold`.
        tiling: how images are cut; None: not at all.
    """
    if indices is None:
        indices = evenly_spaced(len(dataset), count)
    training = model.training
    detector = Detector(model, spec, device=device_of(model))
    detector.tiling = tiling
    if threshold is None:
        threshold = detector.threshold if detector.panoptic else display_threshold(spec)
    rows = []
    for index in indices:
        sample = dataset[index]
        image = Image.fromarray(sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        prediction = detector.predict(image, threshold=threshold)
        below = None
        if isinstance(prediction, Detections) and not len(prediction):  # never an empty image without a reason
            below = _best(detector.predict(image, threshold=0.0))
        name = sample.file.name if sample.file is not None else str(sample.image_id)
        rows.append(SheetRow(image, annotated(sample, dataset), prediction, name, below))
    model.train(training)
    return comparison_sheet(rows, threshold=threshold)


def _best(everything: Prediction) -> Detections | None:
    """Return the detections with the best scores of an image, without masks; None of segments."""
    if not isinstance(everything, Detections):
        return None
    return replace(everything, masks=None).select(torch.arange(min(_BELOW, len(everything))))


def annotated(sample: Sample, dataset: Dataset) -> Prediction:
    """Return the ground truth of an image as it is drawn: segments, or objects, with masks if there are any."""
    masks = None if sample.masks is None else sample.masks.as_subclass(torch.Tensor)
    if masks is None or not dataset.panoptic:
        return replace(as_detections(sample.boxes, sample.labels, dataset.classes), masks=masks)
    id_map = torch.zeros(sample.orig_size, dtype=torch.int32)
    segments = []
    for number, (mask, label) in enumerate(zip(masks, sample.labels.tolist(), strict=True), 1):
        id_map[mask] = number
        segments.append(Segment(number, label, 1.0, int(mask.sum()), dataset.classes.is_thing(label)))
    return PanopticResult(id_map, segments, classes=dataset.classes)
