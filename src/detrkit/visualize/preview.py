"""`preview`: a contact sheet of training images as a model gets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrkit.data.dataset import Dataset
from detrkit.data.image_mix import NO_MIX, ImageMix
from detrkit.data.sample import Sample
from detrkit.data.samplers import SampleKey, TrainSampler, step_scale
from detrkit.data.transformed import TransformedDataset
from detrkit.data.transforms import Transform
from detrkit.structures.classes import ClassList
from detrkit.structures.panoptic import PanopticResult, Segment
from detrkit.utils.atomic import write_atomic
from detrkit.utils.errors import DetrkitError
from detrkit.utils.image_files import image_bytes
from detrkit.utils.names import full_path
from detrkit.utils.overwriting import check_marked
from detrkit.utils.ranges import Few, Share, WideSeed, check_arguments


def preview(
    dataset: Dataset,
    transform: Transform,
    *,
    count: Few = 6,
    out: str | Path,
    seed: WideSeed = 0,
    variants: Few = 3,
    color: Share = 0.0,
    mix: ImageMix = NO_MIX,
    rates: np.ndarray | None = None,
) -> Path:
    """Write a sheet with a row per image: the original, then augmented versions of it, all with their boxes.

    Masks are drawn, too, if the dataset was opened with them; for panoptic datasets, masks are drawn instead of boxes.

    Args:
        dataset: source of the images, which are spread evenly over it, unless there are rates.
        transform: as in training.
        count: number of images (rows).
        out: the file to write, .png or .jpg.
        seed: of the augmentation; the versions are those of epochs 0, 1, ... of a training run with that seed.
        variants: augmented versions per image.
        color: strength of color changes, as in training.
        mix: how often images are mixed or changed as strongly, as in training, where no version is of a plain epoch;
            the size is that of the epoch's first step.
        rates: (N,) how often each image is expected per epoch: the images are the first ones of a training with that
            seed, each once, and the rate stands beside them.

    Returns:
        The file.

    Raises:
        DetrkitError: a number out of range, an image that cannot be decoded, or `out` cannot be written or is a
            file that no preview wrote; images that cannot be mixed.
    """
    from detrkit.visualize import grid  # imported here: it needs matplotlib's fonts

    out = full_path(out)
    check_arguments(preview, {"count": count, "seed": seed, "variants": variants, "color": color})
    mix.check(dataset)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DetrkitError(f"{out}: name a .png or .jpg file")
    check_marked(out)
    prepared = TransformedDataset(dataset, transform, seed, color=color, mix=mix)
    images: list[Image.Image] = []
    titles: list[str] = []
    for index in _chosen(len(dataset), count, seed, rates):
        sample = dataset[index]
        images.append(_draw_sample(sample, dataset))
        often = "" if rates is None else f"  {rates[index]:.2g} times an epoch"
        titles.append(f"{dataset.records[index].file.name}  {_size(sample)}{often}")
        for epoch in range(variants):
            scale = step_scale(seed, epoch, 0) if mix.multi_scale else 1.0
            key = SampleKey(epoch, index, mixed=bool(mix), scale=scale)
            changed = prepared.sample(key)
            images.append(_draw_sample(changed, dataset))
            titles.append("  ".join(filter(None, (f"epoch {epoch}", _size(changed), prepared.plan(key).words))))
    headings = ["original", *(["augmented"] * variants)]
    sheet = grid(images, columns=variants + 1, titles=titles, headings=headings)
    return write_atomic(out, image_bytes(sheet, out.suffix, marked=True))


def _chosen(length: int, count: int, seed: int, rates: np.ndarray | None) -> list[int]:
    """Return the images to show: spread evenly or, with rates, the first ones of a training."""
    if rates is None:
        count = min(count, length)
        return [row * length // count for row in range(count)]
    drawn = (key.image for batch in TrainSampler(length, batch_size=1, seed=seed, rates=rates) for key in batch)
    return list(dict.fromkeys(drawn))[:count]


def _size(sample: Sample) -> str:
    height, width = sample.image.shape[-2:]
    return f"{width}x{height}"


def _draw_sample(sample: Sample, dataset: Dataset) -> Image.Image:
    """Draw a sample with its objects, in the colors of their classes."""
    from detrkit.visualize.sheet import TILE, as_detections, draw_in_tile

    image = Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())
    if dataset.panoptic and sample.masks is not None:
        return draw_in_tile(image, segments_of(sample, dataset.classes), *TILE, scores=False)
    detections = as_detections(sample.boxes, sample.labels, dataset.classes)
    return draw_in_tile(image, replace(detections, masks=sample.masks), *TILE, scores=False)


def segments_of(sample: Sample, classes: ClassList) -> PanopticResult:
    """Convert the masks of a panoptic sample to a map of segments 1, 2, ... in their order; crowd is void."""
    if sample.masks is None:
        raise ValueError(f"{sample.file}: opened without masks")
    segments: list[Segment] = []
    ids = torch.zeros(sample.masks.shape[1:], dtype=torch.int32)
    for number, (mask, label) in enumerate(
        zip(sample.masks.as_subclass(Tensor), sample.labels.tolist(), strict=True), 1
    ):
        ids[mask] = number
        segments.append(Segment(number, label, 1.0, int(mask.sum()), classes.is_thing(label)))
    return PanopticResult(ids, segments, classes=classes, image_id=sample.image_id)
