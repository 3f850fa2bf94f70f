"""A sheet of a panoptic model's results: image | ground truth | masks | panoptic."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image
from torch import nn

from detrkit.data import Dataset, eval_transform, make_loader
from detrkit.engine.evaluation_loop import iter_outputs
from detrkit.engine.examples import annotated, display_threshold, evenly_spaced
from detrkit.models.postprocess import PostProcessor
from detrkit.utils.devices import device_of
from detrkit.visualize import SheetRow, models_sheet
from detrkit.weights.checkpoint import ModelSpec

_COLORS = ((42, 120, 214), (235, 104, 52))  # of the two columns of predictions


def segments_sheet(model: nn.Module, spec: ModelSpec, dataset: Dataset, count: int) -> Image.Image:
    """Draw images of a panoptic dataset with annotated segments, predicted masks and predicted segments.

    Args:
        model: with masks, in eval mode.
        spec: of the model.
        dataset: opened with masks.
        count: number of images, evenly spaced over the dataset.
    """
    device = device_of(model)
    subset = dataset.subset(evenly_spaced(len(dataset), count))
    loader = make_loader(
        subset,
        transform=eval_transform(spec.size, spec.max_size, square=spec.square),
        batch_size=1,
        training=False,
        workers=0,
        mean=spec.mean,
        std=spec.std,
        device=device,
    )
    rows, masks, segments = [], [], []
    postprocessor = replace(PostProcessor.of(spec), threshold=display_threshold(spec))
    for index, (outputs, batch, _) in enumerate(iter_outputs(model, loader)):
        sample = subset[index]
        sizes = [sample.orig_size], batch.sizes
        masks += [one.to("cpu") for one in postprocessor.detections(outputs, *sizes)]
        segments += [one.to("cpu") for one in postprocessor.panoptic(outputs, *sizes)]
        picture = Image.fromarray(sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        name = sample.file.name if sample.file is not None else str(sample.image_id)
        rows.append(SheetRow(picture, annotated(sample, subset), caption=name))
    return models_sheet(rows, {"masks": masks, "panoptic": segments}, _COLORS)
