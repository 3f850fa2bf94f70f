"""`Facts`: what the settings of a training are chosen from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Availability = Literal["cached", "download"]

FINE_TUNED = "detr-r50"  # the published weights that a run starts from by default: they have an address


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a choice depends on.

    Attributes:
        images: to train on.
        epoch_images: of a whole epoch, where images come more or less often than once; by default all, once.
        height, width: of an image in pixels, medians.
        classes: number of classes.
        most_objects: the largest number of objects in an image.
        small_object: side of the small objects (a tenth is smaller) as a share of the image's short side.
        masks: whether masks are asked for.
        panoptic: whether they are of things and stuff.
        device: "cpu", or the kind of the accelerator.
        gpu_memory: of one of them, in GiB.
        processes: of the run.
        cores: of the CPU that the processes of this machine share.
        weights: published weights that can be had, with or without a download.
        source: what --init-from takes for those of DETR-R50: their name, or a folder of the Hub's cache.
        model: as asked for, or None.
        queries: of that model, as published or as asked for; None where the choice decides.
        init_from: weights as asked for, those of --freeze-detector included, or None.
        batch_size: as asked for, or None.
        size: as asked for, or None.
        queries_fixed: whether the number of queries was asked for.
    """

    images: int
    height: int
    width: int
    epoch_images: int | None = None
    classes: int = 1
    most_objects: int = 1
    small_object: float = 0.1
    masks: bool = False
    panoptic: bool = False
    device: str = "cpu"
    gpu_memory: float = 0.0
    processes: int = 1
    cores: int = 2
    weights: Mapping[str, Availability] = field(default_factory=dict)
    source: str = FINE_TUNED
    model: str | None = None
    queries: int | None = None
    init_from: str | None = None
    batch_size: int | None = None
    size: int | None = None
    queries_fixed: bool = False

    @property
    def on_cpu(self) -> bool:
        """Whether training is on a CPU."""
        return self.device == "cpu"

    @property
    def turn(self) -> int:
        """Images of a whole epoch."""
        return self.images if self.epoch_images is None else self.epoch_images
