"""The settings of the images, and how they are loaded and augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from detrkit.config.strict import STRICT
from detrkit.utils.augments import Augment
from detrkit.utils.layouts import Layout
from detrkit.utils.ranges import (
    BatchSize,
    Count,
    CountOrNone,
    Decay,
    InputSize,
    Range,
    Share,
    Weight,
    Workers,
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images, and how they are loaded and augmented."""

    __pydantic_config__ = STRICT

    path: tyro.conf.Suppress[str] = ""
    """The dataset: a folder of COCO, Pascal VOC, YOLO, parquet or CSV, or a COCO json, data.yaml or CSV; the layout is
    recognized."""
    more_paths: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Further datasets to train on, of any layouts; classes of the same name are one class."""
    weights: tuple[Weight, ...] = ()
    """Of several datasets: how many of an epoch's images each has, such as 3 1 for three of four from the first one. By
    default every image comes once."""
    train_split: str | None = "train"
    """The split to train on."""
    val_data: str | None = None
    """Another dataset to evaluate on; by default the same one."""
    layout: Layout | None = None
    """The kind of files to read; by default it is recognized. From a folder with COCO instances and COCO panoptic files
    a model with masks reads the panoptic ones, other models the instances."""
    val_split: str | None = "val"
    """The split to evaluate on, each epoch; "none" for no evaluation."""
    test_split: str | None = None
    """A split on which the best checkpoint is evaluated when the training has ended."""
    ids: Literal["contiguous", "official"] = "contiguous"
    """Labels: contiguous from 0, or the dataset's raw category ids as in the published COCO models."""
    unusable: Literal["error", "skip"] = "error"
    """Training images that are missing, unreadable or of another size than their annotations say: stop at the first
    one, or leave them out and print how many."""
    size: InputSize | None = None
    """Short side of the images in pixels (training draws from 0.6 to 1 times it, as published); by default that of
    --init-from, else 800."""
    max_size: InputSize | None = None
    """Longest side in pixels; by default that of --init-from, or size * 1333 / 800."""
    augment: Augment = "detr"
    """Training augmentation: as published (flip, multi-scale, crops), flips alone, none, or lsj: large-scale jitter, to
    0.1 to 2 times the size."""
    color: Share = 0.0
    """Strength of random changes of brightness, contrast, saturation and hue: 0 for none, 1 for strong ones."""
    mosaic: Share = 0.0
    """Probability that a training image shares its place with three others, each cut to its quadrant."""
    mixup: Share = 0.0
    """Probability that another image is blended over a training image; the objects of both count."""
    copy_paste: Share = 0.0
    """Probability that objects of another image are pasted onto a training image, along their masks."""
    zoom_out: Share = 0.0
    """Probability that a training image is shown small, on a black canvas of 1 to 4 times its sides."""
    iou_crop: Share = 0.0
    """Probability that a training image is cropped around an object, which need not be whole."""
    multi_scale: bool = False
    """Give the images of each training step a size of their own, from 0.75 to 1.25 times the size."""
    plain_epochs: CountOrNone | None = None
    """The last epochs, in which mosaic, mixup, copy_paste, zoom_out, iou_crop and multi_scale rest; by default a fifth
    of all."""
    batch_size: BatchSize = 2
    """Images per process and step."""
    epoch_images: Count | None = None
    """Images per epoch; by default the whole training split. Fewer: each epoch goes on where the one before ended, so
    that all images come once before one comes again. More: an epoch of a small split has several turns."""
    eval_batch_size: BatchSize | None = None
    """Images per process in evaluation; by default batch_size. It does not change the result."""
    repeat_rare: Annotated[float, Range(gt=0, le=1)] | None = None
    """Show images with rare classes more often, as LVIS does: an image comes sqrt(repeat_rare / f) times per epoch if
    the rarest of its classes is in a share f of the images that is below repeat_rare. By default every image comes
    once."""
    empty_share: Decay | None = None
    """Share of an epoch that images without objects have; 0 leaves them out. By default each comes once."""
    workers: Workers | None = None
    """Processes that load images; by default 0 on a CPU, whose cores train, else CPU cores - 1, at most 4."""
    cache: Literal["auto", "none", "ram"] = "auto"
    """Keep decoded images in memory: auto does when they take less than 1 GiB."""
    draft: bool = False
    """Decode JPEGs for training at a half, a quarter or an eighth of their size where the augmented image is even
    smaller: faster for large photographs, with slightly different pixels. Not for images kept in memory."""
    group_by_size: bool = False
    """Put training images of similar size into one step: much less padding, but steps are no longer random samples."""
