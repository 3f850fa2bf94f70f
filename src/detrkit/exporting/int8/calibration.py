"""Inputs of a graph made of a dataset's images, for the ranges of its activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detrkit.data import Dataset, open_dataset
from detrkit.data.image_processor import ImageProcessor
from detrkit.data.readers.common import UnknownSplit
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.model import ExportedModel
from detrkit.runtimes.sessions import Arrays
from detrkit.utils.errors import DetrkitError


def calibration_dataset(data: str | Path | Dataset | Any, split: str | None) -> Dataset:
    """Open the images to calibrate on: the split "train" of a dataset, which AP is not measured on, or the only one.

    Args:
        data: a dataset, as `open_dataset` takes it.
        split: taken where there is no split "train".
    """
    if isinstance(data, Dataset):
        return data
    try:
        return open_dataset(data, split="train", masks=False)
    except UnknownSplit:
        return open_dataset(data, split=split, masks=False)


def calibration_inputs(model: ExportedModel, spec: ModelSpec, dataset: Dataset, count: int) -> list[Arrays]:
    """Return the inputs of a graph for images that are spread evenly over a dataset, one image each.

    Args:
        model: the file in float32.
        spec: of the model, with the resize rule of the file.
        dataset: with images.
        count: of images at most.

    Raises:
        DetrkitError: no image, or one that is missing or damaged.
    """
    total = len(dataset)
    if not total:
        raise DetrkitError(f"{dataset.path}: holds no image to calibrate INT8 on: name a dataset with images")
    processor = ImageProcessor.of(spec)
    inputs: list[Arrays] = []
    for i in range(min(count, total)):
        batch = processor([dataset.image(i * total // min(count, total))])
        inputs += [arrays for _, arrays in model.inputs(batch)]
    return inputs
