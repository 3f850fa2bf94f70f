"""Evaluation in tiles: every image is predicted by a `Detector`, in one process or several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from PIL import Image

from detrkit.data import Dataset
from detrkit.detector import Detector
from detrkit.engine.evaluation_loop import EvaluationAccumulator
from detrkit.engine.processes import StopSignals
from detrkit.structures.detections import Detections


def run_tiled_evaluation(
    detector: Detector,
    dataset: Dataset,
    indices: Iterable[int],
    evaluation: EvaluationAccumulator,
    *,
    batch_size: int,
    stop: StopSignals | None = None,
) -> None:
    """Predict this process's images, then gather the predictions of all processes in every one.

    Args:
        detector: with tiles.
        dataset: without masks.
        indices: images of this process.
        evaluation: takes the detections.
        batch_size: tiles of a forward pass.
        stop: stop signals, checked between images.

    Raises:
        Stopped: a process was asked to stop; raised in all of them.
    """
    for index in indices if stop is None else stop.between(indices):
        pixels = dataset.image(index).as_subclass(torch.Tensor)
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        found = next(detector.stream([image], threshold=0.0, batch_size=batch_size))
        assert isinstance(found, Detections)
        masks = found.masks if evaluation.ground_truth.masks else None
        image_id = dataset.records[index].image_id
        evaluation.objects.add(
            replace(found, masks=masks, image_id=image_id, classes=evaluation.ground_truth.labels, image=None)
        )
    if stop is not None:
        stop.check()
    evaluation.all_gather()
