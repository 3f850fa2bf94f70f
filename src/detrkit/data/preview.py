"""`preview`: what a model will see, as a contact sheet."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from detrkit.data.dataset import Dataset
from detrkit.data.loader import derived_seed
from detrkit.data.sample import Sample
from detrkit.data.transforms import Transform
from detrkit.errors import DetrkitError


def preview(
    dataset: Dataset, transform: Transform, *, count: int = 6, out: str | Path, seed: int = 0, variants: int = 3
) -> Path:
    """Writes a PNG with a row per image: the original, then augmented versions of it, all with their boxes.

    Args:
        dataset: where the images come from, evenly spread over it.
        transform: as in training.
        count: number of images (rows).
        out: the file to write.
        seed: of the augmentation; the versions are those of the epochs 0, 1, ... of a training with that seed.
        variants: augmented versions per image.

    Returns:
        The file.

    Raises:
        DetrkitError: count or variants below 1, an image that cannot be decoded, or `out` cannot be written.
    """
    from detrkit.visualize import grid  # needs matplotlib's fonts: only here

    out = Path(out).expanduser().absolute()
    if count < 1 or variants < 1:
        raise DetrkitError(f"preview: count={count}, variants={variants}: need at least 1")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DetrkitError(f"{out}: name a .png or .jpg file")
    count = min(count, len(dataset))
    pictures: list[Image.Image] = []
    titles: list[str] = []
    for row in range(count):
        index = row * len(dataset) // count
        sample = dataset[index]
        pictures.append(_drawn(sample, dataset))
        titles.append(f"{dataset.records[index].file.name}  {_size(sample)}")
        for epoch in range(variants):
            generator = torch.Generator().manual_seed(derived_seed(seed, epoch, index, 0))
            changed = transform(sample, generator)
            pictures.append(_drawn(changed, dataset))
            titles.append(f"epoch {epoch}  {_size(changed)}")
    headings = ["original", *(["augmented"] * variants)]
    sheet = grid(pictures, columns=variants + 1, titles=titles, headings=headings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except OSError as error:
        raise DetrkitError(f"{out}: cannot be written ({error.strerror})") from error
    return out


def _size(sample: Sample) -> str:
    height, width = sample.image.shape[-2:]
    return f"{width}x{height}"


def _drawn(sample: Sample, dataset: Dataset) -> Image.Image:
    """The picture of a sample with boxes, in the colours of their classes."""
    from detrkit.visualize import color_of, draw_boxes

    picture = Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())
    labels = sample.labels.tolist()
    names = [dataset.classes.names[label] for label in labels]
    return draw_boxes(picture, sample.boxes, names, [color_of(label) for label in labels], scale=None)
