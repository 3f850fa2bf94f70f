"""A sheet of a panoptic model's results: image | ground truth | masks | panoptic."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from detrkit.data import Dataset, eval_transform, make_loader
from detrkit.detector import segments_above
from detrkit.engine.examples import annotated, shown_above, spread
from detrkit.models.panoptic_postprocess import panoptic
from detrkit.models.postprocess import postprocess
from detrkit.models.registry import architecture
from detrkit.visualize import SheetRow, models_sheet
from detrkit.weights.checkpoint import ModelSpec

_COLORS = ((42, 120, 214), (235, 104, 52))  # of the two columns of predictions


@torch.no_grad()
def segments_sheet(model: nn.Module, spec: ModelSpec, dataset: Dataset, count: int) -> Image.Image:
    """Draw images of a panoptic dataset with annotated segments, predicted masks and predicted segments.

    Args:
        model: with masks, in eval mode.
        spec: of the model.
        dataset: opened with masks.
        count: number of images, spread evenly over the dataset.
    """
    device = next(model.parameters()).device
    subset = dataset.subset(spread(len(dataset), count))
    loader = make_loader(
        subset,
        transform=eval_transform(spec.size, spec.max_size),
        batch_size=1,
        training=False,
        workers=0,
        mean=spec.mean,
        std=spec.std,
        device=device,
    )
    rows, masks, segments = [], [], []
    scores = architecture(spec.name).activation
    for index, (batch, _) in enumerate(loader):
        sample = subset[index]
        outputs = model(batch.to(device), defer_masks=True)
        size = [sample.orig_size]
        options = {"scores": scores, "classes": spec.classes, "image_sizes": batch.sizes}
        masks += [d.to("cpu") for d in postprocess(outputs, size, threshold=shown_above(spec), **options)]
        segments += [r.to("cpu") for r in panoptic(outputs, sizes=size, threshold=segments_above(spec), **options)]
        picture = Image.fromarray(sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        name = sample.file.name if sample.file is not None else str(sample.image_id)
        rows.append(SheetRow(picture, annotated(sample, subset), caption=name))
    return models_sheet(rows, {"masks": masks, "panoptic": segments}, _COLORS)
