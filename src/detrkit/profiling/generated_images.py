"""Generated images that need no download, and generated objects for any images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.data import Dataset
from detrkit.data.images import image_size
from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.utils.atomic import write_errors
from detrkit.utils.image_files import image_bytes

LONG_SIDE = 640  # pixels, as of COCO's images
MAX_OBJECTS = 13  # an image has 1 to 13 objects, 7 on average, as in COCO


def write_images(folder: Path, count: int, shape: tuple[int, int]) -> list[Path]:
    """Write JPEG files of COCO's resolution with the aspect ratio of `shape`.

    Args:
        folder: where to write.
        count: number of files.
        shape: (short, long); the images are in landscape format, with a long side of 640 pixels.

    Raises:
        WriteError: the files cannot be written.
    """
    short, long = shape
    height = max(1, LONG_SIDE * short // long)  # rounded down, so that resizing reaches the longest side first
    files = []
    for k in range(count):
        files.append(folder / f"{k:03d}.jpg")
        photograph = _photograph(np.random.default_rng(k), height, LONG_SIDE)
        with write_errors(files[-1]):
            files[-1].write_bytes(image_bytes(photograph, ".jpg", quality=90))
    return files


def _photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Generate noise of many scales, each half as strong as the one twice as coarse, and add grain.

    With this amount of grain a JPEG of 640 x 480 pixels has about 125 kB and takes as long to decode as one of COCO.
    """
    total = np.zeros((height, width, 3))
    for octave in range(2, 8):
        coarse = rng.normal(0, 2.0 ** (7 - octave), (2**octave, 2**octave, 3)).astype(np.float32)
        planes = [Image.fromarray(coarse[..., c]).resize((width, height)) for c in range(3)]
        total += np.stack([np.asarray(plane) for plane in planes], 2)
    total += rng.normal(128, 11, (height, width, 1))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def generated_dataset(files: Sequence[Path], *, num_classes: int, masks: bool) -> Dataset:
    """Make a dataset of the images with random ellipses as objects: the time depends only on their number.

    Args:
        files: images.
        num_classes: labels to draw from.
        masks: whether samples have masks.

    Raises:
        DetrkitError: a file is no image.
    """
    classes = ClassList(tuple(f"class {k}" for k in range(num_classes)), tuple(range(num_classes)))
    records = [_record(k, file, num_classes) for k, file in enumerate(files)]
    return Dataset(records, classes, name="bench", split="train", layout="coco", with_masks=masks)


def _record(index: int, file: Path, num_classes: int) -> Record:
    """Make the record of an image with random objects."""
    rng = np.random.default_rng(index)
    height, width = image_size(file)
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    radii = np.exp(rng.uniform(np.log(0.02), np.log(0.3), (count, 2))) * (width, height)  # (N, 2) xy
    centers = radii + rng.uniform(size=(count, 2)) * ((width, height) - 2 * radii)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outlines = centers[:, None] + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]  # (N, 24, 2)
    return Record(
        image_id=index + 1,
        file=file,
        height=height,
        width=width,
        boxes=np.concatenate([centers - radii, centers + radii], 1),
        labels=rng.integers(0, num_classes, count),
        crowd=np.zeros(count, bool),
        areas=np.pi * radii.prod(1),
        segmentations=[[outline.ravel().tolist()] for outline in outlines],
        annotation_ids=np.arange(count),
    )
