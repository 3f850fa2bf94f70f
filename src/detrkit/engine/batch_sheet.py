"""A sheet of a training batch, as the model gets it: augmented, with its boxes and masks, padding visible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures.batch import Batch
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Target
from detrkit.visualize import as_detections, draw_detections, grid

MOST_IMAGES = 16
_TILE_PIXELS = 480  # longer side of a tile; a sheet of 16 is then about 2,000 pixels wide
_HATCH_PERIOD = 12  # pixels of the sheet between two lines
_HATCH_COLORS = (226, 226, 230), (198, 198, 205)


def batch_sheet(
    batches: Sequence[tuple[Batch, Sequence[Target]]],
    *,
    classes: ClassList,
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """Draw the batches of a training step: each image in its padded tensor, whose padding is hatched.

    Args:
        batches: images (B, 3, H, W), normalized and padded, with a target for each: boxes cxcywh in [0, 1] relative to
            the image without padding. The first 16 images are drawn.
        classes: names of the labels.
        mean: of the normalization, RGB in [0, 1].
        std: of the normalization, RGB.

    Raises:
        ValueError: no image.
    """
    images, titles = [], []
    shapes = [(int(batch.images.shape[-2]), int(batch.images.shape[-1])) for batch, _ in batches for _ in batch.sizes]
    pairs = [(batch, i, target) for batch, targets in batches for i, target in enumerate(targets)][:MOST_IMAGES]
    width = _TILE_PIXELS
    ratios = sorted(h / w for h, w in shapes[: len(pairs)])
    height = round(width * min(max(ratios[len(ratios) // 2], 0.5), 1.25)) if ratios else width
    for (batch, i, target), (tall, wide) in zip(pairs, shapes, strict=False):
        scale = min(width / wide, height / tall)
        images.append(_drawn(batch, i, target, classes, mean, std, scale))
        h, w = batch.sizes[i]
        padded = f", padded to {wide}x{tall}" if (h, w) != (tall, wide) else ""
        count = f"{len(target)} object{'' if len(target) == 1 else 's'}"
        titles.append(f"{w}x{h}{padded}, {count}")
    columns = min(4, max(1, round(len(images) ** 0.5 + 0.49)))
    return grid(images, columns, titles, tile=(width, height))


def _drawn(
    batch: Batch,
    index: int,
    target: Target,
    classes: ClassList,
    mean: Sequence[float],
    std: Sequence[float],
    scale: float,
) -> Image.Image:
    """Draw one image of a batch with its objects at `scale`, in its padded tensor."""
    h, w = batch.sizes[index]
    pixels = batch.images[index, :, :h, :w].detach().float().cpu()  # (3, h, w)
    factor, offset = (torch.tensor(list(values)).view(3, 1, 1) for values in (std, mean))
    rgb = ((pixels * factor + offset) * 255).round().clamp(0, 255).to(torch.uint8)
    image = Image.fromarray(rgb.permute(1, 2, 0).contiguous().numpy())
    boxes = cxcywh_to_xyxy(target.boxes.float().cpu()) * torch.tensor([w, h, w, h])  # (N, 4) xyxy pixels
    objects = as_detections(boxes, target.labels.cpu(), classes)
    if target.masks is not None and len(target):
        masks = torch.zeros(len(target), h, w, dtype=torch.bool)
        given = target.masks[:, :h, :w].bool().cpu()
        masks[:, : given.shape[1], : given.shape[2]] = given
        objects.masks = masks
    letters, line = max(12, _TILE_PIXELS // 34), max(2, _TILE_PIXELS // 200)
    drawn = draw_detections(image, objects, scores=False, scale=scale, width=line, font_size=letters)
    tall, wide = batch.images.shape[-2:]
    canvas = _hatched(max(drawn.width, round(wide * scale)), max(drawn.height, round(tall * scale)))
    canvas.paste(drawn, (0, 0))
    return canvas


def _hatched(width: int, height: int) -> Image.Image:
    """Return a hatched image, which no photograph is mistaken for."""
    rows, columns = np.ogrid[:height, :width]
    lines = (rows + columns) % _HATCH_PERIOD < 2
    light, dark = (np.array(color, np.uint8) for color in _HATCH_COLORS)
    return Image.fromarray(np.where(lines[..., None], dark, light))
