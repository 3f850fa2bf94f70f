"""Inputs of a comparison: constant pixels, noise, an image file, or an image of a dataset with its objects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from detrkit.data import Dataset, eval_transform, open_dataset
from detrkit.data.image_processor import ImageProcessor
from detrkit.data.transforms import to_target
from detrkit.structures.outputs import Target
from detrkit.utils.errors import DetrkitError
from detrkit.utils.vision import tv_tensors
from detrkit.weights.checkpoint import ModelSpec

SIZE = (800, 1199)  # height and width in pixels, as of the golden detr_resnet50__ones.npz: 427 x 640 resized to 800


@dataclass(frozen=True)
class ModelInput:
    """One image as input of a model.

    Attributes:
        pixels: (1, 3, H, W) float32, normalized.
        target: the objects with the model's labels, or None.
    """

    pixels: Tensor
    target: Target | None = None


def default_size(spec: ModelSpec) -> tuple[int, int]:
    """Return height and width of a made input: `SIZE`, or the squares that the model takes."""
    return (spec.size, spec.size) if spec.square else SIZE


def made_input(kind: str, size: tuple[int, int] = SIZE, *, seed: int = 0) -> ModelInput:
    """Make an input without a file.

    Args:
        kind: "ones", or "noise": normally distributed values from the seed.
        size: (height, width) in pixels.
        seed: of the noise.

    Raises:
        DetrkitError: a size below one pixel, or an unknown kind.
    """
    if min(size) < 1:
        raise DetrkitError(f"--size {size[0]} {size[1]}: height and width must be positive")
    if kind == "ones":
        return ModelInput(torch.ones(1, 3, *size))
    if kind != "noise":
        raise DetrkitError(f"input {kind!r}: choose ones, noise or an image file")
    return ModelInput(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)))


def picture_input(file: str | Path, spec: ModelSpec) -> ModelInput:
    """Read an image file, resized and normalized for the model.

    Raises:
        DetrkitError: the file is missing, damaged or no image.
    """
    return ModelInput(ImageProcessor.of(spec)([Path(file)]).images)


def dataset_input(
    path: str | Path, spec: ModelSpec, *, split: str | None, image_id: int | None, masks: bool
) -> ModelInput:
    """Read an image of a dataset with its objects.

    Objects of classes that the model does not have are left out.

    Args:
        path: as `open_dataset`.
        spec: of the model; its labels are matched with the dataset's by class name.
        split: as `open_dataset`.
        image_id: the dataset's id of the image; by default that of the first image with objects.
        masks: whether to read the objects' masks.

    Raises:
        DetrkitError: no such dataset, split or image, no common class, or an image that cannot be read.
    """
    dataset = open_dataset(path, split=split, masks=masks)
    sample = dataset[_index(dataset, image_id)]
    table = _labels(spec, dataset)
    in_model = torch.tensor([int(label) in table for label in sample.labels], dtype=torch.bool)
    labels = torch.tensor([table[int(label)] for label in sample.labels[in_model]], dtype=torch.int64)
    sample = replace(
        sample,
        boxes=tv_tensors.wrap(sample.boxes[in_model], like=sample.boxes),
        labels=labels,
        masks=None if sample.masks is None else tv_tensors.Mask(sample.masks[in_model]),
    )
    sample = eval_transform(spec.size, spec.max_size, square=spec.square)(sample)
    batch = ImageProcessor.of(spec).batch([sample.image.as_subclass(Tensor)])
    return ModelInput(batch.images, to_target(sample))


def _index(dataset: Dataset, image_id: int | None) -> int:
    """Find the position of an image: that of the id, or by default the first with objects.

    Raises:
        DetrkitError: no image has that id, or none has objects.
    """
    for i, record in enumerate(dataset.records):
        if record.image_id == image_id or (image_id is None and (~record.crowd).any()):
            return i
    if image_id is None:
        raise DetrkitError(f"{dataset.path}: no image of {dataset.split} has an object")
    raise DetrkitError(f"{dataset.path}: no image {image_id} in {dataset.split}")


def _labels(spec: ModelSpec, dataset: Dataset) -> dict[int, int]:
    """Return a dict of label of the dataset -> label of the model.

    Raises:
        DetrkitError: no common class.
    """
    from detrkit.engine.evaluation_targets import dataset_labels

    of_model = dataset_labels(spec, dataset).label_of  # category id -> label
    return {label: of_model[category] for label, category in enumerate(dataset.classes.ids) if category in of_model}
